"""Logits and embeddings of any number of texts: what validation, scoring, prediction and baselines share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from bertsmith.compute import threads
from bertsmith.compute.batching import TOKEN_BUDGETS
from bertsmith.compute.memory import free_memory, plan
from bertsmith.compute.retry import retry_with_less_memory
from bertsmith.model import forward
from bertsmith.model.batch import TokenBatch

if TYPE_CHECKING:
    from bertsmith.model.load import Loaded

Progress = Callable[[int], None]
ROUND = 4
"""Micro-batches per worker between two calls of the progress callback, which happen in the caller's thread."""


def token_budget(loaded: Loaded, longest: int, usual: int | None = None) -> int:
    """Return how many tokens to compute at once without gradients.

    Args:
        loaded: the model.
        longest: tokens of the longest text.
        usual: the budget where memory suffices; that of the device unless given.

    Raises:
        DeviceError: if memory does not suffice for one text of that length.
    """
    usual = usual or TOKEN_BUDGETS[loaded.device.type]
    if loaded.device.type != "cpu":
        return usual
    return plan(loaded.model, longest, training=False, free=free_memory(), usual=usual, workers=threads.count())


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
    classes = loaded.model.config.num_labels
    compute = partial(_computed, loaded, forward.logits, forward.padded_logits, dtype)
    return _in_micro_batches(loaded, batch, budget, classes, compute, progress, on_short_memory)


def compute_embeddings(loaded: Loaded, batch: TokenBatch, budget: int | None = None) -> np.ndarray:
    """Compute the mean of the last hidden states of texts, each of length 1, float64, shape (n, hidden size).

    Arguments and errors are those of `compute_logits`; the budget is that of `token_budget` unless given.
    """
    compute = partial(_computed, loaded, forward.embeddings, forward.padded_embeddings, torch.float32)
    budget = budget or token_budget(loaded, batch.longest)
    found, _ = _in_micro_batches(loaded, batch, budget, loaded.model.config.hidden_size, compute)
    result: np.ndarray = found / np.linalg.norm(found, axis=1, keepdims=True)
    return result


def compute_features(loaded: Loaded, batch: TokenBatch, budget: int | None = None) -> np.ndarray:
    """Compute what the last layer of the head reads, float64, shape (n, hidden size); see `forward.features`.

    Arguments and errors are those of `compute_embeddings`.
    """
    compute = partial(_computed, loaded, forward.features, forward.padded_features, torch.float32)
    budget = budget or token_budget(loaded, batch.longest)
    return _in_micro_batches(loaded, batch, budget, loaded.model.config.hidden_size, compute)[0]


def _in_micro_batches(
    loaded: Loaded,
    batch: TokenBatch,
    budget: int,
    columns: int,
    compute: Callable[[TokenBatch, int], torch.Tensor],
    progress: Progress | None = None,
    on_short_memory: Progress = lambda budget: None,
) -> tuple[np.ndarray, int]:
    packs = forward.supports(loaded.model)
    result = np.empty((len(batch), columns))
    if not len(batch):
        return result, budget
    spread = threads.count() if loaded.device.type == "cpu" and packs else 1
    groups = batch.groups(budget, packed=packs, workers=spread)

    def score(rows: np.ndarray) -> None:
        nonlocal budget  # what did not suffice once is not tried again
        part = batch.take(torch.from_numpy(rows))
        attempt = partial(compute, part)
        found, sufficed = retry_with_less_memory(attempt, budget, smallest=part.longest, on_failure=on_short_memory)
        budget = min(budget, sufficed)
        # In double precision only on the host: MPS has none.
        result[rows] = found.float().cpu().double().numpy()

    for start in range(0, len(groups), ROUND * spread):
        some = groups[start : start + ROUND * spread]
        threads.run([partial(score, rows) for rows in some])
        if progress:
            progress(sum(map(len, some)))
    return result, budget


def _computed(
    loaded: Loaded,
    of_packed: Callable[..., torch.Tensor],
    of_padded: Callable[..., torch.Tensor],
    dtype: torch.dtype,
    batch: TokenBatch,
    budget: int,
) -> torch.Tensor:
    """Return rows for the texts of a micro-batch, cut further where the budget is smaller than it."""
    model, device = loaded.model, loaded.device
    packs = forward.supports(model)
    autocasts = dtype != torch.float32 and device.type != "cpu"
    shorter = torch.autocast(device.type, dtype) if autocasts else nullcontext()
    parts = []
    with torch.inference_mode(), shorter:
        groups = batch.groups(budget, packed=packs)
        for rows in groups:
            part = batch if len(groups) == 1 else batch.take(torch.from_numpy(rows))
            if packs:
                parts.append(of_packed(model, forward.pack_for(model, part).to(device)))
            else:
                parts.append(of_padded(loaded, part))
        order = torch.from_numpy(np.concatenate(groups)).to(device) if len(groups) > 1 else None
        found = torch.cat(parts)
        return found if order is None else found.index_select(0, order.argsort())
