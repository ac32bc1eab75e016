"""The temperature and class offsets that turn a fitted model's logits into probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertsmith.evaluation.calibration import scale, to_logits


@dataclass(frozen=True)
class Rule:
    """Calibration and decision rule: logits become ``(logits + offsets) / temperature``.

    Attributes:
        temperature: from `calibration.fit_temperature`.
        offsets: from `decision.tune_offsets`, shape (classes,); empty if no decision rule is used.
        folded: whether both are already part of the model's weights.
    """

    temperature: float = 1.0
    offsets: tuple[float, ...] = ()
    folded: bool = True

    def apply(self, probabilities: np.ndarray, *, decide: bool = True) -> np.ndarray:
        """Apply the rule to the model's probabilities, shape (n, classes); see `adjust`."""
        if self.folded and (decide or not self.offsets):
            return probabilities
        adjusted = self.adjust(to_logits(probabilities), decide=decide)
        return scale(np.exp(adjusted - adjusted.max(axis=1, keepdims=True)), 1.0)

    def adjust(self, logits: np.ndarray, *, decide: bool = True) -> np.ndarray:
        """Apply the rule to the model's logits, shape (n, classes).

        Args:
            logits: output of the model, which contains the rule if it is folded.
            decide: use the offsets; otherwise leave them out or remove them. The temperature always applies.
        """
        offsets = np.array(self.offsets or 0.0)
        if self.folded:
            return logits if decide or not self.offsets else logits - offsets / self.temperature
        return (logits + (offsets if decide else 0.0)) / self.temperature

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready content for `from_dict`."""
        return {"temperature": self.temperature, "offsets": list(self.offsets), "folded": self.folded}

    @classmethod
    def from_dict(cls, content: Any, n_classes: int) -> Rule:
        """Validate and return a rule from a model's configuration; ``None`` gives the neutral rule.

        Raises:
            ValueError: if the content is not a rule for this number of classes.
        """
        if content is None:
            return cls()
        if not isinstance(content, Mapping):
            raise ValueError("it is not an object")
        temperature, offsets = content.get("temperature", 1.0), tuple(content.get("offsets", ()))
        numbers = [temperature, *offsets]
        if not all(isinstance(x, int | float) and np.isfinite(x) for x in numbers) or temperature <= 0:
            raise ValueError("temperature and offsets must be finite numbers, and the temperature positive")
        if offsets and len(offsets) != n_classes:
            raise ValueError(f"it has {len(offsets)} offsets for {n_classes} classes")
        return cls(float(temperature), tuple(map(float, offsets)), bool(content.get("folded", True)))
