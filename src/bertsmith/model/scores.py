"""Logits of any number of texts, a micro-batch at a time: what validation, scoring and prediction share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from bertsmith.compute import workers
from bertsmith.compute.retry import with_less_memory
from bertsmith.model import forward
from bertsmith.model.batch import TokenBatch

if TYPE_CHECKING:
    from bertsmith.model.load import Loaded

Progress = Callable[[int], None]
ROUND = 4
"""Micro-batches per worker between two calls of the progress callback, which happen in the caller's thread."""


def compute_logits(
    loaded: Loaded,
    batch: TokenBatch,
    budget: int,
    *,
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
    on_short_memory: Progress = lambda budget: None,
) -> tuple[np.ndarray, int]:
    """Compute the logits of texts without dropout, in fp32 or with matrix products in a shorter type.

    Any number of threads may do this with one model at the same time.

    Args:
        loaded: the model, whose mode matters only where `bertsmith.model.forward.supports` refuses it.
        batch: n texts.
        budget: tokens at once.
        dtype: of the matrix products; on a CPU, that of the layers, see `bertsmith.model.replicas.with_shorter_layers`.
        progress: called with the number of texts done since the last call.
        on_short_memory: called with the next token budget, where memory does not suffice.

    Returns:
        Logits, float64, shape (n, classes), and the token budget that sufficed.

    Raises:
        RuntimeError: or ``MemoryError``, if memory does not suffice for one text.
    """
    packs = forward.supports(loaded.model)
    result = np.empty((len(batch), loaded.model.config.num_labels))
    if not len(batch):
        return result, budget
    spread = workers.count() if loaded.device.type == "cpu" and packs else 1
    groups = batch.groups(budget, packed=packs, workers=spread)

    def score(rows: np.ndarray) -> None:
        nonlocal budget  # what did not suffice once is not tried again
        part = batch.take(torch.from_numpy(rows))
        attempt = partial(_logits, loaded, part, packs, dtype)
        logits, sufficed = with_less_memory(attempt, budget, smallest=part.longest, on_failure=on_short_memory)
        budget = min(budget, sufficed)
        # In double precision only on the host: MPS has none.
        result[rows] = logits.float().cpu().double().numpy()

    for start in range(0, len(groups), ROUND * spread):
        some = groups[start : start + ROUND * spread]
        workers.run([partial(score, rows) for rows in some])
        if progress:
            progress(sum(map(len, some)))
    return result, budget


def _logits(loaded: Loaded, batch: TokenBatch, packs: bool, dtype: torch.dtype, budget: int) -> torch.Tensor:
    """Return the logits of a micro-batch, cut further where the budget is smaller than it."""
    model, device = loaded.model, loaded.device
    autocasts = dtype != torch.float32 and device.type != "cpu"
    shorter = torch.autocast(device.type, dtype) if autocasts else nullcontext()
    parts = []
    with torch.inference_mode(), shorter:
        groups = batch.groups(budget, packed=packs)
        for rows in groups:
            part = batch if len(groups) == 1 else batch.take(torch.from_numpy(rows))
            if packs:
                parts.append(forward.logits(model, forward.pack_for(model, part).to(device)))
            else:
                parts.append(forward.padded_logits(loaded, part))
        order = torch.from_numpy(np.concatenate(groups)).to(device) if len(groups) > 1 else None
        together = torch.cat(parts)
        return together if order is None else together.index_select(0, order.argsort())
