"""Learning rates by layer: higher for the new head, lower for the layers near the embeddings."""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import PreTrainedModel

_LAYER = re.compile(r"\.(\d+)\.")


def lr_factors(model: PreTrainedModel, head_rate: float, layer_decay: float) -> dict[str, float]:
    """Return the factor of the learning rate of each parameter, by name.

    Args:
        model: parameter names of its body start with ``base_model_prefix``, those of a layer contain its number.
        head_rate: factor of the parameters outside of the body.
        layer_decay: factor of a layer relative to the layer above it. The embeddings are below the first layer
            (layer-wise decay: Howard and Ruder 2018, arXiv:1801.06146; Sun et al. 2019, arXiv:1905.05583).
    """
    body = f"{model.base_model_prefix}."
    names = [name for name, _ in model.named_parameters()]
    layer = {n: int(found[1]) for n in names if n.startswith(body) and (found := _LAYER.search(n))}
    layers = max(layer.values(), default=-1) + 1

    def factor(name: str) -> float:
        if not name.startswith(body):
            return head_rate
        if name in layer:
            return float(layer_decay ** (layers - 1 - layer[name]))
        return float(layer_decay**layers) if "embeddings" in name else 1.0

    return {name: factor(name) for name in names}


def set_param_groups(
    optimizer: torch.optim.Optimizer, model: PreTrainedModel, *, head_rate: float, layer_decay: float
) -> None:
    """Multiply the learning rates of an optimizer by `lr_factors`. Call it before the scheduler is created.

    Splits the parameter groups in place. New groups follow the existing ones.
    """
    factors = lr_factors(model, head_rate, layer_decay)
    by_weight = {weight: factors[name] for name, weight in model.named_parameters()}
    for group in list(optimizer.param_groups):
        splits: dict[float, list[Any]] = {}
        for weight in group["params"]:
            splits.setdefault(by_weight[weight], []).append(weight)
        rate = group["lr"]
        # Parameters with factor 1 stay in the existing group.
        for i, (factor, weights) in enumerate(sorted(splits.items(), key=lambda split: split[0] != 1)):
            if i == 0:
                group["params"], group["lr"] = weights, factor * rate
            else:
                optimizer.add_param_group({**group, "params": weights, "lr": factor * rate})


def halve_learning_rate(optimizer: Any, scheduler: Any) -> None:
    """Halve the current and initial learning rates of an optimizer and its scheduler."""
    for group in optimizer.param_groups:
        for name in ("lr", "initial_lr"):
            if name in group:
                group[name] *= 0.5
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [0.5 * rate for rate in scheduler.base_lrs]


def can_skip_step(optimizer: Any) -> bool:
    """Return whether an optimizer leaves the weights unchanged if its ``found_inf`` is 1."""
    return isinstance(optimizer, torch.optim.AdamW) and bool(optimizer.defaults.get("fused"))
