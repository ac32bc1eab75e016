"""How much memory there is, how much a micro-batch takes, how to tell that it ran out, how to keep what is freed."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bertsmith.compute.batching import SLACK, TOKEN_BUDGETS
from bertsmith.errors import DeviceError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SMALLEST = 8
"""Tokens; less than a text of this length is not tried."""
FRAGMENTS = 2**18
"""Bytes a token that a run takes beside what a step needs: freed memory in pieces of sizes that nothing fits again."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``; both have 128 KiB at first."""
_REFUSED = re.compile(
    r"can.t allocate memory|not enough memory|out of memory|could not create a (primitive|memory)", re.IGNORECASE
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory did not suffice, on whatever device."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and bool(_REFUSED.search(str(error)))
    )


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[None]:
    """While in this context, have glibc keep what is freed for the next step; afterwards it goes back to the system.

    Otherwise every large tensor is new memory, whose pages the kernel hands out and zeroes one by one. With another
    allocator, or none of glibc's, nothing changes.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(library, "mallopt"):
        yield
        return
    assert library is not None
    library.mallopt(_MMAP_THRESHOLD, 32 * 2**20)  # the most that glibc takes
    library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        library.mallopt(_MMAP_THRESHOLD, 128 * 2**10)
        library.mallopt(_TRIM_THRESHOLD, 128 * 2**10)
        library.malloc_trim(0)


def resident_memory() -> int | None:
    """Return the bytes of memory that this process holds, freed ones that it keeps included; ``None`` if not Linux."""
    pages = _read(Path("/proc/self/statm")).split()
    return int(pages[1]) * mmap.PAGESIZE if pages else None


def release_beyond(most: int) -> int:
    """Give what is freed back to the system if this process holds more than some bytes.

    What is freed lies in pieces of sizes that not everything fits, so that ever more is held, ever more slowly.

    Returns:
        The bytes to ask for next time: the same, or a quarter more than is in use where that is more, so that memory is
        not given back and taken again all the time.
    """
    now = resident_memory()
    if now is None or now <= most or not hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        return most
    library.malloc_trim(0)
    return max(most, (resident_memory() or 0) * 5 // 4)


def free_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process may still take: what machine, control groups and ``ulimit`` leave it.

    Args:
        root: where ``proc`` and ``sys`` are, for tests.

    Returns:
        The least of them, or ``None`` where none of them can be known (not on Linux).
    """
    left = [*_machine(root), *_control_groups(root), *(_ulimit(root) if sys.platform == "linux" else [])]
    return max(min(left), 0) if left else None


def plan(
    model: PreTrainedModel,
    longest: int,
    *,
    training: bool,
    free: int | None,
    usual: int | None = None,
    workers: int = 1,
) -> int:
    """Return the token budget for a CPU: the usual one, or as much of it as fits into memory.

    On a CPU memory that ends is no error to catch: the kernel kills the process. So the need is reckoned beforehand,
    from above (``benchmarks/memory.py`` measures it).

    Args:
        model: in fp32.
        longest: tokens of the longest text.
        training: whether gradients and the optimizer's two moments are needed as well.
        free: bytes, of `free_memory`.
        usual: the token budget where memory suffices; that of `TOKEN_BUDGETS` unless given.
        workers: micro-batches computed at once.

    Raises:
        DeviceError: if not even one text of that length fits.
    """
    usual = usual or TOKEN_BUDGETS["cpu"]
    if free is None:
        return usual
    budget = usual
    while estimate(model, longest, budget, training=training, workers=workers) > free:
        if budget <= longest:
            needed = format_bytes(estimate(model, longest, longest, training=training, workers=workers))
            raise DeviceError(
                f"memory does not suffice even for one text of {longest:,} tokens: "
                f"about {needed} are needed, {format_bytes(free)} are free",
                remedy="Pass a smaller --max-length, take a smaller --model, or free memory (or raise its limit)."
                if training
                else "Free memory, or raise its limit.",
            )
        budget //= 2
    return budget


def estimate(model: PreTrainedModel, longest: int, budget: int, *, training: bool, workers: int = 1) -> int:
    """Return an upper bound of the bytes that a step takes on a CPU besides the model itself; see `plan`."""
    fragments = training * workers * max(budget, longest) * FRAGMENTS
    return step_memory(model, longest, budget, training=training, workers=workers) + fragments


def step_memory(model: PreTrainedModel, longest: int, budget: int, *, training: bool, workers: int = 1) -> int:
    """Return an upper bound of the bytes of a step while it is computed: gradients of each worker, moments, texts."""
    weights = (8 + 4 * workers) * sum(p.numel() for p in model.parameters()) if training else 0
    return weights + workers * max(budget, longest) * _bytes_per_token(model, longest)


def _bytes_per_token(model: PreTrainedModel, longest: int) -> int:
    def size(*names: str, default: int) -> int:
        values = [getattr(model.config, name, None) for name in names]
        return next((value for value in values if isinstance(value, int)), default)

    hidden = size("hidden_size", "dim", default=768)
    inner = size("intermediate_size", "hidden_dim", default=4 * hidden)
    layers = size("num_hidden_layers", "n_layers", default=12)
    heads = size("num_attention_heads", "n_heads", default=12)
    return 4 * (24 * hidden + 4 * inner + 5 * SLACK * heads * longest) * layers


def _machine(root: Path) -> list[int]:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _read(root / "proc/meminfo"), re.M)
    return [int(found[1]) * 1024] if found else []


def _control_groups(root: Path) -> list[int]:
    """Version 2 and 1; a limit of a group above counts as well. Cached files are given back when memory is short."""
    left = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        if not controllers:
            base, limit, used, cached = "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, limit, used = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cached = "total_inactive_file"
        else:
            continue
        group = root / base / name.strip("/")
        for folder in (group, *group.parents):
            if folder == (root / base).parent:
                break
            most, now = _read(folder / limit).strip(), _read(folder / used).strip()
            if most.isdigit() and now.isdigit():
                files = re.search(rf"^{cached} (\d+)", _read(folder / "memory.stat"), re.M)
                left.append(int(most) - int(now) + (int(files[1]) if files else 0))
    return left


def _ulimit(root: Path) -> list[int]:
    import resource

    left = []
    for kind, line in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        limit = resource.getrlimit(kind)[0]
        used = re.search(rf"^{line}:\s+(\d+) kB", _read(root / "proc/self/status"), re.M)
        if limit != resource.RLIM_INFINITY and used:
            left.append(limit - int(used[1]) * 1024)
    return left


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def format_bytes(size: int) -> str:
    """Return a number of bytes as one reads it."""
    return f"{size / 2**30:.1f} GiB" if size > 2**30 else f"{size / 2**20:.0f} MiB"
