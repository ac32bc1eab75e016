"""Several classifiers on the same texts, side by side, with paired intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bertsmith.config import PRIMARY
from bertsmith.evaluation.intervals import bootstrap, paired_difference
from bertsmith.evaluation.metrics import scalars


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
