"""The decision rule: which class is taken, given the probabilities. Tuned on validation where that measurably helps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bertsmith.config import PRIMARY
from bertsmith.evaluation.calibration import logs
from bertsmith.evaluation.intervals import from_pairs, paired_draws

GRID = np.arange(-3.0, 3.01, 0.25)
"""Offsets that are tried, in units of the logit."""
SHRINKAGE = 10.0
"""An offset of a class with n validation texts is multiplied by n / (n + this): few texts say little."""
FOLDS = 5
FEWEST_TEXTS = 50
"""With fewer validation texts nothing could be told from chance."""


@dataclass(frozen=True)
class Decision:
    """Offsets of the classes, and what they are good for.

    Attributes:
        offsets: what is added to every logit before the largest is taken, shape (classes,); all 0 where not used.
        used: whether they help by more than the standard error of that.
        gain: by how much they raise the primary metric on validation texts they were not tuned on.
        standard_error: of the gain, by bootstrap over the texts.
    """

    offsets: np.ndarray
    used: bool
    gain: float
    standard_error: float

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "used": self.used,
            "metric": PRIMARY,
            "gain": self.gain,
            "standard_error": self.standard_error,
            "offsets": self.offsets.tolist(),
        }


def tune(targets: np.ndarray, probabilities: np.ndarray, *, seed: int) -> Decision:
    """Tune the decision rule for macro-F1 on held-out texts.

    The gain is that of cross-fitting: every fifth of the texts is labelled with offsets tuned on the other four, so
    that a rule which only remembers its own texts shows none.

    Args:
        targets: class indices, shape (n,).
        probabilities: of the same texts, shape (n, classes).
        seed: of the folds and of the bootstrap.
    """
    n, n_classes = probabilities.shape
    nothing = np.zeros(n_classes)
    if n < FEWEST_TEXTS:
        return Decision(nothing, False, 0.0, float("nan"))
    logits = logs(probabilities)
    fold = folds(targets, seed, FOLDS)
    ruled = np.empty(n, dtype=np.int64)
    for f in range(FOLDS):
        inside = fold != f
        ruled[~inside] = (logits[~inside] + offsets(targets[inside], logits[inside])).argmax(axis=1)
    plain = logits.argmax(axis=1)
    gain = from_pairs(targets, ruled, n_classes)[PRIMARY] - from_pairs(targets, plain, n_classes)[PRIMARY]
    error = float(np.std(paired_draws(targets, ruled, plain, n_classes, metric=PRIMARY, seed=seed)))
    used = gain > error
    return Decision(offsets(targets, logits) if used else nothing, bool(used), float(gain), error)


def offsets(targets: np.ndarray, logits: np.ndarray, sweeps: int = 2) -> np.ndarray:
    """Return the offsets that raise macro-F1 most, found one class after the other and shrunk, shape (classes,).

    Args:
        targets: class indices, shape (n,).
        logits: shape (n, classes).
        sweeps: how often every class has its turn.
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
            margin = moved.max(axis=1) - logits[:, c]  # the class is taken where its offset is above this
            scores = np.array([_macro_f1(targets, np.where(v > margin, c, rival), support) for v in GRID])
            best = np.flatnonzero(scores == scores.max())
            found[c] = GRID[best[np.argmin(abs(GRID[best]))]]
            moved[:, c] = logits[:, c] + found[c]
    return found * support / (support + SHRINKAGE)


def _macro_f1(targets: np.ndarray, predicted: np.ndarray, support: np.ndarray) -> float:
    hit = np.bincount(targets[targets == predicted], minlength=len(support))
    either = support + np.bincount(predicted, minlength=len(support))
    return float((2 * hit[either > 0] / either[either > 0]).mean())


def folds(targets: np.ndarray, seed: int, k: int) -> np.ndarray:
    """Return the fold of every text, 0 to k − 1, shape (n,): those of a class are spread evenly, at random.

    Args:
        targets: class indices, shape (n,).
        seed: of the spreading.
        k: number of folds.
    """
    order = np.random.default_rng(seed).permutation(len(targets))
    order = order[np.argsort(targets[order], kind="stable")]
    fold = np.empty(len(targets), dtype=np.int64)
    fold[order] = np.arange(len(targets)) % k
    return fold
