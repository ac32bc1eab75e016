"""Fine-tune a model and report progress as events. Hides the Trainer's callbacks from other packages."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate.state import AcceleratorState
from accelerate.utils import extract_model_from_parallel
from transformers import EarlyStoppingCallback, TrainingArguments

from bertsmith.compute.memory import is_out_of_memory
from bertsmith.compute.processes import SINGLE_PROCESS, ProcessGroup
from bertsmith.compute.system import keep_freed_memory
from bertsmith.config import FEWEST_TO_SELECT
from bertsmith.errors import DeviceError, Interrupted, TrainingError
from bertsmith.events import Finished, Listener
from bertsmith.model.load import LoadedModel, quiet_transformers, saved_settings
from bertsmith.training import nan_guard
from bertsmith.training.arguments import arguments_error
from bertsmith.training.callback import EventCallback, copy_of_weights
from bertsmith.training.checkpoints import is_slower, share_folder
from bertsmith.training.data import TokenDataset
from bertsmith.training.engine import Engine
from bertsmith.training.nan_guard import NotFiniteError
from bertsmith.training.recipe import Recipe

if TYPE_CHECKING:
    from bertsmith.tasks.base import Task


@dataclass(frozen=True)
class Training:
    """What to train, how, and who listens.

    Attributes:
        loaded: the model, changed in place, and its tokenizer.
        train: the training texts.
        validation: the validation texts; may be empty if ``eval_strategy="no"``.
        arguments: from `training_arguments`. With ``save_strategy="no"``, nothing is written, and the weights of the
            best epoch stay in memory.
        recipe: for the settings that ``arguments`` do not have.
        task: the kind of label, fitted to the training texts.
        emit: receives events.
        on_scores: receives the scores of the validation texts at every evaluation.
        stop: called after each step; ``True`` saves a checkpoint and interrupts the training.
        user_arguments: training arguments set by the user, for error messages.
        group: the processes of the run; each of them trains.
        describe_texts: for messages.
    """

    loaded: LoadedModel
    train: TokenDataset
    validation: TokenDataset
    arguments: TrainingArguments
    recipe: Recipe
    task: Task
    emit: Listener = lambda event: None
    on_scores: Callable[[np.ndarray], None] = lambda scores: None
    stop: Callable[[], bool] = lambda: False
    user_arguments: Mapping[str, Any] = field(default_factory=dict)
    group: ProcessGroup = SINGLE_PROCESS
    describe_texts: nan_guard.DescribeTexts = nan_guard.describe_positions

    @property
    def longest(self) -> int:
        """Number of tokens of the longest text."""
        return max(self.train.tokens.longest, self.validation.tokens.longest)


def fit(training: Training, resume: Path | None = None) -> Finished:
    """Fine-tune a model and load the weights of the best epoch. With a recipe of 0 epochs, the weights stay.

    The best epoch has the best score. The lower validation loss breaks ties, then the later epoch. With fewer than
    `FEWEST_TO_SELECT` validation texts, the last epoch counts as the best, without early stopping. ``resume`` is the
    checkpoint to resume from.

    Raises:
        Interrupted: if ``stop`` returned ``True``.
        DeviceError: if memory does not suffice.
        TrainingError: if a loss, gradient or logit is not finite, also in the retry; or if the best epoch has no
            checkpoint.
        OutputError: if a checkpoint cannot be written.
        ConfigError: if training cannot start with the user's arguments.
    """
    loaded, arguments, recipe, group = training.loaded, training.arguments, training.recipe, training.group
    if not recipe.epochs:
        loaded.model.to(loaded.device)  # as the Trainer does
        return _finish(training, Finished(0, 0.0, 0, None, False, False, 0.0))
    callback = EventCallback(training.emit, training.stop, selects=len(training.validation) >= FEWEST_TO_SELECT)
    if resume is None:  # for a retry before the first checkpoint
        callback.initial = copy_of_weights(loaded.model)
    start, halved = time.perf_counter(), False
    while True:
        local = None if resume is None else share_folder(group, resume)
        if local is not None:
            halved = halved or is_slower(local)
        # An earlier training of this process, or a stage or attempt of this one, may have had another precision.
        AcceleratorState._reset_state()
        settings = nan_guard.safer_arguments(arguments) if halved else arguments
        try:
            with quiet_transformers(), keep_freed_memory():
                engine = Engine(training, callback, settings, halved=halved)
                if callback.selects:
                    patience = recipe.patience * _evaluations_per_epoch(settings, len(training.train))
                    engine.add_callback(EarlyStoppingCallback(patience))
                engine.train(resume_from_checkpoint=str(local) if local else None)
            break
        except NotFiniteError as error:
            if halved:
                raise nan_guard.final_error(error, engine) from error
            halved, checkpoint = True, callback.path or resume
            retry = nan_guard.retry_event(error, engine, checkpoint)
        except (ValueError, TypeError, RuntimeError, ImportError, MemoryError) as error:
            if is_out_of_memory(error):
                other = " or free memory" if loaded.device.type == "cpu" else " free memory, or pass --device cpu"
                raise DeviceError(
                    f"memory is too small even for one text of {training.longest:,} tokens",
                    remedy=f"Pass a smaller --max-length or --model,{other}.",
                ) from error
            if not training.user_arguments or callback.started:
                raise
            raise arguments_error(training.user_arguments, error) from error
        finally:  # accelerate makes each call of the model compute in the precision of the training
            extract_model_from_parallel(loaded.model, keep_fp32_wrapper=False)
            if local is not None and local != resume:
                shutil.rmtree(local, ignore_errors=True)
        training.emit(retry)
        resume = checkpoint
        if resume is None and callback.initial is not None:
            loaded.model.load_state_dict(callback.initial)
    state = engine.state
    if callback.interrupted:
        saved = "; a checkpoint is saved" if callback.path == engine.checkpoint(state.global_step) else ""
        raise Interrupted(f"stopped after step {state.global_step:,} of {state.max_steps:,}{saved}")
    best_step = state.best_global_step
    if best_step and settings.load_best_model_at_end and group.is_main and not engine.checkpoint(best_step).is_dir():
        raise TrainingError(
            f"the best weights are lost, because step {best_step:,} has no checkpoint",
            where=str(engine.checkpoint(best_step)),
            remedy="Train again, and keep the checkpoints until the run is finished.",
        )
    finished = Finished(
        step=state.global_step,
        epoch=float(state.epoch or 0),
        best_step=int(best_step or state.global_step),
        best_score=None if state.best_metric is None else float(state.best_metric),
        selected=callback.selects,
        stopped_early=state.global_step < state.max_steps,
        seconds=time.perf_counter() - start,
    )
    if callback.best_weights:
        loaded.model.load_state_dict(callback.best_weights)
    return _finish(training, finished)


def _finish(training: Training, finished: Finished) -> Finished:
    model = training.loaded.model
    if not (rule := training.task.undo_standardisation(model)).is_neutral:
        model.config.bertsmith = {**saved_settings(model.config), **rule.to_dict()}
    training.emit(finished)
    return finished


def _evaluations_per_epoch(arguments: TrainingArguments, texts: int) -> int:
    if arguments.eval_strategy != "steps" or not arguments.eval_steps:
        return 1
    steps: int = math.ceil(texts / (arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps))
    every: float = float(arguments.eval_steps)
    if every < 1:  # a share of all steps
        every *= float(arguments.num_train_epochs) * steps
    return int(max(1, round(steps / every)))
