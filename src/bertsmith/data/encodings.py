"""Text files: how they are encoded."""

from __future__ import annotations

import codecs
import io
import re
from itertools import pairwise
from typing import BinaryIO, NamedTuple

from bertsmith.data.code_pages import code_page
from bertsmith.data.table import Note
from bertsmith.errors import DataError

_PIECE = 2**20
"""Bytes read at once."""
_STRETCHES = 16
"""Parts of a file that a sample is taken from."""
_KEPT = 8_000
"""Bytes of a part that are kept, and the longest line."""
_NEAR = _STRETCHES * _PIECE
"""Distance from the first non-UTF-8 byte within which the example is chosen: lines up to it are counted."""
_BAD = 0.1
"""Share of the non-ASCII characters that may be damaged in a file that is UTF-8."""
_HALF_AT_START = re.compile(rb"\A[\x80-\xbf]{1,3}")
_HALF_AT_END = re.compile(rb"[\xc0-\xff][\x80-\xbf]{0,2}\Z")
"""What a part of a line may have of a UTF-8 character that was cut."""
_EXAMPLE = 80
"""Characters shown of a decoded line."""


def decode(content: bytes, name: str, encoding: str | None = None) -> tuple[str, list[Note]]:
    """Turn bytes into text, as `codec_of` says.

    Raises:
        DataError: if ``encoding`` is given and does not fit, or nothing fits.
    """
    codec, errors, notes = codec_of(io.BytesIO(content), name, encoding)
    return content.decode(codec, errors=errors).removeprefix("\ufeff"), notes


def codec_of(file: BinaryIO, name: str, encoding: str | None = None) -> tuple[str, str, list[Note]]:
    """Find out how a text file is encoded: by byte order mark, as UTF-8, or by a guess that is reported.

    Args:
        file: read through, a piece at a time.
        name: what to call it in messages.
        encoding: what the user says it is.

    Returns:
        The codec, what to do with bytes that do not fit it (``"strict"`` where there are none), and notes.

    Raises:
        DataError: if ``encoding`` is given and does not fit, or nothing fits.
    """
    if encoding is not None:
        try:
            misfit = _misfit(file, encoding)
        except LookupError as error:
            misfit = _Misfit(str(error))
        if misfit:
            raise DataError(
                f"the file cannot be read as {encoding}: {misfit.reason}", where=name, remedy="Check --encoding."
            )
        return encoding, "strict", []
    file.seek(0)
    head = file.read(4096)
    for mark, codec in (
        (b"\xef\xbb\xbf", "utf-8-sig"),
        (b"\xff\xfe\x00\x00", "utf-32"),
        (b"\x00\x00\xfe\xff", "utf-32"),
        (b"\xff\xfe", "utf-16"),
        (b"\xfe\xff", "utf-16"),
    ):
        if head.startswith(mark):
            if misfit := _misfit(file, codec):
                raise DataError(
                    f"the file says that it is {codec} but is not: {misfit.reason}",
                    where=name,
                    remedy="Save it again as UTF-8.",
                )
            return codec, "strict", []
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
        if _misfit(file, codec):
            raise DataError("this is not a text table", where=name, remedy="Save it as CSV in UTF-8.")
        return codec, "strict", [Note("info", f"{name} was read as {codec}")]
    misfit = _misfit(file, "utf-8")
    if misfit is None:
        return "utf-8", "strict", []
    sample = _sample(file, misfit)
    if _almost_utf_8([line for _, line in sample], cut=misfit.cut):
        said = f"{name} is almost UTF-8: {misfit.reason}. It was read as UTF-8, with U+FFFD for invalid bytes"
        do = f"Fix line {misfit.line:,} and any others like it, or pass --encoding if the file is not UTF-8"
        return "utf-8", "replace", [Note("warning", f"{said}. {do}")]
    codec = code_page(b"\n".join(line for _, line in sample))
    at, example = max(
        (item for item in sample if misfit.start <= item[0] < misfit.at + _NEAR),
        key=lambda item: _telling(item[1], codec),
    )
    number = misfit.line + _newlines(file, misfit.start, at)
    shown = _around_accents(example.decode(codec, errors="replace"))
    said = f"{name} is not UTF-8; it was read as {codec}. If its accents are wrong, pass --encoding"
    return codec, "replace", [Note("warning", f"{said}. Line {number:,}: {shown}")]


class _Misfit(NamedTuple):
    """The first byte that does not fit a codec."""

    reason: str
    at: int = 0
    """Position of the byte."""
    line: int = 1
    """Line number of the byte, counted from 1."""
    start: int = 0
    """Position of the first byte of that line."""
    cut: bool = False
    """Whether the file ends inside a character."""


def _misfit(file: BinaryIO, codec: str) -> _Misfit | None:
    """Return the first byte that does not fit a codec, ``None`` if all do.

    Raises:
        LookupError: if there is no such codec of texts.
    """
    one_byte = "\n".encode(codec) == b"\n"  # fails for codecs that are not of texts
    decoder = codecs.getincrementaldecoder(codec)()
    file.seek(0)
    done, line, start = 0, 1, 0
    while True:
        piece = file.read(_PIECE)
        pending = decoder.getstate()[0]
        try:
            decoder.decode(piece, final=not piece)
        except UnicodeError as error:
            if not isinstance(error, UnicodeDecodeError):
                return _Misfit(str(error), done, line, start)
            before = (pending + piece)[: error.start]
            at = done - len(pending) + error.start
            line += before.count(b"\n")
            if b"\n" in before:
                start = done - len(pending) + before.rindex(b"\n") + 1
            where = f"line {line:,}, " if one_byte else ""
            return _Misfit(f"{error.reason} at {where}byte {at + 1:,}", at, line, start, not piece)
        if not piece:
            return None
        if b"\n" in piece:
            line, start = line + piece.count(b"\n"), done + piece.rindex(b"\n") + 1
        done += len(piece)


def _newlines(file: BinaryIO, start: int, end: int) -> int:
    file.seek(start)
    return sum(file.read(min(_PIECE, end - at)).count(b"\n") for at in range(start, end, _PIECE))


def _sample(file: BinaryIO, misfit: _Misfit) -> list[tuple[int, bytes]]:
    """Return non-ASCII lines from all parts of a file, with their positions, and always the line of the misfit.

    Up to `_STRETCHES` MiB are read, so the whole of a smaller file. Of longer lines there are parts.
    """
    file.seek(0, io.SEEK_END)
    size = file.tell()
    first = max(misfit.start, misfit.at - _KEPT // 2)
    starts = sorted({first, *(size * i // _STRETCHES for i in range(_STRETCHES))})
    sample: list[tuple[int, bytes]] = []
    position, ended = 0, True
    for start, end in pairwise([*starts, size]):
        at = max(start, position)
        whole = at == misfit.start or (ended and at == position)
        file.seek(at)
        kept = 0
        while at < min(end, start + _PIECE) and kept < _KEPT and (line := file.readline(_KEPT)):
            ended = line.endswith(b"\n") or at + len(line) == size
            if not line.isascii():
                part = line if whole else _HALF_AT_START.sub(b"", line)
                sample.append((at, part if ended else _HALF_AT_END.sub(b"", part)))
                kept += len(line)
            at, whole = at + len(line), ended
        position = at
    return sample


def _almost_utf_8(lines: list[bytes], cut: bool) -> bool:
    """Whether nearly all non-ASCII characters are valid, or, where the file is cut in its last one, all others."""
    joined = b"\n".join(lines)
    decoded = joined.decode("utf-8", errors="replace")
    marked = sum(not character.isascii() for character in decoded)
    bad = max(1, decoded.count("\ufffd") - joined.count("\ufffd".encode()))
    return bad <= _BAD * marked or (cut and marked > bad == 1)


def _telling(line: bytes, codec: str) -> tuple[int, int, int]:
    """Return how many characters of a line tell its codec from the likeliest other one, and its accents, and marks."""
    other = "cp1250" if codec == "cp1252" else "cp1252"
    marks = {character for character in line.decode(codec, errors="replace") if not character.isascii()}
    accents = {character for character in marks - {"\ufffd"} if character.isalpha()}
    telling = sum(accent.encode(codec, errors="ignore").decode(other, errors="replace") != accent for accent in accents)
    return telling, len(accents), len(marks)


def _around_accents(line: str) -> str:
    """Return a line, or of a long one the part that holds the first accent."""
    line = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(line.split()))  # nothing a terminal obeys
    if len(line) <= _EXAMPLE:
        return line
    first = next((i for i, character in enumerate(line) if not character.isascii()), 0)
    start = max(0, min(first - _EXAMPLE // 2, len(line) - _EXAMPLE))
    return f"{'…' if start else ''}{line[start : start + _EXAMPLE]}{'…' if start + _EXAMPLE < len(line) else ''}"
