"""Parse label columns, link label numbers to label texts, and refuse columns that do not hold classes."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bertsmith.data.joined_labels import check_single_label
from bertsmith.data.table import MISSING, Labels
from bertsmith.data.texts import MISSING_WORDS, check_scalar, is_missing, to_text, with_decimal_points
from bertsmith.errors import DataError, counted, listing, quoted, shorten

_INTEGER = re.compile(r"[+-]?\d{1,18}(\.0*)?")
_TOO_LARGE = re.compile(r"[+-]?[1-9]\d{18,}(\.0*)?")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
"""Control characters other than white space, which a terminal might interpret."""
LEADING_ZERO = re.compile(r"[+-]?0\d+")
"""A label such as 007, which is a text, because the number 7 is another label."""
_NUMBER = re.compile(r"[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?")
_LEVELS = (
    " For ordered classes, number them 1, 2, 3. Write values such as 1.5 into a column Label Text, and pass "
    "--task ordinal."
)
MANY_LEVELS = 20
"""Above this number of values, a column with fractions does not hold ordered classes."""
_LINE_BREAK = re.compile(r"\S[\n\r\t]+\S")
USE_POINTS = "Write decimals with a point, and thousands without a separator."
"""Remedy for numbers whose commas can be decimal commas or separate thousands."""


def parse_label_texts(cells: Iterable[Any], where: str) -> list[str | None]:
    """Parse a column of label texts.

    White space is normalised and control characters are removed.

    Returns:
        The label texts, ``None`` for empty cells.

    Raises:
        DataError: if a cell holds a list or an object, or many cells hold several labels, one per line.
    """
    texts: list[str | None] = []
    originals: list[str] = []
    for row, cell in enumerate(cells, start=1):
        check_scalar(cell, row, where, "--label-column")
        if is_missing(cell):
            texts.append(None)
            continue
        original = _CONTROL.sub("", to_text(cell)).strip()
        originals.append(original)
        texts.append(" ".join(original.split()) or None)
    if any(map(_LINE_BREAK.search, originals)):  # now, since line breaks became spaces
        check_single_label(originals, where)
    return texts


def parse_label_numbers(cells: Iterable[Any], where: str, named: Collection[str] = ()) -> list[int | None] | None:
    """Parse a column of label numbers; decimal commas are read as `with_decimal_points` does.

    ``NA``, ``None`` and similar words are missing numbers. In a column of words, they are label texts.

    Args:
        cells: the cells of the column.
        where: file and column, for messages.
        named: the known label texts, if they are words. A column with no other cells than ``None`` then holds words.

    Returns:
        The numbers, ``None`` for missing labels; or ``None`` if the column holds words.

    Raises:
        DataError: if the column mixes numbers and words, or its numbers are not integers or too large.
    """
    numbers: list[int | None] = []
    fractions: list[tuple[int, str]] = []
    words: list[tuple[int, str]] = []
    n_numbers = n_unclear = 0
    written = list(cells)
    read = with_decimal_points(written)
    for row, (cell, number_cell) in enumerate(zip(written, read, strict=True), start=1):
        check_scalar(cell, row, where, "--label-column")
        text = "" if is_missing(cell) else to_text(cell).strip()
        value = to_text(number_cell).strip()
        number: int | None = None
        if text.casefold() in MISSING_WORDS and text not in named:
            n_unclear += bool(text)
        elif isinstance(cell, bool | np.bool_) or LEADING_ZERO.fullmatch(text):
            words.append((row, text))
        elif _INTEGER.fullmatch(value):
            number = int(value.partition(".")[0])
            n_numbers += 1
        elif _TOO_LARGE.fullmatch(text):
            raise DataError(
                f"the label number {shorten(text)} in row {row:,} is too large",
                where=where,
                remedy="Use integers of at most 18 digits, or pass the column as --label-text-column.",
            )
        elif _NUMBER.fullmatch(text) or text.casefold().lstrip("+-") in ("inf", "infinity"):
            fractions.append((row, text))
        else:
            words.append((row, text))
        numbers.append(number)
    if words and (n_numbers or fractions):
        if all(LEADING_ZERO.fullmatch(text) for _, text in words):
            return None
        check_single_label([text for _, text in words] + [str(n) for n in numbers if n is not None], where)
        if len(words) <= n_numbers:
            majority, (row, example) = "numbers", words[0]
        else:
            majority = "label texts"
            row, example = next((row, str(n)) for row, n in enumerate(numbers, 1) if n is not None)
        raise DataError(
            f"the label column mixes numbers and label texts: most are {majority}, but row {row} has {quoted(example)}",
            where=where,
            remedy="Correct these labels, or pass the column as --label-text-column to read all as label texts.",
        )
    if words or (named and n_unclear and not n_numbers and not fractions):
        return None
    if fractions:
        row, text = fractions[0]
        n_distinct = len({text for _, text in fractions} | {str(n) for n in numbers if n is not None})
        infinite = next((text for _, text in fractions if "inf" in text.casefold()), None)
        is_unclear = read is written and any("," in text for _, text in fractions)
        raise DataError(
            f"the label column holds numbers that are not integers, such as {shorten(text)} in row {row}: the column "
            f"looks like a score ({counted(n_distinct, 'different value')})",
            where=where,
            remedy=("" if infinite is None else f"Correct or remove {infinite}. ")
            + (f"{USE_POINTS} Then train" if is_unclear else "Train")
            + " with --task regression to predict the number, or name the column of the classes with --label-column."
            + (_LEVELS if n_distinct <= MANY_LEVELS else ""),
        )
    return numbers


def link_labels(
    numbers: Sequence[int | None] | None,
    texts: Sequence[str | None] | None,
    where: str,
    *,
    known: Labels | None = None,
    rows: np.ndarray | None = None,
) -> tuple[Labels, np.ndarray]:
    """Link label numbers and label texts row by row.

    Args:
        numbers: the label number of every row, or ``None`` without such a column.
        texts: the label text of every row, or ``None`` without such a column.
        where: file and columns, for messages.
        known: the classes of a finished run, to which the labels must belong.
        rows: position of the row of each label, for messages, if a row can have several labels.

    Returns:
        The classes, and the class index of every row, shape (rows,), −1 if the label is missing.

    Raises:
        DataError: if a number has two texts, a text has two numbers, or a label cannot be linked.
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
        by_number = dict(zip(known.numbers, known.texts, strict=True)) if known.numbered else {}
        wrong = [
            f"{number} = {quoted(text)}"
            for number, text in zip(pairs["number"], pairs["text"], strict=True)
            if by_number.get(number, text) != text
        ]
        if wrong and texts is not None:
            raise DataError(
                f"label numbers and label texts are paired differently than in training: {listing(wrong)}",
                where=where,
                remedy="Correct the pairs, or remove the column of label numbers.",
            )
    text_index = labels.label2id
    number_index = {number: index for index, number in enumerate(labels.numbers)}
    if not labels.numbered:  # a number has the text of other rows, or is the text itself, such as a year
        linked = dict(zip(pairs["number"], pairs["text"], strict=True))
        named = {n: linked.get(n, str(n)) for n in frame["number"].dropna().unique()}
        number_index = {n: text_index[text] for n, text in named.items() if text in text_index}
    # The number decides only where the text is missing.
    targets = frame["text"].map(text_index).astype(float)
    targets = targets.mask(frame["text"].isna(), frame["number"].map(number_index).astype(float))
    is_unknown = targets.isna() & (frame["text"].notna() | frame["number"].notna())
    if is_unknown.any():
        unknown = frame[is_unknown]
        names = unknown["text"].where(unknown["text"].notna(), unknown["number"].astype(object))
        n_wrong = len(unknown) if rows is None else len(np.unique(rows[unknown.index]))
        n_unknown = counted(n_wrong, "row has", "rows have")
        first = int(unknown.index[0] if rows is None else rows[unknown.index[0]]) + 1
        remedy = "Correct these labels. If the table is not a random sample, you can also remove the rows."
        if not labels.numbered and unknown["text"].isna().all():
            remedy = "The run was trained on label texts, which have no numbers: add a column with the label texts."
        raise DataError(
            f"{n_unknown} an unknown label: {listing(names.unique())} (first in row {first})",
            where=where,
            remedy=f"The classes are {listing(labels.texts, 30)}. {remedy}",
        )
    return labels, targets.fillna(MISSING).to_numpy(dtype=np.int64)


def check_classes(labels: Labels, targets: np.ndarray, where: str) -> None:
    """Check that a label column holds classes.

    Args:
        labels: the classes.
        targets: the class index of every row, shape (rows,).
        where: file and columns, for messages.

    Raises:
        DataError: if rows have several labels, or as for `check_labelled`.
    """
    given = targets[targets != MISSING]
    check_single_label([labels.texts[target] for target in given], where)
    remedy = "Name the column of the classes with --label-column or --label-text-column."
    check_labelled(len(given), len(labels), where, remedy)


def check_labelled(n_rows: int, n_labels: int, where: str, remedy: str = "") -> None:
    """Check that rows have labels, and at least two rows per label on average if there are several labels.

    Raises:
        DataError: if they have not.
    """
    if not n_labels:
        remedy = "Name the label column with --label-column or --label-columns."
        raise DataError("no row has a label", where=where, remedy=remedy)
    if n_rows < 2 * n_labels and n_labels > 2:
        raise DataError(
            f"the label column has {n_labels:,} different labels in {n_rows:,} rows: "
            "nearly every row would have a separate label",
            where=where,
            remedy=remedy,
        )


def _check_one_to_one(pairs: pd.DataFrame, where: str) -> None:
    problems = []
    for one, other in (("number", "text"), ("text", "number")):
        for value, group in pairs.groupby(one, sort=True):
            if len(group) > 1:
                linked = [
                    f"{quoted(v)} ({counted(n, 'row')})"
                    for v, n in zip(group[other].tolist(), group["rows"], strict=True)
                ]
                problems.append(f"{one} {quoted(value)} has the {other}s {', '.join(linked)}")
    if problems:
        shown = "\n".join(f"  - {p}" for p in problems[:20])
        more = f"\n  - and {len(problems) - 20:,} more" if len(problems) > 20 else ""
        raise DataError(
            f"label numbers and label texts are not paired one to one:\n{shown}{more}",
            where=where,
            remedy="Correct the pairs, or use only one of the columns (--label-text-column to use the label texts).",
        )


def _new_labels(frame: pd.DataFrame, pairs: pd.DataFrame, where: str) -> Labels:
    texts = sorted(frame["text"].dropna().unique())
    numbers = sorted(int(n) for n in frame["number"].dropna().unique())
    if pairs.empty:
        if texts and numbers:
            raise DataError(
                "some rows have only a label number, others only a label text, and no row has both",
                where=where,
                remedy="Give every file the same label columns.",
            )
        if texts:
            return Labels(tuple(range(len(texts))), tuple(texts), numbered=False)
        return Labels(tuple(numbers), tuple(str(n) for n in numbers))
    linked = {int(n): t for n, t in zip(pairs["number"], pairs["text"], strict=True)}
    unpaired: list[object] = [n for n in numbers if n not in linked]
    unpaired += [t for t in texts if t not in set(linked.values())]
    if unpaired:
        raise DataError(
            f"these labels are not paired with a number or text in any row: {listing(unpaired)}",
            where=where,
            remedy="Give each number its label text, and each text its number, in at least one row.",
        )
    return Labels(tuple(linked), tuple(linked.values()))
