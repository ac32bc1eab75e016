"""Batches straight from the memory of Arrow, without a Python object per token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from bertsmith.model.batch import TokenBatch

if TYPE_CHECKING:
    import datasets


class TokenDataset(Dataset[Any]):  # type: ignore[misc]  # torch is untyped here
    """Encoded texts with their labels; a batch of them is the fields of a `TokenBatch`.

    Args:
        encoded: rows with ``input_ids``, maybe ``token_type_ids``, and ``labels``.
    """

    def __init__(self, encoded: datasets.Dataset) -> None:
        table = encoded.with_format("arrow")[:]
        ids = table["input_ids"].combine_chunks()
        offsets = ids.offsets.to_numpy()
        self.starts, self.lengths = offsets[:-1].astype(np.int64), np.diff(offsets).astype(np.int64)
        self.columns = {"input_ids": ids.values.to_numpy()}
        if "token_type_ids" in table.column_names:
            types = table["token_type_ids"].combine_chunks()
            if len(types) == 0 or types.offsets[0].as_py() == offsets[0]:
                self.columns["token_type_ids"] = types.values.to_numpy()
        self.labels = table["labels"].to_numpy()

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
        ends = np.cumsum(lengths)
        tokens = np.arange(int(ends[-1])) + np.repeat(self.starts[rows] - (ends - lengths), lengths)
        batch = {"labels": self.labels[rows], "lengths": lengths}
        batch |= {name: values[tokens] for name, values in self.columns.items()}
        return {name: torch.from_numpy(values.astype(np.int64)) for name, values in batch.items()}

    def whole(self) -> TokenBatch:
        """Return all texts as one batch."""
        return TokenBatch(**self.__getitems__(list(range(len(self)))))
