"""Choose and describe the device and its precision; move tensors to it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from bertsmith.compute.machine import cores, cpu_capabilities
from bertsmith.errors import DeviceError

if TYPE_CHECKING:
    import torch

_lowered = 0, 0
"""PyTorch's number of threads without and with the limit."""


def choose_device(name: str = "auto") -> torch.device:
    """Return the named device; with ``"auto"`` the first available of CUDA (also ROCm), XPU, MPS and CPU.

    Also limits PyTorch to the cores of this process. PyTorch ignores the CPU limit of a container.

    Raises:
        DeviceError: if the device is unknown or not available.
    """
    import torch

    _limit_threads()
    available = available_devices()
    if name == "auto":
        return torch.device(next(device for device, usable in available.items() if usable))
    if name not in available:
        raise DeviceError(f"--device {name} is not a device", remedy=f"Pass one of {', '.join(('auto', *available))}.")
    if not available[name]:
        raise DeviceError(
            f"--device {name} is not available on this machine with torch {torch.__version__}",
            remedy="Leave out --device, or install the torch build for your GPU.",
        )
    return torch.device(name)


def _limit_threads() -> None:
    """Limit PyTorch's threads to `cores`; with a higher limit than before, restore what this function has lowered."""
    import torch

    global _lowered
    threads = torch.get_num_threads()
    usual = _lowered[0] if threads == _lowered[1] else threads
    _lowered = usual, min(usual, cores())
    if threads != _lowered[1]:
        torch.set_num_threads(_lowered[1])


@contextmanager
def kept_random_states() -> Iterator[None]:
    """At the end of this context, restore the global random generators of Python, NumPy and torch.

    This includes the generators of GPUs that the caller uses already. Training seeds these generators. Without this
    context, a caller that resamples would draw the same sample again.
    """
    import torch

    generators: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
        (random.getstate, random.setstate),
        (np.random.get_state, np.random.set_state),
        (torch.get_rng_state, torch.set_rng_state),
    ]
    for gpus in (torch.cuda, torch.xpu):
        if gpus.is_initialized():
            generators.append((gpus.get_rng_state_all, gpus.set_rng_state_all))
    if torch.backends.mps.is_available():
        generators.append((torch.mps.get_rng_state, torch.mps.set_rng_state))
    states = [(restore, get()) for get, restore in generators]
    try:
        yield
    finally:
        for restore, state in states:
            restore(state)


def available_devices() -> dict[str, bool]:
    """Return whether each type of device is available, the preferred type first."""
    import torch

    return {
        "cuda": torch.cuda.is_available(),
        "xpu": torch.xpu.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }


def describe_device(device: torch.device) -> str:
    """Return kind, name and memory or number of threads of a device."""
    import torch

    if device.type in ("cuda", "xpu"):
        properties = getattr(torch, device.type).get_device_properties(device)
        rocm = f", ROCm {torch.version.hip}" if device.type == "cuda" and torch.version.hip else ""
        return f"GPU {properties.name}, {properties.total_memory / 2**30:.0f} GiB{rocm}"
    if device.type == "mps":
        return "Apple GPU (MPS)"
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def can_compile(device: torch.device) -> bool:
    """Return whether `torch.compile` works on this machine: it needs Triton and a C compiler."""
    import torch

    try:
        return bool((torch.compile(lambda x: x + 1)(torch.zeros(8, device=device)) == 1).all())
    except Exception:  # many types
        return False


def choose_precision(device: torch.device) -> tuple[str, str]:
    """Return the fastest precision of a device (``"fp32"``, ``"bf16"`` or ``"fp16"``), and the reason."""
    import torch

    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return "bf16", "bf16 is fast on this GPU"
        return "fp16", "this GPU does not support bf16"
    if device.type == "cpu":
        capabilities = cpu_capabilities()
        if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"):
            return "bf16", "bf16 is faster than fp32 on this CPU"
        return "fp32", "bf16 is not fast on this CPU"
    if device.type == "xpu":
        if torch.xpu.is_bf16_supported():
            return "bf16", "bf16 is fast on this GPU"
        return "fp32", "this GPU does not support bf16"
    return "fp32", "the safe choice on this device, which also supports bf16"


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Move a tensor to a device without synchronization.

    Raises:
        RuntimeError: during the capture of a CUDA graph, which would replay the same values at every call.
    """
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    refuse_capture(device)
    return values.pin_memory().to(device, non_blocking=True)


def refuse_capture(device: torch.device) -> None:
    """Raise `RuntimeError` during the capture of a CUDA graph; see `to_device`."""
    import torch

    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("a CUDA graph cannot contain values from the host")
