"""Fine-tuning: the engine driven to its end, behind a stream of events. Nothing outside knows its callbacks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
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

from bertsmith.compute import batching, threads
from bertsmith.compute.machine import cpu_capabilities
from bertsmith.compute.memory import (
    free_memory,
    is_out_of_memory,
    keep_freed_memory,
    plan,
    resident_memory,
    step_memory,
)
from bertsmith.config import FEWEST_TO_SELECT, PRIMARY
from bertsmith.errors import DeviceError, Interrupted, listing
from bertsmith.events import Collapsed, Evaluated, Finished, Listener, MemoryLimited, Saved, Started, StepDone
from bertsmith.model import forward
from bertsmith.model.load import Loaded, quiet_transformers
from bertsmith.training import nan_guard
from bertsmith.training.arguments import refused
from bertsmith.training.checkpoints import load_state
from bertsmith.training.collate import TokenDataset
from bertsmith.training.distributed import ALONE, Group
from bertsmith.training.engine import Engine, Score, Steps
from bertsmith.training.losses import LOSSES, StepLoss, inverse_weights
from bertsmith.training.nan_guard import NotFiniteError
from bertsmith.training.recipe import Recipe
from bertsmith.training.timing import Tracer

SAVE_SECONDS = 300.0
"""A checkpoint is written when the last one is older, besides the one of every epoch."""


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
    group: Group = ALONE,
    name_texts: nan_guard.NameTexts = lambda positions: f"the training texts at {listing(positions)}, counted from 0",
) -> Finished:
    """Fine-tune a model; the best epoch's weights are in it afterwards.

    Of epochs with the same score the one with the lower validation loss is the best, then the later one. With fewer
    than `FEWEST_TO_SELECT` validation texts it is the last one, and nothing stops training early.

    Args:
        loaded: the model, changed in place, and its tokenizer.
        train, validation: tokenized texts with their labels; there may be no validation texts, where the arguments say
            ``eval_strategy="no"``.
        arguments: of `training_arguments`.
        recipe: for what the arguments have no place: imbalance, rates of head and layers, consistency, patience.
        score: metrics of the validation split.
        emit: is told every event.
        stop: asked after every step; where it says yes, a checkpoint is saved and training is interrupted.
            (None is ever saved where the arguments say ``save_strategy="no"``: then nothing is written at all, and the
            last weights are in the model afterwards.)
        resume: checkpoint to go on from.
        user_arguments: the training arguments that the user set, to be named if training cannot even begin with them.
        trace: where to write what the machine does in a few steps.
        group: the processes that train this model together, each of which calls this; the leading one writes.
        name_texts: for messages.

    Raises:
        Interrupted: after ``stop`` said yes and the checkpoint was saved.
        DeviceError: if memory does not suffice.
        TrainingError: if a loss, gradient or logit is not finite, twice; nothing of that step is kept or saved.
        OutputError: if a checkpoint cannot be written.
        ConfigError: if training cannot begin with what was set by hand.
    """
    reporter = _Reporter(emit, stop, selects=len(validation) >= FEWEST_TO_SELECT)
    if resume is None:  # to begin anew with, as long as no checkpoint is there
        reporter.first = {name: w.detach().cpu().clone() for name, w in loaded.model.state_dict().items()}
    began = time.perf_counter()
    slower = resume is not None and bool(load_state(resume)["slower"])
    while True:
        settings = nan_guard.safer(arguments) if slower else arguments
        try:
            with quiet_transformers(), keep_freed_memory():
                engine = _engine(loaded, train, validation, settings, recipe, score, reporter, group, slower=slower)
                if reporter.selects:
                    patience = recipe.patience * _evaluations_per_epoch(settings, len(train))
                    engine.add_callback(EarlyStoppingCallback(patience))
                if trace is not None:
                    engine.add_callback(Tracer(trace))
                engine.train(resume_from_checkpoint=str(resume) if resume else None)
            break
        except NotFiniteError as error:
            if slower:
                raise nan_guard.failed(error, engine, name_texts) from error
            slower, resume = True, reporter.path or resume
            back = nan_guard.went_back(error, engine, name_texts, resume)
            engine.accelerator.unwrap_model(loaded.model, keep_fp32_wrapper=False)  # without the old precision
        except (ValueError, TypeError, RuntimeError, ImportError, MemoryError) as error:
            if is_out_of_memory(error):
                raise _too_large(train, validation) from error
            if not user_arguments or reporter.begun:
                raise
            raise refused(user_arguments, error) from error
        emit(back)
        if resume is None and reporter.first is not None:
            loaded.model.load_state_dict(reporter.first)
    state = engine.state
    if reporter.interrupted:
        kept = "; a checkpoint is saved" if arguments.save_strategy != "no" else ""
        raise Interrupted(f"stopped after step {state.global_step:,} of {state.max_steps:,}{kept}")
    finished = Finished(
        step=state.global_step,
        epoch=float(state.epoch or 0),
        best_step=int(state.best_global_step or state.global_step),
        best_score=None if state.best_metric is None else float(state.best_metric),
        selected=reporter.selects,
        stopped_early=state.global_step < state.max_steps,
        seconds=time.perf_counter() - began,
    )
    emit(finished)
    return finished


def _engine(
    loaded: Loaded,
    train: TokenDataset,
    validation: TokenDataset,
    arguments: TrainingArguments,
    recipe: Recipe,
    score: Score,
    reporter: _Reporter,
    group: Group = ALONE,
    *,
    slower: bool = False,
) -> Engine:
    def scored(targets: np.ndarray, probabilities: np.ndarray) -> Mapping[str, float]:
        predicted = np.unique(probabilities.argmax(axis=1))
        reporter.only = loaded.model.config.id2label[int(predicted[0])] if len(predicted) == 1 else None
        return score(targets, probabilities)

    counts = np.bincount(train.labels, minlength=loaded.model.config.num_labels)
    loss = StepLoss(LOSSES[recipe.imbalance](counts, arguments.label_smoothing_factor), recipe.consistency)
    steps = _steps(loaded, train, validation, arguments, recipe, counts, reporter.emit, slower=slower)
    engine = Engine(
        loaded,
        train,
        validation,
        arguments,
        steps=steps,
        loss=loss,
        score=scored,
        won=lambda: reporter.won,
        emit=reporter.emit,
        callbacks=[reporter],
        group=group,
    )
    engine.remove_callback(PrinterCallback)
    engine.remove_callback(ProgressCallback)
    reporter.engine = engine
    return engine


def _steps(
    loaded: Loaded,
    train: TokenDataset,
    validation: TokenDataset,
    arguments: TrainingArguments,
    recipe: Recipe,
    counts: np.ndarray,
    emit: Listener,
    *,
    slower: bool,
) -> Steps:
    """Return how steps are computed on the device at hand."""
    device = loaded.device.type
    packs = forward.supports(loaded.model) and not arguments.gradient_checkpointing
    steps = Steps(
        token_budget=batching.TOKEN_BUDGETS[device],
        head_rate=recipe.head_rate,
        layer_decay=recipe.layer_decay,
        packs=packs,
        # In fp32 attention has no kernel, and mean pooling depends on the lengths of the texts.
        records=packs
        and device == "cuda"
        and arguments.bf16
        and getattr(loaded.model.config, "classifier_pooling", "cls") == "cls",
        slower=slower,
        chances=inverse_weights(counts)[train.labels] / len(train) if recipe.imbalance == "balanced-sampling" else None,
    )
    if device != "cpu":
        return steps
    usual = steps.token_budget
    if arguments.bf16 and cpu_capabilities().get("amx_bf16"):
        usual *= batching.WITH_TILES
    free, longest = free_memory(), _longest(train, validation)
    workers = threads.count() if packs else 1
    budget = plan(loaded.model, longest, training=True, free=free, usual=usual, workers=workers)
    if budget < usual and free is not None:
        emit(MemoryLimited(budget, free))
    now = resident_memory()
    most = None
    if now is not None:
        most = now + step_memory(loaded.model, longest, budget, training=True, workers=workers)
    return replace(steps, token_budget=budget, workers=workers, most_held=most)


def check_memory(loaded: Loaded, *parts: TokenDataset) -> None:
    """See that a step fits into memory, before anything takes some of it.

    Raises:
        DeviceError: if a CPU has too little for one text.
    """
    if loaded.device.type == "cpu":
        workers = threads.count() if forward.supports(loaded.model) else 1
        plan(loaded.model, _longest(*parts), training=True, free=free_memory(), workers=workers)


def _evaluations_per_epoch(arguments: TrainingArguments, texts: int) -> int:
    if arguments.eval_strategy != "steps" or not arguments.eval_steps:
        return 1
    steps: int = math.ceil(texts / (arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps))
    every: float = float(arguments.eval_steps)
    if every < 1:  # a share of all steps
        every *= float(arguments.num_train_epochs) * steps
    return int(max(1, round(steps / every)))


def _longest(*parts: TokenDataset) -> int:
    return max(int(part.lengths.max()) for part in parts if len(part))


def _too_large(*parts: TokenDataset) -> DeviceError:
    return DeviceError(
        f"memory does not suffice even for one text of {_longest(*parts):,} tokens at once",
        remedy="Pass a smaller --max-length, take a smaller --model, or free memory (or pass --device cpu).",
    )


class _Reporter(TrainerCallback):  # type: ignore[misc]
    """Turns the Trainer's callbacks into events, and a wish to stop into a saved checkpoint."""

    engine: Engine

    def __init__(self, emit: Listener, stop: Callable[[], bool], *, selects: bool = True) -> None:
        self.emit, self.stop, self.selects = emit, stop, selects
        self.path: Path | None = None
        self.first: dict[str, torch.Tensor] | None = None
        self.only: str | None = None
        self.saved = time.monotonic()
        self.begun = self.interrupted = False
        self.began = time.perf_counter()
        self.best = (float("-inf"), float("-inf"))
        self.won = self.collapsed = False
        self.rate = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.begun, self.began = True, time.perf_counter()
        self.engine.watch.reset()
        self.saved = time.monotonic()
        self.best = (float("-inf"), float("-inf"))
        if state.best_metric is not None:
            of_best = (
                e["eval_loss"] for e in state.log_history if e["step"] == state.best_global_step and "eval_loss" in e
            )
            self.best = (self._sign(args) * state.best_metric, -next(of_best, float("inf")))
        self.emit(Started(state.global_step, state.max_steps, args.num_train_epochs))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.engine.watch.lap("optimizer")
        if control.should_evaluate or control.should_save or control.should_training_stop:
            self.engine.settle()
        self.emit(StepDone(state.global_step, float(state.epoch or 0), self.engine.watch.texts_per_second))
        # At the end of an epoch the Trainer scores, and saves after that by itself.
        within = args.save_strategy != "no" and not self.engine.at_the_end_of_an_epoch
        late = time.monotonic() - self.saved > SAVE_SECONDS and self.engine.group.leads
        late, stop = self.engine.group.any(late, self.stop())
        if late and within:
            control.should_save = True
        if stop and not control.should_training_stop:
            self.interrupted = control.should_training_stop = True
            control.should_save = within

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.engine.settle()
        if (
            self.interrupted and not self.engine.at_the_end_of_an_epoch
        ):  # the Trainer takes a break for the end of the epoch, and would score it
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
        values = {name.removeprefix("eval_"): float(value) for name, value in (metrics or {}).items()}
        metric = (args.metric_for_best_model or PRIMARY).removeprefix("eval_")
        score = (self._sign(args) * values[metric], -values["loss"])
        self.won = score >= self.best or not self.selects
        if self.won:
            self.best = score
        steps = max(state.global_step - self.engine.evaluated_at, 1)
        self.emit(
            Evaluated(
                step=state.global_step,
                epoch=float(state.epoch or 0),
                train_loss=float(self.engine.loss_sum) / steps,
                validation_loss=values.pop("loss"),
                metrics={
                    name: value
                    for name, value in values.items()
                    if name != "epoch" and not name.endswith(("runtime", "_per_second"))
                },
                learning_rate=float(lr_scheduler.get_last_lr()[0]) if lr_scheduler is not None else self.rate,
                **self.engine.watch.figures(),
                seconds=time.perf_counter() - self.began,
                best=self.won,
            )
        )
        if self.only is not None and self.selects and not self.collapsed:
            self.collapsed = True
            self.emit(Collapsed(state.global_step, float(state.epoch or 0), self.only))
        self.engine.evaluated_at = state.global_step
        self.engine.loss_sum = 0.0
        self.engine.watch.reset()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.path, self.first = self.engine.checkpoint(state.global_step), None
        self.saved = time.monotonic()
        self.engine.watch.skip()
        self.emit(Saved(state.global_step, self.path))

    @staticmethod
    def _sign(args: TrainingArguments) -> int:
        return -1 if args.greater_is_better is False else 1
