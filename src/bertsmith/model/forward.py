"""The forward pass of BERT-family classifiers on packed texts, over the parameters of a Hugging Face model.

`logits` is a plain function: it reads the parameters of the loaded model by the names in `POST_NORM`, changes nothing,
and may run in several threads at once. Texts are packed end to end, so all that works token by token sees no padding.
The head reads the first token of each text, so the last layer is computed for first tokens alone.

Architectures without a table run as Hugging Face wrote them, on padded texts (`padded_logits`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812

from bertsmith.model.attention import attend
from bertsmith.model.batch import Batch, PackedBatch, TokenBatch, pack, to_device
from bertsmith.model.dropout import Dropout
from bertsmith.model.embedding_grad import lookup

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bertsmith.model.load import Loaded

Head = Callable[[Any, torch.Tensor, "Drop"], torch.Tensor]
"""Returns what the head's last layer reads (texts, n), given the model and last hidden states (texts, hidden size)."""

Attention = Callable[..., torch.Tensor]
"""`bertsmith.model.attention.attend`."""


def _pooler_head(model: Any, x: torch.Tensor, drop: Drop) -> torch.Tensor:
    return drop(torch.tanh(model.base_model.pooler.dense(x)), model.dropout.p)


def _dense_head(model: Any, x: torch.Tensor, drop: Drop) -> torch.Tensor:
    head = model.classifier
    return drop(getattr(head, "activation", torch.tanh)(head.dense(drop(x, head.dropout.p))), head.dropout.p)


def _relu_head(model: Any, x: torch.Tensor, drop: Drop) -> torch.Tensor:
    return drop(torch.relu(model.pre_classifier(x)), model.dropout.p)


def _modernbert_head(model: Any, x: torch.Tensor, drop: Drop) -> torch.Tensor:
    return drop(model.head(x), model.drop.p)


@dataclass(frozen=True)
class PostNorm:
    """Where an encoder that normalizes after each residual sum, as BERT does, keeps its parts.

    ``layers``, ``relative_positions`` and ``projection`` are attributes of the body, ``heads`` of the configuration,
    ``last`` of the model, and the others of a layer.
    """

    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    weights_dropout: str = "attention.self.dropout"
    out: str = "attention.output.dense"
    out_dropout: str | None = "attention.output.dropout"
    out_norm: str = "attention.output.LayerNorm"
    up: str = "intermediate.dense"
    activation: str = "intermediate.intermediate_act_fn"
    down: str = "output.dense"
    down_dropout: str = "output.dropout"
    down_norm: str = "output.LayerNorm"
    layers: str = "encoder.layer"
    heads: str = "num_attention_heads"
    relative_positions: str | None = None
    projection: str | None = None
    head: Head = _dense_head
    last: str = "classifier.out_proj"


POST_NORM = {
    "bert": PostNorm(head=_pooler_head, last="classifier"),
    "roberta": PostNorm(),
    "xlm-roberta": PostNorm(),
    "electra": PostNorm(projection="embeddings_project"),
    "mpnet": PostNorm(
        query="attention.attn.q",
        key="attention.attn.k",
        value="attention.attn.v",
        weights_dropout="attention.attn.dropout",
        out="attention.attn.o",
        out_dropout="attention.dropout",
        out_norm="attention.LayerNorm",
        relative_positions="encoder.relative_attention_bias",
    ),
    "distilbert": PostNorm(
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        weights_dropout="attention.dropout",
        out="attention.out_lin",
        out_dropout=None,
        out_norm="sa_layer_norm",
        up="ffn.lin1",
        activation="ffn.activation",
        down="ffn.lin2",
        down_dropout="ffn.dropout",
        down_norm="output_layer_norm",
        layers="transformer.layer",
        heads="n_heads",
        head=_relu_head,
        last="classifier",
    ),
}
"""By model type. Their embeddings have the names of BERT's."""
ARCHITECTURES = (*POST_NORM, "modernbert")
"""Model types whose forward pass is computed here."""


class Drop:
    """Dropout, or the identity without it."""

    def __init__(self, dropout: Dropout | None) -> None:
        self.dropout = dropout

    def __call__(self, x: torch.Tensor, p: float) -> torch.Tensor:
        """Return x after dropout."""
        return x if self.dropout is None or not p else self.dropout(x, p)

    def add(self, x: torch.Tensor, residual: torch.Tensor, p: float) -> torch.Tensor:
        """Return the sum of a residual and x after dropout."""
        return residual + x if self.dropout is None or not p else self.dropout.add(x, residual, p)


def supports(model: PreTrainedModel) -> bool:
    """Return whether `logits` can compute a model; other models run by `padded_logits`."""
    config = model.config
    return (
        model.device.type in ("cpu", "cuda")
        and config.model_type in ARCHITECTURES
        and type(model).__name__.endswith("ForSequenceClassification")
        and getattr(config, "position_embedding_type", None) in (None, "absolute")
        and not getattr(config, "is_decoder", False)
        and all(kind == "default" for kind in _rope_types(model))
    )


def pack_for(model: PreTrainedModel, batch: TokenBatch) -> PackedBatch:
    """Pack texts as a model counts its positions, on the host; `PackedBatch.to` moves them to the model's device."""
    return pack(batch, padding_id=position_offset(model))


def position_offset(model: PreTrainedModel) -> int | None:
    """Return the id of the padding token where a model counts positions from the one after it, else ``None``."""
    offset: int | None = getattr(model.base_model.embeddings, "padding_idx", None)
    return offset


def logits(
    model: PreTrainedModel, batch: Batch, *, dropout: Dropout | None = None, compiled: bool = False
) -> torch.Tensor:
    """Compute the logits of packed texts.

    Args:
        model: a model that `supports` accepts. Whether it is in training mode does not matter.
        batch: the texts, on the model's device.
        dropout: draws dropout masks, at the rates of the model; ``None`` for no dropout.
        compiled: compute layers as `torch.compile` compiles them; layers it cannot compile run as they are.

    Returns:
        Shape (texts, classes).
    """
    drop = Drop(dropout)
    if model.config.model_type == "modernbert":
        pools_mean = model.config.classifier_pooling == "mean"
        x = _modernbert(model, batch, drop, compiled=compiled, firsts=not pools_mean)
        return _head(model, batch.mean(x) if pools_mean else x, drop, _modernbert_head, "classifier")
    x = _post_norm(model, batch, drop, compiled=compiled, firsts=True)
    names = POST_NORM[model.config.model_type]
    return _head(model, x, drop, names.head, names.last)


def embeddings(model: PreTrainedModel, batch: PackedBatch) -> torch.Tensor:
    """Return the mean of the last hidden states of each packed text, shape (texts, hidden size).

    Args:
        model: a model that `supports` accepts; its head is not used.
        batch: the texts, on the model's device.
    """
    compute = _modernbert if model.config.model_type == "modernbert" else _post_norm
    return batch.mean(compute(model, batch, Drop(None)).float())


@lru_cache
def _compiled(layer: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return a layer compiled by torch, all but its attention: operations on elements become a few kernels."""
    compiled = torch.compile(partial(layer, attention=torch.compiler.disable(attend)), dynamic=True)

    def compute(*given: Any, **named: Any) -> torch.Tensor:
        with torch._dynamo.config.patch(suppress_errors=True):
            result: torch.Tensor = compiled(*given, **named)
        return result

    return compute


def padded_logits(loaded: Loaded, batch: TokenBatch) -> torch.Tensor:
    """Compute the logits of texts by Hugging Face's own forward pass, shape (texts, classes).

    Args:
        loaded: any sequence-classification model; in training mode it drops out as PyTorch does.
        batch: the texts, on the host.
    """
    result: torch.Tensor = loaded.model(**_padded_inputs(loaded, batch)).logits
    return result


def _padded_inputs(loaded: Loaded, batch: TokenBatch) -> dict[str, torch.Tensor]:
    inputs = batch.padded(loaded.padding, left=loaded.pads_left)
    return {name: to_device(values, loaded.device) for name, values in inputs.items() if name in loaded.input_names}


def padded_embeddings(loaded: Loaded, batch: TokenBatch) -> torch.Tensor:
    """Return what `embeddings` does, by Hugging Face's own forward pass."""
    inputs = _padded_inputs(loaded, batch)
    states, mask = loaded.model.base_model(**inputs).last_hidden_state, inputs["attention_mask"][:, :, None]
    result: torch.Tensor = (states.float() * mask).sum(1) / mask.sum(1)
    return result


def features(model: PreTrainedModel, batch: PackedBatch) -> torch.Tensor:
    """Return what the last layer of the head reads, shape (texts, hidden size).

    Args:
        model: a model of a type in `POST_NORM` that `supports` accepts.
        batch: the texts, on the model's device.
    """
    states = _post_norm(model, batch, Drop(None), firsts=True)
    return POST_NORM[model.config.model_type].head(model, states.float(), Drop(None))


def padded_features(loaded: Loaded, batch: TokenBatch) -> torch.Tensor:
    """Return what `features` does, by Hugging Face's own forward pass of the body."""
    states = loaded.model.base_model(**_padded_inputs(loaded, batch)).last_hidden_state
    return POST_NORM[loaded.model.config.model_type].head(loaded.model, states[:, 0], Drop(None))


def logits_of_embeddings(loaded: Loaded, batch: TokenBatch, embeddings: torch.Tensor) -> torch.Tensor:
    """Compute the logits of one text with other word embeddings, shape (n, classes).

    Args:
        loaded: a model in evaluation mode.
        batch: one text, on the host.
        embeddings: of its tokens, n times, shape (n, tokens, width).
    """
    n = len(embeddings)
    repeated = batch.take(torch.zeros(n, dtype=torch.long))
    if supports(loaded.model):
        packed = pack_for(loaded.model, repeated).to(loaded.device)
        empty = len(packed.input_ids) - embeddings.shape[0] * embeddings.shape[1]
        rows = F.pad(embeddings.flatten(0, 1), (0, 0, 0, empty))
        return logits(loaded.model, replace(packed, word_embeddings=rows))
    inputs = repeated.padded(loaded.padding, multiple=1)
    taken = {
        name: to_device(values, loaded.device)
        for name, values in inputs.items()
        if name in loaded.input_names and name != "input_ids"
    }
    result: torch.Tensor = loaded.model(inputs_embeds=embeddings, **taken).logits
    return result


def _embed(body: Any, names: PostNorm, batch: Batch, drop: Drop) -> torch.Tensor:
    """Return the embedded tokens, shape (tokens, hidden size)."""
    parts = body.embeddings
    x = batch.word_embeddings
    if x is None:
        x = lookup(parts.word_embeddings, batch.input_ids)
    types = getattr(parts, "token_type_embeddings", None)
    if types is not None:
        x = x + (types.weight[0] if batch.token_type_ids is None else lookup(types, batch.token_type_ids))
    x = x + lookup(parts.position_embeddings, batch.position_ids)
    x = drop(parts.LayerNorm(x), parts.dropout.p)
    if names.projection is not None and hasattr(body, names.projection):
        x = getattr(body, names.projection)(x)
    return x


def _post_norm(model: Any, batch: Batch, drop: Drop, *, compiled: bool = False, firsts: bool = False) -> torch.Tensor:
    """Return the last hidden states, shape (tokens, hidden size); with ``firsts``, of first tokens alone."""
    compute_layer = _compiled(_post_norm_layer) if compiled else _post_norm_layer
    names, body = POST_NORM[model.config.model_type], model.base_model
    x = _in_type_of_products(_embed(body, names, batch, drop), attrgetter(names.layers)(body)[0], names.query)
    table = names.relative_positions
    bias = None if table is None else _relative_bias(attrgetter(table)(body), batch)
    *layers, last = attrgetter(names.layers)(body)
    heads = getattr(model.config, names.heads)
    for layer in layers:
        x = compute_layer(layer, names, x, batch, heads, bias, drop)
    return compute_layer(last, names, x, batch, heads, bias, drop, firsts=firsts)


def _post_norm_layer(
    layer: Any,
    names: PostNorm,
    x: torch.Tensor,
    batch: Batch,
    heads: int,
    bias: torch.Tensor | None,
    drop: Drop,
    *,
    firsts: bool = False,
    attention: Attention = attend,
) -> torch.Tensor:
    """Return the output of a layer, shape (tokens, hidden size); with ``firsts``, of first tokens alone."""

    def part(name: str) -> Any:
        return attrgetter(name)(layer)

    residual = batch.firsts(x) if firsts else x
    query, key, value = (
        part(name)(rows).unflatten(-1, (heads, -1))
        for name, rows in ((names.query, residual), (names.key, x), (names.value, x))
    )
    rate = part(names.weights_dropout).p
    mixed = attention(query, key, value, batch, bias=bias, dropout=drop.dropout, p=rate).flatten(-2)
    rate = 0.0 if names.out_dropout is None else part(names.out_dropout).p
    x = part(names.out_norm)(drop.add(part(names.out)(mixed), residual, rate))
    inner = part(names.activation)(part(names.up)(x))
    result: torch.Tensor = part(names.down_norm)(drop.add(part(names.down)(inner), x, part(names.down_dropout).p))
    return result


def _in_type_of_products(x: torch.Tensor, layer: Any, product: str) -> torch.Tensor:
    """Return x in the type of matrix products on a CPU, where normalization keeps it: so does all that follows."""
    if x.device.type != "cpu":
        return x
    if torch.is_autocast_enabled("cpu"):
        return x.to(torch.get_autocast_dtype("cpu"))
    return x.to(attrgetter(product)(layer).weight.dtype)


def _head(model: Any, x: torch.Tensor, drop: Drop, head: Head, last: str) -> torch.Tensor:
    """Compute the head, which is small, in full precision."""
    with torch.autocast(x.device.type, enabled=False):
        features = head(model, (x if x.dim() == 2 else x[:, 0]).float(), drop)
        logits: torch.Tensor = attrgetter(last)(model)(features)
        return logits


def _relative_bias(table: Any, batch: Batch) -> torch.Tensor:
    """Return what MPNet adds to attention scores by the distance of two tokens, shape (heads, width, width).

    Distances up to 7 have a bucket each, longer ones up to 128 share buckets of logarithmic size (Raffel et al. 2020,
    arXiv:1910.10683); transformers always takes 32 buckets, whatever the configuration says.
    """
    place = torch.arange(batch.width, device=table.weight.device)
    distance = place[:, None] - place
    near = distance.abs()
    far = 8 + (torch.log(near.clamp(min=1).float() / 8) / math.log(128 / 8) * 8).long()
    bucket = torch.where(distance < 0, 16, 0) + torch.where(near < 8, near, far.clamp(max=15))
    bias: torch.Tensor = F.embedding(bucket, table.weight).permute(2, 0, 1)
    return bias


# -- ModernBERT --------------------------------------------------------------------------------------------------------


def _modernbert(model: Any, batch: Batch, drop: Drop, *, compiled: bool = False, firsts: bool = False) -> torch.Tensor:
    """Return what `_post_norm` does, for ModernBERT.

    It normalizes before each sum and has rotary positions, local attention and gated feed-forward layers. Source:
    Warner et al. 2024, arXiv:2412.13663.
    """
    compute_layer = _compiled(_pre_norm_layer) if compiled else _pre_norm_layer
    config, body = model.config, model.base_model
    x = batch.word_embeddings
    if x is None:
        x = lookup(body.embeddings.tok_embeddings, batch.input_ids)
    x = drop(body.embeddings.norm(x), body.embeddings.drop.p)
    x = _in_type_of_products(x, body.layers[0], "attn.Wqkv")
    packed = batch.position_ids.dim() == 1
    places = batch.position_ids[None] if packed else batch.position_ids
    rotations = {
        kind: [(turn[0] if packed else turn).unsqueeze(-2) for turn in body.rotary_emb(x, places, kind)]
        for kind in set(config.layer_types)
    }
    for i, layer in enumerate(body.layers):
        last = i == len(body.layers) - 1
        rotation = rotations[layer.attention_type]
        x = compute_layer(layer, x, batch, config.num_attention_heads, rotation, drop, firsts and last)
    result: torch.Tensor = body.final_norm(x)
    return result


def _pre_norm_layer(
    layer: Any,
    x: torch.Tensor,
    batch: Batch,
    heads: int,
    rotation: list[torch.Tensor],
    drop: Drop,
    firsts: bool,
    attention: Attention = attend,
) -> torch.Tensor:
    attn, mlp = layer.attn, layer.mlp
    query, key, value = attn.Wqkv(layer.attn_norm(x)).unflatten(-1, (3, heads, -1)).unbind(-3)
    query, key = (_rotated(rows, *rotation) for rows in (query, key))
    if firsts:
        query, x = batch.firsts(query), batch.firsts(x)
    # Hugging Face counts the token itself among those to one side.
    window = None if attn.sliding_window is None else attn.sliding_window - 1
    rate = attn.attention_dropout
    mixed = attention(query, key, value, batch, window=window, dropout=drop.dropout, p=rate).flatten(-2)
    x = drop.add(attn.Wo(mixed), x, rate)
    inner, gate = mlp.Wi(layer.mlp_norm(x)).chunk(2, dim=-1)
    result: torch.Tensor = x + mlp.Wo(drop(mlp.act(inner) * gate, mlp.drop.p))
    return result


def _rotated(rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Return queries or keys (tokens, heads, n), rotated by their positions, in fp32 as transformers does."""
    wide = rows.float()
    left, right = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-right, left), dim=-1) * sin).to(rows.dtype)


def _rope_types(model: PreTrainedModel) -> list[str]:
    rotary = getattr(model.base_model, "rotary_emb", None)
    return [] if rotary is None else list(rotary.rope_type.values())
