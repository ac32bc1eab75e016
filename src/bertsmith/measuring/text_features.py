"""Features of texts for comparisons with the test texts of a run: confidence, length, label and embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DIMENSIONS = 8
"""Maximum number of principal components."""
CLUSTERS = 10
"""Maximum number of clusters."""
FITTED_TEXTS, TEXTS = 10, 20
"""Texts per component or cluster to fit them, and test texts for each in a comparison."""


@dataclass(frozen=True)
class Axes:
    """The principal components of embeddings. Fit them to other texts than the compared ones, for a valid test level.

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
        """Return coordinates along the axes, shape (texts, dimensions)."""
        positions: np.ndarray = (embeddings - self.mean) @ self.directions.T
        return positions


@dataclass(frozen=True)
class Clusters:
    """Clusters of embeddings, such as topics. Fit them to other texts than the compared ones, as `Axes`.

    Attributes:
        centers: shape (clusters, hidden size).
    """

    centers: np.ndarray

    @classmethod
    def fit(cls, embeddings: np.ndarray, n_texts: int) -> Clusters:
        """Fit k-means to embeddings, shape (texts, hidden size), for a comparison with ``n_texts`` test texts."""
        from sklearn.cluster import KMeans

        k = min(CLUSTERS, len(embeddings) // FITTED_TEXTS, n_texts // TEXTS)
        if k < 1:
            return cls(np.zeros((1, embeddings.shape[1])))
        return cls(KMeans(k, n_init=3, random_state=0).fit(embeddings).cluster_centers_)

    def __call__(self, embeddings: np.ndarray) -> np.ndarray:
        """Return indicators of the nearest cluster, without the last cluster, shape (texts, clusters − 1)."""
        distances = (self.centers**2).sum(axis=1) - 2 * embeddings @ self.centers.T
        indicators: np.ndarray = np.eye(len(self.centers))[distances.argmin(axis=1)][:, :-1]
        return indicators


def text_features(
    texts: Sequence[str], confidence: np.ndarray, predicted: np.ndarray, positions: np.ndarray
) -> np.ndarray:
    """Return confidence, length (logarithm of characters), indicators of predicted labels but the last, and positions.

    Args:
        texts: n texts.
        confidence: of their predicted labels, shape (n,).
        predicted: 0 or 1 for each label of each text, shape (n, labels).
        positions: of their embeddings along `Axes` or in `Clusters`, shape (n, columns).
    """
    lengths = np.log1p([len(text) for text in texts])
    return np.column_stack([confidence, lengths, predicted[:, :-1], positions])
