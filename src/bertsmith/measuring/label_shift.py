"""Shares of a corpus without labelled texts from it: adjusted count under label shift, and a test of that assumption.

Label shift means that only the shares of the classes differ between the held-out texts of a run and the corpus: the
texts of a class are alike. Then the predictions of the corpus are a mixture of those of the classes in the held-out
texts, and the shares follow from a linear system (Forman 2008; Lipton, Wang and Smola 2018, arXiv:1802.03916). The same
holds for every other property of a text, which is what the test uses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.optimize import nnls

from bertsmith.measuring.estimate import LEVEL

ALPHA = 0.05
"""Below this p-value the assumption of label shift is rejected."""
FEWEST = 10
"""Held-out texts that a class needs."""
DRAWS = 1000
"""Draws for an interval."""
_SUM_WEIGHT = 1e4
"""Weight of the constraint that shares sum to 1."""


@dataclass(frozen=True)
class FeatureTotals:
    """Sums of the features of texts, which can be added.

    Attributes:
        texts: number of texts.
        sums: of the features, shape (features,).
        products: of all pairs of features, shape (features, features).
    """

    texts: int
    sums: np.ndarray
    products: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> FeatureTotals:
        """Sum the features of some texts, shape (texts, features)."""
        values = features.astype(np.float64)
        return cls(len(values), values.sum(axis=0), values.T @ values)

    def __add__(self, other: FeatureTotals) -> FeatureTotals:
        """Return the totals of both sets of texts together."""
        return FeatureTotals(self.texts + other.texts, self.sums + other.sums, self.products + other.products)


@dataclass(frozen=True)
class AdjustedCount:
    """Means under the assumption of label shift, with 95 % intervals, all of shape (columns,)."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


def adjusted_count(
    targets: np.ndarray, predicted: np.ndarray, counts: np.ndarray, outcomes: np.ndarray | None = None, *, seed: int = 0
) -> AdjustedCount:
    """Estimate the shares of the classes in a corpus from the predicted labels, or means of other outcomes.

    Args:
        targets, predicted: class indices of the held-out texts, shape (n,); every class occurs.
        counts: texts of the corpus by predicted class, shape (classes,).
        outcomes: of the texts of each class, from 0 to 1, shape (classes, columns); ``None`` for the shares.
        seed: of the draws from the posterior of the error rates, whose percentiles are the interval.
    """
    k, n_corpus = len(counts), counts.sum()
    table = np.zeros((k, k))
    np.add.at(table, (predicted, targets), 1)
    rates = table / table.sum(axis=0)
    shares = counts / n_corpus
    value = nnls(np.vstack([rates, np.full(k, _SUM_WEIGHT)]), np.append(shares, _SUM_WEIGHT))[0]
    value /= value.sum()
    outcomes = np.eye(k) if outcomes is None else outcomes
    rng = np.random.default_rng(seed)
    # Rates of 0 and 1 are not certain: the prior of Jeffreys, spread over the labels that a class can be taken for.
    drawn = rng.gamma(table + 1 / k, size=(DRAWS, k, k))
    drawn /= drawn.sum(axis=1, keepdims=True)
    some = rng.multinomial(int(n_corpus), shares, DRAWS) / n_corpus
    solutions = (np.linalg.pinv(drawn) @ some[:, :, None])[:, :, 0]
    value, solutions = value @ outcomes, solutions @ outcomes
    low, high = np.clip(np.percentile(solutions, [50 * (1 - LEVEL), 50 * (1 + LEVEL)], axis=0), 0, 1)
    return AdjustedCount(value, np.minimum(low, value), np.maximum(high, value))


def label_shift_test(targets: np.ndarray, features: np.ndarray, totals: FeatureTotals, n_classes: int) -> float:
    """Return the p-value of label shift: how likely features that differ this much are, if only the shares changed.

    The mean features of the corpus must be a mixture of the mean features of the classes in the held-out texts. The
    mixture that fits best leaves a distance that follows Hotelling's distribution (the test of overidentifying
    restrictions, Hansen 1982).

    Args:
        targets: class indices of the held-out texts, shape (n,).
        features: of the held-out texts, shape (n, features), with more features than classes.
        totals: of the same features in the corpus.
        n_classes: number of classes.
    """
    features = features.astype(np.float64)
    means = np.stack([features[targets == c].mean(axis=0) for c in range(n_classes)], axis=1)
    spreads = [np.cov(features[targets == c], rowvar=False, ddof=1) for c in range(n_classes)]
    by_class = np.bincount(targets, minlength=n_classes)
    mean = totals.sums / totals.texts
    spread = totals.products / totals.texts - np.outer(mean, mean)
    shares = by_class / len(targets)
    # Shares as differences to the last class, so that they sum to 1.
    design, rest = means[:, :-1] - means[:, -1:], mean - means[:, -1]
    statistic = 0.0
    for _ in range(3):  # the weights depend on the shares
        weights = spread / totals.texts + sum(
            share**2 / n * s for share, n, s in zip(shares, by_class, spreads, strict=True)
        )
        inverse = np.linalg.pinv(weights, hermitian=True)
        solution = np.linalg.pinv(design.T @ inverse @ design) @ (design.T @ inverse @ rest)
        left = rest - design @ solution
        statistic = float(left @ inverse @ left)
        shares = np.append(solution, 1 - solution.sum()).clip(0)
        shares = shares / shares.sum()
    freedom = int(np.linalg.matrix_rank(weights, hermitian=True)) - (n_classes - 1)
    remaining = len(targets) - n_classes - freedom
    if freedom < 1 or remaining < 1:
        return 1.0
    return float(stats.f.sf(statistic * remaining / (freedom * (len(targets) - n_classes)), freedom, remaining))
