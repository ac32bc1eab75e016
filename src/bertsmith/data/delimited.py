"""Delimited texts: which delimiter, and rows that all have the fields of the header."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from bertsmith.data.table import Note
from bertsmith.errors import DataError, RowError, listing

if TYPE_CHECKING:
    import pandas as pd

_DELIMITERS = (",", ";", "\t", "|")
_SAMPLE = 65536
"""Characters by which the delimiter is guessed."""
_LONGEST = 2**31 - 1
"""Characters of a field: the most that `csv` takes where a C long has 32 bits, as on Windows."""
_SEPARATOR = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)


Row = tuple[int, list[str]]
"""The line in which a row begins, and its fields."""
T = TypeVar("T")


def delimited(text: str, name: str, prefer: str | None) -> tuple[pd.DataFrame, list[Note]]:
    """Read a delimited text, every value as a text, an empty one as ``""``.

    Args:
        text: the whole file.
        name: what to call it in messages.
        prefer: the delimiter its name promises; taken if it is in the header.

    Raises:
        DataError: if quotes do not match or rows have more or fewer fields than the header.
    """

    def table(names: list[str], rows: Iterator[Row]) -> pd.DataFrame:
        return to_frame(names, [fields for _, fields in rows])

    _, frame, notes = find_dialect(lambda: io.StringIO(text, newline=""), name, prefer, table)
    return frame, notes


@dataclass(frozen=True)
class Dialect:
    """How a delimited text is written.

    Attributes:
        delimiter: between fields.
        options: of `csv.reader` besides.
        says: whether the first line says the delimiter, for Excel alone.
    """

    delimiter: str
    options: Mapping[str, Any]
    says: bool

    def rows(self, text: TextIO, name: str, ragged: Callable[[int, int], None]) -> Iterator[Row]:
        """Read row by row, the header first; empty lines are left out.

        Args:
            text: opened with ``newline=""``.
            name: what to call it in messages.
            ragged: is told the line and the number of fields of a row that has not those of the header, which is left
                out.

        Raises:
            DataError: if quotes do not match.
        """
        first = next(text, "") if self.says else ""
        start, n_fields = 1, 0
        # A line for Excel is blank here, and keeps the numbers of the others.
        reader = csv.reader(
            itertools.chain(["\n"] if first else [], text), delimiter=self.delimiter, strict=True, **self.options
        )
        while True:
            previous = csv.field_size_limit(_LONGEST)
            try:
                fields = next(reader, None)
            except csv.Error as error:
                raise DataError(
                    f"the quotes do not match in the row that begins in line {start:,} ({error})",
                    where=f"{name}, line {start:,}",
                    remedy='Put quotes around the text and write every quote inside it twice: "he said ""no"""',
                ) from error
            finally:
                csv.field_size_limit(previous)
            if fields is None:
                return
            if fields and n_fields and len(fields) != n_fields:
                ragged(start, len(fields))
            elif fields:
                n_fields = n_fields or len(fields)
                yield start, fields
            start = reader.line_num + 1


def find_dialect(
    opened: Callable[[], TextIO],
    name: str,
    prefer: str | None,
    take: Callable[[list[str], Iterator[Row]], T],
    ragged: Callable[[int, int], None] | None = None,
) -> tuple[Dialect, T, list[Note]]:
    """Read a delimited text through, in the first dialect in which its quotes match.

    Args:
        opened: opens it, with ``newline=""``.
        name: what to call it in messages.
        prefer: the delimiter its name promises; taken if it is in the header.
        take: is given the names of the columns and all rows, and reads them.
        ragged: as for `Dialect.rows`; without it such rows are an error.

    Returns:
        The dialect, what ``take`` returned, and notes.

    Raises:
        DataError: if quotes do not match or, unless ``ragged`` is told, rows have more or fewer fields than the header.
    """
    with opened() as text:
        sample = text.read(_SAMPLE)
    if said := _SEPARATOR.match(sample):
        prefer, sample = said[1], sample[said.end() :]
    delimiter = prefer if prefer and prefer in sample.lstrip("\n").partition("\n")[0] else _guess_delimiter(sample)
    first_error: DataError | None = None
    for options in ({}, {"escapechar": "\\", "doublequote": False}, {"quoting": csv.QUOTE_NONE}):
        if "escapechar" in options:
            with opened() as text:
                if not any('\\"' in line for line in text):
                    continue
        if "quoting" in options and delimiter != "\t":
            continue
        dialect = Dialect(delimiter, options, bool(said))
        try:
            taken = _taken(dialect, opened, name, take, ragged)
        except DataError as error:
            first_error = first_error or error
            continue
        how = "quotes as plain characters" if "quoting" in options else 'quotes escaped as \\"'
        return dialect, taken, [Note("info", f"{name} was read with {how}")] if options else []
    assert first_error is not None
    raise first_error


def _taken(
    dialect: Dialect,
    opened: Callable[[], TextIO],
    name: str,
    take: Callable[[list[str], Iterator[Row]], T],
    ragged: Callable[[int, int], None] | None,
) -> T:
    wrong: list[tuple[int, int]] = []
    n_rows = 0

    def counted(rows: Iterator[Row]) -> Iterator[Row]:
        nonlocal n_rows
        for row in rows:
            n_rows += 1
            yield row

    with opened() as text:
        rows = dialect.rows(text, name, lambda line, n: wrong.append((line, n)))
        _, header = next(rows, (0, []))
        if not header:
            raise DataError("the file has no header", where=name, remedy="The first row must name the columns.")
        taken = take(column_names(header), counted(rows))
    if wrong and ragged is None:
        line, n = wrong[0]
        lines = listing([line for line, _ in wrong], 5)
        raise RowError(
            f"{len(wrong):,} of {n_rows + len(wrong):,} rows do not have the {len(header)} fields of the header: "
            f"line {line:,} has {n}",
            where=f"{name}, line{'s' if len(wrong) > 1 else ''} {lines}",
            remedy="Put quotes around texts that hold the delimiter "
            f"({ {chr(9): 'tab'}.get(dialect.delimiter, dialect.delimiter)!r}), or save the table again.",
        )
    for line, n in wrong if ragged else []:
        assert ragged is not None
        ragged(line, n)
    return taken


def column_names(header: list[str]) -> list[str]:
    """Return the names of the columns of a header; one without has its number."""
    return [column.strip() or f"column {i}" for i, column in enumerate(header, start=1)]


def to_frame(names: list[str], rows: list[list[str]]) -> pd.DataFrame:
    """Return a data frame of texts."""
    import pandas as pd

    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    # pandas would merge equal names: build by position, name after.
    frame = pd.DataFrame({i: pd.Series(values, dtype=object) for i, values in enumerate(columns)})
    frame.columns = pd.Index(names)
    return frame


def _guess_delimiter(text: str) -> str:
    sample = text.splitlines(keepends=True)[:200]
    if len(text) >= _SAMPLE - 6 and len(sample) > 1:  # less what a line for Excel may take
        sample = sample[:-1]
    best, best_score = ",", (0.0, 0)
    for delimiter in _DELIMITERS:
        rows = [row for row in csv.reader(sample, delimiter=delimiter) if row]
        if not rows or len(rows[0]) < 2:
            continue
        agree = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
        if (agree, len(rows[0])) > best_score:
            best, best_score = delimiter, (agree, len(rows[0]))
    return best
