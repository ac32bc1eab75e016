"""`transformers.Trainer`, thinly extended, behind a stream of events. Nothing outside knows its callbacks."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import (
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    EvalPrediction,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from bertsmith.errors import DeviceError, Interrupted, TrainingError
from bertsmith.model.load import Loaded, quiet_transformers
from bertsmith.storage import seal
from bertsmith.training.arguments import PRIMARY, refused
from bertsmith.training.batching import TOKEN_BUDGETS, cut
from bertsmith.training.events import Evaluated, Finished, Listener, MemoryShort, Saved, Started, StepDone
from bertsmith.training.losses import CrossEntropy

if TYPE_CHECKING:
    from datasets import Dataset

PROGRESS = "progress.json"
"""Of a checkpoint: what training has gathered since the last evaluation."""
SAVE_SECONDS = 300.0
"""A checkpoint is written when the last one is older, besides the one of every epoch."""
Score = Callable[[np.ndarray, np.ndarray], Mapping[str, float]]
"""Takes class indices (n,) and probabilities (n, classes), returns metrics by name, the primary one among them."""


def fit(
    loaded: Loaded,
    train: Dataset,
    validation: Dataset,
    arguments: TrainingArguments,
    *,
    score: Score,
    emit: Listener,
    patience: int,
    stop: Callable[[], bool] = lambda: False,
    resume: Path | None = None,
    by_hand: Mapping[str, Any] | None = None,
) -> Finished:
    """Fine-tune a model; the best epoch's weights are in it afterwards.

    Args:
        loaded: the model, changed in place, and its tokenizer.
        train, validation: encoded, with ``labels``.
        arguments: of `training_arguments`.
        score: metrics of the validation split.
        emit: is told every event.
        patience: evaluations without a better primary metric before training stops.
        stop: asked after every step; where it says yes, a checkpoint is saved and training is interrupted.
        resume: checkpoint to go on from.
        by_hand: the training arguments that the user set, to be named if training cannot even begin with them.

    Raises:
        Interrupted: after ``stop`` said yes and the checkpoint was saved.
        DeviceError: if memory does not suffice.
        TrainingError: if the loss is not finite; nothing of that step is kept or saved.
        ConfigError: if training cannot begin with what was set by hand.
    """
    reporter = _Reporter(emit, stop, resume)
    began = time.perf_counter()
    try:
        with quiet_transformers():
            trainer = _prepared(loaded, train, validation, arguments, score, patience, reporter)
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"the device is out of memory even with one text of {loaded.max_length} tokens at once",
            remedy="Pass a smaller --max-length, take a smaller --model, free the device, or pass --device cpu.",
        ) from error
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        if not by_hand or reporter.begun:
            raise
        raise refused(by_hand, error) from error
    state = trainer.state
    if reporter.interrupted:
        raise Interrupted(f"stopped after step {state.global_step:,} of {state.max_steps:,}; a checkpoint is saved")
    finished = Finished(
        step=state.global_step,
        epoch=float(state.epoch or 0),
        best_step=int(state.best_global_step or state.global_step),
        best_score=float(state.best_metric if state.best_metric is not None else float("nan")),
        stopped_early=state.global_step < state.max_steps,
        seconds=time.perf_counter() - began,
    )
    emit(finished)
    return finished


def _prepared(
    loaded: Loaded,
    train: Dataset,
    validation: Dataset,
    arguments: TrainingArguments,
    score: Score,
    patience: int,
    reporter: _Reporter,
) -> _Trainer:
    lengths = np.array([len(ids) for ids in validation["input_ids"]])
    trainer = _Trainer(
        model=loaded.model,
        args=arguments,
        train_dataset=train,
        # Scores do not depend on the order; in order of length there is less padding.
        eval_dataset=validation.select(np.argsort(-lengths, kind="stable")),
        data_collator=DataCollatorWithPadding(loaded.tokenizer, pad_to_multiple_of=8),
        processing_class=loaded.tokenizer,
        compute_loss_func=CrossEntropy(arguments.label_smoothing_factor),
        compute_metrics=lambda prediction: _metrics(prediction, score),
        callbacks=[reporter, EarlyStoppingCallback(patience)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.model_accepts_loss_kwargs = False  # the loss is ours: see losses.py
    trainer.token_budget = TOKEN_BUDGETS[loaded.device.type]
    trainer.emit = reporter.emit
    reporter.trainer = trainer
    return trainer


def _metrics(prediction: EvalPrediction, score: Score) -> dict[str, float]:
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    probabilities = torch.softmax(torch.from_numpy(np.asarray(logits)).float(), dim=-1).numpy()
    return dict(score(np.asarray(prediction.label_ids), probabilities))


class _Trainer(Trainer):  # type: ignore[misc]  # transformers is untyped
    """The engine, with three things of ours.

    Batches are cut into micro-batches by token budget, which is halved where memory does not suffice. The order of the
    texts and the dropout are pure functions of seed, epoch and step, so that a run can go on from any step as if it had
    never stopped. Losses and texts since the last evaluation are kept, without a host synchronisation a step.
    """

    loss_sum: torch.Tensor | float = 0.0
    texts: int = 0
    training_seconds: float = 0.0
    part: tuple[int, int] = (-1, 0)
    token_budget: int
    emit: Listener

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        if self.args.train_sampling_strategy != "random":
            return super()._get_train_sampler(train_dataset)
        return _Order(len(train_dataset or self.train_dataset), self.args.seed, self._epoch)

    def _epoch(self) -> int:
        batches = len(self.train_dataset) / (self.args.per_device_train_batch_size * self.args.world_size)
        whole = math.floor(batches) if self.args.dataloader_drop_last else math.ceil(batches)
        return int(self.state.global_step // max(math.ceil(whole / self.args.gradient_accumulation_steps), 1))

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        began = time.perf_counter()
        step, part = self.part
        self.part = (self.state.global_step, part + 1 if step == self.state.global_step else 0)
        kept = self._gradients(model) if self.part[1] else None
        while True:
            try:
                loss = self._in_micro_batches(model, inputs, num_items_in_batch)
                break
            except torch.OutOfMemoryError:
                if self.token_budget <= inputs["attention_mask"].shape[1]:
                    raise
                self.token_budget //= 2
            # Outside the handler, whose traceback would keep the tensors of the failed attempt alive.
            self._restore(model, kept)
            self.emit(MemoryShort(self.state.global_step, self.token_budget))
        if not bool(torch.isfinite(loss)):
            raise TrainingError(
                f"the loss of step {self.state.global_step + 1:,} is not a finite number: training diverged",
                remedy=f"Pass a smaller --learning-rate ({self.args.learning_rate:g} now)"
                + (", or --precision fp32." if self.args.bf16 or self.args.fp16 else "."),
            )
        self.texts += len(inputs["labels"])
        self.loss_sum = self.loss_sum + loss
        self.training_seconds += time.perf_counter() - began
        return loss

    def _in_micro_batches(self, model: Any, inputs: Any, num_items_in_batch: Any) -> torch.Tensor:
        """Add the gradient of a batch to what is there, a micro-batch at a time; return its loss."""
        total = torch.zeros((), device=self.args.device)
        for i, micro_batch in enumerate(cut(inputs, self.token_budget)):
            torch.manual_seed(_mixed(self.args.seed, *self.part, i, self.args.process_index))
            total += super().training_step(model, micro_batch, num_items_in_batch)
        return total

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
        """Score a batch a micro-batch at a time, for the same reasons; texts come back with their labels, reordered."""
        losses, logits, labels = [], [], []
        for micro_batch in cut(inputs, self.token_budget):
            loss, logit, label = super().prediction_step(model, micro_batch, prediction_loss_only, ignore_keys)
            losses.append(loss * len(micro_batch["attention_mask"]))
            logits.append(logit)
            labels.append(label)
        mean = torch.stack(losses).sum() / len(inputs["attention_mask"])
        return (mean, None, None) if prediction_loss_only else (mean, torch.cat(logits), torch.cat(labels))

    @staticmethod
    def _gradients(model: Any) -> list[torch.Tensor | None]:
        """Return what earlier parts of an accumulated step have left, to begin a part again from."""
        return [None if p.grad is None else p.grad.clone() for p in model.parameters()]

    @staticmethod
    def _restore(model: Any, gradients: list[torch.Tensor | None] | None) -> None:
        for i, parameter in enumerate(model.parameters()):
            parameter.grad = gradients[i] if gradients else None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class _Order(torch.utils.data.Sampler[int]):  # type: ignore[misc]
    """A random order that is known from the seed and the epoch alone."""

    def __init__(self, n: int, seed: int, epoch: Callable[[], int]) -> None:
        self.n, self.seed, self.epoch = n, seed, epoch

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        yield from np.random.default_rng([self.seed, self.epoch()]).permutation(self.n).tolist()


def _mixed(*numbers: int) -> int:
    """Return a seed that is another one for any other numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


class _Reporter(TrainerCallback):  # type: ignore[misc]
    """Turns the Trainer's callbacks into events, and a wish to stop into a saved checkpoint."""

    trainer: _Trainer

    def __init__(self, emit: Listener, stop: Callable[[], bool], resume: Path | None) -> None:
        self.emit, self.stop, self.resume = emit, stop, resume
        self.saved = time.monotonic()
        self.begun = self.interrupted = False
        self.began = time.perf_counter()
        self.last_step = 0
        self.best = float("-inf")
        self.rate = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.begun, self.began = True, time.perf_counter()
        self.saved = time.monotonic()
        self.last_step = state.global_step
        if self.resume is not None:
            kept = json.loads((self.resume / PROGRESS).read_text())
            self.last_step, self.trainer.loss_sum = kept["last_step"], kept["loss_sum"]
            self.trainer.token_budget = kept["token_budget"]
        if state.best_metric is not None:
            self.best = state.best_metric
        self.emit(Started(state.global_step, state.max_steps, args.num_train_epochs))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.emit(StepDone(state.global_step, float(state.epoch or 0), self._speed()))
        if time.monotonic() - self.saved > SAVE_SECONDS:
            control.should_save = True
        if self.stop() and not control.should_training_stop:
            self.interrupted = True
            control.should_training_stop = control.should_save = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.interrupted:  # the Trainer takes a break for the end of the epoch, and would score it
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
        score = values[PRIMARY]
        steps = max(state.global_step - self.last_step, 1)
        self.emit(
            Evaluated(
                step=state.global_step,
                epoch=float(state.epoch or 0),
                train_loss=float(self.trainer.loss_sum) / steps,
                validation_loss=values.pop("loss"),
                metrics={
                    name: value
                    for name, value in values.items()
                    if name != "epoch" and not name.endswith(("runtime", "_per_second"))
                },
                learning_rate=float(lr_scheduler.get_last_lr()[0]) if lr_scheduler is not None else self.rate,
                texts_per_second=self._speed(),
                seconds=time.perf_counter() - self.began,
                best=score > self.best,
            )
        )
        self.best = max(self.best, score)
        self.last_step = state.global_step
        self.trainer.loss_sum, self.trainer.texts, self.trainer.training_seconds = 0.0, 0, 0.0

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        kept = {"last_step": self.last_step, "loss_sum": float(self.trainer.loss_sum)}
        (folder / PROGRESS).write_text(json.dumps({**kept, "token_budget": self.trainer.token_budget}))
        seal(folder)
        self.saved = time.monotonic()
        self.emit(Saved(state.global_step, folder))

    def _speed(self) -> float:
        return self.trainer.texts / self.trainer.training_seconds if self.trainer.training_seconds else 0.0
