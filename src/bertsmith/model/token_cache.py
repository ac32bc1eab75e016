"""Cache of token ids in the user's cache folder."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import xxhash

from bertsmith.data.template import Text, segments

MIN_TEXTS = 20_000
"""Tokenizing fewer texts takes about a second, so they are not cached."""
MAX_BYTES = 2 * 2**30
"""Maximum size of the cache. The least recently used files are removed first."""
_SUFFIX = ".tokens"


def cache_folder() -> Path:
    """Return the folder of the cache."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home and Path(home).is_absolute() else Path.home() / ".cache") / "bertsmith" / "tokens"


def cached(
    texts: Sequence[Text], key: str | None, compute: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return cached arrays of texts, or compute and cache them.

    A file starts with its checksum, and a damaged file is computed again. Errors while reading or writing are ignored.

    Args:
        texts: fewer than `MIN_TEXTS` are not cached.
        key: all other inputs of the computation; ``None`` to disable the cache.
        compute: returns arrays with one axis, by name.
    """
    if key is None or len(texts) < MIN_TEXTS:
        return compute()
    import pyarrow as pa

    file = cache_folder() / f"{_digest(texts, key)}{_SUFFIX}"
    with contextlib.suppress(OSError, pa.ArrowException):
        content = file.read_bytes()
        if xxhash.xxh3_128_digest(content[16:]) == content[:16]:
            with contextlib.suppress(OSError):
                os.utime(file)
            table = pa.ipc.open_file(pa.py_buffer(content).slice(16)).read_all()
            return {name: table[name].chunk(0).values.to_numpy() for name in table.column_names}
    arrays = compute()
    with contextlib.suppress(OSError):
        _write(file, arrays)
    return arrays


def _digest(texts: Sequence[Text], key: str) -> str:
    digest = xxhash.xxh3_128(key.encode())
    for text in texts:
        for segment in segments(text):
            content = segment.encode(errors="surrogatepass")
            digest.update(len(content).to_bytes(8))
            digest.update(content)
    return digest.hexdigest()


def _write(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    import pyarrow as pa

    # One row with an array in each column: arrays of any length are read without a copy.
    table = pa.table({name: pa.LargeListArray.from_arrays([0, len(a)], a) for name, a in arrays.items()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    content = memoryview(sink.getvalue())
    if len(content) > MAX_BYTES:
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
    _evict(newest=file)


def _evict(newest: Path) -> None:
    files = sorted(newest.parent.glob(f"*{_SUFFIX}"), key=lambda file: file.stat().st_mtime, reverse=True)
    total = 0
    for file in files:
        total += file.stat().st_size
        if total > MAX_BYTES and file != newest:
            file.unlink(missing_ok=True)
