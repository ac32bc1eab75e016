"""Attention within each text of a batch.

- CUDA, half precision: PyTorch's variable-length attention on the packed tokens.
- Training on a CPU: small padded groups of texts, with a custom backward pass from saved weights and dropout masks.
- Otherwise: `torch.nn.functional.scaled_dot_product_attention`, on a CPU in small padded groups of texts.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from bertsmith.model.batch import AttentionGroup, Batch, PackedBatch, PaddedBatch, pack
from bertsmith.model.dropout import NO_DROPOUT, Dropout, apply_mask
from bertsmith.model.tokens import Tokens

QKV = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    batch: Batch,
    *,
    bias: torch.Tensor | None = None,
    window: int | None = None,
    dropout: Dropout = NO_DROPOUT,
    p: float = 0.0,
) -> torch.Tensor:
    """Compute scaled dot-product attention within each text.

    The result has the shape of ``query``. In a `PaddedBatch`, (texts, width) takes the place of (tokens).

    Args:
        query: shape (tokens, heads, head size), or (texts, heads, head size) for the first tokens only.
        key, value: shape (tokens, heads, head size).
        batch: how the texts are packed or padded.
        bias: added to the scores, shape (heads, width, width), at least as wide as the longest text.
        window: maximum distance of the tokens that attend to each other; ``None`` for no limit.
        dropout, p: dropout of the attention weights, and its rate.
    """
    if isinstance(batch, PaddedBatch):
        return _attend_padded((query, key, value), batch, bias, window)
    p = p if dropout.active else 0.0
    if bias is None and has_kernel(query.device, query.dtype, query.shape[2]):
        return _attend_packed((query, key, value), batch, window, p)
    if query.device.type == "cpu" and (p > 0 or (torch.is_grad_enabled() and query.requires_grad)):
        return _CpuAttention.apply(query, key, value, bias, batch, window, dropout, p)
    return _attend_in_groups((query, key, value), batch, bias, window, p)


def _attend_padded(qkv: QKV, batch: PaddedBatch, bias: torch.Tensor | None, window: int | None) -> torch.Tensor:
    """Attend in one padded tensor, in a form that exporters recognize; shapes (texts, width or 1, heads, n)."""
    query, key, value = (x.transpose(1, 2) for x in qkv)
    width, queries = batch.mask.shape[1], query.shape[2]
    mask = batch.mask[:, None, None, :]
    if window is not None:
        position = torch.arange(width, device=query.device)
        near = (position[:queries, None] - position).abs() <= window
        # Padding attends to itself: every query needs a key.
        mask = near & (mask | (position[:queries, None] == position))
    if bias is not None:
        mask = bias[None, :, :queries].masked_fill(~mask, torch.finfo(query.dtype).min)
    output = F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2)
    # Exporters decompose attention with a bias, and the decomposition has other strides than the traced result.
    return output if bias is None else output.clone(memory_format=torch.contiguous_format)


def _attend_in_groups(
    qkv: QKV, batch: PackedBatch, bias: torch.Tensor | None, window: int | None, p: float
) -> torch.Tensor:
    """Attend in padded groups of texts."""
    query, key, value = qkv
    cls_only = len(query) != len(key)
    outputs = []
    for group in batch.groups:
        masked = _masked_keys(group, window, cls_only=cls_only, device=query.device)
        mask = None if masked is None else ~masked
        if bias is not None:
            mask = bias[:, : 1 if cls_only else group.width, : group.width].to(query.dtype)[None]
            mask = mask if masked is None else mask.masked_fill(masked, -torch.inf)
        queries = _pad(query, group, cls_only=cls_only)
        output = F.scaled_dot_product_attention(queries, _pad(key, group), _pad(value, group), mask, p)
        outputs.append(output[:, :, 0] if cls_only else _unpad(output, group))
    if not cls_only:
        outputs.append(query.new_zeros(len(query) - sum(batch.lengths), *query.shape[1:]))
    return torch.cat(outputs)


def _pad(rows: torch.Tensor, group: AttentionGroup, *, cls_only: bool = False) -> torch.Tensor:
    """Pad the rows of a group: (tokens or texts, heads, n) to (texts, heads, width or 1, n)."""
    if cls_only:
        return rows[group.texts, :, None]
    inside = rows[group.tokens] if group.pad_indices is None else rows.index_select(0, group.pad_indices)
    return inside.unflatten(0, (-1, group.width)).transpose(1, 2)


def _unpad(padded: torch.Tensor, group: AttentionGroup) -> torch.Tensor:
    """Drop the padding of a group: (texts, heads, width, n) to (tokens, heads, n)."""
    flat = padded.transpose(1, 2).flatten(0, 1)
    return flat if group.unpad_indices is None else flat.index_select(0, group.unpad_indices)


def _masked_keys(
    group: AttentionGroup, window: int | None, *, cls_only: bool, device: torch.device
) -> torch.Tensor | None:
    """Return which keys each query ignores, bool, broadcasts to (texts, 1, queries, width); ``None`` if none."""
    if window is None or group.width <= window + 1:
        return None if group.mask is None else ~group.mask[:, None, None, :]
    position = torch.arange(group.width, device=device)
    queries = position[: 1 if cls_only else None, None]
    far = (queries - position).abs() > window
    if group.mask is None:
        return far
    # Padding attends to itself: every query needs a key.
    return far | (~group.mask[:, None, None, :] & (queries != position))


class _CpuAttention(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """Attention in padded groups of texts that saves only inputs, attention weights and dropout masks."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bias: torch.Tensor | None,
        batch: PackedBatch,
        window: int | None,
        dropout: Dropout,
        p: float,
    ) -> torch.Tensor:
        cls_only = len(query) != len(key)
        output = query.new_empty(query.shape)
        if not cls_only:
            output[sum(batch.lengths) :] = 0
        saved: list[torch.Tensor | None] = []
        for group in batch.groups:
            q = _pad(query, group, cls_only=cls_only).flatten(0, 1) * query.shape[2] ** -0.5
            k, v = _pad(key, group).flatten(0, 1), _pad(value, group).flatten(0, 1)
            scores = (q @ k.transpose(-1, -2)).unflatten(0, (-1, query.shape[1]))
            if bias is not None:
                scores += bias[:, : scores.shape[2], : group.width]
            masked = _masked_keys(group, window, cls_only=cls_only, device=scores.device)
            if masked is not None:
                scores.masked_fill_(masked, torch.finfo(scores.dtype).min)
            weights = torch.softmax(scores, dim=-1).flatten(0, 1)
            mask = dropout.mask(weights.shape, p) if 0 < p < 1 else None
            result = weights @ v if mask is None else (apply_mask(weights, mask) @ v).mul_(1 / (1 - p))
            _write(output, result, group, cls_only=cls_only)
            saved += [q, k, v, weights, mask]
        ctx.save_for_backward(*saved)
        ctx.batch, ctx.cls_only, ctx.scale, ctx.heads = batch, cls_only, 1 / (1 - p), query.shape[1]
        ctx.inputs = [None if x is None else (x.shape, x.dtype) for x in (query, key, value, bias)]
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved, cls_only = iter(ctx.saved_tensors), ctx.cls_only
        grad_query, grad_key, grad_value, grad_bias = (
            None if like is None else torch.zeros(like[0], dtype=like[1]) for like in ctx.inputs
        )
        for group in ctx.batch.groups:
            q, k, v, weights, mask = (next(saved) for _ in range(5))
            # Padding takes the gradient of an empty token, which is zero.
            grad = _pad(grad_output, group, cls_only=cls_only).flatten(0, 1)
            if mask is not None:
                grad = grad * ctx.scale
            grad_weights = grad @ v.transpose(-1, -2)
            if mask is not None:
                grad_weights = apply_mask(grad_weights, mask)
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
            if grad_bias is not None:
                summed = grad_scores.unflatten(0, (-1, ctx.heads)).sum(0)
                grad_bias[:, : summed.shape[1], : group.width] += summed
            _write(grad_query, (grad_scores @ k).mul_(q.shape[-1] ** -0.5), group, cls_only=cls_only)
            _write(grad_key, grad_scores.transpose(-1, -2) @ q, group)
            dropped = weights if mask is None else apply_mask(weights, mask)
            _write(grad_value, dropped.transpose(-1, -2) @ grad, group)
        return grad_query, grad_key, grad_value, grad_bias, None, None, None, None


def _write(rows: torch.Tensor, matrices: torch.Tensor, group: AttentionGroup, *, cls_only: bool = False) -> None:
    """Write one matrix per text and head, shape (texts * heads, width or 1, n), into the rows, without padding."""
    padded = matrices.unflatten(0, (-1, rows.shape[1]))
    if cls_only:
        rows[group.texts] = padded[:, :, 0]
    elif group.unpad_indices is None:
        rows[group.tokens].unflatten(0, (-1, group.width)).copy_(padded.transpose(1, 2))
    else:
        rows[group.tokens] = _unpad(padded, group)


# -- variable-length attention on CUDA ---------------------------------------------------------------------------------


def has_kernel(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Return whether a device has a working kernel of variable-length attention."""
    if dtype == torch.float32 and torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    half = dtype in (torch.float16, torch.bfloat16)
    return device.type == "cuda" and half and _kernel_matches(device, dtype, head_size)


def _attend_packed(qkv: QKV, batch: PackedBatch, window: int | None, p: float) -> torch.Tensor:
    """Attend with PyTorch's variable-length attention. The empty tokens form one more text."""
    query, key, value = qkv
    if window is not None and len(query) != len(key):  # the kernel would align the window with the end of each text
        rows = torch.zeros_like(key).index_copy(0, batch.cu_seqlens[:-2].long(), query)
        return batch.first_tokens(_attend_packed((rows, key, value), batch, window, p))
    window_size = (-1, -1) if window is None else (window, window)
    if torch.is_autocast_enabled(query.device.type):
        query, key, value = (x.to(torch.get_autocast_dtype(query.device.type)) for x in (query, key, value))
    cu_seqlens_q, max_seqlen_q = batch.cu_seqlens, batch.max_seqlen
    if len(query) != len(key):  # one query per text
        cu_seqlens_q = torch.arange(len(query) + 2, dtype=torch.int32, device=query.device).clamp_(max=len(query))
        max_seqlen_q = 1
    inputs = (query, key, value, cu_seqlens_q, batch.cu_seqlens, max_seqlen_q, batch.max_seqlen)
    return _flash_attention(inputs, p, window_size)


def _flash_attention(inputs: tuple[Any, ...], p: float, window_size: tuple[int, int]) -> torch.Tensor:
    """Call PyTorch's kernel. The public function ``varlen_attn`` has no dropout, so training calls the operator."""
    if not p:
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(*inputs, window_size=window_size)
    left, right = window_size
    output, *_ = torch.ops.aten._flash_attention_forward(
        *inputs, p, is_causal=False, return_debug_mask=False, scale=None, window_size_left=left, window_size_right=right
    )
    return output


@lru_cache
def _kernel_matches(device: torch.device, dtype: torch.dtype, head_size: int) -> bool:
    """Compare the kernel with `_attend_in_groups`. Old GPUs, some head sizes and some torch versions fail."""
    batch = pack(Tokens.from_lists({"input_ids": [[0] * n for n in (48, 5, 17)]})).to(device)
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, len(batch.input_ids), 2, head_size, generator=generator).to(device, dtype)
    tokens = sum(batch.lengths)
    try:
        same = all(
            torch.allclose(
                _attend_packed((q, key, value), batch, window, 0.0)[:tokens],
                _attend_in_groups((q, key, value), batch, None, window, 0.0)[:tokens],
                atol=0.03,
            )
            for q in (query, batch.first_tokens(query))
            for window in (None, 4)
        )
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            dropped = _attend_packed((query, key, torch.ones_like(value)), batch, None, 0.5)[:tokens].float()
        return same and bool((dropped.mean() - 1).abs() < 0.2) and bool(((dropped - 1).abs() > 0.1).any())
    except (RuntimeError, TypeError, ImportError):
        return False
