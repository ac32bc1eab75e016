"""The decision rule: class offsets for macro-F1, tuned on held-out texts and used only if they help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bertsmith.config import PRIMARY
from bertsmith.evaluation.calibration import to_logits
from bertsmith.evaluation.intervals import label_metrics, resampled_differences

GRID = np.arange(-3.0, 3.01, 0.25)
"""Candidate offsets, in logits."""
SHRINKAGE = 10.0
"""The offset of a class with n held-out texts is multiplied by n / (n + this)."""
FOLDS = 5
MIN_TEXTS = 50
"""Fewer held-out texts cannot show a gain beyond chance."""


@dataclass(frozen=True)
class Decision:
    """Tuned class offsets and their measured gain.

    Attributes:
        offsets: added to the logits before the argmax, shape (classes,); all 0 if not used.
        used: whether the gain exceeds its standard error.
        gain: increase of the primary metric on held-out texts, by cross-fitting.
        standard_error: of the gain, by bootstrap over the texts.
    """

    offsets: np.ndarray
    used: bool
    gain: float
    standard_error: float

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready entry ``decision_rule`` of ``metrics.json``."""
        return {
            "used": self.used,
            "metric": PRIMARY,
            "gain": self.gain,
            "standard_error": self.standard_error,
            "offsets": self.offsets.tolist(),
        }


def tune_offsets(
    targets: np.ndarray, probabilities: np.ndarray, *, seed: int, model: np.ndarray | None = None
) -> Decision:
    """Tune class offsets for macro-F1 on held-out texts.

    The gain is cross-fitted: each fold is predicted with offsets tuned on the other folds. Offsets that merely fit
    their tuning texts show no gain. If several models predicted the texts, each fold is one model, so that offsets that
    correct the bias of one model show no gain.

    Args:
        targets: class indices, shape (n,).
        probabilities: of the same texts, shape (n, classes).
        seed: of the folds and of the bootstrap.
        model: number of the model that predicted each text, shape (n,); ``None`` if one model predicted all texts.
    """
    n, n_classes = probabilities.shape
    no_offsets = np.zeros(n_classes)
    if n < MIN_TEXTS:
        return Decision(no_offsets, False, 0.0, float("nan"))
    logits = to_logits(probabilities)
    fold = stratified_folds(targets, seed, FOLDS) if model is None or len(np.unique(model)) < 2 else model
    ruled = np.empty(n, dtype=np.int64)
    for f in np.unique(fold):
        inside = fold != f
        ruled[~inside] = (logits[~inside] + best_offsets(targets[inside], logits[inside])).argmax(axis=1)
    plain = logits.argmax(axis=1)
    gain = label_metrics(targets, ruled, n_classes)[PRIMARY] - label_metrics(targets, plain, n_classes)[PRIMARY]
    error = float(np.std(resampled_differences(targets, ruled, plain, n_classes, seed=seed)))
    used = gain > error
    return Decision(best_offsets(targets, logits) if used else no_offsets, bool(used), float(gain), error)


def best_offsets(targets: np.ndarray, logits: np.ndarray, sweeps: int = 2) -> np.ndarray:
    """Return the offsets that maximize macro-F1 by coordinate ascent, then shrunk, shape (classes,).

    Args:
        targets: class indices, shape (n,).
        logits: shape (n, classes).
        sweeps: passes over the classes.
    """
    n_classes = logits.shape[1]
    support = np.bincount(targets, minlength=n_classes)
    moved = logits.copy()
    found = np.zeros(n_classes)
    for _ in range(sweeps):
        for c in np.argsort(support, kind="stable"):
            if not support[c]:
                continue
            moved[:, c] = -np.inf
            rival = moved.argmax(axis=1)
            margin = moved.max(axis=1) - logits[:, c]  # class c wins with offsets above this
            scores = np.array([_macro_f1(targets, np.where(v > margin, c, rival), support) for v in GRID])
            best = np.flatnonzero(scores == scores.max())
            found[c] = GRID[best[np.argmin(abs(GRID[best]))]]
            moved[:, c] = logits[:, c] + found[c]
    return found * support / (support + SHRINKAGE)


def _macro_f1(targets: np.ndarray, predicted: np.ndarray, support: np.ndarray) -> float:
    hit = np.bincount(targets[targets == predicted], minlength=len(support))
    either = support + np.bincount(predicted, minlength=len(support))
    return float((2 * hit[either > 0] / either[either > 0]).mean())


def stratified_folds(targets: np.ndarray, seed: int, k: int) -> np.ndarray:
    """Assign every text to a fold, 0 to k − 1, at random with the classes spread evenly; shape (n,).

    Args:
        targets: class indices, shape (n,).
        seed: of the shuffle.
        k: number of folds.
    """
    order = np.random.default_rng(seed).permutation(len(targets))
    order = order[np.argsort(targets[order], kind="stable")]
    fold = np.empty(len(targets), dtype=np.int64)
    fold[order] = np.arange(len(targets)) % k
    return fold
