"""Training data: batches from arrays of tokens, in an order that depends only on seed and epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from transformers import TrainingArguments

from bertsmith.model.batch import TokenBatch
from bertsmith.model.tokens import Tokens


class TokenDataset(Dataset[Any]):  # type: ignore[misc]  # torch is untyped here
    """Tokenized texts with labels. A batch has the fields of a `TokenBatch`.

    Attributes:
        tokens: n texts.
        labels: targets, shape (n,) or (n, labels): class indices, label sets or numbers.
        soft_labels: probabilities of the classes to train on instead, shape (n, classes); ``None`` to train on labels.
        lengths: number of tokens of each text, shape (n,).
    """

    def __init__(self, tokens: Tokens, labels: np.ndarray) -> None:
        self.tokens, self.labels, self.lengths = tokens, labels, tokens.truncated_lengths
        self.soft_labels: np.ndarray | None = None

    @classmethod
    def reading(cls, tokens: Tokens, labels: np.ndarray, max_length: int, long: str) -> TokenDataset:
        """Return the texts as training reads them: with ``"head-tail"`` as `Tokens.read`, else the beginnings."""
        return cls(tokens.read(max_length, long if long == "head-tail" else "truncate"), labels)

    def take(self, rows: np.ndarray) -> TokenDataset:
        """Return the texts at some positions, with their labels."""
        return TokenDataset(self.tokens.take(rows), self.labels[rows])

    def truncate(self, max_length: int) -> TokenDataset:
        """Return the texts with at most ``max_length`` tokens each."""
        short = TokenDataset(self.tokens.truncate(max_length), self.labels)
        short.soft_labels = self.soft_labels
        return short

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        """Return the columns of one text, for samplers that need its length."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        start = self.tokens.starts[row]
        return {name: values[start : start + self.lengths[row]] for name, values in self.tokens.columns.items()}

    def __getitems__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """Return the fields of a batch, int64; numbers are fp64, label sets and soft labels fp32."""
        batch = TokenBatch.from_tokens(self.tokens.take(np.array(rows)))
        labels = (self.labels if self.soft_labels is None else self.soft_labels)[rows]
        is_class = labels.dtype.kind not in "bf"
        dtype = np.int64 if is_class else np.float64 if labels.ndim == 1 else np.float32
        return {**vars(batch), "labels": torch.from_numpy(labels.astype(dtype))}

    def as_batch(self) -> TokenBatch:
        """Return all texts as one batch."""
        return TokenBatch(**self.__getitems__(list(range(len(self)))))


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
