"""Texts to token ids, each text tokenized once; with the tokenizers library alone."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from bertsmith.model.token_cache import cached

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bertsmith.model.load import Loaded


import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import xxhash

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHUNK = 1000
"""Texts tokenized at once: enough for the tokenizer's threads, little enough for memory."""
COLUMNS = {"input_ids": "ids", "token_type_ids": "type_ids"}
"""What a model may take of texts that are not padded, and what the tokenizers library calls it."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """Tokenized texts, one after the other.

    Attributes:
        columns: values by name, of those in `COLUMNS` that the model takes, int32, shape (tokens,).
        kept: tokens of each text that are here, int64, shape (texts,).
        lengths: tokens of each text before anything was cut, special tokens counted, int64, shape (texts,).
        unknown: whether a text has something that the tokenizer does not know, bool, shape (texts,).
        encoder: what made them.
    """

    columns: dict[str, np.ndarray]
    kept: np.ndarray
    lengths: np.ndarray
    unknown: np.ndarray
    encoder: Encoder | None = None

    @classmethod
    def of(cls, rows: Mapping[str, Sequence[Sequence[int]]], encoder: Encoder | None = None) -> Tokens:
        """Build them from lists, one per text, of ``input_ids`` and maybe ``token_type_ids``."""
        lengths = np.fromiter(map(len, rows["input_ids"]), np.int64)
        total = int(lengths.sum())
        columns = {name: np.fromiter(chain.from_iterable(rows[name]), np.int32, total) for name in rows}
        unknown = np.zeros(len(lengths), dtype=bool)
        if encoder is not None and encoder.unknown is not None:
            places = np.flatnonzero(columns["input_ids"] == encoder.unknown)
            unknown[np.searchsorted(np.cumsum(lengths), places, side="right")] = True
        return cls(columns, lengths, lengths, unknown, encoder)

    @staticmethod
    def joined(parts: Sequence[Tokens]) -> Tokens:
        """Return the texts of one or more parts, in order."""
        if len(parts) == 1:
            return parts[0]
        columns = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
        kept, lengths, unknown = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("kept", "lengths", "unknown")
        )
        return Tokens(columns, kept, lengths, unknown, parts[0].encoder)

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def is_cut(self) -> np.ndarray:
        """Whether tokens of a text are missing, bool, shape (texts,)."""
        return np.asarray(self.lengths > self.kept)

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each text begins, int64, shape (texts,)."""
        return np.asarray(np.cumsum(self.kept) - self.kept)

    def ids(self) -> list[np.ndarray]:
        """Return the token ids of every text."""
        return np.split(self.columns["input_ids"], self.starts[1:]) if len(self) else []

    def take(self, texts: np.ndarray) -> Tokens:
        """Return some of the texts, in the order of their positions."""
        return self._parts(np.asarray(texts, dtype=np.int64))

    def cut(self, max_length: int, *, left: bool | None = None) -> Tokens:
        """Cut what is longer, as the tokenizer does: the special tokens stay.

        Args:
            max_length: tokens kept of each text.
            left: whether the beginning is cut off; as the tokenizer is set unless given.
        """
        if not len(self) or self.kept.max() <= max_length:
            return self
        left = self.encoder.cuts_left if left is None and self.encoder else left
        shifts = np.maximum(self.kept - max_length, 0) if left else 0
        return self._parts(np.arange(len(self)), shifts, max_length)

    def windows(self, max_length: int) -> tuple[Tokens, np.ndarray]:
        """Cut texts into windows that overlap by a quarter; the last one ends where the text does.

        Returns:
            The windows, special tokens around each, and how many each text has, shape (texts,).
        """
        content = max_length - sum(self.encoder.ends if self.encoder else (0, 0))
        step = max(content - content // 4, 1)
        shifts = [[*range(0, n - max_length, step), max(n - max_length, 0)] for n in self.kept.tolist()]
        counts = np.fromiter(map(len, shifts), np.int64)
        of_all = np.fromiter(chain.from_iterable(shifts), np.int64)
        return self._parts(np.repeat(np.arange(len(self)), counts), of_all, max_length), counts

    def _parts(self, texts: np.ndarray, shifts: np.ndarray | int = 0, max_length: int | None = None) -> Tokens:
        """Return at most ``max_length`` tokens of some texts: content from a shift on, between the special tokens."""
        before, after = self.encoder.ends if max_length is not None and self.encoder else (0, 0)
        whole = self.kept[texts]
        kept = whole if max_length is None else np.minimum(whole, max_length)
        place = span(self.starts[texts], kept)
        if max_length is not None:
            within = span(np.zeros_like(kept), kept)
            moved = np.where(within < before, 0, np.repeat(np.broadcast_to(shifts, kept.shape), kept))
            place += np.where(within >= np.repeat(kept - after, kept), np.repeat(whole - kept, kept), moved)
        columns = {name: values[place] for name, values in self.columns.items()}
        return Tokens(columns, kept, self.lengths[texts], self.unknown[texts], self.encoder)


def span(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the whole numbers from each start on, as many as its length says, one after the other."""
    ends = np.cumsum(lengths)
    result: np.ndarray = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
    return result


class Encoder(ABC):
    """Turns texts into token ids; several threads may ask it at once.

    Attributes:
        cuts_left: whether the beginning is cut off, not the end.
    """

    cuts_left = False

    @property
    @abstractmethod
    def key(self) -> str | None:
        """Say what it makes of a text, as far as that is known."""

    @property
    @abstractmethod
    def unknown(self) -> int | None:
        """The id of what it does not know; none, where it knows everything."""

    @property
    @abstractmethod
    def ends(self) -> tuple[int, int]:
        """Special tokens before and after a text."""

    @abstractmethod
    def whole(self, texts: Sequence[str], names: Sequence[str]) -> dict[str, list[list[int]]]:
        """Tokenize texts: a list a text for each of the names in `COLUMNS`, nothing cut. All texts go through here."""

    @abstractmethod
    def unread(self, text: str) -> list[str]:
        """Return what a text has that the tokenizer does not know, and the model cannot tell from any other such."""

    def encode(
        self, texts: Sequence[str], names: Sequence[str] = ("input_ids",), max_length: int | None = None
    ) -> Tokens:
        """Tokenize texts.

        Args:
            texts: n texts.
            names: of `COLUMNS`, ``input_ids`` among them.
            max_length: tokens kept of each text; all unless given.
        """
        parts = []
        for start in range(0, max(len(texts), 1), CHUNK):
            part = Tokens.of(self.whole(texts[start : start + CHUNK], names), self)
            parts.append(part if max_length is None else part.cut(max_length))
        return Tokens.joined(parts)


class FastEncoder(Encoder):
    """An `Encoder` of a ``tokenizer.json``."""

    def __init__(self, content: str, side: str = "right") -> None:
        """Set up.

        Args:
            content: of a ``tokenizer.json``.
            side: the one that is cut off.

        Raises:
            Exception: if it is no tokenizer, as the library has no other.
        """
        from tokenizers import Tokenizer

        self.cuts_left = side == "left"
        self._tokenizer = Tokenizer.from_str(content)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    @cached_property
    def key(self) -> str:
        """Say what it makes of a text, as far as that is known."""
        import tokenizers

        content = self._tokenizer.to_str().encode()
        return f"{tokenizers.__version__} {self.cuts_left} {xxhash.xxh3_128_hexdigest(content)}"

    @cached_property
    def unknown(self) -> int | None:
        """The id of what it does not know; none, where it knows everything."""
        return unknown_token(self._tokenizer)

    @cached_property
    def ends(self) -> tuple[int, int]:
        """Special tokens before and after a text."""
        return ends_of(*(self._tokenizer.encode("a", add_special_tokens=special).ids for special in (True, False)))

    def whole(self, texts: Sequence[str], names: Sequence[str]) -> dict[str, list[list[int]]]:
        """Tokenize texts: a list a text for each of the names in `COLUMNS`, nothing cut."""
        encodings = self._tokenizer.encode_batch_fast(list(texts))
        return {name: [getattr(encoding, COLUMNS[name]) for encoding in encodings] for name in names}

    def unread(self, text: str) -> list[str]:
        """Return what a text has that the tokenizer does not know, and the model cannot tell from any other such."""
        encoding = self._tokenizer.encode(text)
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        return [text[start:end] for number, (start, end) in pairs if number == self.unknown]


def unknown_token(tokenizer: Tokenizer) -> int | None:
    """Return the id of what a tokenizer does not know; none, where it knows everything."""
    if hasattr(tokenizer.model, "unk_token"):
        token = tokenizer.model.unk_token
        number: int | None = None if token is None else tokenizer.token_to_id(token)
    else:  # Unigram, which tells only in JSON
        number = json.loads(tokenizer.to_str())["model"].get("unk_id")
    return number


def ends_of(whole: list[int], content: list[int]) -> tuple[int, int]:
    """Return how many tokens stand before and after the content of a text."""
    extra = len(whole) - len(content)
    before = next((i for i in range(extra + 1) if whole[i : i + len(content)] == content), extra)
    return before, extra - before


def encoder_of(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """Return what turns texts into token ids as a tokenizer of transformers does, faster."""
    if tokenizer.is_fast:
        return FastEncoder(tokenizer.backend_tokenizer.to_str(), tokenizer.truncation_side)
    return _SlowEncoder(tokenizer)


def encode(texts: Sequence[str], loaded: Loaded) -> Tokens:
    """Tokenize texts, or find what was made of them before.

    Args:
        texts: n texts.
        loaded: the model, whose tokenizer, inputs and maximum length count.
    """
    encoder, names = encoder_of(loaded.tokenizer), loaded.columns

    def make() -> dict[str, np.ndarray]:
        made = encoder.encode(texts, names, loaded.max_length)
        return {**made.columns, "kept": made.kept, "lengths": made.lengths, "unknown": made.unknown.view(np.uint8)}

    found = cached(texts, encoder.key and f"{encoder.key} {loaded.max_length} {names}", make)
    kept, lengths, unknown = (found[name] for name in ("kept", "lengths", "unknown"))
    return Tokens({name: found[name] for name in names}, kept, lengths, unknown.view(bool), encoder)


class _SlowEncoder(Encoder):
    """An `Encoder` of a tokenizer that the tokenizers library has not."""

    key = None

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer, self.lock = tokenizer, threading.Lock()
        self.cuts_left = tokenizer.truncation_side == "left"

    @property
    def unknown(self) -> int | None:
        number: int | None = self.tokenizer.unk_token_id
        return number

    @cached_property
    def ends(self) -> tuple[int, int]:
        with self.lock:
            return ends_of(*(self.tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False)))

    def whole(self, texts: Sequence[str], names: Sequence[str]) -> dict[str, list[list[int]]]:
        if not texts:
            return {name: [] for name in names}
        with self.lock:
            encoded = self.tokenizer(list(texts), truncation=False, verbose=False)
        return {name: encoded[name] for name in names}

    def unread(self, text: str) -> list[str]:
        with self.lock:
            pieces = self.tokenizer.tokenize(text)
            numbers = self.tokenizer.convert_tokens_to_ids(pieces)
        return [piece for piece, number in zip(pieces, numbers, strict=True) if number == self.unknown]
