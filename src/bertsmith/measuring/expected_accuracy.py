"""Expected accuracy on new texts without labels, from their predictions and from labelled held-out texts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain

import numpy as np

from bertsmith.bootstrap import LEVEL, draw_resamples
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
LENGTHS = 160
"""Bins of length in which texts are counted, eight for each doubling."""
FEWEST_IN_CLASS = 10
"""Minimum number of held-out texts per class, on average, for a check of the class shares."""
UNEXPLAINED = 0.02
"""Label shift is implausible if class shares leave more than this share of the predicted labels unexplained."""
VANISHED = 0.1
"""A class has vanished if its share is below this fraction of its share of the held-out texts."""
UNLIKE = 0.2
"""Texts are unlike if more than this share differs in length, or had classes that have vanished."""


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
        groups: number of groups of the held-out texts; ``None`` for independent texts. If there is one group, the
            interval is 0 to 1: one group says nothing about others. With few groups, the interval is unreliable.
    """

    value: float
    low: float
    high: float
    held_out: int
    unlike: bool = False
    groups: int | None = None


def expect_accuracy(
    confidences: np.ndarray,
    predicted: np.ndarray,
    targets: np.ndarray,
    confidence: np.ndarray,
    decided: np.ndarray,
    lengths: tuple[np.ndarray, np.ndarray] | None = None,
    groups: np.ndarray | None = None,
) -> ExpectedAccuracy | None:
    """Return the expected accuracy on new texts; ``None`` if the texts are too few.

    Two assumptions give three intervals, and the result spans all of them. Under covariate shift, accuracy at a
    confidence is the same as on the held-out texts. Under label shift, accuracy within a class is the same, and the
    class shares follow from the predicted classes (Lipton et al. 2018, arXiv:1802.03916). If the model confuses the
    classes often, this interval is wide. Predicted classes say nothing about classes that a model never predicts.
    Therefore the third interval takes the class shares that fit predicted classes and confidence best. On texts unlike
    the held-out texts, both assumptions may fail. A model can be as confident about half of a text as about all of it,
    and make more mistakes.

    Args:
        confidences: number of new texts by confidence, in the bins of `grid_of`, shape (`GRID`,).
        predicted: number of new texts by predicted class, shape (classes,).
        targets: class indices of the held-out texts, shape (n,).
        confidence: their confidence, shape (n,).
        decided: their predicted class indices, shape (n,).
        lengths: number of new texts and of held-out texts by length, in the bins of `length_bin`, each of shape
            (`LENGTHS`,); ``None`` if unknown.
        groups: group of each held-out text, such as its author, shape (n,). Whole groups are then drawn.
    """
    n_new = int(confidences.sum())
    if n_new < FEWEST or len(targets) < FEWEST:
        return None
    rng = np.random.default_rng(0)
    grid = np.array([grid_of(value) for value in confidence])
    edges = np.unique(np.quantile(grid, np.linspace(0, 1, BINS + 1)[1:-1]))
    bins, of_grid = (np.searchsorted(edges, values, side="right") for values in (grid, np.arange(GRID)))
    by_bin = np.bincount(of_grid, weights=confidences / n_new, minlength=len(edges) + 1)
    by_confidence = _by_confidence(by_bin, bins, decided == targets, groups, rng)
    *by_class, contradicts = _by_class(predicted / n_new, by_bin, targets, decided, bins, groups, rng)
    bounds = []
    for accuracies in (by_confidence, *by_class):
        observed = rng.binomial(n_new, np.clip(accuracies, 0, 1)) / n_new
        bounds.append(np.quantile(observed, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    low, high = np.min(bounds, axis=0)[0], np.max(bounds, axis=0)[1]
    value, unlike = float(by_confidence.mean()), contradicts or (lengths is not None and _are_unlike(*lengths))
    n_groups = None if groups is None else len(np.unique(groups))
    if unlike or n_groups == 1:
        low = 0.0
    high = 1.0 if n_groups == 1 else float(high)
    return ExpectedAccuracy(value, float(low), high, len(targets), unlike, n_groups)


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
    by_bin: np.ndarray, bins: np.ndarray, right: np.ndarray, groups: np.ndarray | None, rng: np.random.Generator
) -> np.ndarray:
    """Return draws of the accuracy under covariate shift, shape (draws,), from shares by bin of confidence."""
    inside, mean = np.eye(len(by_bin))[bins], float(right.mean())
    texts, hits = inside.sum(axis=0), right @ inside
    # A weak prior at the accuracy of all held-out texts, worth one text.
    if groups is None:
        drawn = rng.beta(hits + mean + 1e-3, texts - hits + 1 - mean + 1e-3, (DRAWS, len(by_bin)))
    else:
        resamples = draw_resamples(len(right), groups, rng, DRAWS)
        drawn = np.concatenate([(times * right @ inside + mean) / (times @ inside + 1) for times in resamples])
    return drawn @ by_bin


def _by_class(
    predicted: np.ndarray,
    by_bin: np.ndarray,
    targets: np.ndarray,
    decided: np.ndarray,
    bins: np.ndarray,
    groups: np.ndarray | None,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Return draws of the accuracy under label shift, from predicted classes, and from these and confidence.

    Also return whether label shift is implausible: in nearly all draws, no class shares explain the shares by predicted
    class, or large classes vanish.

    Args:
        predicted, by_bin: shares of the new texts by predicted class and by bin of confidence.
        targets, decided, bins, groups: class, predicted class, bin of confidence and group of the held-out texts, shape
            (n,).
        rng: of the draws.
    """
    k, n_cells = len(predicted), len(predicted) + len(by_bin)
    draws = DRAWS if k <= MANY_CLASSES else DRAWS // 4
    overall, tables = float((decided == targets).mean()), np.empty((draws, n_cells, k))
    cells = np.stack([decided, k + bins]) * k + targets
    for i, times in enumerate(chain.from_iterable(draw_resamples(len(targets), groups, rng, draws))):
        tables[i] = np.bincount(cells.ravel(), np.tile(times, 2), n_cells * k).reshape(n_cells, k)
    texts = tables[:, :k].sum(axis=1)
    recall = np.where(texts > 0, np.diagonal(tables, axis1=1, axis2=2) / np.maximum(texts, 1), overall)
    mixture = tables / np.maximum(texts, 1)[:, None]
    found = _class_shares(mixture[:, :k], predicted)
    both = _class_shares(mixture / 2, np.concatenate([predicted, by_bin]) / 2)  # each text is in two cells
    results = [(some * recall).sum(axis=1) / np.maximum(some.sum(axis=1), 1e-12) for some in (found, both)]
    unexplained = abs(np.einsum("dij,dj->di", mixture[:, :k], found) - predicted).sum(axis=1) / 2
    before = np.bincount(targets, minlength=k) / len(targets)
    vanished = before[np.median(found, axis=0) < VANISHED * before].sum()
    known = len(targets) >= FEWEST_IN_CLASS * k  # with fewer texts, the resampled tables are too imprecise
    contradicts = known and bool((unexplained > UNEXPLAINED).mean() > (1 + LEVEL) / 2 or vanished > UNLIKE)
    return results[0], results[1], contradicts


def _class_shares(mixture: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return the class shares of maximum likelihood, shape (draws, classes).

    Args:
        mixture: shares of the texts of each class by cell, shape (draws, cells, classes).
        shares: of the new texts by cell, shape (cells,).
    """
    draws, _, k = mixture.shape
    found = np.full((draws, k), 1 / k)
    for _ in range(EM_STEPS if k <= MANY_CLASSES else EM_STEPS // 10):
        ratio = shares / np.maximum(np.einsum("dij,dj->di", mixture, found), 1e-12)
        last, found = found, found * np.einsum("dij,di->dj", mixture, ratio)
        if abs(found - last).max() < CONVERGED:
            break
    return found
