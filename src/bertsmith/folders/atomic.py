"""Writing that cannot be half done: files and folders by rename, and folders sealed with checksums."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bertsmith.errors import DISK_ERRNOS, write_error

MANIFEST = "manifest.json"
RESUME_REMEDY = (
    "Make room or mend the place, then run the same command with --resume: checkpoints that are there are kept."
)
"""What to do where a run cannot be written."""
PART = ".part"
"""Ending of the names of temporary folders."""


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
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside ``path`` to write into; it takes the name when all went well.

    Every file is forced to disk before that: whatever instant the power goes, what has the name is whole.
    """
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=PART, dir=path.parent))
    temporary.chmod(0o755)
    before = temporary.with_name(f"{temporary.name}.before")
    try:
        yield temporary
        _open_up(temporary)
        _sync_all(temporary)
        if path.exists():
            path.replace(before)  # a folder cannot be renamed over one with files in it
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        if before.exists() and not path.exists():
            before.replace(path)
        for leftover in (temporary, before):
            shutil.rmtree(leftover, ignore_errors=True)


def drop_leftovers(folder: Path, name: str = "*") -> None:
    """Remove the temporary folders that were to become ``name``, left where a process was killed."""
    for path in folder.glob(f".{name}.*{PART}*"):
        shutil.rmtree(path, ignore_errors=True)


def checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder, by its path within; of the manifest of `seal` not."""
    return {p.relative_to(folder).as_posix(): checksum(p) for p in _files(folder)}


def seal(folder: Path) -> None:
    """Write the SHA-256 of a folder's files beside them; what comes after that, `is_whole` notices.

    Raises:
        OSError: if the disk is full or not to be written to.
    """
    manifest = checksums(folder)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def is_whole(folder: Path) -> bool:
    """Return whether a folder was sealed and every file in it still is what it was then."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        return bool(manifest) and manifest == checksums(folder)
    except (OSError, ValueError):
        return False


@contextmanager
def disk_errors(path: Path, remedy: str | None = None) -> Iterator[None]:
    """Turn what the disk refuses while ``path`` is written into an error that says what to do.

    Raises:
        OutputError: if the disk is full, read-only or broken, or the place is gone.
    """
    try:
        yield
    except OSError as error:
        named = Path(os.fsdecode(error.filename)) if error.filename else Path(os.devnull)
        temporary = named.parent == path.parent and path.name in named.name
        on_the_way = named.is_relative_to(path) or path.is_relative_to(named)
        if error.errno not in DISK_ERRNOS and not temporary and not on_the_way:
            raise
        raise write_error(path, error, remedy) from error


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open_up(folder: Path) -> None:
    """Give every file the mode that this process's files have; some libraries write files for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in _files(folder):
        path.chmod(0o666 & ~mask)


def _sync_all(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            _sync_folder(path)
        else:
            _sync(path)


def _sync(path: Path) -> None:
    """Force a file to disk."""
    with path.open("r+b") as file:  # Windows refuses to sync what is open for reading alone
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Force a folder's entries to disk, where the system opens folders: Windows does not."""
    with suppress(PermissionError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
