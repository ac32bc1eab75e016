"""Package versions, hardware and number of usable CPU cores."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from bertsmith import __version__
from bertsmith.compute.system import affinity_cores, control_group_cores

_PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "scikit-learn", "pandas", "numpy")
_limit: int | None = None


def versions(*further: str) -> dict[str, str]:
    """Return the versions of Python, of the installed packages that can change a result, and of further packages."""
    found = {"python": platform.python_version(), "bertsmith": __version__}
    for name in (*_PACKAGES, *further):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def hardware(device: str) -> dict[str, Any]:
    """Return a short description of the machine, with the given description of its device."""
    import torch

    return {
        "device": device,
        "cpu": cpu_capabilities().get("cpu_name") or platform.processor() or platform.machine(),
        "cores": affinity_cores(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def cpu_capabilities() -> dict[str, Any]:
    """Return torch's description of the CPU: instruction sets, name, caches. Empty for older versions of torch."""
    import torch

    get_capabilities: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    return get_capabilities()


def use_cores(n: int | None) -> None:
    """Limit this process to n cores; ``None`` removes the limit."""
    global _limit
    _limit = n


def cores() -> int:
    """Return the number of cores this process may use.

    That is the minimum of `core_limits`.
    """
    return max(1, min(core_limits().values()))


def core_limits() -> dict[str, int]:
    """Return what limits the number of cores: CPU affinity, container, ``OMP_NUM_THREADS``, `use_cores`."""
    limits = {
        "the cores that this process may use": affinity_cores(),
        "the CPU limit of the container": control_group_cores(),
    }
    omp_threads = os.environ.get("OMP_NUM_THREADS", "")
    if omp_threads.isdigit() and int(omp_threads) > 0:
        limits["the environment variable OMP_NUM_THREADS"] = int(omp_threads)
    if _limit:
        limits["the setting threads"] = _limit
    return limits
