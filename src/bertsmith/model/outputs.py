"""Logits, embeddings and features of any number of texts, for validation, scoring, prediction and baselines."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from bertsmith.compute import threads
from bertsmith.compute.memory import retry_on_out_of_memory, token_budget
from bertsmith.model import forward
from bertsmith.model.tokens import Tokens

if TYPE_CHECKING:
    from bertsmith.model.load import LoadedModel

Callback = Callable[[int], None]
MICRO_BATCHES_PER_ROUND = 4
"""Micro-batches per worker between two calls of the progress callback, which run in the caller's thread."""
_IN_A_LAYER = re.compile(r"\.\d+\.")


def with_layer_dtype(loaded: LoadedModel, dtype: torch.dtype) -> LoadedModel:
    """Return a copy for inference whose layers have weight matrices of another dtype. All else is shared.

    On a CPU this is faster than autocast, which casts all weights in each micro-batch. On other devices, and for fp32,
    returns the model itself.
    """
    model = loaded.model
    if loaded.device.type != "cpu" or dtype == torch.float32:
        return loaded
    model = copy.deepcopy(model, {id(shared): shared for shared in (*model.parameters(), *model.buffers())})
    for name, module in model.base_model.named_modules():
        if isinstance(module, torch.nn.Linear) and _IN_A_LAYER.search(f".{name}."):
            for key, weight in module.named_parameters():
                setattr(module, key, torch.nn.Parameter(weight.detach().to(dtype), requires_grad=False))
    return replace(loaded, model=model)


def compute_logits(
    loaded: LoadedModel,
    texts: Tokens,
    budget: int,
    *,
    dtype: torch.dtype = torch.float32,
    progress: Callback | None = None,
    on_retry: Callback = lambda budget: None,
) -> tuple[np.ndarray, int]:
    """Compute the logits of texts without dropout. Thread-safe.

    Args:
        loaded: the model. Models that `bertsmith.model.forward.supports` rejects must be in evaluation mode.
        texts: n texts.
        budget: token budget.
        dtype: for autocast. A CPU uses the dtype of the weights, see `with_layer_dtype`.
        progress: receives the number of texts done since the last call.
        on_retry: receives the next token budget when memory runs out.

    Returns:
        Logits, float64, shape (n, classes), and the last token budget.

    Raises:
        RuntimeError: or ``MemoryError``, if memory does not suffice for one text.
    """
    n_labels = loaded.model.config.num_labels
    return _compute(forward.inference_outputs, loaded, texts, n_labels, budget, dtype, progress, on_retry)


def compute_embeddings(loaded: LoadedModel, texts: Tokens) -> np.ndarray:
    """Compute the mean of the last hidden states of n texts, scaled to unit norm, float64, shape (n, hidden size)."""
    rows, _ = _compute(forward.embeddings, loaded, texts, loaded.model.config.hidden_size)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def compute_features(loaded: LoadedModel, texts: Tokens) -> np.ndarray:
    """Compute the input of the last layer of the head for n texts, float64, shape (n, hidden size)."""
    features = partial(forward.inference_outputs, only_features=True)
    return _compute(features, loaded, texts, loaded.model.config.hidden_size)[0]


def _compute(
    function: Callable[[LoadedModel, Tokens], torch.Tensor],
    loaded: LoadedModel,
    texts: Tokens,
    columns: int,
    budget: int | None = None,
    dtype: torch.dtype = torch.float32,
    progress: Callback | None = None,
    on_retry: Callback = lambda budget: None,
) -> tuple[np.ndarray, int]:
    """Apply a function to micro-batches, and return its rows in the order of the texts and the last token budget."""
    result = np.empty((len(texts), columns))
    limit = budget or token_budget(loaded.model, texts.longest)
    packed = forward.supports(loaded.model)
    workers = threads.num_workers() if loaded.device.type == "cpu" and packed else 1
    groups = texts.micro_batches(limit, packed=packed, workers=workers)
    autocast = dtype != torch.float32 and loaded.device.type != "cpu"

    def compute_part(rows: np.ndarray, part: Tokens, budget: int) -> None:
        """Compute a micro-batch, the texts at some positions. A reduced budget splits it further."""
        with torch.inference_mode(), torch.autocast(loaded.device.type, dtype) if autocast else nullcontext():
            for group in part.micro_batches(budget, packed=packed):
                values = function(loaded, part.take(group))
                # float64 only on the host: MPS does not support it.
                result[rows[group]] = values.float().cpu().double().numpy()

    def compute_group(rows: np.ndarray) -> None:
        nonlocal limit  # later groups start with the reduced budget
        part = texts.take(rows)
        compute = partial(compute_part, rows, part)
        _, reduced = retry_on_out_of_memory(compute, limit, min_budget=part.longest, on_retry=on_retry)
        limit = min(limit, reduced)

    for start in range(0, len(groups), MICRO_BATCHES_PER_ROUND * workers):
        some = groups[start : start + MICRO_BATCHES_PER_ROUND * workers]
        threads.run([partial(compute_group, rows) for rows in some])
        if progress:
            progress(sum(map(len, some)))
    return result, limit
