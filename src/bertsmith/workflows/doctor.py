"""Describe this machine: the device and settings that bertsmith would use, and missing packages."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from typing import Any

from bertsmith.compute.machine import core_limits, cores, versions
from bertsmith.errors import EXTRAS

ENABLES = {
    "tables": "Parquet, Feather, JSON arrays and data frames for predictions without torch",
    "train": "training, tuning and evaluation; predictions from runs",
    "excel": "Excel files",
    "sql": "tables from databases",
    "explain": "the words that influenced a prediction",
    "tune": "the search for better settings",
    "export": "exports for ONNX Runtime and OpenVINO",
    "openvino": "predictions with OpenVINO",
    "ray": "predictions and training on many machines",
    "tensorboard": "metrics in TensorBoard",
    "mlflow": "metrics in MLflow",
    "wandb": "metrics in Weights & Biases",
    "trackio": "metrics in Trackio",
}
"""Purpose of each extra."""
_DRIVERS = {"nvidia-smi": "NVIDIA", "rocm-smi": "AMD", "xpu-smi": "Intel"}
"""Programs of GPU drivers, and the makers of the GPUs."""


@dataclass(frozen=True)
class Choice:
    """A choice that bertsmith would make.

    Attributes:
        name: ``"device"``, ``"precision"``, ``"threads"``, ``"runtime"`` or ``"cache"``.
        value: the chosen value.
        reason: the reason for it.
    """

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class Extra:
    """An extra of bertsmith.

    Attributes:
        name: as in ``bertsmith[name]``.
        enables: its purpose.
        packages: names of its packages, as imported.
        missing: packages that are not installed.
    """

    name: str
    enables: str
    packages: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Diagnosis:
    """The result of `diagnose`.

    Attributes:
        machine: system, processor, cores, and bytes of memory if known.
        versions: of Python, bertsmith and the installed packages that can change a result.
        devices: a description of each type of device; ``None`` if it is not available.
        choices: the choices that bertsmith would make.
        extras: the extras and their missing packages.
        problems: problems with their remedies.
    """

    machine: dict[str, Any]
    versions: dict[str, str]
    devices: dict[str, str | None]
    choices: tuple[Choice, ...]
    extras: tuple[Extra, ...]
    problems: tuple[str, ...]


def diagnose(device: str = "auto") -> Diagnosis:
    """Describe this machine. Imports torch if it is installed, and works without it.

    Raises:
        DeviceError: if torch is installed and the device is not available.
    """
    extras = []
    for name, enables in ENABLES.items():
        packages = tuple(package for package, extra in EXTRAS.items() if extra == name)
        extras.append(Extra(name, enables, packages, tuple(p for p in packages if not _is_installed(p))))
    choices, devices, problems = _with_torch(device) if _is_installed("torch") else _without_torch()
    found = versions("onnxruntime", "openvino", "pyarrow", "optuna")
    return Diagnosis(_machine(), found, devices, (*choices, *_other_choices()), tuple(extras), problems)


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _machine() -> dict[str, Any]:
    machine: dict[str, Any] = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }
    if _is_installed("psutil"):
        import psutil

        from bertsmith.compute.system import free_memory

        machine |= {"memory": int(psutil.virtual_memory().total), "free_memory": free_memory()}
    if "torch" in sys.modules:
        from bertsmith.compute.machine import cpu_capabilities

        machine["processor"] = cpu_capabilities().get("cpu_name") or machine["processor"]
    return machine


def _with_torch(name: str) -> tuple[list[Choice], dict[str, str | None], tuple[str, ...]]:
    import torch

    from bertsmith.compute.device import available_devices, choose_device, choose_precision, describe_device

    available = available_devices()
    device = choose_device(name)
    devices = {kind: describe_device(torch.device(kind)) if usable else None for kind, usable in available.items()}
    precision, why = choose_precision(device)
    if name != "auto":
        reason = "the setting device"
    elif device.type == "cpu":
        reason = f"torch {torch.__version__} finds no GPU"
    else:
        reason = f"torch {torch.__version__} finds this GPU"
    choices = [
        Choice("device", f"{device.type}: {devices[device.type]}", reason),
        Choice("precision", precision, f"in training, {why}"),
    ]
    drivers = [maker for program, maker in _DRIVERS.items() if shutil.which(program)]
    problem = (
        f"a GPU driver ({', '.join(drivers)}) is installed, but torch {torch.__version__} finds no GPU. "
        "Install the build of torch for this GPU: https://pytorch.org/get-started/locally"
    )
    has_gpu = any(usable for kind, usable in available.items() if kind != "cpu")
    return choices, devices, (problem,) if drivers and not has_gpu else ()


def _without_torch() -> tuple[list[Choice], dict[str, str | None], tuple[str, ...]]:
    devices: dict[str, str | None] = {"cpu": "CPU, for exports"}
    return [Choice("device", "cpu: exports only", "torch is not installed")], devices, ()


def _other_choices() -> list[Choice]:
    from bertsmith.inference.runtime import RUNTIMES

    used = cores()
    reason = next(name for name, n in core_limits().items() if n == used)
    runtimes = [name for name, runtime in RUNTIMES.items() if runtime.installed]
    choices = [
        Choice("threads", str(used), reason),
        Choice("runtime", ", ".join(runtimes) or "none", "the installed runtimes of exports"),
    ]
    if _is_installed("huggingface_hub"):
        from huggingface_hub.constants import HF_HUB_CACHE

        choices.append(Choice("cache", HF_HUB_CACHE, "for checkpoints and datasets; HF_HOME selects another folder"))
    return choices
