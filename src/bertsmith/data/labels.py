"""Link label numbers and label texts both ways, and refuse a label column that is not one."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bertsmith.data.table import MISSING, Labels
from bertsmith.data.texts import refuse_nested
from bertsmith.errors import DataError, listing, quoted, shorten

_INTEGER = re.compile(r"[+-]?\d{1,18}(\.0*)?")
_TOO_LARGE = re.compile(r"[+-]?[1-9]\d{18,}(\.0*)?")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
"""Control characters that are no white space: a terminal could obey them."""
_LEADING_ZERO = re.compile(r"[+-]?0\d+")
_NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?")
_JOINS = tuple(map(re.compile, (r"[;；]", r"\|", r"[,，、]", r"\+", "&", "[·•]", r"[\n\r\t]")))
"""What label texts are joined with. Not ``/``, space or ``-``, which stand in the names of many classes."""
_NUMPY = re.compile(r"""(?<=['"])\s+(?=['"])|(?<=[\d.])\s+(?=\d)""")
"""What separates the items of an array as NumPy prints it: ``['love' 'joy']``, ``[1 2]``."""
_BREAK = re.compile(r"\S[\n\r\t]+\S")
_FEW_JOINED = 3
"""Joined label texts from which on they are no accident."""
_NO_NUMBER = frozenset({"", "na", "n/a", "nan", "null", "none", "nat", "<na>"})


def label_words(values: Iterable[Any], where: str) -> list[str | None]:
    """Read a column as label texts: stripped, white space made single, no control characters, ``None`` where empty.

    Raises:
        DataError: if a cell holds a list or an object, or many cells hold several labels, one a line.
    """
    words: list[str | None] = []
    lines: list[str] = []
    for row, value in enumerate(values, start=1):
        refuse_nested(value, row, where, "--label-column")
        if _is_missing(value):
            words.append(None)
            continue
        whole = _CONTROL.sub("", _as_text(value)).strip()
        lines.append(whole)
        words.append(" ".join(whole.split()) or None)
    if any(map(_BREAK.search, lines)):  # afterwards a line break is a space
        refuse_joined(lines, where)
    return words


def label_numbers(values: Iterable[Any], where: str) -> list[int | None] | None:
    """Read a column as label numbers.

    Returns:
        The numbers, ``None`` where a label is missing; or ``None`` altogether if the column holds words.

    Raises:
        DataError: if the column mixes numbers and words, or holds numbers that are not whole.
    """
    numbers: list[int | None] = []
    fractions: list[tuple[int, str]] = []
    words: list[tuple[int, str]] = []
    missing_words: list[int] = []
    n_numbers = 0
    for row, value in enumerate(values, start=1):
        refuse_nested(value, row, where, "--label-column")
        text = "" if _is_missing(value) else _as_text(value).strip()
        number: int | None = None
        if text.casefold() in _NO_NUMBER:
            if text:
                missing_words.append(row)
        elif isinstance(value, bool | np.bool_) or _LEADING_ZERO.fullmatch(text):
            words.append((row, text))
        elif _INTEGER.fullmatch(text):
            number = int(text.partition(".")[0])
            n_numbers += 1
        elif _TOO_LARGE.fullmatch(text):
            raise DataError(
                f"the label number {shorten(text)} in row {row:,} is too large",
                where=where,
                remedy="Give whole numbers of at most 18 digits, or pass the column as --label-text-column.",
            )
        elif _NUMBER.fullmatch(text) or text.casefold().lstrip("+-") in ("inf", "infinity"):
            fractions.append((row, text))
        else:
            words.append((row, text))
        numbers.append(number)
    if words and (n_numbers or fractions):
        if all(_LEADING_ZERO.fullmatch(text) for _, text in words):
            return None
        refuse_joined([text for _, text in words] + [str(n) for n in numbers if n is not None], where)
        few, many = (words, "numbers") if len(words) <= n_numbers else ([], "words")
        example = few[0] if few else next((row, str(n)) for row, n in enumerate(numbers, 1) if n is not None)
        raise DataError(
            f"the label column mixes numbers and words: most are {many}, but row {example[0]} has {quoted(example[1])}",
            where=where,
            remedy="Correct these labels, or pass the column as --label-text-column to read all of them as words.",
        )
    if words:
        return None
    if fractions:
        row, text = fractions[0]
        raise DataError(
            f"the label column holds numbers that are not whole, such as {shorten(text)} in row {row}: "
            f"it looks like a score ({len({t for _, t in fractions}):,} different ones)",
            where=where,
            remedy="Name the column that holds the classes with --label-column, or cut the scores into classes first.",
        )
    return numbers


def link(
    numbers: Sequence[int | None] | None,
    texts: Sequence[str | None] | None,
    where: str,
    *,
    known: Labels | None = None,
) -> tuple[Labels, np.ndarray]:
    """Link numbers and texts row by row.

    Args:
        numbers: the label number of every row, or ``None`` if there is no such column.
        texts: the label text of every row, or ``None`` if there is no such column.
        where: file and columns, for messages.
        known: the classes of a finished run; every row must then be one of these.

    Returns:
        The classes, and the class index of every row, shape (rows,), −1 where the label is missing.

    Raises:
        DataError: if one number has two texts, one text two numbers, or a label cannot be linked.
    """
    n_rows = len(numbers if numbers is not None else texts or ())
    frame = pd.DataFrame(
        {
            "number": pd.array(list(numbers) if numbers is not None else [None] * n_rows, dtype="Int64"),
            "text": pd.Series(list(texts) if texts is not None else [None] * n_rows, dtype=object),
        }
    )
    pairs = frame.dropna().groupby(["number", "text"], sort=True).size().reset_index(name="rows")
    _check_one_to_one(pairs, where)
    if known is None:
        labels = _new_labels(frame, pairs, where)
    else:
        labels = known
        wrong = [
            f"{number} = {quoted(text)}"
            for number, text in zip(pairs["number"], pairs["text"], strict=True)
            if dict(zip(known.numbers, known.texts, strict=True)).get(number, text) != text
        ]
        if wrong and texts is not None:
            raise DataError(
                f"numbers and label texts are linked in another way than when the model was trained: {listing(wrong)}",
                where=where,
                remedy="Correct the pairs, or leave out the label number column.",
            )
    by_text = {text: index for index, text in enumerate(labels.texts)}
    by_number = {number: index for index, number in enumerate(labels.numbers)}
    # Where there is a text it decides; the number only where there is none.
    targets = frame["text"].map(by_text).astype(float)
    targets = targets.mask(frame["text"].isna(), frame["number"].map(by_number).astype(float))
    unknown = targets.isna() & (frame["text"].notna() | frame["number"].notna())
    if unknown.any():
        odd = frame[unknown]
        named = odd["text"].where(odd["text"].notna(), odd["number"].astype(object))
        rows = "1 row has" if unknown.sum() == 1 else f"{int(unknown.sum()):,} rows have"
        first = int(np.flatnonzero(unknown.to_numpy())[0]) + 1
        raise DataError(
            f"{rows} a label that is not among the classes: {listing(named.unique())} (first in row {first})",
            where=where,
            remedy=f"The classes are {listing(labels.texts, 30)}. Correct these labels or remove the rows.",
        )
    return labels, targets.fillna(MISSING).to_numpy(dtype=np.int64)


def joined(texts: Sequence[str]) -> list[str]:
    """Return the label texts that join several labels, such as ``"love;sadness"`` or ``"['love', 'sadness']"``.

    A text counts if each of its parts is a label of its own: it is a label text, has different places in several texts,
    or occurs in several texts whose parts change places. So ``"Health, Safety"`` does not, unless there are
    ``"Health"`` and ``"Safety"`` too, nor do a level and one below it, such as ``"hotel;price"`` and ``"hotel;staff"``.
    """
    found: list[str] = []
    arrays = {text: "\n".join(_NUMPY.split(text)) if text[:1] + text[-1:] == "[]" else text for text in texts}
    for mark in _JOINS:
        parts = {text: _parts(array, mark) for text, array in arrays.items()}
        places: dict[str, set[int]] = {}
        times: Counter[str] = Counter()
        for text_parts in parts.values():
            for place, part in enumerate(text_parts):
                places.setdefault(part, set()).add(place if len(text_parts) > 1 else -1)
            times.update(set(text_parts))
        recurring = {part for part, n in times.items() if n > 1}
        free = {part for part, at in places.items() if -1 in at or len(at) > 1}
        # Sets in sorted order: few parts but the first and the last keep their place.
        if 3 * sum(len(places[part] - {-1}) > 1 for part in recurring) >= len(recurring):
            free |= recurring
        several = [text for text in texts if len(parts[text]) > 1 and free.issuperset(parts[text])]
        found = max(found, several, key=len)
    return found


def _parts(text: str, mark: re.Pattern[str]) -> list[str]:
    parts = (part.strip(" \r\n\t'\"") for part in mark.split(text.strip("[](){} ")))
    return [part for part in parts if part]


def refuse_joined(texts: Sequence[str], where: str) -> None:
    """Refuse a label column with several labels in a cell.

    Args:
        texts: the label texts, one a row.
        where: file and column, for messages.

    Raises:
        DataError: if so many label texts join others that it is no accident.
    """
    distinct = sorted(set(texts))
    several = joined(distinct)
    if len(several) < max(_FEW_JOINED, len(distinct) / 10):
        return
    rows = sum(map(set(several).__contains__, texts))
    raise DataError(
        f"{rows:,} of {len(texts):,} rows have several labels, such as {listing(several, 3)}: "
        "more than one label for a text is not supported",
        where=where,
        remedy="Keep one label in each row, or leave these rows out. If each combination is a class of its own, "
        "write it without the separator.",
    )


def check_plausible(labels: Labels, targets: np.ndarray, where: str) -> None:
    """Refuse a label column with several labels a row, or with (nearly) a class per row.

    Raises:
        DataError: if there are no labels, if many label texts join others, or if there are fewer than two rows a class
            on average.
    """
    n_rows = int((targets != MISSING).sum())
    if n_rows == 0:
        raise DataError("no row has a label", where=where, remedy="Name the label column with --label-column.")
    refuse_joined([labels.texts[target] for target in targets if target != MISSING], where)
    if n_rows < 2 * len(labels) and len(labels) > 2:
        raise DataError(
            f"the label column has {len(labels):,} different values in {n_rows:,} rows: "
            "nearly every row would be a class of its own",
            where=where,
            remedy="Name the column that holds the classes with --label-column or --label-text-column.",
        )


def _check_one_to_one(pairs: pd.DataFrame, where: str) -> None:
    problems = []
    for one, other, say in (
        ("number", "text", "number {} has the texts"),
        ("text", "number", "text {} has the numbers"),
    ):
        for value, group in pairs.groupby(one, sort=True):
            if len(group) > 1:
                partners = group[other].tolist()
                linked = [f"{quoted(v)} ({n:,} rows)" for v, n in zip(partners, group["rows"], strict=True)]
                problems.append(say.format(quoted(value)) + " " + ", ".join(linked))
    if problems:
        shown = "\n".join(f"  - {p}" for p in problems[:20])
        more = f"\n  - and {len(problems) - 20:,} more" if len(problems) > 20 else ""
        raise DataError(
            f"label numbers and label texts do not go together one to one:\n{shown}{more}",
            where=where,
            remedy="Correct the pairs, or use one of the two columns only (--label-text-column alone takes the words).",
        )


def _new_labels(frame: pd.DataFrame, pairs: pd.DataFrame, where: str) -> Labels:
    texts = sorted(frame["text"].dropna().unique())
    numbers = sorted(int(n) for n in frame["number"].dropna().unique())
    if pairs.empty:
        if texts and numbers:
            raise DataError(
                "some rows have only a label number, others only a label text, and no row has both to link them",
                where=where,
                remedy="Give every file the same label columns.",
            )
        if texts:
            return Labels(tuple(range(len(texts))), tuple(texts))
        return Labels(tuple(numbers), tuple(str(n) for n in numbers))
    linked = {int(n): t for n, t in zip(pairs["number"], pairs["text"], strict=True)}
    lonely: list[object] = [n for n in numbers if n not in linked]
    lonely += [t for t in texts if t not in set(linked.values())]
    if lonely:
        raise DataError(
            f"these labels have no partner anywhere in the table: {listing(lonely)}",
            where=where,
            remedy="Give each number its label text (and each text its number) in at least one row.",
        )
    return Labels(tuple(linked), tuple(linked.values()))


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and math.isnan(value))


def _as_text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
