"""What is done where a number of training is NaN or infinite: once back to the last good state, more carefully."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.state import AcceleratorState
from transformers import TrainingArguments

from bertsmith.errors import TrainingError
from bertsmith.events import RolledBack
from bertsmith.model.batch import TokenBatch

if TYPE_CHECKING:
    from bertsmith.training.engine import Engine


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


class FiniteCheck:
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


NameTexts = Callable[[Sequence[int]], str]
"""Says in words which texts stand at some positions of the training split."""


def safer(arguments: TrainingArguments) -> TrainingArguments:
    """Return the arguments with fp32 and half the learning rate."""
    result = copy.copy(arguments)
    result.bf16 = result.fp16 = False
    result.mixed_precision = "no"
    result.learning_rate = arguments.learning_rate / 2
    AcceleratorState._reset_state()  # it knows one precision a process
    return result


def went_back(error: NotFiniteError, engine: Engine, name: NameTexts, to: Path | None) -> RolledBack:
    """Return the event that says so."""
    return RolledBack(
        step=engine.state.global_step,
        to_step=int(to.name.rpartition("-")[2]) if to else 0,
        what=f"{error.what} is not a finite number ({_rows(error, name)}); likely cause: {_cause(error, engine)}",
        learning_rate=engine.args.learning_rate / 2,
    )


def failed(error: NotFiniteError, engine: Engine, name: NameTexts) -> TrainingError:
    """Return the error that ends training the second time."""
    return TrainingError(
        f"{error.what} is not a finite number, again, after going back with fp32 and half the learning rate",
        where=_rows(error, name),
        remedy=f"Likely cause: {_cause(error, engine)}. Look at these texts, pass a smaller --learning-rate "
        f"({engine.args.learning_rate:g} was used last), or take another --model; checkpoints are kept.",
    )


def _rows(error: NotFiniteError, name: NameTexts) -> str:
    if error.rows:
        return f"it comes from {name(sorted(error.rows))}"
    if error.batch:
        return f"in a batch of {name(sorted(error.batch))}"
    return "in no text of its own"


def _cause(error: NotFiniteError, engine: Engine) -> str:
    if error.rows:
        return "these texts, which are not finite without the others either"
    if engine.args.fp16 or engine.args.bf16:
        return f"training diverged, or overflowed in {'fp16' if engine.args.fp16 else 'bf16'}"
    return "training diverged: the learning rate is too high"
