"""Mean pooling inside of a plain checkpoint, for checkpoints trained for sentence embeddings.

In such checkpoints, the mean of the last hidden states represents a text (Reimers and Gurevych 2019, arXiv:1908.10084).
Classification heads of transformers read the first token instead. So one encoder layer is added, with uniform attention
and identity elsewhere: its first token is the mean. The head starts as a regression on its input, and fine-tuning
continues from there (Kumar et al. 2022, arXiv:2202.10054).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch

from bertsmith.model.bert import MODULE_NAMES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "mpnet")
"""Model types whose head starts with a square layer and tanh, which can pass its input on."""
SCALE = 10.0
"""Weight of the mean. The residual connection adds the state of the first token with weight 1."""
SLOPE = 0.5
"""Weight of the square layer; small, so that tanh is nearly linear."""
ATTENTION_STD = 0.002
"""Standard deviation of the initial attention weights: attention is nearly uniform, but has a gradient."""


def add_pooling_layer(model: PreTrainedModel) -> None:
    """Add an encoder layer that computes the mean to a model of `MODEL_TYPES`, and make its new head pass the mean on.

    In MPNet, attention also depends on distance, so the mean is weighted.
    """
    names = MODULE_NAMES[model.config.model_type]
    layers = model.base_model.get_submodule(names.layers)
    layer = copy.deepcopy(layers[-1])
    module = layer.get_submodule
    with torch.no_grad():
        for name in (names.query, names.key):
            module(name).weight.normal_(0, ATTENTION_STD)
            module(name).bias.zero_()
        _set_scaled_identity(module(names.value), 1.0)
        _set_scaled_identity(module(names.out), SCALE)
        _set_scaled_identity(module(names.down), 0.0)
        for name in (names.out_norm, names.down_norm):
            module(name).weight.fill_(1)
            module(name).bias.zero_()
        head = model.base_model.pooler if model.config.model_type == "bert" else model.classifier
        _set_scaled_identity(head.dense, SLOPE)
    layers.append(layer)
    model.config.num_hidden_layers = len(layers)


def set_head(model: PreTrainedModel, weight: np.ndarray, bias: np.ndarray) -> None:
    """Set weight, shape (classes, hidden size), and bias, shape (classes,), of the last layer of the head."""
    layer = model.get_submodule(MODULE_NAMES[model.config.model_type].classifier)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))


def pooled_features(embeddings: np.ndarray) -> np.ndarray:
    """Return the input of the last layer of the head for given mean hidden states, both of shape (n, hidden size)."""
    centered = embeddings - embeddings.mean(axis=1, keepdims=True)
    return np.asarray(np.tanh(SLOPE * centered / np.maximum(centered.std(axis=1, keepdims=True), 1e-12)))


def _set_scaled_identity(layer: torch.nn.Linear, factor: float) -> None:
    torch.nn.init.zeros_(layer.weight)
    layer.weight.fill_diagonal_(factor)
    layer.bias.zero_()
