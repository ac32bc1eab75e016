"""Metrics of predictions, by scikit-learn."""

from __future__ import annotations

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
    result: dict[str, float | None] = {"accuracy": float(sk.accuracy_score(targets, predicted))}
    recalls = sk.recall_score(targets, predicted, labels=present, average=None, zero_division=0)
    result["balanced_accuracy"] = float(np.mean(recalls))
    for average in ("macro", "weighted"):
        precision, recall, f1, _ = sk.precision_recall_fscore_support(
            targets, predicted, average=average, zero_division=0
        )
        result |= {
            f"{average}_f1": float(f1),
            f"{average}_precision": float(precision),
            f"{average}_recall": float(recall),
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
