"""Metrics of ordered classes, from the confusion matrix."""

from __future__ import annotations

import numpy as np

from bertsmith.evaluation.calibration import softmax, to_logits
from bertsmith.evaluation.rule import stretch_slope


def least_cost(probabilities: np.ndarray) -> np.ndarray:
    """Return the class with the least expected squared distance in steps, shape (n,).

    The expectation of (level − c)² is least for the class c nearest to the expected level.

    Args:
        probabilities: shape (n, classes), with the classes in order.
    """
    expected = probabilities @ np.arange(probabilities.shape[1])
    return np.rint(expected / probabilities.sum(axis=1)).astype(np.int64)


def fit_stretch(scores: np.ndarray, temperature: float) -> float:
    """Return the stretch of `Rule` with which a temperature changes the expected levels least, for n texts.

    A temperature above 1 moves the expected level of uncertain texts to the middle class. The steeper the logits over
    the ranks, the less it does. Without labels, this finds the steepness for which the expected levels are, in the
    least-squares sense, those before the temperature.

    Args:
        scores: probabilities before the temperature, shape (n, classes), with the classes in order.
        temperature: of the rule.
    """
    from scipy.optimize import minimize_scalar

    levels, scaled = np.arange(scores.shape[1]), to_logits(scores) / temperature

    def change(log_stretch: float) -> float:
        moved = softmax(stretch_slope(scaled, float(np.exp(log_stretch)))) - scores
        return float(((moved @ levels) ** 2).mean())

    bounds = sorted((0.0, float(np.log(temperature))))  # from the calibrated to the original slope
    return float(np.exp(minimize_scalar(change, bounds=bounds, method="bounded").x))


def resampled_level_metrics(
    drawn: np.ndarray, targets: np.ndarray, predicted: np.ndarray, n_classes: int
) -> dict[str, np.ndarray]:
    """Return the metrics of every resample, each of shape (resamples,).

    Quadratic kappa is Cohen's kappa with squared distances as weights (Cohen 1968). Errors count steps between classes.

    Args:
        drawn: how often each resample draws each text, shape (resamples, n).
        targets, predicted: class indices, shape (n,).
        n_classes: number of classes, in order.
    """
    weights, one_hot = drawn.astype(np.float32), np.eye(n_classes, dtype=np.float32)[predicted]
    parts = [weights[:, targets == c] @ one_hot[targets == c] for c in range(n_classes)]
    table = np.stack(parts, axis=1).astype(np.float64)  # exact: below 2 ** 24
    n = table.sum(axis=(1, 2))
    levels = np.arange(n_classes)
    distance = abs(levels[:, None] - levels[None])
    rows, columns = table.sum(axis=2), table.sum(axis=1)
    expected = rows[:, :, None] * columns[:, None, :] / n[:, None, None]
    disagreement, by_chance = (table * distance**2).sum(axis=(1, 2)), (expected * distance**2).sum(axis=(1, 2))
    hits = np.diagonal(table, axis1=1, axis2=2)
    either = rows + columns
    f1 = 2 * hits / np.maximum(either, 1)
    return {
        "quadratic_kappa": np.where(by_chance > 0, 1 - disagreement / np.where(by_chance > 0, by_chance, 1), 0.0),
        "mae": (table * distance).sum(axis=(1, 2)) / n,
        "spearman": _rank_correlation(table, rows, columns, n),
        "macro_f1": f1.mean(axis=1, where=either > 0),
        "accuracy": hits.sum(axis=1) / n,
        "within_one": (table * (distance <= 1)).sum(axis=(1, 2)) / n,
    }


def _rank_correlation(table: np.ndarray, rows: np.ndarray, columns: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation, with mean ranks for ties, of contingency tables; 0 if one side is constant."""
    ranks = [np.cumsum(counts, axis=1) - (counts - 1) / 2 - ((n + 1) / 2)[:, None] for counts in (rows, columns)]
    covariance = np.einsum("rij,ri,rj->r", table, *ranks)
    spread = np.prod([(counts * rank**2).sum(axis=1) for counts, rank in zip((rows, columns), ranks, strict=True)], 0)
    return np.where(spread > 0, covariance / np.sqrt(np.where(spread > 0, spread, 1)), 0.0)
