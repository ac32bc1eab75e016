"""Layers compiled by torch, one for all of them: what is done element by element becomes a few kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from bertsmith.model.packed_attention import leave_attention_alone

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOOK, AT_LEAST = 200, 20
"""Steps after which it is told how long the rest of training takes, and those since the last evaluation it takes."""
SAVES, COSTS = 0.1, 20.0
"""Share of the time that is saved, and the seconds that compiling takes: 0.12 and 15 for BERT-Base on an H200."""


def pays(seconds: float) -> bool:
    """Return whether compiling pays in a training that takes so many seconds more."""
    return SAVES * seconds > COSTS


def can_compile(device: torch.device) -> bool:
    """Return whether torch can compile for a GPU here: that takes Triton and a C compiler."""
    try:
        return bool((torch.compile(lambda x: x + 1)(torch.zeros(8, device=device)) == 1).all())
    except Exception:  # of many kinds
        return False


class Compiled:
    """The layers of a model that `bertsmith.model.packing.can_pack`, compiled when they are first used."""

    def __init__(self, model: PreTrainedModel) -> None:
        leave_attention_alone()
        n = model.config.num_hidden_layers
        lists = [m for m in model.base_model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == n]
        self.layers: list[tuple[torch.nn.Module, Any]] = [
            (layer, torch.compile(layer.forward, dynamic=True)) for layer in lists[0]
        ]

    @contextmanager
    def used(self) -> Iterator[None]:
        """While in this context, the model uses them; what cannot be compiled after all is done as it is."""
        for layer, forward in self.layers:
            layer.forward = forward
        try:
            with torch._dynamo.config.patch(suppress_errors=True):
                yield
        finally:
            for layer, _ in self.layers:
                del layer.forward
