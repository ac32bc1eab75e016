"""Features of texts for comparisons with the test texts of a run: confidence, length, label and embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

DIMENSIONS = 8
"""Maximum number of principal components."""
CLUSTERS = 10
"""Maximum number of clusters."""
FITTED_TEXTS, TEXTS = 10, 20
"""Texts per component or cluster to fit them, and test texts for each in a comparison."""
Coordinates = Callable[[np.ndarray], np.ndarray]
"""Returns the coordinates of embeddings, shape (texts, hidden size)."""


def fit_axes(embeddings: np.ndarray, n_texts: int) -> Coordinates:
    """Fit principal components, and return a function for coordinates along them, shape (texts, dimensions).

    Fit them to other texts than the compared ones, for a valid test level.

    Args:
        embeddings: of the texts to fit, shape (texts, hidden size).
        n_texts: number of test texts in the comparison.
    """
    from sklearn.decomposition import PCA

    k = min(DIMENSIONS, len(embeddings) // FITTED_TEXTS, n_texts // TEXTS, embeddings.shape[1])
    along: Coordinates = PCA(k, svd_solver="full").fit(embeddings).transform if k else _no_columns
    return along


def fit_clusters(embeddings: np.ndarray, n_texts: int) -> Coordinates:
    """Fit k-means, such as topics, and return a function for indicators of the nearest cluster but the last.

    Arguments as for `fit_axes`. The shape of the indicators is (texts, clusters − 1).
    """
    from sklearn.cluster import KMeans

    k = min(CLUSTERS, len(embeddings) // FITTED_TEXTS, n_texts // TEXTS)
    if not k:
        return _no_columns
    nearest = KMeans(k, n_init=3, random_state=0).fit(embeddings).predict
    return lambda others: np.eye(k)[nearest(others)][:, :-1]


def _no_columns(embeddings: np.ndarray) -> np.ndarray:
    return np.zeros((len(embeddings), 0))


def text_features(
    texts: Sequence[str], confidence: np.ndarray, predicted: np.ndarray, coordinates: np.ndarray
) -> np.ndarray:
    """Return confidence, logarithm of the length, indicators of predicted labels but the last, and coordinates.

    Args:
        texts: n texts.
        confidence: of their predicted labels, shape (n,).
        predicted: 0 or 1 for each label of each text, shape (n, labels).
        coordinates: of their embeddings along axes or in clusters, shape (n, columns).
    """
    lengths = np.log1p([len(text) for text in texts])
    return np.column_stack([confidence, lengths, predicted[:, :-1], coordinates])
