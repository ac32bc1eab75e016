"""Convert cells and metrics to texts, and normalise texts before training and prediction."""

from __future__ import annotations

import base64
import csv
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from numbers import Number
from typing import Any, Literal

from bertsmith.errors import RowError, with_article

_WHITE_SPACE = "\x0b\x0c\x1c\x1d\x1e\x1f\x85"
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff]")
_DECIMAL_COMMA = re.compile(r"[+-]?(\d+(,\d*)?|,\d+)([eE][+-]?\d+)?", re.ASCII)
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}", re.ASCII)
INTEGER = re.compile(r"[+-]?\d{1,18}")
"""A whole number that fits into 64 bits."""
_WHOLE_FLOAT = re.compile(r"[+-]?\d+\.0+", re.ASCII)
MISSING_WORDS = frozenset({"", "na", "n/a", "nan", "null", "none", "nat", "<na>"})
"""What stands for a missing number, in lower case."""
_YES = ("true", "1", "1.0", "1,0", "yes", "wahr", "vrai", "verdadero", "verdadeiro", "vero", "waar")
_NO = ("false", "0", "0.0", "0,0", "no", "falsch", "faux", "falso", "onwaar")
"""Also as Excel writes them in German, French, Spanish, Portuguese, Italian and Dutch."""
_FORMULA = re.compile(r"[=+\-@\t\r]")
_NUMBER = re.compile(
    r"[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?"
    r"|[+-]?\d{1,3}([.,' \u00a0\u202f\u2019])\d{3}(\3\d{3})*((?!\3)[.,]\d*)?",
    re.ASCII,
)
"""Numbers with a decimal point or comma, also with separators of thousands, and nothing else."""


def _replacement(code: int) -> str:
    if chr(code) in _WHITE_SPACE:
        return " "
    if 0x80 <= code <= 0x9F:  # a quote or dash of Windows-1252, decoded as Latin-1
        return bytes([code]).decode("cp1252", errors="ignore")
    return ""


_REPLACEMENTS = {
    code: _replacement(code) for code in [*range(0x20), *range(0x7F, 0xA0), 0xFEFF] if _CONTROL.match(chr(code))
}


def normalise(text: str) -> str:
    """Convert a text to Unicode NFC, and remove control characters and outer white space.

    Words stay as they are: case, punctuation and stop words do not change.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    if _CONTROL.search(text):
        text = text.translate(_REPLACEMENTS)
    return text.strip()


def folded(text: str) -> str:
    """Return a text without case, Unicode form and invisible characters, to compare it with others."""
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    return text.casefold()


def replace_surrogates(value: Any) -> Any:
    """Replace lone surrogates, which no encoding can write, by U+FFFD, also within lists, arrays and objects."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in value)
        return value
    if getattr(getattr(value, "dtype", None), "kind", "") in ("O", "U"):  # not a tensor, which holds numbers
        value = value.tolist()
    if isinstance(value, list | tuple | set):
        kind = next(kind for kind in (list, tuple, set) if isinstance(value, kind))
        return kind(map(replace_surrogates, value))
    if isinstance(value, dict):
        return {replace_surrogates(key): replace_surrogates(entry) for key, entry in value.items()}
    return value


def to_texts(cells: Iterable[Any], where: str, first_row: int = 1, *, flag: str = "--text-column") -> list[str | None]:
    """Convert a column to texts: whole numbers are written as integers, missing cells become ``None``.

    Args:
        cells: the cells of the column.
        where: file and column, for messages.
        first_row: the number of the first cell's row.
        flag: the flag that names the column, for messages.

    Raises:
        RowError: if a cell holds a list, an object or bytes.
    """
    texts: list[str | None] = []
    for row, cell in enumerate(cells, start=first_row):
        check_scalar(cell, row, where, flag)
        texts.append(None if is_missing(cell) else replace_surrogates(to_text(cell)))
    return texts


def to_text(cell: Any) -> str:
    """Convert a cell to a text; a whole number is written as an integer."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def group_name(cell: Any, *, unite_numbers: bool = True) -> str:
    """Return the group that a cell names, ``""`` if it is missing: white space and Unicode form do not matter.

    If ``unite_numbers``, the texts ``7`` and ``7.0`` name the same group.
    """
    text = "" if is_missing(cell) else " ".join(normalise(to_text(cell)).split())
    return text.partition(".")[0] if unite_numbers and _WHOLE_FLOAT.fullmatch(text) else text


def with_decimal_points(cells: Sequence[Any]) -> Sequence[Any]:
    """Return numbers with decimal commas as numbers with decimal points, and any other column unchanged.

    Commas are decimal commas if all filled cells are numbers, none of them has a decimal point, and a comma cannot
    separate thousands: ``2,5`` can only be a decimal, ``1,234`` can be both.
    """
    texts = [cell.strip() for cell in cells if isinstance(cell, str) and cell.strip().casefold() not in MISSING_WORDS]
    others = (cell for cell in cells if not isinstance(cell, str) and not is_missing(cell))
    if (
        any("," in text and not _THOUSANDS.fullmatch(text) for text in texts)
        and all(map(_DECIMAL_COMMA.fullmatch, texts))
        and all(isinstance(cell, Number) and not isinstance(cell, bool) for cell in others)
    ):
        return [cell.replace(",", ".") if isinstance(cell, str) else cell for cell in cells]
    return cells


def is_missing(cell: Any) -> bool:
    """Return whether a cell is ``None``, NaN, or a missing value of pandas."""
    is_pandas_missing = type(cell).__name__ in ("NAType", "NaTType")  # by name, so as not to import pandas
    return cell is None or is_pandas_missing or (isinstance(cell, Number) and cell != cell)


def to_truth(cell: Any) -> bool | None:
    """Return whether a cell says true; ``None`` if it says neither true nor false."""
    text = str(cell).strip().casefold()
    return True if text in _YES else False if text in _NO else None


def json_ready(value: Any) -> Any:
    """Return a value for JSON: missing values and numbers that are not finite are null, bytes are Base64."""
    if is_missing(value):
        return None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {str(key): json_ready(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set):
        return [json_ready(entry) for entry in value]
    if hasattr(value, "tolist"):  # an array or a number of NumPy
        return json_ready(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def not_scalar(cell: Any) -> str:
    """Return what a cell holds, such as ``"a list"``, if it is neither a text nor a number; else ``""``."""
    if isinstance(cell, list | dict | bytes | set | tuple) or getattr(cell, "ndim", 0) > 0:
        return "bytes" if isinstance(cell, bytes) else with_article(cell)
    return ""


def check_scalar(cell: Any, row: int, where: str, flag: str) -> None:
    """Check that a cell is a text or a number.

    Raises:
        RowError: if the cell holds a list, an array, an object or bytes.
    """
    if found := not_scalar(cell):
        raise RowError(
            f"row {row:,} holds {found}, not text",
            where=where,
            remedy=f"Name another column with {flag}"
            + (", or train with --task multi-label for lists of labels." if flag == "--label-column" else "."),
        )


def quoting(values: Iterable[Any]) -> Literal[0, 1]:
    """Return the ``csv`` quoting of a row: all cells if one has a carriage return, which ``csv`` does not quote."""
    has_return = any(isinstance(value, str) and "\r" in value for value in values)
    return csv.QUOTE_ALL if has_return else csv.QUOTE_MINIMAL


def guarded_cell(cell: Any) -> Any:
    """Put an apostrophe before a cell that a spreadsheet would evaluate as a formula.

    Such cells begin with ``=``, ``+``, ``-``, ``@``, a tab or a carriage return and are not numbers (OWASP, CSV
    Injection).
    """
    if isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBER.fullmatch(cell):
        return f"'{cell}"
    return cell


def unguarded_cell(cell: str) -> str:
    """Remove the apostrophe of `guarded_cell`."""
    return cell[1:] if guarded_cell(cell[1:]) == cell else cell


def show_interval(interval: Sequence[float] | None) -> str:
    """Return the interval of a metric as ``low to high``, or a dash."""
    return " to ".join(map(decimals, interval)) if interval else "–"


def signed_interval(interval: Sequence[float] | None) -> str:
    """Return the interval of a difference as ``[low, high]`` with signs."""
    return "[{:+.3f}, {:+.3f}]".format(*interval) if interval else "(no interval)"


def decimals(value: float | None) -> str:
    """Return a metric with three decimals, or a dash if it is undefined.

    Metrics in the unit of the labels can have any size. Below 0.01, the text has three significant digits,
    and from 1,000, no decimals. Below 1e-12, a value is a rounding error.
    """
    if value is None:
        return "–"
    return f"{value:.3g}" if 1e-12 < abs(value) < 0.01 else f"{value:,.{0 if abs(value) >= 1000 else 3}f}"
