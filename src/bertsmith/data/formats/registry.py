"""The file formats of tables, and how to recognise them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bertsmith.config import DataConfig, is_arrow_table
from bertsmith.data.columns import check_columns
from bertsmith.data.formats import arrow, delimited, excel, json_records
from bertsmith.data.formats.files import TableFile, open_binary
from bertsmith.data.table import Cells, ChunkedTable, OnBadRow, RawTable, to_frame
from bertsmith.data.texts import replace_surrogates
from bertsmith.errors import DataError, quoted


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        name: for messages.
        suffixes: endings of file names, in lower case.
        read: reads a file in chunks of the given number of rows; ``None`` means chunks of any size. It reports
            rows that cannot be read to the callback and skips them; without a callback, it raises a `RowError`.
        magic: first bytes of such files; empty for text formats.
    """

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[TableFile, int | None, OnBadRow | None], ChunkedTable]
    magic: tuple[bytes, ...] = ()


DELIMITED = Format("delimited text", (".csv", ".tsv", ".tab", ".txt"), delimited.read_delimited)
JSON_LINES = Format("JSON Lines", (".jsonl", ".ndjson", ".json"), json_records.read_json_lines)
JSON_ARRAY = Format("JSON", (), json_records.read_json_array)
PARQUET = Format("Parquet", (".parquet", ".pq"), partial(arrow.read_arrow, kind="Parquet"), (b"PAR1",))
FEATHER = Format("Feather", (".feather", ".arrow"), partial(arrow.read_arrow, kind="Feather"), (b"ARROW1",))
EXCEL = Format("Excel", (".xlsx", ".xls", ".xlsb", ".ods"), excel.read_excel, (b"PK\x03\x04", b"\xd0\xcf\x11\xe0"))
FORMATS = (DELIMITED, JSON_LINES, JSON_ARRAY, PARQUET, FEATHER, EXCEL)

_UNSUPPORTED = {
    b"\x1f\x8b": "a gzip file in another gzip file",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a rar archive",
    b"%PDF": "a PDF document",
    b"\x80\x04": "a pickle, which bertsmith never opens because it can run code",
    b"\x80\x05": "a pickle, which bertsmith never opens because it can run code",
}


def read_file(path: Path, config: DataConfig) -> RawTable:
    """Read a whole table file.

    Raises:
        DataError: if it is missing, damaged, empty, too large unpacked, or of an unknown format.
    """
    with open_table(path, config) as (file_format, file):
        return collect(file_format.read(file, None, None), config)


def collect(table: ChunkedTable, config: DataConfig) -> RawTable:
    """Return a whole table.

    Raises:
        DataError: if it has no rows, or wrong columns.
    """
    import pandas as pd

    check_columns(table.columns, table.n_rows, table.name, config)
    columns: Cells = {name: [] for name in table.columns}
    for cells in table.chunks():
        for name, values in cells.items():
            columns[name] += values
    frame = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in columns.items()})
    return RawTable(frame, replace_surrogates(table.name), table.notes)  # a file name need not be UTF-8


def to_data_frame(table: Any) -> Any:
    """Return an Arrow table as a data frame of pandas, and any other value unchanged.

    Raises:
        DataError: if it has no rows, or wrong columns.
    """
    if not is_arrow_table(table):
        return table
    frame = collect(arrow.read_stream(table, f"the {type(table).__name__}", None), DataConfig()).frame
    return to_frame({str(name): cells.tolist() for name, cells in frame.items()})


@contextlib.contextmanager
def open_table(path: Path, config: DataConfig) -> Iterator[tuple[Format, TableFile]]:
    """Open a table file and detect its format: by its first bytes, else by its name.

    Raises:
        DataError: if it is missing, too large unpacked, empty, of an unknown format, or not what its name says.
    """
    with open_binary(path, config.max_unpacked) as binary:
        file = TableFile(path, binary, config)
        file_format = _detect_format(file)
        yield file_format if file_format.magic else _detect_text_format(file, file_format), file


def _detect_format(file: TableFile) -> Format:
    where, suffix, config = str(file.path), file.suffix, file.config
    file.binary.seek(0)
    head = file.binary.read(4096)
    found = next((f for f in FORMATS if f.magic and head.startswith(f.magic)), None)
    unsupported = next((name for magic, name in _UNSUPPORTED.items() if head.startswith(magic)), None)
    if unsupported is not None or (head[257:262] == b"ustar" and found is None):
        raise DataError(
            f"the file is {unsupported or 'a tar archive'}",
            where=where,
            remedy="Save the table as CSV, JSON Lines, Parquet, Feather or Excel.",
        )
    if head.startswith(b"SQLite format 3"):
        raise DataError(
            "the file is an SQLite database", where=where, remedy=f"Pass --db sqlite:///{file.path} and a --sql query."
        )
    if found is None:
        found = next((f for f in FORMATS if suffix in f.suffixes), DELIMITED)
        if found.magic:
            raise DataError(
                f"the file has the suffix {suffix}, but its content is not {found.name}",
                where=where,
                remedy="Correct the suffix (.csv, .jsonl, …), or save the file again.",
            )
    if found is EXCEL and suffix == ".zip":
        raise DataError("the file is a zip archive", where=where, remedy="Unpack it and pass the table inside.")
    while not head.strip(b" \t\r\n\0"):
        if not head:
            raise DataError("the file is empty", where=where, remedy="Check that it is the right file.")
        head = file.binary.read(2**20)
    if config.sheet is not None and found is not EXCEL:
        raise DataError(
            f"the file is not an Excel workbook and has no sheet {quoted(config.sheet)}",
            where=where,
            remedy="Omit --sheet.",
        )
    if config.encoding is not None and found.magic:
        raise DataError(f"--encoding does not apply to {found.name} files", where=where, remedy="Omit --encoding.")
    return found


def _detect_text_format(file: TableFile, by_name: Format) -> Format:
    first = file.text.head().lstrip()[:1]
    if first == "<":
        raise DataError("the file is HTML or XML, not a table", where=str(file.path), remedy="Save the table as CSV.")
    if first == "[":
        return JSON_ARRAY
    return JSON_LINES if first == "{" else by_name
