"""Everything that is said about one split, as JSON-ready values."""

from __future__ import annotations

from typing import Any

import numpy as np

from bertsmith.data.table import Labels
from bertsmith.evaluation.calibration import calibration
from bertsmith.evaluation.intervals import LEVEL, RESAMPLES, bootstrap
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
