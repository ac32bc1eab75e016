"""Files and folders that commands write: predictions, pages, tables, exports."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bertsmith.compute.system import LOCKS_OPEN_FILES
from bertsmith.errors import ConfigError, RunFolderError, listing
from bertsmith.folders.atomic import disk_errors, foreign_names, rename
from bertsmith.folders.claim import Output, check_contents, check_not_in_run


@dataclass(frozen=True)
class OutputFile(Output):
    """A file to write.

    Attributes:
        sources: files and database URLs that the command reads; they are never replaced.
        suffixes: endings that the file name may have; any if empty.
    """

    sources: Iterable[Any] = ()
    suffixes: tuple[str, ...] = ()
    activity: ClassVar[str | None] = "writing this file"

    def check(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Refuse to replace an input, a folder, a file without ``overwrite``, or on Windows an open file."""
        path, remedy = self.path, "Choose another file."
        check_not_in_run(path, "Choose a file in another folder.")
        if path.exists() and any(_same_file(source, path) for source in self.sources):
            raise ConfigError("the output is the input, which bertsmith never replaces", where=str(path), remedy=remedy)
        if (path.exists() or path.is_symlink()) and not path.is_file():
            kind = "a folder" if path.is_dir() else "a broken link" if path.is_symlink() else "not a plain file"
            raise ConfigError(f"the path is {kind}, and bertsmith replaces only files", where=str(path), remedy=remedy)
        if self.suffixes and path.suffix.lower() not in self.suffixes:
            raise ConfigError(
                f"the file name does not end in {self.suffixes[0]}",
                where=str(path),
                remedy=f"Use a name that ends in {self.suffixes[0]}.",
            )
        if path.exists() and not overwrite:
            raise ConfigError(
                "the file already exists",
                where=str(path),
                remedy="Choose another file, or pass --overwrite to replace it.",
            )
        if path.exists() and LOCKS_OPEN_FILES:
            with disk_errors(path):
                rename(path, path)


@dataclass(frozen=True)
class OutputFolder(Output):
    """A folder of files to write.

    Attributes:
        source: the file or folder that the command reads; it is never replaced.
        suffix: of the files; a folder with other files is never replaced.
    """

    source: Path
    suffix: str
    activity: ClassVar[str | None] = "writing this folder"

    def check(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Refuse to replace an input, a file, or other files."""
        path, remedy = self.path, "Choose another folder."
        check_not_in_run(path / "file", "Choose a folder outside the run.")
        if not path.exists() and not path.is_symlink():
            return
        if not path.is_dir() or path.is_symlink():
            raise ConfigError("the path is not a folder", where=str(path), remedy=remedy)
        source = self.source.absolute()
        if any(folder.exists() and path.samefile(folder) for folder in (source, *source.parents)):
            raise ConfigError("the input is in this folder", where=str(path), remedy=remedy)
        files = [path / name for name in foreign_names(path, ())]
        if foreign := [file.name for file in files if file.suffix != self.suffix or not file.is_file()]:
            raise ConfigError(f"this folder contains other files: {listing(foreign)}", where=str(path), remedy=remedy)
        if files and not overwrite:
            raise ConfigError(
                "the folder contains files",
                where=str(path),
                remedy="Choose another folder, or pass --overwrite to replace the files.",
            )


class ExportFolder(Output):
    """The folder of an export."""

    FILE: ClassVar[str] = "export.json"
    FILES: ClassVar[tuple[str, ...]] = (
        *(FILE, "README.md", "tokenizer.json", "validation.npz"),
        *("model.onnx", "model.onnx.data", "model.xml", "model.bin"),
    )
    activity: ClassVar[str | None] = "writing this export"

    def check(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Refuse to replace anything but an export without other files, and that only with ``overwrite``."""
        path = self.path
        if not path.exists():
            check_not_in_run(path, "Leave out -o, or choose a folder outside the run.", allowed="export")
        elif path.is_dir() and not foreign_names(path, ()):
            return
        elif not (path / self.FILE).is_file():
            kind = "a folder with other files" if path.is_dir() else "a file"
            raise RunFolderError(f"the path is {kind}", where=str(path), remedy="Choose a new folder with -o.")
        elif not overwrite:
            raise RunFolderError(
                "the export already exists",
                where=str(path),
                remedy="Pass --overwrite to replace it, or choose another folder with -o.",
            )
        else:
            check_contents(path, foreign_names(path, self.FILES), "export")


def _same_file(source: Any, path: Path) -> bool:
    """Return whether a source, which may be a file or the URL of an SQLite database, is the file at a path."""
    if not isinstance(source, str | Path):
        return False
    file = Path(re.sub(r"^sqlite[+\w]*:///", "", str(source)))
    try:
        return file.exists() and path.samefile(file)
    except (OSError, ValueError):  # a URL can be too long for a path
        return False
