"""Texts to token ids: a `datasets.Dataset` with only the columns the model takes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bertsmith.model.encoder import COLUMNS, Encoder, FastEncoder
from bertsmith.model.token_cache import cached

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from bertsmith.model.load import Loaded


def encoder_of(tokenizer: PreTrainedTokenizerBase, max_length: int | None = None) -> Encoder:
    """Return what turns texts into token ids as a tokenizer does, faster.

    Args:
        tokenizer: of transformers.
        max_length: tokens kept of each text; all unless given.
    """
    if tokenizer.is_fast and set(tokenizer.model_input_names) <= COLUMNS.keys():
        return FastEncoder(tokenizer.backend_tokenizer.to_str(), max_length, tokenizer.truncation_side)
    return _SlowEncoder(tokenizer, max_length)


def encode(texts: Sequence[str], loaded: Loaded, targets: np.ndarray | None = None) -> Dataset:
    """Tokenize texts.

    Args:
        texts: n texts.
        loaded: the model, whose tokenizer, inputs and maximum length count.
        targets: class index of every text, shape (n,).

    Returns:
        n rows with ``input_ids``, ``attention_mask``, where the model takes them ``token_type_ids``, and ``labels`` if
        ``targets`` are given. Nothing is padded yet.
    """
    import pyarrow as pa
    from datasets import Dataset

    encoder, names = loaded.encoder, loaded.input_names

    def make() -> pa.Table:
        columns = encoder.columns(texts, names)
        return pa.table({name: pa.array(rows, pa.list_(pa.int32())) for name, rows in columns.items()})

    table = cached(texts, encoder.key and f"{encoder.key} {names}", make)
    if targets is not None:
        table = table.append_column("labels", pa.array(np.asarray(targets, dtype=np.int64)))
    return Dataset(table)


def n_tokens(encoded: Dataset) -> int:
    """Return the number of tokens of all texts of `encode`."""
    import pyarrow.compute as pc

    return int(pc.sum(pc.list_value_length(encoded.with_format("arrow")[:]["input_ids"])).as_py() or 0)


def count_tokens(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Return the number of tokens of each text, special tokens counted, nothing cut, shape (n,)."""
    return encoder_of(tokenizer).count(texts)


class _SlowEncoder:
    """An `Encoder` of a tokenizer that the tokenizers library has not, or whose model takes more than that gives."""

    key = None

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.lock = threading.Lock()

    def columns(self, texts: Sequence[str], names: Sequence[str] = ("input_ids",)) -> dict[str, list[list[int]]]:
        with self.lock:
            cut = self.max_length is not None
            encoded = self.tokenizer(list(texts), truncation=cut, max_length=self.max_length, verbose=False)
        return {name: encoded[name] for name in names}

    def count(self, texts: Sequence[str]) -> np.ndarray:
        with self.lock:
            encoded = self.tokenizer(list(texts), truncation=False, return_attention_mask=False, verbose=False)
        return np.array([len(ids) for ids in encoded["input_ids"]], dtype=np.int64)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        with self.lock:
            encoded = self.tokenizer(text, return_offsets_mapping=True, verbose=False)
        return list(encoded["offset_mapping"])

    def unread(self, texts: Sequence[str]) -> list[list[str]]:
        with self.lock:
            token = self.tokenizer.unk_token
            return [[piece for piece in self.tokenizer.tokenize(text) if piece == token] for text in texts]
