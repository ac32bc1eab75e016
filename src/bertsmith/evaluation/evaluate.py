"""Everything that is said about one split, as JSON-ready values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bertsmith.config import PRIMARY
from bertsmith.data.table import Labels
from bertsmith.evaluation.calibration import calibration
from bertsmith.evaluation.intervals import LEVEL, RESAMPLES, bootstrap, paired_difference
from bertsmith.evaluation.metrics import confusion, per_class, scalars


def evaluate(
    targets: np.ndarray,
    probabilities: np.ndarray,
    labels: Labels,
    *,
    seed: int,
    detail: bool = True,
    groups: np.ndarray | None = None,
) -> dict[str, Any]:
    """Score a split.

    Args:
        targets: class indices, shape (n,).
        probabilities: shape (n, classes).
        labels: the classes.
        seed: of the bootstrap.
        detail: add the figures per class, the confusion matrix and the calibration.
        groups: which texts belong together (an author's, a document's), shape (n,): then whole groups are resampled.

    Returns:
        ``texts`` (n), ``metrics`` (name to ``value`` and ``interval``, ``None`` where it is undefined), and with
        ``detail`` also ``per_class``, ``confusion`` (rows: the class, columns: the prediction) and ``calibration``.
    """
    intervals = bootstrap(targets, probabilities, seed=seed, groups=groups)
    over = "texts" if groups is None else "groups"
    result: dict[str, Any] = {
        "texts": len(targets),
        "interval": {"level": LEVEL, "resamples": RESAMPLES, "method": f"percentile bootstrap over {over}"},
        "metrics": {
            name: {
                "value": value,
                "interval": list(intervals[name]) if value is not None and name in intervals else None,
            }
            for name, value in scalars(targets, probabilities).items()
        },
    }
    if detail:
        classes = per_class(targets, probabilities)
        for entry, number, text in zip(classes, labels.numbers, labels.texts, strict=True):
            entry |= {"label": number, "label_text": text}
        result["per_class"] = classes
        result["confusion"] = confusion(targets, probabilities.argmax(axis=1), len(labels)).tolist()
        result["calibration"] = calibration(targets, probabilities)
    return result


def side_by_side(
    targets: np.ndarray,
    probabilities: Mapping[str, np.ndarray],
    *,
    seeds: Sequence[int],
    groups: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Score classifiers on the same texts and pair each with the first.

    Args:
        targets: class indices, shape (n,).
        probabilities: of each classifier by name, shape (n, classes).
        seeds: of each one's bootstrap; the first one's is that of all differences.
        groups: which texts belong together, shape (n,), as for `bootstrap`.

    Returns:
        One entry a classifier, in order: ``name``, ``metrics`` (``value`` and ``interval`` by name) and ``difference``
        of the primary metric to the first one (``value``, ``interval``, ``distinguishable``), ``None`` for the first.
    """
    names = list(probabilities)
    first = probabilities[names[0]].argmax(axis=1)
    entries = []
    for (name, table), seed in zip(probabilities.items(), seeds, strict=True):
        intervals = bootstrap(targets, table, seed=seed, groups=groups)
        difference = None
        if name != names[0]:
            value, low, high = paired_difference(
                targets, table.argmax(axis=1), first, table.shape[1], metric=PRIMARY, seed=seeds[0], groups=groups
            )
            difference = {"value": value, "interval": [low, high], "distinguishable": low > 0 or high < 0}
        metrics = {
            metric: {"value": value, "interval": list(intervals[metric]) if value is not None else None}
            for metric, value in scalars(targets, table).items()
        }
        entries.append({"name": name, "metrics": metrics, "difference": difference})
    return entries
