"""What a model's own tokenizer makes of texts: only the columns the model takes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from bertsmith.model.encoder import Encoder, FastEncoder, Tokens, ends_of
from bertsmith.model.token_cache import cached

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bertsmith.model.load import Loaded


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
