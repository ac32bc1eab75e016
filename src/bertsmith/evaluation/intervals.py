"""How sure a figure is: percentile bootstrap over the texts (Efron 1979)."""

from __future__ import annotations

import numpy as np

RESAMPLES = 1000
RANKING_RESAMPLES = 200
"""Fewer, since average precision has to be computed class by class."""
LEVEL = 0.95


def bootstrap(
    targets: np.ndarray, probabilities: np.ndarray, *, seed: int, resamples: int = RESAMPLES, level: float = LEVEL
) -> dict[str, tuple[float, float]]:
    """Return the interval of every metric in `metrics.SCALARS`.

    Every resample draws n texts with replacement. Averages over classes are taken as in `metrics.scalars`, over the
    classes that occur in the resample.

    Args:
        targets: class indices, shape (n,).
        probabilities: shape (n, classes).
        seed: of the draws.
        resamples: number of draws.
        level: share of the resamples inside the interval.

    Returns:
        Lower and upper end by metric name.
    """
    n, n_classes = probabilities.shape
    predicted = probabilities.argmax(axis=1)
    exact = probabilities.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    losses = -np.log(np.clip(exact[np.arange(n), targets], np.finfo(np.float64).eps, 1))
    rng = np.random.default_rng(seed)
    draws: dict[str, list[float]] = {}
    for _ in range(resamples):
        drawn = rng.integers(0, n, n)
        values = from_pairs(targets[drawn], predicted[drawn], n_classes)
        values["log_loss"] = float(losses[drawn].mean())
        for name, value in values.items():
            draws.setdefault(name, []).append(value)
    draws["macro_average_precision"] = _average_precisions(targets, probabilities, rng).tolist()
    tails = [50 * (1 - level), 50 * (1 + level)]
    return {name: tuple(np.nanpercentile(values, tails).tolist()) for name, values in draws.items()}


def paired_difference(
    targets: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    n_classes: int,
    *,
    metric: str = "macro_f1",
    seed: int,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> tuple[float, float, float]:
    """Return by how much one classifier beats another on the same texts, with the interval of the difference.

    Both are scored on the same resamples, so that what makes a resample easy or hard for both cancels.

    Args:
        targets: class indices, shape (n,).
        first, second: predicted class indices of the two, shape (n,).
        n_classes: number of classes.
        metric: one of `from_pairs`.
        seed: of the draws.
        resamples: number of draws.
        level: share of the resamples inside the interval.

    Returns:
        The difference (first minus second), its lower and its upper end.
    """

    def difference(rows: np.ndarray) -> float:
        one, two = (from_pairs(targets[rows], predicted[rows], n_classes)[metric] for predicted in (first, second))
        return float(one - two)

    n = len(targets)
    rng = np.random.default_rng(seed)
    draws = [difference(rng.integers(0, n, n)) for _ in range(resamples)]
    low, high = np.percentile(draws, [50 * (1 - level), 50 * (1 + level)])
    return difference(np.arange(n)), float(low), float(high)


def _average_precisions(targets: np.ndarray, probabilities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Macro average precision of every resample, shape (`RANKING_RESAMPLES`,)."""
    n = len(targets)
    # How often each resample draws each text, shape (resamples, n): a draw with replacement is a weighting.
    weights = rng.multinomial(n, np.full(n, 1 / n), size=RANKING_RESAMPLES).astype(np.float32)
    total = np.zeros(RANKING_RESAMPLES)
    classes = np.zeros(RANKING_RESAMPLES)
    for c in np.unique(targets):
        order = np.argsort(-probabilities[:, c], kind="stable")
        drawn = weights[:, order]
        positions = np.flatnonzero(targets[order] == c)
        ranked = np.cumsum(drawn, axis=1)[:, positions]
        drawn = drawn[:, positions]
        hits = np.cumsum(drawn, axis=1)
        positives = hits[:, -1]
        precision = (drawn * hits / np.maximum(ranked, 1)).sum(axis=1)
        total += np.where(positives > 0, precision / np.maximum(positives, 1), 0)
        classes += positives > 0
    result: np.ndarray = total / np.maximum(classes, 1)
    return result


def from_pairs(targets: np.ndarray, predicted: np.ndarray, n_classes: int) -> dict[str, float]:
    """Return the metrics that depend on the predicted classes alone, many times faster than scikit-learn.

    Args:
        targets, predicted: class indices, shape (n,).
        n_classes: number of classes.
    """
    hit = np.bincount(targets[targets == predicted], minlength=n_classes).astype(float)
    support = np.bincount(targets, minlength=n_classes).astype(float)
    times = np.bincount(predicted, minlength=n_classes).astype(float)
    n = support.sum()
    recall = hit / np.maximum(support, 1)
    precision = hit / np.maximum(times, 1)
    f1 = 2 * hit / np.maximum(support + times, 1)
    seen = support + times > 0
    weights = support / n
    spread = np.sqrt((n**2 - (times**2).sum()) * (n**2 - (support**2).sum()))
    return {
        "accuracy": hit.sum() / n,
        "balanced_accuracy": recall[support > 0].mean(),
        "macro_f1": f1[seen].mean(),
        "macro_precision": precision[seen].mean(),
        "macro_recall": recall[seen].mean(),
        "weighted_f1": weights @ f1,
        "weighted_precision": weights @ precision,
        "weighted_recall": weights @ recall,
        "mcc": (n * hit.sum() - times @ support) / spread if spread else 0.0,
    }
