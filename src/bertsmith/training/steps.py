"""How steps are computed on the device: token budget, workers and memory; CUDA graphs; when to compile layers.

A step of BERT-Base launches more than a thousand kernels. On a large GPU, launching them takes longer than their
computation. A graph launches them at once: the same kernels on the same shapes, with new dropout masks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import TrainingArguments

from bertsmith.compute import batching, threads
from bertsmith.compute.device import to_device
from bertsmith.compute.machine import cpu_capabilities
from bertsmith.compute.memory import plan_token_budget, step_memory
from bertsmith.compute.system import free_memory, resident_memory
from bertsmith.events import MemoryLimited
from bertsmith.model import forward
from bertsmith.model.batch import SIZES_PER_DOUBLING, PackedBatch
from bertsmith.training.losses import inverse_weights

if TYPE_CHECKING:
    from bertsmith.training.trainer import Training

MAX_GRAPHS, MAX_FAILURES = 64, 2
"""Maximum number of graphs, and of failed captures per size."""
COMPILE_AFTER_STEPS, MIN_MEASURED_STEPS = 200, 20
"""Steps before the estimate of the remaining time, and minimum number of steps since the last evaluation for it."""
COMPILE_SAVING, COMPILE_SECONDS = 0.1, 20.0
"""Assumed saving by compiling, as a share, and compile time: 0.12 and 15 seconds for BERT-Base on an H200."""

Work = Callable[[PackedBatch, torch.Tensor], torch.Tensor]
"""Adds to the gradients of the parameters and returns a loss, without synchronization."""
Capture = Callable[[Callable[[], torch.Tensor]], tuple[Callable[[], None], torch.Tensor]]
"""Returns a function that repeats some work with the current values of its inputs, and the tensor of its loss."""


class StepPlan:
    """How the steps of a training are computed. Emits an event if memory reduces the token budget.

    Attributes:
        token_budget: tokens of a micro-batch at the start.
        packed: whether texts are packed, see `bertsmith.model.forward`.
        uses_cuda_graphs: see `CudaGraphs`.
        workers: number of micro-batches computed at the same time.
        memory_limit: resident bytes above which freed memory is returned to the system; ``None`` for no limit.
        probabilities: of each training text to be drawn, shape (texts,); ``None`` to draw each once per epoch.

    Raises:
        DeviceError: if a CPU has too little memory for one text.
    """

    def __init__(self, training: Training, arguments: TrainingArguments) -> None:
        """Plan a training with its arguments, or with safer ones."""
        model, recipe, train, device = training.loaded.model, training.recipe, training.train, training.loaded.device
        self.packed = forward.supports(model) and not arguments.gradient_checkpointing
        self.uses_cuda_graphs = (
            self.packed
            and device.type == "cuda"
            and arguments.bf16  # fp32 has no attention kernel
            and recipe.contrastive != "only"
            and getattr(model.config, "classifier_pooling", "cls") == "cls"  # the mean depends on lengths of texts
        )
        self.probabilities: np.ndarray | None = None
        if recipe.imbalance == "balanced-sampling" or recipe.contrastive == "only":
            counts = np.bincount(train.labels, minlength=model.config.num_labels)
            self.probabilities = inverse_weights(counts)[train.labels] / len(train)
        self.token_budget, self.workers = batching.TOKEN_BUDGETS[device.type], 1
        self.memory_limit: int | None = None
        if device.type == "cpu":
            if arguments.bf16 and cpu_capabilities().get("amx_bf16"):
                self.token_budget *= batching.AMX_BUDGET_FACTOR
            free, default, longest = free_memory(), self.token_budget, training.longest
            self.workers = threads.num_workers() if self.packed else 1
            keeps_best = arguments.save_strategy == "no" and arguments.eval_strategy != "no"
            kept = 4 * model.num_parameters() if keeps_best else 0  # the weights of the best epoch
            sizes: dict[str, Any] = {"training": True, "workers": self.workers}
            self.token_budget = plan_token_budget(model, longest, free=free - kept, default=default, **sizes)
            if self.token_budget < default:
                training.emit(MemoryLimited(self.token_budget, free))
            self.memory_limit = resident_memory() + step_memory(model, longest, self.token_budget, **sizes)


@dataclass(frozen=True)
class _Graph:
    inputs: dict[str, torch.Tensor]
    replay: Callable[[], None]
    loss: torch.Tensor


class CudaGraphs:
    """CUDA graphs of the training of a model, by size. They add to its gradients, which stay at the same addresses."""

    def __init__(self, model: torch.nn.Module, capture: Capture | None = None) -> None:
        self.model, self.capture = model, capture or _CudaCapture()
        self.graphs: dict[object, _Graph] = {}
        self.failures: Counter[object] = Counter()
        self.gradients: dict[torch.nn.Parameter, torch.Tensor] = {}

    def run(
        self, batch: PackedBatch, labels: torch.Tensor, work: Work, device: torch.device, longest: int, key: object
    ) -> torch.Tensor:
        """Run some work by its graph, and return the loss. The very first call runs without a graph.

        The batch is on the CPU. The work receives batch and labels on the device, and depends on nothing else but
        ``key``. The longest text of all batches has ``longest`` tokens: the fewer lengths, the fewer graphs.
        """
        max_seqlen = max(longest, batch.max_seqlen, len(batch.input_ids) // SIZES_PER_DOUBLING)
        inputs = batch.tensors()
        size = (len(labels), len(batch.input_ids), max_seqlen, key, *inputs)
        graph = self.graphs.get(size)
        if graph is None:
            batch, labels = replace(batch, max_seqlen=max_seqlen).to(device), to_device(labels, device)
            run = partial(work, batch, labels)
            if not self.gradients or self.failures[size] == MAX_FAILURES or len(self.graphs) == MAX_GRAPHS:
                return self._run_eagerly(run)
            self._restore_gradients()
            try:
                replay, loss = self.capture(run)
            except RuntimeError:  # an operation cannot be captured, or needs a warm-up
                self.failures[size] += 1
                return self._run_eagerly(run)
            graph = self.graphs[size] = _Graph({**batch.tensors(), "labels": labels}, replay, loss)
        else:
            for name, values in {**inputs, "labels": labels}.items():
                graph.inputs[name].copy_(to_device(values, device))
            self._restore_gradients()
        graph.replay()
        return graph.loss.clone()

    def _run_eagerly(self, work: Callable[[], torch.Tensor]) -> torch.Tensor:
        loss = work()
        for parameter in self.model.parameters():
            if parameter.grad is not None and parameter not in self.gradients:
                self.gradients[parameter] = parameter.grad
        return loss

    def _restore_gradients(self) -> None:
        """Move all gradients to the addresses that the graphs use; cleared gradients become zero."""
        cleared = [buffer for parameter, buffer in self.gradients.items() if parameter.grad is None]
        if cleared:
            torch._foreach_zero_(cleared)
        for parameter, buffer in self.gradients.items():
            if parameter.grad is not None and parameter.grad is not buffer:
                buffer.copy_(parameter.grad)
            parameter.grad = buffer


class _CudaCapture:
    """Captures graphs on the current GPU. They share memory, because only one is replayed at a time."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        graph = torch.cuda.CUDAGraph()
        # The outer context restores the stream even if the capture fails.
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, pool=self.pool):
            loss = work()
        return graph.replay, loss
