"""Predictions in files: CSV, JSON Lines, Parquet and Excel, written piece by piece."""

from __future__ import annotations

import base64
import csv
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from bertsmith.data.table import Cells
from bertsmith.data.texts import is_missing
from bertsmith.errors import ConfigError, listing
from bertsmith.inference.spreadsheet import Workbook, guarded_cell, quoting

FORMATS = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".xlsx": "xlsx",
}
TYPED = ("parquet", "xlsx")
"""Formats whose cells have types."""
COLUMNS = ("predicted", "predicted_text", "confidence")
ABSTAINED, LABEL_SET = "abstained", "label_set"
PROBABILITY = "probability of "


@dataclass(frozen=True)
class CsvStyle:
    """How CSV is written.

    Attributes:
        delimiter: between fields.
        decimal: the decimal separator of numbers.
        bom: begin with a byte order mark, without which Excel does not read UTF-8.
        guarded: guard cells that a spreadsheet would run as formulas: see `bertsmith.inference.spreadsheet.guard`.
    """

    delimiter: str = ","
    decimal: str = "."
    bom: bool = False
    guarded: bool = True


DIALECTS = {
    "plain": CsvStyle(),
    "excel": CsvStyle(bom=True),
    "excel-semicolon": CsvStyle(delimiter=";", decimal=",", bom=True),
}
"""What Excel opens by a double click where numbers have a decimal point, and where they have a decimal comma."""


class Writer(Protocol):
    """Takes rows with the same columns, piece by piece."""

    def write(self, cells: Cells) -> None:
        """Write some rows."""
        ...


def output_format(path: Path) -> str:
    """Return the format that a file's name asks for.

    Raises:
        ConfigError: if it asks for none of those we write.
    """
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ConfigError(
            f"predictions cannot be written as {path.suffix or 'a file without a suffix'!r}",
            where=str(path),
            remedy=f"Name the file with one of {listing(FORMATS)}.",
        )
    return kind


def part_of(kind: str) -> str:
    """Return the format in which a part of a file is kept until `join`: Excel files cannot be joined."""
    return "parquet" if kind == "xlsx" else kind


@contextmanager
def open_writer(
    kind: str,
    target: Path | IO[str],
    *,
    style: CsvStyle = DIALECTS["plain"],
    types: tuple[Mapping[str, Any], bool] = ({}, False),
    header: bool = True,
) -> Iterator[Writer]:
    """Open a writer for a format of `FORMATS`, on a file or on an open text stream (not for those of `TYPED`).

    Args:
        kind: the format.
        target: the file or stream.
        style: how CSV is written.
        types: the Arrow types of the input's columns, for Parquet and Excel, and whether its values are as Arrow gives
            them.
        header: begin CSV with the names of the columns.

    Raises:
        ConfigError: if the package for Excel is missing.
    """
    if kind == "parquet":
        assert isinstance(target, Path)
        writer = _Parquet(target, *types)
        try:
            yield writer
        finally:
            writer.close()
    elif kind == "xlsx":
        assert isinstance(target, Path)
        excel = _Excel(target, *types)
        yield excel
        excel.book.save()
    elif isinstance(target, Path):
        with target.open("w", encoding="utf-8", newline="") as stream:
            yield _Csv(stream, style, header) if kind == "csv" else _JsonLines(stream)
    else:
        yield _Csv(target, style, header) if kind == "csv" else _JsonLines(target)
        target.flush()


def join(kind: str, parts: Sequence[Path], target: Path) -> None:
    """Join what was written in parts, of which the first alone has a header, into one file.

    Parts of an Excel file are Parquet files: see `part_of`.
    """
    if kind not in TYPED:
        with target.open("wb") as whole:
            for path in parts:
                with path.open("rb") as part:
                    shutil.copyfileobj(part, whole)
        return
    import pyarrow.parquet as pq

    if kind == "xlsx":
        book = Workbook(target)
        for path in parts:
            book.write(_for_excel(pq.read_table(path)))
        book.save()
        return
    with pq.ParquetWriter(target, pq.read_schema(parts[0])) as writer:
        for path in parts:
            writer.write_table(pq.read_table(path).cast(writer.schema))


class _Csv:
    def __init__(self, stream: IO[str], style: CsvStyle, header: bool) -> None:
        self.writers = {
            how: csv.writer(stream, delimiter=style.delimiter, lineterminator="\n", quoting=how)
            for how in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
        }
        self.stream, self.style, self.header = stream, style, header

    def write(self, cells: Cells) -> None:
        names = list(cells)
        ours = names[names.index(COLUMNS[0]) :]
        columns = [[self._cell(value, name in ours) for value in cells[name]] for name in names]
        if self.header:
            self.stream.write("\ufeff" * self.style.bom)
            self._row([guarded_cell(name) if self.style.guarded else name for name in names])
        for row in zip(*columns, strict=True):
            self._row(row)
        self.header = False

    def _row(self, cells: Sequence[Any]) -> None:
        self.writers[quoting(cells)].writerow(cells)

    def _cell(self, value: Any, ours: bool) -> Any:
        cell = _of_ours(value) if ours else _of_input(value)
        if isinstance(value, float | Decimal):
            return str(cell).replace(".", self.style.decimal)
        return guarded_cell(cell) if self.style.guarded else cell


def _of_input(value: Any) -> Any:
    """Return a cell of the input as CSV has it: what is missing is empty, bytes are Base64, lists and objects JSON."""
    if isinstance(value, list | dict):
        return json.dumps(_json(value), ensure_ascii=False, default=str)
    return "" if is_missing(value) else _json(value) if isinstance(value, bytes) else value


def _of_ours(value: Any) -> Any:
    """Return a cell of ours as CSV has it: six decimals, and lists as JSON."""
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:.6f}" if isinstance(value, float) else value


class _JsonLines:
    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def write(self, cells: Cells) -> None:
        for values in zip(*cells.values(), strict=True):
            record = {name: _json(value) for name, value in zip(cells, values, strict=True)}
            self.stream.write(json.dumps(record, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def _json(value: Any) -> Any:
    """Return a value as JSON has it: what is missing, or no finite number, is null, bytes are Base64."""
    if is_missing(value):
        return None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {str(key): _json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_json(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


class _Excel:
    def __init__(self, path: Path, types: Mapping[str, Any], as_read: bool) -> None:
        self.book, self.types, self.as_read = Workbook(path), types, as_read

    def write(self, cells: Cells) -> None:
        self.book.write(_for_excel(to_arrow(cells, self.types, self.as_read)))


def _for_excel(table: Any) -> Cells:
    """Return the cells of an Arrow table as CSV has them, but numbers, dates and truth values as they are."""
    names = table.column_names
    ours = names[names.index(COLUMNS[0]) :]

    def cell(value: Any, name: str) -> Any:
        if isinstance(value, float) and name in ours:
            return round(value, 6)
        return None if is_missing(value) else _of_input(value)

    return {name: [cell(value, name) for value in table[name].to_pylist()] for name in names}


class _Parquet:
    def __init__(self, path: Path, types: Mapping[str, Any], as_read: bool) -> None:
        self.path, self.types, self.as_read = path, types, as_read
        self.writer: Any = None

    def write(self, cells: Cells) -> None:
        import pyarrow.parquet as pq

        table = to_arrow(cells, self.types, self.as_read)
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.path, table.schema)
        self.writer.write_table(table.cast(self.writer.schema))

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def to_arrow(cells: Cells, types: Mapping[str, Any], as_read: bool) -> Any:
    """Return rows as an Arrow table.

    Args:
        cells: the columns of the input, then ours.
        types: of the columns of the input, by name.
        as_read: whether the values of the input are as Arrow gives them: then NaN is no missing value.
    """
    import pyarrow as pa

    columns = {}
    for name, values in cells.items():
        kind = types.get(name) or _type_of_ours(name)
        if kind == pa.string() and not as_read:
            values = [None if is_missing(value) else str(_of_input(value)) for value in values]
        columns[name] = pa.array(values, type=kind, from_pandas=not as_read)
    return pa.table(columns)


def _type_of_ours(name: str) -> Any:
    import pyarrow as pa

    if name.startswith(PROBABILITY):
        return pa.float64()
    types = (pa.int64(), pa.string(), pa.float64(), pa.bool_(), pa.list_(pa.string()))
    return dict(zip((*COLUMNS, ABSTAINED, LABEL_SET), types, strict=True)).get(name)
