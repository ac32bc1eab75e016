"""What happens when memory runs out: the same work again, with fewer tokens at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from bertsmith.compute.memory import is_out_of_memory

T = TypeVar("T")


def retry_with_less_memory(
    attempt: Callable[[int], T],
    budget: int,
    *,
    smallest: int,
    on_failure: Callable[[int], None] = lambda budget: None,
) -> tuple[T, int]:
    """Do some work with half the token budget for as long as memory does not suffice.

    Args:
        attempt: does the work with a token budget.
        budget: tokens at once, to begin with.
        smallest: a budget that is not halved any more.
        on_failure: called with the next budget before the next attempt, to undo what the last one did.

    Returns:
        The result, and the budget that sufficed.

    Raises:
        RuntimeError: or ``MemoryError``, as raised by the last attempt.
    """
    while True:
        try:
            return attempt(budget), budget
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or budget <= smallest:
                raise
        # Outside the handler, whose traceback would keep the tensors of the failed attempt alive.
        budget = max(budget // 2, smallest)
        _free_cached_memory()
        on_failure(budget)


def _free_cached_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
