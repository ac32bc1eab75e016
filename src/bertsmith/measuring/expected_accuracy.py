"""Expected accuracy on new texts without labels, from their predictions and from labelled held-out texts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bertsmith.measuring.drift import compare_counts

GRID = 100
"""Bins of confidence in which texts are counted."""
BINS = 10
"""Bins of confidence with equal numbers of held-out texts."""
FEWEST = 100
"""Fewest held-out texts, and fewest new texts."""
DRAWS, EM_STEPS = 400, 1000
"""With many classes, a quarter of the draws and a tenth of the steps."""
MANY_CLASSES, CONVERGED = 20, 1e-5
LEVEL = 0.95
LENGTHS = 160
"""Bins of length in which texts are counted, eight for each doubling."""
FEWEST_IN_CLASS = 10
"""Held-out texts per class, in the mean, from which the shares of the classes are checked."""
UNEXPLAINED = 0.02
"""Label shift is implausible if class shares leave more than this share of the predicted labels unexplained."""
VANISHED = 0.1
"""A class has vanished if its share is below this fraction of its share of the held-out texts."""
UNLIKE = 0.2
"""Texts are unlike if this share differs in length, or if vanished classes had this share of the held-out texts."""


@dataclass(frozen=True)
class ExpectedAccuracy:
    """Expected share of correct predictions among new texts.

    Attributes:
        value: the share under covariate shift.
        low, high: its interval, which is valid under covariate shift and under label shift.
        held_out: number of held-out texts.
        unlike: whether both assumptions may fail, because the new texts are shorter or longer, or because no plausible
            class shares explain the predicted labels. The interval then begins at 0: on other texts, a model can be
            worse than a random guess.
    """

    value: float
    low: float
    high: float
    held_out: int
    unlike: bool = False


def expect_accuracy(
    confidences: np.ndarray,
    predicted: np.ndarray,
    targets: np.ndarray,
    confidence: np.ndarray,
    decided: np.ndarray,
    lengths: tuple[np.ndarray, np.ndarray] | None = None,
) -> ExpectedAccuracy | None:
    """Return the expected accuracy on new texts; ``None`` if the texts are too few.

    Two assumptions give two intervals, and the result spans both. Under covariate shift, accuracy at a confidence is
    the same as on the held-out texts. Under label shift, accuracy within a class is the same, and the class shares
    follow from the predictions (Lipton et al. 2018, arXiv:1802.03916). If the model confuses the classes often, the
    second interval is wide. On texts unlike the held-out texts, both assumptions may fail. A model can be as confident
    about half of a text as about all of it, and make more mistakes.

    Args:
        confidences: number of new texts by confidence, in the bins of `grid_of`, shape (`GRID`,).
        predicted: number of new texts by predicted class, shape (classes,).
        targets: class indices of the held-out texts, shape (n,).
        confidence: their confidence, shape (n,).
        decided: their predicted class indices, shape (n,).
        lengths: number of new texts and of held-out texts by length, in the bins of `length_bin`, each of shape
            (`LENGTHS`,); ``None`` if unknown.
    """
    n_new = int(confidences.sum())
    if n_new < FEWEST or len(targets) < FEWEST:
        return None
    rng = np.random.default_rng(0)
    by_confidence = _by_confidence(confidences / n_new, confidence, decided == targets, rng)
    by_class, contradicts = _by_class(predicted / n_new, targets, decided, rng)
    bounds = []
    for accuracies in (by_confidence, by_class):
        observed = rng.binomial(n_new, np.clip(accuracies, 0, 1)) / n_new
        bounds.append(np.quantile(observed, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    low, high = np.min(bounds, axis=0)[0], np.max(bounds, axis=0)[1]
    value, unlike = float(by_confidence.mean()), contradicts or (lengths is not None and _are_unlike(*lengths))
    if unlike:
        low = 0.0
    return ExpectedAccuracy(value, float(low), float(high), len(targets), unlike)


def grid_of(confidence: float) -> int:
    """Return the bin of a confidence, from 0 to `GRID` − 1."""
    return min(int(confidence * GRID), GRID - 1)


def length_bin(characters: int) -> int:
    """Return the bin of a length, from 0 to `LENGTHS` − 1."""
    return min(int(8 * math.log2(1 + characters)), LENGTHS - 1)


def _are_unlike(new: np.ndarray, held_out: np.ndarray) -> bool:
    """Return whether lengths differ by more than `UNLIKE`, and by more than chance explains."""
    edges = np.searchsorted(np.cumsum(held_out) / held_out.sum(), np.linspace(0, 1, BINS + 1)[1:-1])
    bins = np.searchsorted(np.unique(edges), np.arange(LENGTHS), side="left")
    counts = [np.bincount(bins, weights=some).astype(np.int64) for some in (held_out, new)]
    found = compare_counts("length", counts[0], counts[1], 0.99)
    return found.differs and found.distance > UNLIKE


def _by_confidence(
    shares: np.ndarray, confidence: np.ndarray, right: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return draws of the accuracy under covariate shift, shape (draws,), from shares by grid bin."""
    grid = np.array([grid_of(value) for value in confidence])
    edges = np.unique(np.quantile(grid, np.linspace(0, 1, BINS + 1)[1:-1]))
    held_out, new = np.searchsorted(edges, grid, side="right"), np.searchsorted(edges, np.arange(GRID), side="right")
    n_bins = len(edges) + 1
    texts = np.bincount(held_out, minlength=n_bins)
    hits = np.bincount(held_out, weights=right, minlength=n_bins)
    mean = float(right.mean())
    # A weak prior at the accuracy of all held-out texts, worth one text.
    drawn = rng.beta(hits + mean + 1e-3, texts - hits + 1 - mean + 1e-3, (DRAWS, n_bins))
    result: np.ndarray = drawn @ np.bincount(new, weights=shares, minlength=n_bins)
    return result


def _by_class(
    shares: np.ndarray, targets: np.ndarray, decided: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, bool]:
    """Return draws of the accuracy under label shift, shape (draws,), from shares by predicted class.

    Also return whether label shift is implausible. It is, if in nearly all draws no class shares explain the shares by
    predicted class, or if large classes vanish.
    """
    k = len(shares)
    draws, steps = (DRAWS, EM_STEPS) if k <= MANY_CLASSES else (DRAWS // 4, EM_STEPS // 10)
    overall, tables = float((decided == targets).mean()), np.empty((draws, k, k))
    for i in range(draws):
        rows = rng.integers(0, len(targets), len(targets))
        tables[i] = np.bincount(decided[rows] * k + targets[rows], minlength=k * k).reshape(k, k)
    texts = tables.sum(axis=1)
    recall = np.where(texts > 0, np.diagonal(tables, axis1=1, axis2=2) / np.maximum(texts, 1), overall)
    mixture, found = tables / np.maximum(texts, 1)[:, None], np.full((draws, k), 1 / k)
    for _ in range(steps):  # the class shares of maximum likelihood
        ratio = shares / np.maximum(np.einsum("dij,dj->di", mixture, found), 1e-12)
        last, found = found, found * np.einsum("dij,di->dj", mixture, ratio)
        if abs(found - last).max() < CONVERGED:
            break
    result: np.ndarray = (found * recall).sum(axis=1) / np.maximum(found.sum(axis=1), 1e-12)
    unexplained = abs(np.einsum("dij,dj->di", mixture, found) - shares).sum(axis=1) / 2
    before = np.bincount(targets, minlength=k) / len(targets)
    vanished = before[np.median(found, axis=0) < VANISHED * before].sum()
    known = len(targets) >= FEWEST_IN_CLASS * k  # with fewer texts, the resampled tables are too imprecise
    return result, known and bool((unexplained > UNEXPLAINED).mean() > (1 + LEVEL) / 2 or vanished > UNLIKE)
