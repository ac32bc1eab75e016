"""Training data: batches from arrays of tokens, in an order that depends only on seed and epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from transformers import TrainingArguments

from bertsmith.model.tokens import Tokens


@dataclass(eq=False)
class TokenDataset(Dataset[Any]):  # type: ignore[misc]  # torch is untyped here
    """Tokenized texts with labels: a split, a batch or a micro-batch.

    Attributes:
        tokens: n texts.
        labels: targets, shape (n,) or (n, labels): class indices, label sets or numbers.
        soft_labels: probabilities of the classes to train on instead, shape (n, classes); ``None`` to train on labels.
    """

    tokens: Tokens
    labels: np.ndarray
    soft_labels: np.ndarray | None = None

    @classmethod
    def reading(cls, tokens: Tokens, labels: np.ndarray, max_length: int, long: str) -> TokenDataset:
        """Return the texts as training reads them: with ``"head-tail"`` as `Tokens.read`, else the beginnings."""
        return cls(tokens.read(max_length, long if long == "head-tail" else "truncate"), labels)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each text, shape (n,)."""
        return self.tokens.truncated_lengths

    @property
    def targets(self) -> torch.Tensor:
        """The labels to train on: class indices in int64, numbers in fp64, label sets and soft labels in fp32."""
        labels = self.labels if self.soft_labels is None else self.soft_labels
        is_class = labels.dtype.kind not in "bf"
        return torch.from_numpy(labels.astype(np.int64 if is_class else np.float64 if labels.ndim == 1 else np.float32))

    def take(self, rows: np.ndarray) -> TokenDataset:
        """Return the texts at some positions, with their labels."""
        soft = None if self.soft_labels is None else self.soft_labels[rows]
        return TokenDataset(self.tokens.take(rows), self.labels[rows], soft)

    def truncate(self, max_length: int) -> TokenDataset:
        """Return the texts with at most ``max_length`` tokens each."""
        return replace(self, tokens=self.tokens.truncate(max_length))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        """Return the columns of one text, for samplers that need its length."""
        return self.tokens.take(np.array([row])).columns

    def __getitems__(self, rows: list[int]) -> dict[str, Any]:
        """Return the texts of a batch, with the token ids that the Trainer counts."""
        texts = self.take(np.array(rows))
        return {"input_ids": torch.from_numpy(texts.tokens.columns["input_ids"]), "texts": texts}


class EpochSampler(Sampler[int]):  # type: ignore[misc]  # torch is untyped here
    """Samples the texts of the current epoch. Each epoch can be repeated without the ones before it.

    Args:
        n: number of texts.
        arguments: for batch size, gradient accumulation and seed. Seed and epoch determine the order.
        step: returns the number of finished optimizer steps.
        probabilities: of each text, for sampling with replacement, shape (n,); ``None`` to sample each text once.
    """

    def __init__(
        self, n: int, arguments: TrainingArguments, step: Callable[[], int], probabilities: np.ndarray | None = None
    ) -> None:
        self.n, self.arguments, self.step, self.probabilities = n, arguments, step, probabilities

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        yield from self.order(self.epoch_and_batch(self.step())[0]).tolist()

    def order(self, epoch: int) -> np.ndarray:
        """Return the positions of the texts of an epoch, in order, shape (n,)."""
        rng = np.random.default_rng([self.arguments.seed, epoch])
        if self.probabilities is None:
            return rng.permutation(self.n)
        return rng.choice(self.n, self.n, p=self.probabilities)

    def epoch_and_batch(self, step: int) -> tuple[int, int]:
        """Return the epoch of a step, and the number of batches of this epoch before the step."""
        batches = self.n / self.arguments.per_device_train_batch_size
        batches = math.floor(batches) if self.arguments.dataloader_drop_last else math.ceil(batches)
        steps = max(math.ceil(batches / self.arguments.gradient_accumulation_steps), 1)
        epoch, step_in_epoch = divmod(step, steps)
        return epoch, step_in_epoch * self.arguments.gradient_accumulation_steps
