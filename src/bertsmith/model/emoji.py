"""Teach a tokenizer to read unknown emoji as their Unicode names: 😂 as "face with tears of joy".

BERT has tokens for few emoji and reads all others as the unknown token, together with the adjacent word. The names are
plain English, which it knows. They become part of the tokenizer, as its first normalizer, so any library reads them.
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
_EMOJI = re.compile("[" + "".join(f"{chr(low)}-{chr(high)}" for low, high in _RANGES) + "]")
_SKIN_TONES, _LETTERS = range(0x1F3FB, 0x1F400), range(0x1F1E6, 0x1F200)
_KEYCAP, _AS_TEXT, _AS_PICTURE = 0x20E3, 0xFE0E, 0xFE0F


def add_names_to_json(content: str, texts: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Make a tokenizer read unknown emoji as their names, if at least one of them occurs in the training texts.

    Return the new content of the ``tokenizer.json``, and the names of the unknown emoji in the texts.
    """
    occurring = {emoji for text in texts if not text.isascii() for emoji in _EMOJI.findall(text)}
    if not occurring:
        return content, {}
    from tokenizers import Tokenizer

    from bertsmith.model.tokenizer import unknown_token_id

    tokenizer = Tokenizer.from_str(content)
    unknown_id = unknown_token_id(tokenizer)
    names = {
        emoji: name
        for emoji, name in _names().items()
        if unknown_id is not None
        and unknown_id in tokenizer.encode(emoji, add_special_tokens=False).ids
        and unknown_id not in tokenizer.encode(name, add_special_tokens=False).ids
    }
    used = {emoji: names[emoji].strip() for emoji in sorted(occurring & names.keys())}
    if not used:
        return content, {}
    parsed: dict[str, Any] = json.loads(content)
    first = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(_charsmap(names)).decode()}
    original = parsed.get("normalizer")
    parsed["normalizer"] = {"type": "Sequence", "normalizers": [first, original]} if original else first
    return json.dumps(parsed, ensure_ascii=False), used


def add_emoji_names(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> tuple[PreTrainedTokenizerBase, dict[str, str]]:
    """Apply `add_names_to_json` to a tokenizer of transformers; return the tokenizer and the names by emoji.

    The new tokenizer is a plain `PreTrainedTokenizerFast`. Tokenizers of some model types are rebuilt from their
    vocabulary when they are loaded, which would lose the names.
    """
    if not tokenizer.is_fast:
        return tokenizer, {}
    content, names = add_names_to_json(tokenizer.backend_tokenizer.to_str(), texts)
    if not names:
        return tokenizer, {}
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    kept = ("model_input_names", "model_max_length", "padding_side", "truncation_side")
    settings = tokenizer.special_tokens_map | {name: getattr(tokenizer, name) for name in kept}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(content), **settings), names


@cache
def _names() -> dict[str, str]:
    """Return the replacement of every emoji; modifiers such as skin tones are replaced by nothing."""
    names = {}
    for low, high in _RANGES:
        for emoji in map(chr, range(low, high + 1)):
            if name := unicodedata.name(emoji, ""):
                names[emoji] = f" {name.lower().replace('-', ' ')} "
    flags = {chr(code): chr(ord("a") + i) for i, code in enumerate(_LETTERS)}  # a flag is a pair of letters
    return names | flags | {chr(code): "" for code in (*_SKIN_TONES, _KEYCAP, _AS_TEXT, _AS_PICTURE)}


def _charsmap(replacements: Mapping[str, str]) -> bytes:
    """Encode replacements for the normalizer ``Precompiled``, in the format of SentencePiece.

    The format: size in bytes of a double-array trie, the trie, and the replacements, each with a trailing zero byte.
    The keys of the trie are in UTF-8. A unit has the byte that leads to it, a flag for the end of a key, and the offset
    of its children. The child for a byte is at the base XOR the byte. The child for byte 0 holds the position of the
    replacement. See Aoe 1989, IEEE Transactions on Software Engineering 15(9), and Darts-clone.
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
    pending: list[tuple[dict[int, Any], int]] = [(trie, 0)]
    while pending:
        node, index = pending.pop()
        while free in taken:
            free += 1
        base = free
        while any(base ^ label in taken for label in node):
            base += 1
        units += [0] * ((base | 255) + 1 - len(units))
        units[index] |= (index ^ base) << 10 | (0 in node) << 8
        for label, child in node.items():
            taken.add(base ^ label)
            units[base ^ label] = label if label else child | 1 << 31
            if label:
                pending.append((child, base ^ label))
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + texts
