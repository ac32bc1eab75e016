"""Micro-batches: a batch cut by a token budget, so that its size does not decide memory and speed.

The batch size is a statistical choice; how a batch is cut does not change its gradient.
"""

from __future__ import annotations

import numpy as np

SLACK = 2
"""How many times the token budget a packed micro-batch may take in attention, which pads its texts."""
TOKEN_BUDGETS = {"cpu": 1024, "mps": 8192, "cuda": 32768}
"""Tokens computed at once, by device type; halved where memory does not suffice.

On a CPU small micro-batches stay in the caches.
"""
WITH_TILES = 4
"""Factor of the token budget for training in bf16 on a CPU with matrix units (AMX).

Matrix products take only a third of the time there, so the fixed cost of a micro-batch, summing the gradients of the
weights above all, weighs more.
"""


def micro_batches(
    lengths: np.ndarray, budget: int, *, packed: bool = False, padding: int | None = None, workers: int = 1
) -> list[np.ndarray]:
    """Cut texts, longest first, into groups that stay within a token budget.

    Args:
        lengths: tokens of every text, shape (n,).
        budget: tokens at once; a longer text is alone in its group.
        packed: count only tokens, and padding beyond `SLACK` times the budget; otherwise padding counts too.
        padding: padding tokens a group may have unless it is packed, about as many as take the time of another group;
            no limit unless given.
        workers: with more than one, packed groups come in multiples of this and have about as many tokens each, so
            that all workers are done at the same time.

    Returns:
        Positions, each in exactly one group.
    """
    order = np.argsort(-lengths, kind="stable")
    ordered = lengths[order]
    if packed and workers > 1 and len(order):
        return [order[slice(*ends)] for ends in _balanced(ordered, budget, workers)]
    groups = []
    start = 0
    while start < len(order):
        size = _packed_size(ordered[start:], budget) if packed else budget // max(int(ordered[start]), 1)
        if not packed and padding is not None:
            added = np.cumsum(ordered[start] - ordered[start : start + max(size, 1)])
            size = int(np.searchsorted(added, padding, side="right"))
        groups.append(order[start : start + max(size, 1)])
        start += max(size, 1)
    return groups


def _packed_size(ordered: np.ndarray, budget: int) -> int:
    """Return how many of the texts, longest first, a packed group may hold."""
    within = int(np.searchsorted(np.cumsum(ordered[:budget]), budget, side="right"))
    return max(min(within, SLACK * budget // max(int(ordered[0]), 1)), 1)


def _balanced(ordered: np.ndarray, budget: int, workers: int) -> list[tuple[int, int]]:
    """Return first and last positions of packed groups of about equal size, as many as a multiple of the workers."""
    ends = np.cumsum(ordered)
    n = workers * -(-int(ends[-1]) // (budget * workers))
    while True:
        cuts = np.searchsorted(ends, np.arange(1, n) * ends[-1] / n, side="left") + 1
        edges = np.unique([0, *np.minimum(cuts, len(ordered)), len(ordered)])
        groups = list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
        sizes = np.diff(np.concatenate([[0], ends[edges[1:] - 1]]))
        counts, longest = np.diff(edges), ordered[edges[:-1]]
        if ((counts == 1) | ((sizes <= budget) & (counts * longest <= SLACK * budget))).all():
            return groups
        n += workers
