"""Atomic writes of files and folders, and checksums of folders."""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import Any

from bertsmith.compute.system import LOCKS_OPEN_FILES
from bertsmith.errors import DISK_ERRNOS, write_error

MANIFEST = "manifest.json"
RESUME_REMEDY = "Free disk space or repair the disk, then run the same command with --resume."
"""Remedy for disk errors during training."""
PART = ".part"
"""Suffix of temporary folders."""
_HIDDEN = re.compile(r"\.([0-9]+|[0-9a-f]{8})\..+|\..+\.(lock|part|part\.before)|\.workers|\.DS_Store")
"""Names of hidden files and folders that bertsmith writes: temporary ones and locks. Finder adds one."""
RENAME_SECONDS = 2.0 if LOCKS_OPEN_FILES else 0.0
"""How long to repeat a refused rename: virus scanners and search indexes open a new file for a moment."""


def write_text(path: Path, content: str) -> None:
    """Write a text file atomically. Lone surrogates, as in file names that are not UTF-8, become escape sequences."""
    with replaced_file(path) as temporary:  # Windows would change the line breaks of texts
        temporary.write_text(content, encoding="utf-8", errors="backslashreplace", newline="\n")


def to_json(content: Any, *, indent: int | None = 2) -> str:
    """Return JSON with a line break at its end; ``NaN`` and infinity become ``null``."""
    return json.dumps(_finite(content), indent=indent, ensure_ascii=False, default=str) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; see `to_json`."""
    write_text(path, to_json(content))


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file in the same folder, and rename it to ``path`` if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Other threads, processes and machines may write the same file. Writers choose the format by the suffix.
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    try:
        yield temporary
        _sync(temporary)
        rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder with the same parent, and rename it to ``path`` if the block succeeds.

    All files are synced to disk before the rename, so ``path`` is complete even after a power failure.
    """
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=PART, dir=path.parent))
    temporary.chmod(0o755)
    old = temporary.with_name(f"{temporary.name}.before")
    try:
        yield temporary
        _reset_modes(temporary)
        _sync_all(temporary)
        if path.exists():
            rename(path, old)  # a folder cannot replace one that has files
        rename(temporary, path)
        _sync_folder(path.parent)
    finally:
        if old.exists() and not path.exists():
            rename(old, path)
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def rename(path: Path, new: Path) -> None:
    """Rename a file or folder, which replaces a file of that name."""
    deadline = time.monotonic() + RENAME_SECONDS
    while True:
        try:
            path.replace(new)
            return
        except PermissionError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.05)


def remove_temporary_folders(folder: Path, name: str | None = None) -> None:
    """Remove the temporary folders that a killed process left for ``name``, or for any name."""
    temporary = re.compile(rf"\.{'.+' if name is None else re.escape(name)}\.[^.]+{re.escape(PART)}(\.before)?")
    for path in folder.glob(f".*{PART}*"):
        if temporary.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def foreign_names(folder: Path, own: Collection[str]) -> list[str]:
    """Return the sorted names of a folder's entries that are neither in ``own`` nor hidden files of bertsmith."""
    return sorted(p.name for p in folder.iterdir() if p.name not in own and not _HIDDEN.fullmatch(p.name))


def is_hidden(path: PurePath | str) -> bool:
    """Return whether a part of a relative path begins with a dot, as in Finder's ``.DS_Store``."""
    return any(part.startswith(".") for part in PurePath(path).parts)


def visible_files(folder: Path) -> list[Path]:
    """Return the files of a folder and its subfolders in order, without hidden ones."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and not is_hidden(p.relative_to(folder)))


def checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each visible file by its relative path, without the manifest of `seal`."""
    files = (p for p in visible_files(folder) if p != folder / MANIFEST)
    return {p.relative_to(folder).as_posix(): checksum(p) for p in files}


def seal(folder: Path) -> None:
    """Write the SHA-256 of a folder's files to a manifest, for `is_intact`.

    Raises:
        OSError: if the disk is full or not writable.
    """
    manifest = checksums(folder)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def is_intact(folder: Path) -> bool:
    """Return whether a folder was sealed and no visible file has changed since."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {name: digest for name, digest in manifest.items() if not is_hidden(name)}  # older versions list all
        return bool(files) and files == checksums(folder)
    except (OSError, ValueError, AttributeError):
        return False


@contextmanager
def disk_errors(path: Path, remedy: str | None = None) -> Iterator[None]:
    """Turn disk errors while ``path`` is written into user errors.

    Args:
        path: the file or folder that is written.
        remedy: what to do about it; the usual advice if ``None``.

    Raises:
        OutputError: if the disk is full, read-only or broken, or ``path`` was removed.
    """
    try:
        yield
    except OSError as error:
        file = Path(os.fsdecode(error.filename)) if error.filename else Path(os.devnull)
        temporary = file.parent == path.parent and path.name in file.name
        related = file.is_relative_to(path) or path.is_relative_to(file)
        if error.errno not in DISK_ERRNOS and not temporary and not related:
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


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reset_modes(folder: Path) -> None:
    """Give every file the default mode of the process; some libraries write files that only the owner can read."""
    mask = os.umask(0)
    os.umask(mask)
    for path in visible_files(folder):
        path.chmod(0o666 & ~mask)


def _sync_all(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            _sync_folder(path)
        else:
            _sync(path)


def _sync(path: Path) -> None:
    """Sync a file to disk."""
    with path.open("r+b") as file:  # Windows does not sync files that are open for reading only
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Sync the entries of a folder to disk. Windows cannot open folders, and skips this."""
    with suppress(PermissionError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
