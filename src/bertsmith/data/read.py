"""Read one table, or a table with its validation and test tables, into a `Table`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bertsmith.config import DataConfig, Source
from bertsmith.data.columns import Columns, canonical, find_columns
from bertsmith.data.corrections import correct
from bertsmith.data.labels import check_plausible, label_numbers, label_words, link
from bertsmith.data.sources import read_raw
from bertsmith.data.table import SPLITS, Labels, Note, RawTable, Table
from bertsmith.data.texts import texts_of
from bertsmith.errors import DataError, listing, quoted

_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "development", "eval"), "validation"),
    **dict.fromkeys(("test", "testing", "heldout"), "test"),
}


def read_table(source: Any = None, config: DataConfig | None = None, *, known: Labels | None = None) -> Table:
    """Read a labelled table.

    Args:
        source: a path (CSV, TSV, JSON Lines, JSON, Parquet, Feather, Excel, also gzipped), ``hf://owner/name``, a
            pandas data frame, a ``datasets.Dataset`` or ``DatasetDict``; ``None`` with ``config.sql``.
        config: which columns to use, validation and test tables; found by name unless given.
        known: the classes of a finished run, which the labels must then be among.

    Raises:
        DataError: if the table cannot be read, a column is not certain, or the labels do not make sense.
    """
    config = config or DataConfig()
    if source is not None and config.sql is not None:
        raise DataError("a table and --sql are both given", where=repr(Source(source)), remedy="Give one of them.")
    given = ((source, None), (config.validation, "validation"), (config.test, "test"))
    parts = [(read_raw(table, config, split), split) for table, split in given if table is not None or split is None]
    table = _combine(parts, config, known)
    return table if config.corrections is None else correct(table, config.corrections, config)


def _combine(parts: Sequence[tuple[RawTable, str | None]], config: DataConfig, known: Labels | None) -> Table:
    frames: list[pd.DataFrame] = []
    extras: list[pd.DataFrame] = []
    numbers: list[int | None] = []
    words: list[str | None] = []
    notes: list[Note] = []
    has_numbers = has_words = False
    first: Columns | None = None
    names = _distinct_names([(raw.name, split) for raw, split in parts])
    for (raw, split), name in zip(parts, names, strict=True):
        columns = find_columns(
            list(raw.frame.columns),
            name,
            text=config.text_column,
            label=config.label_column,
            label_text=config.label_text_column,
            group=config.group_column,
            split=config.split_column if split is None else None,
        )
        first = first or columns
        part_numbers, part_words = _label_columns(raw, columns, name)
        has_numbers |= part_numbers is not None
        has_words |= part_words is not None
        n_rows = len(raw.frame)
        numbers += part_numbers if part_numbers is not None else [None] * n_rows
        words += part_words if part_words is not None else [None] * n_rows
        frames.append(
            pd.DataFrame(
                {
                    "source": name,
                    "row": np.arange(1, n_rows + 1, dtype=np.int64),
                    "text": pd.Series(
                        texts_of(raw.frame[columns.text], f"{name}, column {quoted(columns.text)}"), dtype="str"
                    ),
                    "split": _splits(raw, columns, split, name),
                    "group": _groups(raw, columns),
                }
            )
        )
        extras.append(raw.frame.drop(columns=list(columns.used)))
        notes += [*raw.notes, *_unused(columns, extras[-1])]
    assert first is not None
    where = _where(names, first)
    labels, targets = link(numbers if has_numbers else None, words if has_words else None, where, known=known)
    if known is None:
        check_plausible(labels, targets, where)
    frame = pd.concat(frames, ignore_index=True)
    frame.insert(3, "target", targets)
    return Table(frame, labels, first, pd.concat(extras, ignore_index=True), names[0], tuple(notes))


def _label_columns(
    raw: RawTable, columns: Columns, name: str
) -> tuple[list[int | None] | None, list[str | None] | None]:
    words = None
    if columns.label_text:
        words = label_words(raw.frame[columns.label_text], f"{name}, column {quoted(columns.label_text)}")
    if columns.label is None:
        return None, words
    values = raw.frame[columns.label]
    numbers = label_numbers(values, f"{name}, column {quoted(columns.label)}")
    if columns.label in raw.class_names:
        class_names = raw.class_names[columns.label]
        numbers = [n if n is not None and 0 <= n < len(class_names) else None for n in numbers or []]
        return numbers, words or [None if n is None else class_names[n] for n in numbers]
    if numbers is not None:
        return numbers, words
    if words is not None:
        raise DataError(
            f"column {quoted(columns.label)} should hold label numbers but holds words, "
            f"and column {quoted(columns.label_text)} holds words too",
            where=name,
            remedy="Pass --label-text-column with the one to use, alone.",
        )
    return None, label_words(values, f"{name}, column {quoted(columns.label)}")


def _splits(raw: RawTable, columns: Columns, split: str | None, name: str) -> pd.Series:
    n_rows = len(raw.frame)
    if split is not None:
        return pd.Series([split] * n_rows, dtype="str")
    if columns.split is not None:
        given: Sequence[Any] = raw.frame[columns.split].to_list()
    elif raw.split is not None:
        given = raw.split.to_list()
    else:
        return pd.Series([None] * n_rows, dtype="str")
    splits = [_SPLIT_WORDS.get(canonical(str(value))) for value in given]
    odd = sorted({str(value) for value, known in zip(given, splits, strict=True) if known is None})
    if odd:
        raise DataError(
            f"these values do not name a split: {listing(odd)}",
            where=f"{name}, column {quoted(columns.split)}" if columns.split else name,
            remedy="Write train, validation or test in every row.",
        )
    if "train" not in splits:
        raise DataError("no row is marked as train", where=name, remedy="Mark the rows to train on.")
    return pd.Series(splits, dtype="str")


def _groups(raw: RawTable, columns: Columns) -> pd.Series:
    if columns.group is None:
        return pd.Series([None] * len(raw.frame), dtype="str")
    values = texts_of(raw.frame[columns.group], f"{raw.name}, column {quoted(columns.group)}")
    # A row without a group is a group of its own.
    return pd.Series([value or f"row {i} of {raw.name}" for i, value in enumerate(values, 1)], dtype="str")


def _unused(columns: Columns, extra: pd.DataFrame) -> list[Note]:
    notes = []
    for name in extra.columns:
        if canonical(name) in ("split", "fold", "subset") and columns.split is None:
            values = {_SPLIT_WORDS.get(canonical(str(v))) for v in extra[name].unique()}
            if values <= set(SPLITS):
                notes.append(
                    Note("info", f"column {name!r} looks like a given split: pass --split-column {name!r} to use it")
                )
    return notes


def _distinct_names(parts: list[tuple[str, str | None]]) -> list[str]:
    names = [name for name, _ in parts]
    return [f"{name} ({split})" if split and names.count(name) > 1 else name for name, split in parts]


def _where(names: list[str], columns: Columns) -> str:
    used = [quoted(column) for column in (columns.label, columns.label_text) if column]
    return f"{', '.join(names)}, column{'s' if len(used) > 1 else ''} {' and '.join(used)}"
