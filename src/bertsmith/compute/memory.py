"""Memory estimates, and the retry with half the token budget after an out-of-memory error."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from bertsmith.compute import threads
from bertsmith.compute.batching import PACKED_PADDING_FACTOR, TOKEN_BUDGETS
from bertsmith.compute.system import free_memory
from bertsmith.errors import DeviceError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")
MIN_TOKEN_BUDGET = 8
FRAGMENTATION_BYTES = 2**18
"""Bytes per token that a run needs on top of a step, because freed memory is fragmented.

With 1,024 tokens per micro-batch, a model of two layers needs 178 MiB after 1,024 steps.
"""
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
        empty_device_cache()
        on_retry(budget)


@contextlib.contextmanager
def memory_errors(what: str, remedy: str) -> Iterator[None]:
    """Turn errors that mean that memory ran out into a `DeviceError`. ``{error}`` in ``what`` is their first line."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        first_line = str(error).splitlines()[0] if str(error) else "an allocation failed"
        raise DeviceError(what.replace("{error}", first_line), remedy=remedy) from error


def empty_device_cache() -> None:
    """Return the memory that PyTorch caches to the device, for retries and for other processes."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
    if torch.xpu.is_available():
        torch.xpu.empty_cache()


def token_budget(model: PreTrainedModel, longest: int, default: int | None = None) -> int:
    """Return the token budget for inference: the default or that of the device. A CPU with little memory halves it.

    Raises:
        DeviceError: if memory does not suffice for one text with the number of tokens ``longest``.
    """
    default = default or TOKEN_BUDGETS[model.device.type]
    if model.device.type != "cpu":
        return default
    free, workers = free_memory(), threads.num_workers()
    return plan_token_budget(model, longest, training=False, free=free, default=default, workers=workers)


def plan_token_budget(
    model: PreTrainedModel,
    longest: int,
    *,
    training: bool,
    free: int | None,
    default: int | None = None,
    workers: int = 1,
) -> int:
    """Return a token budget that fits into the memory of a CPU: the default, halved as often as needed.

    When CPU memory runs out, the kernel kills the process, so an error handler comes too late. The estimate is an upper
    bound (``benchmarks/memory.py`` measures it).

    Args:
        model: in fp32.
        longest: number of tokens of the longest text.
        training: whether to count gradients and the two moments of the optimizer.
        free: available bytes, from `bertsmith.compute.system.free_memory`; ``None``: no limit.
        default: the token budget if memory suffices; ``None`` for that of `TOKEN_BUDGETS`.
        workers: number of micro-batches computed at the same time.

    Raises:
        DeviceError: if a single text of that length does not fit.
    """
    budget = default or TOKEN_BUDGETS["cpu"]
    estimate = partial(estimate_memory, model, longest, training=training, workers=workers)
    while free is not None and estimate(budget) > free:
        if budget <= longest:
            needed = format_bytes(estimate(longest))
            raise DeviceError(
                f"memory is too small even for one text of {longest:,} tokens: such a text needs about {needed}, but "
                f"only {format_bytes(free)} is free",
                remedy="Pass a smaller --max-length or --model, free memory, or raise the memory limit."
                if training
                else "Free memory, or raise the memory limit.",
            )
        budget //= 2
    return budget


def estimate_memory(model: PreTrainedModel, longest: int, budget: int, *, training: bool, workers: int = 1) -> int:
    """Return an upper bound of the bytes that a run needs on a CPU, without the model; see `plan_token_budget`."""
    fragmentation = training * workers * max(budget, longest) * FRAGMENTATION_BYTES
    return step_memory(model, longest, budget, training=training, workers=workers) + fragmentation


def step_memory(model: PreTrainedModel, longest: int, budget: int, *, training: bool, workers: int = 1) -> int:
    """Return an upper bound of the bytes of one step: activations, gradients of each worker, optimizer moments."""
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
    return 4 * (24 * hidden + 4 * inner + 5 * PACKED_PADDING_FACTOR * heads * longest) * layers


def format_bytes(size: int) -> str:
    """Format a number of bytes in MiB or GiB."""
    return f"{size / 2**30:.1f} GiB" if size > 2**30 else f"{size / 2**20:.0f} MiB"
