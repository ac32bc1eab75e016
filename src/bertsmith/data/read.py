"""Read a table, with its validation and test tables, into a `Table`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from bertsmith.config import DataConfig
from bertsmith.data.coders import merge_coders
from bertsmith.data.columns import LABEL_TEXT, Columns, canonical, check_one_source, find_columns
from bertsmith.data.corrections import apply_corrections
from bertsmith.data.read_labels import read_labels
from bertsmith.data.sources import read_raw
from bertsmith.data.table import SPLITS, Labels, Note, Part, RawTable, Table
from bertsmith.data.template import SETTINGS, Template
from bertsmith.data.texts import group_name, to_texts
from bertsmith.errors import DataError, listing, quoted

_SPLIT_SYNONYMS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "development", "eval"), "validation"),
    **dict.fromkeys(("test", "testing", "heldout"), "test"),
}


def read_table(
    source: Any = None,
    config: DataConfig | None = None,
    *,
    known: Labels | None = None,
    template: Template | None = None,
) -> Table:
    """Read a labelled table.

    Args:
        source: a path (CSV, TSV, JSON Lines, JSON, Parquet, Feather, Excel, also gzipped), ``hf://owner/name``, a
            pandas data frame, an object with ``__arrow_c_stream__``, a ``datasets.Dataset`` or ``DatasetDict``;
            ``None`` with ``config.sql``.
        config: the columns, found by name by default, and the validation and test tables.
        known: the classes of a finished run, to which the labels must belong.
        template: the template of a finished run, whose columns the table must have. A single text column may have
            another usual name.

    Raises:
        DataError: if a table cannot be read, a column is uncertain, or the labels are inconsistent.
    """
    config = config or DataConfig()
    if template is not None:
        columns = template.settings(config)
        config = config.model_copy(update={name: getattr(columns, name) for name in SETTINGS})
    check_one_source(source, config)
    sources = ((source, None), (config.validation, "validation"), (config.test, "test"))
    parts = [(read_raw(table, config, split), split) for table, split in sources if table is not None or split is None]
    table = _combine(parts, config, known, template)
    if config.coder_column is not None:
        table = merge_coders(table, config.coder_column)
    return table if config.corrections is None else apply_corrections(table, config.corrections, config)


def _combine(
    parts: Sequence[tuple[RawTable, str | None]], config: DataConfig, known: Labels | None, template: Template | None
) -> Table:
    frames: list[pd.DataFrame] = []
    extras: list[pd.DataFrame] = []
    notes: list[Note] = []
    labelled: list[Part] = []
    names = [raw.name for raw, _ in parts]
    names = [f"{raw.name} ({split})" if split and names.count(raw.name) > 1 else raw.name for raw, split in parts]
    for (given, split), name in zip(parts, names, strict=True):
        raw, row_numbers = given, np.arange(1, len(given.frame) + 1, dtype=np.int64)
        if split is not None or config.split_column is None:
            raw, row_numbers = _without_other_splits(raw, row_numbers, split)
        part_config = config if split is None else config.model_copy(update={"split_column": None})
        columns = find_columns(list(raw.frame.columns), name, part_config, template=template)
        labelled.append(Part(raw, columns, name))
        cells = columns.template.read_cells(raw.frame, columns.template.columns, name)
        text, pair = (template or labelled[0].columns.template).render(cells)
        frames.append(
            pd.DataFrame(
                {
                    "source": name,
                    "row": row_numbers,
                    "text": pd.Series(text, dtype="str"),
                    **({} if pair is None else {"pair": pd.Series(pair, dtype="str")}),
                    **({"first": pd.Series(cells[0], dtype="str")} if columns.template.by_line else {}),
                    "split": _parse_splits(raw, columns, split, name, text),
                    "group": _parse_groups(raw, columns, name),
                }
            )
        )
        extras.append(raw.frame.drop(columns=list(columns.used)))
        notes += [*raw.notes, *_note_unused_columns(columns, extras[-1])]
    read = read_labels(labelled, config, known=known)
    frame = pd.concat(frames, ignore_index=True)
    frame.insert(3, "target", read.codes)
    columns = labelled[0].columns if template is None else replace(labelled[0].columns, template=template)
    return Table(
        frame,
        read.labels,
        columns,
        pd.concat(extras, ignore_index=True),
        names[0],
        (*notes, *read.notes),
        read.task,
        read.outcomes,
    )


def _without_other_splits(raw: RawTable, rows: np.ndarray, role: str | None) -> tuple[RawTable, np.ndarray]:
    """Return a dataset without the splits that are not for its role, such as ``unsupervised``.

    A dataset with a single split is used as a whole. If the name of this split is unknown, the split does not count.

    Args:
        raw: the dataset.
        rows: the numbers of its rows.
        role: the split to use; ``None`` for train, validation and test.

    Returns:
        The dataset, and the numbers of the remaining rows.

    Raises:
        DataError: if the dataset has several splits, but no rows of its role.
    """
    if raw.split is None:
        return raw, rows
    splits, present = raw.split.cat.categories, set(raw.split)
    roles = {name: _SPLIT_SYNONYMS.get(canonical(name)) for name in sorted(map(str, splits))}
    # An empty split counts only if it is the one of the role.
    names = [name for name, found in roles.items() if name in present or (role and found == role)]
    used = [name for name in names if roles[name] and role in (None, roles[name])]
    if len(names) == 1:
        return raw if used or names == ["unsupervised"] else replace(raw, split=None), rows
    is_used = raw.split.isin(used).to_numpy()
    if role is not None and not is_used.any():
        raise DataError(
            f"the dataset has no rows of the split {role}; its splits are {listing(names)}",
            where=raw.name,
            remedy=f"Pass one of its splits to --{role}.",
        )
    if is_used.all() or not is_used.any():
        return raw, rows
    unused = [name for name in names if name not in used]
    only = role or "train, validation and test"
    message = f"bertsmith does not use the splits {listing(unused)} of {raw.name}, only {only}"
    kept = replace(
        raw,
        frame=raw.frame[is_used].reset_index(drop=True),
        split=raw.split[is_used].reset_index(drop=True),
        notes=(*raw.notes, Note("info" if role else "warning", message, int((~is_used).sum()))),
    )
    return kept, rows[is_used]


def _parse_splits(
    raw: RawTable, columns: Columns, split: str | None, name: str, texts: Sequence[str | None]
) -> pd.Series:
    """Return the split of every row: the given one, else from the split column or the source, else missing.

    A row without a text, such as a blank row of a workbook, needs no split.
    """
    column = raw.split if columns.split is None else raw.frame[columns.split]
    if split is not None or column is None:
        return pd.Series([split] * len(raw.frame), dtype="str")
    values: list[Any] = column.to_list()
    splits = [_SPLIT_SYNONYMS.get(canonical(str(value))) for value in values]
    rows = zip(values, splits, texts, strict=True)
    remedy = "Rename the splits of the dataset to train, validation and test, or pass a datasets.Dataset."
    unknown = sorted({str(value) for value, known, text in rows if known is None and text})
    if unknown:
        raise DataError(
            f"these values do not name a split: {listing(unknown)}",
            where=f"{name}, column {quoted(columns.split)}" if columns.split else name,
            remedy="Write train, validation or test in every row." if columns.split else remedy,
        )
    if "train" not in splits:
        remedy = "Write train in the rows to train on." if columns.split else remedy
        raise DataError("no row has the split train", where=name, remedy=remedy)
    return pd.Series(splits, dtype="str")


def _parse_groups(raw: RawTable, columns: Columns, name: str) -> pd.Series:
    if columns.group is None:
        return pd.Series([None] * len(raw.frame), dtype="str")
    values = to_texts(raw.frame[columns.group], f"{name}, column {quoted(columns.group)}")
    # A row without a group gets a separate one.
    return pd.Series([group_name(value) or f"row {i} of {name}" for i, value in enumerate(values, 1)], dtype="str")


def _note_unused_columns(columns: Columns, extra: pd.DataFrame) -> list[Note]:
    flags = {
        name: "--split-column"
        for name in extra.columns
        if columns.split is None
        and canonical(name) in ("split", "fold", "subset")
        and {_SPLIT_SYNONYMS.get(canonical(value)) for value in set(map(str, extra[name]))} <= set(SPLITS)
    }
    if columns.label_text is None and not columns.labels:
        flags |= {name: "--label-text-column" for name in extra.columns if canonical(name) in LABEL_TEXT}
    return [Note("info", f"bertsmith uses column {name!r} only with {flag} {name!r}") for name, flag in flags.items()]
