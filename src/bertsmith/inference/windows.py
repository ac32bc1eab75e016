"""Texts longer than what the model reads at once, read whole, a window at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bertsmith.evaluation.rule import Rule
from bertsmith.inference.labelling import Labelling, OneModel, as_texts, softmax


class Windowed(Labelling):
    """A classifier that reads long texts whole: a text's logits are the mean of those of its windows.

    Attributes:
        model: what is asked about each window.
        labels: the classes.
    """

    def __init__(self, model: OneModel) -> None:
        self.model, self.labels = model, model.labels

    def __repr__(self) -> str:
        return f"Windowed({self.model!r})"

    @property
    def rules(self) -> list[Rule]:
        """That of the model."""
        return self.model.rules

    def prepare(self, texts: Sequence[str]) -> Callable[[Callable[[int], None] | None], np.ndarray]:
        """Cut texts into windows and tokenize these, and return what gives the texts' probabilities."""
        windows = [self.model.windows(text) for text in as_texts(texts)]
        counts = np.array([len(of_text) for of_text in windows])
        encoded = self.model.encode([window for of_text in windows for window in of_text])

        def label(progress: Callable[[int], None] | None) -> np.ndarray:
            if not windows:
                return np.empty((0, len(self.labels)))
            means = np.add.reduceat(self.model.logits_of(encoded), np.cumsum(counts) - counts) / counts[:, None]
            if progress:
                progress(len(windows))
            return self.model.rule.apply(softmax(means), decide=self.model.decide)

        return label

    def predict_proba(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Return the probability of every class for every text, shape (texts, classes); rows sum to 1."""
        return self.prepare(texts)(progress)
