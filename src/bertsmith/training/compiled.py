"""Whether compiling the layers pays: what a GPU does element by element then becomes a few kernels."""

from __future__ import annotations

import torch

LOOK, AT_LEAST = 200, 20
"""Steps after which the time of the rest of training is estimated; steps since the last evaluation that this takes."""
SAVES, COSTS = 0.1, 20.0
"""Share of the time that is saved, and the seconds that compiling takes: 0.12 and 15 for BERT-Base on an H200."""


def pays(seconds: float) -> bool:
    """Return whether compiling pays in a training that takes so many seconds more."""
    return SAVES * seconds > COSTS


def can_compile(device: torch.device) -> bool:
    """Return whether torch can compile for a GPU on this machine: that takes Triton and a C compiler."""
    try:
        return bool((torch.compile(lambda x: x + 1)(torch.zeros(8, device=device)) == 1).all())
    except Exception:  # of many kinds
        return False
