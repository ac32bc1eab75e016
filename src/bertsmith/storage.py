"""Writing that cannot be half done: files and folders by rename, and folders sealed with checksums."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def write_text(path: Path, content: str) -> None:
    """Write a file by rename, so that it is there whole or not at all."""
    with replaced_file(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write JSON by rename; what is not a number is ``null``, never ``NaN``."""
    write_text(path, json.dumps(_finite(content), indent=2, ensure_ascii=False, default=str) + "\n")


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write to; it takes the name when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: writers choose the format by it.
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path`` to write into; it takes the name when all went well."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary.chmod(0o755)
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def seal(folder: Path) -> None:
    """Force a folder's files to disk and write their SHA-256 beside them, last and by rename.

    Until the manifest has its name the folder does not pass for whole, whatever instant the power goes.

    Raises:
        OSError: if the disk is full or not to be written to.
    """
    files = _files(folder)
    for path in [*files, *(p for p in folder.rglob("*") if p.is_dir())]:
        _sync(path)
    temporary = folder / f".{MANIFEST}"
    temporary.write_text(json.dumps({str(p.relative_to(folder)): _sha256(p) for p in files}, indent=2))
    _sync(temporary)
    temporary.replace(folder / MANIFEST)
    for path in (folder, folder.parent):
        _sync(path)


def is_whole(folder: Path) -> bool:
    """Return whether a folder was sealed and every file in it still is what it was then."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return bool(manifest) and manifest == {str(p.relative_to(folder)): _sha256(p) for p in _files(folder)}
    except (OSError, ValueError):
        return False


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def _files(folder: Path) -> list[Path]:
    own = (MANIFEST, f".{MANIFEST}")
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).as_posix() not in own)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
