"""Copies of a model that share its weights and have gradients of their own, so that threads can add to them at once."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def replicate(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model that shares all weights and buffers with it, but no gradient."""
    shared: dict[int, torch.Tensor] = {id(buffer): buffer for buffer in model.buffers()}
    for weight in model.parameters():
        shared[id(weight)] = torch.nn.Parameter(weight.data, requires_grad=weight.requires_grad)
    replica: PreTrainedModel = copy.deepcopy(model, shared)
    for module in replica.modules():
        if isinstance(module, torch.nn.Embedding):
            module.weight.pending_rows = []  # see bertsmith.model.lookup
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
