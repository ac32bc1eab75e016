"""Texts to predict, read piece by piece: memory does not grow with their number.

A file is read through once beforehand, so that what is wrong in it is told before any work is done.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from bertsmith.config import DataConfig
from bertsmith.data.arrow import arrow_chunks, common_types, is_nested
from bertsmith.data.columns import check_columns, is_text_lines, text_column
from bertsmith.data.delimited import Row, find_dialect
from bertsmith.data.encodings import codec_of
from bertsmith.data.files import check_size, kind_of, kind_of_text, open_bytes, promised_delimiter
from bertsmith.data.records import json_lines
from bertsmith.data.table import Note, RawTable
from bertsmith.data.texts import encodable_text, refuse_nested, texts_of
from bertsmith.errors import DataError, needing

PIECE = 8192
"""Rows of a piece; within one, texts are labelled in order of length."""
Cells = dict[str, list[Any]]
"""The cells of some rows, by column."""
Chunk = tuple[Cells, list[str]]
"""The input columns of some rows, and their texts; a missing one is empty."""
Bad = Callable[[str, str], None]
"""Is told where a row is that cannot be read, and why."""


@dataclass(frozen=True)
class Stream:
    """Texts to predict, and the columns beside them.

    Attributes:
        name: what to call the source in messages.
        pieces: gives the pieces, in order, from the beginning.
        n_rows: how many rows there are; none, where that is not known.
        notes: what reading found or repaired.
        left_out: where the rows are that cannot be read, and why.
        types: gives the Arrow type of every column, and whether the values are as Arrow gives them.
        path: the file, where it is one.
    """

    name: str
    pieces: Callable[[], Iterator[Chunk]]
    n_rows: int | None
    notes: tuple[Note, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    types: Callable[[], tuple[dict[str, Any], bool]] = lambda: ({}, False)
    path: Path | None = None


@dataclass(frozen=True)
class _Source:
    """A table that can be read again and again; ``nested`` are the columns in which not every cell is a text."""

    name: str
    names: list[str]
    pieces: Callable[[], Iterator[Cells]]
    n_rows: int
    nested: set[str] = field(default_factory=set)
    notes: list[Note] = field(default_factory=list)
    types: dict[str, Any] | None = None


@contextmanager
def open_stream(source: Any, config: DataConfig, *, skip: bool = False) -> Iterator[Stream]:
    """Open texts to predict, from whatever a table can be read from; a ``.txt`` file has a text a line.

    Args:
        source: what `bertsmith.data.read.read_table` takes. CSV, JSON Lines, Parquet, Feather and lines of text are
            read piece by piece, all else whole.
        config: which column holds the texts.
        skip: leave out rows that cannot be read (with too many fields, no JSON, a list instead of a text), rather than
            refuse the table.

    Raises:
        DataError: if the source cannot be read, the text column is not certain, or, unless ``skip``, a row cannot be
            read.
    """
    left_out: dict[str, str] = {}
    bad = partial(_note, left_out) if skip else None
    path = Path(source) if isinstance(source, str | Path) and not str(source).startswith("hf://") else None
    if path is None:
        whole = _whole(source, config, "sql" if source is None else "train")
        yield _stream(whole, config, bad, left_out)
        return
    with open_bytes(path, config.max_unpacked) as file:
        if is_text_lines(path):
            yield _lines(file, path, config)
            return
        read = _reader(file, path, config)
        yield replace(_stream(read(config=config, bad=bad), config, bad, left_out), path=path)


def _reader(file: BinaryIO, path: Path, config: DataConfig) -> Callable[..., _Source]:
    kind = kind_of(file, path, config)
    if kind in ("parquet", "feather"):
        return partial(_of_arrow, file, path, kind)
    if kind == "excel":
        return lambda config, bad: _whole(path, config, "excel")
    codec, errors, notes = codec_of(file, path.name, config.encoding)
    opened = partial(_opened, file, codec, errors)
    with opened("") as text:
        head = next((piece for piece in iter(lambda: text.read(4096), "") if piece.strip()), "")
    if kind_of_text(head, kind, path) == "delimited":
        return partial(_of_delimited, opened, path, notes)
    if head.lstrip().startswith("["):
        return lambda config, bad: _whole(path, config, "tables")
    return partial(_of_json_lines, opened, path, notes)


def _stream(source: _Source, config: DataConfig, bad: Bad | None, left_out: dict[str, str]) -> Stream:
    check_columns(source.names, source.n_rows, source.name, config)
    column = text_column(source.names, source.name, config)
    where = f"{source.name}, column {column!r}"
    nested = column in source.nested

    def pieces(bad: Bad | None) -> Iterator[Chunk]:
        first = 1
        for cells in source.pieces():
            n_rows = len(cells[column])
            if nested and bad is not None:
                usable = _usable(cells[column], first, where, bad)
                cells = {name: list(itertools.compress(values, usable)) for name, values in cells.items()}
            yield cells, [text or "" for text in texts_of(cells[column], where, first)]
            first += n_rows

    n_rows = source.n_rows
    if nested:  # read through once more, to find the cells
        n_rows = sum(len(texts) for _, texts in pieces(bad))
    if not n_rows:
        raise DataError("not one row can be read", where=source.name, remedy="Check that it is the right file.")

    def types() -> tuple[dict[str, Any], bool]:
        if source.types is not None:
            return source.types, True
        return common_types(cells for cells, _ in pieces(_ignore if bad else None)), False

    return Stream(
        source.name,
        lambda: pieces(_ignore if bad else None),
        n_rows,
        tuple(source.notes),
        tuple(left_out.items()),
        types,
    )


def _usable(values: list[Any], first: int, where: str, bad: Bad) -> list[bool]:
    usable = []
    for row, value in enumerate(values, start=first):
        try:
            refuse_nested(value, row, where, "--text-column")
        except DataError as error:
            bad(f"row {row:,}", error.what.removeprefix(f"row {row:,} "))
            usable.append(False)
        else:
            usable.append(True)
    return usable


def _note(left_out: dict[str, str], place: str, why: str) -> None:
    left_out.setdefault(place, why)


def _ignore(place: str, why: str) -> None:
    """It was told before."""


def _whole(source: Any, config: DataConfig, extra: str) -> _Source:
    """Read a table whole, with what an extra of bertsmith brings."""

    @needing(extra, "reading this input")
    def read() -> RawTable:
        from bertsmith.data.sources import read_raw

        return read_raw(source, config)

    raw = read()
    names = list(raw.frame.columns)

    def pieces() -> Iterator[Cells]:
        for start in range(0, len(raw.frame), PIECE):
            yield {name: raw.frame[name].iloc[start : start + PIECE].tolist() for name in names}

    types = raw.frame.attrs.get("arrow")
    return _Source(raw.name, names, pieces, len(raw.frame), set(names), list(raw.notes), types)


def _of_arrow(file: BinaryIO, path: Path, kind: str, *, config: DataConfig, bad: Bad | None) -> _Source:
    schema, batches = arrow_chunks(file, path, kind, PIECE)
    n_rows = size = 0
    for piece in batches:
        n_rows, size = n_rows + piece.num_rows, size + piece.nbytes
        check_size(size, config.max_unpacked, path)

    def pieces() -> Iterator[Cells]:
        for piece in arrow_chunks(file, path, kind, PIECE)[1]:
            yield {name: column.to_pylist() for name, column in zip(schema.names, piece.columns, strict=True)}

    types = dict(zip(schema.names, schema.types, strict=True))
    nested = {name for name, kind in types.items() if is_nested(kind)}
    return _Source(path.name, list(schema.names), pieces, n_rows, nested, types=types)


def _of_delimited(
    opened: Callable[[str], Any], path: Path, notes: list[Note], *, config: DataConfig, bad: Bad | None
) -> _Source:
    def scan(names: list[str], rows: Iterable[Row]) -> tuple[list[str], int]:
        return names, sum(1 for _ in rows)

    def ragged(line: int, n_fields: int) -> None:
        assert bad is not None
        bad(f"line {line:,}", f"it has {n_fields} fields, not those of the header")

    dialect, (names, n_rows), more = find_dialect(
        lambda: opened(""), path.name, promised_delimiter(path), scan, ragged if bad else None
    )

    def pieces() -> Iterator[Cells]:
        with opened("") as text:
            rows = itertools.islice(dialect.rows(text, path.name, lambda line, n: None), 1, None)
            for some in _batched(rows):
                columns = zip(*(fields for _, fields in some), strict=True)
                yield {name: list(values) for name, values in zip(names, columns, strict=True)}

    return _Source(path.name, names, pieces, n_rows, notes=[*notes, *more])


def _of_json_lines(
    opened: Callable[[str], Any], path: Path, notes: list[Note], *, config: DataConfig, bad: Bad | None
) -> _Source:
    keys: dict[str, None] = {}
    nested: set[str] = set()
    n_rows = 0
    told = None if bad is None else lambda line, error: bad(f"line {line:,}", error.what)
    with opened("\n") as text:
        for _, record in json_lines(text, path.name, told):
            n_rows += 1
            keys.update(dict.fromkeys(record))
            nested.update(encodable_text(key) for key, value in record.items() if isinstance(value, list | dict))

    def encodable(value: Any) -> Any:
        return encodable_text(value) if isinstance(value, str) else value

    def pieces() -> Iterator[Cells]:
        with opened("\n") as text:
            skipped = None if bad is None else lambda line, error: None
            for some in _batched(json_lines(text, path.name, skipped)):
                yield {encodable_text(key): [encodable(record.get(key)) for _, record in some] for key in keys}

    names = [encodable_text(key) for key in keys]
    return _Source(path.name, names, pieces, n_rows, nested, notes)


def _lines(file: BinaryIO, path: Path, config: DataConfig) -> Stream:
    """A line is a text, an empty one too, so that predictions stay beside their lines."""
    codec, errors, notes = codec_of(file, path.name, config.encoding)

    def texts() -> Iterator[str]:
        with _opened(file, codec, errors, "\n") as text:
            for line in text:
                yield line.removesuffix("\n").removesuffix("\r")

    def pieces() -> Iterator[Chunk]:
        for some in _batched(texts()):
            yield lines_chunk(some)

    n_rows, anything = 0, False
    for line in texts():
        n_rows, anything = n_rows + 1, anything or bool(line.strip())
    if not anything:
        raise DataError("the file is empty", where=str(path), remedy="Give one text a line.")
    return Stream(
        path.name,
        pieces,
        n_rows,
        tuple(notes),
        types=lambda: (common_types(cells for cells, _ in itertools.islice(pieces(), 1)), False),
        path=path,
    )


def lines_chunk(texts: list[str]) -> Chunk:
    """Return a piece of texts that have no other columns."""
    return {"text": list(texts)}, texts


@contextmanager
def _opened(file: BinaryIO, codec: str, errors: str, newline: str) -> Iterator[TextIO]:
    file.seek(0)
    text = io.TextIOWrapper(file, encoding=codec, errors=errors, newline=newline)
    try:
        if text.read(1) != "\ufeff":
            text.seek(0)
        yield text
    finally:
        if not file.closed:  # as it is where reading was given up halfway
            text.detach()


def _batched(items: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    while some := list(itertools.islice(iterator, PIECE)):
        yield some
