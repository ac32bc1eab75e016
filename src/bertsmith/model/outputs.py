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
    memo: dict[int, torch.Tensor] = {id(buffer): buffer for buffer in model.buffers()}
    matrices = {
        id(weight)
        for name, module in model.base_model.named_modules()
        if isinstance(module, torch.nn.Linear) and _IN_A_LAYER.search(f".{name}.")
        for weight in module.parameters()
    }
    for weight in model.parameters():
        values = weight.detach().to(dtype) if id(weight) in matrices else weight.detach()
        memo[id(weight)] = torch.nn.Parameter(values, requires_grad=False)
    return replace(loaded, model=copy.deepcopy(model, memo))


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
    return _compute(forward.inference_outputs, loaded, texts, budget, n_labels, dtype, progress, on_retry)


def compute_embeddings(loaded: LoadedModel, texts: Tokens) -> np.ndarray:
    """Compute the mean of the last hidden states of n texts, scaled to unit norm, float64, shape (n, hidden size)."""
    budget = token_budget(loaded.model, texts.longest)
    rows, _ = _compute(forward.embeddings, loaded, texts, budget, loaded.model.config.hidden_size)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def compute_features(loaded: LoadedModel, texts: Tokens) -> np.ndarray:
    """Compute the input of the last layer of the head for n texts, float64, shape (n, hidden size)."""
    features = partial(forward.inference_outputs, only_features=True)
    budget = token_budget(loaded.model, texts.longest)
    return _compute(features, loaded, texts, budget, loaded.model.config.hidden_size)[0]


def _compute(
    function: Callable[[LoadedModel, Tokens], torch.Tensor],
    loaded: LoadedModel,
    texts: Tokens,
    budget: int,
    columns: int,
    dtype: torch.dtype = torch.float32,
    progress: Callback | None = None,
    on_retry: Callback = lambda budget: None,
) -> tuple[np.ndarray, int]:
    """Apply a function to micro-batches, and return its rows in the order of the texts and the last token budget."""
    result = np.empty((len(texts), columns))
    packed = forward.supports(loaded.model)
    workers = threads.num_workers() if loaded.device.type == "cpu" and packed else 1
    groups = texts.micro_batches(budget, packed=packed, workers=workers)
    autocast = dtype != torch.float32 and loaded.device.type != "cpu"

    def compute_part(part: Tokens, budget: int) -> torch.Tensor:
        """Compute a micro-batch, which a reduced budget splits further."""
        with torch.inference_mode(), torch.autocast(loaded.device.type, dtype) if autocast else nullcontext():
            groups = part.micro_batches(budget, packed=packed)
            if len(groups) == 1:
                return function(loaded, part)
            values = torch.cat([function(loaded, part.take(rows)) for rows in groups])
            order = torch.from_numpy(np.concatenate(groups)).to(loaded.device)
            return values.index_select(0, order.argsort())

    def compute_group(rows: np.ndarray) -> None:
        nonlocal budget  # later groups start with the reduced budget
        part = texts.take(rows)
        values, reduced = retry_on_out_of_memory(
            partial(compute_part, part), budget, min_budget=part.longest, on_retry=on_retry
        )
        budget = min(budget, reduced)
        # float64 only on the host: MPS does not support it.
        result[rows] = values.float().cpu().double().numpy()

    for start in range(0, len(groups), MICRO_BATCHES_PER_ROUND * workers):
        some = groups[start : start + MICRO_BATCHES_PER_ROUND * workers]
        threads.run([partial(compute_group, rows) for rows in some])
        if progress:
            progress(sum(map(len, some)))
    return result, budget
