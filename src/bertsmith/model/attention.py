"""Attention within each text of a packed batch, with the kernel that suits the device.

- On CUDA, in half precision: PyTorch's attention of variable length, on the texts as they are packed.
- In training on a CPU: a few texts at a time, with a backward pass of its own that keeps the attention weights and a
  mask of bits.
- Otherwise `torch.nn.functional.scaled_dot_product_attention`, a few texts at a time on a CPU.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from bertsmith.model.batch import Batch, Group, PackedBatch, PaddedBatch, TokenBatch, pack
from bertsmith.model.dropout import Dropout, keep


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    batch: Batch,
    *,
    bias: torch.Tensor | None = None,
    window: int | None = None,
    dropout: Dropout | None = None,
    p: float = 0.0,
) -> torch.Tensor:
    """Compute scaled dot-product attention within each text.

    Args:
        query: shape (tokens, heads, head size), or (texts, heads, head size) for the first token of each text alone.
        key: shape (tokens, heads, head size).
        value: as ``key``.
        batch: how the texts are packed. Where it is a `PaddedBatch`, the tokens are (texts, width).
        bias: added to the scores of every text, shape (heads, width, width) for a width no text exceeds.
        window: tokens seen to either side; all unless given.
        dropout: of the attention weights, with rate ``p``.

    Returns:
        The shape of ``query``.
    """
    if isinstance(batch, PaddedBatch):
        return _padded(query, key, value, batch, bias, window)
    p = p if dropout is not None else 0.0
    if bias is None and has_kernel(query.device, query.dtype, query.shape[2]):
        return _by_kernel(query, key, value, batch, window, p)
    if query.device.type == "cpu" and (p > 0 or (torch.is_grad_enabled() and query.requires_grad)):
        mixed: torch.Tensor = _CpuAttention.apply(query, key, value, bias, batch, window, dropout, p)
        return mixed
    return _by_groups(query, key, value, batch, bias, window, p)


def _padded(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    batch: PaddedBatch,
    bias: torch.Tensor | None,
    window: int | None,
) -> torch.Tensor:
    """Attend in one padded rectangle, in a form that exporters recognize; shapes (texts, width or 1, heads, n)."""
    width, queries = batch.mask.shape[1], query.shape[1]
    seen = batch.mask[:, None, None, :]
    if window is not None:
        place = torch.arange(width, device=query.device)
        near = (place[:queries, None] - place).abs() <= window
        # An unfilled place sees itself, so that no query is left without any key.
        seen = near & (seen | (place[:queries, None] == place))
    if bias is not None:
        seen = bias[None, :, :queries].masked_fill(~seen, torch.finfo(query.dtype).min)
    wide = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), seen)
    wide = wide.transpose(1, 2)
    # Exporters write attention with a bias in single steps, whose result is laid out otherwise than they recorded.
    return wide if bias is None else wide.clone(memory_format=torch.contiguous_format)


def _by_groups(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    batch: PackedBatch,
    bias: torch.Tensor | None,
    window: int | None,
    p: float,
) -> torch.Tensor:
    """Attend in padded rectangles of a few texts each."""
    firsts = len(query) != len(key)
    mixed = []
    for group in batch.groups:
        seen = _seen(group, window, bias, firsts=firsts, like=query)
        of_group = query[slice(*group.texts), :, None] if firsts else _wide(query, group)
        wide = F.scaled_dot_product_attention(of_group, _wide(key, group), _wide(value, group), seen, p)
        mixed.append(wide[:, :, 0] if firsts else _narrow(wide, group))
    if not firsts:
        mixed.append(query.new_zeros(len(query) - sum(batch.lengths), *query.shape[1:]))
    return torch.cat(mixed)


def _wide(rows: torch.Tensor, group: Group) -> torch.Tensor:
    """Return rows (tokens, heads, n) as a rectangle, shape (texts, heads, width, n)."""
    inside = rows[slice(*group.tokens)] if group.rows is None else rows.index_select(0, group.rows)
    return inside.unflatten(0, group.shape).transpose(1, 2)


def _narrow(wide: torch.Tensor, group: Group) -> torch.Tensor:
    """Return the filled places of a rectangle (texts, heads, width, n), shape (tokens, heads, n)."""
    flat = wide.transpose(1, 2).flatten(0, 1)
    return flat if group.places is None else flat.index_select(0, group.places)


def _hidden(group: Group, window: int | None, *, firsts: bool, device: torch.device) -> torch.Tensor | None:
    """Return the keys that a query does not see, bool, of shape (texts, 1, queries, width) by broadcasting, if any."""
    if window is None or group.width <= window + 1:
        return None if group.mask is None else ~group.mask[:, None, None, :]
    place = torch.arange(group.width, device=device)
    far = (place[: 1 if firsts else None, None] - place).abs() > window
    if group.mask is None:
        return far
    # An unfilled place sees itself, so that no query is left without any key.
    return far | (~group.mask[:, None, None, :] & (place[: 1 if firsts else None, None] != place))


def _seen(
    group: Group, window: int | None, bias: torch.Tensor | None, *, firsts: bool, like: torch.Tensor
) -> torch.Tensor | None:
    """Return the mask argument of `torch.nn.functional.scaled_dot_product_attention`."""
    hidden = _hidden(group, window, firsts=firsts, device=like.device)
    if bias is None:
        return None if hidden is None else ~hidden
    added = bias[:, : 1 if firsts else group.width, : group.width].to(like.dtype)[None]
    return added if hidden is None else added.masked_fill(hidden, -torch.inf)


class _CpuAttention(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """Attention whose backward pass needs the weights and the dropout mask alone, a few texts at a time."""

    @staticmethod
    def forward(
        context: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bias: torch.Tensor | None,
        batch: PackedBatch,
        window: int | None,
        dropout: Dropout | None,
        p: float,
    ) -> torch.Tensor:
        firsts = len(query) != len(key)
        mixed = query.new_empty(query.shape)
        if not firsts:
            mixed[sum(batch.lengths) :] = 0
        saved: list[torch.Tensor | None] = []
        for group in batch.groups:
            q = _matrices(query, group, firsts=firsts) * query.shape[2] ** -0.5
            k, v = _matrices(key, group), _matrices(value, group)
            scores = (q @ k.transpose(-1, -2)).unflatten(0, (-1, query.shape[1]))
            if bias is not None:
                scores += bias[:, : scores.shape[2], : group.width]
            hidden = _hidden(group, window, firsts=firsts, device=scores.device)
            if hidden is not None:
                scores.masked_fill_(hidden, torch.finfo(scores.dtype).min)
            weights = torch.softmax(scores, dim=-1).flatten(0, 1)
            mask = dropout.mask(weights.shape, p) if dropout is not None and 0 < p < 1 else None
            wide = weights @ v if mask is None else (keep(weights, mask) @ v).mul_(1 / (1 - p))
            _write(mixed, wide, group, firsts=firsts)
            saved += [q, k, v, weights, mask]
        context.save_for_backward(*saved)
        context.batch, context.firsts, context.gain, context.heads = batch, firsts, 1 / (1 - p), query.shape[1]
        context.likes = [None if x is None else (x.shape, x.dtype) for x in (query, key, value, bias)]
        return mixed

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved, firsts = iter(context.saved_tensors), context.firsts
        of_query, of_key, of_value, of_bias = (
            None if like is None else torch.zeros(like[0], dtype=like[1]) for like in context.likes
        )
        for group in context.batch.groups:
            q, k, v, weights, mask = (next(saved) for _ in range(5))
            # An unfilled place takes the gradient of an empty token, which is zero.
            of_mixed = _matrices(gradient, group, firsts=firsts)
            if mask is not None:
                of_mixed = of_mixed * context.gain
            of_weights = of_mixed @ v.transpose(-1, -2)
            if mask is not None:
                of_weights = keep(of_weights, mask)
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            if of_bias is not None:
                summed = of_scores.unflatten(0, (-1, context.heads)).sum(0)
                of_bias[:, : summed.shape[1], : group.width] += summed
            _write(of_query, (of_scores @ k).mul_(q.shape[-1] ** -0.5), group, firsts=firsts)
            _write(of_key, of_scores.transpose(-1, -2) @ q, group)
            kept = weights if mask is None else keep(weights, mask)
            _write(of_value, kept.transpose(-1, -2) @ of_mixed, group)
        return of_query, of_key, of_value, of_bias, None, None, None, None


def _matrices(rows: torch.Tensor, group: Group, *, firsts: bool = False) -> torch.Tensor:
    """Return rows (tokens or texts, heads, n) as a matrix per text and head, shape (texts * heads, width or 1, n)."""
    wide = rows[slice(*group.texts), :, None] if firsts else _wide(rows, group)
    return wide.reshape(-1, *wide.shape[2:])


def _write(rows: torch.Tensor | None, matrices: torch.Tensor, group: Group, *, firsts: bool = False) -> None:
    """Write what `_matrices` returns back into the rows."""
    assert rows is not None
    wide = matrices.unflatten(0, (-1, rows.shape[1]))
    if firsts:
        rows[slice(*group.texts)] = wide[:, :, 0]
    elif group.places is None:
        rows[slice(*group.tokens)].unflatten(0, group.shape).copy_(wide.transpose(1, 2))
    else:
        rows[slice(*group.tokens)] = _narrow(wide, group)


# -- attention of variable length on CUDA -----------------------------------------------------------------------------


def has_kernel(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Return whether attention of variable length works for a head size on a device."""
    if dtype == torch.float32 and torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    return device.type == "cuda" and dtype in (torch.float16, torch.bfloat16) and _agrees(device, dtype, head_size)


def _by_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, batch: PackedBatch, window: int | None, p: float
) -> torch.Tensor:
    """Attend with PyTorch's attention of variable length; the empty tokens are a text of their own."""
    around = (-1, -1) if window is None else (window, window)
    if torch.is_autocast_enabled(query.device.type):
        query, key, value = (x.to(torch.get_autocast_dtype(query.device.type)) for x in (query, key, value))
    starts, longest = batch.starts, batch.longest
    if len(query) == len(key):
        return _variable_length(query, key, value, starts, starts, longest, longest, p, around)
    ones = torch.arange(len(query) + 2, dtype=torch.int32, device=query.device).clamp_(max=len(query))
    return _variable_length(query, key, value, ones, starts, 1, longest, p, around)


def _variable_length(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_starts: torch.Tensor,
    key_starts: torch.Tensor,
    most_queries: int,
    most_keys: int,
    p: float,
    around: tuple[int, int],
) -> torch.Tensor:
    """Call PyTorch's kernel; its public function ``varlen_attn`` has no parameter for dropout."""
    if not p:
        from torch.nn.attention.varlen import varlen_attn

        mixed: torch.Tensor = varlen_attn(
            query, key, value, query_starts, key_starts, most_queries, most_keys, window_size=around
        )
        return mixed
    mixed, *_ = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        query_starts,
        key_starts,
        most_queries,
        most_keys,
        p,
        is_causal=False,
        return_debug_mask=False,
        scale=None,
        window_size_left=around[0],
        window_size_right=around[1],
    )
    return mixed


@lru_cache
def _agrees(device: torch.device, dtype: torch.dtype, size: int) -> bool:
    """Try the kernel on three texts: an older GPU, an odd head size or another version of torch raises."""
    batch = pack(TokenBatch(torch.zeros(70, dtype=torch.long), torch.tensor([48, 5, 17]))).to(device)
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, len(batch.input_ids), 2, size, generator=generator).to(device, dtype)
    tokens = sum(batch.lengths)
    try:
        same = all(
            torch.allclose(
                _by_kernel(q, key, value, batch, window, 0.0)[:tokens],
                _by_groups(q, key, value, batch, None, window, 0.0)[:tokens],
                atol=0.03,
            )
            for q, window in ((query, None), (query, 4), (query.index_select(0, batch.first), None))
        )
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            dropped = _by_kernel(query, key, torch.ones_like(value), batch, None, 0.5)[:tokens].float()
        return same and bool((dropped.mean() - 1).abs() < 0.2) and bool(((dropped - 1).abs() > 0.1).any())
    except (RuntimeError, TypeError, ImportError):
        return False
