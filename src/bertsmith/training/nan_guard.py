"""Detect losses and gradients that are NaN or infinite, and retry once with a safer setup."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import TrainingArguments

from bertsmith.errors import TrainingError, listing, number_form
from bertsmith.events import RolledBack
from bertsmith.folders.layout import step_of
from bertsmith.model.outputs import compute_logits
from bertsmith.model.tokens import Tokens
from bertsmith.training.optimizer import can_skip_step

if TYPE_CHECKING:
    from bertsmith.training.engine import Engine

DescribeTexts = Callable[[Sequence[int]], str]
"""Describes the texts at some positions of the training split, for messages."""


class NotFiniteError(Exception):
    """A loss, gradient or logit is NaN or infinite.

    Attributes:
        what: which number, and its step.
        rows: positions in the training split of the texts that cause it; empty if unknown.
        batch: positions of all texts of the batch; empty if unknown.
    """

    def __init__(self, what: str, rows: list[int], batch: list[int]) -> None:
        super().__init__(what)
        self.what, self.rows, self.batch = what, rows, batch


@dataclass(frozen=True)
class BatchLoss:
    """The share of a batch in the loss of a step, a scalar.

    Attributes:
        position: number of finished steps, and number of earlier batches of this step.
    """

    position: tuple[int, int]
    texts: Tokens
    loss: torch.Tensor


class FiniteCheck:
    """Checks on the device whether the losses of a step and the norm of its gradient are finite, for a later result.

    Attributes:
        found_inf: 1 if a number is not finite, else 0, shape (), on the device. The optimizer then skips the step.
    """

    def __init__(self, losses: Sequence[BatchLoss], norm: torch.Tensor) -> None:
        self.losses = tuple(losses)
        finite = torch.isfinite(torch.stack([value.detach().float() for value in (*(x.loss for x in losses), norm)]))
        self.found_inf = 1.0 - finite.all().float()
        self._finite, self._copied = finite, None
        if finite.device.type == "cuda":
            self._finite = torch.empty(finite.shape, dtype=torch.bool, pin_memory=True).copy_(finite, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def result(self) -> int | None:
        """Wait for the device; return the index of the first loss that is not finite, or the number of losses.

        The number of losses means that the gradient is not finite; ``None`` means that all numbers are finite.
        """
        if self._copied is not None:
            self._copied.synchronize()
        wrong = (~self._finite).nonzero()[:, 0].tolist()
        return wrong[0] if wrong else None


class NanGuard:
    """Raises `NotFiniteError` for losses and gradients of an engine.

    It checks each step at once. With CUDA that would synchronize; there, a fused optimizer in bf16 or fp32 skips a bad
    step, and the error follows in the next step.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._losses: list[BatchLoss] = []
        self._pending: FiniteCheck | None = None

    @property
    def deferred(self) -> bool:
        """Whether the optimizer skips bad steps on the device."""
        args = self.engine.args
        return args.device.type == "cuda" and not args.fp16 and can_skip_step(self.engine.optimizer.optimizer)

    def add(self, position: tuple[int, int], texts: Tokens, loss: torch.Tensor) -> None:
        """Check the loss of a batch; if deferred, finish the check of the last step."""
        self._losses.append(BatchLoss(position, texts, loss))
        if self.deferred:
            self.finish()
        elif not bool(torch.isfinite(loss)):
            raise self._loss_error(self._losses[-1])

    def check_gradient(self, norm: Any) -> None:
        """Check the gradient of a step by its norm."""
        losses, self._losses = self._losses, []
        if self.deferred:
            self._pending = FiniteCheck(losses, norm)
            self.engine.optimizer.optimizer.found_inf = self._pending.found_inf
        elif self.engine.accelerator.scaler is None and not math.isfinite(norm):  # a scaler skips such steps
            raise self._gradient_error(losses[-1])

    def finish(self) -> None:
        """Wait for the check of the last step, if any."""
        check, self._pending = self._pending, None
        if check is not None and (wrong := check.result()) is not None:
            is_loss = wrong < len(check.losses)
            raise self._loss_error(check.losses[wrong]) if is_loss else self._gradient_error(check.losses[-1])

    def _gradient_error(self, loss: BatchLoss) -> NotFiniteError:
        return NotFiniteError(f"the gradient of step {loss.position[0] + 1:,}", [], self._rows(loss))

    def _loss_error(self, loss: BatchLoss) -> NotFiniteError:
        """Find the texts whose logits are not finite on their own, without dropout."""
        engine, rows = self.engine, self._rows(loss)
        engine.model.eval()
        logits, _ = compute_logits(engine.loaded, loss.texts, budget=1, dtype=engine.dtype)  # one text at a time
        engine.model.train()
        wrong = np.flatnonzero(~np.isfinite(logits).all(axis=1))
        causes = [] if len(wrong) == len(logits) or not rows else [rows[i] for i in wrong]
        return NotFiniteError(f"the loss of step {loss.position[0] + 1:,}", causes, rows)

    def _rows(self, loss: BatchLoss) -> list[int]:
        """Return the positions of the texts of a batch in the training split, if known."""
        if not self.engine.orders_texts:
            return []
        args = self.engine.args
        step, index = loss.position
        epoch, batches = self.engine.sampler.epoch_and_batch(step)
        start = (batches + index) * args.per_device_train_batch_size
        return self.engine.sampler.order(epoch)[start : start + args.per_device_train_batch_size].tolist()


def describe_positions(rows: Sequence[int]) -> str:
    """Describe training texts by their positions."""
    texts, at = number_form(len(rows), "text"), number_form(len(rows), "position")
    return f"the training {texts} at {at} {listing(rows)} (the first is 0)"


def safer_arguments(arguments: TrainingArguments) -> TrainingArguments:
    """Return the arguments with fp32 and half the learning rate."""
    result = copy.copy(arguments)
    result.bf16 = result.fp16 = False
    result.mixed_precision = "no"
    result.learning_rate = arguments.learning_rate / 2
    return result


def retry_event(error: NotFiniteError, engine: Engine, checkpoint: Path | None) -> RolledBack:
    """Return the event of a retry from a checkpoint, or from the start."""
    return RolledBack(
        step=engine.state.global_step,
        to_step=step_of(checkpoint) if checkpoint else 0,
        what=f"{error.what} is not a finite number ({_source(error, engine)}); likely cause: {_cause(error, engine)}",
        learning_rate=engine.args.learning_rate / 2,
    )


def final_error(error: NotFiniteError, engine: Engine) -> TrainingError:
    """Return the error that ends training if the retry fails, too."""
    named = len(error.rows or error.batch)
    check = f"Check {number_form(named, 'the text', 'the texts')}, pass" if named else "Pass"
    return TrainingError(
        f"{error.what} is again not a finite number, after a retry with fp32 and half the learning rate",
        where=_source(error, engine),
        remedy=f"Likely cause: {_cause(error, engine)}. {check} a smaller --learning-rate (the last one was "
        f"{engine.args.learning_rate:g}), or use another --model. bertsmith keeps the checkpoints.",
    )


def _source(error: NotFiniteError, engine: Engine) -> str:
    if not error.batch:
        return "text unknown"
    texts = engine.training.describe_texts(sorted(error.rows or error.batch))
    return f"{'found in' if error.rows else 'in a batch of'} {texts}"


def _cause(error: NotFiniteError, engine: Engine) -> str:
    if error.rows:
        texts = number_form(len(error.rows), "the text, because its", "the texts, because their")
        return f"{texts} logits are not finite even in a batch of one text"
    if engine.args.fp16 or engine.args.bf16:
        return f"training diverged, or overflowed in {'fp16' if engine.args.fp16 else 'bf16'}"
    return "training diverged: the learning rate is too high"
