"""Correct the mean of predictions by a labelled sample, with a 95 % interval: arrays in, arrays out.

Outcomes are columns of numbers from 0 to 1. A class or label is 0 or 1; bertsmith scales an ordered label to this
range. It scales numbers too, but some can be outside of the range. The method is the difference estimator of Särndal,
Swensson and Wretman (1992, chapter 6). It adds the mean error in the labelled sample to the mean prediction of the
corpus. With equal inclusion probabilities, this is PPI++ (Angelopoulos, Duchi and Zrnic 2023, arXiv:2311.01453). With
known unequal probabilities, it is design-based supervised learning (Egami, Hinck, Stewart and Wei 2023,
arXiv:2306.04746) as a Hájek estimator, with the same power tuning.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from bertsmith.bootstrap import LEVEL

TARGET = 0.01
"""Half the width of the interval that `labels_for_target` plans for: one percentage point."""
RELEVANT = 0.1
"""Smallest difference between the mean predictions of sample and corpus that `mean_z_score` counts."""


@dataclass(frozen=True)
class Totals:
    """Sums over the texts of a corpus, sufficient for an estimate. Totals of several parts can be added.

    Attributes:
        texts: number of texts.
        sums: of the predictions, shape (columns,).
        squares: of their squares, shape (columns,).
        counts: of the predicted labels, or sums of the predicted numbers, for naive counting, shape (columns,).
    """

    texts: int
    sums: np.ndarray
    squares: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, predictions: np.ndarray, counted: np.ndarray) -> Totals:
        """Sum predictions, and predicted outcomes for naive counting, each of shape (texts, columns)."""
        values = predictions.astype(np.float64)
        return cls(len(values), values.sum(axis=0), (values**2).sum(axis=0), counted.sum(axis=0).astype(np.float64))

    def __add__(self, other: Totals) -> Totals:
        """Return the totals of both corpora as one."""
        return Totals(
            self.texts + other.texts,
            self.sums + other.sums,
            self.squares + other.squares,
            self.counts + other.counts,
        )

    @property
    def mean(self) -> np.ndarray:
        """Mean prediction, shape (columns,)."""
        return self.sums / self.texts

    @property
    def naive(self) -> np.ndarray:
        """The uncorrected estimate: share of texts with each predicted label, shape (columns,)."""
        return self.counts / self.texts


@dataclass(frozen=True)
class Sample:
    """Labelled texts of a corpus with their predictions.

    Attributes:
        outcomes: the true values, from 0 to 1, shape (n, columns).
        predictions: of a model that was not trained on these texts, shape (n, columns).
        inclusion: inclusion probability of each text, up to a common factor if ``in_corpus`` is false, shape (n,).
        in_corpus: whether the texts are part of the corpus. If so, the interval is for the share in this corpus;
            otherwise for the population that sample and corpus both come from.
        clusters: the cluster of each text, such as its author, shape (n,); ``None`` if texts were drawn one by one.
        bounded: whether all true values are from 0 to 1.
    """

    outcomes: np.ndarray
    predictions: np.ndarray
    inclusion: np.ndarray
    in_corpus: bool = True
    clusters: np.ndarray | None = None
    bounded: bool = True

    def __len__(self) -> int:
        return len(self.outcomes)

    def take(self, rows: np.ndarray) -> Sample:
        """Return the texts of a mask or of positions."""
        clusters = None if self.clusters is None else self.clusters[rows]
        return replace(
            self,
            outcomes=self.outcomes[rows],
            predictions=self.predictions[rows],
            inclusion=self.inclusion[rows],
            clusters=clusters,
        )

    @property
    def equal_chances(self) -> bool:
        """Whether all texts have the same inclusion probability."""
        return bool(np.allclose(self.inclusion, self.inclusion[0]))

    @property
    def units(self) -> np.ndarray:
        """Index of the sampling unit of each text, the text or its cluster, shape (n,)."""
        if self.clusters is None:
            return np.arange(len(self))
        return np.unique(self.clusters, return_inverse=True)[1]


@dataclass(frozen=True)
class Estimates:
    """Estimated means with their 95 % intervals, all of shape (columns,).

    Attributes:
        value: the corrected means.
        low, high: bounds of the intervals.
        error: standard errors.
        tuning: weight of the predictions, from 0 (not used) to 1; if the sample is in the corpus, to 1 plus the ratio
            of labelled to other texts.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    error: np.ndarray
    tuning: np.ndarray


def mean_z_score(sample: Sample, corpus: Totals) -> float:
    """Return how many standard errors the mean prediction of a simple random sample is from that of the corpus.

    The largest of several columns counts, but only differences above `RELEVANT`: the means of rare classes are skewed.
    """
    variance = np.maximum(corpus.squares / corpus.texts - corpus.mean**2, 1e-12)
    difference = np.abs(sample.predictions.mean(axis=0) - corpus.mean)
    return float(np.where(difference > RELEVANT, difference / np.sqrt(variance / len(sample)), 0).max())


def order_z_score(outcomes: np.ndarray) -> float:
    """Return how many standard errors the correlation of outcomes with their order is from 0.

    The largest of several columns counts. In random order, the correlation has the variance 1 / (n − 1), whatever the
    outcomes are (the permutation distribution).

    Args:
        outcomes: of at least 2 texts in their order, shape (n, columns).
    """
    position = np.arange(len(outcomes)) - (len(outcomes) - 1) / 2
    centred = outcomes - outcomes.mean(axis=0)
    scale = np.sqrt((position**2).sum() * (centred**2).sum(axis=0))
    return float(np.sqrt(len(outcomes) - 1) * np.max(np.abs(position @ centred) / np.maximum(scale, 1e-12)))


def corrected_means(sample: Sample, totals: Totals, *, tuning: np.ndarray | None = None) -> Estimates:
    """Estimate the mean of every outcome column in a corpus.

    If the labelled texts alone give a narrower interval for a column, the predictions have a weight of 0 there. So no
    interval is wider than without a model, also with a few texts of a rare class.

    Args:
        sample: at least 2 labelled texts or clusters.
        totals: of the corpus.
        tuning: weight of the predictions, shape (columns,), such as that of a larger sample; tuned if ``None``.
    """
    found, alone = _estimate(sample, totals, tuning), labelled_means(sample, totals)
    narrower = alone.high - alone.low < found.high - found.low
    return Estimates(*(np.where(narrower, vars(alone)[name], value) for name, value in vars(found).items()))


def labelled_means(sample: Sample, totals: Totals) -> Estimates:
    """Estimate the means from the labelled texts alone, without predictions."""
    return _estimate(sample, totals, np.zeros(sample.outcomes.shape[1]))


def _estimate(sample: Sample, totals: Totals, tuning: np.ndarray | None) -> Estimates:
    """Estimate the means with weights of the predictions, shape (columns,); tuned if ``None``.

    The standard errors come from a jackknife. It leaves out one text or one cluster at a time, and repeats the power
    tuning. So it does not underestimate the variance of rare classes, where a few texts decide.
    """
    units = sample.units
    n_units = int(units.max()) + 1
    whole = _moments(sample, np.zeros((1, len(sample)), dtype=bool))
    tuned = _tuning(whole, sample, totals) if tuning is None else tuning[None]
    value = _estimates(whole, tuned, totals)[0]
    # In chunks, so that memory does not grow with the square of the sample.
    parts = []
    for some in np.array_split(np.arange(n_units), max(1, n_units * len(sample) // 4_000_000)):
        left = _moments(sample, units[None, :] == some[:, None])
        parts.append(_estimates(left, _tuning(left, sample, totals) if tuning is None else tuning[None], totals))
    deviations = np.concatenate(parts) - value
    chance = np.bincount(units, sample.inclusion, n_units) / np.bincount(units, minlength=n_units)
    remaining = 1 - chance if sample.in_corpus else np.ones(n_units)  # finite population correction
    variance = (n_units - 1) / n_units * (remaining[:, None] * deviations**2).sum(axis=0)
    if not sample.in_corpus:
        variance += tuned[0] ** 2 * (totals.squares / totals.texts - totals.mean**2) / totals.texts
    n, alone, mistake = _precision(chance, remaining)
    if not sample.bounded:
        half = stats.t.ppf(0.5 + LEVEL / 2, max(n - 1, 1)) * np.sqrt(variance)
        return Estimates(value, value - half, value + half, np.sqrt(variance), tuned[0])
    value = np.clip(value, 0, 1)
    sizes = np.bincount(units)
    mistake *= (sizes.min() / sizes.mean()) ** 2  # in the smallest cluster
    low, high = share_interval(value, variance, n, alone=alone, mistake=mistake)
    return Estimates(value, low, high, np.sqrt(variance), tuned[0])


def _precision(chance: np.ndarray, remaining: np.ndarray) -> tuple[float, float, float]:
    """Return the effective sample size and two variances, from the inclusion probabilities of n units.

    Args:
        chance: inclusion probability of each unit, shape (n,).
        remaining: for each unit, the unlabelled share of the units that it represents, shape (n,).

    Returns:
        The effective number of units (Satterthwaite 1946, for outcomes with equal variances), n for equal
        probabilities; the variance of the weighted mean of outcomes with a variance of 1; and the variance that one
        wrong prediction causes, as the mean over the units of the corpus that are not labelled.
    """
    share = 1 / chance / (1 / chance).sum()
    parts, unknown = remaining * share**2, remaining * share
    alone = float(parts.sum())
    n = alone**2 / max(float((parts**2).sum()), 1e-99)
    return n, alone, float(unknown @ parts) / max(float(unknown.sum()), 1e-99)


def share_interval(
    value: np.ndarray, variance: np.ndarray, n: float, *, alone: float | None = None, mistake: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the score interval (Wilson 1927) of shares, for the size of a random sample with the same variance.

    It also applies to means of numbers from 0 to 1, whose variance is at most that of a share.

    Args:
        value: shares from 0 to 1, shape (columns,).
        variance: their variances, shape (columns,).
        n: effective number of labelled texts or clusters.
        alone: the variance of the labelled texts alone, relative to that of an outcome; 1 / n if ``None``.
        mistake: the variance that a single wrong prediction in the sample causes; 1 / n² if ``None``.
    """
    plain = value * (1 - value)
    alone = 1 / n if alone is None else alone
    # Without mistakes, the variance is 0: use that of one mistake, or that without a model if it is smaller.
    variance = np.maximum(variance, np.minimum(1 / n**2 if mistake is None else mistake, plain * alone))
    certain = variance < 1e-15  # a standard error below 3e-8 is a rounding error: all outcomes are equal
    worth = np.where(certain, 1 / max(alone, 1e-15), plain / np.maximum(variance, 1e-15))
    worth = np.maximum(worth, 1e-12)
    t2 = stats.t.ppf(0.5 + LEVEL / 2, max(n - 1, 1)) ** 2
    center = (value + t2 / (2 * worth)) / (1 + t2 / worth)
    half = np.sqrt(t2 * (plain / worth + t2 / (4 * worth**2))) / (1 + t2 / worth)
    return np.clip(center - half, 0, 1), np.clip(center + half, 0, 1)


def labels_for_target(estimates: Estimates, n: int, n_corpus: int, alone: Estimates | None = None) -> np.ndarray:
    """Return how many labelled texts in all give intervals of ± `TARGET`, shape (columns,).

    Outside of the corpus, the variance with n texts is s (1 − r N / (N + n)) / n. Here s / n is that of the labelled
    texts alone, r the squared correlation with the predictions, and N the size of the corpus.

    Args:
        estimates: of a random sample.
        n: its number of texts.
        n_corpus: number of texts in the corpus.
        alone: the estimates from the labelled texts alone, if these are not in the corpus.
    """
    z = stats.norm.ppf(0.5 + LEVEL / 2)
    target = TARGET**2 / z**2
    if alone is None:
        per_text = estimates.error**2 / max(1 / n - 1 / n_corpus, 1e-12)
        needed = 1 / (target / np.maximum(per_text, 1e-12) + 1 / n_corpus)
    else:
        s = n * alone.error**2
        rest = np.maximum(s * n_corpus - (s - n * estimates.error**2) * (n_corpus + n), 0)  # s (1 − r) N
        linear = s - target * n_corpus
        needed = (linear + np.sqrt(linear**2 + 4 * target * rest)) / (2 * target)
    needed = np.ceil(np.maximum(needed, z / TARGET))  # the rule of one mistake, see `share_interval`
    return np.minimum(needed, n_corpus if alone is None else np.inf).astype(np.int64)


def correlations(sample: Sample) -> np.ndarray:
    """Return the correlation ρ of predictions and outcomes in a sample, from 0 to 1, shape (columns,).

    With power tuning, intervals are at best √(1 − ρ²) times as wide as those of the labelled texts alone.
    """
    weights = 1 / sample.inclusion
    y, f = (v - np.average(v, axis=0, weights=weights) for v in (sample.outcomes, sample.predictions))
    spread = np.sqrt((weights @ y**2) * (weights @ f**2))
    return np.clip(weights @ (y * f) / np.maximum(spread, 1e-12), 0, 1)


def sum_totals(parts: Iterable[Totals]) -> Totals:
    """Return the sum of the totals of one or more parts of a corpus."""
    first, *others = parts
    return sum(others, start=first)


@dataclass(frozen=True)
class _Moments:
    """Weighted moments of subsets of a sample, each of shape (subsets, columns), and the size of each subset."""

    outcome: np.ndarray
    prediction: np.ndarray
    covariance: np.ndarray
    texts: np.ndarray


def _moments(sample: Sample, left_out: np.ndarray) -> _Moments:
    """Return the moments without some texts; ``left_out`` has shape (subsets, n)."""
    weights = 1 / sample.inclusion
    kept = np.where(left_out, 0.0, weights)
    total = kept.sum(axis=1, keepdims=True)
    y, f = sample.outcomes.astype(np.float64), sample.predictions.astype(np.float64)
    outcome, prediction = kept @ y / total, kept @ f / total
    covariance = kept @ (y * f) / total - outcome * prediction
    return _Moments(outcome, prediction, covariance, (~left_out).sum(axis=1, keepdims=True))


def _tuning(moments: _Moments, sample: Sample, totals: Totals) -> np.ndarray:
    """Return the weights of the predictions with the smallest variances, shape (subsets, columns)."""
    f = sample.predictions.astype(np.float64)
    n, sums, squares, unlabelled = totals.texts, totals.sums, totals.squares, totals.texts
    if sample.in_corpus:
        unlabelled = max(n - len(sample), 1)
    else:
        n, sums, squares = n + len(sample), sums + f.sum(axis=0), squares + (f**2).sum(axis=0)
    variance = np.maximum(squares - sums**2 / n, 0) / max(n - 1, 1)
    used = np.where(variance > 1e-12, moments.covariance / np.maximum(variance, 1e-12), 0)
    ratio = 1 + moments.texts / unlabelled
    tuning: np.ndarray = np.clip(used / ratio, 0, 1)
    # The difference to the unlabelled texts exceeds that to the whole corpus by this ratio.
    return tuning * ratio if sample.in_corpus else tuning


def _estimates(moments: _Moments, tuning: np.ndarray, totals: Totals) -> np.ndarray:
    """Return the estimate of each subset, shape (subsets, columns)."""
    return moments.outcome + tuning * (totals.mean - moments.prediction)
