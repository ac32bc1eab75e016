"""Measure throughput of training and sudden slowdowns; estimate the training time."""

from __future__ import annotations

import statistics
import time
from collections import deque
from typing import Any

from transformers import TrainingArguments

from bertsmith.training.data import TokenDataset

STEP_PHASES = ("data", "forward", "backward", "optimizer")
SLOWDOWN_STEPS, SLOWDOWN_SECONDS, SLOWDOWN_FACTOR = 5, 10.0, 4.0
"""Number of steps to compare, their minimum duration, and how much slower they must be."""
BACKWARD = 3.0
"""Time of a training step in forward passes: the backward pass takes about two; see benchmarks/LOG.md."""


class StepMeter:
    """Measures throughput and the seconds of each phase of the steps since the last reset.

    A GPU works asynchronously, so the phases are those of the CPU. Their sum is correct.

    Attributes:
        texts: number of texts.
        tokens: number of tokens.
        padded_tokens: number of tokens including padding.
        seconds: seconds by phase.
        forward_seconds, micro_batch_tokens: of each micro-batch since the last batch. Several threads append to them.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Set all values to zero."""
        self.texts = self.tokens = self.padded_tokens = 0
        self.seconds: dict[str, float] = dict.fromkeys(STEP_PHASES, 0.0)
        self.forward_seconds: list[float] = []
        self.micro_batch_tokens: list[int] = []
        self.skip()

    def skip(self) -> None:
        """Ignore the time since the last lap."""
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Count the time since the last lap as a phase."""
        now = time.perf_counter()
        self.seconds[phase] += now - self._last
        self._last = now

    def add_batch(self, texts: int, tokens: int, *, workers: int, processes: int) -> None:
        """Count a batch, and the time since the last lap as its forward and backward pass."""
        self.texts += texts
        self.tokens += tokens
        self.padded_tokens += sum(self.micro_batch_tokens) * processes  # each process has an equal share
        self.lap("backward")
        seconds = sum(self.forward_seconds) / (min(workers, len(self.forward_seconds)) or 1)
        self.seconds["backward"] -= seconds
        self.seconds["forward"] += seconds
        self.forward_seconds.clear()
        self.micro_batch_tokens.clear()

    @property
    def texts_per_second(self) -> float:
        """Texts per second, with all phases."""
        total = sum(self.seconds.values())
        return self.texts / total if total else 0.0

    def metrics(self) -> dict[str, Any]:
        """Return the throughput fields of an `Evaluated` event."""
        total = sum(self.seconds.values()) or 1.0
        return {
            "texts_per_second": self.texts_per_second,
            "tokens_per_second": self.tokens / total,
            "padding": 1 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0,
            "shares": {phase: self.seconds[phase] / total for phase in STEP_PHASES},
        }


class SlowdownDetector:
    """Detects, once, that steps take much longer per token than the first ones."""

    def __init__(self) -> None:
        self._first: list[float] = []
        self._last: deque[tuple[float, float]] = deque(maxlen=SLOWDOWN_STEPS)
        self._detected = False

    def update(self, seconds: float, tokens: int) -> float | None:
        """Add a step of some seconds and tokens; return the slowdown factor if it is detected."""
        if self._detected or not tokens:
            return None
        if len(self._first) <= SLOWDOWN_STEPS:  # the very first step includes initialization
            self._first.append(seconds / tokens)
            return None
        self._last.append((seconds, seconds / tokens))
        factor = statistics.median(pace for _, pace in self._last) / statistics.median(self._first[1:])
        total = sum(seconds for seconds, _ in self._last)
        if len(self._last) < SLOWDOWN_STEPS or total < SLOWDOWN_SECONDS or factor < SLOWDOWN_FACTOR:
            return None
        self._detected = True
        return factor


def estimate_seconds(
    train: TokenDataset,
    validation: TokenDataset,
    arguments: TrainingArguments,
    *,
    tokens_per_second: float,
    passes: float = 1,
    folds: int = 0,
) -> float:
    """Return the approximate training time in seconds if training does not stop early.

    Args:
        train: the training texts.
        validation: the validation texts, scored once per epoch.
        arguments: number of epochs or steps.
        tokens_per_second: speed of forward passes.
        passes: forward passes of a text per epoch; 2 with R-Drop, more with a contrastive stage.
        folds: number of folds that are trained first; 0 without cross-validation.
    """
    epochs = float(arguments.num_train_epochs)
    if arguments.max_steps > 0:
        batch_size = arguments.train_batch_size * arguments.gradient_accumulation_steps
        epochs = arguments.max_steps * batch_size / max(1, len(train))
    trained = epochs * int(train.lengths.sum()) * (1 + max(0, folds - 1))
    scored = epochs * int(validation.lengths.sum())
    return (BACKWARD * passes * trained + scored) / tokens_per_second
