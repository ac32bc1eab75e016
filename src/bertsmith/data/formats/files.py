"""Open a table file, and unpack it if it is gzip."""

from __future__ import annotations

import contextlib
import gzip
import tempfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, cast

from bertsmith.config import DataConfig
from bertsmith.data.formats.encodings import TextFile, open_text
from bertsmith.errors import DISK_ERRNOS, DataError, did_you_mean, to_path, write_error

_MAX_IN_MEMORY = 2**26
"""Maximum number of bytes of an unpacked file in memory; a larger one goes to a temporary file."""
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class TableFile:
    """An open table file.

    Attributes:
        path: its path.
        binary: its content, unpacked and seekable.
        config: the settings for reading.
    """

    path: Path
    binary: BinaryIO
    config: DataConfig

    @cached_property
    def text(self) -> TextFile:
        """The content as text; the encoding is detected at the first access."""
        return open_text(self.binary, self.path.name, self.config.encoding)

    @property
    def suffix(self) -> str:
        """The last ending of the file name other than ``.gz``, in lower case, such as ``".csv"``."""
        return next((suffix.lower() for suffix in reversed(self.path.suffixes) if suffix.lower() != ".gz"), "")


def open_binary(path: Path, max_gb: float) -> BinaryIO:
    """Open a file for seekable binary reading, and unpack it if it is gzip.

    Raises:
        DataError: if the file is missing, a folder, unreadable, a damaged gzip, or too large unpacked.
    """
    where = str(to_path(path, "the table", DataError, any_encoding=True))
    try:
        if path.is_dir():
            raise DataError("the path is a folder, not a table", where=where, remedy="Pass the path of a file.")
        if path.exists() and not path.is_file():
            raise DataError("the path is not a regular file", where=where, remedy="Save the table to a file first.")
        file = path.open("rb")
        magic = file.read(len(_GZIP))
        file.seek(0)
    except FileNotFoundError as error:
        neighbours = [neighbour.name for neighbour in path.parent.glob("*")]
        hint = did_you_mean(path.name, neighbours)
        raise DataError("the file does not exist", where=where, remedy=f"Check the path.{hint}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"the file cannot be read: {reason}", where=where, remedy="Check the path and its permissions."
        ) from error
    return _unpack(file, path, max_gb) if magic == _GZIP else file


def _unpack(file: BinaryIO, path: Path, max_gb: float) -> BinaryIO:
    with contextlib.ExitStack() as stack:
        unpacked: Any = stack.enter_context(tempfile.SpooledTemporaryFile(_MAX_IN_MEMORY))
        try:
            with file, gzip.GzipFile(fileobj=file) as packed:
                while block := packed.read(2**20):
                    unpacked.write(block)
                    check_unpacked_size(unpacked.tell(), max_gb, path)
        except (OSError, EOFError, zlib.error) as error:
            if getattr(error, "errno", None) in DISK_ERRNOS:
                raise write_error(Path(tempfile.gettempdir()) / path.stem, error) from error
            raise DataError(
                f"the gzip file is damaged or truncated: {error}",
                where=str(path),
                remedy="Copy or download the file again.",
            ) from error
        unpacked.seek(0)
        stack.pop_all()
    return cast(BinaryIO, unpacked)


def check_unpacked_size(n_bytes: int, max_gb: float, path: Path) -> None:
    """Raise a `DataError` if ``n_bytes`` unpacked bytes exceed ``max_gb``."""
    if n_bytes > max_gb * 1e9:
        raise DataError(
            f"the file unpacks to more than {max_gb:g} GB",
            where=str(path),
            remedy="Pass a larger --max-unpacked (GB) if you trust the file; it may be a decompression bomb.",
        )
