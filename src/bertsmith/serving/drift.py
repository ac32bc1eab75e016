"""Detect when the texts of a server differ from the held-out texts of its model."""

from __future__ import annotations

from typing import Any

import numpy as np

from bertsmith.errors import UserError
from bertsmith.inference.predictor import ModelPredictor
from bertsmith.measuring.drift import CONFIDENCE, LABELS, NUMBER, Difference, compare_counts
from bertsmith.tasks.base import Task

WINDOW = 1000
"""Number of texts in a comparison."""
FEWEST = 50
"""Minimum of held-out texts for a comparison."""
LEVEL = 0.999
"""Confidence level of a threshold. It is higher than that of `bertsmith drift`, because a server compares often."""
BINS = 10
"""Bins of confidence or of predicted numbers, each with the same number of held-out texts."""


class DriftWatch:
    """Compares every `WINDOW` texts of a process with the held-out texts.

    The properties are predicted labels and confidence, or the predicted number.

    Attributes:
        latest: the latest comparison, by property; empty before the first one.
    """

    def __init__(self, task: Task, scores: np.ndarray) -> None:
        """Start with the scores of the held-out texts, shape (n, outputs)."""
        self._task, self._held_out = task, len(scores)
        self._edges = np.unique(np.quantile(self._values(scores), np.linspace(0, 1, BINS + 1)[1:-1]))
        self._reference = self._counts(scores)
        self._restart()
        self.latest: dict[str, Difference] = {}

    def _restart(self) -> None:
        self._seen, self._texts = {name: np.zeros_like(counts) for name, counts in self._reference.items()}, 0

    @classmethod
    def of(cls, classifier: ModelPredictor) -> DriftWatch | None:
        """Return a watch; ``None`` with fewer than `FEWEST` held-out texts.

        To start fast, it takes the saved predictions, however they read long texts.
        """
        try:
            (scores,) = classifier.saved().scores
        except UserError:  # a model folder, or a run of an older version
            return None
        if len(scores) < FEWEST:
            return None
        if not classifier.decide:
            scores = classifier.task.without_offsets(classifier.rule, scores)
        return cls(classifier.task, scores)

    def observe(self, scores: np.ndarray) -> bool:
        """Count texts by their scores, and return whether they complete a comparison; see `__init__`."""
        for name, more in self._counts(scores).items():
            self._seen[name] += more
        self._texts += len(scores)
        if self._texts < WINDOW:
            return False
        latest = {}
        for name, before in self._reference.items():
            several = name == LABELS and not self._task.one_class
            texts = (self._held_out, self._texts) if several else None
            latest[name] = compare_counts(name, before, self._seen[name], LEVEL, texts=texts)
        self.latest = latest  # at once: a reload in another thread reads it
        self._restart()
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

    def _values(self, scores: np.ndarray) -> np.ndarray:
        return self._task.confidence(scores) if self._task.has_labels else self._task.predicted(scores)

    def _counts(self, scores: np.ndarray) -> dict[str, np.ndarray]:
        """Return the numbers of texts by label, and by bin of the confidence or of the predicted number."""
        bins = np.searchsorted(self._edges, self._values(scores), side="right")
        binned = np.bincount(bins, minlength=len(self._edges) + 1)
        if not self._task.has_labels:
            return {NUMBER: binned}
        decided = self._task.indicators(self._task.predicted(scores), scores.shape[1])
        return {LABELS: decided.sum(axis=0).astype(np.int64), CONFIDENCE: binned}
