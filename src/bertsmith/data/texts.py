"""Cells as texts: how a cell is read, and how every text is normalised before training and prediction."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from numbers import Number
from typing import Any

from bertsmith.errors import RowError

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


def encodable_text(text: str) -> str:
    """Return a text that any encoding can write: lone surrogates become U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    return text


def texts_of(values: Iterable[Any], where: str, first: int = 1) -> list[str | None]:
    """Read a column as texts: numbers become their digits, missing becomes ``None``.

    Lone surrogates, which no encoding can write, become U+FFFD.

    Args:
        values: the cells.
        where: file and column, for messages.
        first: number of the row of the first of them.

    Raises:
        DataError: if a cell holds a list or an object.
    """
    texts: list[str | None] = []
    for row, value in enumerate(values, start=first):
        refuse_nested(value, row, where, "--text-column")
        if isinstance(value, str):
            texts.append(encodable_text(value))
        elif is_missing(value):
            texts.append(None)
        else:
            texts.append(str(int(value)) if isinstance(value, float) and value.is_integer() else str(value))
    return texts


def is_missing(value: Any) -> bool:
    """Return whether a cell is empty: ``None``, NaN, or what pandas has for it."""
    of_pandas = type(value).__name__ in ("NAType", "NaTType")  # which need not be there
    return value is None or of_pandas or (isinstance(value, Number) and value != value)


def refuse_nested(value: Any, row: int, where: str, flag: str) -> None:
    """Refuse a cell that is no text and no number.

    Raises:
        RowError: if it is a list, an object or bytes.
    """
    if isinstance(value, list | dict | bytes | set | tuple):
        held = "bytes" if isinstance(value, bytes) else f"a {type(value).__name__}"
        raise RowError(
            f"row {row:,} holds {held}, not text",
            where=where,
            remedy=f"Name the column that is meant with {flag}."
            + (" More than one label for a text is not supported." if flag == "--label-column" else ""),
        )
