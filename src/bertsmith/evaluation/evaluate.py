"""All metrics of one set of texts, JSON-ready, and the comparison of several classifiers on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bertsmith.data.table import Labels
from bertsmith.evaluation.calibration import calibration_metrics
from bertsmith.evaluation.intervals import LEVEL, RESAMPLES, bootstrap_intervals, paired_difference
from bertsmith.evaluation.metrics import confusion_matrix, per_class_metrics, scalar_metrics


def evaluate(
    targets: np.ndarray,
    probabilities: np.ndarray,
    labels: Labels,
    *,
    seed: int,
    detail: bool = True,
    groups: np.ndarray | None = None,
) -> dict[str, Any]:
    """Compute the metrics of a split.

    Args:
        targets: class indices, shape (n,).
        probabilities: shape (n, classes).
        labels: the classes.
        seed: of the bootstrap.
        detail: add per-class metrics, the confusion matrix and the calibration.
        groups: group of each text (such as its author), shape (n,); the bootstrap then resamples whole groups.

    Returns:
        ``texts`` (n), ``interval`` (how intervals are computed) and ``metrics`` (name to ``value`` and ``interval``,
        ``None`` if undefined). ``detail`` adds ``per_class``, ``confusion`` (rows are classes, columns predictions)
        and ``calibration``.
    """
    over = "texts" if groups is None else "groups"
    result: dict[str, Any] = {
        "texts": len(targets),
        "interval": {"level": LEVEL, "resamples": RESAMPLES, "method": f"percentile bootstrap over {over}"},
        "metrics": _metrics(targets, probabilities, seed, groups),
    }
    if detail:
        classes = per_class_metrics(targets, probabilities)
        for entry, number, text in zip(classes, labels.numbers, labels.texts, strict=True):
            entry |= {"label": number, "label_text": text}
        result["per_class"] = classes
        result["confusion"] = confusion_matrix(targets, probabilities.argmax(axis=1), len(labels)).tolist()
        result["calibration"] = calibration_metrics(targets, probabilities)
    return result


def compare_classifiers(
    targets: np.ndarray,
    probabilities: Mapping[str, np.ndarray],
    *,
    seeds: Sequence[int],
    groups: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Compute the metrics of several classifiers on the same texts and compare each with the first.

    Args:
        targets: class indices, shape (n,).
        probabilities: by classifier name, each of shape (n, classes).
        seeds: of the bootstrap of each classifier; all differences use the first.
        groups: as for `evaluate`.

    Returns:
        One entry per classifier, in order: ``name``, ``metrics`` (``value`` and ``interval`` by name) and
        ``difference`` of the primary metric to the first classifier (``value``, ``interval``, ``distinguishable``).
        ``difference`` of the first is ``None``.
    """
    names = list(probabilities)
    first = probabilities[names[0]].argmax(axis=1)
    entries = []
    for (name, table), seed in zip(probabilities.items(), seeds, strict=True):
        difference = None
        if name != names[0]:
            value, low, high = paired_difference(
                targets, table.argmax(axis=1), first, table.shape[1], seed=seeds[0], groups=groups
            )
            difference = {"value": value, "interval": [low, high], "distinguishable": low > 0 or high < 0}
        metrics = _metrics(targets, table, seed, groups)
        entries.append({"name": name, "metrics": metrics, "difference": difference})
    return entries


def _metrics(
    targets: np.ndarray, probabilities: np.ndarray, seed: int, groups: np.ndarray | None
) -> dict[str, dict[str, Any]]:
    """Return the value and the interval of every single-number metric, by name."""
    intervals = bootstrap_intervals(targets, probabilities, seed=seed, groups=groups)
    return {
        name: {"value": value, "interval": None if value is None else list(intervals[name])}
        for name, value in scalar_metrics(targets, probabilities).items()
    }
