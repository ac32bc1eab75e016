"""Measure the training speed; estimate the training time."""

from __future__ import annotations

import time

from transformers import TrainingArguments

from bertsmith.training.data import TokenDataset

BACKWARD = 3.0
"""Time of a training step in forward passes: the backward pass takes about two; see benchmarks/LOG.md."""


class StepMeter:
    """Measures the texts per second since the last reset, without the time of evaluation and saving.

    Attributes:
        texts: number of texts.
        seconds: duration of the steps.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Set all values to zero."""
        self.texts, self.seconds = 0, 0.0
        self.skip()

    def skip(self) -> None:
        """Ignore the time since the last step."""
        self._last = time.perf_counter()

    def end_step(self) -> None:
        """Count the time since the last step."""
        self.seconds += time.perf_counter() - self._last
        self.skip()

    @property
    def texts_per_second(self) -> float:
        """Texts per second."""
        return self.texts / self.seconds if self.seconds else 0.0


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
