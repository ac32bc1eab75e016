"""Texts to token ids, with the tokenizers library alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
import xxhash

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

CHUNK = 1000
"""Texts tokenized at once: enough for the tokenizer's threads, little enough for memory."""
COLUMNS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""What a model may take, and what the tokenizers library calls it."""


class Encoder(Protocol):
    """Turns texts into token ids; several threads may ask it at once.

    Attributes:
        key: says what it makes of a text, as far as that is known.
    """

    @property
    def key(self) -> str | None:
        """Return it."""
        ...

    def columns(self, texts: Sequence[str], names: Sequence[str] = ("input_ids",)) -> dict[str, list[list[int]]]:
        """Return a list a text for each of the names in `COLUMNS`, cut at the maximum length."""
        ...

    def count(self, texts: Sequence[str]) -> np.ndarray:
        """Return the number of tokens of each text, special tokens counted, nothing cut, shape (texts,)."""
        ...

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Return the first and last character of every token of a text, nothing cut; both 0 for special tokens."""
        ...

    def unread(self, texts: Sequence[str]) -> list[list[str]]:
        """Return what each text has that the tokenizer does not know, and the model cannot tell from any other such."""
        ...


class FastEncoder:
    """An `Encoder` of a ``tokenizer.json``.

    It has two copies of the tokenizer, since one that is told to cut cannot be asked for whole texts at the same time;
    the second is made when it is needed.
    """

    def __init__(self, content: str, max_length: int | None = None, side: str = "right") -> None:
        """Set up.

        Args:
            content: of a ``tokenizer.json``.
            max_length: tokens kept of each text; all unless given.
            side: the one that is cut off.

        Raises:
            Exception: if it is no tokenizer, as the library has no other.
        """
        import tokenizers
        from tokenizers import Tokenizer

        self.key = f"{tokenizers.__version__} {max_length} {side} {xxhash.xxh3_128_hexdigest(content.encode())}"
        self._content = content
        self._cutting = Tokenizer.from_str(content)
        self._cutting.no_padding()
        self._cutting.no_truncation()
        if max_length is not None:
            self._cutting.enable_truncation(max_length, direction=side)

    @cached_property
    def _whole(self) -> Tokenizer:
        from tokenizers import Tokenizer

        if self._cutting.truncation is None:
            return self._cutting
        whole = Tokenizer.from_str(self._content)
        whole.no_padding()
        whole.no_truncation()
        return whole

    def columns(self, texts: Sequence[str], names: Sequence[str] = ("input_ids",)) -> dict[str, list[list[int]]]:
        """Return a list a text for each of the names in `COLUMNS`, cut at the maximum length."""
        found: dict[str, list[list[int]]] = {name: [] for name in names}
        for encoding in _encoded(self._cutting, texts):
            for name, rows in found.items():
                rows.append(getattr(encoding, COLUMNS[name]))
        return found

    def count(self, texts: Sequence[str]) -> np.ndarray:
        """Return the number of tokens of each text, special tokens counted, nothing cut, shape (texts,)."""
        return np.fromiter(map(len, _encoded(self._whole, texts)), dtype=np.int64, count=len(texts))

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Return the first and last character of every token of a text, nothing cut; both 0 for special tokens."""
        return list(self._whole.encode(text).offsets)

    def unread(self, texts: Sequence[str]) -> list[list[str]]:
        """Return what each text has that the tokenizer does not know, and the model cannot tell from any other such."""
        unknown = unknown_token(self._whole)
        found: list[list[str]] = []
        for text, encoding in zip(texts, _encoded(self._whole, texts), strict=True):
            found.append([])
            if unknown in encoding.ids:
                encoding = self._whole.encode(text)  # which says where
                pairs = zip(encoding.ids, encoding.offsets, strict=True)
                found[-1] = [text[start:end] for number, (start, end) in pairs if number == unknown]
        return found


def unknown_token(tokenizer: Tokenizer) -> int | None:
    """Return the id of what a tokenizer does not know; none, where it knows everything."""
    model = json.loads(tokenizer.to_str())["model"]
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    token = model.get("unk_token")
    number: int | None = tokenizer.token_to_id(token) if token is not None else None
    return number


def _encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[Encoding]:
    for start in range(0, len(texts), CHUNK):
        yield from tokenizer.encode_batch_fast(list(texts[start : start + CHUNK]))
