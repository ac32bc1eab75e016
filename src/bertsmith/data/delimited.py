"""Text files: which encoding, which delimiter, and rows that all have the fields of the header."""

from __future__ import annotations

import csv
import io
import re
import sys
from typing import Any

import pandas as pd

from bertsmith.data.table import Note
from bertsmith.errors import DataError, listing

_DELIMITERS = (",", ";", "\t", "|")
_SEPARATOR = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)


def decode(content: bytes, name: str, encoding: str | None = None) -> tuple[str, list[Note]]:
    """Turn bytes into text: by byte order mark, as UTF-8, or by a guess that is reported.

    Raises:
        DataError: if ``encoding`` is given and does not fit, or nothing fits.
    """
    if encoding is not None:
        try:
            return content.decode(encoding).removeprefix("\ufeff"), []
        except (LookupError, UnicodeError) as error:
            raise DataError(
                f"the file cannot be read as {encoding}: {error}", where=name, remedy="Check --encoding."
            ) from error
    for mark, codec in (
        (b"\xef\xbb\xbf", "utf-8-sig"),
        (b"\xff\xfe\x00\x00", "utf-32"),
        (b"\x00\x00\xfe\xff", "utf-32"),
        (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
    ):
        if content.startswith(mark):
            try:
                return content.decode(codec), []
            except UnicodeError as error:
                raise DataError(
                    f"the file says that it is {codec} but is not: {error}",
                    where=name,
                    remedy="Save it again as UTF-8.",
                ) from error
    head = content[:4096]
    binary = sum(byte < 9 or 13 < byte < 32 for byte in head if byte)
    even, odd = head[::2].count(b"\x00"), head[1::2].count(b"\x00")
    wide = max(even, odd) > 3 + len(head) // 5 and min(even, odd) <= max(even, odd) // 10
    if binary > 3 + len(head) // 50 or (even + odd > 3 + len(head) // 5 and not wide):
        zeros = f": {even + odd:,} of its first {len(head):,} bytes are NUL" if even + odd else ""
        raise DataError(
            f"this is not a text file{zeros}",
            where=name,
            remedy="Give a CSV, JSON Lines, Parquet, Feather or Excel file.",
        )
    if wide:
        codec = "utf-16-le" if odd > even else "utf-16-be"
        try:
            return content.decode(codec), [Note("info", f"{name} was read as {codec}")]
        except UnicodeError as error:
            raise DataError("this is not a text table", where=name, remedy="Save it as CSV in UTF-8.") from error
    try:
        return content.decode("utf-8"), []
    except UnicodeDecodeError as error:
        first_bad = error.start
    codec = _guess_encoding(content, first_bad)
    line = content.count(b"\n", 0, first_bad) + 1
    note = Note(
        "warning", f"{name} is not UTF-8 (line {line:,}); it was read as {codec}. If accents look wrong, use --encoding"
    )
    return content.decode(codec, errors="replace"), [note]


def _guess_encoding(content: bytes, first_bad: int) -> str:
    from charset_normalizer import from_bytes

    # Only the lines around non-ASCII bytes tell anything; a window from the first of them is enough and quick.
    start = content.rfind(b"\n", 0, first_bad) + 1
    window = content[start : start + 20_000]
    best = from_bytes(window).best()
    # From a few bytes nobody can tell the Latin code pages apart: Windows-1252 is by far the commonest. The ISO kin of
    # it decode 0x80-0x9f to control characters, where Windows has quotes and dashes.
    few = sum(byte > 0x7F for byte in window) < 20
    western = ("latin_1", "iso8859_1", "iso8859_15", "ascii", "utf_8")
    return "cp1252" if best is None or few or best.encoding in western else best.encoding


def delimited(text: str, name: str, prefer: str | None) -> tuple[pd.DataFrame, list[Note]]:
    """Read a delimited text, every value as a text, an empty one as ``""``.

    Args:
        text: the whole file.
        name: what to call it in messages.
        prefer: the delimiter its name promises; taken if it is in the header.

    Raises:
        DataError: if quotes do not match or rows have more or fewer fields than the header.
    """
    if said := _SEPARATOR.match(text):  # a line for Excel alone; blank, it keeps the numbers of the others
        prefer, text = said[1], "\n" + text[said.end() :]
    delimiter = prefer if prefer and prefer in text.lstrip("\n").partition("\n")[0] else _guess_delimiter(text)
    notes: list[Note] = []
    dialects: list[dict[str, Any]] = [{}]
    if '\\"' in text:
        dialects.append({"escapechar": "\\", "doublequote": False})
    if delimiter == "\t":
        dialects.append({"quoting": csv.QUOTE_NONE})
    first_error: DataError | None = None
    for dialect in dialects:
        try:
            frame = _parse(text, name, delimiter, dialect)
        except DataError as error:
            first_error = first_error or error
            continue
        if dialect:
            how = "quotes as plain characters" if "quoting" in dialect else 'quotes escaped as \\"'
            notes.append(Note("info", f"{name} was read with {how}"))
        return frame, notes
    assert first_error is not None
    raise first_error


def _parse(text: str, name: str, delimiter: str, dialect: dict[str, Any]) -> pd.DataFrame:
    previous = csv.field_size_limit(sys.maxsize)
    start = 1
    rows: list[list[str]] = []
    ragged: list[tuple[int, int]] = []
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, **dialect)
        for fields in reader:
            if fields:
                if rows and len(fields) != len(rows[0]):
                    ragged.append((start, len(fields)))
                rows.append(fields)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"the quotes do not match in the row that begins in line {start:,} ({error})",
            where=f"{name}, line {start:,}",
            remedy='Put quotes around the text and write every quote inside it twice: "he said ""no"""',
        ) from error
    finally:
        csv.field_size_limit(previous)
    if not rows:
        raise DataError("the file has no header", where=name, remedy="The first row must name the columns.")
    header = rows[0]
    if ragged:
        line, n = ragged[0]
        lines = listing([line for line, _ in ragged], 5)
        raise DataError(
            f"{len(ragged):,} of {len(rows) - 1:,} rows do not have the {len(header)} fields of the header: "
            f"line {line:,} has {n}",
            where=f"{name}, line{'s' if len(ragged) > 1 else ''} {lines}",
            remedy="Put quotes around texts that hold the delimiter "
            f"({ {chr(9): 'tab'}.get(delimiter, delimiter)!r}), or save the table again.",
        )
    names = [column.strip() or f"column {i}" for i, column in enumerate(header, start=1)]
    columns = list(zip(*rows[1:], strict=True)) or [()] * len(names)
    # pandas would merge equal names: build by position, name after.
    frame = pd.DataFrame({i: pd.Series(values, dtype=object) for i, values in enumerate(columns)})
    frame.columns = pd.Index(names)
    return frame


def _guess_delimiter(text: str) -> str:
    sample = text[:65536].splitlines(keepends=True)[:200]
    if len(text) > 65536 and len(sample) > 1:
        sample = sample[:-1]
    best, best_score = ",", (0.0, 0)
    for delimiter in _DELIMITERS:
        rows = [row for row in csv.reader(sample, delimiter=delimiter) if row]
        if not rows or len(rows[0]) < 2:
            continue
        agree = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
        if (agree, len(rows[0])) > best_score:
            best, best_score = delimiter, (agree, len(rows[0]))
    return best
