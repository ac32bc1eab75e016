"""Every kind of file a table may be in."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from bertsmith.data.delimited import decode, delimited
from bertsmith.data.raw import RawTable
from bertsmith.data.table import Note
from bertsmith.errors import DataError, listing

_BINARY = {b"PAR1": "parquet", b"ARROW1": "feather", b"PK\x03\x04": "excel", b"\xd0\xcf\x11\xe0": "excel"}
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


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file, unpacked if it is gzip.

    Raises:
        DataError: if the file is missing, a folder, not readable, or a damaged gzip.
    """
    try:
        if path.is_dir():
            raise DataError("this is a folder, not a table", where=str(path), remedy="Give the path of a file.")
        if path.exists() and not path.is_file():
            raise DataError("this is not a plain file", where=str(path), remedy="Save the table to a file first.")
        content = path.read_bytes()
    except FileNotFoundError as error:
        near = sorted(p.name for p in path.parent.glob("*") if p.suffix in _SUFFIXES) if path.parent.is_dir() else []
        hint = f" In that folder there are {listing(near, 5)}." if near else ""
        raise DataError("there is no such file", where=str(path), remedy=f"Check the path.{hint}") from error
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", where=str(path), remedy="Check it.") from error
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(
                f"the gzip file is damaged or cut short: {error}", where=str(path), remedy="Copy or download it again."
            ) from error
    return content


def read_file(path: Path, *, sheet: str | None, encoding: str | None) -> RawTable:
    """Read a file, whatever its kind: by its first bytes, else by its name.

    Raises:
        DataError: if it is missing, damaged, or of no known kind.
    """
    content = read_bytes(path)
    name = path.name
    suffixes = [s.lower() for s in path.suffixes if s.lower() != ".gz"]
    kind = next((kind for magic, kind in _BINARY.items() if content.startswith(magic)), None)
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
    if not content.strip():
        raise DataError("the file is empty", where=str(path), remedy="Check that it is the right file.")
    if kind == "parquet":
        return RawTable(_parquet(content, path), name)
    if kind == "feather":
        return RawTable(_feather(content, path), name)
    if kind == "excel":
        return _excel(content, path, sheet)
    text, notes = decode(content, name, encoding)
    if kind == "json" or text.lstrip()[:1] in ("{", "["):
        frame = _json(text, name)
    else:
        frame, more = delimited(text, name, prefer="\t" if suffixes and suffixes[-1] in (".tsv", ".tab") else None)
        notes += more
    return RawTable(frame, name, tuple(notes))


def _json(text: str, name: str) -> pd.DataFrame:
    if text.lstrip().startswith("["):
        try:
            records = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"this is not JSON: {error}", where=name, remedy="Save the table again.") from error
        numbered = list(enumerate(records, start=1))
        place = "entry"
    else:
        numbered = []
        place = "line"
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                try:
                    numbered.append((number, json.loads(line)))
                except (json.JSONDecodeError, RecursionError) as error:
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
    return pd.DataFrame({key: pd.Series([record.get(key) for _, record in numbered], dtype=object) for key in names})


def _parquet(content: bytes, path: Path) -> pd.DataFrame:
    import pyarrow.parquet

    return _arrow(lambda: pyarrow.parquet.read_table(io.BytesIO(content)), path, "Parquet")


def _feather(content: bytes, path: Path) -> pd.DataFrame:
    import pyarrow.feather

    return _arrow(lambda: pyarrow.feather.read_table(io.BytesIO(content)), path, "Feather")


def _arrow(read: Callable[[], Any], path: Path, kind: str) -> pd.DataFrame:
    import pyarrow

    try:
        table = read()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"the {kind} file is damaged or cut short: {reason}", where=str(path), remedy="Copy or write it again."
        ) from error
    return pd.DataFrame({name: pd.Series(table.column(name).to_pylist(), dtype=object) for name in table.column_names})


def _excel(content: bytes, path: Path, sheet: str | None) -> RawTable:
    try:
        import python_calamine
    except ImportError as error:
        raise DataError(
            "reading Excel needs the package python-calamine",
            where=str(path),
            remedy="pip install 'bertsmith[excel]', or save the table as CSV.",
        ) from error
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
        {i: pd.Series([row[i] if row[i] != "" else None for row in rows[1:]], dtype=object) for i in range(len(header))}
    )
    frame.columns = pd.Index(header)
    notes = (
        ()
        if sheet or len(names) == 1
        else (Note("info", f"sheet {name!r} was read; {path.name} also has {listing(names[1:])}"),)
    )
    return RawTable(frame, path.name, notes)
