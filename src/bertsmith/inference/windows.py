"""Prediction of long texts in windows of the model's maximum length."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bertsmith.evaluation.rule import Rule
from bertsmith.inference.predictor import Items, Label, ModelPredictor, Predictor


class Windowed(Predictor):
    """A predictor for long texts: the logits of a text are the mean of those of its windows.

    Attributes:
        model: predicts each window.
        labels: the classes.
        task: the kind of label.
    """

    def __init__(self, model: ModelPredictor) -> None:
        self.model, self.labels, self.task, self.template = model, model.labels, model.task, model.template

    def __repr__(self) -> str:
        return f"Windowed({self.model!r})"

    @property
    def rules(self) -> list[Rule]:
        """The rule of the model."""
        return self.model.rules

    def prepare(self, texts: Items) -> tuple[Label, int]:
        """Tokenize texts and split them into windows; see `Predictor.prepare`. No text is truncated."""
        windows, counts = self.model.encode(texts, truncate=False).windows(self.model.max_length)

        def predict_windows(progress: Callable[[int], None] | None) -> np.ndarray:
            if not len(counts):
                return np.empty((0, len(self.labels)))
            means = np.add.reduceat(self.model.logits_of(windows), np.cumsum(counts) - counts) / counts[:, None]
            if progress:
                progress(len(counts))
            return self.model.scores_of(means)

        return predict_windows, 0

    def predict_proba(self, texts: Items, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Return the probability of every class for every text, shape (texts, classes); rows sum to 1."""
        return self.prepare(texts)[0](progress)
