"""Package versions, hardware and number of usable CPU cores."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bertsmith import __version__

_PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "scikit-learn", "pandas", "numpy")
_NO_LIMIT = 2**16
_limit: int | None = None


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that can change a result."""
    ours = {"python": platform.python_version(), "bertsmith": __version__}
    return ours | {name: version(name) for name in _PACKAGES}


def hardware(device: str) -> dict[str, Any]:
    """Return a short description of the machine, with the given description of its device."""
    import torch

    return {
        "device": device,
        "cpu": cpu_capabilities().get("cpu_name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
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

    That is the minimum of its CPU affinity, its container's CPU limit, ``OMP_NUM_THREADS`` and `use_cores`.
    """
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    limits.append(_cgroup_cores())
    omp_threads = os.environ.get("OMP_NUM_THREADS", "")
    if omp_threads.isdigit() and int(omp_threads) > 0:
        limits.append(int(omp_threads))
    if _limit:
        limits.append(_limit)
    return max(1, min(limits))


def _cgroup_cores(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the CPU limit of the control group (version 2 or 1) in cores, rounded up; `_NO_LIMIT` without one."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return -(-int(quota) // int(period))
    except (OSError, ValueError):
        pass
    try:
        amount = int((folder / "cpu" / "cpu.cfs_quota_us").read_text())
        return -(-amount // int((folder / "cpu" / "cpu.cfs_period_us").read_text())) if amount > 0 else _NO_LIMIT
    except (OSError, ValueError):
        return _NO_LIMIT
