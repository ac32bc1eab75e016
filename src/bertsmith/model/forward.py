"""The forward pass of BERT-family classifiers on packed texts, with the parameters of a Hugging Face model.

`logits` is a pure function. It reads the parameters of the model by name, changes nothing, and several threads may call
it at the same time. Texts are packed end to end, so operations on tokens see no padding. The head reads the first token
of each text, so the last layer computes first tokens only.

All other architectures, and variants of word embeddings, run through Hugging Face's forward pass, on padded texts.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bertsmith.compute.device import to_device
from bertsmith.model import bert
from bertsmith.model.batch import Batch, PackedBatch, PaddedBatch, pack
from bertsmith.model.bert import MODULE_NAMES
from bertsmith.model.dropout import NO_DROPOUT, Dropout
from bertsmith.model.tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bertsmith.model.load import LoadedModel


def supports(model: PreTrainedModel) -> bool:
    """Return whether `logits` computes this model."""
    config, rotary = model.config, getattr(model.base_model, "rotary_emb", None)
    return (
        model.device.type in ("cpu", "cuda")
        and config.model_type in MODULE_NAMES
        and type(model).__name__.endswith("ForSequenceClassification")
        and getattr(config, "position_embedding_type", None) in (None, "absolute")
        and not getattr(config, "is_decoder", False)
        and (rotary is None or set(rotary.rope_type.values()) <= {"default"})
    )


def position_padding_idx(model: PreTrainedModel) -> int | None:
    """Return the ``padding_idx`` of `bertsmith.model.batch.pack` for a model."""
    return getattr(model.base_model.embeddings, "padding_idx", None)


def pack_for(model: PreTrainedModel, texts: Tokens) -> PackedBatch:
    """Pack texts for a model, on the host."""
    return pack(texts, padding_idx=position_padding_idx(model))


def logits(
    model: PreTrainedModel,
    batch: Batch,
    *,
    dropout: Dropout = NO_DROPOUT,
    compiled: bool = False,
    only_features: bool = False,
) -> torch.Tensor:
    """Compute the logits of packed texts, shape (texts, classes).

    Args:
        model: a model that `supports` accepts, in training or evaluation mode.
        batch: the texts, on the device of the model.
        dropout: applied at the rates of the model.
        compiled: run layers through `torch.compile`.
        only_features: return the input of the last layer of the head instead, shape (texts, hidden size).
    """
    model_type = model.config.model_type
    pools = model_type == "modernbert" and model.config.classifier_pooling == "mean"
    x = bert.hidden_states(model, batch, dropout, compiled=compiled, cls_only=not pools)
    x = batch.mean(x) if pools else x
    with torch.autocast(x.device.type, enabled=False):  # the head is small: full precision
        features = _head(model, x, dropout)
        return features if only_features else attrgetter(MODULE_NAMES[model_type].classifier)(model)(features)


def outputs(
    loaded: LoadedModel, texts: PackedBatch | Tokens, *, only_features: bool = False, **options: Any
) -> torch.Tensor:
    """Compute `logits` of packed texts; for padded texts, use Hugging Face's forward pass.

    Args:
        loaded: any sequence-classification model. For padded texts, its mode decides about dropout in the encoder.
        texts: packed texts, on any device, or texts to pad.
        only_features: see `logits`; for padded texts, the head must be in `MODULE_NAMES` and read the first token.
        options: of `logits` for packed texts.
    """
    if isinstance(texts, PackedBatch):
        return logits(loaded.model, texts.to(loaded.device), only_features=only_features, **options)
    inputs = _padded_inputs(loaded, texts)
    if only_features:
        return _head(loaded.model, loaded.model.base_model(**inputs).last_hidden_state, NO_DROPOUT)
    return loaded.model(**inputs).logits


def inference_outputs(loaded: LoadedModel, texts: Tokens, *, only_features: bool = False) -> torch.Tensor:
    """Compute `outputs` of texts, packed if `supports` accepts the model."""
    inputs = pack_for(loaded.model, texts) if supports(loaded.model) else texts
    return outputs(loaded, inputs, only_features=only_features)


def embeddings(loaded: LoadedModel, texts: Tokens) -> torch.Tensor:
    """Compute the mean of the last hidden states of each text, shape (texts, hidden size)."""
    if supports(loaded.model):
        packed = pack_for(loaded.model, texts).to(loaded.device)
        return packed.mean(bert.hidden_states(loaded.model, packed, NO_DROPOUT).float())
    inputs = _padded_inputs(loaded, texts)
    return PaddedBatch.from_inputs(**inputs).mean(loaded.model.base_model(**inputs).last_hidden_state.float())


def logits_from_embeddings(loaded: LoadedModel, text: Tokens, embeddings: torch.Tensor) -> torch.Tensor:
    """Compute the logits of one text for n variants of its word embeddings, shape (n, classes).

    The model is in evaluation mode. The embeddings have the shape (n, tokens, embedding size).
    """
    inputs = _padded_inputs(loaded, text.take(np.zeros(len(embeddings), dtype=np.int64)), text.longest)
    del inputs["input_ids"]
    return loaded.model(inputs_embeds=embeddings, **inputs).logits


def _padded_inputs(loaded: LoadedModel, texts: Tokens, width: int | None = None) -> dict[str, torch.Tensor]:
    inputs = texts.pad(loaded.padding, loaded.tokenizer.padding_side, width)
    tensors = {name: torch.from_numpy(values) for name, values in inputs.items() if name in loaded.input_names}
    return {name: to_device(values, loaded.device) for name, values in tensors.items()}


def _head(model: Any, x: torch.Tensor, dropout: Dropout) -> torch.Tensor:
    """Return the input of the last layer, from hidden states of shape (texts, hidden size) or (texts, width, …)."""
    x = (x if x.dim() == 2 else x[:, 0]).float()
    return MODULE_NAMES[model.config.model_type].head(model, x, dropout)
