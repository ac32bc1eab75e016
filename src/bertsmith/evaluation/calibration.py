"""Confidence one can believe: temperature scaling, and how far confidence and accuracy are apart."""

from __future__ import annotations

from typing import Any

import numpy as np

BOUNDS = (0.05, 20.0)
"""Temperatures looked at; a model that needs one outside has learned nothing, or all there is."""
DRAWS = 200
"""Of labels, to see how large the calibration error of a perfect model would be."""
PRIOR = 0.3
"""Standard deviation of the logarithm of temperatures, by which one found on few texts is shrunk."""
WIDE_PRIOR = 1.0
"""The same where few texts were trained on: then models are much too sure, or much too modest."""


def fit_temperature(targets: np.ndarray, probabilities: np.ndarray, *, prior: float = PRIOR) -> float:
    """Return the temperature that makes the probabilities of held-out texts most likely (Guo et al. 2017), shrunk.

    Logits divided by it give calibrated probabilities; the order of the classes stays. Above 1 the model was too sure.

    Few texts say little about it. Let t be the logarithm of the most likely temperature. The curvature of the negative
    log-likelihood at t is the variance of a text's scaled logits under its probabilities, summed over the texts; its
    inverse is the squared standard error s² of t (observed information, Efron and Hinkley 1978). With a normal prior
    around 0 of variance p² the posterior mean is t · p² / (p² + s²) (Gelman et al. 2013, section 2.5). It is 0, a
    temperature of 1, where texts tell nothing, as when all are labelled right.

    Args:
        targets: class indices, shape (n,).
        probabilities: of the same texts, shape (n, classes).
        prior: the standard deviation p.
    """
    from scipy.optimize import minimize_scalar

    logits = logs(probabilities)
    rows = np.arange(len(targets))

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(np.mean(log_sum_exp(scaled) - scaled[rows, targets]))

    found = minimize_scalar(loss, bounds=tuple(np.log(BOUNDS)), method="bounded")
    if found.fun >= loss(0.0):
        return 1.0
    scaled = logits / np.exp(found.x)
    p = np.exp(scaled - log_sum_exp(scaled)[:, None])
    information = float(((p * scaled**2).sum(axis=1) - (p * scaled).sum(axis=1) ** 2).sum())
    return float(np.exp(found.x * information / (information + prior**-2)))


def scale(probabilities: np.ndarray, temperature: float, offsets: np.ndarray | float = 0.0) -> np.ndarray:
    """Return probabilities as they are with offsets added to the logits, and then at a temperature, shape (n, classes).

    Args:
        probabilities: shape (n, classes).
        temperature: that the logits are divided by.
        offsets: of the classes, shape (classes,).
    """
    scaled = (logs(probabilities) + offsets) / temperature
    result: np.ndarray = np.exp(scaled - log_sum_exp(scaled)[:, None])
    return result


def calibration(targets: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> dict[str, Any]:
    """Return how far confidence can be believed.

    The expected calibration error is the mean gap between confidence and accuracy over bins of equal width, weighted by
    their texts (Guo et al. 2017, arXiv:1706.04599); the Brier score is the mean squared distance between probabilities
    and truth, summed over the classes (Brier 1950), from 0 to 2. On few texts the calibration error is never 0: beside
    it stands the one that a model whose confidence is exactly right would stay below 95 times in 100 on as many texts
    (consistency resampling, Bröcker and Smith 2007, doi:10.1175/WAF993.1).

    Args:
        targets: class indices, shape (n,).
        probabilities: shape (n, classes).
        bins: number of bins of confidence.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == targets
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(which, minlength=bins)
    filled = np.maximum(counts, 1)

    def mean(values: np.ndarray) -> np.ndarray:
        result: np.ndarray = np.bincount(which, weights=values, minlength=bins) / filled
        return result

    def error(right: np.ndarray) -> float:
        return float((counts * abs(mean(right) - mean_confidence)).sum() / len(targets))

    mean_confidence, accuracy, rng = mean(confidence), mean(right), np.random.default_rng(0)
    by_chance = [error(rng.random(len(confidence)) < confidence) for _ in range(DRAWS)]
    truth = np.eye(probabilities.shape[1])[targets]
    return {
        "expected_calibration_error": error(right),
        "by_chance": float(np.quantile(by_chance, 0.95)),
        "brier_score": float(((probabilities - truth) ** 2).sum(axis=1).mean()),
        "bins": [
            {"texts": int(n), "confidence": float(c), "accuracy": float(a)}
            for n, c, a in zip(counts, mean_confidence, accuracy, strict=True)
            if n
        ],
    }


def logs(probabilities: np.ndarray) -> np.ndarray:
    """Return logits, up to a constant a text, as which logarithms of probabilities will do, shape (n, classes)."""
    result: np.ndarray = np.log(np.clip(probabilities.astype(np.float64), 1e-30, None))
    return result


def log_sum_exp(logits: np.ndarray) -> np.ndarray:
    """Return the logarithm of the sum of exponentials of every row, shape (n,), of logits of shape (n, classes)."""
    top = logits.max(axis=1)
    result: np.ndarray = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    return result
