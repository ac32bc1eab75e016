"""What a kind of label determines: loss, scores, decision, metrics, calibration, baselines and columns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bertsmith.data.table import Labels
from bertsmith.errors import ConfigError, listing, lower_first
from bertsmith.evaluation.rule import Rule

if TYPE_CHECKING:
    import pandas as pd

    from bertsmith.data.template import Text
    from bertsmith.evaluation.baseline import Baseline, LinearModel
    from bertsmith.evaluation.decision import TunedOffsets
    from bertsmith.training.losses import Loss

Names = Mapping[str, tuple[str, str]]
"""Title and meaning of each metric."""


class Task(ABC):
    """A kind of label. Most of bertsmith uses only this interface, whatever the kind.

    Targets have the shape (n,), or (n, labels) for sets of labels. Scores are what the model predicts, shape
    (n, outputs): probabilities, or numbers.

    Attributes:
        name: the value of ``--task``.
        problem_type: as in the configs of transformers.
        primary: the metric that selects epochs, decision rules and trials; higher is better.
        headline: the metrics that summaries show, the primary one first.
        epoch_metrics: the metrics logged at every epoch, the primary one last.
        metric_names: title and meaning of each metric, in order.
        imbalances: the values of ``--imbalance`` that apply.
        has_labels: whether the model predicts labels with probabilities, not numbers.
        one_class: whether each text has exactly one label.
        needs_rule: whether a linear model on embeddings needs a rule: it has no class weights, or its most likely class
            is not the prediction.
        decides: whether a decision rule can be left out.
        naive_name: what `naive_baseline` predicts, for messages.
        head_name: what `fit_head` fits, for messages.
        truth_column, predicted_column: the columns of labels and predictions for people to read.
        described: what a model with n labels is.
        score_name, same_name, unit_name: words for a score, for equal predictions, and for the unit of a difference.
    """

    name: ClassVar[str]
    problem_type: ClassVar[str] = "single_label_classification"
    primary: ClassVar[str]
    headline: ClassVar[tuple[str, ...]]
    epoch_metrics: ClassVar[tuple[str, ...]]
    metric_names: ClassVar[Names]
    imbalances: ClassVar[tuple[str, ...]]
    has_labels: ClassVar[bool] = True
    one_class: ClassVar[bool] = True
    needs_rule: ClassVar[bool] = False
    decides: ClassVar[bool] = True
    naive_name: ClassVar[str] = "majority class"
    head_name: ClassVar[str] = "logistic regression"
    truth_column: ClassVar[str] = "label_text"
    predicted_column: ClassVar[str] = "predicted_text"
    described: ClassVar[str] = "text classifier with {n} classes"
    score_name: ClassVar[str] = "probability"
    same_name: ClassVar[str] = "get the same label"
    unit_name: ClassVar[str] = ""

    def __repr__(self) -> str:
        return f"Task({self.name!r})"

    @property
    def primary_name(self) -> str:
        """The primary metric within a sentence."""
        return lower_first(self.metric_names[self.primary][0])

    # -- training ------------------------------------------------------------------------------------------------------

    def fitted(self, targets: np.ndarray) -> Task:
        """Return the task for training on these targets."""
        return self

    def check_imbalance(self, imbalance: str) -> None:
        """Raise a `ConfigError` if a treatment of imbalance does not apply."""
        if imbalance not in self.imbalances:
            raise ConfigError(
                f"--task {self.name} does not support --imbalance {imbalance}",
                remedy=f"Use one of {listing(self.imbalances)}.",
            )

    @abstractmethod
    def loss(self, imbalance: str, counts: np.ndarray, n_texts: int, smoothing: float) -> Loss:
        """Return the loss of training.

        Args:
            imbalance: one of `imbalances`.
            counts: number of training texts of each label, shape (labels,).
            n_texts: number of training texts.
            smoothing: label smoothing.
        """

    def undo_standardisation(self, model: Any) -> Rule:
        """Undo the standardisation of the targets in the weights; return the rule for what the weights cannot undo."""
        return Rule()

    def validation_metrics(self, targets: np.ndarray, scores: np.ndarray) -> dict[str, float]:
        """Return the values of `epoch_metrics`."""
        found = self.resampled(np.ones((1, len(targets)), dtype=np.int64), targets, scores)
        return {name: float(found[name][0]) for name in self.epoch_metrics}

    # -- scores and decisions ------------------------------------------------------------------------------------------

    @abstractmethod
    def scores(self, logits: np.ndarray) -> np.ndarray:
        """Return the scores of logits, both of shape (n, outputs)."""

    @abstractmethod
    def logits(self, scores: np.ndarray) -> np.ndarray:
        """Return logits that give these scores, both of shape (n, outputs)."""

    def apply(self, rule: Rule, scores: np.ndarray) -> np.ndarray:
        """Return scores after a rule, from scores of a model without it."""
        return self.scores(replace(rule, folded=False).adjust(self.logits(scores)))

    def without_offsets(self, rule: Rule, scores: np.ndarray) -> np.ndarray:
        """Return scores without the offsets of a rule, from scores after it."""
        return self.scores(replace(rule, folded=True).adjust(self.logits(scores), decide=False))

    def undo(self, rule: Rule, scores: np.ndarray) -> np.ndarray:
        """Return scores before a rule, from scores after it."""
        return self.scores(rule.undo(self.logits(scores)))

    @abstractmethod
    def predicted(self, scores: np.ndarray) -> np.ndarray:
        """Return the decisions, shaped as targets."""

    @abstractmethod
    def confidence(self, scores: np.ndarray) -> np.ndarray:
        """Return the probability that a text's prediction is correct, shape (n,)."""

    def is_right(self, targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Return whether each prediction is correct, bool, shape (n,)."""
        return self.predicted(scores) == targets

    def outcomes(self, targets: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
        """Return whether each text is right, for metrics that define this differently from `is_right`.

        NaN marks texts that do not count.

        Returns:
            By name of the metric, each of shape (n,). The metric is 1 only if all texts that count are right.
        """
        return {}

    def is_same(self, first: np.ndarray, second: np.ndarray, tie: float = 0.0) -> np.ndarray:
        """Return whether the decisions of two models agree, or are a tie within a tolerance, bool, shape (n,)."""
        best = self.predicted(second)
        return first.max(axis=1) - first[np.arange(len(first)), best] <= tie

    def only_label(self, scores: np.ndarray, id2label: Mapping[int, str]) -> str | None:
        """Return the label of all predictions if it is the same for all texts."""
        return None

    def unit(self, scores: np.ndarray) -> float:
        """Return what a difference of scores is compared with: 1 for probabilities."""
        return 1.0

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def scalar_metrics(self, targets: np.ndarray, scores: np.ndarray) -> dict[str, float | None]:
        """Return every metric of `metric_names`; ``None`` if undefined."""
        once, undefined = np.ones((1, len(targets)), dtype=np.int64), self.undefined(targets, scores)
        found = {**self.resampled(once, targets, scores), **self.resampled_ranks(once, targets, scores)}
        return {name: None if name in undefined else float(found[name][0]) for name in self.metric_names}

    @abstractmethod
    def resampled(self, drawn: np.ndarray, targets: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
        """Return metrics of resamples, each of shape (resamples,): all but those of `resampled_ranks`.

        Args:
            drawn: how often each resample draws each text, shape (resamples, n).
            targets, scores: of all texts.
        """

    def resampled_ranks(self, drawn: np.ndarray, targets: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
        """Return the metrics of resamples that rank texts, which takes long; see `resampled`."""
        return {}

    @abstractmethod
    def undefined(self, targets: np.ndarray, scores: np.ndarray) -> set[str]:
        """Return the names of the metrics that are undefined for these texts."""

    @abstractmethod
    def details(self, targets: np.ndarray, scores: np.ndarray, labels: Labels) -> dict[str, Any]:
        """Return what ``metrics.json`` has for a split besides single numbers, JSON-ready."""

    def fit_rule(
        self,
        targets: np.ndarray,
        scores: np.ndarray,
        *,
        seed: int,
        use_offsets: bool = True,
        model: np.ndarray | None = None,
        groups: np.ndarray | None = None,
    ) -> tuple[TunedOffsets, Rule]:
        """Tune decision rule and calibration on held-out texts; return the tuned offsets and the rule to apply.

        Args:
            targets, scores: of the held-out texts.
            seed: of folds and bootstrap.
            use_offsets: whether a decision rule may be used.
            model: number of the model that predicted each text, shape (n,); ``None`` if one model predicted all.
            groups: as for `bertsmith.evaluation.evaluate.evaluate`.
        """
        tuned = self.tune(targets, scores, seed=seed, model=model, groups=groups)
        if not use_offsets:
            tuned = replace(tuned, used=False, offsets=np.zeros(scores.shape[1]))
        return tuned, self.calibrate(targets, scores, tuned)

    def tune(
        self, targets: np.ndarray, scores: np.ndarray, *, seed: int, model: np.ndarray | None, groups: np.ndarray | None
    ) -> TunedOffsets:
        """Return the offsets of `fit_rule`: none, unless a task tunes some."""
        from bertsmith.evaluation.decision import TunedOffsets

        return TunedOffsets(np.zeros(scores.shape[1]), False, 0.0, float("nan"))

    @abstractmethod
    def calibrate(self, targets: np.ndarray, scores: np.ndarray, tuned: TunedOffsets) -> Rule:
        """Return the rule of `fit_rule`: tuned offsets, and the calibration of scores after them."""

    @abstractmethod
    def calibration(self, targets: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
        """Return how far the scores are from what they claim, JSON-ready."""

    @abstractmethod
    def abstention(
        self, targets: np.ndarray, scores: np.ndarray, held_out: tuple[np.ndarray, np.ndarray]
    ) -> dict[str, Any]:
        """Evaluate thresholds and prediction sets on texts other than the held-out ones that set them, JSON-ready."""

    def label_counts(self, targets: np.ndarray, n_labels: int) -> np.ndarray:
        """Return how often each label occurs, shape (labels,)."""
        return np.bincount(targets, minlength=n_labels)

    @abstractmethod
    def conformity(self, targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Return the highest threshold at which the prediction set of each text with a label contains its labels."""

    @abstractmethod
    def evaluate_sets(self, targets: np.ndarray, scores: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Return whether each set of a text with a label contains its labels, and the size of each set, shape (n,)."""

    @abstractmethod
    def set_columns(self, scores: np.ndarray, threshold: float, labels: Labels) -> dict[str, list[Any]]:
        """Return the columns of prediction sets: lists of label texts, or the bounds of an interval."""

    # -- baselines -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def naive_baseline(self, targets: np.ndarray, n: int, labels: Labels) -> tuple[str, np.ndarray]:
        """Return the name and the scores, shape (n, outputs), of a prediction that ignores the texts."""

    @abstractmethod
    def bag_of_words(
        self, train: Sequence[Text], targets: np.ndarray, texts: Sequence[Text], n_labels: int, seed: int
    ) -> Baseline:
        """Fit a linear model on TF-IDF features of training texts, and predict other texts."""

    @abstractmethod
    def fit_head(self, embeddings: np.ndarray, targets: np.ndarray, n_labels: int) -> LinearModel:
        """Fit a linear model on embeddings, shape (n, hidden size), whose outputs are logits."""

    # -- tables --------------------------------------------------------------------------------------------------------

    @abstractmethod
    def truth_columns(self, targets: np.ndarray, labels: Labels) -> dict[str, Any]:
        """Return the columns of the labels for saved predictions."""

    @abstractmethod
    def prediction_columns(self, scores: np.ndarray, labels: Labels) -> dict[str, list[Any]]:
        """Return the columns of the predictions, by name, each of n values."""

    def slice_columns(self, targets: np.ndarray, labels: Labels) -> dict[str, pd.Series]:
        """Return columns by which test texts are grouped to find where the model is worse."""
        return {}

    def indicators(self, decisions: np.ndarray, n_labels: int) -> np.ndarray:
        """Return 0 or 1 for each label of each text, shape (n, labels), from targets or decisions."""
        return np.eye(n_labels)[decisions]

    def mistakes(self, predictions: pd.DataFrame, labels: Labels) -> pd.DataFrame:
        """Return the wrong rows of saved predictions, the most confident first; equal arrays may differ in type."""
        name = "labels" if "labels" in predictions.columns else "label"
        truth, predicted = (predictions[n].map(lambda v: tuple(np.atleast_1d(v).tolist())) for n in (name, "predicted"))
        return predictions[truth != predicted].sort_values("confidence", ascending=False, kind="stable")

    def explained(self, scores: np.ndarray) -> int:
        """Return the output of a text that is explained by default, from scores of shape (1, outputs)."""
        return int(self.predicted(scores)[0]) if self.one_class else int(scores[0].argmax())

    def label_errors(
        self, featurize: Callable[[], Any], targets: np.ndarray, labels: Labels, *, seed: int, units: np.ndarray
    ) -> pd.DataFrame:
        """Return labels that may be wrong; see `bertsmith.evaluation.label_errors`.

        ``given`` and ``suggested`` are as in files of corrections.
        """
        raise ConfigError(
            f"bertsmith cannot find label errors for --task {self.name}",
            remedy="Train the model, and look at the largest errors in the report.",
        )

    @abstractmethod
    def stored_targets(self, frame: pd.DataFrame, labels: Labels) -> np.ndarray:
        """Return the targets in saved predictions."""

    def stored_scores(self, frame: pd.DataFrame) -> np.ndarray:
        """Return the scores in saved predictions, shape (n, outputs)."""
        return np.stack(frame["probabilities"].to_list())
