"""Texts that a model reads in windows: sums and means over the windows of a text, and samples of windows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def total(values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Sum over the windows of each text, shape (texts, …), from shape (windows, …).

    Args:
        values: of the windows, in the order of the texts.
        counts: number of windows of each text, on the device of the values, int64, shape (texts,).
    """
    text = torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=len(values))
    return values.new_zeros(len(counts), *values.shape[1:]).index_add(0, text, values)


def mean(logits: torch.Tensor, counts: torch.Tensor | None) -> torch.Tensor:
    """Return the mean logits of the windows of each text, shape (texts, outputs).

    Args:
        logits: of the windows, in the order of the texts, shape (windows, outputs).
        counts: as for `total`; ``None`` if every text is a single window.
    """
    return logits if counts is None else total(logits, counts) / counts[:, None]


def sample(counts: np.ndarray, most: int, seed: Sequence[int]) -> np.ndarray:
    """Sample windows of each text without replacement, and return their positions in ascending order.

    Args:
        counts: number of windows of each text, shape (texts,).
        most: number of windows to sample; all windows of a text that has fewer.
        seed: determines the sample.
    """
    text = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((np.random.default_rng(seed).random(len(text)), text))
    rank = np.arange(len(text)) - np.repeat(np.cumsum(counts) - counts, counts)
    result: np.ndarray = np.sort(order[rank < most])
    return result
