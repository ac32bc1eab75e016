"""Mean pooling inside a plain checkpoint, and a head to begin with, for checkpoints made for sentence embeddings.

Such checkpoints are trained so that the mean of the last hidden states of a text represents it (Reimers and Gurevych
2019, arXiv:1908.10084). A classification head of transformers reads the first token instead. So one more encoder layer
is added, whose attention is uniform and whose other parts change nothing: its first token is the mean. The head then
begins as a regression on what it reads, and fine-tuning goes on from there (Kumar et al. 2022, arXiv:2202.10054).
"""

from __future__ import annotations

import copy
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bertsmith.model.forward import POST_NORM

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POOLED = ("bert", "roberta", "xlm-roberta", "mpnet")
"""Model types whose head begins with a square layer and tanh, which can pass on what it reads."""
SCALE = 10.0
"""Weight of the mean beside the first token's own state, which a residual connection adds."""
SLOPE = 0.5
"""Of the square layer: small, so that tanh is nearly linear."""
SPREAD = 0.002
"""Standard deviation of the attention's first weights: nearly uniform, and yet with a gradient."""


def add_pooling_layer(model: PreTrainedModel) -> None:
    """Add an encoder layer that computes the mean, and have the head pass it on. MPNet adds its weights by distance.

    Args:
        model: of a type in `POOLED`, with a new head; changed in place, its configuration too.
    """
    names, layers = POST_NORM[model.config.model_type], attrgetter(POST_NORM[model.config.model_type].layers)
    stack = layers(model.base_model)
    layer = copy.deepcopy(stack[-1])

    def part(name: str) -> Any:
        return attrgetter(name)(layer)

    with torch.no_grad():
        for name in (names.query, names.key):
            part(name).weight.normal_(0, SPREAD)
            part(name).bias.zero_()
        _scale(part(names.value), 1.0)
        _scale(part(names.out), SCALE)
        _scale(part(names.down), 0.0)
        for name in (names.out_norm, names.down_norm):
            part(name).weight.fill_(1)
            part(name).bias.zero_()
        _scale(_square_layer(model), SLOPE)
    stack.append(layer)
    model.config.num_hidden_layers = len(stack)
    for i, each in enumerate(stack):  # transformers numbers the attention of each layer
        for module in each.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = i


def set_head(model: PreTrainedModel, weight: np.ndarray, bias: np.ndarray) -> None:
    """Set the last layer of the head: its weight, shape (classes, hidden size), and its bias, shape (classes,)."""
    layer = attrgetter(POST_NORM[model.config.model_type].last)(model)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))


def passed_on(embeddings: np.ndarray) -> np.ndarray:
    """Return what the head would read, were these embeddings pooled by the new layer, shape (n, hidden size)."""
    centred = embeddings - embeddings.mean(axis=1, keepdims=True)
    result: np.ndarray = np.tanh(SLOPE * centred / np.maximum(centred.std(axis=1, keepdims=True), 1e-12))
    return result


def _square_layer(model: Any) -> torch.nn.Linear:
    square: torch.nn.Linear = (
        model.base_model.pooler.dense if model.config.model_type == "bert" else model.classifier.dense
    )
    return square


def _scale(layer: torch.nn.Linear, factor: float) -> None:
    """Make a layer multiply what it reads."""
    torch.nn.init.zeros_(layer.weight)
    layer.weight.fill_diagonal_(factor)
    layer.bias.zero_()
