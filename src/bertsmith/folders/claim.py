"""What may be written where: everything that is checked before a run folder is touched, and while it is written."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bertsmith.config import Config
from bertsmith.errors import ConfigError, RunFolderError, listing, write_error
from bertsmith.folders.atomic import PART, drop_leftovers
from bertsmith.folders.run import Run


def check_file(path: Path, sources: Iterable[Any], *, overwrite: bool, suffixes: tuple[str, ...] = ()) -> None:
    """See that a file may be written, before any work is done.

    Args:
        path: the file.
        sources: everything that is read, files and the addresses of databases among it: that is never replaced.
        overwrite: whether a file that is there may be.
        suffixes: what its name may end in; anything, if there are none.

    Raises:
        ConfigError: if something is there that must not be replaced.
    """
    _not_in_a_run(path)
    if not path.exists() and not path.is_symlink():
        _check_suffix(path, suffixes)
        return
    files = [Path(re.sub(r"^sqlite[+\w]*:///", "", str(s))) for s in sources if isinstance(s, str | Path)]
    if path.exists() and any(_is_there(file) and path.samefile(file) for file in files):
        raise ConfigError(
            "this is the input itself, which is never replaced", where=str(path), remedy="Give another file."
        )
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "a link to nothing" if path.is_symlink() else "not a plain file"
        raise ConfigError(f"this is {kind}, and cannot be replaced", where=str(path), remedy="Give another file.")
    _check_suffix(path, suffixes)
    if not overwrite:
        raise ConfigError(
            "a file is there already", where=str(path), remedy="Give another file, or pass --overwrite to replace it."
        )


def check_folder(path: Path, source: Path, *, overwrite: bool, suffix: str) -> None:
    """See that a folder of files may be written, before any work is done.

    Args:
        path: the folder.
        source: what is read: that is never replaced.
        overwrite: whether files that are there may be.
        suffix: of the files; a folder with others in it is never replaced.

    Raises:
        ConfigError: if something is there that must not be replaced.
    """
    _not_in_a_run(path / "in it")
    if not path.exists() and not path.is_symlink():
        return
    inside = [source.absolute(), *source.absolute().parents]
    if not path.is_dir() or path.is_symlink():
        raise ConfigError("this is no folder, and cannot be replaced", where=str(path), remedy="Give another folder.")
    if path.absolute() in inside or path.resolve() in [place.resolve() for place in inside]:
        raise ConfigError("the input is in this folder", where=str(path), remedy="Give another folder.")
    files = sorted(path.iterdir())
    if foreign := [file.name for file in files if file.suffix != suffix or not file.is_file()]:
        raise ConfigError(
            f"this folder holds something else: {listing(foreign)}", where=str(path), remedy="Give another folder."
        )
    if files and not overwrite:
        raise ConfigError(
            "files are there already", where=str(path), remedy="Give another folder, or pass --overwrite to replace it."
        )


def _not_in_a_run(path: Path) -> None:
    run = next((folder for folder in path.absolute().parents if Run(folder).layout.run.is_file()), None)
    if run is not None:
        raise ConfigError(
            f"this is in the folder of the run {run}, where only the run itself is kept",
            where=str(path),
            remedy="Give a file in another folder.",
        )


def _check_suffix(path: Path, suffixes: tuple[str, ...]) -> None:
    if suffixes and path.suffix.lower() not in suffixes:
        raise ConfigError(
            f"the name of this file does not say what is written: {suffixes[0]}",
            where=str(path),
            remedy=f"Give a name that ends in {suffixes[0]}.",
        )


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # an address may be too long for a path
        return False


def check_output(path: Path, *, resume: bool, overwrite: bool) -> None:
    """See that a run may be written to a folder, before any work is done.

    Raises:
        RunFolderError: if something is there that must not be touched, or there is nothing to resume.
    """
    run = Run(path)
    if resume and overwrite:
        raise RunFolderError("--resume and --overwrite contradict each other", remedy="Give one of them.")
    if not run.layout.run.is_file():
        if run.layout.labels.exists() and run.layout.splits.exists():
            raise RunFolderError(
                "a run is there that has lost its run.json",
                where=str(path),
                remedy="Put a copy of that file back, give -o another folder, or remove this one.",
            )
        if resume:
            raise RunFolderError(
                "there is no run to resume in this folder", where=str(path), remedy="Leave out --resume."
            )
        if path.is_file() or (path.is_dir() and any(not p.name.startswith(".") for p in path.iterdir())):
            kind = "a file" if path.is_file() else "a folder with other things in it"
            raise RunFolderError(
                f"this is {kind}, and bertsmith writes only to folders of its own",
                where=str(path),
                remedy="Give -o a folder that is empty or not there yet.",
            )
        return
    if overwrite and (foreign := run.foreign()):
        raise RunFolderError(
            f"the run folder holds what is not of the run and would be lost: {listing(foreign)}",
            where=str(path),
            remedy="Move that elsewhere first, or give -o another folder.",
        )
    status = run.info.get("status")
    if status == "finished":
        if resume:
            raise RunFolderError(
                "this run is finished: there is nothing to resume",
                where=str(path),
                remedy="Leave out --resume, and give -o another folder or pass --overwrite to train anew.",
            )
        if not overwrite:
            raise RunFolderError(
                "a finished run is there already",
                where=str(path),
                remedy="Give -o another folder, or pass --overwrite to replace it.",
            )
    elif not resume and not overwrite and run.is_resumable:
        raise RunFolderError(
            f"an unfinished run is there (status {status!r}), with a checkpoint to go on from",
            where=str(path),
            remedy="Pass --resume to go on with it, or --overwrite to begin anew.",
        )


@contextmanager
def lock(path: Path, what: str = "training into this run folder") -> Iterator[None]:
    """Hold a run folder or a file, there or not yet, against every other process; the lock goes with the process.

    Args:
        path: the folder or file.
        what: another process is doing there, if it is held.

    Raises:
        RunFolderError: if another process holds it.
        OutputError: if its place cannot be written to.
    """
    place = path.resolve()
    lock = FileLock(place.parent / f".{place.name}.lock", timeout=0)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        if not Path(lock.lock_file).exists():  # it could not even be made
            raise write_error(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES))) from None
        raise RunFolderError(
            f"another process is {what}",
            where=str(path),
            remedy="Wait until it is done, or give -o another place.",
        ) from None
    except OSError as error:
        raise write_error(path, error) from error
    try:
        yield
    finally:
        with suppress(PermissionError):  # Windows removes no open file; there filelock removes it after the release
            Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: nobody can be waiting for this one
        lock.release()


def check_room(path: Path, *, parameters: int, checkpoints: int) -> None:
    """See that there is room for a run, before training begins.

    Args:
        path: the run folder, there or not yet.
        parameters: weights of the model; a checkpoint holds each, with two moments of the optimizer, in fp32.
        checkpoints: how many are kept; one more is there while it is written.

    Raises:
        RunFolderError: if there is not.
    """
    disk = next(folder for folder in (path.resolve(), *path.resolve().parents) if folder.exists())
    needed, free = 4 * parameters * (3 * (checkpoints + 1) + 1), shutil.disk_usage(disk).free
    if free < needed:
        raise RunFolderError(
            f"there is too little room on the disk: {free / 1e9:.1f} GB are free, and about {needed / 1e9:.1f} GB are "
            "needed for the model and its checkpoints",
            where=str(path),
            remedy="Make room, give -o another place, or keep fewer checkpoints: --set save_total_limit=1.",
        )


def create(path: Path) -> Run:
    """Make an empty run folder, in the place of a run that `check_output` allowed to replace.

    Raises:
        OutputError: if the folder cannot be written to.
    """
    try:
        drop_leftovers(path.parent, path.name)
        if Run(path).layout.run.is_file():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=PART, dir=path.parent))
            path.replace(old)  # at no instant is half of it there
            shutil.rmtree(old)
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    return Run(path)


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Say which keys of two mappings differ, for a refusal to resume."""
    return [
        f"{key}: {before.get(key)!r} then, {after.get(key)!r} now"
        if key in before
        else f"{key}: not there in the bertsmith it was begun with, {after[key]!r} now"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]


def check_same(run: Run, *, config: Mapping[str, Any], fingerprint: str, model: Mapping[str, Any]) -> None:
    """See that a run is resumed with the settings, the data and the model it was begun with.

    Raises:
        RunFolderError: naming what differs.
    """
    info = run.info
    changed = _changed_settings(run, config)
    # Where settings differ, the texts of the splits may well do so in consequence.
    if not changed and info.get("data", {}).get("fingerprint") != fingerprint:
        changed.append("the texts, labels or splits of the table")
    before = info.get("model", {})
    if before.get("files") != model["files"]:
        changed.append("the model's configuration or tokenizer")
    changed += differences({**before, "files": None}, {**model, "files": None})
    _refuse(run, changed)


def _changed_settings(run: Run, config: Mapping[str, Any]) -> list[str]:
    """Say which settings of a run differ. Device and threads may, so that another machine can finish the run.

    A setting that an older version did not have counts as not given.
    """
    before = {**Config().dump(), **run.info.get("config", {})}
    free = ("device", "threads")
    return differences(
        {name: value for name, value in before.items() if name not in free},
        {name: value for name, value in config.items() if name not in free},
    )


def _refuse(run: Run, changed: list[str]) -> None:
    if changed:
        raise RunFolderError(
            f"the run cannot be resumed, since these differ: {listing(map(_Plain, changed))}",
            where=str(run.path),
            remedy="Run the command the run was begun with, with the same version of bertsmith, or pass --overwrite to "
            "begin anew.",
        )


def check_settings_same(run: Run, config: Mapping[str, Any]) -> None:
    """See that a run is resumed with the settings it was begun with; `check_same` sees to the rest.

    Raises:
        RunFolderError: naming what differs.
    """
    _refuse(run, _changed_settings(run, config))


class _Plain(str):
    """A string that `listing` does not quote."""

    def __repr__(self) -> str:
        return str(self)
