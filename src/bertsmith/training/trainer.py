"""Fine-tune a model and report progress as events. Hides the Trainer's callbacks from other packages."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from bertsmith.compute.memory import is_out_of_memory, keep_freed_memory
from bertsmith.config import FEWEST_TO_SELECT, PRIMARY
from bertsmith.errors import DeviceError, Interrupted, listing
from bertsmith.events import Collapsed, Evaluated, Finished, Listener, Saved, Started, StepDone
from bertsmith.model.load import Loaded, quiet_transformers
from bertsmith.training import nan_guard
from bertsmith.training.arguments import arguments_error
from bertsmith.training.checkpoints import load_state
from bertsmith.training.data import TokenDataset
from bertsmith.training.distributed import SINGLE_PROCESS, ProcessGroup
from bertsmith.training.engine import Engine, Score
from bertsmith.training.losses import LOSSES, StepLoss
from bertsmith.training.nan_guard import NotFiniteError
from bertsmith.training.recipe import Recipe
from bertsmith.training.steps import longest_text, plan_steps
from bertsmith.training.timing import ProfilerCallback

SAVE_SECONDS = 300.0
"""Maximum age of the newest checkpoint. A checkpoint is also saved after each epoch."""


def fit(
    loaded: Loaded,
    train: TokenDataset,
    validation: TokenDataset,
    arguments: TrainingArguments,
    *,
    recipe: Recipe,
    score: Score,
    emit: Listener,
    stop: Callable[[], bool] = lambda: False,
    resume: Path | None = None,
    user_arguments: Mapping[str, Any] | None = None,
    trace: Path | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
    describe_texts: nan_guard.DescribeTexts = lambda rows: f"the training texts at {listing(rows)}, counted from 0",
) -> Finished:
    """Fine-tune a model and load the weights of the best epoch.

    The best epoch has the best score. The lower validation loss breaks ties, then the later epoch. With fewer than
    `FEWEST_TO_SELECT` validation texts, the last epoch counts as the best, without early stopping.

    Args:
        loaded: the model, changed in place, and its tokenizer.
        train: the training texts.
        validation: the validation texts; may be empty if ``eval_strategy="no"``.
        arguments: from `training_arguments`. With ``save_strategy="no"``, nothing is written and the last weights are
            the result.
        recipe: for the settings that ``arguments`` do not have.
        score: computes metrics of the validation texts.
        emit: receives events.
        stop: called after each step; ``True`` saves a checkpoint and interrupts the training.
        resume: checkpoint to resume from.
        user_arguments: training arguments set by the user, for error messages.
        trace: file for a profile of a few steps.
        group: the processes of the run; each of them calls this function.
        describe_texts: for messages.

    Raises:
        Interrupted: if ``stop`` returned ``True``.
        DeviceError: if memory does not suffice.
        TrainingError: if a loss, gradient or logit is not finite, also in the retry.
        OutputError: if a checkpoint cannot be written.
        ConfigError: if training cannot start with the user's arguments.
    """
    callback = EventCallback(emit, stop, selects=len(validation) >= FEWEST_TO_SELECT)
    if resume is None:  # for a retry before the first checkpoint
        callback.initial = {name: w.detach().cpu().clone() for name, w in loaded.model.state_dict().items()}
    start = time.perf_counter()
    halved = resume is not None and bool(load_state(resume)["slower"])
    while True:
        settings = nan_guard.safer_arguments(arguments) if halved else arguments
        try:
            with quiet_transformers(), keep_freed_memory():
                engine = build_engine(
                    loaded, train, validation, settings, recipe, score, callback, group, halved=halved
                )
                if callback.selects:
                    patience = recipe.patience * _evaluations_per_epoch(settings, len(train))
                    engine.add_callback(EarlyStoppingCallback(patience))
                if trace is not None:
                    engine.add_callback(ProfilerCallback(trace))
                engine.train(resume_from_checkpoint=str(resume) if resume else None)
            break
        except NotFiniteError as error:
            if halved:
                raise nan_guard.final_error(error, engine, describe_texts) from error
            halved, resume = True, callback.path or resume
            retry = nan_guard.retry_event(error, engine, describe_texts, resume)
            engine.accelerator.unwrap_model(loaded.model, keep_fp32_wrapper=False)  # removes the old precision
        except (ValueError, TypeError, RuntimeError, ImportError, MemoryError) as error:
            if is_out_of_memory(error):
                raise DeviceError(
                    f"memory does not suffice even for one text of {longest_text(train, validation):,} tokens at once",
                    remedy="Pass a smaller --max-length or --model, or free memory (or pass --device cpu).",
                ) from error
            if not user_arguments or callback.started:
                raise
            raise arguments_error(user_arguments, error) from error
        emit(retry)
        if resume is None and callback.initial is not None:
            loaded.model.load_state_dict(callback.initial)
    state = engine.state
    if callback.interrupted:
        saved = "; a checkpoint is saved" if arguments.save_strategy != "no" else ""
        raise Interrupted(f"stopped after step {state.global_step:,} of {state.max_steps:,}{saved}")
    finished = Finished(
        step=state.global_step,
        epoch=float(state.epoch or 0),
        best_step=int(state.best_global_step or state.global_step),
        best_score=None if state.best_metric is None else float(state.best_metric),
        selected=callback.selects,
        stopped_early=state.global_step < state.max_steps,
        seconds=time.perf_counter() - start,
    )
    emit(finished)
    return finished


def build_engine(
    loaded: Loaded,
    train: TokenDataset,
    validation: TokenDataset,
    arguments: TrainingArguments,
    recipe: Recipe,
    score: Score,
    callback: EventCallback,
    group: ProcessGroup = SINGLE_PROCESS,
    *,
    halved: bool = False,
) -> Engine:
    """Build the training loop and connect it with a callback; arguments are those of `fit` and `Engine`."""
    label_texts = loaded.model.config.id2label

    def score_and_check(targets: np.ndarray, probabilities: np.ndarray) -> Mapping[str, float]:
        predicted = np.unique(probabilities.argmax(axis=1))
        callback.only_label = label_texts[int(predicted[0])] if len(predicted) == 1 else None
        return score(targets, probabilities)

    counts = np.bincount(train.labels, minlength=loaded.model.config.num_labels)
    engine = Engine(
        loaded,
        train,
        validation,
        arguments,
        recipe=recipe,
        plan=plan_steps(loaded, train, longest_text(train, validation), arguments, recipe, callback.emit),
        loss=StepLoss(LOSSES[recipe.imbalance](counts, arguments.label_smoothing_factor), recipe.consistency),
        score=score_and_check,
        is_best=lambda: callback.is_best,
        emit=callback.emit,
        callbacks=[callback],
        group=group,
        halved=halved,
    )
    engine.remove_callback(PrinterCallback)
    engine.remove_callback(ProgressCallback)
    callback.engine = engine
    return engine


def _evaluations_per_epoch(arguments: TrainingArguments, texts: int) -> int:
    if arguments.eval_strategy != "steps" or not arguments.eval_steps:
        return 1
    steps: int = math.ceil(texts / (arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps))
    every: float = float(arguments.eval_steps)
    if every < 1:  # a share of all steps
        every *= float(arguments.num_train_epochs) * steps
    return int(max(1, round(steps / every)))


class EventCallback(TrainerCallback):  # type: ignore[misc]
    """Emits events, saves checkpoints by time, and interrupts the training on request.

    Args:
        emit: receives events.
        stop: called after each step; ``True`` interrupts the training.
        selects: whether the best epoch is selected; otherwise the last one.
    """

    engine: Engine

    def __init__(self, emit: Listener, stop: Callable[[], bool], *, selects: bool = True) -> None:
        self.emit, self.stop, self.selects = emit, stop, selects
        self.path: Path | None = None
        self.initial: dict[str, torch.Tensor] | None = None
        self.only_label: str | None = None
        self.saved_at = time.monotonic()
        self.started = self.interrupted = self.is_best = self.collapsed = False
        self.start = time.perf_counter()
        self.best = (float("-inf"), float("-inf"))

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock, and restore the best score of a resumed run."""
        self.started, self.start = True, time.perf_counter()
        self.engine.meter.reset()
        self.saved_at = time.monotonic()
        self.best = (float("-inf"), float("-inf"))
        if state.best_metric is not None:
            losses = [
                e["eval_loss"] for e in state.log_history if e["step"] == state.best_global_step and "eval_loss" in e
            ]
            self.best = (_sign(args) * state.best_metric, -(losses or [float("inf")])[0])
        self.emit(Started(state.global_step, state.max_steps, args.num_train_epochs))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Report the step, and decide whether to save or stop."""
        self.engine.meter.lap("optimizer")
        if control.should_evaluate or control.should_save or control.should_training_stop:
            self.engine.guard.finish()
        self.emit(StepDone(state.global_step, float(state.epoch or 0), self.engine.meter.texts_per_second))
        # At the end of an epoch, the Trainer evaluates and then saves.
        can_save = args.save_strategy != "no" and not self.engine.at_epoch_end
        is_due = time.monotonic() - self.saved_at > SAVE_SECONDS and self.engine.group.is_main
        is_due, stop = self.engine.group.any(is_due, self.stop())
        if is_due and can_save:
            control.should_save = True
        if stop and not control.should_training_stop:
            self.interrupted = control.should_training_stop = True
            control.should_save = can_save

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Skip the evaluation of an interrupted epoch."""
        self.engine.guard.finish()
        # The Trainer treats an interruption as the end of the epoch, and would evaluate it.
        if self.interrupted and not self.engine.at_epoch_end:
            control.should_evaluate = control.should_save = control.should_log = False

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        lr_scheduler: Any = None,
        **_: Any,
    ) -> None:
        """Report the evaluation, and decide whether it is the best one."""
        engine = self.engine
        values = {name.removeprefix("eval_"): float(value) for name, value in (metrics or {}).items()}
        metric = (args.metric_for_best_model or PRIMARY).removeprefix("eval_")
        score = (_sign(args) * values[metric], -values["loss"])
        self.is_best = score >= self.best or not self.selects
        if self.is_best:
            self.best = score
        steps = max(state.global_step - engine.evaluated_at, 1)
        self.emit(
            Evaluated(
                step=state.global_step,
                epoch=float(state.epoch or 0),
                train_loss=float(engine.loss_sum) / steps,
                validation_loss=values.pop("loss"),
                metrics={
                    name: value
                    for name, value in values.items()
                    if name != "epoch" and not name.endswith(("runtime", "_per_second"))
                },
                learning_rate=float(lr_scheduler.get_last_lr()[0]) if lr_scheduler is not None else 0.0,
                **engine.meter.metrics(),
                seconds=time.perf_counter() - self.start,
                best=self.is_best,
            )
        )
        if self.only_label is not None and self.selects and not self.collapsed:
            self.collapsed = True
            self.emit(Collapsed(state.global_step, float(state.epoch or 0), self.only_label))
        engine.evaluated_at, engine.loss_sum = state.global_step, 0.0
        engine.meter.reset()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Report the checkpoint."""
        self.path, self.initial = self.engine.checkpoint(state.global_step), None
        self.saved_at = time.monotonic()
        self.engine.meter.skip()
        self.emit(Saved(state.global_step, self.path))


def _sign(args: TrainingArguments) -> int:
    return -1 if args.greater_is_better is False else 1
