"""`transformers.Trainer` with steps of its own: packed micro-batches, reproducible dropout, one thread per core."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments

from bertsmith.compute import threads
from bertsmith.compute.machine import cores
from bertsmith.compute.memory import SMALLEST, release_beyond
from bertsmith.compute.retry import retry_with_less_memory
from bertsmith.events import Compiling, Listener, MemoryExceeded, Slowed
from bertsmith.model import forward
from bertsmith.model.batch import SIZES, PackedBatch, TokenBatch, to_device
from bertsmith.model.dropout import Dropout
from bertsmith.model.load import Loaded
from bertsmith.model.outputs import compute_logits
from bertsmith.model.replicas import collect_gradients, replicate, with_shorter_layers
from bertsmith.training.collate import TokenDataset
from bertsmith.training.cuda_graphs import AT_LEAST, LOOK, CudaGraphs, can_compile, pays
from bertsmith.training.distributed import ALONE, Group
from bertsmith.training.losses import StepLoss
from bertsmith.training.nan_guard import FiniteCheck, NotFiniteError, Part, can_skip
from bertsmith.training.param_groups import set_param_groups
from bertsmith.training.resumable import ResumableTrainer
from bertsmith.training.sampler import EpochOrder, EpochSampler, place_of
from bertsmith.training.timing import Pace, Stopwatch

Score = Callable[[np.ndarray, np.ndarray], Mapping[str, float]]
"""Takes class indices (n,) and probabilities (n, classes), returns metrics by name, the primary one among them."""


@dataclass(frozen=True)
class Steps:
    """How steps are computed.

    Attributes:
        token_budget: tokens of a micro-batch, to begin with.
        head_rate: learning rate of the new head, as a multiple of that of the body.
        layer_decay: learning rate of a layer, as a multiple of that of the layer above.
        packs: whether texts are packed end to end, see `bertsmith.model.forward`.
        records: whether a GPU's work is recorded and replayed, see `CudaGraphs`.
        workers: micro-batches computed at once.
        most_held: bytes of memory beyond which freed memory is given back to the system, where it is kept.
        slower: whether the learning rate was halved after a number was not finite.
        chances: probability of each training text to be drawn, shape (texts,); each is drawn once an epoch if ``None``.
    """

    token_budget: int
    head_rate: float = 1.0
    layer_decay: float = 1.0
    packs: bool = False
    records: bool = False
    workers: int = 1
    most_held: int | None = None
    slower: bool = False
    chances: np.ndarray | None = None


class Engine(ResumableTrainer):
    """The training loop.

    Batches are cut into micro-batches by a token budget, which is halved where memory does not suffice. Order and
    dropout are pure functions of seed, epoch and step, so a run resumes from any step as if it had never stopped.
    Batches are made and cut on the host. A GPU is never waited for within a step: losses since the last evaluation are
    kept on it, and a step whose numbers are not finite is skipped there and reported after the next.

    Args:
        loaded: the model, trained in place, and its tokenizer.
        train, validation: encoded texts with labels.
        arguments: of the Trainer.
        steps: how steps are computed.
        loss: of a step.
        score: metrics of the validation texts.
        won: returns whether the last evaluation is the best one so far.
        emit: receives events.
        callbacks: of the Trainer.
        group: the processes that train this model together.
    """

    def __init__(
        self,
        loaded: Loaded,
        train: TokenDataset,
        validation: TokenDataset,
        arguments: TrainingArguments,
        *,
        steps: Steps,
        loss: StepLoss,
        score: Score,
        won: Callable[[], bool],
        emit: Listener,
        callbacks: Sequence[TrainerCallback] = (),
        group: Group = ALONE,
    ) -> None:
        self.loaded, self.group, self.emit, self.score, self.step_loss = loaded, group, emit, score, loss
        self.won = won
        self.steps, self.token_budget, self.most_held = steps, steps.token_budget, steps.most_held
        self.slower = steps.slower
        self.order = EpochOrder(len(train), arguments.seed, steps.chances)
        self.watch, self._pace = Stopwatch(), Pace()
        self.loss_sum: torch.Tensor | float = 0.0
        self.evaluated_at = 0
        self.compiled = False
        self.replicas: list[Any] = []
        self.longest = int(train.lengths.max())
        self._part = (-1, 0)
        # Lists, to which several threads append at once.
        self._forward_seconds: list[float] = []
        self._computed: list[int] = []
        self._steps_seen = 0
        self._parts: tuple[Part, ...] = ()
        self._question: FiniteCheck | None = None
        super().__init__(
            model=loaded.model,
            args=arguments,
            train_dataset=train,
            eval_dataset=validation,
            data_collator=lambda batch: batch,  # `TokenDataset` makes whole batches
            processing_class=loaded.tokenizer,
            compute_loss_func=loss,  # so that the Trainer does not scale the loss again
            callbacks=list(callbacks),
        )
        self.graphs = CudaGraphs(loaded.model) if steps.records else None

    # -- what the Trainer asks for -------------------------------------------------------------------------------------

    def create_accelerator_and_postprocess(self) -> None:
        """Leave batches on the host, where they are cut."""
        super().create_accelerator_and_postprocess()
        self.accelerator.device_placement = False

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make the optimizer of the training arguments, with the learning rates of head and layers."""
        new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if new:
            set_param_groups(optimizer, self.model, head_rate=self.steps.head_rate, layer_decay=self.steps.layer_decay)
        return optimizer

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return batches in the order of `EpochOrder`, or in the one the training arguments ask for."""
        data = self.train_dataset
        if self.args.train_sampling_strategy == "random":
            sampler: Any = EpochSampler(self.order, lambda: self.place()[0])
        else:
            sampler = self._get_train_sampler(data)
        return DataLoader(
            data,
            batch_size=self.args.train_batch_size,
            sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            drop_last=self.args.dataloader_drop_last,
        )

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """Return the batches of a step, and how many texts they have."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, sum(len(batch["labels"]) for batch in batches)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score the validation texts; each process of a group computes its share of them."""
        batch = (eval_dataset or self.eval_dataset).whole()
        assert batch.labels is not None
        mine = self.group.share(batch.lengths)
        self.model.eval()
        logits, self.token_budget = compute_logits(
            with_shorter_layers(self.loaded, self._dtype) if self.steps.packs else self.loaded,
            batch.take(mine),
            self.token_budget,
            dtype=self._dtype,
            on_short_memory=lambda budget: self.emit(MemoryExceeded(self.state.global_step, budget)),
        )
        table = torch.zeros(len(batch), logits.shape[1])
        table[mine] = torch.from_numpy(logits).float()
        table = self.group.add_up(to_device(table, self.args.device)).cpu()
        if not bool(table.isfinite().all()):
            raise NotFiniteError(f"a logit of the validation texts at step {self.state.global_step:,}", [], [])
        values = {
            "loss": float(torch.nn.functional.cross_entropy(table, batch.labels)),
            **self.score(batch.labels.numpy(), torch.softmax(table, dim=-1).numpy()),
        }
        metrics = {f"{metric_key_prefix}_{name}": float(value) for name, value in values.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.won():  # or the Trainer would keep the first of equal scores
            self.state.best_metric = None
        return metrics

    def place(self, step: int | None = None) -> tuple[int, int]:
        """Return the epoch, and the batches of it that are done, at a step; the current one unless given."""
        return place_of(self.state.global_step if step is None else step, len(self.train_dataset), self.args)

    @property
    def at_the_end_of_an_epoch(self) -> bool:
        """Whether the steps done are whole epochs."""
        return self.place()[1] == 0

    @property
    def _dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else torch.float32

    # -- a step --------------------------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Add the gradient of a batch to what is there, and return its part of the loss of the step."""
        self.watch.lap("data")
        began = time.perf_counter()
        step, part = self._part
        self._part = (self.state.global_step, part + 1 if step == self.state.global_step else 0)
        if self.graphs is not None and not self._part[1]:
            self._compile_if_it_pays()
        kept = self._gradients(model) if self._part[1] else None
        batch = TokenBatch(**inputs)
        ours = batch if self.group.size == 1 else batch.take(self.group.share(batch.lengths))

        def undo(budget: int) -> None:
            self._restore(model, kept)
            if self.graphs is not None:
                self.graphs = CudaGraphs(self.model)  # without the memory of the recordings there were
            self.emit(MemoryExceeded(self.state.global_step, budget))

        loss, self.token_budget = retry_with_less_memory(
            lambda budget: self._add_gradients(model, ours, num_items_in_batch, budget),
            self.token_budget,
            smallest=max(ours.longest, SMALLEST),
            on_failure=undo,
        )
        loss = self.group.add_up(loss)
        if self.accelerator.sync_gradients:
            self.group.add_up_gradients(model.parameters())
        self._parts += (Part(self._part, batch, loss),)
        if self._asks_later:
            self.settle()
        elif not bool(torch.isfinite(loss)):
            raise self._not_finite(self._parts[-1])
        tokens = len(batch.input_ids) * (1 + self.step_loss.twice)
        self.watch.count(len(batch), tokens)
        self.watch.places += sum(self._computed) * self.group.size  # the other processes have as much to do
        self._computed.clear()
        self._notice_pace(time.perf_counter() - began, tokens)
        self.loss_sum = self.loss_sum + loss
        if self.most_held is not None:
            self.most_held = release_beyond(self.most_held)
        self.watch.lap("backward")
        threads = min(self.steps.workers, len(self._forward_seconds)) or 1
        self.watch.move("backward", "forward", sum(self._forward_seconds) / threads)
        self._forward_seconds.clear()
        return loss

    def _notice_pace(self, seconds: float, tokens: int) -> None:
        """Report that steps have become much slower; not on a GPU, where the time of a step is unknown."""
        times = self._pace.slowdown(seconds, tokens) if self.args.device.type == "cpu" else None
        if times is not None:
            load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
            self.emit(Slowed(self.state.global_step, times, load, cores()))

    def _add_gradients(self, model: Any, batch: TokenBatch, texts: Any, budget: int) -> torch.Tensor:
        """Add the gradient of a batch to what is there, some micro-batches at a time; return its loss."""
        budget = budget // 2 if self.step_loss.twice else budget
        parts = batch.cut(budget, packed=self.steps.packs, workers=self.steps.workers) if len(batch) else []
        if self.steps.workers == 1 or len(parts) < 2:
            losses = [self._add_gradient(model, part, i, texts, len(parts)) for i, part in enumerate(parts)]
            return torch.stack([torch.zeros((), device=self.args.device), *losses]).sum()
        while len(self.replicas) < self.steps.workers - 1:
            self.replicas.append(replicate(self.model))
        models = [model, *self.replicas][: len(parts)]

        def work(worker: int) -> torch.Tensor:
            with self._weights_cast_once():
                return torch.stack(
                    [
                        self._add_gradient(models[worker], parts[i], i, texts, len(parts))
                        for i in range(worker, len(parts), len(models))
                    ]
                ).sum()

        losses = threads.run([partial(work, worker) for worker in range(len(models))])
        for replica in models[1:]:
            collect_gradients(model, replica)
        return torch.stack(losses).sum()

    def _add_gradient(self, model: Any, part: TokenBatch, number: int, texts: Any, parts: int) -> torch.Tensor:
        """Add the gradient of a micro-batch to that of a model, and return its loss."""
        if self.step_loss.twice:
            part = part.twice()
        place = (self.args.seed, *self._part, number, self.group.rank)
        if not self.steps.packs or self.args.device.type != "cpu":
            torch.manual_seed(_mixed(*place))
        dropout = Dropout(*place)
        assert part.labels is not None
        if not self.steps.packs:
            self._computed.append(len(part) * part.longest)
            return super().training_step(model, {"batch": part, "labels": self._sent(part.labels)}, texts)
        packed = forward.pack_for(self.model, part)
        self._computed.append(len(packed.input_ids))
        if self.graphs is not None and parts == 1:
            return self._by_recording(model, packed, part.labels, dropout, texts)
        inputs = {"batch": packed.to(self.args.device), "labels": self._sent(part.labels), "dropout": dropout}
        return super().training_step(model, inputs, texts)

    def _sent(self, values: torch.Tensor) -> torch.Tensor:
        return to_device(values, self.args.device)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Return the part of the loss of the step that a micro-batch has."""
        began = time.perf_counter()
        batch = inputs["batch"]
        if isinstance(batch, PackedBatch):
            logits = forward.logits(model, batch, dropout=inputs["dropout"], compiled=self.compiled)
        else:
            logits = forward.padded_logits(replace(self.loaded, model=model), batch)
        loss = self.step_loss(logits, inputs["labels"], num_items_in_batch)
        self._forward_seconds.append(time.perf_counter() - began)
        return loss

    def _by_recording(
        self, model: Any, packed: PackedBatch, labels: torch.Tensor, dropout: Dropout, texts: Any
    ) -> torch.Tensor:
        """Do what a step does with a micro-batch, by `CudaGraphs`."""
        assert self.graphs is not None
        longest = max(self.longest, packed.longest, len(packed.input_ids) // SIZES)
        step = super().training_step

        def work(there: dict[str, torch.Tensor]) -> torch.Tensor:
            fields = {name: values for name, values in there.items() if name != "labels"}
            batch = replace(packed, longest=longest, **fields)
            loss: torch.Tensor = step(model, {"batch": batch, "labels": there["labels"], "dropout": dropout}, texts)
            return loss

        inputs = {**packed.tensors(), "labels": labels}
        size = (len(labels), len(packed.input_ids), longest, texts, *inputs)
        return self.graphs.run(size, inputs, work, self.args.device)

    def _weights_cast_once(self) -> AbstractContextManager[Any]:
        """Keep the weights that autocast makes shorter from one micro-batch of a step to the next."""
        shortens = self._dtype != torch.float32 and self.args.device.type == "cpu"
        return torch.autocast("cpu", self._dtype) if shortens else nullcontext()

    def _compile_if_it_pays(self) -> None:
        """Have the layers compiled where the rest of training takes long on a GPU, once that can be estimated."""
        batch = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        self._steps_seen += 1
        if self.compiled or self._steps_seen < LOOK or self.watch.texts < AT_LEAST * batch:
            return
        self._steps_seen = -self.state.max_steps  # not again
        seconds = (self.state.max_steps - self.state.global_step) * batch / self.watch.texts_per_second
        if pays(seconds) and can_compile(self.args.device):
            self.emit(Compiling(self.state.global_step, seconds))
            self.compiled, self.graphs = True, CudaGraphs(self.model)

    @staticmethod
    def _gradients(model: Any) -> list[torch.Tensor | None]:
        """Return what earlier parts of an accumulated step have left, to begin a part again from."""
        return [None if p.grad is None else p.grad.clone() for p in model.parameters()]

    def _restore(self, model: Any, gradients: list[torch.Tensor | None] | None) -> None:
        for i, parameter in enumerate(model.parameters()):
            kept = gradients[i] if gradients else None
            parameter.grad = None if kept is None else kept.clone()
        self.replicas.clear()

    # -- numbers that are not finite -----------------------------------------------------------------------------------

    @property
    def _asks_later(self) -> bool:
        """Whether the device itself leaves out a step whose numbers are not finite, so that nobody needs to wait."""
        return self.args.device.type == "cuda" and not self.args.fp16 and can_skip(self.optimizer.optimizer)

    def check_gradient(self, norm: Any) -> None:
        """Refuse a step whose gradient is not finite, given its norm; on a GPU, after the next step."""
        parts, self._parts = self._parts, ()
        if self._asks_later:
            self._question = FiniteCheck(parts, norm)
            self.optimizer.optimizer.found_inf = self._question.wrong
        elif norm is not None and not self.args.fp16 and not math.isfinite(norm):  # fp16 skips such a step by itself
            raise self._of_gradient(parts[-1])

    def settle(self) -> None:
        """Wait for what became of the last step that the device was asked about."""
        question, self._question = self._question, None
        wrong = question.answer() if question else None
        if question and wrong is not None:
            raise self._of_gradient(question.parts[-1]) if isinstance(wrong, str) else self._not_finite(wrong)

    def _of_gradient(self, part: Part) -> NotFiniteError:
        return NotFiniteError(f"the gradient of step {part.place[0] + 1:,}", [], self.rows_of(*part.place))

    def _not_finite(self, part: Part) -> NotFiniteError:
        """Find out which texts of a batch it is; those whose loss is not finite without dropout either."""
        rows, batch = self.rows_of(*part.place), part.batch
        self.model.eval()
        wrong = []
        for row in range(len(batch)):
            logits, _ = compute_logits(
                self.loaded, batch.take(torch.tensor([row])), self.token_budget, dtype=self._dtype
            )
            if not np.isfinite(logits).all():
                wrong.append(row)
        self.model.train()
        alone = [] if len(wrong) == len(batch) or not rows else [rows[row] for row in wrong]
        return NotFiniteError(f"the loss of step {part.place[0] + 1:,}", alone, rows)

    def rows_of(self, step: int, part: int) -> list[int]:
        """Return the positions of the texts of a batch in the training split, where they are known."""
        if self.args.train_sampling_strategy != "random" or self.args.world_size > 1:
            return []
        epoch, done = self.place(step)
        size = self.args.per_device_train_batch_size
        start = (done + part) * size
        return [int(i) for i in self.order(epoch)[start : start + size]]

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def progress(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the engine."""
        return {
            "token_budget": self.token_budget,
            "slower": self.slower,
            "loss_sum": float(self.loss_sum),
            "evaluated_at": self.evaluated_at,
        }

    def restore(self, progress: dict[str, Any]) -> None:
        """Take over what `progress` returned."""
        self.token_budget = min(self.token_budget, progress["token_budget"])
        self.loss_sum, self.evaluated_at = progress["loss_sum"], progress["evaluated_at"]
        if self.slower and not progress["slower"]:
            self._halve_learning_rate()
        self.slower = self.slower or progress["slower"]

    def _halve_learning_rate(self) -> None:
        for group in self.optimizer.param_groups:
            for name in ("lr", "initial_lr"):
                if name in group:
                    group[name] *= 0.5
        if hasattr(self.lr_scheduler, "base_lrs"):
            self.lr_scheduler.base_lrs = [0.5 * rate for rate in self.lr_scheduler.base_lrs]


def _mixed(*numbers: int) -> int:
    """Return a seed that is another one for any other numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
