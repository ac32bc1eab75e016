"""What labels texts, whatever it runs on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bertsmith.data.table import Labels
from bertsmith.evaluation.rule import Rule

if TYPE_CHECKING:
    import pandas as pd


class Labelling(ABC):
    """What labels texts, by probabilities.

    Attributes:
        labels: the classes.
    """

    labels: Labels

    @property
    @abstractmethod
    def rules(self) -> list[Rule]:
        """The decision rules of the models that are asked."""

    @abstractmethod
    def predict_proba(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Return the probability of every class for every text, shape (texts, classes)."""

    def predict(self, texts: Sequence[str]) -> list[str]:
        """Return the label text of every text."""
        return [self.labels.texts[i] for i in self.predict_proba(texts).argmax(axis=1)]

    def predict_frame(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> pd.DataFrame:
        """Return one row a text: ``predicted``, ``predicted_text``, ``confidence``, ``probabilities`` (a list)."""
        return to_frame(self.predict_proba(texts, progress), self.labels)


def to_frame(probabilities: np.ndarray, labels: Labels) -> pd.DataFrame:
    """Turn probabilities, shape (n, classes), into the columns of `Classifier.predict_frame`."""
    import pandas as pd

    best = probabilities.argmax(axis=1)
    return pd.DataFrame(
        {
            "predicted": np.array(labels.numbers, dtype=np.int64)[best],
            "predicted_text": pd.Series(np.array(labels.texts, dtype=object)[best], dtype="str"),
            "confidence": probabilities.max(axis=1) if len(probabilities) else np.empty(0),
            "probabilities": list(probabilities),
        }
    )
