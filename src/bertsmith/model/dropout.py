"""Dropout as a value that is passed down, not as a mode of the model: reproducible, and cheap on a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

LEVELS = 2**16
"""Resolution of a dropout rate: rates are accurate to 1 in 131,072."""
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integer types as wide as a floating-point type of so many bytes."""


class Dropout:
    """Draws dropout masks from a seed.

    On a CPU a mask holds 16 random bits per element, drawn at once and applied by a bitwise AND. PyTorch draws each
    element on its own there, which is much slower. Other devices use `torch.nn.functional.dropout` and the device's
    generator, which the caller seeds.

    Args:
        seed: the same seed and the same sequence of calls give the same masks.
    """

    def __init__(self, *seed: int) -> None:
        self._bits = np.random.SFC64(np.random.SeedSequence(seed))

    def __call__(self, x: torch.Tensor, p: float) -> torch.Tensor:
        """Return x with each element zeroed with probability p and the others scaled by 1 / (1 - p)."""
        if not 0 < p < 1 or x.device.type != "cpu":
            return F.dropout(x, p)
        result: torch.Tensor = _Dropped.apply(x, self.mask(x.shape, p), 1 / (1 - p))
        return result

    def add(self, x: torch.Tensor, residual: torch.Tensor, p: float) -> torch.Tensor:
        """Return the sum of a residual and the dropped-out x."""
        if not 0 < p < 1 or x.device.type != "cpu":
            return residual + F.dropout(x, p)
        result: torch.Tensor = _DroppedSum.apply(x, residual, self.mask(x.shape, p), 1 / (1 - p))
        return result

    def mask(self, shape: torch.Size, p: float) -> torch.Tensor:
        """Return an int16 mask: -1 (all bits set) where an element is kept, 0 where it is dropped."""
        n = shape.numel()
        drawn = torch.from_numpy(self._bits.random_raw(-(-n // 4)).view(np.int16)[:n]).view(shape)
        return drawn.ge_(round(p * LEVELS) - LEVELS // 2).neg_()


def keep(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return a new tensor: x where the mask of `Dropout.mask` is set, 0 elsewhere."""
    integers = _INTEGERS[x.element_size()]
    return torch.bitwise_and(x.view(integers), mask.to(integers)).view(x.dtype)


class _Dropped(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    @staticmethod
    def forward(context: Any, x: torch.Tensor, mask: torch.Tensor, gain: float) -> torch.Tensor:
        context.save_for_backward(mask)
        context.gain = gain
        return keep(x, mask).mul_(gain)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (mask,) = context.saved_tensors
        return keep(gradient.contiguous(), mask).mul_(context.gain), None, None


class _DroppedSum(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(context: Any, x: torch.Tensor, residual: torch.Tensor, mask: torch.Tensor, gain: float) -> torch.Tensor:
        context.save_for_backward(mask)
        context.gain, context.dtypes = gain, (x.dtype, residual.dtype)
        return torch.add(residual, keep(x, mask), alpha=gain)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        (mask,) = context.saved_tensors
        of_x, of_residual = context.dtypes
        kept = keep(gradient.to(of_x).contiguous(), mask).mul_(context.gain)
        return kept, gradient.to(of_residual), None, None
