"""Token ids of many texts, kept in the user's cache folder: made once by a content, a tokenizer and a length."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import xxhash
from platformdirs import user_cache_path

FEWEST = 20_000
"""Texts below which tokenizing is done before it was looked for: a second or so."""
MOST_BYTES = 2 * 2**30
"""Of all files together; the ones that were not used for longest go first."""
_SUFFIX = ".tokens"


def folder() -> Path:
    """Return where they are kept."""
    return user_cache_path("bertsmith", appauthor=False) / "tokens"


def cached(texts: Sequence[str], key: str | None, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return what was made of these texts before, or make it and keep it.

    A file has the checksum of what is in it first: one that is damaged is made anew. What cannot be read or written is
    no error, since all that is lost is time.

    Args:
        texts: n texts; fewer than `FEWEST` are not kept.
        key: all else that the result depends on; with ``None`` nothing is kept.
        make: makes it, arrays of one axis by name.
    """
    if key is None or len(texts) < FEWEST:
        return make()
    import pyarrow as pa

    file = folder() / f"{_name(texts, key)}{_SUFFIX}"
    with contextlib.suppress(OSError, pa.ArrowException):
        content = file.read_bytes()
        if xxhash.xxh3_128_digest(content[16:]) == content[:16]:
            with contextlib.suppress(OSError):
                os.utime(file)
            table = pa.ipc.open_file(pa.py_buffer(content).slice(16)).read_all()
            return {name: table[name].chunk(0).values.to_numpy() for name in table.column_names}
    arrays = make()
    with contextlib.suppress(OSError):
        _keep(file, arrays)
    return arrays


def _name(texts: Sequence[str], key: str) -> str:
    hashed = xxhash.xxh3_128(key.encode())
    for text in texts:
        content = text.encode(errors="surrogatepass")
        hashed.update(len(content).to_bytes(8))
        hashed.update(content)
    return hashed.hexdigest()


def _keep(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    import pyarrow as pa

    # One row, an array in each column: that is read back where it lies, and none is too long for it.
    table = pa.table({name: pa.LargeListArray.from_arrays([0, len(a)], a) for name, a in arrays.items()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    content = memoryview(sink.getvalue())
    if len(content) > MOST_BYTES:
        return
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(xxhash.xxh3_128_digest(content))
            stream.write(content)
        Path(temporary).replace(file)
    finally:
        Path(temporary).unlink(missing_ok=True)
    _make_room(file)


def _make_room(newest: Path) -> None:
    kept = sorted(newest.parent.glob(f"*{_SUFFIX}"), key=lambda file: file.stat().st_mtime, reverse=True)
    total = 0
    for file in kept:
        total += file.stat().st_size
        if total > MOST_BYTES and file != newest:
            file.unlink(missing_ok=True)
