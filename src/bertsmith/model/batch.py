"""Batches of texts as the forward pass reads them: packed end to end, or padded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from bertsmith.compute.device import refuse_capture, to_device
from bertsmith.compute.machine import cpu_capabilities
from bertsmith.model.tokens import Tokens

SIZES_PER_DOUBLING = 16
"""Packed batches are rounded up to one of this many sizes between two consecutive powers of 2.

This adds 3 % of the tokens on average. Later batches can then reuse freed memory: without it, training on a CPU takes
about twice the memory (``benchmarks/memory.py``). On a GPU, few sizes mean few CUDA graphs.
"""
MAX_CPU_SCORES = 2**17 if cpu_capabilities().get("amx_bf16") else 2**15
"""Maximum number of attention scores per head that a CPU computes at once, to stay in its caches.

CPUs with matrix units (AMX) are faster with more.
"""


@dataclass(frozen=True)
class PaddedBatch:
    """Texts padded on the right to one width, in a form that exporters can trace.

    Attributes:
        input_ids: shape (texts, width).
        position_ids: broadcasts to the shape of ``input_ids``.
        token_type_ids: shape (texts, width); ``None`` if the model does not take them.
        mask: whether each position holds a token, bool, shape (texts, width).
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    token_type_ids: torch.Tensor | None
    mask: torch.Tensor

    @classmethod
    def from_inputs(
        cls,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        *,
        padding_idx: int | None = None,
    ) -> PaddedBatch:
        """Build a batch from inputs of shape (texts, width); `pack` explains ``padding_idx``."""
        if padding_idx is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        else:
            counted = (input_ids != padding_idx).long()
            positions = counted.cumsum(1) * counted + padding_idx
        return cls(input_ids, positions, token_type_ids, attention_mask.bool())

    @property
    def width(self) -> int:
        """Number of positions per text."""
        return self.mask.shape[1]

    def first_tokens(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the values of the first token of each text, shape (texts, 1, …), from shape (texts, width, …)."""
        return rows[:, :1]

    def mean(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the mean over the tokens of each text, shape (texts, n), from shape (texts, width, n)."""
        return (rows * self.mask[:, :, None]).sum(1) / self.mask.sum(1, keepdim=True)


@dataclass(frozen=True)
class AttentionGroup:
    """Consecutive texts of a packed batch whose attention is computed at once, padded to one width.

    Attributes:
        texts: the texts of the group.
        tokens: their rows in the packed batch.
        width: number of tokens of the longest text.
        mask: whether each padded position holds a token, bool, shape (texts, width).
        pad_indices: row of the packed batch for each padded position, flat. Padding takes the last row, which is empty.
        unpad_indices: padded position of each token, flat.

    Without padding, ``mask``, ``pad_indices`` and ``unpad_indices`` are ``None``.
    """

    texts: slice
    tokens: slice
    width: int
    mask: torch.Tensor | None = None
    pad_indices: torch.Tensor | None = None
    unpad_indices: torch.Tensor | None = None


@dataclass(frozen=True)
class PackedBatch:
    """Texts packed end to end, on the device of the model. One or more empty tokens follow; nothing reads them.

    Attributes:
        input_ids: shape (tokens,), including empty tokens.
        position_ids: position of each token in its text, counted as the model does, shape (tokens,).
        token_type_ids: shape (tokens,); ``None`` if the model does not take them, or if all are 0.
        cu_seqlens: cumulative lengths as for variable-length attention, int32, shape (texts + 2,). The empty tokens
            form one more text.
        lengths: number of tokens of each text, on the host.
        max_seqlen: upper bound of the length of a text, and of the number of empty tokens.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    token_type_ids: torch.Tensor | None
    cu_seqlens: torch.Tensor
    lengths: tuple[int, ...]
    max_seqlen: int

    @property
    def width(self) -> int:
        """Number of tokens of the longest text."""
        return max(self.lengths)

    def first_tokens(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the values of the first token of each text, shape (texts, …), from shape (tokens, …)."""
        return rows.index_select(0, self.cu_seqlens[:-2])

    def mean(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the mean over the tokens of each text, shape (texts, n), from shape (tokens, n)."""
        lengths, rows = self.cu_seqlens.diff()[:-1].long(), rows[: sum(self.lengths)]
        text = torch.arange(len(lengths), device=rows.device).repeat_interleave(lengths, output_size=len(rows))
        return rows.new_zeros(len(lengths), rows.shape[1]).index_add(0, text, rows) / lengths[:, None]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors that are not ``None``, by name."""
        tensors = {name: getattr(self, name) for name in ("input_ids", "position_ids", "token_type_ids", "cu_seqlens")}
        return {name: values for name, values in tensors.items() if values is not None}

    def to(self, device: torch.device) -> PackedBatch:
        """Return the batch on a device, without synchronizing with the device."""
        if device == self.input_ids.device:
            return self
        moved: dict[str, Any] = {name: to_device(values, device) for name, values in self.tensors().items()}
        return replace(self, **moved)

    @cached_property
    def groups(self) -> list[AttentionGroup]:
        """Groups of texts whose attention is computed at once: small ones on a CPU, a single one on other devices."""
        device = self.cu_seqlens.device
        refuse_capture(device)
        split: list[list[int]] = []
        for n in self.lengths:
            if split and (device.type != "cpu" or (len(split[-1]) + 1) * max(n, *split[-1]) ** 2 <= MAX_CPU_SCORES):
                split[-1].append(n)
            else:
                split.append([n])
        groups, text, token = [], 0, 0
        for lengths in split:
            texts, tokens, width = slice(text, text + len(lengths)), slice(token, token + sum(lengths)), max(lengths)
            tensors: tuple[torch.Tensor, ...] = ()
            if sum(lengths) < len(lengths) * width:  # the texts need padding
                mask = torch.arange(width) < torch.tensor(lengths)[:, None]
                unpad_indices = mask.flatten().nonzero()[:, 0]
                pad_indices = torch.full((mask.numel(),), len(self.input_ids) - 1)
                pad_indices[unpad_indices] = torch.arange(tokens.start, tokens.stop)
                tensors = tuple(to_device(values, device) for values in (mask, pad_indices, unpad_indices))
            groups.append(AttentionGroup(texts, tokens, width, *tensors))
            text, token = texts.stop, tokens.stop
        return groups


Batch = PackedBatch | PaddedBatch
"""Input of the forward pass."""


def pack(texts: Tokens, *, padding_idx: int | None = None) -> PackedBatch:
    """Pack texts end to end, on the host.

    For models whose positions start at ``padding_idx + 1`` (RoBERTa, MPNet), ``padding_idx`` is the id of the padding
    token. It is ``None`` if positions start at 0.
    """
    ids, types, lengths = texts.columns["input_ids"], texts.columns.get("token_type_ids"), texts.truncated_lengths
    step = max(2 ** max(len(ids).bit_length() - 1, 0) // SIZES_PER_DOUBLING, 1)
    empty = np.zeros(-len(ids) % step or step, dtype=np.int64)  # at least one empty token
    if padding_idx is None:
        positions = np.arange(len(ids)) - np.repeat(texts.starts, lengths)
    else:  # as in transformers, a padding token inside of a text does not count
        counted = ids != padding_idx
        sums = np.append(0, np.cumsum(counted))
        positions = (sums[1:] - np.repeat(sums[texts.starts], lengths)) * counted + padding_idx
    return PackedBatch(
        torch.from_numpy(np.append(ids, empty)),
        torch.from_numpy(np.append(positions, empty)),
        None if types is None or not types.any() else torch.from_numpy(np.append(types, empty)),
        torch.from_numpy(np.append(texts.starts, [len(ids), len(ids) + len(empty)]).astype(np.int32)),
        tuple(lengths.tolist()),
        max(texts.longest, len(empty)),
    )
