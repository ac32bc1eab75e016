"""Batches straight from arrays of tokens, without a Python object per token."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from bertsmith.model.batch import TokenBatch
from bertsmith.model.tokenizer import Tokens, span


class TokenDataset(Dataset[Any]):  # type: ignore[misc]  # torch is untyped here
    """Tokenized texts with their labels; a batch of them is the fields of a `TokenBatch`.

    Args:
        tokens: n texts.
        labels: the class index of each, shape (n,).
    """

    def __init__(self, tokens: Tokens, labels: np.ndarray) -> None:
        self.columns, self.starts, self.lengths, self.labels = tokens.columns, tokens.starts, tokens.kept, labels

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        """Return the columns of one text, for samplers that ask for its length."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        start, length = self.starts[row], self.lengths[row]
        return {name: values[start : start + length] for name, values in self.columns.items()}

    def __getitems__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """Return the fields of a batch, int64."""
        lengths = self.lengths[rows]
        tokens = span(self.starts[rows], lengths)
        batch = {"labels": self.labels[rows], "lengths": lengths}
        batch |= {name: values[tokens] for name, values in self.columns.items()}
        return {name: torch.from_numpy(values.astype(np.int64)) for name, values in batch.items()}

    def whole(self) -> TokenBatch:
        """Return all texts as one batch."""
        return TokenBatch(**self.__getitems__(list(range(len(self)))))
