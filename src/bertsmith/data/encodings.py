"""Text files: how they are encoded."""

from __future__ import annotations

import codecs
import io
from typing import BinaryIO

from bertsmith.data.code_pages import code_page
from bertsmith.data.table import Note
from bertsmith.errors import DataError

_PIECE = 2**20
"""Bytes read at once."""
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
            misfit = (0, str(error))
        if misfit:
            raise DataError(
                f"the file cannot be read as {encoding}: {misfit[1]}", where=name, remedy="Check --encoding."
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
                    f"the file says that it is {codec} but is not: {misfit[1]}",
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
    codec, number, line = _guess_encoding(file, misfit[0])
    said = f"{name} is not UTF-8; it was read as {codec}. If its accents are wrong, pass --encoding"
    return codec, "replace", [Note("warning", f"{said}. Line {number:,}: {line}")]


def _misfit(file: BinaryIO, codec: str) -> tuple[int, str] | None:
    """Return the position of the first byte that does not fit a codec, and why; none, if all do.

    Raises:
        LookupError: if there is no such codec of texts.
    """
    "".encode(codec)  # which knows codecs of texts alone
    decoder = codecs.getincrementaldecoder(codec)()
    file.seek(0)
    done = 0
    while True:
        piece = file.read(_PIECE)
        pending = len(decoder.getstate()[0])
        try:
            decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            at = done - pending + error.start
            return at, f"{error.reason} at byte {at + 1:,}"
        except UnicodeError as error:
            return done, str(error)
        if not piece:
            return None
        done += len(piece)


def _guess_encoding(file: BinaryIO, first_bad: int) -> tuple[str, int, str]:
    """Return a likely codec of a file that is not UTF-8, and a line to check it by: its number, and what it says."""
    # Only the lines around non-ASCII bytes tell anything; a window from the first of them is enough and quick.
    file.seek(0)
    first, start, done = 1, 0, 0
    while done < first_bad:
        piece = file.read(min(_PIECE, first_bad - done))
        first += piece.count(b"\n")
        start = done + piece.rfind(b"\n") + 1 if b"\n" in piece else start
        done += len(piece)
    file.seek(start)
    window = file.read(20_000)
    codec = code_page(window)
    lines = [line.decode(codec, errors="replace") for line in window.split(b"\n")]
    most = max(range(len(lines)), key=lambda i: len(_accents(lines[i])))
    return codec, first + most, _around_accents(lines[most])


def _accents(line: str) -> set[str]:
    return {character for character in line if not character.isascii() and character.isalpha()}


def _around_accents(line: str) -> str:
    """Return a line, or of a long one the part that holds the first accent."""
    line = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(line.split()))  # nothing a terminal obeys
    if len(line) <= _EXAMPLE:
        return line
    first = next((i for i, character in enumerate(line) if not character.isascii()), 0)
    start = max(0, min(first - _EXAMPLE // 2, len(line) - _EXAMPLE))
    return f"{'…' if start else ''}{line[start : start + _EXAMPLE]}{'…' if start + _EXAMPLE < len(line) else ''}"
