"""The decision rule: class offsets for macro-F1, tuned on held-out texts and used only if they help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertsmith.bootstrap import draw_resamples, is_one_group
from bertsmith.config import PRIMARY
from bertsmith.evaluation.calibration import to_logits
from bertsmith.evaluation.intervals import resampled_label_metrics

GRID = np.arange(-3.0, 3.01, 0.25)
"""Candidate offsets, in logits."""
SHRINKAGE = 10.0
"""The offset of a class with n held-out texts is multiplied by n / (n + this)."""
FOLDS = 5
MIN_TEXTS = 50
"""Fewer held-out texts cannot show a gain beyond chance."""


@dataclass(frozen=True)
class TunedOffsets:
    """Offsets of the decision rule, tuned on held-out texts, and their measured gain.

    Attributes:
        offsets: added to the logits before the argmax, shape (classes,); all 0 if not used.
        used: whether the gain exceeds its standard error.
        gain: increase of the primary metric on held-out texts, by cross-fitting.
        standard_error: of the gain, by bootstrap over the texts or their groups.
    """

    offsets: np.ndarray
    used: bool
    gain: float
    standard_error: float

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON-ready entry ``decision_rule`` of ``metrics.json``."""
        return {
            "used": self.used,
            "gain": self.gain,
            "standard_error": self.standard_error,
            "offsets": self.offsets.tolist(),
        }


def tune_offsets(
    targets: np.ndarray,
    probabilities: np.ndarray,
    *,
    seed: int,
    model: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> TunedOffsets:
    """Tune class offsets for macro-F1 on held-out texts.

    Args:
        targets: class indices, shape (n,).
        probabilities: of the same texts, shape (n, classes).
        seed: of the folds and of the bootstrap.
        model, groups: as for `tune`.
    """
    logits, n_classes = to_logits(probabilities), probabilities.shape[1]
    return tune(
        targets,
        logits,
        fold=stratified_folds(targets, seed, FOLDS),
        model=model,
        fit=best_offsets,
        decide=lambda moved: moved.argmax(axis=1),
        score=lambda drawn, decided: resampled_label_metrics(drawn, targets, decided, n_classes)[PRIMARY],
        seed=seed,
        groups=groups,
    )


def tune(
    targets: np.ndarray,
    logits: np.ndarray,
    *,
    fold: np.ndarray,
    model: np.ndarray | None,
    fit: Callable[[np.ndarray, np.ndarray], np.ndarray],
    decide: Callable[[np.ndarray], np.ndarray],
    score: Callable[[np.ndarray, np.ndarray], np.ndarray],
    seed: int,
    groups: np.ndarray | None,
) -> TunedOffsets:
    """Tune offsets on held-out texts, and use them if their cross-fitted gain exceeds its standard error.

    Each fold is predicted with offsets tuned on the other folds. Offsets that merely fit their tuning texts show no
    gain. If several models predicted the texts, each fold is one model, so that offsets that correct the bias of one
    model show no gain.

    Args:
        targets: of n texts.
        logits: shape (n, outputs).
        fold: the fold of each text if one model predicted all texts, shape (n,).
        model: number of the model that predicted each text, shape (n,); ``None`` if one model predicted all texts.
        fit: returns the best offsets, shape (outputs,), for targets and logits.
        decide: returns the decisions, shaped as targets, for logits with offsets.
        score: returns the metric of every resample, for how often each resample draws each text and decisions.
        seed: of the bootstrap.
        groups: as for `draw_resamples`.
    """
    n, n_outputs = logits.shape
    if n < MIN_TEXTS or is_one_group(groups):
        return TunedOffsets(np.zeros(n_outputs), False, 0.0, float("nan"))
    if model is not None and len(np.unique(model)) > 1:
        fold = model
    plain = decide(logits)
    tuned = np.empty_like(plain)
    for f in np.unique(fold):
        inside = fold != f
        tuned[~inside] = decide(logits[~inside] + fit(targets[inside], logits[inside]))
    once = np.ones((1, n), dtype=np.int64)
    gain = float(score(once, tuned)[0] - score(once, plain)[0])
    resamples = draw_resamples(n, groups, np.random.default_rng(seed))
    error = float(np.concatenate([score(drawn, tuned) - score(drawn, plain) for drawn in resamples]).std())
    used = gain > error
    return TunedOffsets(fit(targets, logits) if used else np.zeros(n_outputs), used, gain, error)


def best_offsets(targets: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Return the offsets that maximize macro-F1 by coordinate ascent, then shrunk, shape (classes,).

    Args:
        targets: class indices, shape (n,).
        logits: shape (n, classes).
    """
    n_classes = logits.shape[1]
    support = np.bincount(targets, minlength=n_classes)
    moved = logits.copy()
    found = np.zeros(n_classes)
    for _ in range(2):  # a second pass, because the offsets depend on each other
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


def stratified_folds(targets: np.ndarray, seed: int, k: int, units: np.ndarray | None = None) -> np.ndarray:
    """Assign every text to a fold, 0 to k − 1, at random with the classes spread evenly; shape (n,).

    Args:
        targets: class indices, shape (n,).
        seed: of the shuffle.
        k: number of folds.
        units: index of the near-duplicates that a text belongs to, shape (n,). Their fold is that of their first text.
    """
    if units is not None:
        first, of_unit = np.unique(units, return_index=True, return_inverse=True)[1:]
        return stratified_folds(targets[first], seed, k)[of_unit]
    order = np.random.default_rng(seed).permutation(len(targets))
    order = order[np.argsort(targets[order], kind="stable")]
    fold = np.empty(len(targets), dtype=np.int64)
    fold[order] = np.arange(len(targets)) % k
    return fold
