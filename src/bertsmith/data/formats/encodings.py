"""Detect the encoding of text files, and decode them."""

from __future__ import annotations

import codecs
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO, NamedTuple, TextIO

from bertsmith.data.formats.code_pages import detect_code_page
from bertsmith.data.table import Note
from bertsmith.errors import DataError, listing

_BLOCK = 2**20
"""Bytes read at once."""
_SAMPLE_BLOCKS = 16
"""Blocks of a file that a sample is taken from."""
_SAMPLE_BYTES = 8_000
"""Maximum number of bytes sampled from a block, and from a line."""
_MAX_INVALID = 0.1
"""Largest share of invalid non-ASCII characters in a file that is still read as UTF-8."""
_PARTIAL_START = re.compile(rb"\A[\x80-\xbf]{1,3}")
_PARTIAL_END = re.compile(rb"[\xc0-\xff][\x80-\xbf]{0,2}\Z")
"""UTF-8 characters truncated at the start or the end of a part of a line."""
_WORD = re.compile(r"[\w\x80-\U0010ffff]+")
_EXAMPLES = 3
"""Number of decoded words shown."""
_BYTE_ORDER_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


@dataclass(frozen=True)
class TextFile:
    """A text file and its encoding.

    Attributes:
        binary: the open file.
        codec: the name of its codec.
        errors: how to decode invalid bytes: ``"strict"`` (the file has none) or ``"replace"``.
        notes: what the user should know about the encoding.
    """

    binary: BinaryIO
    codec: str
    errors: str
    notes: tuple[Note, ...]

    @contextmanager
    def open(self, newline: str = "") -> Iterator[TextIO]:
        """Open the file as text, from the start, without a byte order mark; ``newline`` as for `open`."""
        self.binary.seek(0)
        text = io.TextIOWrapper(self.binary, encoding=self.codec, errors=self.errors, newline=newline)
        try:
            if text.read(1) != "\ufeff":
                text.seek(0)
            yield text
        finally:
            if not self.binary.closed:  # it is closed if the reader was abandoned halfway
                text.detach()

    def head(self) -> str:
        """Return the first 4096 characters that are not all blank, or ``""``."""
        with self.open() as text:
            return next((block for block in iter(lambda: text.read(4096), "") if block.strip()), "")


def decode(content: bytes, name: str, encoding: str | None = None) -> tuple[str, tuple[Note, ...]]:
    """Decode bytes as `open_text` does, and return the text and the notes.

    Raises:
        DataError: if the bytes do not match ``encoding``, or are not text.
    """
    file = open_text(io.BytesIO(content), name, encoding)
    with file.open() as text:
        return text.read(), file.notes


def decode_blocks(
    blocks: Iterable[bytes], name: str, encoding: str | None, on_note: Callable[[Note], None]
) -> Iterator[str]:
    """Decode the lines of a pipe as `open_text` does. The first block with other characters than ASCII decides.

    Args:
        blocks: the bytes, in blocks that end with the byte of a line feed.
        name: the name of the source, for messages.
        encoding: the encoding that the user gave.
        on_note: receives what the user should know about the encoding.

    Raises:
        DataError: if the bytes do not match ``encoding``, or are not text.
    """
    decoder: codecs.IncrementalDecoder | None = None
    has_note, errors = False, "replace" if encoding is None else "strict"
    for block in itertools.chain(blocks, [b""]):
        if decoder is None and (encoding or b"\0" in block or not block.isascii()):
            # The last character of UTF-16 is incomplete if its first byte is that of a line feed.
            whole = block.removesuffix(b"\n") if len(block) % 2 else block
            file = open_text(io.BytesIO(whole), name, encoding)
            for note in file.notes:
                on_note(note)
            has_note, decoder = bool(file.notes), codecs.getincrementaldecoder(file.codec)(errors)
        if decoder is None:
            yield block.decode("ascii")
            continue
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeError as error:
            raise _not_in(str(encoding), name, str(error)) from error
        if not has_note and "\ufffd" in text and "\ufffd".encode(file.codec, "ignore") not in block:
            has_note = True
            message = f"{name} has bytes that are not {file.codec}, and bertsmith reads them as � (U+FFFD)"
            on_note(Note("warning", f"{message}. If the encoding is another one, pass --encoding"))
        yield text.removeprefix("\ufeff")


def _not_in(encoding: str, name: str, reason: str) -> DataError:
    return DataError(
        f"the file cannot be decoded as {encoding}: {reason}",
        where=name,
        remedy="Leave out --encoding, so that bertsmith detects the encoding. Or pass the right one, such as cp1252.",
    )


def open_text(binary: BinaryIO, name: str, encoding: str | None = None) -> TextFile:
    """Detect the encoding of a file: by its byte order mark, as UTF-8, or by a guess that is reported in a note.

    Args:
        binary: the open file; read through, one block at a time.
        name: the name of the file, for messages.
        encoding: the encoding that the user gave.

    Raises:
        DataError: if the file does not match ``encoding``, or is not text.
    """
    if encoding is not None:
        try:
            invalid = _first_invalid(binary, encoding)
        except (LookupError, ValueError) as error:
            invalid = _InvalidByte(str(error))
        if invalid:
            raise _not_in(encoding, name, invalid.reason)
        return TextFile(binary, encoding, "strict", ())
    binary.seek(0)
    head = binary.read(4096)
    for mark, codec in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            if invalid := _first_invalid(binary, codec):
                raise DataError(
                    f"the file has the byte order mark of {codec}, but is not {codec}: {invalid.reason}",
                    where=name,
                    remedy="Save the file again as UTF-8.",
                )
            return TextFile(binary, codec, "strict", ())
    n_control = sum(byte < 9 or 13 < byte < 32 for byte in head if byte)
    even, odd = head[::2].count(b"\x00"), head[1::2].count(b"\x00")
    is_wide = max(even, odd) > 3 + len(head) // 5 and min(even, odd) <= max(even, odd) // 10
    if n_control > 3 + len(head) // 50 or (even + odd > 3 + len(head) // 5 and not is_wide):
        zeros = f": {even + odd:,} of its first {len(head):,} bytes are NUL" if even + odd else ""
        raise DataError(
            f"the file is not a text file{zeros}",
            where=name,
            remedy="Pass a CSV, JSON Lines, Parquet, Feather or Excel file.",
        )
    if is_wide:
        codec = "utf-16-le" if odd > even else "utf-16-be"
        if _first_invalid(binary, codec):
            raise DataError("the file is not a text file", where=name, remedy="Save it as CSV in UTF-8.")
        return TextFile(binary, codec, "strict", (Note("info", f"bertsmith reads {name} as {codec}"),))
    invalid = _first_invalid(binary, "utf-8")
    if invalid is None:
        return TextFile(binary, "utf-8", "strict", ())
    content = b"\n".join(_sample(binary, invalid.position))
    if _is_mostly_utf_8(content, invalid.truncated):
        message = (
            f"{name} has invalid UTF-8: {invalid.reason}. bertsmith reads invalid bytes as � (U+FFFD). "
            f"Correct line {invalid.line:,} and similar lines, or pass --encoding if the file is not UTF-8"
        )
        return TextFile(binary, "utf-8", "replace", (Note("warning", message),))
    codec = detect_code_page(content)
    words = {word for word in _WORD.findall(content.decode(codec, errors="replace")) if not word.isascii()}
    shown = sorted(words, key=lambda word: (-sum(c.isalpha() and not c.isascii() for c in set(word)), word))
    message = (
        f"{name} is not UTF-8, so bertsmith reads it as {codec}. If accented letters look wrong in "
        f"{listing(shown[:_EXAMPLES])}, pass --encoding"
    )
    return TextFile(binary, codec, "replace", (Note("warning", message),))


class _InvalidByte(NamedTuple):
    """The first byte that a codec cannot decode."""

    reason: str
    position: int = 0
    line: int = 1
    """Number of the line, counted from 1."""
    truncated: bool = False
    """Whether the file ends inside a character."""


def _first_invalid(binary: BinaryIO, codec: str) -> _InvalidByte | None:
    """Return the first byte that a codec cannot decode, or ``None``."""
    one_byte = "\n".encode(codec) == b"\n"  # raises LookupError for codecs such as base64
    decoder = codecs.getincrementaldecoder(codec)()
    binary.seek(0)
    done, line = 0, 1
    while True:
        block = binary.read(_BLOCK)
        pending = decoder.getstate()[0]
        try:
            decoder.decode(block, final=not block)
        except UnicodeError as error:
            if not isinstance(error, UnicodeDecodeError):
                return _InvalidByte(str(error), done, line)
            before = (pending + block)[: error.start]
            position = done - len(pending) + error.start
            line += before.count(b"\n")
            where = f"line {line:,}, " if one_byte else ""
            reason = f"{error.reason} at {where}byte {position + 1:,}"
            return _InvalidByte(reason, position, line, not block)
        if not block:
            return None
        line, done = line + block.count(b"\n"), done + len(block)


def _sample(binary: BinaryIO, invalid: int) -> list[bytes]:
    """Return non-ASCII lines from all parts of a file, and those around the position of an invalid byte.

    At most `_SAMPLE_BLOCKS` MiB are read. Lines longer than `_SAMPLE_BYTES` are split.
    """
    size = binary.seek(0, io.SEEK_END)
    starts = {max(0, invalid - _SAMPLE_BYTES // 2), *(size * i // _SAMPLE_BLOCKS for i in range(_SAMPLE_BLOCKS))}
    sample: list[bytes] = []
    at, ended = 0, True
    for start, end in pairwise([*sorted(starts), size]):
        is_line_start = ended and start <= at
        at = binary.seek(max(start, at))
        n_sampled = 0
        while at < min(end, start + _BLOCK) and n_sampled < _SAMPLE_BYTES and (line := binary.readline(_SAMPLE_BYTES)):
            at += len(line)
            ended = line.endswith(b"\n") or at == size
            if not line.isascii():
                part = line if is_line_start else _PARTIAL_START.sub(b"", line)
                sample.append(part if ended else _PARTIAL_END.sub(b"", part))
                n_sampled += len(line)
            is_line_start = ended
    return sample


def _is_mostly_utf_8(content: bytes, truncated: bool) -> bool:
    """Return whether few non-ASCII characters are invalid, or only the last one of a truncated file."""
    decoded = content.decode("utf-8", errors="replace")
    n_non_ascii = sum(not character.isascii() for character in decoded)
    n_invalid = max(1, decoded.count("\ufffd") - content.count("\ufffd".encode()))
    return n_invalid <= _MAX_INVALID * n_non_ascii or (truncated and n_non_ascii > n_invalid == 1)
