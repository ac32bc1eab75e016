"""Token ids of texts, and the parts of them that a model reads. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from bertsmith.compute.batching import micro_batches

if TYPE_CHECKING:
    from bertsmith.model.tokenizer import Encoder

PAD_TO_MULTIPLE_OF = 8
"""The width of padded texts is a multiple of this, for matrix units."""
HEAD_SHARE = 1 / 4
"""Share of the beginning in what `Tokens.head_tail` keeps."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids of texts, concatenated.

    Attributes:
        columns: the inputs in `tokenizer.COLUMNS` that the model takes, by name, int32, shape (tokens,).
        truncated_lengths: number of tokens of each text, after truncation, int64, shape (texts,).
        full_lengths: number of tokens of each text before truncation, int64, shape (texts,).
        has_unknown: whether a text has unknown tokens, before truncation, bool, shape (texts,).
        encoder: the encoder of the texts, if known.
        parts: number of tokens of each part of a text, without special tokens, int64, shape (texts, parts). The last
            part of a pair is its second segment; the others are lines of the first. ``None`` if a text is one part.
    """

    columns: dict[str, np.ndarray]
    truncated_lengths: np.ndarray
    full_lengths: np.ndarray
    has_unknown: np.ndarray
    encoder: Encoder | None = None
    parts: np.ndarray | None = None

    @classmethod
    def from_lists(
        cls,
        rows: Mapping[str, Sequence[Sequence[int]]],
        encoder: Encoder | None = None,
        parts: Sequence[Sequence[int]] | None = None,
    ) -> Tokens:
        """Build tokens from one list per text, by input, and from the lengths of its parts."""
        lengths = np.fromiter(map(len, rows["input_ids"]), np.int64)
        total = int(lengths.sum())
        columns = {name: np.fromiter(chain.from_iterable(rows[name]), np.int32, total) for name in rows}
        has_unknown = np.zeros(len(lengths), dtype=bool)
        if encoder is not None and encoder.unknown_id is not None:
            positions = np.flatnonzero(columns["input_ids"] == encoder.unknown_id)
            has_unknown[np.searchsorted(np.cumsum(lengths), positions, side="right")] = True
        return cls(columns, lengths, lengths, has_unknown, encoder, None if parts is None else _align_parts(parts))

    @staticmethod
    def concatenate(parts: Sequence[Tokens]) -> Tokens:
        """Concatenate one or more parts."""
        if len(parts) == 1:
            return parts[0]
        columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
        truncated_lengths, full_lengths, has_unknown = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("truncated_lengths", "full_lengths", "has_unknown")
        )
        rows = [row for part in parts if part.parts is not None for row in part.parts.tolist()]
        aligned = _align_parts(rows) if rows else None
        return Tokens(columns, truncated_lengths, full_lengths, has_unknown, parts[0].encoder, aligned)

    def __len__(self) -> int:
        return len(self.truncated_lengths)

    @property
    def longest(self) -> int:
        """Number of tokens of the longest text; 0 without texts."""
        return int(self.truncated_lengths.max(initial=0))

    @property
    def special_counts(self) -> tuple[int, int]:
        """Number of special tokens before and after a text."""
        return self.encoder.special_counts if self.encoder else (0, 0)

    @property
    def is_truncated(self) -> np.ndarray:
        """Whether each text is truncated, bool, shape (texts,)."""
        return np.asarray(self.full_lengths > self.truncated_lengths)

    @cached_property
    def starts(self) -> np.ndarray:
        """Position of the first token of each text, int64, shape (texts,)."""
        return np.asarray(np.cumsum(self.truncated_lengths) - self.truncated_lengths)

    def take(self, texts: np.ndarray) -> Tokens:
        """Return the texts at the given positions."""
        return self._slices(np.asarray(texts, dtype=np.int64))

    def truncate(self, max_length: int, *, left: bool | None = None) -> Tokens:
        """Truncate longer texts, and keep their special tokens.

        Truncation removes the beginning if ``left``, else the end. ``None`` takes the setting of the tokenizer.
        """
        if self.longest <= max_length:
            return self
        left = self.encoder.truncates_left if left is None and self.encoder else bool(left)
        if self.parts is not None:
            return self._truncate_parts(self.parts, max_length, left=left)
        shifts = np.maximum(self.truncated_lengths - max_length, 0) if left else 0
        return self._slices(np.arange(len(self)), shifts, max_length)

    def head_tail(self, max_length: int) -> Tokens:
        """Remove the middle of longer texts: a quarter of the content that is left is from the beginning.

        At 512 tokens, that is the split that Sun et al. (2019, arXiv:1905.05583) found best: 128 and 382.
        """
        if self.longest <= max_length:
            return self
        content = max(max_length - sum(self.special_counts), 0)
        shifts = np.maximum(self.truncated_lengths - max_length, 0)
        return self._slices(np.arange(len(self)), shifts, max_length, head=round(content * HEAD_SHARE))

    def read(self, max_length: int, long: str) -> Tokens:
        """Return what a model reads of each text; ``long`` is ``"truncate"``, ``"head-tail"`` or ``"window"``."""
        if long == "window":
            return self  # for `windows`
        return self.head_tail(max_length) if long == "head-tail" else self.truncate(max_length)

    def windows(self, max_length: int) -> tuple[Tokens, np.ndarray]:
        """Split texts into windows that overlap by a quarter. The last window ends with the text.

        Returns:
            The windows, each with special tokens, and the number of windows of each text, shape (texts,).
        """
        content = max_length - sum(self.special_counts)
        step = max(content - content // 4, 1)
        shifts = [[*range(0, n - max_length, step), max(n - max_length, 0)] for n in self.truncated_lengths.tolist()]
        counts = np.fromiter(map(len, shifts), np.int64)
        all_shifts = np.fromiter(chain.from_iterable(shifts), np.int64)
        return self._slices(np.repeat(np.arange(len(self)), counts), all_shifts, max_length), counts

    def micro_batches(self, budget: int, *, packed: bool, workers: int = 1) -> list[np.ndarray]:
        """Return the positions of the texts of each micro-batch; see `bertsmith.compute.batching.micro_batches`."""
        lengths = self.truncated_lengths
        counted = lengths if packed else -(-lengths // PAD_TO_MULTIPLE_OF) * PAD_TO_MULTIPLE_OF
        return micro_batches(counted, budget, packed=packed, workers=workers)

    def pad(self, values: Mapping[str, int], side: str = "right", width: int | None = None) -> dict[str, np.ndarray]:
        """Return the columns and ``attention_mask``, each of shape (texts, width), int64.

        Args:
            values: padding value of each column; 0 by default.
            side: of the padding, ``"right"`` or ``"left"``.
            width: number of tokens of the longest text, or more; by default, a multiple of `PAD_TO_MULTIPLE_OF`.
        """
        width = -(-self.longest // PAD_TO_MULTIPLE_OF) * PAD_TO_MULTIPLE_OF if width is None else width
        lengths = self.truncated_lengths[:, None]
        position = np.arange(width) - (width - lengths if side == "left" else 0)
        mask = (position >= 0) & (position < lengths)
        inputs = {"attention_mask": mask.astype(np.int64)}
        for name, ids in self.columns.items():
            inputs[name] = np.full(mask.shape, values.get(name, 0), dtype=np.int64)
            inputs[name][mask] = ids
        return inputs

    def _truncate_parts(self, parts: np.ndarray, max_length: int, *, left: bool) -> Tokens:
        """Truncate the longest parts first, as the tokenizers library truncates the segments of a pair.

        Special tokens that are neither first nor last come before the last part.
        """
        (n, k), lengths, special = parts.shape, self.truncated_lengths, self.special_counts
        between = lengths - parts.sum(axis=1) - sum(special)
        room = np.maximum(np.minimum(lengths, max_length) - between - sum(special), 0)
        order = np.argsort(parts, axis=1, kind="stable")
        kept = np.zeros_like(parts)
        for i in range(k):  # the shortest first: what it leaves is for the others
            cell = (np.arange(n), order[:, i])
            kept[cell] = np.minimum(parts[cell], room // (k - i))
            room = room - kept[cell]

        def blocks(content: np.ndarray) -> np.ndarray:  # shape (texts, parts + 3)
            first, last = (np.full((n, 1), size) for size in special)
            return np.hstack([first, content[:, :-1], between[:, None], content[:, -1:], last])

        full, sizes = blocks(parts), blocks(kept)
        starts = self.starts[:, None] + np.cumsum(full, axis=1) - (sizes if left else full)
        positions = _ranges(starts.ravel(), sizes.ravel())
        columns = {name: values[positions] for name, values in self.columns.items()}
        return replace(self, columns=columns, truncated_lengths=sizes.sum(axis=1), parts=kept)

    def _slices(
        self, texts: np.ndarray, shifts: np.ndarray | int = 0, max_length: int | None = None, *, head: int = 0
    ) -> Tokens:
        """Return at most ``max_length`` tokens of each text: content from a shift on, between the special tokens.

        The first ``head`` tokens of the content are not shifted.
        """
        full = self.truncated_lengths[texts]
        lengths = full if max_length is None else np.minimum(full, max_length)
        positions = _ranges(self.starts[texts], lengths)
        if max_length is not None:
            before, after = self.special_counts
            within = _ranges(np.zeros_like(lengths), lengths)
            moved = np.where(within < before + head, 0, np.repeat(np.broadcast_to(shifts, lengths.shape), lengths))
            is_end = within >= np.repeat(lengths - after, lengths)
            positions += np.where(is_end, np.repeat(full - lengths, lengths), moved)
        columns = {name: values[positions] for name, values in self.columns.items()}
        parts = None if self.parts is None else self.parts[texts]
        return Tokens(columns, lengths, self.full_lengths[texts], self.has_unknown[texts], self.encoder, parts)


def _align_parts(parts: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the lengths of parts as a table: the last part of each text in the last column, 0 for absent lines."""
    width = max(map(len, parts), default=1)
    rows = [[*row[:-1], *[0] * (width - len(row)), *row[-1:]] for row in parts]
    return np.array(rows, dtype=np.int64).reshape(len(parts), width)


def _ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenate ``range(start, start + length)`` for all pairs."""
    ends = np.cumsum(lengths)
    return np.asarray(np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths))
