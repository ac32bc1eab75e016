"""Read the labels of a table for its task: classes, sets of labels, or numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from bertsmith.config import DataConfig
from bertsmith.data.formats.annotations import unpack_labels
from bertsmith.data.label_sets import is_list, read_label_sets
from bertsmith.data.labels import USE_POINTS, check_classes, link_labels, parse_label_numbers, parse_label_texts
from bertsmith.data.outcomes import CLASSES, Numbers
from bertsmith.data.table import MISSING, MULTI_LABEL, ORDINAL, REGRESSION, SINGLE_LABEL, Labels, Part, ReadLabels
from bertsmith.data.texts import MISSING_WORDS, check_scalar, is_missing, to_text, with_decimal_points
from bertsmith.errors import DataError, counted, listing, number_form, quoted


def read_labels(parts: Sequence[Part], config: DataConfig, *, known: Labels | None = None) -> ReadLabels:
    """Read the label columns of all files of a table.

    Args:
        parts: the files.
        config: the task, ``"auto"`` to find it.
        known: the classes of a finished run, to which the labels must belong.

    Raises:
        DataError: if the labels are inconsistent, or do not fit the task.
    """
    parts = [_with_cells(part, unpack_labels) for part in parts]
    task = _find_task(parts, known) if config.task == "auto" else config.task
    names = parts[0].columns.label_names
    where = f"{', '.join(p.name for p in parts)}, column{'s' if len(names) > 1 else ''} "
    where += " and ".join(map(quoted, names))
    if task != MULTI_LABEL and parts[0].columns.labels:
        raise DataError(
            f"--label-columns is for several labels per text, but the task is {task}",
            where=where,
            remedy="Leave out --label-columns, or train with --task multi-label.",
        )
    return _READERS[task](parts if task == MULTI_LABEL else list(map(_without_lists, parts)), where, config, known)


def _find_task(parts: Sequence[Part], known: Labels | None) -> str:
    """Return the task if it is certain.

    Columns of 0 and 1 mean several labels, and so do lists, unless none of them has several.
    """
    has_sets = any(
        is_list(cell) and (len(cell) > 1 or known is not None)
        for p in parts
        for column in p.columns.label_names[:2]
        for cell in p.raw.frame[column]
    )
    return MULTI_LABEL if parts[0].columns.labels or has_sets else SINGLE_LABEL


def _without_lists(part: Part) -> Part:
    """Replace lists of one label, which annotation tools write, by the label; an empty list is a missing label."""

    def single(cell: Any) -> Any:
        return next(iter(cell), None) if is_list(cell) and len(cell) < 2 else cell

    return _with_cells(part, lambda cells: list(map(single, cells)) if any(map(is_list, cells)) else None)


def _with_cells(part: Part, change: Callable[[list[Any]], list[Any] | None]) -> Part:
    """Change the label columns with a function that returns new cells, or ``None`` to keep a column."""
    frame = part.raw.frame
    changed = {name: change(frame[name].tolist()) for name in part.columns.label_names}
    columns = {name: pd.Series(cells, dtype=object) for name, cells in changed.items() if cells is not None}
    return part._replace(raw=replace(part.raw, frame=frame.assign(**columns))) if columns else part


def _read_classes(parts: Sequence[Part], where: str, config: DataConfig, known: Labels | None) -> ReadLabels:
    """Read one class per row."""
    numbers: list[int | None] = []
    texts: list[str | None] = []
    has_numbers = has_texts = False
    named = set() if known is None or known.are_numbers else {*known.texts}
    for part in parts:
        n_rows = len(part.raw.frame)
        part_numbers, part_texts = _parse_classes(part, named)
        if known is None:
            named.update(filter(None, part_texts or ()))
        has_numbers |= part_numbers is not None
        has_texts |= part_texts is not None
        numbers += part_numbers if part_numbers is not None else [None] * n_rows
        texts += part_texts if part_texts is not None else [None] * n_rows
    labels, codes = link_labels(numbers if has_numbers else None, texts if has_texts else None, where, known=known)
    if known is None:
        check_classes(labels, codes, where)
    return ReadLabels(SINGLE_LABEL, labels, CLASSES, codes)


def _read_levels(parts: Sequence[Part], where: str, config: DataConfig, known: Labels | None) -> ReadLabels:
    """Read one of several ordered classes per row; the label numbers give the order."""
    read = _read_classes(parts, where, config, known)
    if known is None and not read.labels.numbered:
        raise DataError(
            "--task ordinal needs label numbers, which give the order of the labels",
            where=where,
            remedy="Add a column of numbers, such as 1 to 5, and name it with --label-column. "
            "For an ordered categorical y of pandas, the column is y.cat.codes.where(y.notna()).",
        )
    return ReadLabels(ORDINAL, read.labels, read.outcomes, read.codes)


def _parse_classes(part: Part, named: Collection[str] = ()) -> tuple[list[int | None] | None, list[str | None] | None]:
    """Return the label number and the label text of every row, ``None`` for a column that the table does not have.

    ``named`` are the label texts of the run, or of the tables before this one, if they are words.
    """
    raw, columns, name = part
    texts = None
    if columns.label_text:
        texts = parse_label_texts(raw.frame[columns.label_text], f"{name}, column {quoted(columns.label_text)}")
    if columns.label is None:
        return None, texts
    cells, where = raw.frame[columns.label], f"{name}, column {quoted(columns.label)}"
    has_names = texts is not None or columns.label in raw.class_names
    numbers = parse_label_numbers(cells, where, () if has_names else named)
    if columns.label in raw.class_names:
        class_names = raw.class_names[columns.label]
        numbers = [n if n is not None and 0 <= n < len(class_names) else None for n in numbers or []]
        return numbers, texts or [None if n is None else class_names[n] for n in numbers]
    if numbers is not None:
        return numbers, texts
    if texts is not None:
        raise DataError(
            f"columns {quoted(columns.label)} and {quoted(columns.label_text)} both hold label texts, "
            "but the first should hold label numbers",
            where=name,
            remedy="Pass only the column of label texts, with --label-text-column.",
        )
    return None, parse_label_texts(cells, where)


def _read_numbers(parts: Sequence[Part], where: str, config: DataConfig, known: Labels | None) -> ReadLabels:
    """Read a number per row."""
    values: list[float] = []
    for part in parts:
        column = part.columns.label or part.columns.label_text
        assert column is not None
        values += _parse_values(part.raw.frame[column].tolist(), f"{part.name}, column {quoted(column)}")
    numbers = np.array(values)
    present = ~np.isnan(numbers)
    distinct, codes = np.unique(numbers[present], return_inverse=True)
    if known is None and len(distinct) < 3:
        raise DataError(
            f"--task regression needs at least three different numbers, but the column has {len(distinct)}",
            where=where,
            remedy="Name the column of the numbers with --label-column, or leave out --task.",
        )
    all_codes = np.full(len(numbers), MISSING)
    all_codes[present] = codes
    names = parts[0].columns.label_names
    return ReadLabels(REGRESSION, known or Labels((0,), (names[0],)), Numbers(distinct), all_codes)


def _parse_values(cells: Sequence[object], where: str) -> list[float]:
    """Return the number in every cell, NaN for an empty cell or a word such as ``NA``.

    `with_decimal_points` describes decimal commas.
    """
    values: list[float] = []
    wrong: dict[int, str] = {}
    for row, cell in enumerate(with_decimal_points(cells), start=1):
        check_scalar(cell, row, where, "--label-column")
        text = "" if is_missing(cell) else to_text(cell).strip()
        text = "" if text.casefold() in MISSING_WORDS else text
        try:
            value = float(text) if text else float("nan")
        except ValueError:
            value = float("inf")
        if np.isinf(value) or (text and np.isnan(value)) or "_" in text:
            wrong[row] = text
        values.append(value)
    if wrong:
        found = list(dict.fromkeys(wrong.values()))
        comma = f" {USE_POINTS}" if any("," in text for text in found) else ""
        raise DataError(
            f"{counted(len(wrong), 'cell is not a number', 'cells are not numbers')}: {listing(found, 3)}",
            where=f"{where}, {number_form(len(wrong), 'row')} {listing(wrong, 5)}",
            remedy=f"Correct these cells, or empty them to drop the rows.{comma}",
        )
    return values


_READERS: dict[str, Callable[[Sequence[Part], str, DataConfig, Labels | None], ReadLabels]] = {
    SINGLE_LABEL: _read_classes,
    MULTI_LABEL: read_label_sets,
    ORDINAL: _read_levels,
    REGRESSION: _read_numbers,
}
