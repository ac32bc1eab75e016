"""A learning rate for every weight: the new head takes larger steps than what was pre-trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def raise_head(optimizer: torch.optim.Optimizer, model: PreTrainedModel, factor: float) -> None:
    """Multiply the learning rate of the weights that are not of the pre-trained body, before the schedule is made.

    Args:
        optimizer: whose groups of parameters are split in place; new groups come after those that were there.
        model: the weights of whose body are named with its ``base_model_prefix``.
        factor: of the rate.
    """
    if factor == 1:
        return
    body = f"{model.base_model_prefix}."
    head = {id(weight) for name, weight in model.named_parameters() if not name.startswith(body)}
    for group in list(optimizer.param_groups):
        raised: dict[str, Any] = {**group, "lr": factor * group["lr"]}
        raised["params"] = [weight for weight in group["params"] if id(weight) in head]
        if raised["params"] and len(raised["params"]) < len(group["params"]):
            group["params"] = [weight for weight in group["params"] if id(weight) not in head]
            optimizer.add_param_group(raised)
        elif raised["params"]:
            group["lr"] = raised["lr"]
