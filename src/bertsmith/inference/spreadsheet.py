"""Tables for spreadsheets: Excel workbooks, and CSV of which no cell becomes a formula."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bertsmith.errors import DataError, MissingPackageError

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = re.compile(r"[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
ROWS, COLUMNS, CHARACTERS, DIGITS = 1_048_576, 16_384, 32_767, 15
"""What fits into a sheet of Excel, the header counted, into a row, into a cell, and into a number."""
_FIRST_DAY = date(1900, 3, 1)
"""The first date that Excel and everybody else count alike."""
_ESCAPED = re.compile(r"[\x00-\x08\x0b-\x1f]|_(?=x[0-9A-Fa-f]{4}_)|\A\s(?=\s*\Z)")
"""What a workbook holds as ``_xHHHH_``: control characters, what looks like that, and space with no text after it."""
_NO_CHARACTERS = str.maketrans(dict.fromkeys("\ufffe\uffff", "\ufffd"))
"""Code points that XML cannot hold at all."""
_ELSEWHERE = "Write a .csv, .jsonl or .parquet file."


class Workbook:
    """An Excel file of one sheet, written row by row in constant memory; texts stay texts whatever they begin with.

    Raises:
        MissingPackageError: if the package openpyxl is missing.
    """

    def __init__(self, path: Path) -> None:
        try:
            import openpyxl
            from openpyxl.cell import WriteOnlyCell
        except ImportError as error:
            raise MissingPackageError(
                "openpyxl", "writing Excel", where=str(path), otherwise=f"Or: {_ELSEWHERE}"
            ) from error
        self.path, self.make = path, WriteOnlyCell
        self.book = openpyxl.Workbook(write_only=True)
        self.sheet = self.book.create_sheet("predictions")
        self.rows = 0

    def write(self, cells: Mapping[str, list[Any]]) -> None:
        """Write some rows, the names of the columns before the first.

        Raises:
            DataError: if they do not fit.
        """
        columns = _fitting(cells, self.rows)
        if not self.rows:
            self._append(columns)
        for values in zip(*columns.values(), strict=True):
            self._append(values)

    def _append(self, values: Iterable[Any]) -> None:
        self.sheet.append([self._text(v) if isinstance(v, str) and v[:1] in ("=", "#") else v for v in values])
        self.rows += 1

    def _text(self, text: str) -> Any:
        """Return a cell for what openpyxl would take for a formula, such as =1+1, or for an error, such as #N/A."""
        cell = self.make(self.sheet, text)
        cell.data_type = "s"
        return cell

    def save(self) -> None:
        """Write the file."""
        self.book.save(self.path)


def check_fits(pieces: Iterable[Mapping[str, list[Any]]]) -> None:
    """See that a table fits into a sheet of Excel, before any work is done.

    Raises:
        DataError: naming the row and column that do not.
    """
    rows = 0
    for cells in pieces:
        rows += len(next(iter(_fitting(cells, rows).values())))


def _fitting(cells: Mapping[str, list[Any]], before: int) -> dict[str, list[Any]]:
    """Return rows as Excel holds them.

    Args:
        cells: the columns.
        before: rows of the sheet that are written, the header counted.
    """
    first = max(before, 1)
    if first + len(next(iter(cells.values()))) > ROWS:
        raise DataError(
            f"there are more rows than a sheet of Excel holds: {ROWS - 1:,} besides the header", remedy=_ELSEWHERE
        )
    if len(cells) > COLUMNS:
        raise DataError(f"there are {len(cells):,} columns, and a sheet of Excel holds {COLUMNS:,}", remedy=_ELSEWHERE)
    return {
        _cell(name, "the header", name): [
            _cell(value, f"row {row:,}", name) for row, value in enumerate(values, start=first)
        ]
        for name, values in cells.items()
    }


def _cell(value: Any, row: str, column: str) -> Any:
    """Return a value that is not missing as Excel holds it: a number, a date, a truth value, or a text."""
    if isinstance(value, datetime) and value.tzinfo is None and value.date() >= _FIRST_DAY:
        return datetime(*value.timetuple()[:6], value.microsecond)  # pandas has a type of its own
    if type(value) is date and value >= _FIRST_DAY:
        return value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 10**DIGITS:
        return value
    if isinstance(value, float) and abs(value) != float("inf"):
        return value
    if isinstance(value, Decimal) and value.is_finite() and len(value.as_tuple().digits) <= DIGITS:
        return float(value)
    text = _ESCAPED.sub(lambda found: f"_x{ord(found[0]):04X}_", str(value).translate(_NO_CHARACTERS))
    if len(text.encode("utf-16-le")) > 2 * CHARACTERS:
        raise DataError(
            f"a text of {len(str(value)):,} characters does not fit into a cell of Excel, which holds {CHARACTERS:,}",
            where=f"{row}, column {column!r}",
            remedy=_ELSEWHERE,
        )
    return text


def guard(frame: pd.DataFrame) -> pd.DataFrame:
    """Put an apostrophe before every cell and column name that a spreadsheet would run as a formula.

    These begin with ``=``, ``+``, ``-``, ``@``, a tab or a carriage return; numbers stay as they are.
    Source: OWASP, CSV Injection.
    """
    import pandas as pd

    text = [not pd.api.types.is_numeric_dtype(dtype) for dtype in frame.dtypes]
    columns = [
        # as objects: a whole number beside a missing one must not become a float
        pd.Series([guarded_cell(cell) for cell in frame.iloc[:, i]], index=frame.index, dtype=object)
        if text[i]
        else frame.iloc[:, i]
        for i in range(frame.shape[1])
    ]
    guarded = pd.concat(columns, axis=1) if columns else frame.copy()
    guarded.columns = [guarded_cell(name) for name in frame.columns]
    return guarded


def quoting(values: Iterable[Any]) -> Literal[0, 1]:
    """Return how ``csv`` has to quote a row: all of it if a cell has a carriage return, which it leaves bare."""
    returns = any(isinstance(value, str) and "\r" in value for value in values)
    return csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL


def write_csv(frame: pd.DataFrame, file: Path) -> None:
    """Write a frame as CSV that a spreadsheet opens without running a cell, each text in a cell of its own."""
    safe = guard(frame)
    texts = (value for column in safe.select_dtypes(exclude="number") for value in safe[column])
    safe.to_csv(file, index=False, quoting=quoting([*safe.columns, *texts]))


def guarded_cell(cell: Any) -> Any:
    """Return a cell as `guard` does."""
    if isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBER.fullmatch(cell):
        return f"'{cell}"
    return cell
