"""The device to compute on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bertsmith.compute.machine import cores, cpu_capabilities
from bertsmith.errors import DeviceError

if TYPE_CHECKING:
    import torch


def choose_device(wanted: str = "auto") -> torch.device:
    """Return the device to compute on: CUDA, else MPS, else CPU.

    PyTorch then uses no more threads than this process has cores: it does not know a container's share of them.

    Raises:
        DeviceError: if the device asked for is not available.
    """
    import torch

    if torch.get_num_threads() > cores():
        torch.set_num_threads(cores())
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, is_there in there.items() if is_there))
    if wanted not in there:
        raise DeviceError(f"--device {wanted}: there is no such device", remedy="Take one of auto, cuda, mps, cpu.")
    if not there[wanted]:
        raise DeviceError(
            f"--device {wanted}: this machine, or this build of torch {torch.__version__}, has none",
            remedy="Leave out --device, or install the torch build for your GPU.",
        )
    return torch.device(wanted)


def describe_device(device: torch.device) -> str:
    """Return the device in words: its kind, its name, its memory or cores."""
    import torch

    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"GPU {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if device.type == "mps":
        return "Apple GPU (MPS)"
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def choose_precision(device: torch.device) -> tuple[str, str]:
    """Return the number format the device is fast at, and why."""
    import torch

    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return "bf16", "this GPU multiplies bf16 fast"
        return "fp16", "this GPU does not support bf16"
    if device.type == "cpu":
        able = cpu_capabilities()
        if able.get("avx512_bf16") or able.get("amx_bf16"):
            return "bf16", "this CPU multiplies bf16 faster than fp32"
        return "fp32", "this CPU has no fast bf16"
    return "fp32", "the safe choice on this device"
