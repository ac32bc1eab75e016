"""Emoji that a tokenizer does not know, read as their names: 😂 as "face with tears of joy".

A BERT has a token for few of them and reads all others as one and the same unknown token, together with the word they
stand at. Their Unicode names are plain English, which it knows. The names go into the tokenizer itself, before all else
it does to a text, so that whoever loads it reads the same.
"""

from __future__ import annotations

import base64
import json
import re
import struct
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_RANGES = ((0x203C, 0x203C), (0x2049, 0x2049), (0x2600, 0x27BF), (0x2B00, 0x2BFF), (0x1F000, 0x1FAFF))
_SYMBOL = re.compile("[" + "".join(f"{chr(low)}-{chr(high)}" for low, high in _RANGES) + "]")
_SKIN_TONES, _LETTERS, _KEYCAP = range(0x1F3FB, 0x1F400), range(0x1F1E6, 0x1F200), 0x20E3


def with_names(content: str, texts: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Have a tokenizer read symbols it does not know as their names, if one of them is in some texts.

    Args:
        content: of a ``tokenizer.json``.
        texts: to train on.

    Returns:
        The content, and the symbols of the texts that are read otherwise now, with their names; none, where the
        content is as it was.
    """
    there = {symbol for text in texts if not text.isascii() for symbol in _SYMBOL.findall(text)}
    if not there:
        return content, {}
    from tokenizers import Tokenizer

    from bertsmith.model.tokenizer import unknown_token

    tokenizer = Tokenizer.from_str(content)
    unknown = unknown_token(tokenizer)
    names = {
        symbol: name
        for symbol, name in _names().items()
        if unknown is not None
        and unknown in tokenizer.encode(symbol, add_special_tokens=False).ids
        and unknown not in tokenizer.encode(name, add_special_tokens=False).ids
    }
    found = {symbol: names[symbol].strip() for symbol in sorted(there & names.keys())}
    if not found:
        return content, {}
    whole: dict[str, Any] = json.loads(content)
    naming = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(_charsmap(names)).decode()}
    before = whole.get("normalizer")
    whole["normalizer"] = {"type": "Sequence", "normalizers": [naming, before]} if before else naming
    return json.dumps(whole, ensure_ascii=False), found


def add_emoji_names(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> tuple[PreTrainedTokenizerBase, dict[str, str]]:
    """Have a tokenizer of transformers read symbols as `with_names` says; return it, and the symbols with their names.

    It becomes one that is loaded from its ``tokenizer.json`` as it is: those of some model types are built anew from
    their vocabulary, which would lose the names.
    """
    if not tokenizer.is_fast:
        return tokenizer, {}
    content, found = with_names(tokenizer.backend_tokenizer.to_str(), texts)
    if not found:
        return tokenizer, {}
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    named = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(content),
        model_input_names=tokenizer.model_input_names,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        **tokenizer.special_tokens_map,
    )
    return named, found


@cache
def _names() -> dict[str, str]:
    """Return what every symbol is read as; what only changes how another looks, as nothing."""
    names = {}
    for low, high in _RANGES:
        for symbol in map(chr, range(low, high + 1)):
            if name := unicodedata.name(symbol, ""):
                names[symbol] = f" {name.lower().replace('-', ' ')} "
    flags = {chr(code): chr(ord("a") + i) for i, code in enumerate(_LETTERS)}  # two of them are a flag
    return names | flags | {chr(code): "" for code in (*_SKIN_TONES, _KEYCAP)}


def _charsmap(replacements: Mapping[str, str]) -> bytes:
    """Return replacements as the normalizer ``Precompiled`` takes them: SentencePiece's format.

    That is the size in bytes of a double-array trie over the UTF-8 of the keys, the trie, and the replacements, each
    ended by a zero byte. A unit of the trie has the label of the byte that leads to it, whether a key ends there, and
    how far its children lie: at that place, each moved by its label; the value of a key, at label 0, is the place of
    its replacement. (Aoe 1989, IEEE Transactions on Software Engineering 15(9), in the layout of Darts-clone.)
    """
    texts, trie = b"", dict[int, Any]()
    for key, replacement in replacements.items():
        node = trie
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[0] = len(texts)
        texts += replacement.encode() + b"\0"
    units, free = [0] * 256, 1
    taken = {0}
    waiting: list[tuple[dict[int, Any], int]] = [(trie, 0)]
    while waiting:
        node, place = waiting.pop()
        while free in taken:
            free += 1
        at = free
        while any(at ^ label in taken for label in node):
            at += 1
        units += [0] * max(0, (at | 255) + 1 - len(units))
        units[place] |= (place ^ at) << 10 | (0 in node) << 8
        for label, child in node.items():
            taken.add(at ^ label)
            units[at ^ label] = label if label else child | 1 << 31
            if label:
                waiting.append((child, at ^ label))
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + texts
