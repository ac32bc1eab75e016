"""Batches straight from the memory of Arrow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

if TYPE_CHECKING:
    import datasets


class Rows(Dataset[Any]):  # type: ignore[misc]  # torch is untyped here
    """Encoded texts, of which a batch is made without a Python object for every token.

    Args:
        encoded: rows with lists of numbers, and ``labels``.
        padding: what is put after a text, by column; 0 unless given.
        left: put it before a text instead.
        multiple: widths are a multiple of this.
    """

    def __init__(
        self, encoded: datasets.Dataset, padding: Mapping[str, int], *, left: bool = False, multiple: int = 8
    ) -> None:
        self.padding, self.left, self.multiple = padding, left, multiple
        table = encoded.with_format("arrow")[:]
        self.lists: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.numbers: dict[str, np.ndarray] = {}
        for name in table.column_names:
            column = table[name].combine_chunks()
            if hasattr(column, "offsets"):
                self.lists[name] = (column.offsets.to_numpy(), column.values.to_numpy())
            else:
                self.numbers[name] = column.to_numpy()
        self.n = len(encoded)

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """Return a batch: int64, shape (texts, width) or (texts,)."""
        batch = {name: values[rows] for name, values in self.numbers.items()}
        for name, (offsets, values) in self.lists.items():
            starts = offsets[rows]
            lengths = offsets[np.add(rows, 1)] - starts
            width = -(-int(lengths.max()) // self.multiple) * self.multiple
            place = np.arange(width) - ((width - lengths)[:, None] if self.left else 0)
            filled = (place >= 0) & (place < lengths[:, None])
            batch[name] = np.full((len(rows), width), self.padding.get(name, 0))
            batch[name][filled] = values[(starts[:, None] + place)[filled]]
        return {name: torch.from_numpy(values.astype(np.int64)) for name, values in batch.items()}
