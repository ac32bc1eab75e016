"""Expected gain of more labels: a learning curve from nested subsets, a power law, and a stopping rule.

Scores grow with the number of labels n about like a − b·n^−c (Figueroa et al. 2012, doi:10.1186/1472-6947-12-8).
Cross-validated scores on nested subsets of the labelled texts give the curve. Resampled texts give the interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from bertsmith.bootstrap import TAILS, draw_resamples
from bertsmith.errors import counted

FRACTIONS = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Sizes of the nested subsets, as shares of the training folds."""
FOLDS, REPEATS = 4, 4
LARGE_FROM = 2
"""Index in `FRACTIONS` from which on the scores show the variation between trainings on all labels."""
RESAMPLES = 200
EXPONENTS = np.linspace(0.1, 1.5, 15)
FEWEST, MOST = 80, 2000
"""Minimum number of labelled texts for a curve, and maximum number that it uses."""
WORTHWHILE = 0.01
"""The labels are enough if more of them gain less than this."""
Predict = Callable[[np.ndarray, np.ndarray], np.ndarray | None]
"""Returns the scores of texts, given by position, after training on others; ``None`` if training is impossible."""
Adjust = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Returns adjusted scores of n texts, for their scores and their folds (−1 for unused texts), shape (n,)."""
Score = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Returns the score on each resample for counts of the texts, shape (resamples, n), and predicted scores of n texts."""


class Gain(NamedTuple):
    """A gain of the score: expected value, 95 % interval of one training, and upper bound of the expected value."""

    value: float
    low: float
    high: float
    most: float


@dataclass(frozen=True)
class Curve:
    """A learning curve.

    Attributes:
        sizes: numbers of labelled texts, shape (sizes,).
        scores: their scores on resampled texts, shape (resamples, sizes); the first resample has all texts once.
        noise: standard deviation of the score between models that are trained on different texts.
    """

    sizes: np.ndarray
    scores: np.ndarray
    noise: float = 0.0

    def gain(self, now: int, more: int, *, seed: int = 0) -> Gain:
        """Return the gain to expect from more labels."""
        gains = _extrapolate(self.sizes, self.scores, now, more)
        value, others = float(gains[0]), gains[1:]
        noise = self.noise * np.random.default_rng(seed).normal(size=(100, 1))
        low, high = np.percentile(others + noise, TAILS).tolist()
        return Gain(value, min(low, value), max(high, value), max(float(np.percentile(others, TAILS[1])), value))


@dataclass(frozen=True)
class ExpectedGain:
    """The expected gain of more labels.

    Attributes:
        labels: number of labelled texts.
        more: number of further labels that is considered.
        gain, low, high: expected gain of the score from these labels, with its 95 % interval; ``None`` if unknown.
        most: upper bound of the mean gain over trainings on different texts.
        hours: time for these labels; ``None`` if unknown.
        accuracy, accuracy_low, accuracy_high: on the random texts, with its 95 % interval; ``None`` if unknown.
        accuracy_name: what the accuracy is, as the start of a sentence.
        random: number of random texts.
        ceiling: share of random texts to which two coders gave the same labels, and the upper bound of its 95 %
            interval; ``None`` if unknown.
        metric: name of the score that is gained.
        enough: whether to stop.
        reason: why.
    """

    labels: int
    more: int
    gain: float | None = None
    low: float | None = None
    high: float | None = None
    most: float | None = None
    hours: float | None = None
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    accuracy_name: str = "Accuracy"
    random: int = 0
    ceiling: tuple[float, float] | None = None
    metric: str = "macro-F1"
    enough: bool = False
    reason: str = ""

    @property
    def sentence(self) -> str:
        """The estimate in words."""
        parts = []
        if self.accuracy is not None:
            parts.append(
                f"{self.accuracy_name} is {self.accuracy:.2f} (95 % interval {self.accuracy_low:.2f} to "
                f"{self.accuracy_high:.2f}) on {counted(self.random, 'random text')}, with a regression on "
                "embeddings."
            )
        if self.gain is not None:
            time = "" if self.hours is None else f", and take about {self.hours:.1f} h"
            interval = f"(95 % interval for a single trained model: {self.low:+.2f} to {self.high:+.2f})"
            labels = counted(self.more, "more label")
            parts.append(f"{labels} would change {self.metric} by about {self.gain:+.2f} {interval}{time}.")
        return " ".join([*parts, f"{'Enough' if self.enough else 'Not enough yet'}: {self.reason}."])

    def to_dict(self) -> dict[str, Any]:
        """Return the estimate, JSON-ready."""
        return {**asdict(self), "sentence": self.sentence}


def learning_curve(n: int, predict: Predict, score: Score, *, seed: int, adjust: Adjust | None = None) -> Curve | None:
    """Cross-validate on nested subsets of n labelled texts.

    Args:
        n: number of labelled texts, of which a random `MOST` are used.
        predict: trains and predicts.
        score: scores predictions.
        seed: of folds, subsets and resamples.
        adjust: adjusts the predictions of each fold with those of the others, such as for a decision rule.

    Returns:
        The curve, or ``None`` if the texts are too few.
    """
    if n < FEWEST:
        return None
    rng = np.random.default_rng(seed)
    used = rng.permutation(n)[:MOST]
    n_used = len(used)
    drawn = np.zeros((RESAMPLES + 1, n), dtype=np.int64)
    drawn[:, used] = np.concatenate([np.ones((1, n_used)), *draw_resamples(n_used, None, rng, RESAMPLES)])
    sizes = np.array([round(share * n_used * (FOLDS - 1) / FOLDS) for share in FRACTIONS])
    total, alone = np.zeros((len(drawn), len(sizes))), np.empty((REPEATS, len(sizes)))
    for repeat in range(REPEATS):
        order = rng.permutation(used)
        fold = np.full(n, -1)
        fold[order] = np.arange(n_used) % FOLDS
        for i, size in enumerate(sizes.tolist()):
            parts: dict[int, np.ndarray] = {}
            for f in range(FOLDS):
                inside = order[fold[order] != f][:size]
                predicted = predict(inside, np.flatnonzero(fold == f))
                if predicted is None:
                    return None
                parts[f] = predicted
            scores = np.zeros((n, parts[0].shape[1]))
            for f, predicted in parts.items():
                scores[fold == f] = predicted
            found = score(drawn, scores if adjust is None else adjust(scores, fold))
            total[:, i] += found / REPEATS
            alone[repeat, i] = found[0]
    # The scores of a repeat come from several models, so they vary less than those of one model.
    noise = np.sqrt(FOLDS * alone[:, LARGE_FROM:].var(axis=0, ddof=1).mean())
    return Curve(sizes, total, float(noise))


def stopping_rule(estimate: ExpectedGain) -> tuple[bool, str]:
    """Return whether the labels are enough, and why."""
    if not estimate.more:
        return True, "every text of the pool has a label"
    if estimate.most is None:
        few = estimate.labels < FEWEST
        return False, f"an estimate needs {f'at least {FEWEST} labelled texts' if few else 'more texts of rare labels'}"
    if estimate.ceiling is not None and estimate.accuracy is not None and estimate.accuracy_low is not None:
        share, share_high = estimate.ceiling
        # The lower bound of the difference of two shares from the bounds of each (Newcombe 1998, method 10).
        margin = math.hypot(estimate.accuracy - estimate.accuracy_low, share_high - share)
        if estimate.accuracy - share >= margin:
            return (
                True,
                "the regression agrees with the coders at least as often as the coders with each other "
                f"(two coders agree on {share:.2f} of the random texts)",
            )
    labels, mean = counted(estimate.more, "more label"), f"the mean {estimate.metric} of many trained models"
    if estimate.most < WORTHWHILE:
        return True, f"{labels} would raise {mean} by less than {WORTHWHILE:g}"
    return False, f"{labels} may raise {mean} by up to {estimate.most:.2f}"


def _extrapolate(sizes: np.ndarray, scores: np.ndarray, now: int, more: int) -> np.ndarray:
    """Fit a power law to each row of scores by least squares, and return its gain from ``now`` to ``now + more``."""
    best, gains = np.full(len(scores), np.inf), np.zeros(len(scores))
    weights = np.sqrt(sizes / sizes.sum())  # scores of small subsets vary most, and are farthest from the extrapolation
    for exponent in EXPONENTS:
        x = -(sizes.astype(float) ** -exponent)
        mean_x, mean_y = np.average(x, weights=weights), np.average(scores, axis=1, weights=weights)
        centred = (x - mean_x) * weights
        slope = np.maximum((scores - mean_y[:, None]) @ centred / (centred @ (x - mean_x)), 0)
        slope = np.minimum(slope, (1 - mean_y) / max(-mean_x, 1e-12))  # no score exceeds 1
        fitted = mean_y[:, None] + slope[:, None] * (x - mean_x)
        error = (weights * (scores - fitted) ** 2).sum(axis=1)
        better = error < best
        best[better] = error[better]
        gains[better] = (slope * (float(now) ** -exponent - float(now + more) ** -exponent))[better]
    return gains
