"""Labels put right by hand: a CSV that `inspect --label-errors` wrote and somebody has filled in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

from bertsmith.config import DataConfig
from bertsmith.data.raw import texts_of
from bertsmith.data.sources import read_raw
from bertsmith.data.table import MISSING, Note, Table
from bertsmith.errors import DataError, did_you_mean, listing

COLUMNS = ("source", "row", "text", "given", "suggested", "given_probability", "suggested_probability", "corrected")
"""Of the CSV; ``corrected`` is left to the user."""
NEEDED = ("row", "text", "corrected")
REMOVE = "-"
"""What to write into ``corrected`` to leave a row out."""


def correct(table: Table, file: Path, config: DataConfig) -> Table:
    """Put corrected labels into a table.

    Args:
        table: as read.
        file: with the columns of `NEEDED`, and ``source`` where the table comes from several files. Rows whose
            ``corrected`` is empty are left as they are; `REMOVE` takes the label away.
        config: how to read the file.

    Returns:
        The table with the labels, and a note of how many there are; ``table`` itself is left alone.

    Raises:
        DataError: if the file does not fit the table: no such row, another text there, an unknown label. All that is
            wrong is told at once.
    """
    raw = read_raw(file, DataConfig(encoding=config.encoding, max_unpacked=config.max_unpacked))
    lacking = [name for name in NEEDED if name not in raw.frame.columns]
    if lacking:
        raise DataError(
            f"corrections need the columns {listing(NEEDED)}; {listing(lacking)} are missing",
            where=raw.name,
            remedy="Make the file with: bertsmith inspect TABLE --label-errors FILE.csv",
        )
    where = {(source, int(row)): i for i, (source, row) in enumerate(table.frame[["source", "row"]].to_numpy())}
    targets = table.frame["target"].to_numpy(copy=True)
    problems: list[str] = []
    corrected: list[int] = []
    columns = {name: texts_of(raw.frame[name], f"{raw.name}, column {name!r}") for name in NEEDED}
    sources = (
        texts_of(raw.frame["source"], f"{raw.name}, column 'source'")
        if "source" in raw.frame.columns
        else [table.name] * len(raw.frame)
    )
    rows = zip(sources, columns["row"], columns["text"], columns["corrected"], strict=True)
    for line, (source, row, text, wanted) in enumerate(rows, start=1):
        wanted = " ".join((wanted or "").split())
        if not wanted:
            continue
        at = where.get((source, int(row))) if row is not None and row.isdigit() else None
        label = _label(wanted, table)
        if at is None:
            problems.append(f"row {line:,}: {source} has no row {row}")
        elif not _same(text, table.frame["text"].iloc[at]):
            problems.append(f"row {line:,}: row {row} of {source} has another text")
        elif label is None:
            problems.append(
                f"row {line:,}: {wanted!r} is no label of the table.{did_you_mean(wanted, table.labels.texts)}"
            )
        else:
            targets[at] = label
            corrected.append(int(row or 0))
    if problems:
        shown = "\n".join(f"  - {problem}" for problem in problems[:10])
        more = f"\n  - and {len(problems) - 10:,} more" if len(problems) > 10 else ""
        raise DataError(
            f"corrections do not fit the table:\n{shown}{more}",
            where=raw.name,
            remedy=f"Write label texts of the table into 'corrected', {REMOVE} to leave a row out, or nothing; and use "
            "the file with the table it was made from.",
        )
    note = Note("info", f"{len(corrected):,} labels corrected by {raw.name}", len(corrected), tuple(corrected[:5]))
    frame = table.frame.assign(target=pd.Series(targets))
    return replace(table, frame=frame, notes=(*table.notes, note) if corrected else table.notes)


def _label(wanted: str, table: Table) -> int | None:
    if wanted == REMOVE:
        return MISSING
    for text in (wanted, wanted.removeprefix("'")):  # CSV output guards cells that a spreadsheet would run
        if text in table.labels.label2id:
            return table.labels.label2id[text]
    return None


def _same(one: str | None, other: str | None) -> bool:
    a, b = (" ".join((text or "").split()) for text in (one, other))
    return a == b or a.removeprefix("'") == b
