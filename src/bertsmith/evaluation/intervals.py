"""How sure a figure is: percentile bootstrap over the texts (Efron 1979), and exact where that has no width."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.stats import binomtest

RESAMPLES = 1000
RANKING_RESAMPLES = 200
"""Fewer, since average precision has to be computed class by class."""
LEVEL = 0.95
CELLS = 2_000_000
"""Resamples times texts at once."""


def bootstrap(
    targets: np.ndarray,
    probabilities: np.ndarray,
    *,
    seed: int,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    groups: np.ndarray | None = None,
) -> dict[str, tuple[float, float]]:
    """Return the interval of every metric in `metrics.SCALARS`.

    Every resample draws n texts with replacement, or whole groups of them. Averages over classes are taken as in
    `metrics.scalars`, over the classes that occur in the resample.

    Where all or none of the texts are right, so are those of every resample. Accuracy then has the exact interval of
    Clopper and Pearson (1934), with as many trials as there are texts, or groups.

    Args:
        targets: class indices, shape (n,).
        probabilities: shape (n, classes).
        seed: of the draws.
        resamples: number of draws.
        level: share of the resamples inside the interval.
        groups: of the texts, as for `resamples_of`.

    Returns:
        Lower and upper end by metric name.
    """
    n, n_classes = probabilities.shape
    predicted = probabilities.argmax(axis=1)
    exact = probabilities.astype(np.float64)
    exact /= exact.sum(axis=1, keepdims=True)
    losses = -np.log(np.clip(exact[np.arange(n), targets], np.finfo(np.float64).eps, 1))
    rng = np.random.default_rng(seed)
    some = [
        {**over_draws(drawn, targets, predicted, n_classes), "log_loss": drawn @ losses / drawn.sum(axis=1)}
        for drawn in resamples_of(n, groups, rng, resamples)
    ]
    draws = {name: np.concatenate([values[name] for values in some]) for name in some[0]}
    ranking = resamples_of(n, groups, rng, RANKING_RESAMPLES)
    draws["macro_average_precision"] = np.concatenate([_average_precisions(targets, probabilities, d) for d in ranking])
    tails = [50 * (1 - level), 50 * (1 + level)]
    intervals = {name: tuple(np.nanpercentile(values, tails).tolist()) for name, values in draws.items()}
    right = predicted == targets
    if right.all() or not right.any():
        trials = n if groups is None else len(np.unique(groups))
        exact_interval = binomtest(trials if right.all() else 0, trials).proportion_ci(level, method="exact")
        # Recall weighted by support is accuracy.
        intervals |= dict.fromkeys(("accuracy", "weighted_recall"), (exact_interval.low, exact_interval.high))
    return intervals


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
    groups: np.ndarray | None = None,
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
        groups: of the texts, as for `resamples_of`.

    Returns:
        The difference (first minus second), its lower and its upper end.
    """

    draws = paired_draws(
        targets, first, second, n_classes, metric=metric, seed=seed, resamples=resamples, groups=groups
    )
    one, two = (from_pairs(targets, predicted, n_classes)[metric] for predicted in (first, second))
    low, high = np.percentile(draws, [50 * (1 - level), 50 * (1 + level)])
    return float(one - two), float(low), float(high)


def paired_draws(
    targets: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    n_classes: int,
    *,
    metric: str,
    seed: int,
    resamples: int = RESAMPLES,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """Return the difference of a metric (first minus second) on every resample, shape (resamples,).

    The arguments are those of `paired_difference`.
    """
    rng = np.random.default_rng(seed)
    differences = []
    for drawn in resamples_of(len(targets), groups, rng, resamples):
        one, two = (over_draws(drawn, targets, predicted, n_classes)[metric] for predicted in (first, second))
        differences.append(one - two)
    return np.concatenate(differences)


def resamples_of(n: int, groups: np.ndarray | None, rng: np.random.Generator, resamples: int) -> Iterator[np.ndarray]:
    """Yield how often each resample draws each text, shape (some of the resamples, n): as many as fit into memory.

    Args:
        n: number of texts.
        groups: which of them belong together (an author's, a document's), shape (n,): then whole groups are drawn, as
            many as there are, since texts of one group say less than as many of different ones (cluster bootstrap,
            Davison and Hinkley 1997, section 3.8).
        rng: what draws.
        resamples: number of draws.
    """
    codes = None if groups is None else np.unique(groups, return_inverse=True)[1]
    units = n if codes is None else int(codes.max()) + 1
    at_once = max(CELLS // n, 1)
    for start in range(0, resamples, at_once):
        some = min(at_once, resamples - start)
        drawn = rng.integers(0, units, (some, units)) + units * np.arange(some)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=some * units).reshape(some, units)
        yield counts if codes is None else counts[:, codes]


def _average_precisions(targets: np.ndarray, probabilities: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Macro average precision of every resample, shape (resamples,), given how often it draws each text."""
    weights = drawn.astype(np.float32)
    total = np.zeros(len(drawn))
    classes = np.zeros(len(drawn))
    for c in np.unique(targets):
        order = np.argsort(-probabilities[:, c], kind="stable")
        times = weights[:, order]
        positions = np.flatnonzero(targets[order] == c)
        ranked = np.cumsum(times, axis=1)[:, positions]
        times = times[:, positions]
        hits = np.cumsum(times, axis=1)
        positives = hits[:, -1]
        precision = (times * hits / np.maximum(ranked, 1)).sum(axis=1)
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
    once = np.ones((1, len(targets)), dtype=np.int64)
    return {name: float(value[0]) for name, value in over_draws(once, targets, predicted, n_classes).items()}


def over_draws(drawn: np.ndarray, targets: np.ndarray, predicted: np.ndarray, n_classes: int) -> dict[str, np.ndarray]:
    """Return `from_pairs` of every resample, each of shape (resamples,).

    Args:
        drawn: how often each resample draws each text, shape (resamples, n).
        targets, predicted, n_classes: as there.
    """
    hit = _by_class(drawn * (targets == predicted), targets, n_classes)
    support = _by_class(drawn, targets, n_classes)
    times = _by_class(drawn, predicted, n_classes)
    n = support.sum(axis=1)
    recall = hit / np.maximum(support, 1)
    precision = hit / np.maximum(times, 1)
    f1 = 2 * hit / np.maximum(support + times, 1)
    seen = support + times > 0
    weights = support / n[:, None]
    spread = np.sqrt((n**2 - (times**2).sum(axis=1)) * (n**2 - (support**2).sum(axis=1)))
    found = n * hit.sum(axis=1) - (times * support).sum(axis=1)
    return {
        "accuracy": hit.sum(axis=1) / n,
        "balanced_accuracy": recall.mean(axis=1, where=support > 0),
        "macro_f1": f1.mean(axis=1, where=seen),
        "macro_precision": precision.mean(axis=1, where=seen),
        "macro_recall": recall.mean(axis=1, where=seen),
        "weighted_f1": (weights * f1).sum(axis=1),
        "weighted_precision": (weights * precision).sum(axis=1),
        "weighted_recall": (weights * recall).sum(axis=1),
        "mcc": np.divide(found, spread, out=np.zeros_like(found), where=spread > 0),
    }


def _by_class(drawn: np.ndarray, classes: np.ndarray, n_classes: int) -> np.ndarray:
    """Return how often each resample draws a text of each class, shape (resamples, classes)."""
    counts: np.ndarray = drawn.astype(np.float32) @ np.eye(n_classes, dtype=np.float32)[classes]  # exact: below 2 ** 24
    return counts.astype(np.float64)
