"""The gradient of a step, computed in micro-batches: packed, on one worker thread per core, or as CUDA graphs."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from bertsmith.compute import threads
from bertsmith.model import forward, windows
from bertsmith.model.batch import SIZES_PER_DOUBLING, PackedBatch, TokenBatch, to_device
from bertsmith.model.dropout import Dropout
from bertsmith.model.gradients import collect_gradients, replicate
from bertsmith.model.load import Loaded
from bertsmith.training.contrastive import PartLoss, part_losses
from bertsmith.training.cuda_graphs import CudaGraphs
from bertsmith.training.distributed import GradientSum, ProcessGroup
from bertsmith.training.losses import StepLoss
from bertsmith.training.recipe import Recipe
from bertsmith.training.resumable import ResumableTrainer
from bertsmith.training.steps import StepPlan
from bertsmith.training.timing import StepMeter


class MicroBatchTrainer(ResumableTrainer):
    """A Trainer whose steps are computed in micro-batches.

    Attributes:
        loaded: the model.
        recipe, plan, step_loss, group, meter: see `bertsmith.training.engine.Engine`.
        replicas: models of the other workers, which share the weights.
        graphs: of the steps on a GPU, or ``None``.
        gradient_sum: the sum over the processes.
        compiled: whether layers run through `torch.compile`.
    """

    loaded: Loaded
    recipe: Recipe
    plan: StepPlan
    step_loss: StepLoss
    group: ProcessGroup
    meter: StepMeter
    replicas: list[Any]
    graphs: CudaGraphs | None
    gradient_sum: GradientSum
    compiled: bool
    _position: tuple[int, int]
    _max_seqlen: int

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of matrix products."""
        return torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else torch.float32

    def add_gradients(self, model: Any, batch: TokenBatch, n_texts: Any, budget: int) -> torch.Tensor:
        """Add the gradient of a batch, computed in micro-batches on several workers; return its loss."""
        budget = budget // 2 if self.step_loss.consistency else budget
        workers = self.plan.workers
        parts = batch.split(budget, packed=self.plan.packed, workers=workers) if len(batch) else []
        losses_of = self._contrastive_losses(parts) if self.recipe.contrastive == "only" else [None] * len(parts)
        if workers == 1 or len(parts) < 2:
            losses = [
                self._add_gradient(model, part, i, n_texts, len(parts), losses_of[i]) for i, part in enumerate(parts)
            ]
            return torch.stack([torch.zeros((), device=self.args.device), *losses]).sum()
        while len(self.replicas) < workers - 1:
            self.replicas.append(replicate(self.model))
        models = [model, *self.replicas][: len(parts)]

        def work(worker: int) -> torch.Tensor:
            # Here, autocast casts the weights once per step and not once per micro-batch.
            with torch.autocast("cpu", self.dtype) if self.dtype != torch.float32 else nullcontext():
                mine = range(worker, len(parts), len(models))
                losses = [
                    self._add_gradient(models[worker], parts[i], i, n_texts, len(parts), losses_of[i]) for i in mine
                ]
                return torch.stack(losses).sum()

        losses = threads.run([partial(work, worker) for worker in range(len(models))])
        for replica in models[1:]:
            collect_gradients(model, replica)
        return torch.stack(losses).sum()

    def _add_gradient(
        self, model: Any, part: TokenBatch, index: int, n_texts: Any, n_parts: int, loss_of: PartLoss | None
    ) -> torch.Tensor:
        """Add the gradient of one of the micro-batches of a batch, and return its loss."""
        if self.step_loss.consistency:
            part = part.take(torch.arange(len(part)).repeat(2))
        inputs = {**self._inputs(part, index), "loss_of": loss_of}
        packed = inputs["batch"] if self.plan.packed else None
        self.meter.micro_batch_tokens.append(len(part) * part.longest if packed is None else len(packed.input_ids))
        if packed is not None:
            if self.graphs is not None and n_parts == 1:
                return self._run_graph(model, packed, inputs, n_texts)
            inputs["batch"] = packed.to(self.args.device)
        # Replicas get gradients of their own; recomputed layers can add to a gradient several times.
        direct = (self.plan.workers == 1 or n_parts == 1) and not self.args.gradient_checkpointing
        last = self.accelerator.sync_gradients and index == n_parts - 1
        with self.gradient_sum.overlap() if direct and last else nullcontext():
            return super().training_step(model, inputs, n_texts)

    def _inputs(self, part: TokenBatch, index: int) -> dict[str, Any]:
        """Return the inputs of `compute_loss` for a micro-batch, whose tokens are still on the host."""
        seed = (self.args.seed, *self._position, index, self.group.rank)
        if not self.plan.packed or self.args.device.type != "cpu":
            torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(1)))
        assert part.labels is not None
        return {
            "batch": forward.pack_for(self.model, part) if self.plan.packed else part,
            "labels": to_device(part.labels, self.args.device),
            "counts": None if part.counts is None else to_device(part.counts, self.args.device),
            "dropout": Dropout(*seed),
        }

    def _contrastive_losses(self, parts: list[TokenBatch]) -> list[PartLoss]:
        """Return the contrastive loss of each micro-batch, which depends on the texts of all."""
        self.model.train()  # the Trainer does so only later

        def features(index: int) -> torch.Tensor:
            inputs = self._inputs(parts[index], index)
            if self.plan.packed:
                inputs["batch"] = inputs["batch"].to(self.args.device)
            return self._outputs(self.model, inputs)

        labels = [to_device(part.labels, self.args.device) for part in parts if part.labels is not None]
        return part_losses(features, labels, parallel=self.plan.workers > 1)

    def _outputs(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        """Return the logits of a micro-batch; in contrastive training, the input of the last layer of the head."""
        # The Trainer casts only calls of the model itself, which packed texts do not need.
        with torch.autocast(self.args.device.type, self.dtype, enabled=self.dtype != torch.float32):
            outputs = forward.outputs(
                replace(self.loaded, model=model),
                inputs["batch"],
                only_features=self.recipe.contrastive == "only",
                dropout=inputs["dropout"],
                compiled=self.compiled,
            )
        return windows.mean(outputs, inputs["counts"])

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Return the share of a micro-batch in the loss of the step."""
        start = time.perf_counter()
        loss_of = inputs["loss_of"] or partial(
            self.step_loss, labels=inputs["labels"], num_items_in_batch=num_items_in_batch
        )
        loss: torch.Tensor = loss_of(self._outputs(model, inputs))
        self.meter.forward_seconds.append(time.perf_counter() - start)
        return loss

    def _run_graph(self, model: Any, packed: PackedBatch, inputs: dict[str, Any], n_texts: Any) -> torch.Tensor:
        """Run the training step of a micro-batch by `CudaGraphs`."""
        assert self.graphs is not None
        max_seqlen = max(self._max_seqlen, packed.max_seqlen, len(packed.input_ids) // SIZES_PER_DOUBLING)
        step = super().training_step

        def work(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
            fields = {name: values for name, values in tensors.items() if name != "labels"}
            batch = replace(packed, max_seqlen=max_seqlen, **fields)
            loss: torch.Tensor = step(model, {**inputs, "batch": batch, "labels": tensors["labels"]}, n_texts)
            return loss

        tensors = {**packed.tensors(), "labels": inputs["labels"]}
        size = (len(inputs["labels"]), len(packed.input_ids), max_seqlen, n_texts, *tensors)
        return self.graphs.run(size, tensors, work, self.args.device)
