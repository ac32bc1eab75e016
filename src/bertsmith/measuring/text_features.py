"""Features of texts for comparisons with the test texts of a run: length, and what the model makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DIMENSIONS = 24
"""Most dimensions of positions."""
FITTED_TEXTS, TEXTS = 10, 20
"""Texts per dimension that fit the axes, and test texts per dimension that a comparison needs."""


@dataclass(frozen=True)
class Axes:
    """The principal components of the embeddings of some texts, which no comparison uses: it would reject too often.

    Attributes:
        mean: of the embeddings, shape (hidden size,).
        directions: orthonormal, shape (dimensions, hidden size).
    """

    mean: np.ndarray
    directions: np.ndarray

    @classmethod
    def fit(cls, embeddings: np.ndarray, n_texts: int) -> Axes:
        """Fit axes to embeddings, shape (texts, hidden size), for a comparison with ``n_texts`` test texts."""
        k = min(DIMENSIONS, len(embeddings) // FITTED_TEXTS, n_texts // TEXTS, embeddings.shape[1])
        if k < 1:
            return cls(np.zeros(embeddings.shape[1]), np.zeros((0, embeddings.shape[1])))
        mean = embeddings.mean(axis=0)
        return cls(mean, np.linalg.svd(embeddings - mean, full_matrices=False)[2][:k])

    def __call__(self, embeddings: np.ndarray) -> np.ndarray:
        """Return positions along the axes, shape (texts, dimensions)."""
        positions: np.ndarray = (embeddings - self.mean) @ self.directions.T
        return positions


def text_features(texts: Sequence[str], probabilities: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Return confidence, length (logarithm of characters), predicted labels but the last, and positions.

    Args:
        texts: n texts.
        probabilities: of their classes, shape (n, classes).
        positions: of their embeddings, shape (n, dimensions).
    """
    predicted = np.eye(probabilities.shape[1])[probabilities.argmax(axis=1)][:, :-1]
    lengths = np.log1p([len(text) for text in texts])
    return np.column_stack([probabilities.max(axis=1), lengths, predicted, positions])
