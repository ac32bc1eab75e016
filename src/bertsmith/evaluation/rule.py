"""What stands between a fitted model's logits and its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertsmith.evaluation.calibration import logs, scale


@dataclass(frozen=True)
class Rule:
    """Temperature and offsets, found by `calibration.fit_temperature` and `decision.tune`.

    Attributes:
        temperature: that the logits are divided by.
        offsets: that are added to them before, shape (classes,); empty where there are none.
        folded: whether both are in the weights of the model already.
    """

    temperature: float = 1.0
    offsets: tuple[float, ...] = ()
    folded: bool = True

    def apply(self, probabilities: np.ndarray, *, decide: bool = True) -> np.ndarray:
        """Return what a model says, as the rule wants it, shape (n, classes).

        Args:
            probabilities: as they come from the model, shape (n, classes).
            decide: leave the offsets out, or take them out, if not: the temperature stays.
        """
        if self.folded and (decide or not self.offsets):
            return probabilities
        adjusted = self.adjust(logs(probabilities), decide=decide)
        return scale(np.exp(adjusted - adjusted.max(axis=1, keepdims=True)), 1.0)

    def adjust(self, logits: np.ndarray, *, decide: bool = True) -> np.ndarray:
        """Return logits as the rule wants them, shape (n, classes), from those of the model as it stands."""
        offsets = np.array(self.offsets or 0.0)
        if self.folded:
            return logits if decide or not self.offsets else logits - offsets / self.temperature
        return (logits + (offsets if decide else 0.0)) / self.temperature

    def to_dict(self) -> dict[str, Any]:
        """Return what `read` reads."""
        return {"temperature": self.temperature, "offsets": list(self.offsets), "folded": self.folded}

    @classmethod
    def read(cls, content: Any, n_classes: int) -> Rule:
        """Return the rule that stands in a model's configuration; none where nothing stands there.

        Raises:
            ValueError: if it is no rule for so many classes.
        """
        if content is None:
            return cls()
        if not isinstance(content, Mapping):
            raise ValueError("it is no object")
        temperature, offsets = content.get("temperature", 1.0), tuple(content.get("offsets", ()))
        numbers = [temperature, *offsets]
        if not all(isinstance(x, int | float) and np.isfinite(x) for x in numbers) or temperature <= 0:
            raise ValueError("it holds what is no number")
        if offsets and len(offsets) != n_classes:
            raise ValueError(f"it has {len(offsets)} offsets for {n_classes} classes")
        return cls(float(temperature), tuple(map(float, offsets)), bool(content.get("folded", True)))
