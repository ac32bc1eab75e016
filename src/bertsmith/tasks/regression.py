"""A number per text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bertsmith.data.table import REGRESSION, Labels
from bertsmith.errors import DataError
from bertsmith.evaluation.rule import Rule
from bertsmith.tasks.base import Names, Task

if TYPE_CHECKING:
    import pandas as pd

    from bertsmith.data.template import Text
    from bertsmith.evaluation.baseline import Baseline, LinearModel
    from bertsmith.evaluation.decision import TunedOffsets
    from bertsmith.training.losses import Loss


SAME_NUMBER = 0.1
"""Largest difference of equal predictions of two precisions, in standard deviations: 1 % of the variance at most."""

MAX_MEAN = 1e4
"""Largest mean, in standard deviations. With a larger one, the fp32 head of the finished model rounds its numbers."""


@dataclass(frozen=True, repr=False)
class RegressionTask(Task):
    """A number per text: one output, trained on standardised targets by squared error.

    Attributes:
        mean, scale: of the training targets while a model is trained; 0 and 1 for a finished model, whose weights
            contain them.
    """

    mean: float = 0.0
    scale: float = 1.0

    name = REGRESSION
    problem_type = "regression"
    primary = "r2"
    headline = ("r2", "mae")
    epoch_metrics = ("mae", "r2")
    imbalances = ("none",)
    has_labels = one_class = decides = False
    naive_name = "the mean"
    head_name = "ridge regression"
    truth_column, predicted_column = "label", "predicted"
    described = "model that predicts a number for a text"
    score_name, unit_name = "predicted value", " standard deviations"
    same_name = f"get the same value (within {SAME_NUMBER:g} standard deviations)"
    metric_names: ClassVar[Names] = {
        "r2": (
            "R²",
            "the share of the variance that the model explains: 1 is perfect, 0 is no better than the mean",
        ),
        "mae": ("Mean absolute error", "the mean distance between labels and predictions; lower is better"),
        "rmse": ("Root mean squared error", "like the mean absolute error, but large errors count more"),
        "spearman": ("Spearman correlation", "the rank correlation between labels and predictions"),
    }

    def fitted(self, targets: np.ndarray) -> Task:
        """Return the task with mean and standard deviation of the training targets.

        Raises:
            DataError: if the mean is more than `MAX_MEAN` standard deviations from 0.
        """
        mean, scale = float(targets.mean()), float(targets.std())
        if not scale or len(np.unique(targets)) < 2:
            return RegressionTask(mean)
        if abs(mean) > MAX_MEAN * scale:
            unit = 10.0 ** math.ceil(math.log10(100 * scale))
            raise DataError(
                f"the numbers differ too little for their size: the mean is {mean:,.12g}, and the standard "
                f"deviation is {scale:.3g}. The model would round its predictions",
                where="the labels of the training texts",
                remedy=f"Subtract {round(mean / unit) * unit:,.12g} from all numbers before training, and add it to "
                "the predictions.",
            )
        return RegressionTask(mean, scale)

    def loss(self, imbalance: str, counts: np.ndarray, n_texts: int, smoothing: float) -> Loss:
        """Return the squared error, see `Task.loss`."""
        from bertsmith.training.losses import SquaredError

        return SquaredError(self.mean, self.scale)

    def undo_standardisation(self, model: Any) -> Rule:
        """Put mean and scale into the weights of the head; see `Task.undo_standardisation`."""
        from bertsmith.model.load import fold_calibration

        rule = Rule(1 / self.scale, (self.mean / self.scale,), folded=False)
        if fold_calibration(model, *rule.folding):
            return Rule()
        return rule

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """Return the numbers, shape (n, 1)."""
        return logits * self.scale + self.mean

    def logits(self, scores: np.ndarray) -> np.ndarray:
        """Return the outputs of the model, shape (n, 1)."""
        return (scores - self.mean) / self.scale

    def predicted(self, scores: np.ndarray) -> np.ndarray:
        """Return the numbers, shape (n,)."""
        return scores[:, 0]

    def confidence(self, scores: np.ndarray) -> np.ndarray:
        """Return 1 for every text: a number has no confidence, only an interval."""
        return np.ones(len(scores))

    def is_right(self, targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Return whether each prediction is nearer to its label than the root mean squared error, bool, shape (n,)."""
        error = abs(targets - self.predicted(scores))
        return error <= np.sqrt((error**2).mean()) if len(error) else error > 0

    def is_same(self, first: np.ndarray, second: np.ndarray, tie: float = 0.0) -> np.ndarray:
        """Return whether two numbers differ by at most `SAME_NUMBER` units of the first ones, bool, shape (n,)."""
        return abs(first - second)[:, 0] <= SAME_NUMBER * self.unit(first)

    def unit(self, scores: np.ndarray) -> float:
        """Return the standard deviation of the numbers.

        Numbers that hardly vary count as if they varied by a thousandth of their size: the rest is rounding.
        """
        return max(float(scores.std()), 1e-3 * float(abs(scores).mean())) or 1.0 if len(scores) else 1.0

    def label_counts(self, targets: np.ndarray, n_labels: int) -> np.ndarray:
        """Return the number of texts, shape (1,)."""
        return np.array([len(targets)])

    def resampled(self, drawn: np.ndarray, targets: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
        """Return R² and both errors of every resample."""
        from bertsmith.evaluation.regression import resampled_errors

        return resampled_errors(drawn, targets, self.predicted(scores))

    def resampled_ranks(self, drawn: np.ndarray, targets: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
        """Return Spearman's correlation of every resample."""
        from bertsmith.evaluation.regression import resampled_spearman

        return {"spearman": resampled_spearman(drawn, targets, self.predicted(scores))}

    def undefined(self, targets: np.ndarray, scores: np.ndarray) -> set[str]:
        """Return R² if the labels are constant, and Spearman's correlation if labels or predictions are."""
        if len(np.unique(targets)) < 2:
            return {"r2", "spearman"}
        return {"spearman"} if len(np.unique(self.predicted(scores))) < 2 else set()

    def details(self, targets: np.ndarray, scores: np.ndarray, labels: Labels) -> dict[str, Any]:
        """Return the calibration."""
        return {"calibration": self.calibration(targets, scores)}

    def calibrate(self, targets: np.ndarray, scores: np.ndarray, tuned: TunedOffsets) -> Rule:
        """Return a neutral rule: squared error needs no correction."""
        return Rule()

    def calibration(self, targets: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
        """Return the mean error (``bias``), and mean label by mean prediction in bins of equal numbers of texts."""
        predicted = self.predicted(scores)
        order = np.array_split(np.argsort(predicted, kind="stable"), min(10, max(len(predicted) // 5, 1)))
        return {
            "bias": float((predicted - targets).mean()),
            "bins": [
                {"texts": len(rows), "predicted": float(predicted[rows].mean()), "label": float(targets[rows].mean())}
                for rows in order
                if len(rows)
            ],
        }

    def abstention(
        self, targets: np.ndarray, scores: np.ndarray, held_out: tuple[np.ndarray, np.ndarray]
    ) -> dict[str, Any]:
        """Evaluate prediction intervals; see `bertsmith.evaluation.regression.evaluate_intervals`."""
        from bertsmith.evaluation.regression import evaluate_intervals

        return {"intervals": evaluate_intervals(self.residuals(targets, scores), self.residuals(*held_out))}

    def residuals(self, targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Return the absolute errors, shape (n,)."""
        return abs(targets - self.predicted(scores))

    def conformity(self, targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Return the negative absolute errors, shape (n,)."""
        return -self.residuals(targets, scores)

    def evaluate_sets(self, targets: np.ndarray, scores: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Return whether each interval contains its number, and its width, each shape (n,)."""
        return self.conformity(targets, scores) >= threshold, np.full(len(targets), -2 * threshold)

    def set_columns(self, scores: np.ndarray, threshold: float, labels: Labels) -> dict[str, list[Any]]:
        """Return ``lower`` and ``upper``, the bounds of each interval."""
        predicted = self.predicted(scores)
        return {"lower": (predicted + threshold).tolist(), "upper": (predicted - threshold).tolist()}

    def naive_baseline(self, targets: np.ndarray, n: int, labels: Labels) -> tuple[str, np.ndarray]:
        """Return the mean of the training texts."""
        mean = float(targets.mean())
        return f"{mean:.3g}", np.full((n, 1), mean)

    def bag_of_words(
        self, train: Sequence[Text], targets: np.ndarray, texts: Sequence[Text], n_labels: int, seed: int
    ) -> Baseline:
        """Fit a ridge regression."""
        from bertsmith.evaluation.linear_models import bag_of_words_for_numbers

        return bag_of_words_for_numbers(train, targets, texts)

    def fit_head(self, embeddings: np.ndarray, targets: np.ndarray, n_labels: int) -> LinearModel:
        """Fit a ridge regression on the standardised targets."""
        from bertsmith.evaluation.linear_models import fit_ridge

        return fit_ridge(embeddings, (targets - self.mean) / self.scale)

    def indicators(self, decisions: np.ndarray, n_labels: int) -> np.ndarray:
        """Return the numbers, shape (n, 1)."""
        return decisions[:, None]

    def truth_columns(self, targets: np.ndarray, labels: Labels) -> dict[str, Any]:
        """Return ``label``, a number."""
        return {"label": targets}

    def prediction_columns(self, scores: np.ndarray, labels: Labels) -> dict[str, list[Any]]:
        """Return ``predicted``, a number."""
        return {"predicted": self.predicted(scores).tolist()}

    def mistakes(self, predictions: pd.DataFrame, labels: Labels) -> pd.DataFrame:
        """Return all rows of saved predictions, the largest error first."""
        return predictions.loc[(predictions["label"] - predictions["predicted"]).abs().sort_values().index[::-1]]

    def stored_targets(self, frame: pd.DataFrame, labels: Labels) -> np.ndarray:
        """Return the numbers, shape (n,)."""
        return frame["label"].to_numpy(dtype=np.float64)

    def stored_scores(self, frame: pd.DataFrame) -> np.ndarray:
        """Return the numbers, shape (n, 1)."""
        return frame["predicted"].to_numpy(dtype=np.float64)[:, None]
