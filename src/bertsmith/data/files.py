"""Open a file, whatever packs it, and find out of which kind it is."""

from __future__ import annotations

import contextlib
import gzip
import tempfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

from bertsmith.config import DataConfig
from bertsmith.errors import DISK_ERRNOS, DataError, listing, quoted, to_path, write_error

_IN_MEMORY = 2**26
"""Bytes up to which an unpacked file is kept in memory."""
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


def open_bytes(path: Path, most: float) -> BinaryIO:
    """Open a file, unpacked if it is gzip; it can be read from any place.

    Args:
        path: the file.
        most: GB that it may hold unpacked.

    Raises:
        DataError: if the file is missing, a folder, not readable, a damaged gzip, or holds too much.
    """
    where = str(to_path(path, "the table", DataError))
    try:
        if path.is_dir():
            raise DataError("this is a folder, not a table", where=where, remedy="Give the path of a file.")
        if path.exists() and not path.is_file():
            raise DataError("this is not a plain file", where=where, remedy="Save the table to a file first.")
        file = path.open("rb")
        magic = file.read(2)
        file.seek(0)
    except FileNotFoundError as error:
        near = sorted(p.name for p in path.parent.glob("*") if p.suffix in _SUFFIXES) if path.parent.is_dir() else []
        hint = f" In that folder there are {listing(near, 5)}." if near else ""
        raise DataError("there is no such file", where=where, remedy=f"Check the path.{hint}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"the file cannot be read: {reason}", where=where, remedy="Check its path and that you may read it."
        ) from error
    return _unpacked(file, path, most) if magic == b"\x1f\x8b" else file


def _unpacked(file: BinaryIO, path: Path, most: float) -> BinaryIO:
    where = str(path)
    with contextlib.ExitStack() as closed_on_errors:
        unpacked: Any = closed_on_errors.enter_context(tempfile.SpooledTemporaryFile(_IN_MEMORY))
        try:
            with file, gzip.GzipFile(fileobj=file) as packed:
                while piece := packed.read(2**20):
                    unpacked.write(piece)
                    check_size(unpacked.tell(), most, path)
        except (OSError, EOFError, zlib.error) as error:
            if getattr(error, "errno", None) in DISK_ERRNOS:
                raise write_error(Path(tempfile.gettempdir()) / path.stem, error) from error
            raise DataError(
                f"the gzip file is damaged or cut short: {error}", where=where, remedy="Copy or download it again."
            ) from error
        unpacked.seek(0)
        if unpacked.read(2) == b"\x1f\x8b":
            raise DataError("this is gzip within gzip", where=where, remedy="Unpack it once and give what is inside.")
        unpacked.seek(0)
        closed_on_errors.pop_all()
    return cast(BinaryIO, unpacked)


def check_size(size: int, most: float, path: Path) -> None:
    """See that a file does not unpack to more than so many GB.

    Raises:
        DataError: if it does.
    """
    if size > most * 1e9:
        raise DataError(
            f"the file unpacks to more than {most:g} GB",
            where=str(path),
            remedy="If that is meant, pass a larger --max-unpacked (GB); else it is a decompression bomb.",
        )


def kind_of(file: BinaryIO, path: Path, config: DataConfig) -> str:
    """Return the kind of a file: by its first bytes, else by its name.

    Args:
        file: of `open_bytes`.
        path: where it is.
        config: with settings that some kinds alone have.

    Returns:
        ``"parquet"``, ``"feather"``, ``"excel"``, ``"json"`` or ``"delimited"``; the latter two are texts, and of them
        ``"json"`` is one whose name says so.

    Raises:
        DataError: if it is of no known kind, empty, or not what its name says.
    """
    file.seek(0)
    head = file.read(4096)
    suffixes = _suffixes(path)
    kind = next((kind for magic, kind in _BINARY.items() if head.startswith(magic)), None)
    other = next((other for magic, other in _OTHER.items() if head.startswith(magic)), None)
    if other is not None or (head[257:262] == b"ustar" and kind is None):
        raise DataError(
            f"this is {other or 'a tar archive'}",
            where=str(path),
            remedy="Give the table itself, as CSV, JSON Lines, Parquet, Feather or Excel.",
        )
    if head.startswith(b"SQLite format 3"):
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
    while not head.strip(b" \t\r\n\0"):
        if not head:
            raise DataError("the file is empty", where=str(path), remedy="Check that it is the right file.")
        head = file.read(2**20)
    if config.sheet is not None and kind != "excel":
        raise DataError(
            f"there is no sheet {quoted(config.sheet)}: this is no Excel file",
            where=str(path),
            remedy="Leave out --sheet.",
        )
    if config.encoding is not None and kind in ("parquet", "feather", "excel"):
        raise DataError(
            f"this {kind.title()} file has no encoding of its own to choose",
            where=str(path),
            remedy="Leave out --encoding.",
        )
    return kind


def kind_of_text(head: str, kind: str, path: Path) -> str:
    """Return ``"json"`` or ``"delimited"``, by how a text begins and what its name says.

    Raises:
        DataError: if it is HTML or XML.
    """
    first = head.lstrip()[:1]
    if first == "<":
        raise DataError("this is HTML or XML, not a table", where=str(path), remedy="Save the table as CSV.")
    return "json" if kind == "json" or first in ("{", "[") else "delimited"


def promised_delimiter(path: Path) -> str | None:
    """Return the delimiter that a file's name promises."""
    return "\t" if _suffixes(path)[-1:] in ([".tsv"], [".tab"]) else None


def _suffixes(path: Path) -> list[str]:
    return [s.lower() for s in path.suffixes if s.lower() != ".gz"]
