"""How the steps of a training are computed on the device (token budget, workers, memory)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import TrainingArguments

from bertsmith.compute import batching, threads
from bertsmith.compute.machine import cpu_capabilities
from bertsmith.compute.memory import plan_token_budget, step_memory
from bertsmith.compute.system import free_memory, resident_memory
from bertsmith.events import MemoryLimited
from bertsmith.model import forward
from bertsmith.training.losses import inverse_weights

if TYPE_CHECKING:
    from bertsmith.training.trainer import Training


@dataclass(frozen=True)
class StepPlan:
    """How steps are computed.

    Attributes:
        token_budget: tokens of a micro-batch at the start.
        packed: whether texts are packed, see `bertsmith.model.forward`.
        use_cuda_graphs: see `bertsmith.training.cuda_graphs`.
        workers: number of micro-batches computed at the same time.
        memory_limit: resident bytes above which freed memory is returned to the system; ``None`` for no limit.
        probabilities: of each training text to be drawn, shape (texts,); ``None`` to draw each once per epoch.
    """

    token_budget: int
    packed: bool
    use_cuda_graphs: bool
    workers: int
    memory_limit: int | None
    probabilities: np.ndarray | None


def plan_steps(training: Training, arguments: TrainingArguments) -> StepPlan:
    """Plan the steps of a training, and emit an event if memory reduces the token budget.

    ``arguments`` are those of the training, or safer ones.

    Raises:
        DeviceError: if a CPU has too little memory for one text.
    """
    model, recipe, train, longest = training.loaded.model, training.recipe, training.train, training.longest
    device, config = training.loaded.device.type, model.config
    packed = forward.supports(model) and not arguments.gradient_checkpointing
    probabilities = None
    if recipe.imbalance == "balanced-sampling" or recipe.contrastive == "only":
        counts = np.bincount(train.labels, minlength=config.num_labels)
        probabilities = inverse_weights(counts)[train.labels] / len(train)
    budget, workers, limit = batching.TOKEN_BUDGETS[device], 1, None
    if device == "cpu":
        if arguments.bf16 and cpu_capabilities().get("amx_bf16"):
            budget *= batching.AMX_BUDGET_FACTOR
        free, workers, default = free_memory(), threads.num_workers() if packed else 1, budget
        keeps_best = arguments.save_strategy == "no" and arguments.eval_strategy != "no"
        kept = 4 * model.num_parameters() if keeps_best else 0  # the weights of the best epoch
        sizes: dict[str, Any] = {"training": True, "workers": workers}
        budget = plan_token_budget(model, longest, free=free - kept, default=default, **sizes)
        if budget < default:
            training.emit(MemoryLimited(budget, free))
        limit = resident_memory() + step_memory(model, longest, budget, **sizes)
    return StepPlan(
        token_budget=budget,
        packed=packed,
        # fp32 has no attention kernel. Mean pooling depends on the lengths of texts.
        use_cuda_graphs=packed
        and device == "cuda"
        and arguments.bf16
        and recipe.contrastive != "only"
        and getattr(config, "classifier_pooling", "cls") == "cls",
        workers=workers,
        memory_limit=limit,
        probabilities=probabilities,
    )
