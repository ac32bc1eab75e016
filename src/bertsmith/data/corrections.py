"""Apply manually corrected labels: the CSV that `inspect --label-errors` writes, filled in by the user."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd

from bertsmith.config import DataConfig
from bertsmith.data.columns import canonical, check_columns
from bertsmith.data.outcomes import NO_LABELS, SEPARATOR, Outcomes
from bertsmith.data.sources import read_raw
from bertsmith.data.table import MISSING, Labels, Note, Table
from bertsmith.data.texts import INTEGER, normalise, to_texts
from bertsmith.errors import DataError, counted, listing, number_form

COLUMNS = (
    "source",
    "row",
    "text",
    "pair",
    "given",
    "suggested",
    "given_probability",
    "suggested_probability",
    "corrected",
)
"""Columns of the CSV, ``pair`` only for pairs of texts; the user fills in ``corrected``."""
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
    raw = read_raw(file, DataConfig(max_unpacked=config.max_unpacked))  # ``encoding`` is that of the table
    frame = raw.frame.rename(columns=lambda name: canonical(str(name)))
    absent = [name for name in REQUIRED if name not in frame.columns]
    if absent:
        raise DataError(
            f"corrections need the columns {listing(REQUIRED)}; missing: {listing(absent)}",
            where=raw.name,
            remedy="Create the file with: bertsmith inspect TABLE --label-errors FILE.csv",
        )
    check_columns([name for name in frame.columns if name in COLUMNS], len(frame), raw.name, config)

    def column(name: str) -> list[str | None]:
        return to_texts(frame[name], f"{raw.name}, column {name!r}")

    source_names = list(table.frame["source"].unique())
    # With a single source, row and text are enough: the file may have been renamed since.
    by_source = len(source_names) > 1 and "source" in frame.columns
    sources = column("source") if by_source else source_names[:1] * len(frame)
    previous = column("given") if "given" in frame.columns else [None] * len(frame)
    segments = [name for name in ("text", "pair") if name in frame.columns and name in table.frame.columns]
    written = zip(*(column(name) for name in segments), strict=True)
    positions = {(source, int(row)): i for i, (source, row) in enumerate(table.frame[["source", "row"]].to_numpy())}
    targets = table.frame["target"].to_numpy(copy=True)
    outcomes = table.outcomes
    corrected: dict[int, int] = {}
    problems: list[str] = []
    relabelled: list[int] = []
    rows = zip(sources, column("row"), written, previous, column("corrected"), strict=True)
    for line, (source, row, texts, before, correction) in enumerate(rows, start=1):
        correction = " ".join((correction or "").split())
        if not correction:
            continue
        number = re.sub(r"\.0+$", "", row or "")
        position = positions.get((source, int(number))) if INTEGER.fullmatch(number) else None
        try:
            target, outcomes = _code(correction, outcomes, table.labels)
        except ValueError as error:
            problems.append(f"row {line:,}: {error}")
            continue
        if position is None:
            problems.append(f"row {line:,}: " + (f"{source} has no row {row}" if row else "the cell 'row' is empty"))
        elif not all(map(_is_same_text, texts, table.frame[segments].iloc[position])):
            problems.append(f"row {line:,}: the text differs from that in row {number} of {source}")
        elif corrected.setdefault(position, target) != target:
            problems.append(f"row {line:,}: an earlier row corrects row {number} of {source} differently")
        elif before and targets[position] not in (target, _before(before, outcomes, table.labels)):
            relabelled.append(int(number))
    if problems:
        shown = "\n".join(f"  - {problem}" for problem in problems[:10])
        more = f"\n  - and {len(problems) - 10:,} more" if len(problems) > 10 else ""
        raise DataError(
            f"corrections do not match the table:\n{shown}{more}",
            where=raw.name,
            remedy=f"In the column 'corrected', write a label of the table, several labels as a{SEPARATOR}b, "
            f"{NO_LABELS} for no label, or {REMOVE} to drop the row. Leave the cell empty to change nothing. "
            "Use the file with the table from which it was created.",
        )
    changed = {position: target for position, target in corrected.items() if targets[position] != target}
    n_removed = list(changed.values()).count(MISSING)
    targets[list(changed)] = list(changed.values())
    counts = {"corrected": len(changed) - n_removed, "dropped": n_removed, "unchanged": len(corrected) - len(changed)}
    if corrected:
        summary = ", ".join(f"{n:,} {what}" for what, n in counts.items() if n)
        notes = [Note("info", f"corrections in {raw.name}: {summary}", len(corrected))]
    else:
        notes = [Note("warning", f"{raw.name} has no corrections: its column 'corrected' is empty", 0)]
    if relabelled:
        message = (
            f"{raw.name}: {counted(len(relabelled), 'corrected row')} had another label when the file was created "
            f"({number_form(len(relabelled), 'row')} {listing(relabelled)}). The table has changed since, or is a "
            "different table"
        )
        notes.append(Note("warning", message, len(relabelled)))
    frame = table.frame.assign(target=pd.Series(targets))
    return replace(table, frame=frame, outcomes=outcomes, notes=(*table.notes, *notes))


def _code(label: str, outcomes: Outcomes, labels: Labels) -> tuple[int, Outcomes]:
    """Return the code of a label, `MISSING` for `REMOVE`, and outcomes that have this code; see `Outcomes.find`.

    A dash that is a label of the table stands for this label.
    """
    is_remove = label in _DASHES and label not in labels.texts
    return (MISSING, outcomes) if is_remove else outcomes.find(label, labels)


def _before(label: str, outcomes: Outcomes, labels: Labels) -> int | None:
    """Return the code of an earlier label, ``None`` if the table does not have it."""
    try:
        return _code(label, outcomes, labels)[0]
    except ValueError:
        return None


def _is_same_text(corrected: str | None, original: str | None) -> bool:
    a, b = (" ".join(normalise(text or "").split()) for text in (corrected, original))
    return a == b or a.removeprefix("'") == b
