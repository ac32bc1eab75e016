"""Parse tables whose rows have any number of labels: lists, delimited cells, or a column of 0 and 1 per label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bertsmith.config import DataConfig
from bertsmith.data.joined_labels import SEPARATORS, split_parts, unpack_lists
from bertsmith.data.labels import LEADING_ZERO, check_labelled, link_labels
from bertsmith.data.outcomes import LabelSets
from bertsmith.data.table import MISSING, MULTI_LABEL, Labels, Note, Part, ReadLabels
from bertsmith.data.texts import INTEGER, is_missing, to_text
from bertsmith.errors import DataError, counted, listing, quoted, shorten, with_article

_INDICATORS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
_AMBIGUOUS = 0.5
"""A second separator is ambiguous if it splits at least this share of the cells that the first one splits."""

RowLabels = list[str] | None
"""The labels of a row; ``None`` if they are missing."""


def is_list(cell: Any) -> bool:
    """Return whether a cell is a list of labels; an array without dimensions is a scalar."""
    return isinstance(cell, list | tuple | set) or (isinstance(cell, np.ndarray) and cell.ndim > 0)


def read_label_sets(parts: Sequence[Part], where: str, config: DataConfig, known: Labels | None) -> ReadLabels:
    """Read any number of labels per row.

    A list without items means that a text has none of the labels. An empty cell means the same, except in a column in
    which all other cells are lists: there, the labels are missing.

    Args:
        parts: the files.
        where: files and columns, for messages.
        config: the separator between labels in a cell, found by default.
        known: the classes of a finished run, to which the labels must belong.

    Raises:
        DataError: if a cell does not hold labels, the separator is ambiguous, or no row has a label.
    """
    if parts[0].columns.labels:
        return _read_indicators(parts, where, known)
    notes: tuple[Note, ...] = ()
    by_role: dict[str, list[list[RowLabels] | None]] = {}
    for role in ("label", "label_text"):
        columns = [getattr(part.columns, role) for part in parts]
        cells = [[] if c is None else part.raw.frame[c].tolist() for part, c in zip(parts, columns, strict=True)]
        unpacked = unpack_lists([cell for some in cells for cell in some])
        used = config.label_separator or _find_separator(unpacked, where)
        rest = iter(unpacked)
        by_role[role] = [
            None
            if column is None
            else _split_cells(
                given := [next(rest) for _ in some],
                used,
                f"{part.name}, column {quoted(column)}",
                has_lists=any(map(is_list, some)) or (any(map(is_list, given)) and all(map(_is_list_or_blank, given))),
            )
            for part, column, some in zip(parts, columns, cells, strict=True)
        ]
        if used is not None and any(columns):
            n = sum(len(labels or ()) > 1 for some in by_role[role] for labels in some or ())
            notes += (Note("info", f"labels are separated by {used!r}; rows with several labels: {n:,}", n),)
    rows, numbers, texts = _link_columns(parts, by_role["label"], by_role["label_text"], where)
    row_numbers = np.repeat(np.arange(len(rows)), [len(row or ()) for row in rows])
    labels, flat = link_labels(numbers, texts, where, known=known, rows=row_numbers)
    if known is None:
        remedy = "Name the column of the labels with --label-column, or their separator with --label-separator."
        check_labelled(sum(row is not None for row in rows), len(labels), where, remedy)
    return ReadLabels(MULTI_LABEL, labels, *_code(rows, flat, labels), notes)


def _link_columns(
    parts: Sequence[Part],
    with_numbers: Sequence[list[RowLabels] | None],
    with_texts: Sequence[list[RowLabels] | None],
    where: str,
) -> tuple[list[RowLabels], list[int | None], list[str | None]]:
    """Return the labels of all rows, and the numbers and the texts of all these labels, in order."""
    rows: list[RowLabels] = []
    numbers: list[int | None] = []
    texts: list[str | None] = []
    items = {label for some in with_numbers for row in some or () for label in row or ()}
    is_number = all(INTEGER.fullmatch(item) and not LEADING_ZERO.fullmatch(item) for item in items)
    if not is_number and any(some is not None for some in with_texts):
        raise DataError(
            "the column of label numbers holds label texts", where=where, remedy="Pass only --label-text-column."
        )
    for part, numbered, named in zip(parts, with_numbers, with_texts, strict=True):
        names = part.raw.class_names.get(part.columns.label or "")
        if names is not None and numbered is not None and is_number:  # -1 is a missing label
            numbered = [row if row is None or all(0 <= int(n) < len(names) for n in row) else None for row in numbered]
        for row, (a, b) in enumerate(zip(numbered or (), named or (), strict=False), start=1):
            if len(a or ()) != len(b or ()):
                raise DataError(
                    f"row {row:,} has {counted(len(a or ()), 'label number')} and "
                    f"{counted(len(b or ()), 'label text')}",
                    where=where,
                    remedy="Give each label a number and a text, in the same order, or name only one column.",
                )
        used = named if named is not None else numbered or []
        given = [label for row in used for label in row or ()]
        values = [int(n) for row in numbered or () for n in row or ()] if is_number else []
        rows += used
        numbers += values or [None] * len(given)
        if names is not None and named is None and is_number:
            texts += [names[n] for n in values]
        else:
            texts += given if named is not None or not is_number else [None] * len(given)
    return rows, numbers, texts


def _code(rows: Sequence[RowLabels], flat: Sequence[int] | np.ndarray, labels: Labels) -> tuple[LabelSets, np.ndarray]:
    """Return the distinct label sets and the code of every row, from the class indices of all labels of all rows."""
    indicators = np.zeros((len(rows), len(labels)), dtype=bool)
    indicators[np.repeat(np.arange(len(rows)), [len(row or ()) for row in rows]), np.asarray(flat, dtype=np.int64)] = (
        True
    )
    present = np.array([row is not None for row in rows], dtype=bool)
    sets, codes = np.unique(indicators[present], axis=0, return_inverse=True)
    result = np.full(len(rows), MISSING)
    result[present] = codes.reshape(-1)
    return LabelSets(sets), result


def _split_cells(cells: Sequence[Any], separator: str | None, where: str, *, has_lists: bool) -> list[RowLabels]:
    """Return the labels of every row, without repetitions. With ``has_lists``, an empty cell is a missing label."""
    rows: list[RowLabels] = []
    for row, cell in enumerate(cells, start=1):
        if is_list(cell):
            items = [_item(item, row, where) for item in cell]
        elif isinstance(cell, dict | bytes):
            raise DataError(
                f"row {row:,} holds {'bytes' if isinstance(cell, bytes) else 'an object'}, not labels",
                where=where,
                remedy="Use a list of labels in each row.",
            )
        elif _is_list_or_blank(cell):
            rows.append(None if has_lists else [])
            continue
        elif has_lists:
            raise DataError(
                f"row {row:,} holds {shorten(repr(cell))}, but other rows hold lists of labels",
                where=where,
                remedy="Use a list in each row.",
            )
        else:
            items = [_item(item, row, where) for item in split_parts(to_text(cell), separator)]
        rows.append(list(dict.fromkeys(filter(None, items))))
    return rows


def _is_list_or_blank(cell: Any) -> bool:
    return is_list(cell) or is_missing(cell) or (isinstance(cell, str) and not cell.strip())


def _item(item: Any, row: int, where: str) -> str:
    if is_list(item) or isinstance(item, dict | bytes) or is_missing(item):
        what = "a missing value" if is_missing(item) else with_article(item)
        raise DataError(
            f"row {row:,} has {what} in its list of labels", where=where, remedy="Use a flat list of label texts."
        )
    return " ".join(to_text(item.item() if isinstance(item, np.generic) else item).split())


def _find_separator(cells: Sequence[Any], where: str) -> str | None:
    """Return the separator that splits the most cells; ``None`` if the cells are lists or hold one label each."""
    texts = [to_text(cell) for cell in cells if not is_list(cell) and not is_missing(cell)]
    n_split = {name: sum(len(split_parts(text, name)) > 1 for text in texts) for name in SEPARATORS}
    best, second = sorted(n_split, key=lambda name: -n_split[name])[:2]
    if not n_split[best]:
        return None
    if n_split[second] >= _AMBIGUOUS * n_split[best]:
        raise DataError(
            f"labels may be separated by {best!r} ({counted(n_split[best], 'row')}) or {second!r} "
            f"({counted(n_split[second], 'row')})",
            where=where,
            remedy=f"Pass the right one, such as --label-separator {best!r}.",
        )
    return best


def _read_indicators(parts: Sequence[Part], where: str, known: Labels | None) -> ReadLabels:
    """Read columns of 0 and 1, which have the names of the labels in the first file."""
    names = parts[0].columns.labels
    rows = [row for part in parts for row in _indicator_rows(part.raw.frame, part.columns.labels, names, part.name)]
    labels = known or Labels(tuple(range(len(names))), names, numbered=False)
    for what, wrong, remedy in (
        ("lacks labels of the run", {*labels.texts}.difference(names), "Add these columns."),
        ("names labels that the run does not have", {*names}.difference(labels.texts), "Leave out these columns."),
    ):
        if wrong:
            raise DataError(f"--label-columns {what}: {listing(sorted(wrong))}", where=where, remedy=remedy)
    if known is None:
        check_labelled(len(rows), int(any(rows)), where)  # rare labels are fine, because each has a column
    flat = [labels.label2id[text] for row in rows for text in row or ()]
    return ReadLabels(MULTI_LABEL, labels, *_code(rows, flat, labels))


def _indicator_rows(frame: pd.DataFrame, columns: Sequence[str], labels: Sequence[str], name: str) -> list[RowLabels]:
    """Return the labels of every row from columns of 0 and 1."""
    values = np.zeros((len(frame), len(columns)), dtype=bool)
    missing = np.zeros((len(frame), len(columns)), dtype=bool)
    for c, column in enumerate(columns):
        for i, cell in enumerate(frame[column].tolist()):
            text = "" if is_missing(cell) or is_list(cell) else to_text(cell).strip().casefold()
            missing[i, c] = not text
            if (text and text not in _INDICATORS) or is_list(cell):
                raise DataError(
                    f"row {i + 1:,} holds {shorten(repr(cell))}, not 0 or 1",
                    where=f"{name}, column {quoted(column)}",
                    remedy="Write 1 if the text has the label, otherwise 0.",
                )
            values[i, c] = _INDICATORS.get(text, False)
    partly = np.flatnonzero(missing.any(axis=1) & ~missing.all(axis=1))
    if len(partly):
        column = columns[int(missing[partly[0]].argmax())]
        raise DataError(
            f"row {partly[0] + 1:,} has an empty cell, but its other label cells are filled",
            where=f"{name}, column {quoted(column)}",
            remedy="Write 0 or 1, or empty all label cells of the row to drop the row.",
        )
    return [
        None if missing[i].all() else [t for t, yes in zip(labels, values[i], strict=True) if yes]
        for i in range(len(frame))
    ]
