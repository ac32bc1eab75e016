"""Any number of labels per text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bertsmith.data.outcomes import join_labels
from bertsmith.data.table import MULTI_LABEL, Labels
from bertsmith.evaluation.calibration import reliability
from bertsmith.evaluation.rule import Rule
from bertsmith.tasks.base import Names
from bertsmith.tasks.label_task import LabelTask

if TYPE_CHECKING:
    import pandas as pd

    from bertsmith.data.template import Text
    from bertsmith.evaluation.baseline import Baseline, LinearModel
    from bertsmith.evaluation.decision import TunedOffsets
    from bertsmith.training.losses import Loss

_EPSILON = 1e-12


class MultiLabel(LabelTask):
    """Any number of labels per text: independent probabilities, and every label above 0.5 after its threshold."""

    name = MULTI_LABEL
    problem_type = "multi_label_classification"
    primary = "macro_f1"
    headline = ("macro_f1", "micro_f1")
    epoch_metrics = ("micro_f1", "macro_f1")
    imbalances = ("none", "weights", "focal")
    one_class, needs_rule = False, True
    naive_name = "share of each label"
    described = "multi-label text classifier with {labels}"
    same_name = "get the same labels"
    truth_column, predicted_column = "label_texts", "predicted_texts"
    metric_names: ClassVar[Names] = {
        "macro_f1": ("Macro-F1", "the F1 score of each label, averaged; every label has the same weight"),
        "micro_f1": ("Micro-F1", "the F1 score of all decisions on all labels together"),
        "weighted_f1": ("Weighted F1", "F1 averaged with each label weighted by its number of texts"),
        "samples_f1": ("Samples F1", "the F1 score of the labels of each text, averaged over the texts"),
        "macro_precision": (
            "Macro precision",
            "for each label, the share of correct predictions among the texts that received it; averaged over "
            "the labels",
        ),
        "macro_recall": (
            "Macro recall",
            "for each label, the share of correct predictions among the texts that have it; averaged over the labels",
        ),
        "micro_precision": ("Micro precision", "the share of the predicted labels that are correct"),
        "micro_recall": ("Micro recall", "the share of the true labels that are predicted"),
        "subset_accuracy": ("Subset accuracy", "the share of texts whose labels are all correct"),
        "hamming_loss": ("Hamming loss", "the share of wrong decisions on single labels; lower is better"),
        "ranking_precision": (
            "Label ranking average precision",
            "how well the probabilities rank the true labels of a text above the other labels",
        ),
        "macro_average_precision": (
            "Macro average precision",
            "how well the probabilities rank the texts of each label above other texts, averaged over the labels",
        ),
        "log_loss": (
            "Log loss",
            "the mean negative logarithm of the probabilities of the correct decisions; lower is better",
        ),
    }

    def loss(self, imbalance: str, counts: np.ndarray, n_texts: int, smoothing: float) -> Loss:
        """Return binary cross-entropy, see `Task.loss`."""
        from bertsmith.training.losses import BinaryCrossEntropy

        weights = (
            np.sqrt(np.clip((n_texts - counts) / np.maximum(counts, 1), 1, None)) if imbalance == "weights" else None
        )
        return BinaryCrossEntropy(smoothing, positive_weights=weights, focal=imbalance == "focal")

    def validation_metrics(self, targets: np.ndarray, scores: np.ndarray) -> dict[str, float]:
        """Return micro-F1 and macro-F1 at the thresholds that are best on these texts.

        An untuned threshold of 0.5 finds few labels at first, so its F1 would say little about an epoch.
        """
        from bertsmith.evaluation.multi_label import best_thresholds, resampled_set_metrics

        logits = self.logits(scores)
        predicted = logits + best_thresholds(targets.astype(bool), logits) > 0
        values = resampled_set_metrics(np.ones((1, len(targets))), targets.astype(bool), predicted)
        return {name: float(values[name][0]) for name in self.epoch_metrics}

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """Return the sigmoid."""
        return 0.5 * (1 + np.tanh(0.5 * np.asarray(logits)))

    def logits(self, scores: np.ndarray) -> np.ndarray:
        """Return the log odds."""
        p = np.clip(scores.astype(np.float64), _EPSILON, 1 - _EPSILON)
        return np.log(p) - np.log1p(-p)

    def predicted(self, scores: np.ndarray) -> np.ndarray:
        """Return which labels are above 0.5, bool, shape (n, labels)."""
        return scores > 0.5

    def confidence(self, scores: np.ndarray) -> np.ndarray:
        """Return the probability that all labels of a text are correct if they are independent, shape (n,)."""
        return np.maximum(scores, 1 - scores).prod(axis=1)

    def is_right(self, targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Return whether all labels of each text are correct, bool, shape (n,)."""
        return (self.predicted(scores) == targets).all(axis=1)

    def outcomes(self, targets: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
        """Return whether all predicted labels of a text are correct, and whether all its labels are predicted."""
        predicted, truth = self.predicted(scores), targets.astype(bool)
        sides = {"precision": (predicted, truth), "recall": (truth, predicted)}
        found = {
            name: np.where(some.any(axis=1), (others | ~some).all(axis=1), np.nan)
            for name, (some, others) in sides.items()
        }
        return {f"{average}_{name}": right for name, right in found.items() for average in ("macro", "micro")}

    def is_same(self, first: np.ndarray, second: np.ndarray, tie: float = 0.0) -> np.ndarray:
        """Return whether all decisions on a text agree, or are a tie within a tolerance, bool, shape (n,)."""
        agree = self.predicted(first) == self.predicted(second)
        return (agree | (abs(first - 0.5) <= tie)).all(axis=1)

    def resampled(self, drawn: np.ndarray, targets: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
        """Return every metric but the macro average precision, of every resample."""
        from bertsmith.evaluation.multi_label import log_losses, ranking_precision, resampled_set_metrics

        n = drawn.sum(axis=1)
        return {
            **resampled_set_metrics(drawn, targets, self.predicted(scores)),
            "ranking_precision": drawn @ ranking_precision(targets, scores) / n,
            "log_loss": drawn @ log_losses(targets, scores) / n,
        }

    def undefined(self, targets: np.ndarray, scores: np.ndarray) -> set[str]:
        """Return the macro average precision, if no text has a label."""
        return set() if targets.any() else {"macro_average_precision"}

    def details(self, targets: np.ndarray, scores: np.ndarray, labels: Labels) -> dict[str, Any]:
        """Return metrics per label, the calibration, and the co-occurrence of labels and of predictions."""
        from bertsmith.evaluation.multi_label import cooccurrence

        sets = {"labels": targets, "predicted": self.predicted(scores)}
        return {
            **super().details(targets, scores, labels),
            "cooccurrence": {name: cooccurrence(some).tolist() for name, some in sets.items()},
            "without_labels": {name: int((~some.any(axis=1)).sum()) for name, some in sets.items()},
        }

    def tune(
        self, targets: np.ndarray, scores: np.ndarray, *, seed: int, model: np.ndarray | None, groups: np.ndarray | None
    ) -> TunedOffsets:
        """Tune one threshold per label; see `Task.fit_rule`."""
        from bertsmith.evaluation.multi_label import tune_thresholds

        return tune_thresholds(targets, self.logits(scores), seed=seed, model=model, groups=groups)

    def calibrate(self, targets: np.ndarray, scores: np.ndarray, tuned: TunedOffsets) -> Rule:
        """Fit one temperature per label; see `Task.calibrate`."""
        from bertsmith.evaluation.multi_label import fit_temperatures

        temperatures = fit_temperatures(targets, self.scores(self.logits(scores) + tuned.offsets))
        offsets = tuple(tuned.offsets.tolist()) if tuned.used else ()
        return Rule(tuple(temperatures.tolist()), offsets, folded=False)

    def calibration(self, targets: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
        """Return calibration errors of the probabilities of all labels, and the bins of a reliability diagram.

        ``brier_score`` is the mean squared error of a probability; it ranges from 0 to 1.
        """
        return {
            **reliability(scores.ravel(), targets.ravel().astype(bool)),
            "brier_score": float(((scores - targets) ** 2).mean()),
        }

    def label_counts(self, targets: np.ndarray, n_labels: int) -> np.ndarray:
        """Return how often each label occurs, shape (labels,)."""
        return targets.sum(axis=0)

    def naive_baseline(self, targets: np.ndarray, n: int, labels: Labels) -> tuple[str, np.ndarray]:
        """Return the labels that most texts have, and the share of texts with each label."""
        shares = targets.mean(axis=0)
        names = [text for text, share in zip(labels.texts, shares, strict=True) if share > 0.5]
        return "; ".join(names) or "none", np.tile(shares, (n, 1))

    def bag_of_words(
        self, train: Sequence[Text], targets: np.ndarray, texts: Sequence[Text], n_labels: int, seed: int
    ) -> Baseline:
        """Fit one linear SVM per label."""
        from bertsmith.evaluation.linear_models import bag_of_words_for_sets

        return bag_of_words_for_sets(train, targets, texts, seed=seed)

    def fit_head(self, embeddings: np.ndarray, targets: np.ndarray, n_labels: int) -> LinearModel:
        """Fit one logistic regression per label."""
        from bertsmith.evaluation.linear_models import fit_set_regression

        return fit_set_regression(embeddings, targets)

    def indicators(self, decisions: np.ndarray, n_labels: int) -> np.ndarray:
        """Return 0 or 1 for each label of each text, shape (n, labels)."""
        return decisions.astype(np.float64)

    def truth_columns(self, targets: np.ndarray, labels: Labels) -> dict[str, Any]:
        """Return ``labels`` and ``label_texts``, lists."""
        return _lists(targets, labels, "labels", "label_texts")

    def prediction_columns(self, scores: np.ndarray, labels: Labels) -> dict[str, list[Any]]:
        """Return ``predicted`` (a list of label numbers), ``predicted_texts`` (a list) and ``confidence``."""
        found = _lists(self.predicted(scores), labels, "predicted", self.predicted_column)
        return {**found, "confidence": self.confidence(scores).tolist()}

    def label_errors(
        self, featurize: Callable[[], Any], targets: np.ndarray, labels: Labels, *, seed: int, units: np.ndarray
    ) -> pd.DataFrame:
        """Find wrong label sets by confident learning for each label."""
        from bertsmith.evaluation.label_errors import find_set_errors

        found = find_set_errors(featurize, targets, seed=seed, units=units)
        written = [
            [join_labels(row, labels) for row in rows] for rows in (targets[found["position"]], found["suggested"])
        ]
        return found.assign(given=written[0], suggested=written[1])

    def stored_targets(self, frame: pd.DataFrame, labels: Labels) -> np.ndarray:
        """Return whether each text has each label, bool, shape (n, labels)."""
        index = {number: i for i, number in enumerate(labels.numbers)}
        targets = np.zeros((len(frame), len(labels)), dtype=bool)
        for row, numbers in enumerate(frame["labels"]):
            targets[row, [index[number] for number in numbers]] = True
        return targets


def _lists(decisions: np.ndarray, labels: Labels, numbers: str, texts: str) -> dict[str, list[Any]]:
    """Return the numbers and the texts of the labels of every text, from decisions of shape (n, labels)."""
    positions = [np.flatnonzero(row).tolist() for row in decisions]
    return {
        numbers: [[labels.numbers[c] for c in row] for row in positions],
        texts: [[labels.texts[c] for c in row] for row in positions],
    }
