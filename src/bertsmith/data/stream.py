"""Read texts to predict in chunks, so that memory does not grow with their number.

A first pass over the file reports every problem before any prediction.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bertsmith.config import DataConfig, is_arrow_table
from bertsmith.data.columns import check_columns, check_one_source, find_text_columns
from bertsmith.data.formats.arrow import common_types, read_stream
from bertsmith.data.formats.files import TableFile, open_binary
from bertsmith.data.formats.registry import open_table
from bertsmith.data.table import Cells, ChunkedTable, Note, OnBadRow, Position
from bertsmith.data.template import Template, Text
from bertsmith.data.texts import not_scalar
from bertsmith.errors import DataError, needing

CHUNK_ROWS = 8192
"""Rows of a chunk; within a chunk, texts are predicted in order of length."""
Chunk = tuple[Cells, Sequence[Text]]
"""The input columns of some rows, and their texts; a missing text is ``""``."""


@dataclass(frozen=True)
class Stream:
    """Texts to predict, with the other columns of their table.

    Attributes:
        name: the name of the source, for messages.
        chunks: returns an iterator over the chunks, from the first.
        n_rows: the number of rows, or ``None`` if it is unknown.
        notes: what the reader found or repaired.
        skipped: the position of every row that cannot be read, and the reason.
        types: returns the Arrow types of the columns, and whether they come from the source.
        path: the file, if the source is one.
        text_columns: the columns of the texts, without further columns and that of a second text.
    """

    name: str
    chunks: Callable[[], Iterator[Chunk]]
    n_rows: int | None
    notes: tuple[Note, ...] = ()
    skipped: tuple[tuple[Position, str], ...] = ()
    types: Callable[[], tuple[dict[str, Any], bool]] = lambda: ({}, False)
    path: Path | None = None
    text_columns: tuple[str, ...] = ("text",)


@contextmanager
def open_stream(
    source: Any, config: DataConfig, *, skip: bool = False, template: Template | None = None
) -> Iterator[Stream]:
    """Open texts to predict.

    Args:
        source: a table, as for `bertsmith.data.read.read_table`, or a ``.txt`` file with one text per line. CSV, JSON
            Lines, Parquet, Feather and ``.txt`` files are read in chunks; other sources are read whole.
        config: the settings for reading.
        skip: skip rows that cannot be read (wrong number of fields, invalid JSON, a list instead of a text).
        template: which columns the model reads; by default a single text column.

    Raises:
        DataError: if the source cannot be read, or its text column is uncertain.
        RowError: if a row cannot be read, unless ``skip``.
    """
    check_one_source(source, config)
    skipped: dict[Position, str] = {}

    def record(where: Position, reason: str) -> None:
        skipped.setdefault(where, reason)

    on_bad_row, template = record if skip else None, template or Template()
    path = file_of(source)
    if is_arrow_table(source):
        read = needing(purpose="reading this input")(read_stream)
        table = read(source, f"the {type(source).__name__}", CHUNK_ROWS)
        yield _stream(table, config, template, on_bad_row, skipped)
    elif path is None:
        read_whole = needing("sql" if source is None else "train", "reading this input")(_read_whole)
        yield _stream(read_whole(source, config), config, template, on_bad_row, skipped)
    elif path.name.lower().endswith((".txt", ".txt.gz")):
        with open_binary(path, config.max_unpacked) as binary:
            check_lines(template, path.name)
            yield _stream_lines(TableFile(path, binary, config))
    else:
        with open_table(path, config) as (file_format, file):
            table = needing(purpose="reading this input")(file_format.read)(file, CHUNK_ROWS, on_bad_row)
            yield replace(_stream(table, config, template, on_bad_row, skipped), path=path)


def file_of(source: Any) -> Path | None:
    """Return the path of a source that is a file, and therefore the same when predictions are resumed."""
    return Path(source) if isinstance(source, str | Path) and not str(source).startswith("hf://") else None


def _stream(
    table: ChunkedTable,
    config: DataConfig,
    template: Template,
    on_bad_row: OnBadRow | None,
    skipped: dict[Position, str],
) -> Stream:
    check_columns(table.columns, table.n_rows, table.name, config)
    columns = find_text_columns(table.columns, table.name, config, template)
    is_nested = not table.nested.isdisjoint(columns)

    def chunks(on_bad_row: OnBadRow | None) -> Iterator[Chunk]:
        first_row = 1
        for cells in table.chunks():
            n_rows = len(cells[columns[0]])
            if is_nested and on_bad_row is not None:
                read = [_are_scalars(cells[name], first_row, on_bad_row) for name in columns]
                is_text = list(map(all, zip(*read, strict=True)))
                cells = {name: list(itertools.compress(values, is_text)) for name, values in cells.items()}
            yield cells, template.texts(template.read_cells(cells, columns, table.name, first_row))
            first_row += n_rows

    n_rows = table.n_rows
    if is_nested:  # another pass, which finds the cells that are not texts
        n_rows = sum(len(texts) for _, texts in chunks(on_bad_row))
    if not n_rows:
        raise DataError("the table has no readable row", where=table.name, remedy="Check that it is the right file.")
    ignore = None if on_bad_row is None else lambda where, reason: None  # the first pass reported them

    def types() -> tuple[dict[str, Any], bool]:
        if table.types is not None:
            return table.types, True
        return common_types(lambda: (cells for cells, _ in chunks(ignore))), False

    return Stream(
        table.name,
        lambda: chunks(ignore),
        n_rows,
        table.notes,
        tuple(skipped.items()),
        types,
        text_columns=columns[: len(template.text_column)],
    )


def _are_scalars(values: list[Any], first_row: int, on_bad_row: OnBadRow) -> list[bool]:
    found = list(map(not_scalar, values))
    for row, kind in enumerate(found, start=first_row):
        if kind:
            on_bad_row(Position("row", row), f"holds {kind}, not text")
    return [not kind for kind in found]


def _read_whole(source: Any, config: DataConfig) -> ChunkedTable:
    from bertsmith.data.sources import read_raw

    raw = read_raw(source, config)
    names = list(raw.frame.columns)

    def chunks() -> Iterator[Cells]:
        for start in range(0, len(raw.frame), CHUNK_ROWS):
            yield {name: raw.frame[name].iloc[start : start + CHUNK_ROWS].tolist() for name in names}

    return ChunkedTable(raw.name, names, chunks, len(raw.frame), set(names), raw.notes)


def _stream_lines(file: TableFile) -> Stream:
    """Read one text per line. An empty line is an empty text, so that predictions match line numbers."""

    def texts() -> Iterator[str]:
        with file.text.open("\n") as lines:
            for line in lines:
                yield line.removesuffix("\n").removesuffix("\r")

    def chunks() -> Iterator[Chunk]:
        lines = texts()
        while chunk := list(itertools.islice(lines, CHUNK_ROWS)):
            yield lines_chunk(chunk)

    n_rows, is_blank = 0, True
    for line in texts():
        n_rows, is_blank = n_rows + 1, is_blank and not line.strip()
    if is_blank:
        raise DataError("the file is empty", where=str(file.path), remedy="Write one text per line.")

    def types() -> tuple[dict[str, Any], bool]:
        return common_types(lambda: (cells for cells, _ in itertools.islice(chunks(), 1))), False

    return Stream(file.path.name, chunks, n_rows, file.text.notes, types=types, path=file.path)


def check_lines(template: Template, source: str) -> None:
    """Check that a model reads single texts, because lines have no columns.

    Raises:
        DataError: if it reads several columns.
    """
    if not template.is_plain:
        raise DataError(
            f"the model reads {template}, but lines of text have no columns",
            where=source,
            remedy="Pass a table with these columns, such as CSV or JSON Lines.",
        )


def lines_chunk(texts: list[str]) -> Chunk:
    """Return a chunk of texts without other columns."""
    return {"text": list(texts)}, texts
