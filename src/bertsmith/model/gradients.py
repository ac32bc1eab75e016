"""Gradients on several threads: replicas that share weights, and embedding gradients that touch only the rows read.

For each micro-batch, PyTorch would allocate and add an embedding gradient of the size of the whole table. For MiniLM
that takes 8 to 10 % of a step on one core of an Intel Xeon.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def embedding_lookup(table: torch.nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
    """Return rows of an embedding table, shape (ids, width). As in PyTorch, padding rows receive no gradient."""
    weight = table.weight
    trainable = weight.is_leaf and weight.requires_grad and torch.is_grad_enabled()
    own_gradient = trainable and ids.device.type == "cpu"
    return _EmbeddingLookup.apply(weight, ids, table.padding_idx) if own_gradient else table(ids)


class _EmbeddingLookup(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, ids: torch.Tensor, padding_idx: int | None) -> torch.Tensor:
        ctx.save_for_backward(ids)
        ctx.weight, ctx.padding_idx = weight, padding_idx
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, None, None]:
        """Add the rows to ``weight.grad`` directly; autograd receives ``None``."""
        (ids,), weight = ctx.saved_tensors, ctx.weight
        rows = gradient.to(weight.dtype)
        if ctx.padding_idx is not None:
            not_padding = ids != ctx.padding_idx
            rows, ids = rows[not_padding], ids[not_padding]
        if hasattr(weight, "pending_rows"):  # a replica: see `collect_gradients`
            weight.pending_rows.append((ids, rows))
        else:
            _add_rows(weight, ids, rows)
        return None, None, None


def _add_rows(weight: torch.Tensor, ids: torch.Tensor, rows: torch.Tensor) -> None:
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    weight.grad.index_add_(0, ids, rows)


class TableGradients:
    """The gradients of embedding tables on a CPU, in memory that stays allocated between steps.

    The system would clear new blocks of this size page by page, which is slow.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        tables = (module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding))
        self.tables = [weight for weight in tables if weight.device.type == "cpu"]
        self.kept: dict[torch.nn.Parameter, torch.Tensor] = {}

    def keep(self) -> None:
        """Remember the gradients of a step."""
        self.kept |= {table: table.grad for table in self.tables if table.grad is not None}

    def restore(self) -> None:
        """Start a step: tables without a gradient get the remembered one, cleared."""
        for table, gradient in self.kept.items():
            if table.grad is None:
                table.grad = gradient.zero_()


def replicate(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy that shares weights and buffers with the model, with gradients of its own.

    Each thread computes with its own replica. `collect_gradients` adds their gradients to the model.
    """
    memo: dict[int, torch.Tensor] = {id(buffer): buffer for buffer in model.buffers()}
    for weight in model.parameters():
        memo[id(weight)] = torch.nn.Parameter(weight.data, requires_grad=weight.requires_grad)
    replica: PreTrainedModel = copy.deepcopy(model, memo)
    for module in replica.modules():
        if isinstance(module, torch.nn.Embedding):
            module.weight.pending_rows = []
    return replica


def collect_gradients(model: PreTrainedModel, replica: PreTrainedModel) -> None:
    """Move the gradient of a replica to the model."""
    for weight, other in zip(model.parameters(), replica.parameters(), strict=True):
        if hasattr(other, "pending_rows"):
            for ids, rows in other.pending_rows:
                _add_rows(weight, ids, rows)
            other.pending_rows.clear()
        if other.grad is not None:
            weight.grad = other.grad if weight.grad is None else weight.grad.add_(other.grad)
            other.grad = None
