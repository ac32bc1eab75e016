"""Embedding lookups whose gradient touches only the rows that were read.

PyTorch makes a gradient as large as the whole table for every micro-batch and adds it to the one before. That takes a
noticeable share of a step; adding the rows that were read takes next to nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812


def lookup(table: torch.nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
    """Return rows of an embedding table, shape (ids, width). Padding rows receive no gradient, as in PyTorch."""
    weight = table.weight
    learns = weight.is_leaf and weight.requires_grad and torch.is_grad_enabled()
    plain = table.max_norm is None and not table.scale_grad_by_freq and not table.sparse
    if not learns or not plain or ids.device.type != "cpu":
        found: torch.Tensor = table(ids)
        return found
    rows: torch.Tensor = _Lookup.apply(weight, ids, table.padding_idx)
    return rows


class _Lookup(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    @staticmethod
    def forward(context: Any, weight: torch.Tensor, ids: torch.Tensor, padding_idx: int | None) -> torch.Tensor:
        context.save_for_backward(ids)
        context.weight, context.padding_idx = weight, padding_idx
        return F.embedding(ids, weight)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[None, None, None]:
        """Add the gradient to that of the table; autograd receives none."""
        (ids,), weight, padding = context.saved_tensors, context.weight, context.padding_idx
        rows = gradient.to(weight.dtype)
        if padding is not None:
            kept = ids != padding
            rows, ids = rows[kept], ids[kept]
        pending = getattr(weight, "pending_rows", None)
        if pending is not None:  # a replica: whoever owns the table adds the rows to it
            pending.append((ids, rows))
            return None, None, None
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.index_add_(0, ids, rows)
        return None, None, None
