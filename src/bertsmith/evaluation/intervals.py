"""Confidence intervals: percentile bootstrap over texts or groups (Efron 1979), exact where that has no width."""

from __future__ import annotations

from math import isclose

import numpy as np

from bertsmith.bootstrap import LEVEL

RANKING_RESAMPLES = 200
"""Fewer, because average precision is computed class by class, and ranks resample by resample."""
SHARES = ("accuracy", "weighted_recall", "subset_accuracy", "within_one")
"""Metrics that are the share of the right texts."""


def exact_interval(
    name: str, value: float | None, right: np.ndarray, groups: np.ndarray | None, *, largest_error: int
) -> tuple[float, float] | None:
    """Return the exact interval of a metric at the end of its scale, or ``None`` for any other value.

    A mean of errors is at most the share of the wrong texts times the largest error of a text.

    Args:
        name: of the metric.
        value: of the metric.
        right: whether each text is right, shape (n,); NaN for the texts that the metric leaves out.
        groups: as for `exact_accuracy`.
        largest_error: most steps between two classes, for the mean absolute error.
    """
    counted = ~np.isnan(right.astype(np.float64))
    right = right[counted].astype(bool)
    exact = exact_accuracy(right, None if groups is None else groups[counted])
    if exact is None or value is None:
        return None
    if right.all() and name in ("mae", "hamming_loss"):
        return 0.0, (1 - exact[0]) * (largest_error if name == "mae" else 1)
    return exact if name in SHARES or (right.all() and isclose(value, 1)) else None


def exact_accuracy(right: np.ndarray, groups: np.ndarray | None = None) -> tuple[float, float] | None:
    """Return the exact interval of accuracy by Clopper and Pearson (1934) if all or no predictions are correct.

    The same then holds in every resample, so the bootstrap interval has no width.

    Args:
        right: whether each prediction is correct, bool, shape (n,).
        groups: as for `draw_resamples`; a trial is a group, or else a text.
    """
    from scipy.stats import binomtest  # the light base has no scipy

    if not len(right) or (right.any() and not right.all()):
        return None
    trials = len(right) if groups is None else len(np.unique(groups))
    exact = binomtest(trials if right.all() else 0, trials).proportion_ci(LEVEL, method="exact")
    return float(exact.low), float(exact.high)


def wilson(right: np.ndarray) -> tuple[float, float]:
    """Return the interval of a share by Wilson (1927), which has a width at 0 and 1 too.

    Args:
        right: whether each text counts, bool, shape (n,).
    """
    from scipy.stats import binomtest

    interval = binomtest(int(right.sum()), len(right)).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def resampled_average_precision(truth: np.ndarray, probabilities: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Return the macro average precision of every resample, shape (resamples,).

    Args:
        truth: whether each text has each label, bool, shape (n, labels).
        probabilities: shape (n, labels).
        drawn: how often each resample draws each text, shape (resamples, n).
    """
    weights = drawn.astype(np.float32)
    total = np.zeros(len(drawn))
    classes = np.zeros(len(drawn))
    for c in np.flatnonzero(truth.any(axis=0)):
        order = np.argsort(-probabilities[:, c], kind="stable")
        times, ordered = weights[:, order], -probabilities[order, c]
        positions = np.flatnonzero(truth[order, c])
        # Texts with equal probabilities have the same rank, the last one of them, as in scikit-learn.
        ranked = np.cumsum(times, axis=1)[:, np.searchsorted(ordered, ordered[positions], side="right") - 1]
        times = times[:, positions].astype(np.float64)
        last = np.searchsorted(ordered[positions], ordered[positions], side="right") - 1
        hits = np.cumsum(times, axis=1)[:, last]
        positives = hits[:, -1]
        precision = (times * hits / np.maximum(ranked, 1)).sum(axis=1)
        total += np.where(positives > 0, precision / np.maximum(positives, 1), 0)
        classes += positives > 0
    return total / np.maximum(classes, 1)


def resampled_label_metrics(
    drawn: np.ndarray, targets: np.ndarray, predicted: np.ndarray, n_classes: int
) -> dict[str, np.ndarray]:
    """Return the metrics that need predicted classes only, of every resample, each of shape (resamples,).

    Args:
        drawn: how often each resample draws each text, shape (resamples, n).
        targets, predicted: class indices, shape (n,).
        n_classes: number of classes.
    """
    hits = _count_by_class(drawn * (targets == predicted), targets, n_classes)
    support = _count_by_class(drawn, targets, n_classes)
    times = _count_by_class(drawn, predicted, n_classes)
    n = support.sum(axis=1)
    recall = hits / np.maximum(support, 1)
    precision = hits / np.maximum(times, 1)
    f1 = 2 * hits / np.maximum(support + times, 1)
    seen = support + times > 0
    weights = support / n[:, None]
    mcc_denominator = np.sqrt((n**2 - (times**2).sum(axis=1)) * (n**2 - (support**2).sum(axis=1)))
    mcc_numerator = n * hits.sum(axis=1) - (times * support).sum(axis=1)
    return {
        "accuracy": hits.sum(axis=1) / n,
        "balanced_accuracy": recall.mean(axis=1, where=support > 0),
        "macro_f1": f1.mean(axis=1, where=seen),
        "macro_precision": precision.mean(axis=1, where=seen),
        "macro_recall": recall.mean(axis=1, where=seen),
        "weighted_f1": (weights * f1).sum(axis=1),
        "weighted_precision": (weights * precision).sum(axis=1),
        "weighted_recall": (weights * recall).sum(axis=1),
        "mcc": np.divide(mcc_numerator, mcc_denominator, out=np.zeros_like(mcc_numerator), where=mcc_denominator > 0),
    }


def _count_by_class(drawn: np.ndarray, classes: np.ndarray, n_classes: int) -> np.ndarray:
    """Return how often each resample draws a text of each class, shape (resamples, classes)."""
    counts: np.ndarray = drawn.astype(np.float32) @ np.eye(n_classes, dtype=np.float32)[classes]  # exact: below 2 ** 24
    return counts.astype(np.float64)
