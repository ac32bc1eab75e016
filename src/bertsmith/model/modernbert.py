"""Hidden states of ModernBERT (Warner et al. 2024, arXiv:2412.13663).

It normalizes before each residual connection, and has rotary positions, local attention and gated feed-forward layers.
"""

from __future__ import annotations

from typing import Any

import torch

from bertsmith.model.attention import attend
from bertsmith.model.batch import Batch
from bertsmith.model.bert import Layer, compile_layer, to_matmul_dtype
from bertsmith.model.dropout import Dropout
from bertsmith.model.gradients import embedding_lookup


def hidden_states(
    model: Any, batch: Batch, dropout: Dropout, *, compiled: bool = False, cls_only: bool = False
) -> torch.Tensor:
    """Return the last hidden states; arguments and shapes are those of `bertsmith.model.bert.hidden_states`."""
    compute_layer = compile_layer(_layer) if compiled else _layer
    config, body = model.config, model.base_model
    x = embedding_lookup(body.embeddings.tok_embeddings, batch.input_ids)
    x = dropout(body.embeddings.norm(x), body.embeddings.drop.p)
    x = to_matmul_dtype(x, body.layers[0].attn.Wqkv)
    packed = batch.position_ids.dim() == 1
    position_ids = batch.position_ids[None] if packed else batch.position_ids
    rotations = {
        kind: [(values[0] if packed else values).unsqueeze(-2) for values in body.rotary_emb(x, position_ids, kind)]
        for kind in set(config.layer_types)
    }
    for i, layer in enumerate(body.layers):
        last = i == len(body.layers) - 1
        rotation = rotations[layer.attention_type]
        x = compute_layer(layer, x, batch, config.num_attention_heads, rotation, dropout, cls_only and last)
    return body.final_norm(x)


def _layer(
    layer: Any,
    x: torch.Tensor,
    batch: Batch,
    num_heads: int,
    rotation: list[torch.Tensor],
    dropout: Dropout,
    cls_only: bool,
    attention: Layer = attend,
) -> torch.Tensor:
    attn, mlp = layer.attn, layer.mlp
    query, key, value = attn.Wqkv(layer.attn_norm(x)).unflatten(-1, (3, num_heads, -1)).unbind(-3)
    query, key = (_rotate(rows, *rotation) for rows in (query, key))
    if cls_only:
        query, x = batch.first_tokens(query), batch.first_tokens(x)
    # transformers counts the token itself.
    window = None if attn.sliding_window is None else attn.sliding_window - 1
    rate = attn.attention_dropout
    context = attention(query, key, value, batch, window=window, dropout=dropout, p=rate).flatten(-2)
    x = dropout.add(attn.Wo(context), x, rate)
    inner, gate = mlp.Wi(layer.mlp_norm(x)).chunk(2, dim=-1)
    return x + mlp.Wo(dropout(mlp.act(inner) * gate, mlp.drop.p))


def _rotate(rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply rotary positions to queries or keys, shape (tokens, heads, n), in fp32 as transformers does."""
    x = rows.float()
    left, right = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-right, left), dim=-1) * sin).to(rows.dtype)
