"""Whether the numbers of a step are finite, asked of a GPU without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bertsmith.model.batch import TokenBatch


class NotFiniteError(Exception):
    """A number of training is NaN or infinite.

    Attributes:
        what: which one, and where.
        rows: positions in the training split of the texts whose own loss is not finite; empty if it is all of them.
        batch: positions of all texts of the step.
    """

    def __init__(self, what: str, rows: list[int], batch: list[int]) -> None:
        super().__init__(what)
        self.what, self.rows, self.batch = what, rows, batch


@dataclass(frozen=True)
class Part:
    """A batch of a step that was computed.

    Attributes:
        place: its step, and which of the batches of that step it is, from 0.
        batch: its texts.
        loss: its part of the loss of the step.
    """

    place: tuple[int, int]
    batch: TokenBatch
    loss: torch.Tensor


class Question:
    """Whether losses and gradient of a step are finite; the answer is there when the device has come so far.

    Args:
        parts: of the step.
        norm: of its gradient, if it was computed.
    """

    def __init__(self, parts: Sequence[Part], norm: torch.Tensor | None) -> None:
        self.parts = tuple(parts)
        values = [part.loss for part in parts] + ([] if norm is None else [norm])
        finite = torch.isfinite(torch.stack([value.detach().float() for value in values]))
        self.wrong = 1.0 - finite.all().float()
        """1 if one of them is not, else 0, shape (), on the device: by it an optimizer skips a step."""
        self._finite, self._there = finite, None
        if finite.device.type == "cuda":
            self._finite = torch.empty(finite.shape, dtype=torch.bool, pin_memory=True).copy_(finite, non_blocking=True)
            self._there = torch.cuda.Event()
            self._there.record()

    def answer(self) -> Part | str | None:
        """Wait for the answer: the part whose loss is not finite, ``"gradient"``, or nothing if all are."""
        if self._there is not None:
            self._there.synchronize()
        wrong = (~self._finite).nonzero()[:, 0].tolist()
        if not wrong:
            return None
        return self.parts[wrong[0]] if wrong[0] < len(self.parts) else "gradient"


def can_skip(optimizer: Any) -> bool:
    """Return whether an optimizer of torch leaves the weights alone in a step it is told to skip (``found_inf``)."""
    return isinstance(optimizer, torch.optim.AdamW) and bool(optimizer.defaults.get("fused"))
