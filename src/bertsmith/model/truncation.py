"""Parts of texts, the segments of pairs and the lines of several columns, and how truncation shares room among them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from bertsmith.data.template import Text, segments

if TYPE_CHECKING:
    from tokenizers import Encoding


def count_parts(text: Text, encoding: Encoding, *, by_line: bool) -> list[int]:
    """Return the number of tokens of each part of a text, without special tokens.

    Args:
        text: a text or a pair.
        encoding: its tokens; with offsets, if ``by_line``.
        by_line: whether the lines of the first segment are parts.
    """
    sequence = encoding.sequence_ids
    first, *second = segments(text)
    counts = [sequence.count(0)]
    if by_line:
        line_ends = list(accumulate(len(line) + 1 for line in first.split("\n")))
        # A token belongs to the line of its last character: some tokenizers include the space before a word.
        ends = [end for (_, end), part in zip(encoding.offsets, sequence, strict=True) if part == 0]
        lines = np.searchsorted(line_ends, np.maximum.accumulate(np.maximum(ends, 1)) - 1, side="right")
        counts = np.bincount(np.minimum(lines, len(line_ends) - 1), minlength=len(line_ends)).tolist()
    return [*counts, *(sequence.count(1) for _ in second)]


def align_parts(parts: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the lengths of parts as a table: the last part of each text in the last column, 0 for absent lines."""
    width = max(map(len, parts), default=1)
    rows = [[*row[:-1], *[0] * (width - len(row)), *row[-1:]] for row in parts]
    return np.array(rows, dtype=np.int64).reshape(len(parts), width)


def cut_parts(
    parts: np.ndarray, lengths: np.ndarray, special: tuple[int, int], max_length: int, *, left: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truncate the longest parts first, as the tokenizers library truncates the segments of a pair.

    Args:
        parts: number of tokens of each part, shape (n, parts).
        lengths: number of tokens of each text, shape (n,). Special tokens that are neither first nor last come before
            the last part.
        special: number of special tokens at the start and at the end.
        max_length: maximum number of tokens.
        left: whether the beginning of a part is removed.

    Returns:
        The number of tokens that each part keeps, shape (n, parts), and the blocks of tokens to keep. A block has a
        position in the text and a number of tokens, both of shape (n, parts + 3).
    """
    n, k = parts.shape
    between = lengths - parts.sum(axis=1) - sum(special)
    room = np.maximum(np.minimum(lengths, max_length) - between - sum(special), 0)
    order = np.argsort(parts, axis=1, kind="stable")
    kept = np.zeros_like(parts)
    for i in range(k):  # the shortest first: what it leaves is for the others
        cell = (np.arange(n), order[:, i])
        kept[cell] = np.minimum(parts[cell], room // (k - i))
        room = room - kept[cell]

    def blocks(content: np.ndarray) -> np.ndarray:
        first, last = (np.full((n, 1), size) for size in special)
        return np.hstack([first, content[:, :-1], between[:, None], content[:, -1:], last])

    full, sizes = blocks(parts), blocks(kept)
    return kept, np.cumsum(full, axis=1) - (sizes if left else full), sizes


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Concatenate ``range(start, start + length)`` for all pairs."""
    ends = np.cumsum(lengths)
    return np.asarray(np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths))
