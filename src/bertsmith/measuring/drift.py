"""Compare texts with the test texts of a run: one distance per property, with a threshold for chance differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
"""Probability that all properties stay below their thresholds if nothing has changed."""
DRAWS = 2000
LABELS, CONFIDENCE, NUMBER = "predicted labels", "confidence", "predicted number"
"""Properties of predictions."""


@dataclass(frozen=True)
class Difference:
    """A compared property.

    Attributes:
        name: the property.
        before, after: its mean in the test texts and in the corpus; ``None`` for embeddings and labels.
        distance: between both, in standard deviations of the texts; for counts, see `compare_counts`.
        threshold: the distance is rarely above it by chance.
    """

    name: str
    before: float | None
    after: float | None
    distance: float
    threshold: float

    @property
    def differs(self) -> bool:
        """Whether the distance is larger than chance explains."""
        return self.distance > self.threshold


def compare_scalars(names: Sequence[str], reference: np.ndarray, sample: np.ndarray, level: float) -> list[Difference]:
    """Compare the means of some features, such as the length.

    Args:
        names: of the k features.
        reference, sample: of the test texts and of texts of the corpus, shape (n, k) and (m, k).
        level: confidence of each threshold.
    """
    before, after = reference.mean(axis=0), sample.mean(axis=0)
    # Without a change, both have the same distribution, so its spread comes from all texts.
    distances = abs(after - before) / np.maximum(np.concatenate([reference, sample]).std(axis=0), 1e-12)
    threshold = NormalDist().inv_cdf(0.5 + level / 2) * float(np.sqrt(1 / len(reference) + 1 / len(sample)))
    return [
        Difference(name, float(before[i]), float(after[i]), float(distances[i]), threshold)
        for i, name in enumerate(names)
    ]


def compare_embeddings(reference: np.ndarray, sample: np.ndarray, level: float) -> Difference | None:
    """Compare mean embeddings by the Mahalanobis distance; ``None`` with few texts.

    Args:
        reference, sample: principal components of the embeddings of test texts and of texts of the corpus, shape
            (n, k) and (m, k).
        level: confidence of the threshold, from Hotelling's distribution.
    """
    from scipy import stats

    n, m, k = len(reference), len(sample), reference.shape[1]
    if not k or n + m - k < 2 or min(n, m) < 2:
        return None
    within = [(len(some) - 1) * np.cov(some, rowvar=False).reshape(k, k) for some in (reference, sample)]
    inverse = np.linalg.pinv((within[0] + within[1]) / (n + m - 2), hermitian=True)
    difference = sample.mean(axis=0) - reference.mean(axis=0)
    limit = k * (n + m - 2) / (n + m - k - 1) * stats.f.ppf(level, k, n + m - k - 1)
    distance = float(np.sqrt(difference @ inverse @ difference))
    return Difference("embeddings", None, None, distance, float(np.sqrt(limit * (1 / n + 1 / m))))


def compare_counts(
    name: str,
    reference: np.ndarray,
    counts: np.ndarray,
    level: float,
    seed: int = 0,
    *,
    texts: tuple[int, int] | None = None,
) -> Difference:
    """Compare shares, such as those of the predicted labels.

    The distance is the total variation. If a text can have any number of labels, it is the largest difference of the
    share of a label.

    Args:
        name: of the property.
        reference, counts: numbers of test texts and of texts of the corpus, shape (categories,).
        level: confidence of the threshold.
        seed: of the draws that give the threshold.
        texts: all test texts and all texts of the corpus, if a text can have any number of labels.
    """
    n, n_corpus = texts or (int(reference.sum()), int(counts.sum()))
    both = (reference + counts) / (n + n_corpus)
    rng = np.random.default_rng(seed)

    def draw(size: int) -> np.ndarray:
        return rng.multinomial(size, both, DRAWS) if texts is None else rng.binomial(size, both, (DRAWS, len(both)))

    def distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        differences = abs(one / n - other / n_corpus)
        return differences.sum(axis=-1) / 2 if texts is None else differences.max(axis=-1)

    threshold = float(np.quantile(distances(draw(n), draw(n_corpus)), level))
    return Difference(name, None, None, float(distances(reference, counts)), threshold)
