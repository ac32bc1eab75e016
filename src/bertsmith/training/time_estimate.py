"""Estimate the training time from the speed of forward passes, before training begins."""

from __future__ import annotations

from transformers import TrainingArguments

from bertsmith.training.data import TokenDataset

BACKWARD = 3.0
"""Time of a training step in forward passes: the backward pass takes about two; see benchmarks/LOG.md."""


def estimate_seconds(
    train: TokenDataset,
    validation: TokenDataset,
    arguments: TrainingArguments,
    *,
    tokens_per_second: float,
    passes: int = 1,
    folds: int = 0,
) -> float:
    """Return the approximate training time in seconds if training does not stop early.

    Args:
        train: the training texts.
        validation: the validation texts, scored once per epoch.
        arguments: number of epochs or steps.
        tokens_per_second: speed of forward passes.
        passes: forward passes of a text per step; 2 with R-Drop.
        folds: number of folds that are trained first; 0 without cross-validation.
    """
    epochs = float(arguments.num_train_epochs)
    if arguments.max_steps > 0:
        epochs = arguments.max_steps * arguments.train_batch_size / max(1, len(train))
    trained = epochs * int(train.lengths.sum()) * (1 + max(0, folds - 1))
    scored = epochs * int(validation.lengths.sum())
    return (BACKWARD * passes * trained + scored) / tokens_per_second
