"""Batches in an order that needs no replay: a pure function of seed, epoch and step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import Trainer

from bertsmith.training.rows import Rows

if TYPE_CHECKING:
    from datasets import Dataset


class Ordered(Trainer):  # type: ignore[misc]  # transformers is untyped
    """The Trainer with batches that are made from Arrow's memory and stay on the CPU, where they are cut."""

    chances: np.ndarray | None = None
    """Of every training text to be drawn, shape (texts,), with replacement; else every epoch has each text once."""

    def create_accelerator_and_postprocess(self) -> None:
        """Leave batches where they are."""
        super().create_accelerator_and_postprocess()
        self.accelerator.device_placement = False

    def _get_dataloader(
        self, dataset: Dataset, description: str, batch_size: int, sampler_fn: Any = None, **more: Any
    ) -> Any:
        tokenizer, columns = self.processing_class, self._remove_unused_columns(dataset, description=description)
        padding = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
        rows = Rows(columns, padding, left=tokenizer.padding_side == "left")
        sampler = None if sampler_fn is None else lambda _: sampler_fn(dataset)
        return super()._get_dataloader(rows, description, batch_size, sampler, **more)

    def _get_collator_with_removed_columns(self, data_collator: Any, description: str | None = None) -> Any:
        return data_collator

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> int:
        return sum(len(batch["labels"]) for batch in batch_samples)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        if self.args.train_sampling_strategy != "random":
            return super()._get_train_sampler(train_dataset)
        return _Order(len(train_dataset or self.train_dataset), lambda: self._order(self.place_of()[0]))

    def _order(self, epoch: int) -> np.ndarray:
        """Return the positions of an epoch's texts, in order, shape (texts,): known from seed and epoch alone."""
        n, rng = len(self.train_dataset), np.random.default_rng([self.args.seed, epoch])
        return rng.permutation(n) if self.chances is None else rng.choice(n, n, p=self.chances)

    @property
    def at_the_end_of_an_epoch(self) -> bool:
        """Whether the steps done are whole epochs."""
        return self.place_of()[1] == 0

    def place_of(self, at: int | None = None) -> tuple[int, int]:
        """Return the epoch, and the batches of it that are done at a step, the current one unless given."""
        batches = len(self.train_dataset) / (self.args.per_device_train_batch_size * self.args.world_size)
        whole = math.floor(batches) if self.args.dataloader_drop_last else math.ceil(batches)
        steps = max(math.ceil(whole / self.args.gradient_accumulation_steps), 1)
        epoch, step = divmod(int(self.state.global_step if at is None else at), steps)
        return epoch, step * self.args.gradient_accumulation_steps

    def rows_of(self, step: int, part: int) -> list[int]:
        """Return the positions of the texts of a batch in the training split, where they are known."""
        if self.args.train_sampling_strategy != "random" or self.args.world_size > 1:
            return []
        epoch, done = self.place_of(step)
        size = self.args.per_device_train_batch_size
        start = (done + part) * size
        return [int(i) for i in self._order(epoch)[start : start + size]]


class _Order(torch.utils.data.Sampler[int]):  # type: ignore[misc]
    """The order of the epoch that is on."""

    def __init__(self, n: int, order: Callable[[], np.ndarray]) -> None:
        self.n, self.order = n, order

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        yield from self.order().tolist()
