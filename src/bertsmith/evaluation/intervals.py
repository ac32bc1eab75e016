"""How sure a figure is: percentile bootstrap over the texts (Efron 1979)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RESAMPLES = 1000
RANKING_RESAMPLES = 200
"""Fewer, since average precision has to be computed class by class."""
LEVEL = 0.95


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

    Args:
        targets: class indices, shape (n,).
        probabilities: shape (n, classes).
        seed: of the draws.
        resamples: number of draws.
        level: share of the resamples inside the interval.
        groups: of the texts, as for `resampler`.

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
    draw = resampler(n, groups)
    for _ in range(resamples):
        drawn = draw(rng)
        values = from_pairs(targets[drawn], predicted[drawn], n_classes)
        values["log_loss"] = float(losses[drawn].mean())
        for name, value in values.items():
            draws.setdefault(name, []).append(value)
    draws["macro_average_precision"] = _average_precisions(targets, probabilities, draw, rng).tolist()
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
        groups: of the texts, as for `resampler`.

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
    draw = resampler(len(targets), groups)

    def difference(rows: np.ndarray) -> float:
        one, two = (from_pairs(targets[rows], predicted[rows], n_classes)[metric] for predicted in (first, second))
        return float(one - two)

    return np.array([difference(draw(rng)) for _ in range(resamples)])


def resampler(n: int, groups: np.ndarray | None = None) -> Callable[[np.random.Generator], np.ndarray]:
    """Return a function that draws the rows of a resample.

    Args:
        n: number of texts.
        groups: which of them belong together (an author's, a document's), shape (n,): then whole groups are drawn, as
            many as there are, since texts of one group say less than as many of different ones (cluster bootstrap,
            Davison and Hinkley 1997, section 3.8).
    """
    if groups is None:
        return lambda rng: rng.integers(0, n, n)
    codes = np.unique(groups, return_inverse=True)[1]
    order = np.argsort(codes, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(codes))[:-1])
    return lambda rng: np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])


def _average_precisions(
    targets: np.ndarray,
    probabilities: np.ndarray,
    draw: Callable[[np.random.Generator], np.ndarray],
    rng: np.random.Generator,
) -> np.ndarray:
    """Macro average precision of every resample, shape (`RANKING_RESAMPLES`,)."""
    # How often each resample draws each text, shape (resamples, n): a draw with replacement is a weighting.
    weights = np.stack([np.bincount(draw(rng), minlength=len(targets)) for _ in range(RANKING_RESAMPLES)])
    weights = weights.astype(np.float32)
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
