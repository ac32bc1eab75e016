"""Excel and OpenDocument workbooks."""

from __future__ import annotations

import io
import posixpath
import re
import zipfile
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from bertsmith.data.formats.files import TableFile, check_unpacked_size
from bertsmith.data.table import Cells, ChunkedTable, Note, OnBadRow
from bertsmith.data.texts import to_text
from bertsmith.errors import DataError, MissingPackageError, counted, listing, quoted


def read_excel(file: TableFile, chunk_rows: int | None, on_bad_row: OnBadRow | None = None) -> ChunkedTable:
    """Read the sheet that ``config.sheet`` names, or the first one.

    Raises:
        DataError: if the file is damaged or too large unpacked, or the sheet is missing or empty.
    """
    path, sheet = file.path, file.config.sheet
    try:
        import python_calamine
    except ImportError as error:
        raise MissingPackageError(
            "python_calamine", "reading Excel", where=str(path), otherwise="Or save the table as CSV."
        ) from error
    file.binary.seek(0)
    content = io.BytesIO(file.binary.read())
    try:
        if zipfile.is_zipfile(content):
            with zipfile.ZipFile(content) as packed:
                n_bytes = sum(entry.file_size for entry in packed.infolist())
            check_unpacked_size(n_bytes, file.config.max_unpacked, path)
        content.seek(0)
        book = python_calamine.CalamineWorkbook.from_filelike(content)
        names = book.sheet_names
        if sheet is not None and sheet not in names:
            raise DataError(
                f"the workbook has no sheet {quoted(sheet)}",
                where=f"{path}, with the sheets {listing(names)}",
                remedy="Check --sheet.",
            )
        name = sheet or names[0]
        rows = book.get_sheet_by_name(name).to_python(skip_empty_area=True)
        n_formulas = _count_formulas_without_value(content, name)
    except (python_calamine.CalamineError, zipfile.BadZipFile) as error:
        raise DataError(
            f"the Excel file cannot be read: {error}", where=str(path), remedy="Save it again as .xlsx."
        ) from error
    filled = [i for i, row in enumerate(rows) if any(cell != "" for cell in row)]
    if not filled:
        raise DataError(
            f"the sheet {name!r} is empty",
            where=f"{path}, with the sheets {listing(names)}",
            remedy="Name another sheet with --sheet.",
        )
    rows = rows[filled[0] : filled[-1] + 1]  # with blank rows in between, so that row n is the nth below the header
    header = [to_text(cell).strip() or f"column {i}" for i, cell in enumerate(rows[0], start=1)]

    def chunks() -> Iterator[Cells]:
        step = chunk_rows or len(rows)
        for start in range(1, len(rows), step):
            values = zip(*rows[start : start + step], strict=True)
            yield {column: [_cell_value(cell) for cell in cells] for column, cells in zip(header, values, strict=True)}

    notes = []
    if not sheet and len(names) > 1:
        notes.append(Note("info", f"bertsmith reads the sheet {name!r}; {path.name} also has {listing(names[1:])}"))
    if n_formulas:
        message = (
            f"sheet {name!r} of {path.name} has {counted(n_formulas, 'formula')} without a stored value, and bertsmith "
            "reads such cells as empty. Open the file in a spreadsheet program and save it again"
        )
        notes.append(Note("warning", message, n_formulas))
    return ChunkedTable(path.name, header, chunks, len(rows) - 1, notes=tuple(notes))


def _count_formulas_without_value(content: io.BytesIO, sheet: str) -> int:
    """Count the cells of a sheet of an .xlsx file with a formula that no spreadsheet has calculated yet."""
    if not zipfile.is_zipfile(content):
        return 0
    with zipfile.ZipFile(content) as packed:
        try:
            ids = [
                value
                for entry in ElementTree.fromstring(packed.read("xl/workbook.xml")).iter()
                if entry.get("name") == sheet
                for attribute, value in entry.items()
                if attribute.endswith("}id")
            ]
            links = ElementTree.fromstring(packed.read("xl/_rels/workbook.xml.rels"))
            target = next(link.get("Target", "") for link in links if link.get("Id") in ids)
            cells = packed.read(posixpath.join("xl", target).lstrip("/"))
        except (KeyError, StopIteration, ElementTree.ParseError):  # another format, such as .ods
            return 0
    formulas = re.findall(rb"<c\b([^>]*)>\s*<f\b[^>]*>[^<]*</f>\s*(<v\s*/>|<v></v>|</c>)", cells)
    # In a cell of type "str", an empty value is a stored empty string.
    return sum(end == b"</c>" or not re.search(rb"\bt=[\"']str[\"']", cell) for cell, end in formulas)


def _cell_value(cell: Any) -> Any:
    """Return whole numbers as integers, since Excel stores every number as a float, and empty cells as ``None``."""
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**63:
        return int(cell)
    return None if cell == "" else cell
