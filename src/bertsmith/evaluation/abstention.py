"""Selective classification and conformal prediction: confidence thresholds, and label sets with a stated coverage."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertsmith.bootstrap import LEVEL

CURVE_POINTS = 50
TARGET_COVERAGES = (0.8, 0.9, 0.95, 0.99)
"""Coverages of label sets that every run is evaluated at."""
TARGET_ACCURACIES = (0.9, 0.95, 0.99)
"""Accuracies among the answered texts that every run is evaluated at."""
LEAST_EXPECTED = 5
"""Expected count that the chi-squared test needs in every class (Cochran 1954)."""


def accuracy_coverage_curve(confidence: np.ndarray, right: np.ndarray) -> list[dict[str, float]]:
    """Return the accuracy of the most confident texts for growing shares of them (El-Yaniv and Wiener 2010).

    Args:
        confidence: shape (n,).
        right: whether the prediction is correct, shape (n,).

    Returns:
        Up to `CURVE_POINTS` entries, by increasing ``coverage`` (share of the texts answered). Each has the
        ``accuracy`` of these texts and their lowest confidence, ``threshold``. Ties are answered together.
    """
    thresholds, hits, is_last = _ranked(confidence, right)
    last = np.flatnonzero(is_last)
    chosen = last[np.unique(np.linspace(0, len(last) - 1, min(CURVE_POINTS, len(last))).round().astype(int))]
    n = len(confidence)
    return [
        {"coverage": float((i + 1) / n), "accuracy": float(hits[i] / (i + 1)), "threshold": float(thresholds[i])}
        for i in chosen
    ]


def min_texts(accuracy: float) -> int:
    """Return how many texts a threshold for an accuracy below 1 needs: with so many, one mistake is expected."""
    return math.ceil(1 / (1 - accuracy) - 1e-6)


def confidence_threshold(confidence: np.ndarray, right: np.ndarray, accuracy: float) -> float | None:
    """Return the lowest threshold at which the more confident texts reach an accuracy.

    Args:
        confidence: of held-out texts, shape (n,).
        right: whether the prediction is correct, shape (n,).
        accuracy: target for the texts with at least this confidence, below 1.

    Returns:
        The threshold, or ``None`` if no threshold reaches the accuracy on at least `min_texts` texts.
    """
    thresholds, hits, is_last = _ranked(confidence, right)
    n = np.arange(1, len(thresholds) + 1)
    reached = np.flatnonzero(is_last & (hits >= accuracy * n - 1e-9) & (n >= min_texts(accuracy)))
    return float(thresholds[reached[-1]]) if len(reached) else None


def _ranked(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort by decreasing confidence; return confidences, cumulative hits, and whether each ends a run of ties."""
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    return ranked, np.cumsum(right[order]), np.append(ranked[1:] != ranked[:-1], True)


def conformal_threshold(conformity: np.ndarray, coverage: float) -> float:
    """Return the probability at which a label joins the label set, by split conformal prediction.

    The score is the probability of the label (Sadinle et al. 2019, arXiv:1609.00451). On exchangeable new texts the
    set contains the true label with at least the stated probability, whatever the model.

    Args:
        conformity: probability of the true label of each held-out text with a label, the lowest one of several labels,
            shape (n,).
        coverage: target, between 0 and 1.

    Returns:
        The threshold. It is 0, which admits every label, if the held-out texts are too few for the coverage.
    """
    n = len(conformity)
    k = math.ceil((n + 1) * coverage - 1e-9)
    return float(np.sort(conformity)[::-1][k - 1]) if k <= n else 0.0


@dataclass(frozen=True)
class CheckedPredictions:
    """Predictions of n texts, compared with their labels.

    Attributes:
        confidence: shape (n,).
        right: whether each prediction is correct, bool, shape (n,).
        conformity: probability of the true label, the lowest one of several labels, of each text with a label.
    """

    confidence: np.ndarray
    right: np.ndarray
    conformity: np.ndarray


def evaluate_abstention(
    test: CheckedPredictions,
    held_out: CheckedPredictions,
    evaluate_sets: Callable[[float], tuple[np.ndarray, np.ndarray]],
) -> dict[str, Any]:
    """Evaluate abstention and label sets on texts other than those that set the thresholds.

    Args:
        test: the evaluation texts.
        held_out: the texts that set the thresholds.
        evaluate_sets: returns two arrays for a threshold. The first says whether the label set of each evaluation text
            with a label contains its true labels. The second has the size of the set of each evaluation text.

    Returns:
        JSON-ready. ``accuracy_coverage`` is the curve. ``thresholds`` has one entry per target accuracy.
        ``conformal`` has one entry per target coverage. Its ``empirical_coverage`` is the coverage of the sets of texts
        with a label. ``by_threshold`` counts only labels above the threshold, without the predicted label that a set
        may contain in addition. ``expected`` is the 95 % interval of ``by_threshold`` if the guarantee holds. The
        three are ``None`` if the evaluation texts have no labels.
    """
    thresholds = []
    for accuracy in TARGET_ACCURACIES:
        threshold = confidence_threshold(held_out.confidence, held_out.right, accuracy)
        answered = test.confidence >= (np.inf if threshold is None else threshold)
        thresholds.append(
            {
                "target_accuracy": accuracy,
                "threshold": threshold,
                "coverage": float(answered.mean()),
                "accuracy": float(test.right[answered].mean()) if answered.any() else None,
            }
        )
    conformal = []
    for coverage in TARGET_COVERAGES:
        threshold = conformal_threshold(held_out.conformity, coverage)
        covered, sizes = evaluate_sets(threshold)
        expected = coverage_interval(coverage, len(held_out.conformity), len(test.conformity))
        conformal.append(
            {
                "coverage": coverage,
                "threshold": threshold,
                "empirical_coverage": _share(covered),
                "by_threshold": _share(test.conformity >= threshold),
                "expected": list(expected) if len(test.conformity) else None,
                "mean_labels": float(sizes.mean()),
                "single_label": float((sizes == 1).mean()),
            }
        )
    return {
        "accuracy_coverage": accuracy_coverage_curve(test.confidence, test.right),
        "thresholds": thresholds,
        "conformal": conformal,
    }


def _share(right: np.ndarray) -> float | None:
    return float(right.mean()) if len(right) else None


def label_shift(held_out: np.ndarray, test: np.ndarray, texts: Sequence[int] | None = None) -> dict[str, Any]:
    """Test whether two sets of texts have the same label distribution, which thresholds and coverage assume.

    Args:
        held_out: number of labels of each class among the texts that set the thresholds, shape (classes,).
        test: the same for the other texts.
        texts: the numbers of texts, if a text can have any number of labels. Each label is then compared separately.

    Returns:
        JSON-ready: ``distance`` (total variation; with ``texts``, the largest difference of a label's share), ``p`` of
        a chi-squared test (with ``texts``, Fisher's exact test, corrected for the number of labels), and ``shifted`` (p
        below 0.001). The chi-squared test counts rare classes as one; see `_merge_rare`.
    """
    from scipy.stats import chi2_contingency, fisher_exact

    counts = np.stack([held_out, test])
    if texts is not None:
        n = np.array(texts)
        tables = [np.stack([label, n - label]) for label in counts.T]
        lowest = min((float(fisher_exact(t).pvalue) for t in tables if t.sum(axis=1).all()), default=1.0)
        p, difference = min(1.0, lowest * len(tables)), abs(counts[0] / n[0] - counts[1] / n[1])
        return {"distance": float(difference.max()), "p": p, "shifted": p < 0.001}
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    merged = _merge_rare(counts)
    p = float(chi2_contingency(merged).pvalue) if merged.shape[1] > 1 else 1.0
    return {"distance": float(abs(shares[0] - shares[1]).sum() / 2), "p": p, "shifted": p < 0.001}


def _merge_rare(counts: np.ndarray) -> np.ndarray:
    """Merge the rarest classes of two sets of texts into one, until each has `LEAST_EXPECTED` labels in expectation.

    Args:
        counts: number of labels of each class in each set, shape (2, classes).
    """
    ordered = counts[:, np.argsort(counts.sum(axis=0), kind="stable")]
    expected = ordered.sum(axis=0) * ordered.sum(axis=1).min() / max(ordered.sum(), 1)  # in the smaller set
    n = np.count_nonzero(np.minimum(expected, np.cumsum(expected) - expected) < LEAST_EXPECTED)
    return np.column_stack([ordered[:, :n].sum(axis=1), ordered[:, n:]])


def coverage_interval(coverage: float, held_out: int, texts: int) -> tuple[float, float]:
    """Return the 95 % interval of the coverage observed on new texts if the guarantee holds.

    Given the held-out texts, the true coverage has a beta distribution (Vovk 2012, arXiv:1209.2673). The coverage
    observed on n texts is then beta-binomial.

    Args:
        coverage: guaranteed coverage.
        held_out: number of texts that set the threshold.
        texts: number of new texts, n.
    """
    from scipy.stats import betabinom

    k = math.ceil((held_out + 1) * coverage - 1e-9)
    if k > held_out or not texts:
        return 1.0, 1.0
    tail = (1 - LEVEL) / 2
    low, high = betabinom.ppf([tail, 1 - tail], texts, k, held_out + 1 - k) / texts
    return float(low), float(high)
