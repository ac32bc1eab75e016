"""Turn the Trainer's callbacks into events, save checkpoints at intervals, and interrupt the training on request."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bertsmith.events import Collapsed, Evaluated, Listener, Saved, Started, StepDone

if TYPE_CHECKING:
    from bertsmith.training.engine import Engine

SAVE_SECONDS = 300.0
"""Maximum age of the newest checkpoint. A checkpoint is also saved after each epoch."""


class StepMeter:
    """Measures the texts per second since its creation, without the time of evaluation and saving."""

    def __init__(self) -> None:
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


class EventCallback(TrainerCallback):  # type: ignore[misc]
    """Connects an engine with the listener ``emit``, and with ``stop``; see `bertsmith.training.trainer.Training`.

    Attributes:
        selects: whether the best epoch is selected; otherwise the last one.
        path: the newest checkpoint of this training.
        initial: initial weights, until the first checkpoint.
        best_weights: those of the best epoch, if the training saves no checkpoints.
        only_label: label text if the last evaluation predicted the same class for all texts.
        is_best: whether the last evaluation is the best one so far.
        started, interrupted: state of the training.
        save_due: whether a checkpoint is due besides those of the training arguments.
    """

    engine: Engine

    def __init__(self, emit: Listener, stop: Callable[[], bool], *, selects: bool = True) -> None:
        self.emit, self.stop, self.selects = emit, stop, selects
        self.path: Path | None = None
        self.initial: dict[str, torch.Tensor] | None = None
        self.best_weights: dict[str, torch.Tensor] = {}
        self.only_label: str | None = None
        self.started = self.interrupted = self.save_due = self.is_best = self.collapsed = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock, and restore the best score of a resumed run."""
        self.started, self.start = True, time.perf_counter()
        self.engine.meter, self.saved_at = StepMeter(), time.monotonic()
        self.best = (float("-inf"), float("-inf"))
        if state.best_metric is not None:
            losses = {e["step"]: e["eval_loss"] for e in state.log_history if "eval_loss" in e}
            self.best = (_sign(args) * state.best_metric, -losses.get(state.best_global_step, float("inf")))
        contrastive = self.engine.recipe.contrastive == "only"
        self.emit(Started(state.global_step, state.max_steps, args.num_train_epochs, contrastive))

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Seed the order of the texts, for samplers of transformers."""
        torch.manual_seed(args.seed + self.engine.sampler.epoch_and_batch(state.global_step)[0])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Report the step, and decide whether to save or stop."""
        self.engine.meter.end_step()
        self.emit(StepDone(state.global_step, float(state.epoch or 0), self.engine.meter.texts_per_second))
        is_due = time.monotonic() - self.saved_at > SAVE_SECONDS and self.engine.group.is_main
        is_due, stop = self.engine.group.any(is_due, self.stop())
        self.interrupted = stop and not control.should_training_stop
        self.save_due = (is_due or stop) and args.save_strategy != "no" and not control.should_training_stop
        if self.save_due and not self.engine.at_epoch_end:  # at the end, the Trainer evaluates first
            control.should_save = True
        if stop or control.should_evaluate or control.should_save or control.should_training_stop:
            self.engine.guard.finish()  # no checkpoint of a step whose loss is not finite
        control.should_training_stop |= self.interrupted

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Save a checkpoint that is due, and skip the evaluation of an interrupted epoch."""
        self.engine.guard.finish()
        # The Trainer treats an interruption as the end of the epoch, and would evaluate it.
        if self.interrupted and not self.engine.at_epoch_end:
            control.should_evaluate = control.should_save = control.should_log = False
        control.should_save |= self.save_due

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: dict[str, float], **_: Any
    ) -> None:
        """Report the evaluation, and decide whether it is the best one."""
        engine = self.engine
        values = {name.removeprefix("eval_"): float(value) for name, value in metrics.items()}
        score = (_sign(args) * values[args.metric_for_best_model], -values["loss"])
        self.is_best = score >= self.best or not self.selects
        if self.is_best:
            self.best = score
            if args.save_strategy == "no":
                self.best_weights = {}  # frees memory before the next copy
                self.best_weights = copy_of_weights(engine.model)
        steps = max(state.global_step - engine.evaluated_at, 1)
        self.emit(
            Evaluated(
                step=state.global_step,
                epoch=float(state.epoch or 0),
                train_loss=float(engine.loss_sum) / steps,
                validation_loss=values.pop("loss"),
                metrics=values,
                learning_rate=float(engine.lr_scheduler.get_last_lr()[0]),
                texts_per_second=engine.meter.texts_per_second,
                seconds=time.perf_counter() - self.start,
                best=self.is_best,
            )
        )
        if self.only_label is not None and self.selects and not self.collapsed:
            self.collapsed = True
            self.emit(Collapsed(state.global_step, float(state.epoch or 0), self.only_label))
        engine.evaluated_at, engine.loss_sum, engine.meter = state.global_step, 0.0, StepMeter()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Report the checkpoint."""
        self.path, self.initial = self.engine.checkpoint(state.global_step), None
        self.saved_at, self.save_due = time.monotonic(), False
        self.engine.meter.skip()
        self.emit(Saved(state.global_step, self.path))
        self.engine.group.barrier()  # Ray must not stop the main process during the copy


def copy_of_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of all weights on the CPU."""
    return {name: weight.detach().cpu().clone() for name, weight in model.state_dict().items()}


def _sign(args: TrainingArguments) -> int:
    return -1 if args.greater_is_better is False else 1
