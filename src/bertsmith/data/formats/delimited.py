"""Delimited text: detect the dialect, and read rows with as many fields as the header."""

from __future__ import annotations

import contextlib
import csv
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TextIO

from bertsmith.data.formats.files import TableFile
from bertsmith.data.table import Cells, ChunkedTable, Note, OnBadRow, Position
from bertsmith.errors import DataError, RowError, counted, listing, number_form

_DELIMITERS = (",", ";", "\t", "|")
_SAMPLE_CHARS = 65536
"""Characters from which the delimiter is detected."""
_MAX_FIELD_CHARS = 2**31 - 1
"""The largest limit that `csv` accepts where a C long has 32 bits, as on Windows."""
_SEPARATOR_LINE = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)
"""First line of a file that declares its delimiter to Excel."""
_ESCAPED = {"escapechar": "\\", "doublequote": False}
_ESCAPE = r"""\\(?:N\b|[\\"'\r\n\t,;|])"""
"""An escaped quote, backslash, line break or delimiter; ``\\N`` is the NULL of MySQL."""
_LITERAL = re.compile(rf"(?:[^\\]++|{_ESCAPE})*+\\")
"""A line up to a backslash that escapes nothing."""
_KEPT = (re.compile(r'(?<!\\)\\+"|\\'), re.compile(rf"{_ESCAPE}|\\"))
"""Patterns for files with literal backslashes: an escape, else a literal backslash. The first escapes only quotes."""


def read_delimited(file: TableFile, chunk_rows: int | None, on_bad_row: OnBadRow | None) -> ChunkedTable:
    """Read delimited text; every cell is a string, ``""`` if empty.

    Raises:
        DataError: if quotes do not match.
        RowError: if rows have more or fewer fields than the header, unless there is ``on_bad_row``.
    """
    with file.text.open() as text:
        sample = text.read(_SAMPLE_CHARS)
    expected = "\t" if file.suffix in (".tsv", ".tab") else None
    if declared := _SEPARATOR_LINE.match(sample):
        expected, sample = declared[1], sample[declared.end() :]
    header = sample.lstrip("\n").partition("\n")[0]
    delimiter = expected if expected and expected in header else _detect_delimiter(sample)
    plain = {"quoting": csv.QUOTE_NONE}
    n_lines = 0  # rows of a tab-separated file in which every line is a row, if it has quotes
    if delimiter == "\t" and '"' not in header and _contains(file, re.compile('"').search):
        with contextlib.suppress(DataError):
            n_lines = _read(file, _Dialect(delimiter, plain, bool(declared)), 1, None).n_rows
    first_error: DataError | None = None
    for options, how in (
        ({}, ""),
        (_ESCAPED, 'quotes escaped as \\"'),
        (plain, "quotes as plain characters"),
    ):
        if options is _ESCAPED and not (first_error and _contains(file, re.compile(r'\\"').search)):
            continue
        if options is plain and delimiter != "\t":
            continue
        for kept in _KEPT if options is _ESCAPED and _contains(file, _LITERAL.match) else (None,):
            dialect = _Dialect(delimiter, options, bool(declared), kept)
            try:
                table = _read(file, dialect, chunk_rows, None if n_lines else on_bad_row)
            except DataError as error:
                first_error = first_error or error
                continue
            if table.n_rows < n_lines:  # a quote that belongs to a text joined several lines
                continue
            notes = (Note("info", f"bertsmith reads {file.path.name} with {how}"),) if how else ()
            return replace(table, notes=(*file.text.notes, *notes))
    assert first_error is not None
    raise first_error


def _contains(file: TableFile, search: Callable[[str], re.Match[str] | None]) -> bool:
    with file.text.open() as text:
        return any(map(search, text))


def _read(file: TableFile, dialect: _Dialect, chunk_rows: int | None, on_bad_row: OnBadRow | None) -> ChunkedTable:
    name = file.path.name
    ragged: list[tuple[int, int]] = []
    with file.text.open() as text:
        rows = dialect.rows(text, name, lambda line, n_fields: ragged.append((line, n_fields)))
        header = next(rows, [])
        if not header:
            raise DataError("the file has no header", where=name, remedy="Name the columns in the first row.")
        all_rows = list(rows) if chunk_rows is None else []
        n_rows = len(all_rows) if chunk_rows is None else sum(1 for _ in rows)
    if ragged and on_bad_row is None:
        line, n_fields = ragged[0]
        delimiter = repr("tab" if dialect.delimiter == "\t" else dialect.delimiter)
        remedy = "Remove lines that are not part of the table, such as titles and totals."
        if any(n < len(header) for _, n in ragged):
            remedy += f" Separate the fields of every row by {delimiter}, as in the header."
        if any(n > len(header) for _, n in ragged):
            remedy += f" Put quotes around texts that contain {delimiter}."
        raise RowError(
            f"{len(ragged):,} of {n_rows + len(ragged):,} rows {number_form(len(ragged), 'does', 'do')} not have the "
            f"{counted(len(header), 'field')} of the header: "
            f"line {line:,} has {n_fields}",
            where=f"{name}, {number_form(len(ragged), 'line')} {listing([line for line, _ in ragged], 5)}",
            remedy=remedy,
        )
    for line, n_fields in ragged:
        assert on_bad_row is not None
        on_bad_row(Position("line", line), f"{counted(n_fields, 'field')}, but the header has {len(header)}")
    columns = [column.strip() or f"column {i}" for i, column in enumerate(header, start=1)]

    def chunks() -> Iterator[Cells]:
        with file.text.open() as text:
            rows = dialect.rows(text, name, lambda line, n_fields: None)  # the first pass reports ragged rows
            rows = iter(all_rows) if chunk_rows is None else itertools.islice(rows, 1, None)
            while chunk := list(itertools.islice(rows, chunk_rows)):
                yield {column: list(cells) for column, cells in zip(columns, zip(*chunk, strict=True), strict=True)}

    return ChunkedTable(name, columns, chunks, n_rows)


@dataclass(frozen=True)
class _Dialect:
    """How a delimited text is written.

    Attributes:
        delimiter: the character between fields.
        options: other options of `csv.reader`.
        has_separator_line: whether the first line declares the delimiter to Excel.
        kept: the escapes, or a single backslash, which is then a plain character; by default, each one escapes.
    """

    delimiter: str
    options: Mapping[str, Any]
    has_separator_line: bool
    kept: re.Pattern[str] | None = None

    def rows(self, text: TextIO, name: str, on_ragged: Callable[[int, int], None]) -> Iterator[list[str]]:
        """Yield the fields of every row, the header first.

        Empty lines are skipped. In a table with one column, they are empty cells, except at the end.

        Args:
            text: the file, opened with ``newline=""``.
            name: the name of the file, for messages.
            on_ragged: receives the first line and the number of fields of every row that differs from the header; such
                rows are skipped.

        Raises:
            DataError: if quotes do not match.
        """
        # A blank line replaces the separator line, so that line numbers stay the same.
        first = ["\n"] if self.has_separator_line and next(text, "") else []
        lines: Iterable[str] = itertools.chain(first, text)
        if kept := self.kept:
            lines = (kept.sub(lambda found: found[0] if len(found[0]) > 1 else r"\\", line) for line in lines)
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True, **self.options)
        start, n_fields, n_empty = 1, 0, 0
        while True:
            previous = csv.field_size_limit(_MAX_FIELD_CHARS)
            try:
                fields = next(reader, None)
            except csv.Error as error:
                raise DataError(
                    f"the quotes do not match in the row that begins on line {start:,} ({error})",
                    where=f"{name}, line {start:,}",
                    remedy='Put quotes around the text and double every quote inside it: "he said ""no"""',
                ) from error
            finally:
                csv.field_size_limit(previous)
            if fields is None:
                return
            if fields and n_fields and len(fields) != n_fields:
                on_ragged(start, len(fields))
            elif fields:
                n_fields = n_fields or len(fields)
                yield from itertools.repeat([""], n_empty)
                n_empty = 0
                yield fields
            elif n_fields == 1:
                n_empty += 1
            start = reader.line_num + 1


def _detect_delimiter(text: str) -> str:
    lines = text.splitlines(keepends=True)[:200]
    if len(text) >= _SAMPLE_CHARS - 6 and len(lines) > 1:  # the last line is probably cut; 6: a separator line
        lines = lines[:-1]
    best, best_score = ",", (0.0, 0)
    for delimiter in _DELIMITERS:
        rows = [row for row in csv.reader(lines, delimiter=delimiter) if row]
        if not rows or len(rows[0]) < 2:
            continue
        agreement = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
        if (agreement, len(rows[0])) > best_score:
            best, best_score = delimiter, (agreement, len(rows[0]))
    return best
