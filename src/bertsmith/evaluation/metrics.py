"""Metrics of predictions, by scikit-learn."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn import metrics as sk

SCALAR_METRICS = (
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "macro_precision",
    "macro_recall",
    "weighted_f1",
    "weighted_precision",
    "weighted_recall",
    "mcc",
    "log_loss",
    "macro_average_precision",
)
"""Names of the single-number metrics. Higher is better, except for ``log_loss``."""


def validation_metrics(targets: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Return accuracy and macro-F1, the metrics logged at every epoch.

    Args:
        targets: class indices, shape (n,).
        probabilities: shape (n, classes).
    """
    predicted = probabilities.argmax(axis=1)
    return {"accuracy": float(sk.accuracy_score(targets, predicted)), "macro_f1": macro_f1(targets, predicted)}


def macro_f1(targets: np.ndarray, predicted: np.ndarray) -> float:
    """Return the mean F1 over the classes that occur in ``targets`` or ``predicted`` (both shape (n,))."""
    return float(sk.f1_score(targets, predicted, average="macro", zero_division=0))


def scalar_metrics(targets: np.ndarray, probabilities: np.ndarray) -> dict[str, float | None]:
    """Return every single-number metric.

    Class averages cover the classes that occur in ``targets`` or among the predictions, as in scikit-learn. Average
    precision is undefined for classes that do not occur in ``targets`` and leaves them out.

    Args:
        targets: class indices, shape (n,).
        probabilities: shape (n, classes).

    Returns:
        Metrics by name, ``None`` if undefined.
    """
    predicted = probabilities.argmax(axis=1)
    present = np.unique(targets)
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        targets, predicted, average=None, zero_division=0
    )
    result: dict[str, float | None] = {
        "accuracy": float(np.mean(predicted == targets)),
        "balanced_accuracy": float(recall[support > 0].mean()),
    }
    for name, values in (("f1", f1), ("precision", precision), ("recall", recall)):
        result |= {
            f"macro_{name}": float(values.mean()),
            f"weighted_{name}": float(np.average(values, weights=support)),
        }
    result["mcc"] = float(sk.matthews_corrcoef(targets, predicted)) if len(present) > 1 else None
    result["log_loss"] = log_loss(targets, probabilities)
    precisions = [sk.average_precision_score(targets == c, probabilities[:, c]) for c in present]
    result["macro_average_precision"] = float(np.mean(precisions)) if len(present) > 1 else None
    return {name: result[name] for name in SCALAR_METRICS}


def log_loss(targets: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the mean negative log-likelihood, from class indices, shape (n,), and shape (n, classes)."""
    normalised = probabilities.astype(np.float64)
    normalised /= normalised.sum(axis=1, keepdims=True)
    return float(sk.log_loss(targets, normalised, labels=np.arange(probabilities.shape[1])))


def per_class_metrics(
    targets: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """Return precision, recall, F1, average precision and counts of every class.

    Args:
        targets: class indices, shape (n,).
        probabilities: shape (n, classes).
        predicted: class indices, shape (n,); the most likely classes by default.

    Returns:
        One entry per class, in order; a metric is ``None`` if the class has no texts or no predictions that define it.
    """
    predicted = probabilities.argmax(axis=1) if predicted is None else predicted
    classes = np.arange(probabilities.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        precision, recall, f1, support = sk.precision_recall_fscore_support(
            targets, predicted, labels=classes, average=None, zero_division=np.nan
        )
    times = np.bincount(predicted, minlength=len(classes))
    return [
        {
            "precision": _defined(precision[c], times[c] > 0),
            "recall": _defined(recall[c], support[c] > 0),
            "f1": _defined(f1[c], support[c] + times[c] > 0),
            "average_precision": (
                float(sk.average_precision_score(targets == c, probabilities[:, c])) if support[c] else None
            ),
            "texts": int(support[c]),
            "predicted": int(times[c]),
        }
        for c in classes
    ]


def confusion_matrix(targets: np.ndarray, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    """Return counts of texts by class (rows) and predicted class (columns), shape (classes, classes)."""
    matrix: np.ndarray = sk.confusion_matrix(targets, predicted, labels=np.arange(n_classes))
    return matrix


def _defined(value: float, is_defined: bool) -> float | None:
    return float(value) if is_defined else None
