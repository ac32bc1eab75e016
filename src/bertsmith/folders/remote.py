"""A run at the URL of a storage that fsspec reads and writes, such as object storage.

Object storage has neither locks nor renames, so a run is trained in a folder and copied to the URL.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Set
from contextlib import suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from bertsmith.errors import ConfigError, MissingPackageError, OutputError, RunFolderError, UserError, is_url, to_path
from bertsmith.folders.atomic import MANIFEST, is_hidden, visible_files, write_json
from bertsmith.folders.layout import Layout
from bertsmith.folders.new_run import RunFolder, unfinished_error
from bertsmith.folders.run import read_json

R = TypeVar("R")

RETRY_SECONDS = (1.0, 5.0, 25.0)
"""Waits before a failed copy is repeated. The packages of the storages also retry."""
_LAYOUT = Layout(Path())
_RUN = _LAYOUT.run.name
_RESUMABLE = re.compile(
    rf"{_LAYOUT.checkpoints}/checkpoint-\d+/{MANIFEST}|{_LAYOUT.folds}/\d+\.npy|{_LAYOUT.seeds}/\d+/{_RUN}"
)
"""Files that make a run resumable."""
_REMEDY = "Pass the URL of a folder in a storage of fsspec, such as s3://bucket/runs/reviews."
_PROBE = ".bertsmith-probe"


def run_output(output: Path | str, *, ray: bool) -> Path | str:
    """Return the place for a run: a path, or the URL of a storage.

    Args:
        output: a path or a URL.
        ray: whether a Ray cluster trains, which can keep the run at a URL.

    Raises:
        ConfigError: if it is neither, or a URL without Ray.
    """
    if not isinstance(output, str) or not is_url(output):
        return to_path(output, "output")
    if not ray:
        raise ConfigError(
            "a run at a URL needs --ray",
            where=output,
            remedy="Train into a folder and copy it afterwards, or train with --ray.",
        )
    return output


class RemoteRun:
    """A run at a URL.

    Args:
        url: the URL of the run's folder.

    Attributes:
        created: when the run at the URL was created, as last seen; ``None`` without a run, ``"?"`` for a damaged one.

    Raises:
        UserError: if the URL is not usable, or the package for its storage is missing.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.created: str | None = None
        self._copied: dict[str, tuple[int, int]] = {}
        protocol, slashes, _ = url.partition("://")
        try:
            from fsspec.core import url_to_fs
            from fsspec.implementations.local import LocalFileSystem

            self.storage, root = url_to_fs(url)
        except ImportError as error:
            missing = getattr(error.__cause__ or error, "name", None)
            raise MissingPackageError(missing or protocol, f"a run at {protocol}://", where=url) from error
        except Exception as error:  # each storage raises its own
            raise ConfigError(f"the URL is not usable: {_reason(error)}", where=url, remedy=_REMEDY) from error
        if isinstance(self.storage, LocalFileSystem):
            self.storage = LocalFileSystem(auto_mkdir=True)
        self._root = str(root).rstrip("/")
        if not (slashes and self.name):
            raise ConfigError("the URL does not name a folder", where=url, remedy=_REMEDY)

    @property
    def name(self) -> str:
        """Name of the run."""
        return self._root.rpartition("/")[2]

    @property
    def info(self) -> dict[str, Any]:
        """The content of ``run.json``; empty without one.

        Raises:
            UserError: if it is damaged, or the storage cannot be reached.
        """
        return self._retried("read", self._info)

    @property
    def is_resumable(self) -> bool:
        """Whether the run has a checkpoint, a scored fold or a run of a seed."""
        return any(map(_RESUMABLE.fullmatch, self._retried("read", self._names)))

    def check(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Refuse to train as `RunFolder.check` does, or if the storage is not writable."""
        with TemporaryDirectory() as temporary:
            copy = Path(temporary) / "run"
            self._retried("read", lambda: self._copy_names(copy), waits=())
            try:
                RunFolder(copy).check(resume=resume, overwrite=overwrite)
            except UserError as error:
                error.where = error.where and error.where.replace(str(copy), self.url)
                raise
            if (copy / _RUN).is_file() and not (resume or overwrite) and self.is_resumable:
                raise unfinished_error(self.url, read_json(copy / _RUN).get("status"))
            (Path(temporary) / _PROBE).write_text("bertsmith", encoding="utf-8")
            self._retried("written", lambda: self._put(Path(temporary), _PROBE), waits=())
            self._retried("written", lambda: self._remove({_PROBE}), waits=())
        self.created = self._retried("read", self._created)

    def fetch(self, folder: Path, under: Path = Path()) -> None:
        """Copy the run, or the part of it in a subfolder, to a folder.

        Raises:
            UserError: if the storage cannot be read.
        """

        def fetch() -> None:
            for name in self._names():
                if PurePosixPath(name).is_relative_to(under.as_posix()):
                    self._get(name, folder / name)

        self._retried("read", fetch)
        if under.parts:
            return
        self._copied = _files(folder)
        self.created = read_json(folder / _RUN).get("created")

    def put(self, folder: Path) -> None:
        """Copy new and changed files of a run to the URL, then remove there what the folder lacks.

        The checksums of a checkpoint follow its files, and ``run.json`` is the last file. So a checkpoint or a finished
        run counts only when it is complete. A new run never inherits old checkpoints.

        Raises:
            RunFolderError: if another process has written a run to the URL.
            OutputError: if the storage cannot be written.
        """
        self._retried("written", lambda: self._copy(folder))

    def _copy(self, folder: Path) -> None:
        there, files, info = self._names(), _files(folder), read_json(folder / _RUN)
        created = info.get("created")
        if self._created() not in (self.created, created):  # a failed copy may have stored it
            raise RunFolderError(
                "another process has written a run to this URL",
                where=self.url,
                remedy="Choose another URL with -o.",
            )
        if created != self.created:
            self._remove({name for name in there if name.partition("/")[0] in _FOR_RESUMING}, there)
            with TemporaryDirectory() as temporary:
                write_json(Path(temporary) / _RUN, {**info, "status": "running"})
                self._put(Path(temporary), _RUN)
            self.created = created
        for name in sorted(files, key=_order):
            if self._copied.get(name) != files[name]:
                self._put(folder, name)
                self._copied[name] = files[name]
        self._remove(set(there) - set(files), there)
        self._copied = files

    def _info(self) -> dict[str, Any]:
        with TemporaryDirectory() as temporary, suppress(FileNotFoundError):
            self.storage.invalidate_cache()
            self._get(_RUN, Path(temporary) / _RUN)
            try:
                return read_json(Path(temporary) / _RUN)
            except RunFolderError as error:
                error.where = f"{self.url}/{_RUN}"
                raise
        return {}

    def _created(self) -> str | None:
        try:
            return self._info().get("created")
        except RunFolderError:
            return "?"

    def _names(self) -> list[str]:
        """Return the names of all files, relative to the URL, without hidden ones."""
        self.storage.invalidate_cache()
        names = (
            str(path).strip("/").removeprefix(f"{self._root.strip('/')}/") for path in self.storage.find(self._root)
        )
        return sorted(name for name in names if not is_hidden(name))

    def _copy_names(self, copy: Path) -> None:
        """Create empty files and folders with the names at the top, and copy ``run.json``."""
        self.storage.invalidate_cache()
        try:
            entries = self.storage.ls(self._root, detail=True)
        except FileNotFoundError:
            return
        for entry in entries:
            path, is_folder = entry["name"].strip("/"), entry["type"] == "directory"
            if path != self._root.strip("/"):
                target = copy / path.rpartition("/")[2]
                (target if is_folder else copy).mkdir(parents=True, exist_ok=True)
                if not is_folder:
                    target.touch()
            elif not is_folder and len(entries) == 1:
                copy.touch()
        if (copy / _RUN).is_file():
            self._get(_RUN, copy / _RUN)

    def _get(self, name: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        self.storage.get_file(f"{self._root}/{name}", str(target))

    def _put(self, folder: Path, name: str) -> None:
        self.storage.put_file(str(folder / name), f"{self._root}/{name}")

    def _remove(self, names: Set[str], there: Iterable[str] = ()) -> None:
        """Remove files, those that mark others as complete first, and then empty folders, which some storages have."""
        for name in sorted(names, key=_order, reverse=True):
            with suppress(FileNotFoundError):
                self.storage.rm_file(f"{self._root}/{name}")
        self.storage.invalidate_cache()
        for folder in sorted(_folders(names) - _folders(set(there) - names), reverse=True):
            with suppress(Exception):  # an empty folder does no harm
                if self.storage.isdir(f"{self._root}/{folder}"):
                    self.storage.rmdir(f"{self._root}/{folder}")

    def _retried(self, verb: str, action: Callable[[], R], waits: tuple[float, ...] | None = None) -> R:
        """Run an action on the storage again after errors."""
        for seconds in (*(RETRY_SECONDS if waits is None else waits), None):
            try:
                return action()
            except UserError:
                raise
            except Exception as error:  # each storage raises its own
                if seconds is None:
                    raise OutputError(
                        f"the storage cannot be {verb}: {_reason(error)}",
                        where=self.url,
                        remedy="Check the URL, the connection and your permissions.",
                    ) from error
                time.sleep(seconds)
        raise AssertionError("unreachable")


_FOR_RESUMING = {path.name for path in (_LAYOUT.checkpoints, _LAYOUT.folds, _LAYOUT.seeds)}


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and modification time of each file by its relative name, without hidden ones."""
    stats = {path.relative_to(folder).as_posix(): path.stat() for path in visible_files(folder)}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def _folders(names: Iterable[str]) -> set[str]:
    """Return the folders of files, without the one at the top."""
    return {parent.as_posix() for name in names for parent in PurePosixPath(name).parents} - {"."}


def _order(name: str) -> tuple[int, str]:
    """Return the sort key of a file in a copy: files that mark others as complete come last."""
    if name.rpartition("/")[2] == _RUN:
        return (3 if name == _RUN else 2, name)
    return (1 if name.endswith(f"/{MANIFEST}") else 0, name)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
