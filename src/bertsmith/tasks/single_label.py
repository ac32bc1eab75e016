"""One class per text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bertsmith.data.table import SINGLE_LABEL, Labels
from bertsmith.evaluation.calibration import calibration_metrics, fit_temperature, log_losses, softmax, to_logits
from bertsmith.evaluation.rule import Rule
from bertsmith.tasks.base import Names
from bertsmith.tasks.label_task import LabelTask

if TYPE_CHECKING:
    import pandas as pd

    from bertsmith.data.template import Text
    from bertsmith.evaluation.baseline import Baseline, LinearModel
    from bertsmith.evaluation.decision import TunedOffsets
    from bertsmith.training.losses import Loss


class SingleLabel(LabelTask):
    """One class per text: softmax, cross-entropy, and the most likely class after class offsets."""

    name = SINGLE_LABEL
    primary = "macro_f1"
    headline = ("macro_f1", "accuracy")
    epoch_metrics = ("accuracy", "macro_f1")
    imbalances = ("none", "weights", "effective-number", "focal", "logit-adjustment", "balanced-sampling")
    metric_names: ClassVar[Names] = {
        "macro_f1": ("Macro-F1", "the F1 score of each class, averaged; every class has the same weight"),
        "accuracy": ("Accuracy", "the share of texts with the correct label"),
        "balanced_accuracy": ("Balanced accuracy", "the accuracy within each class, averaged over the classes"),
        "macro_precision": (
            "Macro precision",
            "for each class, the share of correct predictions among the texts that received it; averaged over "
            "the classes",
        ),
        "macro_recall": (
            "Macro recall",
            "for each class, the share of correct predictions among the texts that have it; averaged over the classes",
        ),
        "weighted_f1": ("Weighted F1", "F1 averaged with each class weighted by its number of texts"),
        "weighted_precision": ("Weighted precision", "precision averaged with the same weights"),
        "weighted_recall": ("Weighted recall", "recall averaged with the same weights, which equals accuracy"),
        "mcc": ("Matthews correlation", "the correlation between labels and predictions: 1 is perfect, 0 is chance"),
        "log_loss": (
            "Log loss",
            "the mean negative logarithm of the probability of the correct label; lower is better",
        ),
        "macro_average_precision": (
            "Macro average precision",
            "how well the probabilities rank the texts of each class above other texts, averaged over the classes",
        ),
    }

    def loss(self, imbalance: str, counts: np.ndarray, n_texts: int, smoothing: float) -> Loss:
        """Return cross-entropy, see `Task.loss`."""
        from bertsmith.training.losses import IMBALANCE_LOSSES

        return IMBALANCE_LOSSES[imbalance](counts, smoothing)

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """Return the softmax."""
        return softmax(logits)

    def logits(self, scores: np.ndarray) -> np.ndarray:
        """Return the logarithms of probabilities."""
        return to_logits(scores)

    def predicted(self, scores: np.ndarray) -> np.ndarray:
        """Return the most likely classes, shape (n,)."""
        return scores.argmax(axis=1)

    def only_label(self, scores: np.ndarray, id2label: Mapping[int, str]) -> str | None:
        """Return the label of all predictions if it is the same for all texts."""
        predicted = np.unique(self.predicted(scores))
        return id2label[int(predicted[0])] if len(predicted) == 1 else None

    def resampled(self, drawn: np.ndarray, targets: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
        """Return every metric but the macro average precision, of every resample."""
        from bertsmith.evaluation.intervals import resampled_label_metrics

        metrics = resampled_label_metrics(drawn, targets, self.predicted(scores), scores.shape[1])
        return {**metrics, "log_loss": drawn @ log_losses(targets, scores) / drawn.sum(axis=1)}

    def undefined(self, targets: np.ndarray, scores: np.ndarray) -> set[str]:
        """Return the names of the metrics that need texts of several classes."""
        return {"mcc", "macro_average_precision"} if len(np.unique(targets)) < 2 else set()

    def details(self, targets: np.ndarray, scores: np.ndarray, labels: Labels) -> dict[str, Any]:
        """Return metrics per class, the calibration and the confusion matrix, whose rows are classes."""
        from sklearn.metrics import confusion_matrix

        matrix = confusion_matrix(targets, self.predicted(scores), labels=np.arange(len(labels)))
        return {**super().details(targets, scores, labels), "confusion": matrix.tolist()}

    def tune(
        self, targets: np.ndarray, scores: np.ndarray, *, seed: int, model: np.ndarray | None, groups: np.ndarray | None
    ) -> TunedOffsets:
        """Tune class offsets; see `Task.fit_rule`."""
        from bertsmith.evaluation.decision import tune_offsets

        return tune_offsets(targets, scores, seed=seed, model=model, groups=groups)

    def calibrate(self, targets: np.ndarray, scores: np.ndarray, tuned: TunedOffsets) -> Rule:
        """Fit the temperature; see `Task.calibrate`."""
        temperature = fit_temperature(targets, self.scores(self.logits(scores) + tuned.offsets))
        return Rule(temperature, tuple(tuned.offsets.tolist()) if tuned.used else (), folded=False)

    def calibration(self, targets: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
        """Return calibration errors and the bins of a reliability diagram."""
        return calibration_metrics(targets, scores)

    def naive_baseline(self, targets: np.ndarray, n: int, labels: Labels) -> tuple[str, np.ndarray]:
        """Return the most frequent class, and the class shares as probabilities."""
        counts = np.bincount(targets, minlength=len(labels))
        return labels.texts[int(counts.argmax())], np.tile(counts / counts.sum(), (n, 1))

    def bag_of_words(
        self, train: Sequence[Text], targets: np.ndarray, texts: Sequence[Text], n_labels: int, seed: int
    ) -> Baseline:
        """Fit a linear SVM, see `bertsmith.evaluation.baseline.bag_of_words`."""
        from bertsmith.evaluation.baseline import bag_of_words

        return bag_of_words(train, targets, texts, n_classes=n_labels, seed=seed)

    def fit_head(self, embeddings: np.ndarray, targets: np.ndarray, n_labels: int) -> LinearModel:
        """Fit a logistic regression."""
        from bertsmith.evaluation.baseline import fit_regression

        return fit_regression(embeddings, targets, n_classes=n_labels)

    def truth_columns(self, targets: np.ndarray, labels: Labels) -> dict[str, Any]:
        """Return ``label`` and ``label_text``."""
        return {
            "label": np.array(labels.numbers, dtype=np.int64)[targets],
            "label_text": np.array(labels.texts, dtype=object)[targets],
        }

    def prediction_columns(self, scores: np.ndarray, labels: Labels) -> dict[str, list[Any]]:
        """Return ``predicted`` (label number), ``predicted_text`` and ``confidence``."""
        best = self.predicted(scores).tolist()
        return {
            "predicted": [labels.numbers[c] for c in best],
            "predicted_text": [labels.texts[c] for c in best],
            "confidence": self.confidence(scores).tolist(),
        }

    def slice_columns(self, targets: np.ndarray, labels: Labels) -> dict[str, pd.Series]:
        """Return the label of every text."""
        import pandas as pd

        return {"label": pd.Series(np.array(labels.texts, dtype=object)[targets]).astype("category")}

    def label_errors(
        self, featurize: Callable[[], Any], targets: np.ndarray, labels: Labels, *, seed: int, units: np.ndarray
    ) -> pd.DataFrame:
        """Find wrong classes by confident learning."""
        from bertsmith.evaluation.label_errors import find_label_errors

        found = find_label_errors(featurize, targets, len(labels), seed=seed, units=units)
        names = np.array(labels.texts, dtype=object)
        return found.assign(given=names[targets[found["position"]]], suggested=names[found["suggested"]])

    def stored_targets(self, frame: pd.DataFrame, labels: Labels) -> np.ndarray:
        """Return the class indices, shape (n,)."""
        index = {number: i for i, number in enumerate(labels.numbers)}
        return np.array([index[number] for number in frame["label"]], dtype=np.int64)
