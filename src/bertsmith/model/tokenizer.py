"""Texts to token ids with the tokenizers library. Needs no torch."""

from __future__ import annotations

import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from bertsmith.data.template import Text, segments
from bertsmith.model.parts import align_parts, count_parts, cut_parts, ranges
from bertsmith.model.token_cache import cached

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

    from bertsmith.model.load import Loaded

CHUNK = 1000
"""Texts tokenized at once: enough for the threads of the tokenizer, and little memory."""
COLUMNS = {"input_ids": "ids", "token_type_ids": "type_ids"}
"""Inputs of a model, by name, with their names in the tokenizers library."""
PARTS = "parts"


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids of texts, concatenated.

    Attributes:
        columns: the inputs in `COLUMNS` that the model takes, by name, int32, shape (tokens,).
        truncated_lengths: number of tokens of each text, after truncation, int64, shape (texts,).
        full_lengths: number of tokens of each text before truncation, int64, shape (texts,).
        has_unknown: whether a text has unknown tokens, before truncation, bool, shape (texts,).
        encoder: the encoder of the texts, if known.
        parts: number of tokens of each part of a text, without special tokens, int64, shape (texts, parts). The last
            part of a pair is its second segment; the others are lines of the first. ``None`` if a text is one part.
        full_parts: the same before truncation.
    """

    columns: dict[str, np.ndarray]
    truncated_lengths: np.ndarray
    full_lengths: np.ndarray
    has_unknown: np.ndarray
    encoder: Encoder | None = None
    parts: np.ndarray | None = None
    full_parts: np.ndarray | None = None

    @classmethod
    def from_lists(
        cls,
        rows: Mapping[str, Sequence[Sequence[int]]],
        encoder: Encoder | None = None,
        parts: Sequence[Sequence[int]] | None = None,
    ) -> Tokens:
        """Build tokens from one list per text, for each name in `COLUMNS`; and from the lengths of its parts."""
        lengths = np.fromiter(map(len, rows["input_ids"]), np.int64)
        total = int(lengths.sum())
        columns = {name: np.fromiter(chain.from_iterable(rows[name]), np.int32, total) for name in rows}
        has_unknown = np.zeros(len(lengths), dtype=bool)
        if encoder is not None and encoder.unknown_id is not None:
            positions = np.flatnonzero(columns["input_ids"] == encoder.unknown_id)
            has_unknown[np.searchsorted(np.cumsum(lengths), positions, side="right")] = True
        aligned = None if parts is None else align_parts(parts)
        return cls(columns, lengths, lengths, has_unknown, encoder, aligned, aligned)

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
        aligned: list[np.ndarray | None] = [None, None]
        if parts[0].parts is not None:
            aligned = [
                align_parts([row for part in parts for row in getattr(part, name).tolist()])
                for name in ("parts", "full_parts")
            ]
        return Tokens(columns, truncated_lengths, full_lengths, has_unknown, parts[0].encoder, *aligned)

    def __len__(self) -> int:
        return len(self.truncated_lengths)

    @property
    def is_truncated(self) -> np.ndarray:
        """Whether each text is truncated, bool, shape (texts,)."""
        return np.asarray(self.full_lengths > self.truncated_lengths)

    @cached_property
    def starts(self) -> np.ndarray:
        """Position of the first token of each text, int64, shape (texts,)."""
        return np.asarray(np.cumsum(self.truncated_lengths) - self.truncated_lengths)

    def ids(self) -> list[np.ndarray]:
        """Return the token ids of each text."""
        return np.split(self.columns["input_ids"], self.starts[1:]) if len(self) else []

    def split(self) -> dict[str, list[np.ndarray]]:
        """Return the columns of each text, by name."""
        return {name: np.split(values, self.starts[1:]) if len(self) else [] for name, values in self.columns.items()}

    def take(self, texts: np.ndarray) -> Tokens:
        """Return the texts at the given positions."""
        return self._slices(np.asarray(texts, dtype=np.int64))

    def truncate(self, max_length: int, *, left: bool | None = None) -> Tokens:
        """Truncate longer texts as the tokenizer does, with their special tokens.

        Args:
            max_length: maximum number of tokens.
            left: whether to remove the beginning; ``None`` for the setting of the tokenizer.
        """
        if not len(self) or self.truncated_lengths.max() <= max_length:
            return self
        left = self.encoder.truncates_left if left is None and self.encoder else left
        if self.parts is not None and self.full_parts is not None:
            special = self.encoder.special_counts if self.encoder else (0, 0)
            parts, offsets, sizes = cut_parts(
                self.parts, self.full_parts, self.truncated_lengths, special, max_length, left=bool(left)
            )
            positions = ranges((self.starts[:, None] + offsets).ravel(), sizes.ravel())
            columns = {name: values[positions] for name, values in self.columns.items()}
            return replace(self, columns=columns, truncated_lengths=sizes.sum(axis=1), parts=parts)
        shifts = np.maximum(self.truncated_lengths - max_length, 0) if left else 0
        return self._slices(np.arange(len(self)), shifts, max_length)

    def windows(self, max_length: int) -> tuple[Tokens, np.ndarray]:
        """Split texts into windows that overlap by a quarter. The last window ends with the text.

        Returns:
            The windows, each with special tokens, and the number of windows of each text, shape (texts,).
        """
        content = max_length - sum(self.encoder.special_counts if self.encoder else (0, 0))
        step = max(content - content // 4, 1)
        shifts = [[*range(0, n - max_length, step), max(n - max_length, 0)] for n in self.truncated_lengths.tolist()]
        counts = np.fromiter(map(len, shifts), np.int64)
        all_shifts = np.fromiter(chain.from_iterable(shifts), np.int64)
        return self._slices(np.repeat(np.arange(len(self)), counts), all_shifts, max_length), counts

    def _slices(self, texts: np.ndarray, shifts: np.ndarray | int = 0, max_length: int | None = None) -> Tokens:
        """Return at most ``max_length`` tokens of each text: content from a shift on, between the special tokens."""
        before, after = self.encoder.special_counts if max_length is not None and self.encoder else (0, 0)
        full = self.truncated_lengths[texts]
        lengths = full if max_length is None else np.minimum(full, max_length)
        positions = ranges(self.starts[texts], lengths)
        if max_length is not None:
            within = ranges(np.zeros_like(lengths), lengths)
            moved = np.where(within < before, 0, np.repeat(np.broadcast_to(shifts, lengths.shape), lengths))
            is_end = within >= np.repeat(lengths - after, lengths)
            positions += np.where(is_end, np.repeat(full - lengths, lengths), moved)
        columns = {name: values[positions] for name, values in self.columns.items()}
        parts = [None if some is None else some[texts] for some in (self.parts, self.full_parts)]
        return Tokens(columns, lengths, self.full_lengths[texts], self.has_unknown[texts], self.encoder, *parts)


class Encoder(ABC):
    """Turns texts into token ids. Thread-safe.

    Attributes:
        cache_key: identifies the tokenizer and its settings; ``None`` if unknown.
        unknown_id: id of the unknown token; ``None`` if the tokenizer has none.
        special_counts: number of special tokens before and after a text or a pair.
        truncates_left: whether truncation removes the beginning.
        by_line: whether lines are parts of a text, of which truncation cuts the longest first; see `Template.by_line`.
    """

    cache_key: str | None
    unknown_id: int | None
    special_counts: tuple[int, int]
    truncates_left = False
    by_line = False

    @abstractmethod
    def tokenize(self, texts: Sequence[Text], names: Sequence[str]) -> dict[str, list[list[int]]]:
        """Tokenize texts without truncation.

        Returns:
            One list per text, for each of the names in `COLUMNS`. For pairs, or if ``by_line``, also the number of
            tokens of each part, under `PARTS`.
        """

    @abstractmethod
    def unknown_words(self, text: str) -> list[str]:
        """Return the parts of a text that become the unknown token."""

    def encode(
        self, texts: Sequence[Text], names: Sequence[str] = ("input_ids",), max_length: int | None = None
    ) -> Tokens:
        """Tokenize texts.

        Args:
            texts: n texts, or n pairs.
            names: names in `COLUMNS`, including ``input_ids``.
            max_length: maximum number of tokens; ``None`` for no truncation.
        """
        parts = []
        for start in range(0, max(len(texts), 1), CHUNK):
            rows = self.tokenize(texts[start : start + CHUNK], names)
            lengths = rows.pop(PARTS, None)
            part = Tokens.from_lists(rows, self, lengths)
            parts.append(part if max_length is None else part.truncate(max_length))
        return Tokens.concatenate(parts)


class FastEncoder(Encoder):
    """An `Encoder` with the tokenizers library.

    Args:
        content: of a ``tokenizer.json``.
        truncation_side: ``"right"`` or ``"left"``.
        by_line: as for `Encoder`.

    Raises:
        Exception: if the content is not a tokenizer; the library raises plain ``Exception``.
    """

    def __init__(self, content: str, truncation_side: str = "right", *, by_line: bool = False) -> None:
        import tokenizers

        self.truncates_left, self.by_line = truncation_side == "left", by_line
        self._tokenizer = tokenizer = tokenizers.Tokenizer.from_str(content)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.unknown_id = unknown_token_id(tokenizer)
        with_special, content_only = (tokenizer.encode("a", add_special_tokens=flag).ids for flag in (True, False))
        self.special_counts = _count_special(with_special, content_only)

    @cached_property
    def cache_key(self) -> str:  # type: ignore[override]
        """Identifies the tokenizer and its settings."""
        import tokenizers

        digest = xxhash.xxh3_128_hexdigest(self._tokenizer.to_str().encode())
        return f"{tokenizers.__version__} {self.truncates_left} {self.by_line} {digest}"

    def tokenize(self, texts: Sequence[Text], names: Sequence[str]) -> dict[str, list[list[int]]]:
        """Tokenize texts; see `Encoder`."""
        encode = self._tokenizer.encode_batch if self.by_line else self._tokenizer.encode_batch_fast  # no offsets
        encodings = encode(list(texts))
        rows = {name: [getattr(encoding, COLUMNS[name]) for encoding in encodings] for name in names}
        if self.by_line or (texts and isinstance(texts[0], tuple)):
            rows[PARTS] = [
                count_parts(text, encoding, by_line=self.by_line)
                for text, encoding in zip(texts, encodings, strict=True)
            ]
        return rows

    def unknown_words(self, text: str) -> list[str]:
        """Return the parts of a text that become the unknown token."""
        encoding = self._tokenizer.encode(text)
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        return [text[start:end] for token_id, (start, end) in pairs if token_id == self.unknown_id]


class _SlowEncoder(Encoder):
    """An `Encoder` for tokenizers in Python, which are not thread-safe."""

    # Lines are not parts here, because such tokenizers do not know where a token comes from.
    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.lock = tokenizer, threading.Lock()
        self.cache_key, self.unknown_id = None, tokenizer.unk_token_id
        self.truncates_left = tokenizer.truncation_side == "left"
        self.special_counts = _count_special(
            *(tokenizer("a", add_special_tokens=flag)["input_ids"] for flag in (True, False))
        )

    def tokenize(self, texts: Sequence[Text], names: Sequence[str]) -> dict[str, list[list[int]]]:
        if not texts:
            return {name: [] for name in names}
        columns = [list(column) for column in zip(*map(segments, texts), strict=True)]
        with self.lock:
            encoded = self.tokenizer(*columns, truncation=False, verbose=False)
            rows = {name: encoded[name] for name in names}
            if len(columns) == 2:
                parts = [self.tokenizer(c, add_special_tokens=False, verbose=False)["input_ids"] for c in columns]
                rows[PARTS] = [[len(a), len(b)] for a, b in zip(*parts, strict=True)]
        return rows

    def unknown_words(self, text: str) -> list[str]:
        with self.lock:
            pieces = self.tokenizer.tokenize(text)
            ids = self.tokenizer.convert_tokens_to_ids(pieces)
        return [piece for piece, token_id in zip(pieces, ids, strict=True) if token_id == self.unknown_id]


def encoder_for(tokenizer: PreTrainedTokenizerBase, *, by_line: bool = False) -> Encoder:
    """Return an encoder that gives the token ids of a tokenizer of transformers, but faster."""
    if tokenizer.is_fast:
        return FastEncoder(tokenizer.backend_tokenizer.to_str(), tokenizer.truncation_side, by_line=by_line)
    return _SlowEncoder(tokenizer)


def encode(texts: Sequence[Text], loaded: Loaded, *, cache: bool = True) -> Tokens:
    """Tokenize texts with the tokenizer, inputs and maximum length of a model, or read them from the cache.

    Args:
        texts: the texts.
        loaded: the model.
        cache: whether to use the cache folder.
    """
    encoder, names = encoder_for(loaded.tokenizer, by_line=loaded.template.by_line), loaded.columns

    part_names = (PARTS, "full_parts")

    def compute() -> dict[str, np.ndarray]:
        tokens = encoder.encode(texts, names, loaded.max_length)
        return {
            **tokens.columns,
            "kept": tokens.truncated_lengths,
            "lengths": tokens.full_lengths,
            "unknown": tokens.has_unknown.view(np.uint8),
            **{name: some.ravel() for name in part_names if (some := getattr(tokens, name)) is not None},
        }

    is_pair = loaded.template.pair_column is not None
    key = f"{encoder.cache_key} {loaded.max_length} {names} {is_pair}" if encoder.cache_key and cache else None
    found = cached(texts, key, compute)
    columns = {name: found[name] for name in names}
    parts = [found[name].reshape(len(texts), -1) if name in found and len(texts) else None for name in part_names]
    return Tokens(columns, found["kept"], found["lengths"], found["unknown"].view(bool), encoder, *parts)


def unknown_token_id(tokenizer: Tokenizer) -> int | None:
    """Return the id of the unknown token; ``None`` if the tokenizer has none."""
    if hasattr(tokenizer.model, "unk_token"):
        token = tokenizer.model.unk_token
        token_id: int | None = None if token is None else tokenizer.token_to_id(token)
    else:  # Unigram has the id only in its JSON
        token_id = json.loads(tokenizer.to_str())["model"].get("unk_id")
    return token_id


def _count_special(ids: list[int], content: list[int]) -> tuple[int, int]:
    """Return the number of special tokens before and after the content of a text."""
    extra = len(ids) - len(content)
    before = next((i for i in range(extra + 1) if ids[i : i + len(content)] == content), extra)
    return before, extra - before
