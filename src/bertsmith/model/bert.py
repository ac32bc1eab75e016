"""Hidden states and heads of BERT, of its relatives with normalization after each residual connection, and ModernBERT.

BERT and its relatives differ mainly in the names of their modules, so each one is an entry in a table of names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from bertsmith.model.attention import attend
from bertsmith.model.batch import Batch
from bertsmith.model.dropout import Dropout
from bertsmith.model.gradients import embedding_lookup

Head = Callable[[Any, torch.Tensor, Dropout], torch.Tensor]
"""Maps the model, hidden states of first tokens (texts, hidden size) and dropout to the input of the last layer."""

Layer = Callable[..., torch.Tensor]


def _pooler_head(model: Any, x: torch.Tensor, dropout: Dropout) -> torch.Tensor:
    return dropout(torch.tanh(model.base_model.pooler.dense(x)), model.dropout.p)


def _dense_head(model: Any, x: torch.Tensor, dropout: Dropout) -> torch.Tensor:
    head = model.classifier
    activation = getattr(head, "activation", torch.tanh)
    return dropout(activation(head.dense(dropout(x, head.dropout.p))), head.dropout.p)


def _relu_head(model: Any, x: torch.Tensor, dropout: Dropout) -> torch.Tensor:
    return dropout(torch.relu(model.pre_classifier(x)), model.dropout.p)


def _modernbert_head(model: Any, x: torch.Tensor, dropout: Dropout) -> torch.Tensor:
    return dropout(model.head(x), model.drop.p)


@dataclass(frozen=True)
class ModuleNames:
    """Names of the modules of an architecture.

    ``layers`` and ``relative_positions`` are attributes of the base model, ``classifier`` of the model, and all others
    of a layer.
    """

    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attention_dropout: str = "attention.self.dropout"
    out: str = "attention.output.dense"
    out_dropout: str | None = "attention.output.dropout"
    out_norm: str = "attention.output.LayerNorm"
    up: str = "intermediate.dense"
    activation: str = "intermediate.intermediate_act_fn"
    down: str = "output.dense"
    down_dropout: str = "output.dropout"
    down_norm: str = "output.LayerNorm"
    layers: str = "encoder.layer"
    relative_positions: str | None = None
    head: Head = _dense_head
    classifier: str = "classifier.out_proj"


MODULE_NAMES = {
    "bert": ModuleNames(head=_pooler_head, classifier="classifier"),
    "roberta": ModuleNames(),
    "xlm-roberta": ModuleNames(),
    "electra": ModuleNames(),
    "mpnet": ModuleNames(
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        attention_dropout="attention.attn.dropout",
        out="attention.attn.o",
        out_dropout="attention.dropout",
        out_norm="attention.LayerNorm",
        relative_positions="encoder.relative_attention_bias",
    ),
    "distilbert": ModuleNames(
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attention_dropout="attention.dropout",
        out="attention.out_lin",
        out_dropout=None,
        out_norm="sa_layer_norm",
        up="ffn.lin1",
        activation="ffn.activation",
        down="ffn.lin2",
        down_dropout="ffn.dropout",
        down_norm="output_layer_norm",
        layers="transformer.layer",
        head=_relu_head,
        classifier="classifier",
    ),
    "modernbert": ModuleNames(head=_modernbert_head, classifier="classifier"),  # its layers have code of their own
}
"""By model type. All but ModernBERT name their embeddings as BERT does."""


def hidden_states(
    model: Any, batch: Batch, dropout: Dropout, *, compiled: bool = False, cls_only: bool = False
) -> torch.Tensor:
    """Return the last hidden states of a model in `MODULE_NAMES`, shape (tokens, hidden size).

    If ``cls_only``, the last layer computes first tokens only, shape (texts, hidden size). The other arguments are
    those of `bertsmith.model.forward.logits`.
    """
    if model.config.model_type == "modernbert":
        return _modernbert_states(model, batch, dropout, compiled=compiled, cls_only=cls_only)
    names, body = MODULE_NAMES[model.config.model_type], model.base_model
    layers = attrgetter(names.layers)(body)
    x = to_matmul_dtype(_embed(body, batch, dropout), attrgetter(names.query)(layers[0]))
    table = names.relative_positions
    bias = None if table is None else _relative_bias(attrgetter(table)(body), batch)
    num_heads = model.config.num_attention_heads
    compute_layer = compile_layer(_layer) if compiled else _layer
    for layer in layers[:-1]:
        x = compute_layer(layer, names, x, batch, num_heads, bias, dropout)
    return compute_layer(layers[-1], names, x, batch, num_heads, bias, dropout, cls_only=cls_only)


def _embed(body: Any, batch: Batch, dropout: Dropout) -> torch.Tensor:
    """Return the embedded tokens, shape (tokens, hidden size)."""
    modules = body.embeddings
    x = embedding_lookup(modules.word_embeddings, batch.input_ids)
    types = getattr(modules, "token_type_embeddings", None)
    if types is not None:
        x = x + (types.weight[0] if batch.token_type_ids is None else embedding_lookup(types, batch.token_type_ids))
    x = x + embedding_lookup(modules.position_embeddings, batch.position_ids)
    x = dropout(modules.LayerNorm(x), modules.dropout.p)
    # Only ELECTRA's embeddings may have another size than the hidden states.
    return body.embeddings_project(x) if hasattr(body, "embeddings_project") else x


def _layer(
    layer: Any,
    names: ModuleNames,
    x: torch.Tensor,
    batch: Batch,
    num_heads: int,
    bias: torch.Tensor | None,
    dropout: Dropout,
    *,
    cls_only: bool = False,
    attention: Layer = attend,
) -> torch.Tensor:
    def module(name: str) -> Any:
        return attrgetter(name)(layer)

    residual = batch.first_tokens(x) if cls_only else x
    query, key, value = (
        module(name)(rows).unflatten(-1, (num_heads, -1))
        for name, rows in ((names.query, residual), (names.key, x), (names.value, x))
    )
    rate = module(names.attention_dropout).p
    context = attention(query, key, value, batch, bias=bias, dropout=dropout, p=rate).flatten(-2)
    rate = 0.0 if names.out_dropout is None else module(names.out_dropout).p
    x = module(names.out_norm)(dropout.add(module(names.out)(context), residual, rate))
    inner = module(names.activation)(module(names.up)(x))
    rate = module(names.down_dropout).p
    return module(names.down_norm)(dropout.add(module(names.down)(inner), x, rate))


def _relative_bias(table: Any, batch: Batch) -> torch.Tensor:
    """Return MPNet's attention bias by the distance of two tokens, shape (heads, width, width).

    Distances up to 7 have a bucket each. Distances up to 128 share buckets of logarithmic size (Raffel et al. 2020,
    arXiv:1910.10683). As in transformers, the number of buckets is 32, whatever the configuration says.
    """
    position = torch.arange(batch.width, device=table.weight.device)
    distance = position[:, None] - position
    near = distance.abs()
    far = 8 + (torch.log(near.clamp(min=1).float() / 8) / math.log(128 / 8) * 8).long()
    bucket = torch.where(distance < 0, 16, 0) + torch.where(near < 8, near, far.clamp(max=15))
    return F.embedding(bucket, table.weight).permute(2, 0, 1)


def _modernbert_states(model: Any, batch: Batch, dropout: Dropout, *, compiled: bool, cls_only: bool) -> torch.Tensor:
    """Return the last hidden states of ModernBERT (Warner et al. 2024, arXiv:2412.13663); see `hidden_states`.

    It normalizes before residual connections, and has rotary positions, local attention and gated feed-forward layers.
    """
    compute_layer = compile_layer(_modernbert_layer) if compiled else _modernbert_layer
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


def _modernbert_layer(
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


def to_matmul_dtype(x: torch.Tensor, linear: Any) -> torch.Tensor:
    """On a CPU, cast x to the dtype of matrix products. Layer normalization preserves it from layer to layer."""
    if x.device.type != "cpu":
        return x
    if torch.is_autocast_enabled("cpu"):
        return x.to(torch.get_autocast_dtype("cpu"))
    return x.to(linear.weight.dtype)


@lru_cache
def compile_layer(layer: Layer) -> Layer:
    """Compile a layer without its attention. A layer that cannot be compiled runs as it is."""
    compiled = torch.compile(partial(layer, attention=torch.compiler.disable(attend)), dynamic=True)
    compute: Layer = torch._dynamo.config.patch(suppress_errors=True)(compiled)
    return compute
