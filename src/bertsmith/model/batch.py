"""Tokenized texts as tensors: ragged on the host, packed end to end or padded for a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from bertsmith.compute.batching import micro_batches
from bertsmith.compute.machine import cpu_capabilities
from bertsmith.model.tokenizer import Tokens

SIZES = 16
"""Packed batches are rounded up to one of so many sizes between a number of tokens and its double.

Freed memory then fits later batches (see ``benchmarks/memory.py``), and a GPU meets few sizes to record.
"""
MULTIPLE = 8
"""Widths of padded batches are multiples of this, which matrix units prefer."""
SCORES = 2**17 if cpu_capabilities().get("amx_bf16") else 2**15
"""Attention scores per head that a CPU computes at once, to stay in its caches. A longer text is computed alone.

CPUs with matrix units (AMX) are faster with more.
"""


@dataclass(frozen=True)
class TokenBatch:
    """Tokenized texts, one after the other, on the host.

    Attributes:
        input_ids: token ids, int64, shape (tokens,).
        lengths: tokens of each text, int64, shape (texts,).
        token_type_ids: int64, shape (tokens,); ``None`` where the model takes none.
        labels: class indices, int64, shape (texts,); ``None`` without labels.
    """

    input_ids: torch.Tensor
    lengths: torch.Tensor
    token_type_ids: torch.Tensor | None = None
    labels: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def of(cls, tokens: Tokens) -> TokenBatch:
        """Build a batch of tokenized texts."""
        values = {name: torch.from_numpy(column.astype(np.int64)) for name, column in tokens.columns.items()}
        return cls(lengths=torch.from_numpy(tokens.kept.copy()), **values)

    @property
    def longest(self) -> int:
        """Tokens of the longest text; 0 for an empty batch."""
        return int(self.lengths.max()) if len(self) else 0

    def take(self, texts: torch.Tensor) -> TokenBatch:
        """Return some of the texts, in the order of their positions, int64, shape (texts,)."""
        ends = self.lengths.cumsum(0)
        lengths = self.lengths[texts]
        shifts = (ends - self.lengths)[texts] - (lengths.cumsum(0) - lengths)
        tokens = torch.arange(int(lengths.sum())) + shifts.repeat_interleave(lengths)
        return TokenBatch(
            self.input_ids[tokens],
            lengths,
            None if self.token_type_ids is None else self.token_type_ids[tokens],
            None if self.labels is None else self.labels[texts],
        )

    def groups(self, budget: int, *, packed: bool, workers: int = 1) -> list[np.ndarray]:
        """Return the positions of the texts of each micro-batch; see `bertsmith.compute.batching.micro_batches`."""
        lengths = self.lengths.numpy()
        counted = lengths if packed else -(-lengths // MULTIPLE) * MULTIPLE
        return micro_batches(counted, budget, packed=packed, workers=workers)

    def cut(self, budget: int, *, packed: bool, workers: int = 1) -> list[TokenBatch]:
        """Cut the batch into micro-batches, longest texts first."""
        return [self.take(torch.from_numpy(rows)) for rows in self.groups(budget, packed=packed, workers=workers)]

    def twice(self) -> TokenBatch:
        """Return the texts followed by the same texts."""
        return self.take(torch.arange(len(self)).repeat(2))

    def padded(
        self, padding: Mapping[str, int], *, left: bool = False, multiple: int = MULTIPLE
    ) -> dict[str, torch.Tensor]:
        """Return what a Hugging Face model takes, shape (texts, width).

        Args:
            padding: the value to pad with, by name; 0 unless given.
            left: pad before a text, not after it.
            multiple: the width is a multiple of this.
        """
        width = -(-int(self.lengths.max()) // multiple) * multiple
        place = torch.arange(width) - ((width - self.lengths)[:, None] if left else 0)
        mask = (place >= 0) & (place < self.lengths[:, None])
        inputs = {"attention_mask": mask.long()}
        for name, values in (("input_ids", self.input_ids), ("token_type_ids", self.token_type_ids)):
            if values is not None:
                inputs[name] = torch.full(mask.shape, padding.get(name, 0)).masked_scatter_(mask, values)
        return inputs


@dataclass(frozen=True)
class PaddedBatch:
    """Texts padded to one width, for exporters, which know neither lengths nor groups.

    Attributes:
        input_ids: shape (texts, width).
        position_ids: as ``input_ids``, by broadcasting.
        token_type_ids: as ``input_ids``; ``None`` where the model takes none.
        mask: which places are filled, bool, shape (texts, width).
        word_embeddings: ``None``.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    token_type_ids: torch.Tensor | None
    mask: torch.Tensor
    word_embeddings: None = None

    @classmethod
    def of(
        cls,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        *,
        padding_id: int | None = None,
    ) -> PaddedBatch:
        """Build a batch from tensors (texts, width), padded on the right; ``padding_id`` is that of `pack`."""
        if padding_id is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        else:
            counted = (input_ids != padding_id).long()
            positions = counted.cumsum(1) * counted + padding_id
        return cls(input_ids, positions, token_type_ids, attention_mask.bool())

    @property
    def width(self) -> int:
        """Tokens of a padded text."""
        width: int = self.mask.shape[1]
        return width

    def firsts(self, rows: torch.Tensor) -> torch.Tensor:
        """Return what belongs to first tokens, shape (texts, 1, …), of rows (texts, width, …)."""
        return rows[:, :1]

    def mean(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the mean over the tokens of each text of rows (texts, width, n), shape (texts, n)."""
        return (rows * self.mask[:, :, None]).sum(1) / self.mask.sum(1, keepdim=True)


@dataclass(frozen=True)
class Group:
    """Neighbouring texts of a packed batch whose attention is computed at once, in a padded rectangle.

    Attributes:
        texts: the first text and the one after the last.
        tokens: the first token and the one after the last.
        width: tokens of the longest text.
        mask: which places of the rectangle are filled, bool, shape (texts, width); ``None`` if all are.
        rows: for every place, flat, the row of the packed batch that fills it; an unfilled place takes the last, empty
            row. ``None`` if all places are filled.
        places: for every token, its place, flat. ``None`` if all places are filled.
    """

    texts: tuple[int, int]
    tokens: tuple[int, int]
    width: int
    mask: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    places: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Texts and width of the rectangle."""
        return self.texts[1] - self.texts[0], self.width


@dataclass(frozen=True)
class PackedBatch:
    """Texts packed end to end, on the model's device. After them come one or more empty tokens that nothing reads.

    Attributes:
        input_ids: shape (tokens,), empty ones included.
        position_ids: position of each token in its text as the model counts, shape (tokens,).
        token_type_ids: shape (tokens,); ``None`` where all are 0, or the model takes none.
        starts: row of the first token of each text, of the first empty token, and of the end, int32, shape
            (texts + 2,). To attention of variable length the empty tokens are one more text.
        lengths: tokens of each text, on the host.
        longest: upper bound of the tokens of a text, and of the empty tokens.
        word_embeddings: replaces the embeddings of ``input_ids``, shape (tokens, width of an embedding).
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    token_type_ids: torch.Tensor | None
    starts: torch.Tensor
    lengths: tuple[int, ...]
    longest: int
    word_embeddings: torch.Tensor | None = None

    @property
    def first(self) -> torch.Tensor:
        """Rows of the first token of each text, shape (texts,)."""
        return self.starts[:-2]

    @property
    def width(self) -> int:
        """Tokens of the longest text."""
        return max(self.lengths)

    def firsts(self, rows: torch.Tensor) -> torch.Tensor:
        """Return what belongs to first tokens, shape (texts, …), of rows (tokens, …)."""
        return rows.index_select(0, self.first)

    def mean(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the mean over the tokens of each text of rows (tokens, n), shape (texts, n)."""
        lengths = self.starts.diff()[:-1].long()
        texts = torch.arange(len(lengths), device=rows.device).repeat_interleave(lengths, output_size=sum(self.lengths))
        summed = rows.new_zeros(len(lengths), rows.shape[1]).index_add(0, texts, rows[: len(texts)])
        return summed / lengths[:, None]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors of the batch by name, without those that are ``None``."""
        found = {name: getattr(self, name) for name in ("input_ids", "position_ids", "token_type_ids", "starts")}
        return {name: values for name, values in found.items() if values is not None}

    def to(self, device: torch.device) -> PackedBatch:
        """Return the batch on a device, without waiting for what the device is doing."""
        if device == self.input_ids.device:
            return self
        moved: dict[str, Any] = {name: to_device(values, device) for name, values in self.tensors().items()}
        return replace(self, **moved)

    @cached_property
    def groups(self) -> list[Group]:
        """Texts whose attention is computed at once: a few on a CPU, to stay in its caches, all on other devices."""
        device = self.starts.device
        found: list[list[int]] = []
        for n in self.lengths:
            if found and (device.type != "cpu" or (len(found[-1]) + 1) * max(n, *found[-1]) ** 2 <= SCORES):
                found[-1].append(n)
            else:
                found.append([n])
        groups, text, token = [], 0, 0
        for lengths in found:
            groups.append(_group(lengths, text, token, empty=len(self.input_ids) - 1, device=device))
            text, token = groups[-1].texts[1], groups[-1].tokens[1]
        return groups


Batch = PackedBatch | PaddedBatch
"""What the forward pass takes."""


def pack(batch: TokenBatch, *, padding_id: int | None = None) -> PackedBatch:
    """Pack texts end to end, on the host.

    Args:
        batch: the texts.
        padding_id: id of the padding token for models that count positions from the one after it (RoBERTa, MPNet);
            ``None`` for models that count from 0.
    """
    tokens = len(batch.input_ids)
    size = tokens + _empty(tokens)
    starts = F.pad(batch.lengths.cumsum(0, dtype=torch.int32), (1, 1))
    starts[-1] = size
    types = batch.token_type_ids
    if padding_id is None:
        positions = torch.arange(tokens) - starts[:-2].long().repeat_interleave(batch.lengths)
    else:  # a padding token inside a text does not count, as in transformers
        counted = (batch.input_ids != padding_id).long()
        before = F.pad(counted.cumsum(0), (1, 0))[starts[:-2].long()].repeat_interleave(batch.lengths)
        positions = (counted.cumsum(0) - before) * counted + padding_id
    return PackedBatch(
        F.pad(batch.input_ids, (0, size - tokens)),
        F.pad(positions, (0, size - tokens)),
        None if types is None or not bool(types.any()) else F.pad(types, (0, size - tokens)),
        starts,
        tuple(batch.lengths.tolist()),
        max(int(batch.lengths.max()), size - tokens),
    )


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device without waiting for the device.

    Raises:
        RuntimeError: while a CUDA graph is recorded, which would replay the same values for ever.
    """
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("values from the host cannot be part of a CUDA graph")
    return values.pin_memory().to(device, non_blocking=True)


def _empty(tokens: int) -> int:
    """Return how many empty tokens round a number of tokens up to one of `SIZES`; at least one."""
    step = 2 ** max(tokens.bit_length() - 1, 0) // SIZES
    return -tokens % step or step if step else 1


def _group(lengths: list[int], text: int, token: int, *, empty: int, device: torch.device) -> Group:
    width, total = max(lengths), sum(lengths)
    texts, tokens = (text, text + len(lengths)), (token, token + total)
    if total == width * len(lengths):
        return Group(texts, tokens, width)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    places = mask.flatten().nonzero()[:, 0]
    rows = torch.full((mask.numel(),), empty)
    rows[places] = torch.arange(*tokens)
    return Group(texts, tokens, width, *(to_device(values, device) for values in (mask, rows, places)))
