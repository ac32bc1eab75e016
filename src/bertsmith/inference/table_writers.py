"""Writers of prediction files: CSV, JSON Lines, Parquet and Excel."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bertsmith.data.formats.arrow import to_cells
from bertsmith.data.table import Cells
from bertsmith.data.texts import guarded_cell, is_missing, json_ready, not_scalar, quoting
from bertsmith.errors import ConfigError, listing
from bertsmith.inference.spreadsheet import Workbook

if TYPE_CHECKING:
    import pandas as pd

FORMATS = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".xlsx": "xlsx",
}
TYPED = ("parquet", "xlsx")
"""Formats with typed cells."""
PREDICTED, PREDICTED_TEXTS = "predicted", "predicted_texts"
ABSTAINED, LABEL_SET, LOWER, UPPER = "abstained", "label_set", "lower", "upper"
PROBABILITY = "probability of "


@dataclass(frozen=True)
class CsvStyle:
    """Style of CSV files.

    Attributes:
        delimiter: field separator.
        decimal: decimal separator.
        bom: begin with a byte order mark, which Excel needs to read UTF-8.
        guarded: guard cells against formulas; see `bertsmith.data.texts.guarded_cell`.
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
"""Plain CSV, and CSV for Excel in regions with a decimal point or a decimal comma."""


def output_format(path: Path) -> str:
    """Return the format of a file by its suffix.

    Raises:
        ConfigError: if the suffix is not supported.
    """
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ConfigError(
            f"the suffix {path.suffix!r} is not an output format",
            where=str(path),
            remedy=f"Use one of the suffixes {listing(FORMATS)}.",
        )
    return kind


def part_of(kind: str) -> str:
    """Return the format of the parts that `join` takes: Excel files cannot be joined, so their parts are Parquet."""
    return "parquet" if kind == "xlsx" else kind


@contextmanager
def open_writer(
    kind: str,
    target: Path | IO[str],
    *,
    style: CsvStyle = DIALECTS["plain"],
    types: tuple[Mapping[str, Any], bool] = ({}, False),
    header: bool = True,
    predictions: bool = True,
) -> Iterator[_Csv | _JsonLines | _Excel | _Parquet]:
    """Open a writer for a format of `FORMATS`.

    Args:
        kind: the format.
        target: the file, or an open text stream for formats that are not in `TYPED`.
        style: of CSV files.
        types: Arrow types of the input columns, and ``as_read`` of `to_arrow`, for formats in `TYPED`.
        header: whether CSV begins with the column names.
        predictions: whether predictions follow the input columns. If not, ``types`` has all columns.

    Raises:
        ConfigError: if the package openpyxl is missing.
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
        excel = _Excel(target, *types, predictions)
        yield excel
        excel.book.save()
    elif isinstance(target, Path):
        with target.open("w", encoding="utf-8", newline="") as stream:
            yield _Csv(stream, style, header, predictions) if kind == "csv" else _JsonLines(stream)
    else:
        yield _Csv(target, style, header, predictions) if kind == "csv" else _JsonLines(target)
        target.flush()


def write_csv(frame: pd.DataFrame, file: Path) -> None:
    """Write a frame as CSV that a spreadsheet opens cell by cell, without formulas."""
    with open_writer("csv", file, predictions=False) as writer:
        writer.write({str(name): frame[name].tolist() for name in frame})


def join(kind: str, parts: Sequence[Path], target: Path) -> None:
    """Join parts, in the format of `part_of`, into one file; only the first part has a header."""
    if kind not in TYPED:
        with target.open("wb") as joined:
            for path in parts:
                with path.open("rb") as part:
                    shutil.copyfileobj(part, joined)
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
    def __init__(self, stream: IO[str], style: CsvStyle, header: bool, predictions: bool) -> None:
        self.writers = {
            mode: csv.writer(stream, delimiter=style.delimiter, lineterminator="\n", quoting=mode)
            for mode in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
        }
        self.stream, self.style, self.header, self.predictions = stream, style, header, predictions

    def write(self, cells: Cells) -> None:
        names, added = list(cells), _added(cells) if self.predictions else []
        columns = [
            [self._cell(value, name, name in added) for value in _joined_labels(cells, name, added)] for name in names
        ]
        if self.header:
            self.stream.write("\ufeff" * self.style.bom)
            self._row([guarded_cell(name) if self.style.guarded else name for name in names])
        for row in zip(*columns, strict=True):
            self._row(row)
        self.header = False

    def _row(self, cells: Sequence[Any]) -> None:
        self.writers[quoting(cells)].writerow(cells)

    def _cell(self, value: Any, name: str, added: bool) -> Any:
        cell = _added_cell(value, name) if added else _input_cell(value)
        if isinstance(value, float | Decimal):
            return str(cell).replace(".", self.style.decimal)
        return guarded_cell(cell) if self.style.guarded else cell


def _input_cell(value: Any) -> Any:
    """Return an input cell for CSV: missing values are empty, bytes Base64, lists, arrays and objects JSON."""
    if not_scalar(value):
        ready = json_ready(value)
        return ready if isinstance(value, bytes) else json.dumps(ready, ensure_ascii=False, default=str)
    return "" if is_missing(value) else value


def _added_cell(value: Any, name: str) -> Any:
    """Return an output cell for CSV: numbers have ten digits, probabilities have six decimals, lists are JSON."""
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    return format(value, ".10g" if name in (PREDICTED, LOWER, UPPER) else ".6f") if isinstance(value, float) else value


class _JsonLines:
    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def write(self, cells: Cells) -> None:
        for values in zip(*cells.values(), strict=True):
            record = {name: json_ready(value) for name, value in zip(cells, values, strict=True)}
            self.stream.write(json.dumps(record, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def _added(names: Iterable[str]) -> list[str]:
    """Return the columns of the predictions: they follow the input columns, and `PREDICTED` is the first."""
    return list(itertools.dropwhile(lambda name: name != PREDICTED, names))


def _joined_labels(cells: Cells, name: str, added: Sequence[str]) -> list[Any]:
    """Return a column for formats without lists: the predicted labels of a text are joined by ``;``."""
    if name not in (PREDICTED, PREDICTED_TEXTS) or PREDICTED_TEXTS not in added:
        return cells[name]
    return [";".join(map(str, value)) if isinstance(value, list) else value for value in cells[name]]


class _Excel:
    def __init__(self, path: Path, types: Mapping[str, Any], as_read: bool, predictions: bool) -> None:
        self.book, self.types, self.as_read, self.predictions = Workbook(path), types, as_read, predictions

    def write(self, cells: Cells) -> None:
        self.book.write(_for_excel(to_arrow(cells, self.types, self.as_read), self.predictions))


def _for_excel(table: Any, predictions: bool = True) -> Cells:
    """Return the cells of an Arrow table as in CSV, but with numbers, dates and Booleans as they are."""
    names = table.column_names
    added = _added(names) if predictions else []
    cells: Cells = {name: to_cells(table[name]) for name in names}

    def cell(value: Any, name: str) -> Any:
        if isinstance(value, float) and name in added:
            return float(_added_cell(value, name))
        return None if is_missing(value) else _input_cell(value)

    return {name: [cell(value, name) for value in _joined_labels(cells, name, added)] for name in names}


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
        cells: the columns of the input, then those of the predictions.
        types: Arrow types of the input columns, by name.
        as_read: whether the values come from Arrow; NaN is then not a missing value.
    """
    import pyarrow as pa

    columns, added = {}, _added(cells)
    for name, values in cells.items():
        kind = types.get(name) or _added_type(name, added)
        if kind == pa.string() and not set(map(type, values)) <= {str, type(None)}:
            values = [None if is_missing(value) else str(_input_cell(value)) for value in values]
        columns[name] = pa.array(values, type=kind, from_pandas=not as_read)
    return pa.table(columns)


def _added_type(name: str, added: Sequence[str]) -> Any:
    import pyarrow as pa

    if name.startswith(PROBABILITY):
        return pa.float64()
    if name == PREDICTED:
        one_class = pa.int64() if "predicted_text" in added else pa.float64()
        return pa.list_(pa.int64()) if PREDICTED_TEXTS in added else one_class
    types = {
        "predicted_text": pa.string(),
        PREDICTED_TEXTS: pa.list_(pa.string()),
        "confidence": pa.float64(),
        ABSTAINED: pa.bool_(),
        LABEL_SET: pa.list_(pa.string()),
        LOWER: pa.float64(),
        UPPER: pa.float64(),
    }
    return types.get(name)
