"""Calibrated confidence: temperature scaling, and the gap between confidence and accuracy."""

from __future__ import annotations

from typing import Any

import numpy as np

BOUNDS = (0.05, 20.0)
"""Range of the temperature."""
CHANCE_RESAMPLES = 200
PRIOR = 0.7
"""Standard deviation of the normal prior on the logarithm of the temperature; see benchmarks/LOG.md."""


def fit_temperature(targets: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the temperature that maximizes the likelihood of held-out texts (Guo et al. 2017), shrunk towards 1.

    Logits divided by the temperature give calibrated probabilities; the order of the classes stays. A temperature above
    1 means that the model was too confident.

    Few texts estimate the temperature poorly. Let t be the logarithm of its maximum-likelihood estimate. The curvature
    of the negative log-likelihood at t is the variance of a text's scaled logits under its probabilities, summed over
    the texts. Its inverse is the squared standard error s² of t (observed information, Efron and Hinkley 1978). With a
    normal prior of mean 0 and variance `PRIOR`², p², the posterior mean is t · p² / (p² + s²) (Gelman et al. 2013).
    It is 0, a temperature of 1, if the texts hold no information, for example if all predictions are correct.

    Args:
        targets: class indices, shape (n,).
        probabilities: of the same texts, shape (n, classes).
    """
    from scipy.optimize import minimize_scalar

    logits = to_logits(probabilities)
    rows = np.arange(len(targets))

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(np.mean(log_sum_exp(scaled) - scaled[rows, targets]))

    found = minimize_scalar(loss, bounds=tuple(np.log(BOUNDS)), method="bounded")
    if found.fun >= loss(0.0):
        return 1.0
    scaled = logits / np.exp(found.x)
    p = softmax(scaled)
    information = float(((p * scaled**2).sum(axis=1) - (p * scaled).sum(axis=1) ** 2).sum())
    return float(np.exp(found.x * information / (information + PRIOR**-2)))


def calibration_metrics(
    targets: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray | None = None
) -> dict[str, Any]:
    """Return calibration errors of class probabilities; see `reliability`.

    ``brier_score`` is the squared distance between probabilities and truth, summed over the classes (Brier 1950); it
    ranges from 0 to 2.

    Args:
        targets: class indices, shape (n,).
        probabilities: shape (n, classes).
        predicted: class indices, shape (n,); the most likely classes by default.
    """
    predicted = probabilities.argmax(axis=1) if predicted is None else predicted
    truth = np.eye(probabilities.shape[1])[targets]
    return {
        **reliability(probabilities[np.arange(len(targets)), predicted], predicted == targets),
        "brier_score": float(((probabilities - truth) ** 2).sum(axis=1).mean()),
    }


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> dict[str, Any]:
    """Return calibration errors and the bins of a reliability diagram, JSON-ready.

    ``expected_calibration_error`` is the mean gap between confidence and accuracy over bins of equal width, weighted by
    their number of texts (Guo et al. 2017, arXiv:1706.04599). ``by_chance`` is its 95 % quantile for a perfectly
    calibrated model on as many texts (consistency resampling, Bröcker and Smith 2007, doi:10.1175/WAF993.1).

    Args:
        confidence: claimed probability of each event, shape (n,).
        right: whether each event occurred, bool, shape (n,).
        bins: number of confidence bins.
    """
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(which, minlength=bins)
    filled = np.maximum(counts, 1)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(which, weights=values, minlength=bins) / filled

    def error(right: np.ndarray) -> float:
        return float((counts * abs(mean(right) - mean_confidence)).sum() / len(confidence))

    mean_confidence, accuracy, rng = mean(confidence), mean(right), np.random.default_rng(0)
    by_chance = [error(rng.random(len(confidence)) < confidence) for _ in range(CHANCE_RESAMPLES)]
    return {
        "expected_calibration_error": error(right),
        "by_chance": float(np.quantile(by_chance, 0.95)),
        "bins": [
            {"texts": int(n), "confidence": float(c), "accuracy": float(a)}
            for n, c, a in zip(counts, mean_confidence, accuracy, strict=True)
            if n
        ],
    }


def log_losses(targets: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the log loss of each text, shape (n,), from class indices, shape (n,), and shape (n, classes)."""
    likelihood = probabilities[np.arange(len(targets)), targets] / probabilities.sum(axis=1, dtype=np.float64)
    return -np.log(np.clip(likelihood, np.finfo(np.float64).eps, 1))


def to_logits(probabilities: np.ndarray) -> np.ndarray:
    """Return logarithms of probabilities, shape (n, classes): the logits up to a constant per text."""
    return np.log(np.clip(probabilities.astype(np.float64), 1e-30, None))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits, both of shape (n, classes)."""
    if not len(logits):
        return logits
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def log_sum_exp(logits: np.ndarray) -> np.ndarray:
    """Return the log-sum-exp of every row, shape (n,), of logits of shape (n, classes)."""
    top = logits.max(axis=1)
    return top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
