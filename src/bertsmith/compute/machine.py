"""What a run was made with: versions and hardware."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bertsmith import __version__

_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "datasets",
    "accelerate",
    "scikit-learn",
    "pandas",
    "numpy",
)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that can change a result."""
    ours = {"python": platform.python_version(), "bertsmith": __version__}
    return ours | {name: version(name) for name in _PACKAGES}


def hardware(device: str) -> dict[str, Any]:
    """Return the machine in a few words; ``device`` is what was computed on."""
    import torch

    return {
        "device": device,
        "cpu": cpu_capabilities().get("cpu_name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def cpu_capabilities() -> dict[str, Any]:
    """Return what torch knows of the CPU: instruction sets, name, caches; empty where torch is too old to tell."""
    import torch

    ask: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    return ask()


_limit: int | None = None


def use_cores(n: int | None) -> None:
    """Let this process use at most n cores; all that there are if ``None``."""
    global _limit
    _limit = n


def cores() -> int:
    """Return how many cores this process may use.

    They are those it is bound to, fewer where its container has a share of them, where ``OMP_NUM_THREADS`` says so, or
    after `use_cores`.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    limits = [bound, _container_share()] + ([int(wanted)] if wanted.isdigit() and int(wanted) > 0 else [])
    return max(1, min(limits + ([_limit] if _limit else [])))


def _container_share(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the cores that a control group lets its processes use, rounded up; many, where it sets no limit."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return -(-int(quota) // int(period))
    except (OSError, ValueError):
        pass
    try:
        amount = int((folder / "cpu" / "cpu.cfs_quota_us").read_text())
        return -(-amount // int((folder / "cpu" / "cpu.cfs_period_us").read_text())) if amount > 0 else 2**16
    except (OSError, ValueError):
        return 2**16
