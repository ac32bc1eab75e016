"""`transformers.Trainer` with packed micro-batches, reproducible dropout and one worker thread per core."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, TrainingArguments

from bertsmith.compute import threads
from bertsmith.compute.device import can_compile, to_device
from bertsmith.compute.memory import MIN_TOKEN_BUDGET, retry_on_out_of_memory
from bertsmith.compute.system import trim_memory
from bertsmith.events import Compiling, MemoryExceeded
from bertsmith.model import forward
from bertsmith.model.batch import PackedBatch
from bertsmith.model.dropout import Dropout
from bertsmith.model.gradients import TableGradients, collect_gradients, replicate
from bertsmith.model.outputs import compute_logits, with_layer_dtype
from bertsmith.model.tokens import Tokens
from bertsmith.training import steps
from bertsmith.training.callback import EventCallback, StepMeter
from bertsmith.training.checkpoints import ResumableTrainer
from bertsmith.training.data import EpochSampler, TokenDataset
from bertsmith.training.losses import PartLoss, part_losses
from bertsmith.training.nan_guard import NanGuard, NotFiniteError
from bertsmith.training.optimizer import halve_learning_rate, set_param_groups

if TYPE_CHECKING:
    from bertsmith.training.trainer import Training


class Engine(ResumableTrainer):
    """The training loop.

    Batches are split into micro-batches by a token budget, which is halved when memory runs out. Order and dropout
    depend only on seed, epoch and step, so a run can be resumed from any step. Batches are created and split on the
    host. With CUDA, a fused AdamW, and bf16 or fp32, steps do not synchronize: losses stay on the device, and errors
    follow in the next step.

    Args:
        training: what to train.
        callback: receives events.
        arguments: those of ``training``, or safer ones.
        halved: whether ``arguments`` have half the original learning rate, after a number that was not finite.
    """

    def __init__(
        self, training: Training, callback: EventCallback, arguments: TrainingArguments, *, halved: bool = False
    ) -> None:
        self.training, self.callback, self.emit, self.halved = training, callback, callback.emit, halved
        self.loaded, self.group = training.loaded, training.group
        self.recipe, self.task, train = training.recipe, training.task, training.train
        counts = self.task.label_counts(train.labels, self.loaded.model.config.num_labels)
        self.loss = self.task.loss(self.recipe.imbalance, counts, len(train), arguments.label_smoothing_factor)
        self.plain_loss = self.task.loss("none", counts, len(train), smoothing=0.0)  # comparable values for evaluations
        self.plan = plan = steps.StepPlan(training, arguments)
        self.token_budget, self.memory_limit = plan.token_budget, plan.memory_limit
        self.sampler = EpochSampler(len(train), arguments, lambda: self.state.global_step, plan.probabilities)
        self.meter, self.guard = StepMeter(), NanGuard(self)
        self.loss_sum: torch.Tensor | float = 0.0
        self.evaluated_at, self.compiled = 0, False
        self.replicas: list[Any] = []
        self._max_seqlen, self._steps_seen = train.tokens.longest, 0
        self._position = (-1, 0)  # step, and batch of the step
        self.dtype = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else torch.float32
        super().__init__(
            model=self.loaded.model,
            args=arguments,
            train_dataset=train,
            eval_dataset=training.validation,
            data_collator=lambda batch: batch,  # `TokenDataset` returns batches
            processing_class=self.loaded.tokenizer,
            callbacks=[callback],
        )
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        callback.engine = self
        self.table_gradients = TableGradients(self.loaded.model)
        self.graphs = steps.CudaGraphs(self.loaded.model) if plan.uses_cuda_graphs else None

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create the optimizer, with the learning rates of head and layers."""
        optimizer = super().create_optimizer(model)
        recipe = self.recipe
        set_param_groups(optimizer, self.model, head_rate=recipe.head_rate, layer_decay=recipe.layer_decay)
        return optimizer

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return batches in the order of `EpochSampler`, or of the sampling strategy in the training arguments.

        This process makes them, whatever the argument dataloader_num_workers: they are slices of arrays.
        """
        data = self.train_dataset
        return DataLoader(
            data,
            batch_size=self.args.train_batch_size,
            sampler=self.sampler if self.orders_texts else self._get_train_sampler(data),
            collate_fn=self.data_collator,
            drop_last=self.args.dataloader_drop_last,
        )

    @property
    def orders_texts(self) -> bool:
        """Whether `EpochSampler` orders the texts. Only this sampler draws texts with given probabilities."""
        return self.args.train_sampling_strategy == "random" or self.plan.probabilities is not None

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """Return the batches of a step, and their number of texts."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, sum(len(batch["texts"]) for batch in batches)

    def evaluate(self, **_: Any) -> dict[str, float]:
        """Score the validation texts. Each process computes its share."""
        texts, targets = self.eval_dataset, self.eval_dataset.targets
        share = self.group.share(texts.lengths)
        self.model.eval()
        logits, self.token_budget = compute_logits(
            with_layer_dtype(self.loaded, self.dtype) if self.plan.packed else self.loaded,
            texts.tokens.take(share),
            self.token_budget,
            dtype=self.dtype,
            on_retry=lambda budget: self.emit(MemoryExceeded(self.state.global_step, budget)),
        )
        table = torch.zeros(len(texts), logits.shape[1])
        table[share] = torch.from_numpy(logits).float()
        table = self.group.all_reduce(table)
        if not bool(table.isfinite().all()):
            raise NotFiniteError(f"a logit of the validation texts at step {self.state.global_step:,}", [], [])
        scores = self.task.scores(table.numpy())
        self.callback.only_label = self.task.only_label(scores, self.model.config.id2label)
        loss = self.plain_loss(table, self.plain_loss.targets(targets)).mean()
        values = {"loss": loss, **self.task.validation_metrics(targets.numpy(), scores)}
        self.training.on_scores(scores)
        metrics = {f"eval_{name}": float(value) for name, value in values.items()}
        self.log({**metrics})  # adds the epoch
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.callback.is_best:  # otherwise the Trainer keeps the first of equal scores
            self.state.best_metric = None
        return metrics

    @property
    def at_epoch_end(self) -> bool:
        """Whether the finished steps are complete epochs."""
        return self.sampler.epoch_and_batch(self.state.global_step)[1] == 0

    # -- a step --------------------------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Add the gradient of a batch to the gradients, and return its share of the loss of the step."""
        step, index = self._position
        self._position = (self.state.global_step, index + 1 if step == self.state.global_step else 0)
        if self.graphs is not None and not self._position[1]:
            self._compile_if_worthwhile()
        self.table_gradients.restore()
        model.train()  # later replicas, too
        earlier = [p.grad.clone() if self._position[1] and p.grad is not None else None for p in model.parameters()]
        batch: TokenDataset = inputs["texts"]
        share = batch if self.group.size == 1 else batch.take(self.group.share(batch.lengths))

        def reset_gradients(budget: int) -> None:
            for parameter, gradient in zip(model.parameters(), earlier, strict=True):
                parameter.grad = None if gradient is None else gradient.clone()
            self.replicas.clear()
            if self.graphs is not None:
                self.graphs = steps.CudaGraphs(self.model)  # frees the memory of the captured graphs
            self.emit(MemoryExceeded(self.state.global_step, budget))

        loss, self.token_budget = retry_on_out_of_memory(
            lambda budget: self._add_gradients(model, share, num_items_in_batch, budget),
            self.token_budget,
            min_budget=max(share.tokens.longest, MIN_TOKEN_BUDGET),
            on_retry=reset_gradients,
        )
        if self.accelerator.sync_gradients:
            self.group.sum_gradients(model.parameters())
        self.table_gradients.keep()
        loss = self.group.all_reduce(loss)
        self.guard.add(self._position, batch.tokens, loss)
        self.loss_sum = self.loss_sum + loss
        self.meter.texts += len(batch)
        if self.memory_limit is not None:
            self.memory_limit = trim_memory(self.memory_limit)
        return loss

    def _add_gradients(self, model: Any, batch: TokenDataset, n_texts: Any, budget: int) -> torch.Tensor:
        """Add the gradient of a batch, computed in micro-batches on several workers; return its loss."""
        budget, workers = budget // 2 if self.recipe.consistency else budget, self.plan.workers
        groups = batch.tokens.micro_batches(budget, packed=self.plan.packed, workers=workers)
        parts = [batch.take(rows) for rows in groups]
        losses_of = self._contrastive_losses(parts) if self.recipe.contrastive == "only" else [None] * len(parts)
        while len(parts) > 1 and len(self.replicas) < workers - 1:
            self.replicas.append(replicate(self.model))
        models = [model, *self.replicas][: len(parts) or 1]

        def work(worker: int) -> torch.Tensor:
            # The outer context makes autocast cast the weights once per step and not once per micro-batch. It is
            # disabled, because the backward pass of the head is in full precision, too.
            with torch.autocast("cpu", enabled=False) if self.args.device.type == "cpu" else nullcontext():
                losses = [
                    self._add_gradient(models[worker], parts[i], i, n_texts, len(parts), losses_of[i])
                    for i in range(worker, len(parts), len(models))
                ]
            return torch.stack(losses).sum() if losses else torch.zeros((), device=self.args.device)

        losses = threads.run([partial(work, worker) for worker in range(len(models))])
        for replica in models[1:]:
            collect_gradients(model, replica)
        return torch.stack(losses).sum()

    def _add_gradient(
        self, model: Any, part: TokenDataset, index: int, n_texts: Any, n_parts: int, loss_of: PartLoss | None
    ) -> torch.Tensor:
        """Add the gradient of a micro-batch, and return its loss."""
        if self.recipe.consistency:
            part = part.take(np.tile(np.arange(len(part)), 2))
        batch, labels, dropout = self._inputs(part, index)

        def step(batch: PackedBatch | Tokens, labels: torch.Tensor) -> torch.Tensor:
            outputs = self._outputs(model, batch, dropout)
            loss = loss_of(outputs) if loss_of else self.loss.of_step(outputs, labels, n_texts, self.recipe.consistency)
            self.accelerator.backward(loss)
            return loss.detach()

        if self.graphs is not None and isinstance(batch, PackedBatch) and n_parts == 1:
            return self.graphs.run(batch, labels, step, self.args.device, self._max_seqlen, key=n_texts)
        return step(batch, labels)

    def _inputs(self, part: TokenDataset, index: int) -> tuple[PackedBatch | Tokens, torch.Tensor, Dropout]:
        """Return a micro-batch, whose tokens are still on the host, its targets on the device, and its dropout."""
        seed = (self.args.seed, *self._position, index, self.group.rank)
        if not self.plan.packed or self.args.device.type != "cpu":
            torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        labels = to_device(self.loss.targets(part.targets), self.args.device)
        texts = forward.pack_for(self.model, part.tokens) if self.plan.packed else part.tokens
        return texts, labels, Dropout(*seed)

    def _contrastive_losses(self, parts: list[TokenDataset]) -> list[PartLoss]:
        """Return the contrastive loss of each micro-batch, which depends on the texts of all."""

        def features(index: int) -> torch.Tensor:
            batch, _, dropout = self._inputs(parts[index], index)
            return self._outputs(self.model, batch, dropout)

        labels = [to_device(part.targets, self.args.device) for part in parts]
        return part_losses(features, labels, parallel=self.plan.workers > 1)

    def _outputs(self, model: Any, batch: PackedBatch | Tokens, dropout: Dropout) -> torch.Tensor:
        """Return the logits of a micro-batch; in contrastive training, the input of the last layer of the head."""
        loaded, features = replace(self.loaded, model=model), self.recipe.contrastive == "only"
        # The Trainer casts only in calls of the model itself, which packed texts do not need.
        with torch.autocast(self.args.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return forward.outputs(loaded, batch, only_features=features, dropout=dropout, compiled=self.compiled)

    def _compile_if_worthwhile(self) -> None:
        """Compile the layers on a GPU if the estimated remaining time is long enough."""
        batch_size = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        self._steps_seen += 1
        measured = self.meter.texts >= steps.MIN_MEASURED_STEPS * batch_size
        if self.compiled or self._steps_seen < steps.COMPILE_AFTER_STEPS or not measured:
            return
        self._steps_seen = -self.state.max_steps  # estimate only once
        seconds = (self.state.max_steps - self.state.global_step) * batch_size / self.meter.texts_per_second
        saved = steps.COMPILE_SAVING * seconds
        if saved > steps.COMPILE_SECONDS and can_compile(self.args.device):
            self.emit(Compiling(self.state.global_step, seconds))
            self.compiled, self.graphs = True, steps.CudaGraphs(self.model)

    def checkpoint_state(self) -> dict[str, Any]:
        """Return the state of the engine for a checkpoint."""
        return {
            "token_budget": self.token_budget,
            "device": self.args.device.type,
            "slower": self.halved,
            "loss_sum": float(self.loss_sum),
            "evaluated_at": self.evaluated_at,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the state that `checkpoint_state` returned."""
        device = self.args.device.type
        if state.get("device", device) == device:  # the budget of a CPU would slow down a GPU
            self.token_budget = min(self.token_budget, state["token_budget"])
        self.loss_sum, self.evaluated_at = state["loss_sum"], state["evaluated_at"]
        if self.halved and not state["slower"]:  # the checkpoint has the original learning rate
            halve_learning_rate(self.optimizer, self.lr_scheduler)
        self.halved = self.halved or state["slower"]
