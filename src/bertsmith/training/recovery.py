"""What is done where a number of training is NaN or infinite: once back to the last good state, more carefully."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate.state import AcceleratorState
from transformers import TrainingArguments

from bertsmith.errors import TrainingError
from bertsmith.training.events import WentBack

if TYPE_CHECKING:
    from bertsmith.training.engine import Engine
from bertsmith.training.finite import NotFiniteError

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


def went_back(error: NotFiniteError, engine: Engine, name: NameTexts, to: Path | None) -> WentBack:
    """Return the event that says so."""
    return WentBack(
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
