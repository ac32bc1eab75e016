"""Texts to token ids with the tokenizers library. Needs no torch."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from bertsmith.data.template import Text, segments
from bertsmith.model.tokens import Tokens

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase

    from bertsmith.model.load import LoadedModel

CHUNK = 1000
"""Texts tokenized at once: enough for the threads of the tokenizer, and little memory."""
COLUMNS = {"input_ids": "ids", "token_type_ids": "type_ids"}
"""Inputs of a model, by name, with their names in the tokenizers library."""
PARTS = "parts"


class Encoder:
    """Turns texts into token ids with the tokenizers library, from the content of a ``tokenizer.json``. Thread-safe.

    Attributes:
        unknown_id: id of the unknown token; ``None`` if the tokenizer has none.
        special_counts: number of special tokens before and after a text or a pair.
        truncates_left: whether truncation removes the beginning.
        by_line: whether lines are parts of a text, of which truncation cuts the longest first; see `Template.by_line`.

    Raises:
        Exception: if the content is not a tokenizer; the library raises plain ``Exception``.
    """

    truncates_left = by_line = False

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
    def key(self) -> str | None:
        """Identifies the tokenizer and its settings; ``None`` if unknown."""
        import tokenizers

        digest = xxhash.xxh3_128_hexdigest(self._tokenizer.to_str().encode())
        return f"{tokenizers.__version__} {self.truncates_left} {self.by_line} {digest}"

    def tokenize(self, texts: Sequence[Text], names: Sequence[str]) -> dict[str, list[list[int]]]:
        """Tokenize texts without truncation.

        Returns:
            One list per text, for each of the names in `COLUMNS`. For pairs, or if ``by_line``, also the number of
            tokens of each part, under `PARTS`.
        """
        encode = self._tokenizer.encode_batch if self.by_line else self._tokenizer.encode_batch_fast  # no offsets
        encodings = encode(list(texts))
        rows = {name: [getattr(encoding, COLUMNS[name]) for encoding in encodings] for name in names}
        if self.by_line or (texts and isinstance(texts[0], tuple)):
            rows[PARTS] = [
                _count_parts(text, encoding, by_line=self.by_line)
                for text, encoding in zip(texts, encodings, strict=True)
            ]
        return rows

    def unknown_words(self, text: str) -> list[str]:
        """Return the parts of a text that become the unknown token."""
        encoding = self._tokenizer.encode(text)
        pairs = zip(encoding.ids, encoding.offsets, strict=True)
        return [text[start:end] for token_id, (start, end) in pairs if token_id == self.unknown_id]

    def encode(
        self, texts: Sequence[Text], names: Sequence[str] = ("input_ids",), max_length: int | None = None
    ) -> Tokens:
        """Tokenize n texts or pairs, and truncate them unless ``max_length`` is ``None``; see `tokenize`."""
        parts = []
        for start in range(0, max(len(texts), 1), CHUNK):
            rows = self.tokenize(texts[start : start + CHUNK], names)
            if not any(self.special_counts):
                self._fill_empty(rows)
            lengths = rows.pop(PARTS, None)
            part = Tokens.from_lists(rows, self, lengths)
            parts.append(part if max_length is None else part.truncate(max_length))
        return Tokens.concatenate(parts)

    def _fill_empty(self, rows: dict[str, list[list[int]]]) -> None:
        """Give texts without tokens the unknown token: a model reads at least one token."""
        for i, ids in enumerate(rows["input_ids"]):
            if not ids:
                for name, values in rows.items():
                    values[i] = [*values[i][:-1], 1] if name == PARTS else [0]
                rows["input_ids"][i] = [self.unknown_id or 0]


_LOCK = threading.Lock()
"""For tokenizers in Python, which are not thread-safe. An encoder with a lock of its own could not be pickled."""


class _PythonEncoder(Encoder):
    """An `Encoder` for tokenizers in Python. They do not know where a token comes from, so lines are not parts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.key, self.unknown_id = None, tokenizer.unk_token_id
        self.truncates_left = tokenizer.truncation_side == "left"
        self.special_counts = _count_special(
            *(tokenizer("a", add_special_tokens=flag)["input_ids"] for flag in (True, False))
        )

    def tokenize(self, texts: Sequence[Text], names: Sequence[str]) -> dict[str, list[list[int]]]:
        if not texts:
            return {name: [] for name in names}
        columns = [list(column) for column in zip(*map(segments, texts), strict=True)]
        with _LOCK:
            encoded = self.tokenizer(*columns, truncation=False, verbose=False)
            rows = {name: encoded[name] for name in names}
            if len(columns) == 2:
                parts = [self.tokenizer(c, add_special_tokens=False, verbose=False)["input_ids"] for c in columns]
                rows[PARTS] = [[len(a), len(b)] for a, b in zip(*parts, strict=True)]
        return rows

    def unknown_words(self, text: str) -> list[str]:
        with _LOCK:
            pieces = self.tokenizer.tokenize(text)
            ids = self.tokenizer.convert_tokens_to_ids(pieces)
        return [piece for piece, token_id in zip(pieces, ids, strict=True) if token_id == self.unknown_id]


def encoder_for(tokenizer: PreTrainedTokenizerBase, *, by_line: bool = False) -> Encoder:
    """Return an encoder that gives the token ids of a tokenizer of transformers, but faster."""
    if tokenizer.is_fast:
        return Encoder(tokenizer.backend_tokenizer.to_str(), tokenizer.truncation_side, by_line=by_line)
    return _PythonEncoder(tokenizer)


def encode(texts: Sequence[Text], loaded: LoadedModel, *, truncate: bool = True) -> Tokens:
    """Tokenize texts with the tokenizer and inputs of a model; truncation at its maximum length saves memory."""
    encoder = encoder_for(loaded.tokenizer, by_line=loaded.template.by_line)
    return encoder.encode(texts, loaded.columns, loaded.max_length if truncate else None)


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


def _count_parts(text: Text, encoding: Encoding, *, by_line: bool) -> list[int]:
    """Return the number of tokens of each part of a text or pair, without special tokens.

    If ``by_line``, the lines of the first segment are parts, and the encoding needs offsets.
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
