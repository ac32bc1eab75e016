"""To say nothing rather than something wrong: thresholds of confidence, and sets of labels with a stated coverage."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

POINTS = 50
"""Points of the accuracy-coverage curve."""
COVERAGES = (0.8, 0.9, 0.95, 0.99)
"""Coverages of label sets that are checked on the test texts of every run."""
TARGETS = (0.9, 0.95, 0.99)
"""Accuracies among the answered that are checked likewise."""


def accuracy_coverage(confidence: np.ndarray, right: np.ndarray) -> list[dict[str, float]]:
    """Return how accurate the most confident texts are, for growing shares of them (El-Yaniv and Wiener 2010).

    Args:
        confidence: shape (n,).
        right: whether the text is labelled right, shape (n,).

    Returns:
        Up to `POINTS` entries, from few texts to all: ``coverage`` (share answered), ``accuracy`` among them, and
        ``threshold``, the least confidence among them. Texts of one confidence are answered together.
    """
    order = np.argsort(-confidence, kind="stable")
    sure, hits = confidence[order], np.cumsum(right[order])
    last = np.flatnonzero(np.append(sure[1:] != sure[:-1], True))
    some = last[np.unique(np.linspace(0, len(last) - 1, min(POINTS, len(last))).round().astype(int))]
    n = len(confidence)
    return [
        {
            "coverage": float((i + 1) / n),
            "accuracy": float(hits[i] / (i + 1)),
            "threshold": float(sure[i]),
        }
        for i in some
    ]


def fewest_texts(accuracy: float) -> int:
    """Return how many texts a threshold must rest on at least: as many as have one mistake at that accuracy.

    Args:
        accuracy: wanted, below 1.
    """
    return math.ceil(1 / (1 - accuracy) - 1e-6)


def threshold_for(confidence: np.ndarray, right: np.ndarray, accuracy: float) -> float | None:
    """Return the least confidence from which on held-out texts were labelled with an accuracy.

    Args:
        confidence: shape (n,).
        right: whether the text is labelled right, shape (n,).
        accuracy: wanted among the texts at least so confident, below 1.

    Returns:
        The threshold, or ``None`` where none reaches the accuracy on `fewest_texts` or more.
    """
    order = np.argsort(-confidence, kind="stable")
    sure, hits = confidence[order], np.cumsum(right[order])
    last = np.append(sure[1:] != sure[:-1], True)
    n = np.arange(1, len(sure) + 1)
    enough = np.flatnonzero(last & (hits >= accuracy * n - 1e-9) & (n >= fewest_texts(accuracy)))
    return float(sure[enough[-1]]) if len(enough) else None


def conformal_threshold(targets: np.ndarray, probabilities: np.ndarray, coverage: float) -> float:
    """Return the probability from which a label belongs to a text's set, so that the sets cover the truth.

    Split conformal prediction with the probability of the label as its score (Sadinle et al. 2019, arXiv:1609.00451):
    for new texts like the held-out ones the set holds the true label with at least the stated probability, whatever
    the model is like.

    Args:
        targets: class indices of held-out texts, shape (n,).
        probabilities: of them, shape (n, classes).
        coverage: wanted, above 0 and below 1.

    Returns:
        The threshold; 0, at which every label belongs, where there are too few texts for that coverage.
    """
    n = len(targets)
    of_truth = np.sort(probabilities[np.arange(n), targets])[::-1]
    k = math.ceil((n + 1) * coverage - 1e-9)
    return float(of_truth[k - 1]) if k <= n else 0.0


def label_sets(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """Return which labels belong to each text's set, shape (n, classes), bool; the likeliest one always does."""
    sets: np.ndarray = probabilities >= threshold
    sets[np.arange(len(sets)), probabilities.argmax(axis=1)] = True
    return sets


def check(targets: np.ndarray, probabilities: np.ndarray, held_out: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """Say what abstaining and label sets, set up on some texts, are worth on others.

    Args:
        targets: class indices of the texts to check on, shape (n,).
        probabilities: of them, shape (n, classes).
        held_out: targets and probabilities of the texts that thresholds come from.

    Returns:
        JSON-ready: ``accuracy_coverage``, the curve; ``thresholds``, one entry an accuracy of `TARGETS`; ``conformal``,
        one entry a coverage of `COVERAGES` with the empirical one, that of the labels above the threshold alone
        (``by_threshold``: without the likeliest one, which belongs to every set whatever its probability), and the
        interval in which the latter falls with 95 % probability where the promise holds and the held-out texts are as
        many as they are; ``label_shift``, as of that function.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    of_others = held_out[1].max(axis=1), held_out[1].argmax(axis=1) == held_out[0]
    thresholds = []
    for accuracy in TARGETS:
        threshold = threshold_for(*of_others, accuracy)
        answered = confidence >= (np.inf if threshold is None else threshold)
        thresholds.append(
            {
                "target_accuracy": accuracy,
                "threshold": threshold,
                "coverage": float(answered.mean()),
                "accuracy": float(right[answered].mean()) if answered.any() else None,
            }
        )
    conformal = []
    for coverage in COVERAGES:
        threshold = conformal_threshold(*held_out, coverage)
        sets = label_sets(probabilities, threshold)
        conformal.append(
            {
                "coverage": coverage,
                "threshold": threshold,
                "empirical_coverage": float(sets[np.arange(len(sets)), targets].mean()),
                "by_threshold": float((probabilities[np.arange(len(sets)), targets] >= threshold).mean()),
                "expected": list(coverage_interval(coverage, len(held_out[0]), len(targets))),
                "mean_labels": float(sets.sum(axis=1).mean()),
                "single_label": float((sets.sum(axis=1) == 1).mean()),
            }
        )
    return {
        "accuracy_coverage": accuracy_coverage(confidence, right),
        "thresholds": thresholds,
        "conformal": conformal,
        "label_shift": label_shift(held_out[0], targets, probabilities.shape[1]),
    }


def label_shift(held_out: np.ndarray, targets: np.ndarray, n_classes: int) -> dict[str, Any]:
    """Say whether labels are distributed alike in held-out texts and in others, as thresholds and coverage suppose.

    Args:
        held_out: class indices of the texts that thresholds come from.
        targets: class indices of the others.
        n_classes: number of classes.

    Returns:
        JSON-ready: ``distance``, the share of texts whose label would have to change (total variation), ``p`` of a
        chi-squared test, and ``shifted``, whether it is below 0.001.
    """
    from scipy.stats import chi2_contingency

    counts = np.stack([np.bincount(t, minlength=n_classes) for t in (held_out, targets)])
    shares = counts / counts.sum(axis=1, keepdims=True)
    present = counts[:, counts.sum(axis=0) > 0]
    p = float(chi2_contingency(present).pvalue) if present.shape[1] > 1 else 1.0
    return {"distance": float(abs(shares[0] - shares[1]).sum() / 2), "p": p, "shifted": p < 0.001}


def coverage_interval(coverage: float, held_out: int, texts: int, level: float = 0.95) -> tuple[float, float]:
    """Return the interval in which the coverage on so many new texts falls, if the promise holds.

    The coverage over all texts there could be follows a beta distribution, given the held-out ones (Vovk 2012,
    arXiv:1209.2673); what is seen on n texts is binomial around that. The interval is that of the beta-binomial.

    Args:
        coverage: promised.
        held_out: texts that the threshold comes from.
        texts: new texts, n.
        level: probability of the interval.
    """
    from scipy.stats import betabinom

    k = math.ceil((held_out + 1) * coverage - 1e-9)
    if k > held_out:
        return 1.0, 1.0
    a, b = k, held_out + 1 - k
    tail = (1 - level) / 2
    low, high = betabinom.ppf([tail, 1 - tail], texts, a, b) / texts
    return float(low), float(high)
