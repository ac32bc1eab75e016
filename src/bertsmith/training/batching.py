"""Micro-batches: the texts of a batch, in order of length, cut so that each piece stays within a token budget.

The batch size is a statistical choice, memory and speed are mechanical ones: how a batch is cut does not change its
gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

SLACK = 2
"""How many times the token budget a packed micro-batch may have in attention, where its texts are padded."""
TOKEN_BUDGETS = {"cpu": 1024, "mps": 8192, "cuda": 32768}
"""Tokens at once, padding counted, to begin with; halved where memory does not suffice.

On a CPU small micro-batches stay in its caches and in memory that is mapped already: of 512 to 8,192 tokens, 512 and
1,024 trained MiniLM fastest, six times as fast as whole batches of 16 texts of up to 512 tokens (two cores of an AMD
EPYC, bf16).
"""
WITH_TILES = 4
"""How many times that a CPU with matrix units (AMX) trains with at once in bf16.

Products of matrices take a third of the time there, so that what is done once for a micro-batch, adding up the
gradients of weights above all, weighs more: MiniLM trained 1.2 times as fast with 4,096 tokens as with 1,024, BERT-Base
1.25 times (two cores of an Intel Xeon).
"""


def micro_batches(
    lengths: np.ndarray, budget: int, *, packed: bool = False, padding: int | None = None
) -> list[np.ndarray]:
    """Cut texts, longest first, into groups whose size stays within a token budget.

    Args:
        lengths: tokens of every text, shape (n,).
        budget: tokens at once; a text longer than that goes alone.
        packed: count the tokens that are there, and padding only beyond `SLACK` times the budget, since attention alone
            sees it; else padding counts.
        padding: tokens of it that a group may have, unless it is packed: about as many as take the time that one more
            group would. As many as there is room for unless given.

    Returns:
        Positions, each in exactly one group.
    """
    order = np.argsort(-lengths, kind="stable")
    ordered = lengths[order]
    groups = []
    start = 0
    while start < len(order):
        longest = max(int(ordered[start]), 1)
        if packed:
            within = int(np.searchsorted(np.cumsum(ordered[start : start + budget]), budget, side="right"))
            size = min(within, SLACK * budget // longest)
        else:
            size = budget // longest
            if padding is not None:
                added = np.cumsum(longest - ordered[start : start + max(size, 1)])
                size = int(np.searchsorted(added, padding, side="right"))
        groups.append(order[start : start + max(size, 1)])
        start += max(size, 1)
    return groups


def cut(
    batch: dict[str, torch.Tensor], budget: int, multiple: int = 8, *, packed: bool = False
) -> Iterator[dict[str, torch.Tensor]]:
    """Cut a padded batch into micro-batches, each padded only to its own longest text.

    Args:
        batch: tensors of shape (texts, tokens) or (texts,), padded on the right or on the left, with
            ``attention_mask``.
        budget: tokens at once.
        multiple: lengths are kept at a multiple of this, which matrix units like.
        packed: as for `micro_batches`; then lengths are left as they are.

    Yields:
        The same keys; every text of the batch in exactly one micro-batch.
    """
    import torch

    mask = batch["attention_mask"]
    lengths = mask.sum(dim=1).cpu().numpy()
    width = mask.shape[1]
    on_the_right = not len(mask) or bool(mask[:, 0].all())
    padded = lengths if packed else np.minimum(-(-lengths // multiple) * multiple, width)
    for rows in micro_batches(padded, budget, packed=packed):
        keep = int(padded[rows].max())
        columns = slice(0, keep) if on_the_right else slice(width - keep, width)
        which = torch.from_numpy(rows).to(mask.device)
        yield {name: values[which][:, columns] if values.dim() > 1 else values[which] for name, values in batch.items()}
