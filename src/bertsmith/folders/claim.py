"""Claim an output: one writer at a time, and nothing is replaced without permission."""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock, Timeout

from bertsmith.config import Config
from bertsmith.errors import ConfigError, RunFolderError, listing, quoted, to_path, write_error
from bertsmith.folders.atomic import disk_errors


@dataclass(frozen=True)
class Output(ABC):
    """A file or folder to write.

    Attributes:
        path: the file or folder, which need not exist.
        activity: what the process with the lock does, for messages; ``None`` if processes share the output.
        disk_remedy: what to do if the disk is full or not writable; the usual advice if ``None``.
    """

    path: Path
    activity: ClassVar[str | None] = None
    disk_remedy: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        to_path(self.path, "the output")

    @abstractmethod
    def check(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Refuse to write if what exists must not be replaced, or if nothing can be resumed.

        Raises:
            UserError: with the reason.
        """


@contextmanager
def claim(output: Output, *, resume: bool = False, overwrite: bool = False) -> Iterator[None]:
    """Lock an output, check that it may be written, and report disk errors as user errors.

    Raises:
        UserError: if the output must not be written, or another process is writing to it.
    """
    locked = nullcontext() if output.activity is None else lock(output.path, output.activity)
    with locked, disk_errors(output.path, output.disk_remedy):
        output.check(resume=resume, overwrite=overwrite)
        yield


@contextmanager
def lock(path: Path, activity: str) -> Iterator[None]:
    """Lock a file or folder against other processes. The lock ends with the process.

    Args:
        path: the file or folder, which need not exist.
        activity: what the process with the lock does, for the message.

    Raises:
        RunFolderError: if another process has the lock.
        OutputError: if the parent folder is not writable.
    """
    target = path.resolve()
    file_lock = FileLock(target.parent / f".{target.name}.lock", timeout=0)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file_lock.acquire()
    except Timeout:
        if not Path(file_lock.lock_file).exists():  # the lock file could not be created
            raise write_error(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES))) from None
        raise RunFolderError(
            f"another process is {activity}",
            where=str(path),
            remedy="Wait until it finishes, or choose another path with -o.",
        ) from None
    except OSError as error:
        raise write_error(path, error) from error
    try:
        yield
    finally:
        with suppress(PermissionError):  # Windows cannot remove an open file; filelock removes it after the release
            Path(file_lock.lock_file).unlink(missing_ok=True)  # before the release, while no process can wait for it
        file_lock.release()


def check_not_in_run(path: Path, remedy: str, *, allowed: str | None = None) -> None:
    """Refuse a path inside a run folder.

    Args:
        path: the file or folder to write.
        remedy: what to do instead.
        allowed: name of the only subfolder of a run that may contain the path.

    Raises:
        ConfigError: naming the run.
    """
    run = next((folder for folder in path.absolute().parents if (folder / "run.json").is_file()), None)
    if run is not None and not (allowed and path.absolute().parent == run / allowed):
        raise ConfigError(f"the path is in the folder of the run {run}", where=str(path), remedy=remedy)


def check_contents(path: Path, foreign: list[str], what: str) -> None:
    """Refuse to overwrite a folder with files that bertsmith did not write.

    Args:
        path: the folder.
        foreign: names of the files that bertsmith did not write.
        what: ``"run"``, ``"study"`` or ``"export"``.

    Raises:
        RunFolderError: naming the files.
    """
    if foreign:
        raise RunFolderError(
            f"the {what} folder contains files that are not part of the {what}: {listing(foreign)}",
            where=str(path),
            remedy="Move these files elsewhere first, or choose another folder with -o.",
        )


def check_empty(path: Path) -> None:
    """Refuse a path where something else exists; empty folders and hidden files are fine.

    Raises:
        RunFolderError: if it is a file, or a folder with other files.
    """
    if path.is_file() or (path.is_dir() and any(not p.name.startswith(".") for p in path.iterdir())):
        kind = "a file" if path.is_file() else "a folder with other files"
        raise RunFolderError(
            f"the path is {kind}, and bertsmith writes only to its own folders",
            where=str(path),
            remedy="Choose an empty or a new folder with -o.",
        )


def known_settings(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored settings in the form of this version: defaults for new settings, without removed settings."""
    defaults = Config().dump()
    return {**defaults, **{name: value for name, value in stored.items() if name in defaults}}


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Describe which values of two mappings differ, for `refuse_changes`."""
    return [
        f"{key} (before: {quoted(before[key]) if key in before else 'not set'}, now: {quoted(after.get(key))})"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]


def refuse_changes(what: str, path: Path, changed: list[str], *, otherwise: str = "") -> None:
    """Refuse to resume if anything has changed.

    Args:
        what: ``"run"``, ``"study"`` or ``"predictions"``.
        path: its folder.
        changed: descriptions of what differs.
        otherwise: what else the user can do.

    Raises:
        RunFolderError: naming what differs.
    """
    if changed:
        raise RunFolderError(
            f"the {what} cannot be resumed, because these differ: {'; '.join(changed)}",
            where=str(path),
            remedy="Repeat the original command with the same version of bertsmith, or begin again with --overwrite."
            + otherwise,
        )
