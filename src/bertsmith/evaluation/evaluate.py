"""All metrics of one set of texts, JSON-ready, and the comparison of several classifiers on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isclose
from typing import TYPE_CHECKING, Any

import numpy as np

from bertsmith.bootstrap import LEVEL, RESAMPLES, TAILS, draw_resamples, is_one_group
from bertsmith.data.table import Labels
from bertsmith.evaluation.intervals import RANKING_RESAMPLES, exact_interval

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
        ``None`` if undefined). An interval is also ``None`` if all texts are in one group, or if it would have no
        width. ``detail`` adds `Task.details`.
    """
    over = "texts" if groups is None else "groups"
    exact = ", exact (Clopper-Pearson) at the ends of the scale" if task.decides else ""
    interval = {"level": LEVEL, "resamples": RESAMPLES, "method": f"percentile bootstrap over {over}{exact}"}
    if groups is not None:
        interval["groups"] = len(np.unique(groups))
    result: dict[str, Any] = {
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
        ``difference`` to the first classifier, as from `paired_difference`, with ``distinguishable``. ``difference``
        of the first is ``None``.
    """
    names = list(scores)
    entries = []
    for (name, table), seed in zip(scores.items(), seeds, strict=True):
        difference = None
        if name != names[0]:
            difference = paired_difference(task, targets, table, scores[names[0]], seed=seeds[0], groups=groups)
            low, high = difference["interval"] or (0, 0)
            difference["distinguishable"] = low > 0 or high < 0
        metrics = _metrics(task, targets, table, seed, groups)
        entries.append({"name": name, "metrics": metrics, "difference": difference})
    return entries


def paired_difference(
    task: Task, targets: np.ndarray, one: np.ndarray, two: np.ndarray, *, seed: int, groups: np.ndarray | None = None
) -> dict[str, Any]:
    """Compare the scores of two models; see `paired_differences`.

    Returns:
        JSON-ready: ``metric`` (the primary one), ``value`` and ``interval``, as from `difference_interval`.
    """
    value, draws = paired_differences(task, targets, one, two, seed=seed, groups=groups)
    return {"metric": task.primary, "value": value, "interval": difference_interval(draws, groups)}


def difference_interval(draws: np.ndarray, groups: np.ndarray | None) -> list[float] | None:
    """Return the 95 % interval of a difference from its values on resamples, or ``None`` as for `evaluate`."""
    return None if is_one_group(groups) else _with_width(*np.percentile(draws, TAILS).tolist())


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

    At the end of its scale, a metric has the same value in every resample. Its interval is then exact, or ``None``.
    """
    values = task.scalar_metrics(targets, scores)
    found = {} if is_one_group(groups) else _intervals(task, targets, scores, seed, groups)
    if found and task.decides:
        outcomes = {**dict.fromkeys(values, task.is_right(targets, scores)), **task.outcomes(targets, scores)}
        for name, right in outcomes.items():
            if exact := exact_interval(name, values[name], right, groups, largest_error=scores.shape[1] - 1):
                found[name] = exact
    return {
        name: {"value": value, "interval": None if value is None else _with_width(*found.get(name, (np.nan, np.nan)))}
        for name, value in values.items()
    }


def _with_width(low: float, high: float) -> list[float] | None:
    return [low, high] if low < high and not isclose(low, high, abs_tol=1e-12) else None


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
