"""What every text goes through, before training and before prediction."""

from __future__ import annotations

import re
import unicodedata

_SPACES = "\x0b\x0c\x1c\x1d\x1e\x1f\x85"
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff]")


def _replacement(code: int) -> str:
    if chr(code) in _SPACES:
        return " "
    if 0x80 <= code <= 0x9F:  # a Windows-1252 quote or dash that was read as Latin-1
        return bytes([code]).decode("cp1252", errors="ignore")
    return ""


_TABLE = {code: _replacement(code) for code in [*range(0x20), *range(0x7F, 0xA0), 0xFEFF] if _CONTROL.match(chr(code))}


def normalise(text: str) -> str:
    """Return a text in Unicode NFC, without control characters and outer white space.

    Words are never changed: no lower-casing, no stripping of punctuation or stop words.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    if _CONTROL.search(text):
        text = text.translate(_TABLE)
    return text.strip()
