"""Every kind of file a table may be in."""

from __future__ import annotations

import gzip
import io
import json
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pandas as pd

from bertsmith.config import DataConfig
from bertsmith.data.delimited import decode, delimited
from bertsmith.data.raw import RawTable, encodable, encodable_text
from bertsmith.data.table import Note
from bertsmith.errors import DataError, listing

_BINARY = {b"PAR1": "parquet", b"ARROW1": "feather", b"PK\x03\x04": "excel", b"\xd0\xcf\x11\xe0": "excel"}
_OTHER = {
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a rar archive",
    b"%PDF": "a PDF document",
    b"\x80\x04": "a pickle, which bertsmith never opens because it can run code",
    b"\x80\x05": "a pickle, which bertsmith never opens because it can run code",
}
_SUFFIXES = {
    ".csv": "delimited",
    ".tsv": "delimited",
    ".tab": "delimited",
    ".txt": "delimited",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".feather": "feather",
    ".arrow": "feather",
    ".xlsx": "excel",
    ".xls": "excel",
    ".xlsb": "excel",
    ".ods": "excel",
}


def read_bytes(path: Path, most: float) -> bytes:
    """Return the bytes of a file, unpacked if it is gzip.

    Args:
        path: the file.
        most: GB that it may hold unpacked.

    Raises:
        DataError: if the file is missing, a folder, not readable, a damaged gzip, or holds too much.
    """
    where = str(path)
    try:
        if path.is_dir():
            raise DataError("this is a folder, not a table", where=where, remedy="Give the path of a file.")
        if path.exists() and not path.is_file():
            raise DataError("this is not a plain file", where=where, remedy="Save the table to a file first.")
        content = path.read_bytes()
    except FileNotFoundError as error:
        near = sorted(p.name for p in path.parent.glob("*") if p.suffix in _SUFFIXES) if path.parent.is_dir() else []
        hint = f" In that folder there are {listing(near, 5)}." if near else ""
        raise DataError("there is no such file", where=where, remedy=f"Check the path.{hint}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"the file cannot be read: {reason}", where=where, remedy="Check its path and that you may read it."
        ) from error
    if content[:2] == b"\x1f\x8b":
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
                content = file.read(int(most * 1e9) + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(
                f"the gzip file is damaged or cut short: {error}", where=where, remedy="Copy or download it again."
            ) from error
        _check_size(len(content), most, path)
        if content[:2] == b"\x1f\x8b":
            raise DataError("this is gzip within gzip", where=where, remedy="Unpack it once and give what is inside.")
    return content


def _check_size(size: int, most: float, path: Path) -> None:
    if size > most * 1e9:
        raise DataError(
            f"the file unpacks to more than {most:g} GB",
            where=str(path),
            remedy="If that is meant, pass a larger --max-unpacked (GB); else it is a decompression bomb.",
        )


def read_file(path: Path, config: DataConfig) -> RawTable:
    """Read a file, whatever its kind: by its first bytes, else by its name.

    Raises:
        DataError: if it is missing, damaged, too large unpacked, or of no known kind.
    """
    content = read_bytes(path, config.max_unpacked)
    name = path.name
    suffixes = [s.lower() for s in path.suffixes if s.lower() != ".gz"]
    kind = next((kind for magic, kind in _BINARY.items() if content.startswith(magic)), None)
    other = next((other for magic, other in _OTHER.items() if content.startswith(magic)), None)
    if other is not None or (content[257:262] == b"ustar" and kind is None):
        raise DataError(
            f"this is {other or 'a tar archive'}",
            where=str(path),
            remedy="Give the table itself, as CSV, JSON Lines, Parquet, Feather or Excel.",
        )
    if content.startswith(b"SQLite format 3"):
        raise DataError(
            "this is an SQLite database", where=str(path), remedy=f"Pass --db sqlite:///{path} and a --sql query."
        )
    if kind is None:
        kind = _SUFFIXES.get(suffixes[-1] if suffixes else "", "delimited")
        if kind in ("parquet", "feather", "excel"):
            raise DataError(
                f"the file is named like {kind} but does not hold it",
                where=str(path),
                remedy="Rename it to what it is (.csv, .jsonl, …), or save it again.",
            )
    if kind == "excel" and suffixes and suffixes[-1] == ".zip":
        raise DataError("this is a zip archive", where=str(path), remedy="Unpack it and give the table inside.")
    if not content.strip(b" \t\r\n\0"):
        raise DataError("the file is empty", where=str(path), remedy="Check that it is the right file.")
    if config.sheet is not None and kind != "excel":
        raise DataError(
            f"there is no sheet {config.sheet!r}: this is no Excel file", where=str(path), remedy="Leave out --sheet."
        )
    if config.encoding is not None and kind in ("parquet", "feather", "excel"):
        raise DataError(
            f"this {kind.title()} file has no encoding of its own to choose",
            where=str(path),
            remedy="Leave out --encoding.",
        )
    if kind in ("parquet", "feather"):
        return RawTable(_arrow(content, path, kind, config.max_unpacked), name)
    if kind == "excel":
        return _excel(content, path, config)
    text, notes = decode(content, name, config.encoding)
    if text.lstrip()[:1] == "<":
        raise DataError("this is HTML or XML, not a table", where=str(path), remedy="Save the table as CSV.")
    if kind == "json" or text.lstrip()[:1] in ("{", "["):
        frame = encodable(_json(text, name))
    else:
        frame, more = delimited(text, name, prefer="\t" if suffixes and suffixes[-1] in (".tsv", ".tab") else None)
        notes += more
    return RawTable(frame, name, tuple(notes))


def _json(text: str, name: str) -> pd.DataFrame:
    if text.lstrip().startswith("["):
        try:
            records = json.loads(text, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise DataError(f"this is not JSON: {error}", where=name, remedy="Save the table again.") from error
        numbered = list(enumerate(records, start=1))
        place = "entry"
    else:
        numbered = []
        place = "line"
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    numbered.append((number, json.loads(line, object_pairs_hook=_once)))
                except (ValueError, RecursionError) as error:
                    raise DataError(
                        f"this line is not JSON: {error}",
                        where=f"{name}, line {number:,}",
                        remedy="Write one object a line, or all of them in one array: [{…}, {…}].",
                    ) from error
    for number, record in numbered:
        if not isinstance(record, dict):
            raise DataError(
                f"expected an object with the columns as keys, found {type(record).__name__}",
                where=f"{name}, {place} {number:,}",
                remedy='Write every row as {"Text": "…", "Label Text": "…"}.',
            )
    names = dict.fromkeys(key for _, record in numbered for key in record)
    columns = (pd.Series([record.get(key) for _, record in numbered], dtype=object) for key in names)
    frame = pd.DataFrame(dict(enumerate(columns)))
    frame.columns = pd.Index([encodable_text(key) for key in names], dtype=object)
    return frame


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {twice!r} is there twice")
    return record


def _arrow(content: bytes, path: Path, kind: str, most: float) -> pd.DataFrame:
    """Read Parquet or Feather piece by piece, so that what is small in the file cannot fill the memory."""
    import pyarrow
    import pyarrow.feather
    import pyarrow.parquet

    columns: list[list[Any]] = []
    size = 0
    try:
        if kind == "parquet":
            file = pyarrow.parquet.ParquetFile(io.BytesIO(content))
            schema, pieces = file.schema_arrow, file.iter_batches()
        else:
            reader = pyarrow.ipc.open_file(io.BytesIO(content))
            schema = reader.schema
            pieces = (reader.get_batch(i) for i in range(reader.num_record_batches))
        columns = [[] for _ in schema.names]
        for piece in pieces:
            size += piece.nbytes
            _check_size(size, most, path)
            for values, column in zip(columns, piece.columns, strict=True):
                values += column.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"the {kind.title()} file is damaged or cut short: {reason}",
            where=str(path),
            remedy="Copy or write it again.",
        ) from error
    frame = pd.DataFrame({i: pd.Series(values, dtype=object) for i, values in enumerate(columns)})
    frame.columns = pd.Index(schema.names, dtype=object)
    frame.attrs["arrow"] = dict(zip(schema.names, schema.types, strict=True))
    return frame


def _excel(content: bytes, path: Path, config: DataConfig) -> RawTable:
    sheet = config.sheet
    try:
        import python_calamine
    except ImportError as error:
        raise DataError(
            "reading Excel needs the package python-calamine",
            where=str(path),
            remedy="pip install 'bertsmith[excel]', or save the table as CSV.",
        ) from error
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            _check_size(sum(entry.file_size for entry in packed.infolist()), config.max_unpacked, path)
    try:
        book = python_calamine.CalamineWorkbook.from_filelike(io.BytesIO(content))
        names = book.sheet_names
        if sheet is not None and sheet not in names:
            raise DataError(
                f"there is no sheet {sheet!r}",
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
