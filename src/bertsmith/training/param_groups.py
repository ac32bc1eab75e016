"""A learning rate for every weight: the new head takes larger steps than what was pre-trained, deep layers smaller."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_LAYER = re.compile(r"\.(\d+)\.")


def factors(model: PreTrainedModel, head_rate: float, layer_decay: float) -> dict[str, float]:
    """Return by how much the learning rate of every weight is multiplied, by its name.

    Args:
        model: the weights of whose body are named with its ``base_model_prefix``, those of a layer with its number.
        head_rate: of the weights that are not of the body.
        layer_decay: of a layer, as a multiple of the one above it; the embeddings lie below the first (layer-wise
            learning-rate decay: Howard and Ruder 2018, arXiv:1801.06146; Sun et al. 2019, arXiv:1905.05583).
    """
    body = f"{model.base_model_prefix}."
    numbers = {
        name: int(found[1])
        for name, _ in model.named_parameters()
        if name.startswith(body) and (found := _LAYER.search(name))
    }
    layers = max(numbers.values(), default=-1) + 1

    def factor(name: str) -> float:
        if not name.startswith(body):
            return head_rate
        if name in numbers:
            return float(layer_decay ** (layers - 1 - numbers[name]))
        return float(layer_decay**layers) if "embeddings" in name else 1.0

    return {name: factor(name) for name, _ in model.named_parameters()}


def set_param_groups(
    optimizer: torch.optim.Optimizer, model: PreTrainedModel, *, head_rate: float, layer_decay: float
) -> None:
    """Multiply the learning rates of an optimizer by the `factors`, before the schedule is made.

    Its groups of parameters are split in place; new groups come after those that were there.
    """
    named = factors(model, head_rate, layer_decay)
    wanted = {id(weight): named[name] for name, weight in model.named_parameters()}
    for group in list(optimizer.param_groups):
        parts: dict[float, list[Any]] = {}
        for weight in group["params"]:
            parts.setdefault(wanted[id(weight)], []).append(weight)
        rate = group["lr"]
        # What is as the body is stays where it was.
        for i, (factor, weights) in enumerate(sorted(parts.items(), key=lambda part: part[0] != 1)):
            if i == 0:
                group["params"], group["lr"] = weights, factor * rate
            else:
                optimizer.add_param_group({**group, "params": weights, "lr": factor * rate})
