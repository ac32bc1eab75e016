"""Detect when the texts of a server differ from the held-out texts of its model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bertsmith.data.table import ORDINAL, SINGLE_LABEL
from bertsmith.errors import UserError
from bertsmith.inference.abstain import HeldOutPredictions
from bertsmith.inference.predictor import ModelPredictor
from bertsmith.measuring.drift import Difference, compare_counts

WINDOW = 1000
"""Number of texts in a comparison."""
FEWEST = 50
"""Minimum of held-out texts for a comparison."""
LEVEL = 0.999
"""Confidence level of a threshold. It is higher than that of `bertsmith drift`, because a server compares often."""
BINS = 10
"""Bins of confidence, each with the same number of held-out texts."""


class DriftWatch:
    """Compares every `WINDOW` texts of a process with the held-out texts, by predicted label and by confidence.

    Attributes:
        latest: the latest comparison, by property; empty before the first one.
    """

    def __init__(self, decided: np.ndarray, confidence: np.ndarray, n_labels: int) -> None:
        """Start with the predicted class indices and the confidence of the held-out texts, each of shape (n,)."""
        self._edges = np.unique(np.quantile(confidence, np.linspace(0, 1, BINS + 1)[1:-1]))
        self._n_labels = n_labels
        self._reference = self._counts(decided, confidence)
        self._seen, self._texts = [np.zeros_like(counts) for counts in self._reference], 0
        self.latest: dict[str, Difference] = {}

    @classmethod
    def of(cls, classifier: ModelPredictor, held_out: Callable[[], HeldOutPredictions]) -> DriftWatch | None:
        """Return a watch; ``None`` without one class per text, or with fewer than `FEWEST` held-out texts."""
        task = classifier.task
        if task.name not in (SINGLE_LABEL, ORDINAL):
            return None
        try:
            (scores,) = held_out().scores
        except UserError:  # a model folder, or a run of an older version
            return None
        if len(scores) < FEWEST:
            return None
        if not classifier.decide:
            scores = task.without_offsets(classifier.rule, scores)
        return cls(task.predicted(scores), task.confidence(scores), len(classifier.labels))

    def observe(self, decided: np.ndarray, confidence: np.ndarray) -> bool:
        """Count classified texts, and return whether they complete a comparison; see `__init__`."""
        for seen, more in zip(self._seen, self._counts(decided, confidence), strict=True):
            seen += more
        self._texts += len(decided)
        if self._texts < WINDOW:
            return False
        names = ("predicted labels", "confidence")
        found = [
            compare_counts(name, before, now, LEVEL)
            for name, before, now in zip(names, self._reference, self._seen, strict=True)
        ]
        self.latest = {difference.name: difference for difference in found}
        self._seen, self._texts = [np.zeros_like(counts) for counts in self._reference], 0
        return True

    @property
    def differs(self) -> bool:
        """Whether the latest comparison found a difference that chance does not explain."""
        return any(difference.differs for difference in self.latest.values())

    def to_dict(self) -> dict[str, Any] | None:
        """Return the latest comparison, JSON-ready; ``None`` before the first one."""
        if not self.latest:
            return None
        found = {
            name: {"distance": d.distance, "threshold": d.threshold, "differs": d.differs}
            for name, d in self.latest.items()
        }
        return {"differs": self.differs, "properties": found}

    def _counts(self, decided: np.ndarray, confidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        bins = np.searchsorted(self._edges, confidence, side="right")
        return np.bincount(decided, minlength=self._n_labels), np.bincount(bins, minlength=len(self._edges) + 1)
