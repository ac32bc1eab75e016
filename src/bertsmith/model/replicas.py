"""Copies of a model that share most of its memory: with gradients of their own, or with shorter weights."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bertsmith.model.load import Loaded

_IN_A_LAYER = re.compile(r"\.\d+\.")


def replicate(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model that shares all weights and buffers with it, but no gradient.

    Threads add to the gradients of copies of their own at the same time; see `collect_gradients`.
    """
    shared: dict[int, torch.Tensor] = {id(buffer): buffer for buffer in model.buffers()}
    for weight in model.parameters():
        shared[id(weight)] = torch.nn.Parameter(weight.data, requires_grad=weight.requires_grad)
    replica: PreTrainedModel = copy.deepcopy(model, shared)
    for module in replica.modules():
        if isinstance(module, torch.nn.Embedding):
            module.weight.pending_rows = []  # see bertsmith.model.embedding_grad
    return replica


def collect_gradients(model: PreTrainedModel, replica: PreTrainedModel) -> None:
    """Add the gradient of a replica to that of the model, and clear it."""
    for weight, other in zip(model.parameters(), replica.parameters(), strict=True):
        for ids, rows in getattr(other, "pending_rows", ()):
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            weight.grad.index_add_(0, ids, rows)
        if hasattr(other, "pending_rows"):
            other.pending_rows.clear()
        if other.grad is not None:
            weight.grad = other.grad if weight.grad is None else weight.grad.add_(other.grad)
            other.grad = None


def with_shorter_layers(loaded: Loaded, dtype: torch.dtype) -> Loaded:
    """Return the model with the matrices of its layers in a shorter type; it shares all else, and does not learn.

    On a CPU that is faster than autocast, which makes all weights shorter anew for every micro-batch.
    Other devices keep the model as it is.
    """
    model = loaded.model
    if loaded.device.type != "cpu" or dtype == torch.float32:
        return loaded
    shared: dict[int, torch.Tensor] = {id(buffer): buffer for buffer in model.buffers()}
    short = {
        id(weight)
        for name, module in model.base_model.named_modules()
        if isinstance(module, torch.nn.Linear) and _IN_A_LAYER.search(f".{name}.")
        for weight in module.parameters()
    }
    for weight in model.parameters():
        values = weight.detach().to(dtype) if id(weight) in short else weight.detach()
        shared[id(weight)] = torch.nn.Parameter(values, requires_grad=False)
    return replace(loaded, model=copy.deepcopy(model, shared))
