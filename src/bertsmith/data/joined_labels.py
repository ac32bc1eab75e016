"""Find and separate several labels in a cell."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from bertsmith.data.texts import replace_surrogates, to_text
from bertsmith.errors import DataError, listing

SEPARATORS = {
    name: re.compile(pattern)
    for name, pattern in (
        (";", "[;；]"),
        ("|", r"\|"),
        (",", "[,，、]"),
        ("+", r"\+"),
        ("&", "&"),
        ("·", "[·•]"),
        ("\n", r"[\n\r\t]"),
    )
}
"""Separators between several labels. ``/``, space and ``-`` are missing, since many class names contain them."""
_ITEM = r"""'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+"|[-+]?\d[\d.]*+"""
_PRINTED_ITEM = re.compile(_ITEM, re.DOTALL)
_PRINTED_ITEMS = re.compile(rf"\s*+(?:(?:{_ITEM})(?:\s*+,\s*+|\s++|\Z))*+", re.DOTALL)
"""Strings and numbers, separated by commas as Python prints them, or by white space as NumPy does."""
_MIN_JOINED = 3
"""Fewest distinct joined label texts that count as several labels per row."""


def find_joined(texts: Sequence[str]) -> list[str]:
    """Return the label texts that join several labels, such as ``"love;sadness"`` or ``"['love', 'sadness']"``.

    A text joins labels if each of its parts is a label. A part is a label if it is a label text itself, or has
    different positions in several texts. It is also one if it is in several texts whose parts change positions. So
    ``"Health, Safety"`` is a single label unless ``"Health"`` and ``"Safety"`` are labels. A level and a sublevel, such
    as ``"hotel;price"`` and ``"hotel;staff"``, are single labels.
    """
    found: list[str] = []
    unpacked = dict(zip(texts, unpack_lists(texts), strict=True))
    for separator in SEPARATORS:
        parts = {
            text: split_parts(cell, separator) if isinstance(cell, str) else list(map(to_text, cell))
            for text, cell in unpacked.items()
        }
        positions: dict[str, set[int]] = {}  # −1: the whole text
        n_texts: Counter[str] = Counter()
        for text_parts in parts.values():
            for position, part in enumerate(text_parts):
                positions.setdefault(part, set()).add(position if len(text_parts) > 1 else -1)
            n_texts.update(set(text_parts))
        recurring = {part for part, n in n_texts.items() if n > 1}
        labels = {part for part, found_at in positions.items() if -1 in found_at or len(found_at) > 1}
        # In sorted sets of labels, most parts other than the first and the last change positions.
        if 3 * sum(len(positions[part] - {-1}) > 1 for part in recurring) >= len(recurring):
            labels |= recurring
        joined = [text for text in texts if len(parts[text]) > 1 and labels.issuperset(parts[text])]
        found = max(found, joined, key=len)
    return found


def unpack_lists(cells: Sequence[Any]) -> list[Any]:
    """Return the cells of a column, with a list in place of each printed list, such as ``"['love', 'joy']"``.

    JSON, Python and NumPy print such lists. Words in brackets, such as ``"[love, joy]"``, lose their brackets if every
    filled cell has brackets. Otherwise the brackets belong to the name of a label.
    """
    unpacked = [_parse_list(cell.strip()) if isinstance(cell, str) else cell for cell in cells]
    filled = [cell for cell in unpacked if isinstance(cell, str) and cell]
    if all(_in_brackets(cell) and cell[0] not in cell[1:] and cell[-1] not in cell[:-1] for cell in filled):
        return [cell[1:-1] if isinstance(cell, str) else cell for cell in unpacked]
    return unpacked


def _in_brackets(text: str) -> bool:
    return text[:1] + text[-1:] in ("[]", "()", "{}")


def _parse_list(text: str) -> list[Any] | str:
    """Return the items of a printed list, or the text if it is none."""
    if not _in_brackets(text):
        return text
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        items = None
    inner = text[1:-1]
    # "(1)" is a name: Python prints a tuple of one number with a comma.
    if items is None and _PRINTED_ITEMS.fullmatch(inner) and (text[0] == "[" or inner.strip()[:1] in ("", "'", '"')):
        found = _PRINTED_ITEM.findall(inner)
        try:
            items = [ast.literal_eval(item) if item[0] in "'\"" else item.removesuffix(".") for item in found]
        except (ValueError, SyntaxError):  # a backslash in a file that no program printed
            items = None
    if not isinstance(items, list):
        return text
    return [replace_surrogates(item) for item in items]


def split_parts(text: str, separator: str | None) -> list[str]:
    """Return the labels in a cell, without quotes and outer white space.

    Args:
        text: the cell.
        separator: a key of `SEPARATORS`, or any other string; ``None`` for a cell with one label.
    """
    pattern = SEPARATORS.get(separator or "") or re.compile(re.escape(separator) if separator else r"(?!)")
    parts = (part.strip(" \r\n\t'\"") for part in pattern.split(text))
    return [part for part in parts if part]


def check_single_label(texts: Sequence[str], where: str) -> None:
    """Check that a label column has a single label per row.

    Raises:
        DataError: if at least 3 distinct label texts, and 10 % of them, join several labels.
    """
    distinct = sorted(set(texts))
    joined = find_joined(distinct)
    if len(joined) < max(_MIN_JOINED, len(distinct) / 10):
        return
    n_rows = sum(map(set(joined).__contains__, texts))
    raise DataError(
        f"{n_rows:,} of {len(texts):,} rows have several labels, such as {listing(joined, 3)}",
        where=where,
        remedy="Train with --task multi-label for several labels per text. Or keep one label in each row; if each "
        "combination is a class, write its name without the separator.",
    )
