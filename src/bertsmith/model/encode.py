"""Texts to token ids: a `datasets.Dataset` with only the columns the model takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from bertsmith.model.load import Loaded

CHUNK = 1000
"""Texts tokenized at once: enough for the tokenizer's threads, little enough for memory."""


def encode(
    texts: Sequence[str],
    loaded: Loaded,
    targets: np.ndarray | None = None,
) -> Dataset:
    """Tokenize texts.

    Args:
        texts: n texts.
        loaded: the model, whose tokenizer, inputs and maximum length count.
        targets: class index of every text, shape (n,).

    Returns:
        n rows with ``input_ids``, ``attention_mask``, where the model takes them ``token_type_ids``, and ``labels`` if
        ``targets`` are given. Nothing is padded yet.
    """
    from datasets import Dataset

    columns: dict[str, list[object]] = {}
    for start in range(0, len(texts), CHUNK):
        chunk = list(texts[start : start + CHUNK])
        encoded = loaded.tokenizer(chunk, truncation=True, max_length=loaded.max_length)
        for name in loaded.input_names:
            columns.setdefault(name, []).extend(encoded[name])
    if targets is not None:
        columns["labels"] = [int(target) for target in targets]
    return Dataset.from_dict(columns)


def count_tokens(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Return the number of tokens of each text, special tokens counted, nothing cut, shape (n,)."""
    lengths: list[int] = []
    for start in range(0, len(texts), CHUNK):
        encoded = tokenizer(
            list(texts[start : start + CHUNK]), truncation=False, return_attention_mask=False, verbose=False
        )
        lengths += map(len, encoded["input_ids"])
    return np.array(lengths, dtype=np.int64)
