"""Excel workbooks and their kin."""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd

from bertsmith.config import DataConfig
from bertsmith.data.files import check_size
from bertsmith.data.table import Note, RawTable
from bertsmith.errors import DataError, MissingPackageError, listing, quoted


def read_excel(content: bytes, path: Path, config: DataConfig) -> RawTable:
    """Read a sheet of a workbook, the first unless one is named.

    Raises:
        DataError: if it is damaged, empty, unpacks to too much, or has no such sheet.
    """
    sheet = config.sheet
    try:
        import python_calamine
    except ImportError as error:
        raise MissingPackageError(
            "python_calamine", "reading Excel", where=str(path), otherwise="Or save the table as CSV."
        ) from error
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            check_size(sum(entry.file_size for entry in packed.infolist()), config.max_unpacked, path)
    try:
        book = python_calamine.CalamineWorkbook.from_filelike(io.BytesIO(content))
        names = book.sheet_names
        if sheet is not None and sheet not in names:
            raise DataError(
                f"there is no sheet {quoted(sheet)}",
                where=f"{path}, whose sheets are {listing(names)}",
                remedy="Check --sheet.",
            )
        name = sheet or names[0]
        rows = book.get_sheet_by_name(name).to_python(skip_empty_area=True)
    except python_calamine.CalamineError as error:
        raise DataError(
            f"the Excel file cannot be read: {error}", where=str(path), remedy="Save it again as .xlsx."
        ) from error
    rows = [row for row in rows if any(cell != "" for cell in row)]
    if not rows:
        raise DataError(
            f"the sheet {name!r} is empty", where=str(path), remedy=f"Pass --sheet; there are {listing(names)}."
        )
    header = [str(cell).strip() or f"column {i}" for i, cell in enumerate(rows[0], start=1)]
    frame = pd.DataFrame(
        {i: pd.Series([_excel_cell(row[i]) for row in rows[1:]], dtype=object) for i in range(len(header))}
    )
    frame.columns = pd.Index(header)
    notes = []
    if not sheet and len(names) > 1:
        notes.append(Note("info", f"sheet {name!r} was read; {path.name} also has {listing(names[1:])}"))
    if formulas := _formulas_without_value(content):
        message = (
            f"{formulas:,} formulas in {path.name} have no value in the file and were read as empty: open and save it"
        )
        notes.append(Note("warning", message, formulas))
    return RawTable(frame, path.name, tuple(notes))


def _formulas_without_value(content: bytes) -> int:
    """Return how many cells of an .xlsx file hold a formula that no spreadsheet has calculated yet."""
    if not zipfile.is_zipfile(io.BytesIO(content)):
        return 0
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        sheets = [name for name in packed.namelist() if re.fullmatch(r"xl/worksheets/[^/]+\.xml", name)]
        return sum(len(re.findall(rb"</f>\s*(?:<v\s*/>|<v></v>|</c>)", packed.read(name))) for name in sheets)


def _excel_cell(cell: Any) -> Any:
    """Return a cell as one reads it: Excel keeps every number as a float."""
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**63:
        return int(cell)
    return None if cell == "" else cell
