"""Tables for spreadsheets: Excel workbooks, and CSV without formulas."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from bertsmith.errors import DataError, MissingPackageError, lower_first

ROWS, COLUMNS, CHARACTERS, DIGITS = 1_048_576, 16_384, 32_767, 15
"""Limits of Excel: rows per sheet with the header, columns per sheet, characters per cell, digits per number."""
_FIRST_DAY = date(1900, 3, 1)
"""Excel counts a 29 February 1900, so earlier dates are off by a day."""
_ESCAPED = re.compile(r"[\x00-\x08\x0b-\x1f]|_(?=x[0-9A-Fa-f]{4}_)|\A\s(?=\s*\Z)")
"""What a workbook stores as ``_xHHHH_``: control characters, literal ``_xHHHH_``, and cells of white space."""
_NOT_XML = str.maketrans(dict.fromkeys("\ufffe\uffff", "\ufffd"))
"""Code points that XML does not allow."""
_OTHER_FORMATS = "Write a .csv, .jsonl or .parquet file."


class Workbook:
    """An Excel file with one sheet, written row by row in constant memory. Strings never become formulas or errors.

    Raises:
        MissingPackageError: if the package openpyxl is missing.
    """

    def __init__(self, path: Path) -> None:
        try:
            import openpyxl
            from openpyxl.cell import WriteOnlyCell
        except ImportError as error:
            raise MissingPackageError(
                "openpyxl", "writing Excel", where=str(path), otherwise=f"Or {lower_first(_OTHER_FORMATS)}"
            ) from error
        self.path, self.cell_class = path, WriteOnlyCell
        self.book = openpyxl.Workbook(write_only=True)
        self.sheet = self.book.create_sheet("predictions")
        self.rows = 0

    def write(self, cells: Mapping[str, list[Any]]) -> None:
        """Write rows, after a header before the first.

        Raises:
            DataError: if they exceed the limits of Excel.
        """
        columns = _excel_cells(cells, self.rows)
        if not self.rows:
            self._append(columns)
        for values in zip(*columns.values(), strict=True):
            self._append(values)

    def _append(self, values: Iterable[Any]) -> None:
        self.sheet.append([self._text(v) if isinstance(v, str) and v[:1] in ("=", "#") else v for v in values])
        self.rows += 1

    def _text(self, text: str) -> Any:
        """Return a string cell; openpyxl would store =1+1 as a formula and #N/A as an error."""
        cell = self.cell_class(self.sheet, text)
        cell.data_type = "s"
        return cell

    def save(self) -> None:
        """Write the file."""
        self.book.save(self.path)


def check_fits(chunks: Iterable[Mapping[str, list[Any]]]) -> None:
    """Check that a table fits into an Excel sheet, before any prediction.

    Raises:
        DataError: with the row and column that do not fit.
    """
    rows = 1  # the header
    for cells in chunks:
        rows += len(next(iter(_excel_cells(cells, rows).values())))


def _excel_cells(cells: Mapping[str, list[Any]], written: int) -> dict[str, list[Any]]:
    """Return the columns with cells as Excel stores them; ``written`` counts rows in the sheet, with the header."""
    first = max(written, 1)
    if first + len(next(iter(cells.values()))) > ROWS:
        raise DataError(
            f"the table has more than {ROWS - 1:,} rows, the limit of an Excel sheet", remedy=_OTHER_FORMATS
        )
    if len(cells) > COLUMNS:
        raise DataError(
            f"the table has {len(cells):,} columns; the limit of an Excel sheet is {COLUMNS:,}", remedy=_OTHER_FORMATS
        )
    return {
        _cell(name, "the header", name): [
            _cell(value, f"row {row:,}", name) for row, value in enumerate(values, start=first)
        ]
        for name, values in cells.items()
    }


def _cell(value: Any, row: str, column: str) -> Any:
    """Return a value as Excel stores it: a number, a date, a Boolean, a string, or ``None``."""
    if isinstance(value, datetime) and value.tzinfo is None and value.date() >= _FIRST_DAY:
        return datetime(*value.timetuple()[:6], value.microsecond)  # pandas has its own type
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
    text = _ESCAPED.sub(lambda found: f"_x{ord(found[0]):04X}_", str(value).translate(_NOT_XML))
    if len(text.encode("utf-16-le")) > 2 * CHARACTERS:
        raise DataError(
            f"a text has {len(str(value)):,} characters; the limit of an Excel cell is {CHARACTERS:,}",
            where=f"{row}, column {column!r}",
            remedy=_OTHER_FORMATS,
        )
    return text
