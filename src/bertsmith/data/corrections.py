"""Apply manually corrected labels: the CSV that `inspect --label-errors` writes, filled in by the user."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd

from bertsmith.config import DataConfig
from bertsmith.data.columns import canonical
from bertsmith.data.sources import read_raw
from bertsmith.data.table import MISSING, Note, Table
from bertsmith.data.texts import normalise, to_texts
from bertsmith.errors import DataError, did_you_mean, listing

COLUMNS = ("source", "row", "text", "given", "suggested", "given_probability", "suggested_probability", "corrected")
"""Columns of the CSV; the user fills in ``corrected``."""
REQUIRED = ("row", "text", "corrected")
REMOVE = "-"
"""Value of ``corrected`` that removes the label, and so excludes the row."""
_DASHES = (REMOVE, *"\u2010\u2011\u2012\u2013\u2014\u2212")
"""`REMOVE`, and what word processors replace it by."""


def apply_corrections(table: Table, file: Path, config: DataConfig) -> Table:
    """Return a table with corrected labels, and a note with their number.

    Args:
        table: the table.
        file: a table with the columns of `REQUIRED`, and ``source`` if the table comes from several files. Rows with
            an empty ``corrected`` have no effect.
        config: the settings for reading.

    Raises:
        DataError: if corrections do not match the table (unknown row, different text, unknown label), listing all.
    """
    raw = read_raw(file, DataConfig(encoding=config.encoding, max_unpacked=config.max_unpacked))
    frame = raw.frame.rename(columns=lambda name: canonical(str(name)))
    absent = [name for name in REQUIRED if name not in frame.columns]
    if absent:
        raise DataError(
            f"corrections need the columns {listing(REQUIRED)}; {listing(absent)} is missing",
            where=raw.name,
            remedy="Create the file with: bertsmith inspect TABLE --label-errors FILE.csv",
        )

    def column(name: str) -> list[str | None]:
        return to_texts(frame[name], f"{raw.name}, column {name!r}")

    source_names = list(table.frame["source"].unique())
    # With a single source, row and text are enough: the file may have been renamed since.
    by_source = len(source_names) > 1 and "source" in frame.columns
    sources = column("source") if by_source else source_names[:1] * len(frame)
    previous = column("given") if "given" in frame.columns else [None] * len(frame)
    positions = {(source, int(row)): i for i, (source, row) in enumerate(table.frame[["source", "row"]].to_numpy())}
    targets = table.frame["target"].to_numpy(copy=True)
    corrected: dict[int, int] = {}
    problems: list[str] = []
    relabelled: list[int] = []
    rows = zip(sources, column("row"), column("text"), previous, column("corrected"), strict=True)
    for line, (source, row, text, before, correction) in enumerate(rows, start=1):
        correction = " ".join((correction or "").split())
        if not correction:
            continue
        number = re.sub(r"\.0+$", "", row or "")
        position = positions.get((source, int(number))) if number.isdigit() else None
        target = _target(correction, table)
        if position is None:
            problems.append(f"row {line:,}: {source} has no row {row}")
        elif not _is_same_text(text, table.frame["text"].iloc[position]):
            problems.append(f"row {line:,}: row {number} of {source} has a different text")
        elif target is None:
            hint = did_you_mean(correction, table.labels.texts) or f" The labels are {listing(table.labels.texts)}."
            problems.append(f"row {line:,}: {correction!r} is not a label of the table.{hint}")
        elif corrected.setdefault(position, target) != target:
            problems.append(f"row {line:,}: an earlier row corrects row {number} of {source} differently")
        elif before and targets[position] not in (target, _target(before, table)):
            relabelled.append(int(number))
    if problems:
        shown = "\n".join(f"  - {problem}" for problem in problems[:10])
        more = f"\n  - and {len(problems) - 10:,} more" if len(problems) > 10 else ""
        raise DataError(
            f"corrections do not match the table:\n{shown}{more}",
            where=raw.name,
            remedy=f"In 'corrected', write a label text of the table, {REMOVE} to drop a row, or nothing. "
            "Use the file with the table from which it was created.",
        )
    changed = {position: target for position, target in corrected.items() if targets[position] != target}
    n_removed = list(changed.values()).count(MISSING)
    targets[list(changed)] = list(changed.values())
    counts = {"corrected": len(changed) - n_removed, "dropped": n_removed, "already so": len(corrected) - len(changed)}
    if corrected:
        summary = ", ".join(f"{n:,} {what}" for what, n in counts.items() if n)
        notes = [Note("info", f"corrections in {raw.name}: {summary}", len(corrected))]
    else:
        notes = [Note("warning", f"{raw.name} has no corrections: its column 'corrected' is empty", 0)]
    if relabelled:
        message = (
            f"{raw.name}: {len(relabelled):,} corrected rows had another label when the file was created "
            f"(rows {listing(relabelled)}). The table has changed since, or is a different one"
        )
        notes.append(Note("warning", message, len(relabelled)))
    return replace(table, frame=table.frame.assign(target=pd.Series(targets)), notes=(*table.notes, *notes))


def _target(label: str, table: Table) -> int | None:
    """Return the class index of a label text or number, `MISSING` for `REMOVE`, ``None`` for an unknown label."""
    if label in _DASHES:
        return MISSING
    for text in (label, label.removeprefix("'")):  # CSV output puts ' before cells that a spreadsheet would execute
        if text in table.labels.label2id:
            return table.labels.label2id[text]
        if text.lstrip("-").isdigit() and int(text) in table.labels.numbers:
            return table.labels.numbers.index(int(text))
    return None


def _is_same_text(corrected: str | None, original: str | None) -> bool:
    a, b = (" ".join(normalise(text or "").split()) for text in (corrected, original))
    return a == b or a.removeprefix("'") == b
