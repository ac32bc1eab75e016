"""Available memory, memory estimates, out-of-memory errors, and glibc's handling of freed memory."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bertsmith.compute.batching import PACKED_PADDING_FACTOR, TOKEN_BUDGETS
from bertsmith.errors import DeviceError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")
MIN_TOKEN_BUDGET = 8
FRAGMENTATION_BYTES = 2**18
"""Bytes per token that a run needs on top of a step, because freed memory is fragmented.

With 1,024 tokens per micro-batch, a model of two layers needs 178 MiB after 1,024 steps.
"""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``; both default to 128 KiB."""
_OUT_OF_MEMORY = re.compile(
    r"can.t allocate memory|not enough memory|out of memory|could not create a (primitive|memory)", re.IGNORECASE
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out, on any device."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))
    )


def retry_on_out_of_memory(
    attempt: Callable[[int], T], budget: int, *, min_budget: int, on_retry: Callable[[int], None] = lambda budget: None
) -> tuple[T, int]:
    """Call a function with a token budget, and halve the budget while memory runs out.

    Args:
        attempt: takes a token budget.
        budget: the first token budget.
        min_budget: the smallest token budget to try.
        on_retry: receives the next budget before each retry; undoes the effects of the failed attempt.

    Returns:
        The result, and the budget of the successful attempt.

    Raises:
        RuntimeError: or ``MemoryError``, if memory does not suffice with ``min_budget``.
    """
    while True:
        try:
            return attempt(budget), budget
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or budget <= min_budget:
                raise
        # Outside of the handler: its traceback would keep the tensors of the failed attempt alive.
        budget = max(budget // 2, min_budget)
        _empty_device_cache()
        on_retry(budget)


@contextlib.contextmanager
def memory_errors(what: str, remedy: str) -> Iterator[None]:
    """Turn errors that mean that memory ran out into a `DeviceError` with this message."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(what, remedy=remedy) from error


def _empty_device_cache() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[None]:
    """In this context, glibc keeps freed memory for the next step. On exit it is returned to the system.

    Otherwise the kernel maps and zeroes new pages for each large tensor: 8 % of the training time of MiniLM. Other
    allocators are left unchanged.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(library, "mallopt"):
        yield
        return
    assert library is not None
    library.mallopt(_MMAP_THRESHOLD, 32 * 2**20)  # the maximum
    library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        library.mallopt(_MMAP_THRESHOLD, 128 * 2**10)
        library.mallopt(_TRIM_THRESHOLD, 128 * 2**10)
        library.malloc_trim(0)


def resident_memory() -> int | None:
    """Return the resident set size of this process in bytes, including freed memory; ``None`` if not on Linux."""
    pages = _read(Path("/proc/self/statm")).split()
    return int(pages[1]) * mmap.PAGESIZE if pages else None


def trim_memory(limit: int) -> int:
    """Return freed memory to the system if this process holds more than ``limit`` bytes.

    Freed memory becomes fragmented, so a process would hold more and more of it.

    Returns:
        The limit for the next call. It is at least 1.25 times the memory in use, to avoid trimming at every call.
    """
    resident = resident_memory()
    if resident is None or resident <= limit or not hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        return limit
    library.malloc_trim(0)
    return max(limit, (resident_memory() or 0) * 5 // 4)


def free_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes this process may still allocate, or ``None`` if unknown (not on Linux).

    That is the minimum of what the machine, control groups and ``ulimit`` leave.

    Args:
        root: parent of ``proc`` and ``sys``, for tests.
    """
    limits = [*_machine(root), *_control_groups(root), *(_ulimit(root) if sys.platform == "linux" else [])]
    return max(min(limits), 0) if limits else None


def plan_token_budget(
    model: PreTrainedModel,
    longest: int,
    *,
    training: bool,
    free: int | None,
    default: int | None = None,
    workers: int = 1,
    width: int | None = None,
) -> int:
    """Return a token budget that fits into the memory of a CPU: the default, halved as often as needed.

    When CPU memory runs out, the kernel kills the process, so an error handler comes too late. The estimate is an upper
    bound (``benchmarks/memory.py`` measures it).

    Args:
        model: in fp32.
        longest: number of tokens of the longest text.
        training: whether to count gradients and the two moments of the optimizer.
        free: available bytes, from `free_memory`.
        default: the token budget if memory suffices; ``None`` for that of `TOKEN_BUDGETS`.
        workers: number of micro-batches computed at the same time.
        width: tokens of the longest window; ``None`` if texts have no windows.

    Raises:
        DeviceError: if a single text of that length does not fit.
    """
    budget = default or TOKEN_BUDGETS["cpu"]
    estimate = partial(estimate_memory, model, longest, training=training, workers=workers, width=width)
    while free is not None and estimate(budget) > free:
        if budget <= longest:
            needed = format_bytes(estimate(longest))
            raise DeviceError(
                f"memory does not suffice even for one text of {longest:,} tokens: "
                f"about {needed} are needed, {format_bytes(free)} are free",
                remedy="Pass a smaller --max-length or --model, or free memory (or raise its limit)."
                if training
                else "Free memory, or raise its limit.",
            )
        budget //= 2
    return budget


def estimate_memory(
    model: PreTrainedModel, longest: int, budget: int, *, training: bool, workers: int = 1, width: int | None = None
) -> int:
    """Return an upper bound of the bytes that a run needs on a CPU, without the model; see `plan_token_budget`."""
    fragmentation = training * workers * max(budget, longest) * FRAGMENTATION_BYTES
    return step_memory(model, longest, budget, training=training, workers=workers, width=width) + fragmentation


def step_memory(
    model: PreTrainedModel, longest: int, budget: int, *, training: bool, workers: int = 1, width: int | None = None
) -> int:
    """Return an upper bound of the bytes of one step: activations, gradients of each worker, optimizer moments."""
    weights = (8 + 4 * workers) * sum(p.numel() for p in model.parameters()) if training else 0
    return weights + workers * max(budget, longest) * _bytes_per_token(model, width or longest)


def _bytes_per_token(model: PreTrainedModel, longest: int) -> int:
    def size(*names: str, default: int) -> int:
        values = [getattr(model.config, name, None) for name in names]
        return next((value for value in values if isinstance(value, int)), default)

    hidden = size("hidden_size", "dim", default=768)
    inner = size("intermediate_size", "hidden_dim", default=4 * hidden)
    layers = size("num_hidden_layers", "n_layers", default=12)
    heads = size("num_attention_heads", "n_heads", default=12)
    return 4 * (24 * hidden + 4 * inner + 5 * PACKED_PADDING_FACTOR * heads * longest) * layers


def _machine(root: Path) -> list[int]:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _read(root / "proc/meminfo"), re.M)
    return [int(found[1]) * 1024] if found else []


def _control_groups(root: Path) -> list[int]:
    """Return what each control group (version 1 or 2) and its parents leave. Cached files count as free."""
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
    """Format a number of bytes in MiB or GiB."""
    return f"{size / 2**30:.1f} GiB" if size > 2**30 else f"{size / 2**20:.0f} MiB"
