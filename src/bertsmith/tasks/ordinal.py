"""One of several ordered classes per text, such as stars from 1 to 5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bertsmith.data.table import ORDINAL, Labels
from bertsmith.evaluation.calibration import calibration_metrics, fit_temperature, log_losses
from bertsmith.evaluation.decision import MIN_TEXTS, TunedOffsets
from bertsmith.evaluation.rule import Rule
from bertsmith.tasks.base import Names, Task
from bertsmith.tasks.single_label import SingleLabel

if TYPE_CHECKING:
    import pandas as pd

    from bertsmith.data.template import Text
    from bertsmith.evaluation.baseline import Baseline


class Ordinal(SingleLabel):
    """Ordered classes: the head of a single label, decided by the least expected squared distance."""

    name = ORDINAL
    primary = "quadratic_kappa"
    headline = ("quadratic_kappa", "mae")
    epoch_metrics = ("macro_f1", "quadratic_kappa")
    needs_rule = True
    naive_name = "class closest to the mean"
    described = "text classifier with {n} ordered classes"
    metric_names: ClassVar[Names] = {
        "quadratic_kappa": (
            "Quadratic kappa",
            "agreement beyond chance, where a mistake counts with the square of its distance in steps: 1 is perfect, 0 "
            "is chance",
        ),
        "mae": ("Mean absolute error", "the mean distance between labels and predictions in steps; lower is better"),
        "spearman": ("Spearman correlation", "the rank correlation between labels and predictions"),
        "macro_f1": SingleLabel.metric_names["macro_f1"],
        "accuracy": SingleLabel.metric_names["accuracy"],
        "within_one": ("Within one step", "the share of texts whose prediction is at most one step from the label"),
        "log_loss": SingleLabel.metric_names["log_loss"],
    }
    resampled_ranks, tune = Task.resampled_ranks, Task.tune  # neither average precision nor class offsets

    def predicted(self, scores: np.ndarray) -> np.ndarray:
        """Return the classes with the least expected squared distance, shape (n,)."""
        from bertsmith.evaluation.ordinal import least_cost

        return least_cost(scores)

    def confidence(self, scores: np.ndarray) -> np.ndarray:
        """Return the probability of the predicted class, shape (n,)."""
        return scores[np.arange(len(scores)), self.predicted(scores)]

    def is_same(self, first: np.ndarray, second: np.ndarray, tie: float = 0.0) -> np.ndarray:
        """Return whether the decisions of two models agree, or are a tie within a tolerance, bool, shape (n,)."""
        levels = np.arange(first.shape[1])
        distance = abs(first @ levels - self.predicted(second))
        return distance <= 0.5 + tie * len(levels)

    def resampled(self, drawn: np.ndarray, targets: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
        """Return every metric of every resample."""
        from bertsmith.evaluation.ordinal import resampled_level_metrics

        metrics = resampled_level_metrics(drawn, targets, self.predicted(scores), scores.shape[1])
        return {**metrics, "log_loss": drawn @ log_losses(targets, scores) / drawn.sum(axis=1)}

    def outcomes(self, targets: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
        """Return whether each prediction is at most one step from the label."""
        return {"within_one": abs(self.predicted(scores) - targets) <= 1}

    def undefined(self, targets: np.ndarray, scores: np.ndarray) -> set[str]:
        """Return Spearman's correlation if labels or predictions are constant, and kappa if both are the same class."""
        labels, predicted = set(targets.tolist()), set(self.predicted(scores).tolist())
        if len(labels | predicted) < 2:
            return {"spearman", "quadratic_kappa"}
        return {"spearman"} if min(len(labels), len(predicted)) < 2 else set()

    def calibration(self, targets: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
        """Return calibration errors of the predicted classes, and the bins of a reliability diagram."""
        return calibration_metrics(targets, scores, self.predicted(scores))

    def calibrate(self, targets: np.ndarray, scores: np.ndarray, tuned: TunedOffsets) -> Rule:
        """Fit the temperature, and a stretch if the temperature alone lowers quadratic kappa; there are no offsets."""
        from bertsmith.evaluation.ordinal import fit_stretch

        temperature = fit_temperature(targets, scores)
        rule = Rule(temperature, folded=False)
        before, after = (self.validation_metrics(targets, s)[self.primary] for s in (scores, self.apply(rule, scores)))
        return replace(rule, stretch=fit_stretch(scores, temperature)) if after < before else rule

    def mistakes(self, predictions: pd.DataFrame, labels: Labels) -> pd.DataFrame:
        """Return the wrong rows of saved predictions: those with the most steps to the label first, then by confidence.

        Steps count all classes, also those that do not occur among labels and predictions.
        """
        wrong = super().mistakes(predictions, labels)
        truth, predicted = (self.stored_targets(wrong.assign(label=wrong[n]), labels) for n in ("label", "predicted"))
        return wrong.iloc[np.argsort(-abs(truth - predicted), kind="stable")]

    def naive_baseline(self, targets: np.ndarray, n: int, labels: Labels) -> tuple[str, np.ndarray]:
        """Return the class with the least expected distance if texts are ignored, and the class shares."""
        _, shares = super().naive_baseline(targets, n, labels)
        return labels.texts[int(self.predicted(shares[:1])[0])] if n else labels.texts[0], shares

    def bag_of_words(
        self, train: Sequence[Text], targets: np.ndarray, texts: Sequence[Text], n_labels: int, seed: int
    ) -> Baseline:
        """Fit a linear SVM, and decide for the most likely class if that is better on a fifth of the training texts.

        The probabilities of a bag of words are often so even that the middle class has the least expected distance.
        """
        found = super().bag_of_words(train, targets, texts, n_labels, seed)
        order = np.random.default_rng(seed).permutation(len(targets))
        outside, inside = np.split(order, [len(order) // 5])
        if len(outside) < MIN_TEXTS:
            return found
        parts = [[train[int(i)] for i in rows] for rows in (inside, outside)]
        scores = super().bag_of_words(parts[0], targets[inside], parts[1], n_labels, seed).scores
        plain, certain = (
            self.scalar_metrics(targets[outside], s)[self.primary] or 0.0 for s in (scores, _prefer_likely(scores))
        )
        return found if plain >= certain else replace(found, scores=_prefer_likely(found.scores))


def _prefer_likely(scores: np.ndarray) -> np.ndarray:
    """Return probabilities whose least expected distance is at the most likely class, shape (n, classes)."""
    n_classes = scores.shape[1]
    rest = 0.4 / max(n_classes - 1, 1)  # moves the expected class by less than half a step
    return (1 - rest) * np.eye(n_classes)[scores.argmax(axis=1)] + rest * scores
