"""Metrics, thresholds and calibration of sets of labels."""

from __future__ import annotations

from typing import Any

import numpy as np

from bertsmith.evaluation.calibration import fit_temperature
from bertsmith.evaluation.decision import FOLDS, GRID, SHRINKAGE, TunedOffsets, tune


def resampled_set_metrics(drawn: np.ndarray, targets: np.ndarray, predicted: np.ndarray) -> dict[str, np.ndarray]:
    """Return the metrics that need decisions only, of every resample, each of shape (resamples,).

    Averages over the labels cover those that occur in the labels or the decisions of the resample. A text without
    labels and without predictions has a samples-F1 of 1.

    Args:
        drawn: how often each resample draws each text, shape (resamples, n).
        targets, predicted: whether each text has each label, bool, shape (n, labels).
    """
    weights = drawn.astype(np.float32)
    hits, support, times = (
        (weights @ values.astype(np.float32)).astype(np.float64)  # exact: below 2 ** 24
        for values in (targets & predicted, targets, predicted)
    )
    n = drawn.sum(axis=1)
    seen = support + times > 0
    f1, precision, recall = (
        a / np.maximum(b, 1) for a, b in ((2 * hits, support + times), (hits, times), (hits, support))
    )
    sizes = targets.sum(axis=1) + predicted.sum(axis=1)
    samples_f1 = np.where(sizes > 0, 2 * (targets & predicted).sum(axis=1) / np.maximum(sizes, 1), 1.0)
    total, all_times, all_hits = support.sum(axis=1), times.sum(axis=1), hits.sum(axis=1)
    none = ~seen.any(axis=1)

    def macro(values: np.ndarray) -> np.ndarray:
        return np.where(seen, values, 0).sum(axis=1) / np.maximum(seen.sum(axis=1), 1)

    return {
        "macro_f1": macro(f1),
        "micro_f1": np.where(none, 0.0, 2 * all_hits / np.maximum(total + all_times, 1)),
        "weighted_f1": (support * f1).sum(axis=1) / np.maximum(total, 1),
        "samples_f1": drawn @ samples_f1 / n,
        "macro_precision": macro(precision),
        "macro_recall": macro(recall),
        "micro_precision": all_hits / np.maximum(all_times, 1),
        "micro_recall": all_hits / np.maximum(total, 1),
        "subset_accuracy": drawn @ (targets == predicted).all(axis=1) / n,
        "hamming_loss": drawn @ (targets != predicted).mean(axis=1) / n,
    }


def ranking_precision(targets: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the label ranking average precision of each text, shape (n,); 1 for a text with all or no labels."""
    from scipy.stats import rankdata

    rank = rankdata(-probabilities, method="max", axis=1)
    masked = np.where(targets, -probabilities, np.inf)
    rank_among_true = rankdata(masked, method="max", axis=1)
    count = targets.sum(axis=1)
    mean = np.where(targets, rank_among_true / rank, 0).sum(axis=1) / np.maximum(count, 1)
    return np.where((count == 0) | (count == targets.shape[1]), 1.0, mean)


def log_losses(targets: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the log loss of each text, averaged over the labels, shape (n,)."""
    p = np.clip(probabilities.astype(np.float64), 1e-15, 1 - 1e-15)
    return -np.where(targets, np.log(p), np.log1p(-p)).mean(axis=1)


def average_precisions(targets: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the average precision of each label, shape (labels,); NaN for a label without texts."""
    from sklearn.metrics import average_precision_score

    return np.array(
        [
            average_precision_score(truth, p) if truth.any() else np.nan
            for truth, p in zip(targets.T, probabilities.T, strict=True)
        ]
    )


def per_label_metrics(targets: np.ndarray, probabilities: np.ndarray, predicted: np.ndarray) -> list[dict[str, Any]]:
    """Return precision, recall, F1, average precision and counts of every label.

    A metric is ``None`` if the label has no texts or no predictions that define it.
    """
    hits, support, times = (targets & predicted).sum(axis=0), targets.sum(axis=0), predicted.sum(axis=0)
    precisions = average_precisions(targets, probabilities)
    return [
        {
            "precision": float(hits[c] / times[c]) if times[c] else None,
            "recall": float(hits[c] / support[c]) if support[c] else None,
            "f1": float(2 * hits[c] / (support[c] + times[c])) if support[c] + times[c] else None,
            "average_precision": float(precisions[c]) if support[c] else None,
            "texts": int(support[c]),
            "predicted": int(times[c]),
        }
        for c in range(targets.shape[1])
    ]


def tune_thresholds(
    targets: np.ndarray,
    logits: np.ndarray,
    *,
    seed: int,
    model: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> TunedOffsets:
    """Tune one threshold per label for macro-F1 on held-out texts, as an offset of the label's logit.

    Args:
        targets: whether each text has each label, bool, shape (n, labels).
        logits: shape (n, labels).
        seed: of folds and bootstrap.
        model, groups: as for `bertsmith.evaluation.decision.tune`.
    """
    return tune(
        targets,
        logits,
        fold=np.random.default_rng(seed).permutation(len(logits)) % FOLDS,
        model=model,
        fit=best_thresholds,
        decide=lambda moved: moved > 0,
        score=lambda drawn, decided: resampled_set_metrics(drawn, targets, decided)["macro_f1"],
        seed=seed,
        groups=groups,
    )


def best_thresholds(targets: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Return the offset of each label's logit that maximizes its F1, then shrunk, shape (labels,)."""
    support = targets.sum(axis=0)
    scores = np.array([_f1(targets, logits + offset > 0) for offset in GRID])  # (offsets, labels)
    best = np.where(scores == scores.max(axis=0), abs(GRID)[:, None], np.inf).argmin(axis=0)
    return np.where(support > 0, GRID[best], 0.0) * support / (support + SHRINKAGE)


def _f1(targets: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    either = targets.sum(axis=0) + predicted.sum(axis=0)
    return 2 * (targets & predicted).sum(axis=0) / np.maximum(either, 1)


def fit_temperatures(targets: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the temperature of each label, shape (labels,); see `calibration.fit_temperature`."""
    return np.array(
        [
            fit_temperature(truth.astype(np.int64), np.stack([1 - p, p], axis=1))
            for truth, p in zip(targets.T, probabilities.T, strict=True)
        ]
    )


def cooccurrence(targets: np.ndarray) -> np.ndarray:
    """Return the number of texts that have two labels, shape (labels, labels); the diagonal counts single labels."""
    return targets.astype(np.int64).T @ targets.astype(np.int64)
