"""Every kind of file a table may be in."""

from __future__ import annotations

from pathlib import Path

from bertsmith.config import DataConfig
from bertsmith.data.arrow import read_arrow
from bertsmith.data.delimited import delimited
from bertsmith.data.encodings import decode
from bertsmith.data.excel import read_excel
from bertsmith.data.files import kind_of, kind_of_text, open_bytes, promised_delimiter
from bertsmith.data.raw import RawTable, encodable
from bertsmith.data.records import read_json


def read_file(path: Path, config: DataConfig) -> RawTable:
    """Read a file, whatever its kind.

    Raises:
        DataError: if it is missing, damaged, too large unpacked, or of no known kind.
    """
    name = path.name
    with open_bytes(path, config.max_unpacked) as file:
        kind = kind_of(file, path, config)
        if kind in ("parquet", "feather"):
            return RawTable(read_arrow(file, path, kind, config.max_unpacked), name)
        file.seek(0)
        content = file.read()
    if kind == "excel":
        return read_excel(content, path, config)
    text, notes = decode(content, name, config.encoding)
    if kind_of_text(text, kind, path) == "json":
        frame = encodable(read_json(text, name))
    else:
        frame, more = delimited(text, name, prefer=promised_delimiter(path))
        notes += more
    return RawTable(frame, name, tuple(notes))
