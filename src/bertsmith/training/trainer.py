"""Fine-tune a model and report progress as events. Hides the Trainer's callbacks from other packages."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.state import AcceleratorState
from accelerate.utils import extract_model_from_parallel
from transformers import EarlyStoppingCallback, TrainingArguments

from bertsmith.compute.memory import is_out_of_memory
from bertsmith.compute.system import keep_freed_memory
from bertsmith.config import FEWEST_TO_SELECT
from bertsmith.errors import DeviceError, Interrupted, TrainingError
from bertsmith.events import Finished, Listener
from bertsmith.model.load import LoadedModel, quiet_transformers, saved_settings
from bertsmith.training import nan_guard
from bertsmith.training.arguments import arguments_error
from bertsmith.training.callback import EventCallback, copy_of_weights
from bertsmith.training.checkpoints import is_slower
from bertsmith.training.data import TokenDataset
from bertsmith.training.distributed import SINGLE_PROCESS, ProcessGroup
from bertsmith.training.engine import Engine, OnScores
from bertsmith.training.nan_guard import NotFiniteError
from bertsmith.training.recipe import Recipe
from bertsmith.training.steps import longest_text

if TYPE_CHECKING:
    from bertsmith.tasks.base import Task


def fit(
    loaded: LoadedModel,
    train: TokenDataset,
    validation: TokenDataset,
    arguments: TrainingArguments,
    *,
    recipe: Recipe,
    task: Task,
    emit: Listener,
    on_scores: OnScores = lambda scores: None,
    stop: Callable[[], bool] = lambda: False,
    resume: Path | None = None,
    user_arguments: Mapping[str, Any] | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
    describe_texts: nan_guard.DescribeTexts = nan_guard.describe_positions,
) -> Finished:
    """Fine-tune a model and load the weights of the best epoch. With a recipe of 0 epochs, the weights stay.

    The best epoch has the best score. The lower validation loss breaks ties, then the later epoch. With fewer than
    `FEWEST_TO_SELECT` validation texts, the last epoch counts as the best, without early stopping.

    Args:
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
        resume: checkpoint to resume from.
        user_arguments: training arguments set by the user, for error messages.
        group: the processes of the run; each of them calls this function.
        describe_texts: for messages.

    Raises:
        Interrupted: if ``stop`` returned ``True``.
        DeviceError: if memory does not suffice.
        TrainingError: if a loss, gradient or logit is not finite, also in the retry; or if the best epoch has no
            checkpoint.
        OutputError: if a checkpoint cannot be written.
        ConfigError: if training cannot start with the user's arguments.
    """
    if not recipe.epochs:
        loaded.model.to(loaded.device)  # as the Trainer does
        return _finish(loaded, task, emit, Finished(0, 0.0, 0, None, False, False, 0.0))
    callback = EventCallback(emit, stop, selects=len(validation) >= FEWEST_TO_SELECT)
    if resume is None:  # for a retry before the first checkpoint
        callback.initial = copy_of_weights(loaded.model)
    start, halved = time.perf_counter(), False
    while True:
        local = None if resume is None else group.share_folder(resume)
        if local is not None:
            halved = halved or is_slower(local)
        # An earlier training of this process, or a stage or attempt of this one, may have had another precision.
        AcceleratorState._reset_state()
        settings = nan_guard.safer_arguments(arguments) if halved else arguments
        try:
            with quiet_transformers(), keep_freed_memory():
                engine = Engine(
                    loaded, train, validation, settings, recipe, task, callback, group, on_scores, halved=halved
                )
                if callback.selects:
                    patience = recipe.patience * _evaluations_per_epoch(settings, len(train))
                    engine.add_callback(EarlyStoppingCallback(patience))
                engine.train(resume_from_checkpoint=str(local) if local else None)
            break
        except NotFiniteError as error:
            if halved:
                raise nan_guard.final_error(error, engine, describe_texts) from error
            halved, checkpoint = True, callback.path or resume
            retry = nan_guard.retry_event(error, engine, describe_texts, checkpoint)
        except (ValueError, TypeError, RuntimeError, ImportError, MemoryError) as error:
            if is_out_of_memory(error):
                other = " or free memory" if loaded.device.type == "cpu" else " free memory, or pass --device cpu"
                raise DeviceError(
                    f"memory is too small even for one text of {longest_text(train, validation):,} tokens",
                    remedy=f"Pass a smaller --max-length or --model,{other}.",
                ) from error
            if not user_arguments or callback.started:
                raise
            raise arguments_error(user_arguments, error) from error
        finally:  # accelerate makes each call of the model compute in the precision of the training
            extract_model_from_parallel(loaded.model, keep_fp32_wrapper=False)
            if local is not None and local != resume:
                shutil.rmtree(local, ignore_errors=True)
        emit(retry)
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
    return _finish(loaded, task, emit, finished)


def _finish(loaded: LoadedModel, task: Task, emit: Listener, finished: Finished) -> Finished:
    if not (rule := task.undo_standardisation(loaded.model)).is_neutral:
        loaded.model.config.bertsmith = {**saved_settings(loaded.model.config), **rule.to_dict()}
    emit(finished)
    return finished


def _evaluations_per_epoch(arguments: TrainingArguments, texts: int) -> int:
    if arguments.eval_strategy != "steps" or not arguments.eval_steps:
        return 1
    steps: int = math.ceil(texts / (arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps))
    every: float = float(arguments.eval_steps)
    if every < 1:  # a share of all steps
        every *= float(arguments.num_train_epochs) * steps
    return int(max(1, round(steps / every)))
