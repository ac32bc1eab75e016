"""Labels put right by hand: a CSV that `inspect --label-errors` wrote and somebody has filled in."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd

from bertsmith.config import DataConfig
from bertsmith.data.columns import canonical
from bertsmith.data.sources import read_raw
from bertsmith.data.table import MISSING, Note, Table
from bertsmith.data.texts import normalise, texts_of
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
    frame = raw.frame.rename(columns=lambda name: canonical(str(name)))
    lacking = [name for name in NEEDED if name not in frame.columns]
    if lacking:
        raise DataError(
            f"corrections need the columns {listing(NEEDED)}, and there is no {listing(lacking)}",
            where=raw.name,
            remedy="Make the file with: bertsmith inspect TABLE --label-errors FILE.csv",
        )
    columns = {name: texts_of(frame[name], f"{raw.name}, column {name!r}") for name in NEEDED}
    names = list(table.frame["source"].unique())
    # With one source the row and its text say enough: the table may have been renamed since.
    several = len(names) > 1 and "source" in frame.columns
    sources = texts_of(frame["source"], f"{raw.name}, column 'source'") if several else names[:1] * len(frame)
    where = {(source, int(row)): i for i, (source, row) in enumerate(table.frame[["source", "row"]].to_numpy())}
    found: dict[int, int] = {}
    problems: list[str] = []
    others: list[int] = []
    given = texts_of(frame["given"], f"{raw.name}, column 'given'") if "given" in frame.columns else [None] * len(frame)
    rows = zip(sources, columns["row"], columns["text"], given, columns["corrected"], strict=True)
    for line, (source, row, text, before, wanted) in enumerate(rows, start=1):
        wanted = " ".join((wanted or "").split())
        if not wanted:
            continue
        number = re.sub(r"\.0+$", "", row or "")
        at = where.get((source, int(number))) if number.isdigit() else None
        label = _label(wanted, table)
        if at is None:
            problems.append(f"row {line:,}: {source} has no row {row}")
        elif not _same(text, table.frame["text"].iloc[at]):
            problems.append(f"row {line:,}: row {number} of {source} has another text")
        elif label is None:
            known = did_you_mean(wanted, table.labels.texts) or f" There are {listing(table.labels.texts)}."
            problems.append(f"row {line:,}: {wanted!r} is no label of the table.{known}")
        elif found.setdefault(at, label) != label:
            problems.append(f"row {line:,}: row {number} of {source} was corrected to something else before")
        elif before and table.frame["target"].iloc[at] not in (label, _label(before, table)):
            others.append(int(number))
    if problems:
        shown = "\n".join(f"  - {problem}" for problem in problems[:10])
        more = f"\n  - and {len(problems) - 10:,} more" if len(problems) > 10 else ""
        raise DataError(
            f"corrections do not fit the table:\n{shown}{more}",
            where=raw.name,
            remedy=f"Write label texts of the table into 'corrected', {REMOVE} to leave a row out, or nothing; and use "
            "the file with the table it was made from.",
        )
    targets = table.frame["target"].to_numpy(copy=True)
    changed = [at for at, label in found.items() if targets[at] != label]
    out = [at for at in changed if found[at] == MISSING]
    for at in changed:
        targets[at] = found[at]
    counts = {"corrected": len(changed) - len(out), "left out": len(out), "already so": len(found) - len(changed)}
    said = f"corrections in {raw.name}: " + ", ".join(f"{n:,} {what}" for what, n in counts.items() if n)
    notes = [
        Note("info" if found else "warning", said if found else f"{raw.name}: no correction is filled in", len(found))
    ]
    if others:
        told = f"{raw.name}: {len(others):,} corrected rows had another label when it was made (rows {listing(others)})"
        notes.append(Note("warning", f"{told}: the table was changed since, or is another one", len(others)))
    return replace(table, frame=table.frame.assign(target=pd.Series(targets)), notes=(*table.notes, *notes))


def _label(wanted: str, table: Table) -> int | None:
    if wanted in (REMOVE, *"\u2010\u2011\u2012\u2013\u2014\u2212"):  # what a word processor makes of it
        return MISSING
    for text in (wanted, wanted.removeprefix("'")):  # CSV output guards cells that a spreadsheet would run
        if text in table.labels.label2id:
            return table.labels.label2id[text]
        if text.lstrip("-").isdigit() and int(text) in table.labels.numbers:
            return table.labels.numbers.index(int(text))
    return None


def _same(one: str | None, other: str | None) -> bool:
    a, b = (" ".join(normalise(text or "").split()) for text in (one, other))
    return a == b or a.removeprefix("'") == b
