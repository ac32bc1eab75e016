"""Metrics and prediction intervals of numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from bertsmith.evaluation.abstention import TARGET_COVERAGES, coverage_interval


def resampled_errors(drawn: np.ndarray, targets: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """Return R² and both errors of every resample, each of shape (resamples,).

    R² is 0 if the targets of a resample are constant.

    Args:
        drawn: how often each resample draws each text, shape (resamples, n).
        targets, predicted: numbers, shape (n,).
    """
    n = drawn.sum(axis=1)
    error, centered = targets - predicted, targets - targets.mean()
    squared = drawn @ error**2
    spread = drawn @ centered**2 - (drawn @ centered) ** 2 / n
    varies = spread > 1e-12 * max(float(centered @ centered), 1e-300)
    return {
        "r2": np.where(varies, 1 - squared / np.where(varies, spread, 1), 0.0),
        "mae": drawn @ abs(error) / n,
        "rmse": np.sqrt(squared / n),
    }


def resampled_spearman(drawn: np.ndarray, targets: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of every resample, shape (resamples,); NaN where it is undefined."""
    from scipy.stats import rankdata

    values = []
    for times in drawn:
        rows = np.repeat(np.arange(len(targets)), times)
        a, b = rankdata(targets[rows]), rankdata(predicted[rows])
        spread = a.std() * b.std()
        values.append(((a - a.mean()) * (b - b.mean())).mean() / spread if spread else np.nan)
    return np.array(values)


def interval_half_width(residuals: np.ndarray, coverage: float) -> float:
    """Return half the width of intervals with a coverage, by split conformal prediction (Lei et al. 2018).

    Args:
        residuals: absolute errors of held-out texts, shape (n,).
        coverage: target, between 0 and 1.

    Returns:
        Half the width; infinite if the held-out texts are too few for the coverage.
    """
    n = len(residuals)
    k = math.ceil((n + 1) * coverage - 1e-9)
    return float(np.sort(residuals)[k - 1]) if k <= n else math.inf


def evaluate_intervals(residuals: np.ndarray, held_out: np.ndarray) -> list[dict[str, Any]]:
    """Evaluate prediction intervals, JSON-ready.

    Args:
        residuals: absolute errors of the evaluation texts, shape (n,).
        held_out: absolute errors of the texts that set the half-widths.

    Returns:
        One entry per target coverage: ``half_width`` (``None`` if the held-out texts are too few),
        ``empirical_coverage``, and ``expected``, its 95 % interval if the guarantee holds.
    """
    entries = []
    for coverage in TARGET_COVERAGES:
        half_width = interval_half_width(held_out, coverage)
        entries.append(
            {
                "coverage": coverage,
                "half_width": half_width if math.isfinite(half_width) else None,
                "empirical_coverage": float((residuals <= half_width).mean()),
                "expected": list(coverage_interval(coverage, len(held_out), len(residuals))),
            }
        )
    return entries
