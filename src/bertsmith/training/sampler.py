"""The order of the training texts: a pure function of seed and epoch, so that a resumed run needs no replay."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from transformers import TrainingArguments


class EpochOrder:
    """The order of the texts in each epoch.

    Args:
        n: number of training texts.
        seed: of the order.
        chances: probability of each text to be drawn, with replacement, shape (n,); otherwise an epoch has each text
            once.
    """

    def __init__(self, n: int, seed: int, chances: np.ndarray | None = None) -> None:
        self.n, self.seed, self.chances = n, seed, chances

    def __call__(self, epoch: int) -> np.ndarray:
        """Return the positions of an epoch's texts, in order, shape (n,)."""
        rng = np.random.default_rng([self.seed, epoch])
        return rng.permutation(self.n) if self.chances is None else rng.choice(self.n, self.n, p=self.chances)


class EpochSampler(torch.utils.data.Sampler[int]):  # type: ignore[misc]  # torch is untyped here
    """Samples in the order of the current epoch.

    Args:
        order: of every epoch.
        epoch: returns the current one.
    """

    def __init__(self, order: EpochOrder, epoch: Callable[[], int]) -> None:
        self.order, self.epoch = order, epoch

    def __len__(self) -> int:
        return self.order.n

    def __iter__(self) -> Iterator[int]:
        yield from self.order(self.epoch()).tolist()


def place_of(step: int, texts: int, arguments: TrainingArguments) -> tuple[int, int]:
    """Return the epoch of a step, and the batches of that epoch before it.

    Args:
        step: optimizer steps done.
        texts: of the training split.
        arguments: with batch size and gradient accumulation.
    """
    batches = texts / (arguments.per_device_train_batch_size * arguments.world_size)
    whole = math.floor(batches) if arguments.dataloader_drop_last else math.ceil(batches)
    steps = max(math.ceil(whole / arguments.gradient_accumulation_steps), 1)
    epoch, within = divmod(step, steps)
    return epoch, within * arguments.gradient_accumulation_steps
