"""All metrics of one set of texts, JSON-ready, and the comparison of several classifiers on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isclose
from typing import TYPE_CHECKING, Any

import numpy as np

from bertsmith.bootstrap import LEVEL, RESAMPLES, TAILS, draw_resamples
from bertsmith.data.table import Labels
from bertsmith.evaluation.intervals import RANKING_RESAMPLES, exact_accuracy

if TYPE_CHECKING:
    from bertsmith.tasks.base import Task


def evaluate(
    task: Task,
    targets: np.ndarray,
    scores: np.ndarray,
    labels: Labels,
    *,
    seed: int,
    detail: bool = True,
    groups: np.ndarray | None = None,
) -> dict[str, Any]:
    """Compute the metrics of a split.

    Args:
        task: the kind of label.
        targets: shape (n,) or (n, labels).
        scores: shape (n, outputs).
        labels: the classes.
        seed: of the bootstrap.
        detail: add what the task has besides single numbers, such as metrics per class and the calibration.
        groups: group of each text (such as its author), shape (n,); the bootstrap then resamples whole groups.

    Returns:
        ``texts`` (n), ``interval`` (how intervals are computed) and ``metrics`` (name to ``value`` and ``interval``,
        ``None`` if undefined). ``detail`` adds `Task.details`.
    """
    over = "texts" if groups is None else "groups"
    result: dict[str, Any] = {
    interval = {"level": LEVEL, "resamples": RESAMPLES, "method": f"percentile bootstrap over {over}"}
    if groups is not None:
        interval["groups"] = len(np.unique(groups))
        "texts": len(targets),
        "interval": interval,
        "metrics": _metrics(task, targets, scores, seed, groups),
    }
    if detail:
        result |= task.details(targets, scores, labels)
    return result


def compare_classifiers(
    task: Task,
    targets: np.ndarray,
    scores: Mapping[str, np.ndarray],
    *,
    seeds: Sequence[int],
    groups: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Compute the metrics of several classifiers on the same texts and compare each with the first.

    Args:
        task: the kind of label.
        targets: shape (n,) or (n, labels).
        scores: by classifier name, each of shape (n, outputs).
        seeds: of the bootstrap of each classifier; all differences use the first.
        groups: as for `evaluate`.

    Returns:
        One entry per classifier, in order: ``name``, ``metrics`` (``value`` and ``interval`` by name) and
        ``difference`` of the primary metric to the first classifier (``value``, ``interval``, ``distinguishable``).
        ``difference`` of the first is ``None``.
    """
    names = list(scores)
    entries = []
    for (name, table), seed in zip(scores.items(), seeds, strict=True):
        difference = None
        if name != names[0]:
            value, low, high = paired_difference(task, targets, table, scores[names[0]], seed=seeds[0], groups=groups)
            difference = {"value": value, "interval": [low, high], "distinguishable": low > 0 or high < 0}
        metrics = _metrics(task, targets, table, seed, groups)
        entries.append({"name": name, "metrics": metrics, "difference": difference})
    return entries


def paired_difference(
    task: Task, targets: np.ndarray, one: np.ndarray, two: np.ndarray, *, seed: int, groups: np.ndarray | None = None
) -> tuple[float, float, float]:
    """Return the difference of the primary metric and its 95 % interval; see `paired_differences`."""
    value, draws = paired_differences(task, targets, one, two, seed=seed, groups=groups)
    low, high = np.percentile(draws, TAILS)
    return value, float(low), float(high)


def paired_differences(
    task: Task, targets: np.ndarray, one: np.ndarray, two: np.ndarray, *, seed: int, groups: np.ndarray | None = None
) -> tuple[float, np.ndarray]:
    """Return the primary metric of one model's scores minus that of another's, and the same on every resample.

    Both have the same resamples, so variation that affects both cancels. The other arguments are those of `evaluate`.
    """

    def difference(drawn: np.ndarray) -> np.ndarray:
        first, second = (task.resampled(drawn, targets, scores)[task.primary] for scores in (one, two))
        return np.asarray(first - second)

    resamples = draw_resamples(len(targets), groups, np.random.default_rng(seed), RESAMPLES)
    once = np.ones((1, len(targets)), dtype=np.int64)
    return float(difference(once)[0]), np.concatenate([difference(drawn) for drawn in resamples])


def _metrics(
    task: Task, targets: np.ndarray, scores: np.ndarray, seed: int, groups: np.ndarray | None
) -> dict[str, dict[str, Any]]:
    """Return the value and the interval of every single-number metric, by name.

    If all predictions are correct, every metric of 1 has the interval of `exact_accuracy`. If none is, accuracy has it.
    """
    values = task.scalar_metrics(targets, scores)
    intervals = _intervals(task, targets, scores, seed, groups)
    right = task.is_right(targets, scores)
    if task.decides and (exact := exact_accuracy(right, groups)):
        perfect = [name for name, value in values.items() if value is not None and isclose(value, 1)]
        # Recall weighted by support is accuracy. Of label sets, only the subset accuracy depends on `is_right` alone.
        wrong = ["accuracy", "weighted_recall"] if task.one_class else ["subset_accuracy"]
        intervals |= dict.fromkeys(perfect if right.all() else wrong, exact)
    return {
        name: {"value": value, "interval": None if value is None else list(intervals[name])}
        for name, value in values.items()
    }


def _intervals(
    task: Task, targets: np.ndarray, scores: np.ndarray, seed: int, groups: np.ndarray | None
) -> dict[str, tuple[float, float]]:
    """Return the 95 % bootstrap interval of every metric, by name; NaN if the metric is undefined in every resample."""
    rng, found = np.random.default_rng(seed), {}
    for metrics, resamples in ((task.resampled, RESAMPLES), (task.resampled_ranks, RANKING_RESAMPLES)):
        chunks = [metrics(drawn, targets, scores) for drawn in draw_resamples(len(targets), groups, rng, resamples)]
        for name in chunks[0]:
            values = np.concatenate([chunk[name] for chunk in chunks])
            low, high = np.nanpercentile(values, TAILS) if np.isfinite(values).any() else (np.nan, np.nan)
            found[name] = float(low), float(high)
        if not task.one_class:  # so that `verify` finds the intervals of bertsmith 0.2.0
            rng = np.random.default_rng(seed)
    return found
