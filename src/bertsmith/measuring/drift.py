"""How texts differ from the test texts of a run: one number per property, with a threshold by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from bertsmith.measuring.label_shift import FeatureTotals

LEVEL = 0.95
"""Without any change, all properties together stay below their thresholds with this probability."""
DRAWS = 2000


@dataclass(frozen=True)
class Difference:
    """One property that was compared.

    Attributes:
        name: the property.
        before, after: its mean in the test texts and in the corpus; ``None`` for topics and shares of labels.
        distance: how far apart they are: in standard deviations of the test texts, or for the labels the share of texts
            that would have to change their label.
        threshold: the distance that chance alone exceeds rarely.
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


def compare_scalars(
    names: Sequence[str], reference: np.ndarray, totals: FeatureTotals, level: float
) -> list[Difference]:
    """Compare the means of some features, such as the length.

    Args:
        names: of the first k features.
        reference: of the test texts, shape (n, features).
        totals: of the same features in the corpus.
        level: confidence of each threshold.
    """
    n, spread = len(reference), reference.std(axis=0, ddof=1)
    means, after = reference.mean(axis=0), totals.sums / totals.texts
    variance = np.maximum(np.diag(totals.products) / totals.texts - after**2, 0)
    found = []
    for i, name in enumerate(names):
        scale = max(float(spread[i]), float(np.sqrt(variance[i])) if spread[i] == 0 else 0, 1e-12)
        error = np.sqrt(spread[i] ** 2 / n + variance[i] / totals.texts)
        threshold = float(stats.norm.ppf(0.5 + level / 2) * max(error, 1e-12) / scale)
        found.append(
            Difference(name, float(means[i]), float(after[i]), abs(float(after[i] - means[i])) / scale, threshold)
        )
    return found


def compare_topics(reference: np.ndarray, totals: FeatureTotals, level: float) -> Difference | None:
    """Compare what texts are about: the distance of Mahalanobis between the mean positions, or ``None`` without topics.

    Args:
        reference: positions of the test texts, shape (n, dimensions).
        totals: of the positions in the corpus.
        level: confidence of the threshold.
    """
    n, k = reference.shape
    if not k or n - k < 2:
        return None
    mean = totals.sums / totals.texts
    before = np.cov(reference, rowvar=False).reshape(k, k)
    after = totals.products / totals.texts - np.outer(mean, mean)
    difference = mean - reference.mean(axis=0)
    pooled = np.linalg.pinv(before / n + after / totals.texts, hermitian=True)
    rescaled = float(np.sqrt(1 / n + 1 / totals.texts))
    limit = k * (n - 1) / (n - k) * stats.f.ppf(level, k, n - k)
    distance = float(np.sqrt(difference @ pooled @ difference)) * rescaled
    return Difference("topics", None, None, distance, float(np.sqrt(limit)) * rescaled)


def compare_labels(reference: np.ndarray, counts: np.ndarray, level: float, seed: int = 0) -> Difference:
    """Compare the shares of the predicted labels by their total variation.

    Args:
        reference, counts: test texts and texts of the corpus by predicted class, shape (classes,).
        level: confidence of the threshold.
        seed: of the draws that give the threshold.
    """
    n, n_corpus = int(reference.sum()), int(counts.sum())
    both = (reference + counts) / (n + n_corpus)
    rng = np.random.default_rng(seed)
    drawn = abs(rng.multinomial(n, both, DRAWS) / n - rng.multinomial(n_corpus, both, DRAWS) / n_corpus).sum(axis=1) / 2
    distance = float(abs(reference / n - counts / n_corpus).sum() / 2)
    return Difference("predicted labels", None, None, distance, float(np.quantile(drawn, level)))
