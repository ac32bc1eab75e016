"""The temperature and class offsets that turn a fitted model's logits into probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Rule:
    """Calibration and decision rule: logits become ``(logits + offsets) / temperature``.

    Attributes:
        temperature: from `calibration.fit_temperature`; one per output for sets of labels, shape (labels,).
        offsets: from `decision.tune_offsets`, shape (outputs,); empty if no decision rule is used.
        folded: whether both are already part of the model's weights.
    """

    temperature: float | tuple[float, ...] = 1.0
    offsets: tuple[float, ...] = ()
    folded: bool = True

    def adjust(self, logits: np.ndarray, *, decide: bool = True) -> np.ndarray:
        """Apply the rule to the model's logits, shape (n, classes).

        Args:
            logits: output of the model, which contains the rule if it is folded.
            decide: use the offsets; otherwise leave them out or remove them. The temperature always applies.
        """
        offsets, temperature = np.array(self.offsets or 0.0), np.array(self.temperature)
        if self.folded:
            return logits if decide or not self.offsets else logits - offsets / temperature
        adjusted: np.ndarray = (logits + (offsets if decide else 0.0)) / temperature
        return adjusted

    @property
    def is_neutral(self) -> bool:
        """Whether the rule changes nothing."""
        return not self.offsets and bool(np.all(np.array(self.temperature) == 1))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready content for `from_dict`."""
        temperature = list(self.temperature) if isinstance(self.temperature, tuple) else self.temperature
        return {"temperature": temperature, "offsets": list(self.offsets), "folded": self.folded}

    @classmethod
    def from_dict(cls, content: Any, n_classes: int) -> Rule:
        """Validate and return a rule from a model's configuration; ``None`` gives the neutral rule.

        Raises:
            ValueError: if the content is not a rule for this number of classes.
        """
        if content is None:
            return cls()
        if not isinstance(content, Mapping):
            raise ValueError("the decision rule is not an object")
        temperature, offsets = content.get("temperature", 1.0), tuple(content.get("offsets", ()))
        temperatures = tuple(temperature) if isinstance(temperature, list) else (temperature,)
        if not all(isinstance(x, int | float) and np.isfinite(x) for x in (*temperatures, *offsets)):
            raise ValueError("temperature and offsets must be finite numbers")
        if min(temperatures, default=0) <= 0:
            raise ValueError("the temperature must be positive")
        for name, values in (("offsets", offsets), ("temperatures", temperatures)):
            if len(values) not in (0, n_classes) and not (name == "temperatures" and not isinstance(temperature, list)):
                raise ValueError(f"number of {name}: {len(values)}, number of classes: {n_classes}")
        per_label = isinstance(temperature, list)
        return cls(
            tuple(map(float, temperatures)) if per_label else float(temperature),
            tuple(map(float, offsets)),
            bool(content.get("folded", True)),
        )
