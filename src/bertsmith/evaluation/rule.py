"""The temperature and class offsets that turn a fitted model's logits into probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Rule:
    """Calibration and decision rule: logits become ``(logits + offsets) / temperature``, with a stretched slope.

    Attributes:
        temperature: from `calibration.fit_temperature`; one per output for sets of labels, shape (labels,).
        offsets: from `decision.tune_offsets`, shape (outputs,); empty if no decision rule is used.
        folded: whether the rule is already part of the model's weights.
        stretch: from `ordinal.fit_stretch`; for ordered classes only, see `stretch_slope`.
    """

    temperature: float | tuple[float, ...] = 1.0
    offsets: tuple[float, ...] = ()
    folded: bool = True
    stretch: float = 1.0

    def adjust(self, logits: np.ndarray, *, decide: bool = True) -> np.ndarray:
        """Apply the rule to the model's logits, shape (n, classes).

        Args:
            logits: output of the model, which contains the rule if it is folded.
            decide: use the offsets; otherwise leave them out or remove them. The temperature always applies.
        """
        offsets, temperature = np.array(self.offsets or 0.0), np.array(self.temperature)
        if self.folded:
            return logits if decide or not self.offsets else logits - stretch_slope(offsets / temperature, self.stretch)
        return stretch_slope((logits + (offsets if decide else 0.0)) / temperature, self.stretch)

    def undo(self, logits: np.ndarray) -> np.ndarray:
        """Return the model's logits before the rule, from logits after it, both of shape (n, classes)."""
        offsets, temperature = np.array(self.offsets or 0.0), np.array(self.temperature)
        return stretch_slope(logits, 1 / self.stretch) * temperature - offsets

    @property
    def is_neutral(self) -> bool:
        """Whether the rule changes nothing."""
        return not self.offsets and bool(np.all(np.array(self.temperature) == 1))

    @property
    def folding(self) -> tuple[float | tuple[float, ...], tuple[float, ...], float]:
        """The arguments of `bertsmith.model.load.fold_calibration`."""
        return self.temperature, self.offsets, self.stretch

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready content for `from_dict`."""
        temperature = list(self.temperature) if isinstance(self.temperature, tuple) else self.temperature
        stretch = {} if self.stretch == 1 else {"stretch": self.stretch}
        return {"temperature": temperature, "offsets": list(self.offsets), "folded": self.folded, **stretch}

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
        stretch = content.get("stretch", 1.0)  # absent from the files of older versions
        if not all(isinstance(x, int | float) and np.isfinite(x) for x in (*temperatures, *offsets, stretch)):
            raise ValueError("temperature, offsets and stretch must be finite numbers")
        if min(temperatures, default=0) <= 0 or stretch <= 0:
            raise ValueError("temperature and stretch must be positive")
        for name, values in (("offsets", offsets), ("temperatures", temperatures)):
            if len(values) not in (0, n_classes) and not (name == "temperatures" and not isinstance(temperature, list)):
                raise ValueError(f"number of {name}: {len(values)}, number of classes: {n_classes}")
        per_label = isinstance(temperature, list)
        return cls(
            tuple(map(float, temperatures)) if per_label else float(temperature),
            tuple(map(float, offsets)),
            bool(content.get("folded", True)),
            float(stretch),
        )


def stretch_slope(logits: np.ndarray, factor: float) -> np.ndarray:
    """Multiply the slope of logits over the ranks of their classes, in the least-squares sense, by a factor.

    This is linear in the logits.

    Args:
        logits: with the classes in order, shape (..., classes).
        factor: 1 changes nothing.
    """
    if factor == 1:
        return logits
    ranks = np.arange(logits.shape[-1]) - (logits.shape[-1] - 1) / 2
    return logits + (factor - 1) * (logits @ ranks / (ranks @ ranks))[..., None] * ranks
