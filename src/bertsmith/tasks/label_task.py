"""What the kinds of label with probabilities share: prediction sets, and metrics of each label."""

from __future__ import annotations

from typing import Any

import numpy as np

from bertsmith.data.table import Labels
from bertsmith.tasks.base import Task


class LabelTask(Task):
    """Labels with probabilities: one class per text, or any number of labels."""

    def confidence(self, scores: np.ndarray) -> np.ndarray:
        """Return the probability that a text's prediction is correct, shape (n,)."""
        return scores.max(axis=1, initial=0.0)

    def label_matrix(self, decisions: np.ndarray, n_labels: int) -> np.ndarray:
        """Return whether each text has each label, bool, shape (n, labels), from targets or decisions."""
        return np.asarray(self.indicators(decisions, n_labels) > 0)

    def resampled_ranks(self, drawn: np.ndarray, targets: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
        """Return the macro average precision of every resample."""
        from bertsmith.evaluation.intervals import resampled_average_precision

        truth = self.label_matrix(targets, scores.shape[1])
        return {"macro_average_precision": resampled_average_precision(truth, scores, drawn)}

    def details(self, targets: np.ndarray, scores: np.ndarray, labels: Labels) -> dict[str, Any]:
        """Return metrics per label, and the calibration."""
        from bertsmith.evaluation.multi_label import per_label_metrics

        truth, predicted = (self.label_matrix(some, len(labels)) for some in (targets, self.predicted(scores)))
        entries = per_label_metrics(truth, scores, predicted)
        for entry, number, text in zip(entries, labels.numbers, labels.texts, strict=True):
            entry |= {"label": number, "label_text": text}
        return {"per_class": entries, "calibration": self.calibration(targets, scores)}

    def abstention(
        self, targets: np.ndarray, scores: np.ndarray, held_out: tuple[np.ndarray, np.ndarray]
    ) -> dict[str, Any]:
        """Evaluate confidence thresholds and label sets; see `Task.abstention`."""
        from bertsmith.evaluation.abstention import CheckedPredictions, evaluate_abstention, label_shift

        def check(t: np.ndarray, s: np.ndarray) -> CheckedPredictions:
            return CheckedPredictions(self.confidence(s), self.is_right(t, s), self.conformity(t, s))

        both = (held_out[0], targets)
        evaluated = evaluate_abstention(
            check(targets, scores), check(*held_out), lambda threshold: self.evaluate_sets(targets, scores, threshold)
        )
        before, now = (self.label_counts(t, scores.shape[1]) for t in both)
        texts = None if targets.ndim == 1 else [len(t) for t in both]
        return {**evaluated, "label_shift": label_shift(before, now, texts)}

    def conformity(self, targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Return the lowest probability of the labels of each text that has any, shape (texts with labels,).

        Every set contains the labels of a text without labels. If most texts had none, empty sets would suffice.
        """
        truth = self.label_matrix(targets, scores.shape[1])
        return np.asarray(np.where(truth, scores, np.inf)[truth.any(axis=1)].min(axis=1))

    def label_sets(self, scores: np.ndarray, threshold: float) -> np.ndarray:
        """Return which labels are in each text's set, bool, shape (n, labels); the predicted ones always are."""
        return np.asarray((scores >= threshold) | self.label_matrix(self.predicted(scores), scores.shape[1]))

    def evaluate_sets(self, targets: np.ndarray, scores: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Return whether each set contains all labels of its text, for texts with labels, and the size of all sets."""
        truth, sets = self.label_matrix(targets, scores.shape[1]), self.label_sets(scores, threshold)
        return (sets | ~truth).all(axis=1)[truth.any(axis=1)], sets.sum(axis=1)

    def set_columns(self, scores: np.ndarray, threshold: float, labels: Labels) -> dict[str, list[Any]]:
        """Return ``label_set``: the label texts of each set, likeliest first."""
        inside, order = self.label_sets(scores, threshold), np.argsort(-scores, axis=1, kind="stable")
        return {"label_set": [[labels.texts[c] for c in row if inside[i, c]] for i, row in enumerate(order)]}
