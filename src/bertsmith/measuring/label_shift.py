"""Shares of a corpus without labelled texts: adjusted count under label shift, and a test of this assumption.

Under label shift, only the class shares differ between the held-out texts of a run and the corpus; the texts of a class
are alike. The predictions in the corpus are then a mixture of those of each held-out class. A linear system gives the
shares (Forman 2008; Lipton, Wang and Smola 2018, arXiv:1802.03916). Every other property of a text is such a mixture
too, and the test uses this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from scipy import stats
from scipy.optimize import nnls

from bertsmith.bootstrap import LEVEL, RESAMPLES, TAILS, draw_resamples

ALPHA = 0.05
"""Significance level of the test of label shift."""
FEWEST = 10
"""Minimum of held-out texts per class."""
_SUM_WEIGHT = 1e4
"""Weight of the constraint that shares sum to 1."""


@dataclass(frozen=True)
class AdjustedCount:
    """Means under the assumption of label shift.

    Attributes:
        value: the means, shape (columns,).
        low, high: their 95 % intervals, shape (columns,).
        contradicts: whether no class shares explain the predicted labels.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    contradicts: bool


def adjusted_count(
    targets: np.ndarray,
    predicted: np.ndarray,
    counts: np.ndarray,
    outcomes: np.ndarray | None = None,
    *,
    groups: np.ndarray | None = None,
) -> AdjustedCount:
    """Estimate the shares of the classes in a corpus from the predicted labels, or means of other outcomes.

    Args:
        targets, predicted: class indices of the held-out texts, shape (n,); every class occurs.
        counts: texts of the corpus by predicted class, shape (classes,).
        outcomes: of the texts of each class, from 0 to 1, shape (classes, columns); ``None`` for the shares.
        groups: group of each held-out text, such as its author, shape (n,), at least two; ``None`` for independent
            texts.

    The interval has the percentiles of draws from the posterior of the error rates. With groups, the rates come from a
    bootstrap over groups.
    """
    k, n_corpus = len(counts), counts.sum()
    table = np.zeros((k, k))
    np.add.at(table, (predicted, targets), 1)
    rates = table / table.sum(axis=0)
    shares = counts / n_corpus
    value = _mixture(rates, shares)
    outcomes = np.eye(k) if outcomes is None else outcomes
    rng = np.random.default_rng(0)
    # Observed rates of 0 and 1 are uncertain: a Dirichlet prior that is worth one text per class.
    drawn: np.ndarray
    if groups is None:
        drawn = rng.gamma(table + 1 / k, size=(RESAMPLES, k, k))
    else:
        cells, resamples = predicted * k + targets, chain.from_iterable(draw_resamples(len(targets), groups, rng))
        drawn = np.array([np.bincount(cells, times, k * k).reshape(k, k) for times in resamples]) + 1 / k
    drawn /= drawn.sum(axis=1, keepdims=True)
    some = rng.multinomial(int(n_corpus), shares, RESAMPLES) / n_corpus
    solutions = (np.linalg.pinv(drawn) @ some[:, :, None])[:, :, 0]
    tail = (1 - LEVEL) / 2 / max(k - 1, 1)
    contradicts = bool((np.quantile(solutions, 1 - tail, axis=0) < 0).any())
    value, solutions = value @ outcomes, solutions @ outcomes
    # Move draws around an impossible value to the nearest possible one, so that no interval has a width of 0.
    middle = np.median(solutions, axis=0)
    solutions = solutions + np.clip(middle, 0, 1) - middle
    low, high = np.clip(np.percentile(solutions, TAILS, axis=0), 0, 1)
    return AdjustedCount(value, np.minimum(low, value), np.maximum(high, value), contradicts)


def _mixture(columns: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the shares, at least 0 and with the sum 1, whose mixture of columns is closest to the target."""
    scale = _SUM_WEIGHT * max(float(abs(columns).max()), 1.0)
    found = nnls(np.vstack([columns, np.full(columns.shape[1], scale)]), np.append(target, scale))[0]
    return found / found.sum()


def combined_p_value(p_values: Sequence[float]) -> float:
    """Return the p-value of several tests of one hypothesis (Bonferroni)."""
    return min(1.0, len(p_values) * min(p_values))


def label_shift_test(targets: np.ndarray, features: np.ndarray, corpus: np.ndarray, n_classes: int) -> float:
    """Return the p-value of label shift: the probability of features that differ this much if only the shares changed.

    The mean features of the corpus must be a mixture of the mean features of the classes in the held-out texts. The
    mixture that fits best leaves a distance (the test of overidentifying restrictions, Hansen 1982). It follows
    Hotelling's distribution, with the degrees of freedom of Nel and van der Merwe (1986) for unequal variances.

    Args:
        targets: class indices of the held-out texts, shape (n,).
        features: of the held-out texts, shape (n, features), with more features than classes.
        corpus: features of texts of the corpus, shape (texts, features).
        n_classes: number of classes.

    Returns:
        The p-value; 1 if there are too few texts for a test.
    """
    features, corpus = features.astype(np.float64), corpus.astype(np.float64)
    means = np.stack([features[targets == c].mean(axis=0) for c in range(n_classes)], axis=1)
    by_class = np.bincount(targets, minlength=n_classes)
    within = [np.cov(features[targets == c], rowvar=False) / n for c, n in enumerate(by_class)]
    of_corpus, mean = np.cov(corpus, rowvar=False) / len(corpus), corpus.mean(axis=0)
    shares = by_class / len(targets)
    for _ in range(3):  # the weights depend on the shares
        parts = [of_corpus, *(share**2 * v for share, v in zip(shares, within, strict=True))]
        values, vectors = np.linalg.eigh(np.sum(parts, axis=0))
        kept = values > values[-1] * len(values) * np.finfo(float).eps
        whiten = vectors[:, kept] / np.sqrt(values[kept])
        shares = _mixture(whiten.T @ means, whiten.T @ mean)
    left, rank, inverse = whiten.T @ (mean - means @ shares), int(kept.sum()), whiten @ whiten.T
    sizes = np.array([len(corpus), *by_class]) - 1
    whitened = [part @ inverse for part in parts]
    spread = sum((np.trace(w) ** 2 + np.trace(w @ w)) / n for w, n in zip(whitened, sizes, strict=True))
    known, freedom = (rank**2 + rank) / spread, rank - (int((shares > 1e-9).sum()) - 1)
    remaining = known - freedom + 1
    if freedom < 1 or remaining < 1:
        return 1.0
    return float(stats.f.sf(float(left @ left) * remaining / (known * freedom), freedom, remaining))
