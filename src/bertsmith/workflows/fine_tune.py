"""The stages of fine-tuning: with few texts, contrastive training comes before training on labels, or instead of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING

import numpy as np

from bertsmith.config import Config
from bertsmith.events import Finished, Listener
from bertsmith.training.arguments import training_arguments
from bertsmith.training.data import TokenDataset
from bertsmith.training.recipe import CONTRASTIVE_TOKENS, Recipe, schedule_arguments
from bertsmith.training.trainer import Training, fit
from bertsmith.workflows.prepare import fit_head

if TYPE_CHECKING:
    from transformers import TrainingArguments

BACKWARD = 3.0
"""Time of a training step in forward passes: the backward pass takes about two; see benchmarks/LOG.md."""


def fine_tune(
    training: Training, config: Config, *, emit_contrastive: Listener | None = None, resume: Path | None = None
) -> Finished:
    """Fine-tune a model in the stages of a recipe.

    Contrastive training, see `bertsmith.training.losses.contrastive_loss`, reads only the first `CONTRASTIVE_TOKENS` of
    a text. After it, the head is fitted as a regression on what the model reads later. A contrastive stage before
    training on labels writes nothing: if it is interrupted, it begins again.

    Args:
        training: the training on labels, or the contrastive training that replaces it.
        config: the settings; training arguments for the schedule apply to training on labels only.
        emit_contrastive: receives the events of a contrastive stage before it; by default, ``training.emit``.
        resume: as in `bertsmith.training.trainer.fit`, which also raises the errors.
    """
    training = replace(training, user_arguments=config.set)
    loaded, recipe, train = training.loaded, training.recipe, training.train
    if recipe.contrastive == "first" and resume is None:
        stage = recipe.contrastive_stage(len(train))
        schedule = schedule_arguments(config.set)
        own = {name: value for name, value in config.set.items() if name not in schedule}
        stage_config = config.model_copy(update={"set": own})
        contrastive = replace(
            training,
            train=train.truncate(CONTRASTIVE_TOKENS),
            validation=train.take(np.array([], dtype=np.int64)),
            arguments=training_arguments(
                stage, stage_config, Path(gettempdir()), loaded.device, saves=False, validates=False
            ),
            recipe=stage,
            emit=emit_contrastive or training.emit,
            user_arguments=own,
        )
        fit(contrastive)
        fit_head(loaded, training.task, train.tokens, train.labels)
    if recipe.contrastive == "only":
        finished = fit(replace(training, train=train.truncate(CONTRASTIVE_TOKENS)), resume)
        fit_head(loaded, training.task, train.tokens, train.labels)
        return finished
    return fit(training, resume)


def passes_per_epoch(recipe: Recipe, train: TokenDataset) -> float:
    """Return how many times training reads all tokens of the training texts, per epoch on labels."""
    share = float(train.truncate(CONTRASTIVE_TOKENS).lengths.sum() / train.lengths.sum())
    if recipe.contrastive == "only":
        return share
    passes = 2.0 if recipe.consistency else 1.0
    if recipe.contrastive == "first":
        passes += share * recipe.contrastive_stage(len(train)).epochs / recipe.epochs
    return passes


def estimate_seconds(
    recipe: Recipe,
    train: TokenDataset,
    validation: TokenDataset,
    arguments: TrainingArguments,
    *,
    tokens_per_second: float,
    folds: int = 0,
) -> float:
    """Return the approximate training time in seconds if training does not stop early.

    Args:
        recipe: R-Drop and contrastive training need more passes over the training texts.
        train: the training texts.
        validation: the validation texts, scored once per epoch.
        arguments: number of epochs or steps.
        tokens_per_second: speed of forward passes.
        folds: number of folds that are trained first; 0 without cross-validation.
    """
    epochs = float(arguments.num_train_epochs)
    if arguments.max_steps > 0:
        batch_size = arguments.train_batch_size * arguments.gradient_accumulation_steps
        epochs = arguments.max_steps * batch_size / max(1, len(train))
    trained = epochs * int(train.lengths.sum()) * (1 + max(0, folds - 1))
    scored = epochs * int(validation.lengths.sum())
    return (BACKWARD * passes_per_epoch(recipe, train) * trained + scored) / tokens_per_second
