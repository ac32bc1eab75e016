"""The errors a user can mend. Everything else that is raised is a fault of ours."""

from __future__ import annotations

import difflib
import errno
import functools
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

EXTRAS = {
    "pandas": "tables",
    "pyarrow": "tables",
    "accelerate": "train",
    "datasets": "train",
    "datasketch": "train",
    "huggingface_hub": "train",
    "jinja2": "train",
    "safetensors": "train",
    "scipy": "train",
    "sklearn": "train",
    "torch": "train",
    "transformers": "train",
    "optuna": "tune",
    "captum": "explain",
    "cleanlab": "label-errors",
    "nncf": "export",
    "onnx": "export",
    "onnxscript": "export",
    "openvino": "openvino",
    "openpyxl": "excel",
    "python_calamine": "excel",
    "sqlalchemy": "sql",
    "ray": "ray",
}
"""The extra that brings each package which an installation can lack, by the name of its import."""

_LONGEST_SHOWN = 80
"""Characters of a value that a message repeats."""
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
"""What a disk refuses with."""


class UserError(Exception):
    """Something the user can put right: bad table, bad flag, missing model, no space.

    Args:
        what: what is wrong, with the offending value.
        where: the file, column, row, flag or key it was found in.
        remedy: what to do about it, naming the flag or the edit.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.remedy:
            lines.append(f"  what to do: {self.remedy}")
        return "\n".join(lines)


class DataError(UserError):
    """A table that cannot be read, or whose labels do not make sense."""


class RowError(DataError):
    """Rows of a table that cannot be read, while the others can."""


class ConfigError(UserError):
    """A setting that does not exist, has the wrong type, or contradicts another."""


class MissingPackageError(ConfigError):
    """A package that is not installed.

    Args:
        package: the name of its import.
        purpose: what needs it.
        needs: the extra that the purpose needs as a whole; it counts where the package alone is part of a smaller one.
        otherwise: another way out.
        where: the file or folder it was needed for.

    Attributes:
        package: as given.
        extra: the extra to install; ``None`` if no extra brings the package.
    """

    def __init__(
        self, package: str, purpose: str, *, needs: str | None = None, otherwise: str = "", where: str | None = None
    ) -> None:
        extra = EXTRAS.get(package)
        self.package, self.extra = package, needs if needs and extra in (None, "tables", "train") else extra
        wanted = f"'bertsmith[{self.extra}]'" if self.extra else package
        super().__init__(
            f"{purpose} needs the package {package}, which is not installed",
            where=where,
            remedy=f"Install it: pip install {wanted}.{f' {otherwise}' if otherwise else ''}",
        )


class ModelError(UserError):
    """A checkpoint that is missing, unreachable, unsafe, or of the wrong kind."""


class RunFolderError(UserError):
    """A run folder that is absent, unfinished, already finished, or not ours to write to."""


class OutputError(UserError):
    """Something cannot be written: the disk is full, read-only or broken, or the place is gone."""


class DeviceError(UserError):
    """The device asked for is missing or out of memory."""


class TrainingError(UserError):
    """Training went wrong: its numbers are no longer finite."""


class Interrupted(Exception):  # noqa: N818 - an interruption is not an error
    """Training was interrupted by the user, after a checkpoint was saved."""

    exit_code = 130


def needing(extra: str | None = None, purpose: str | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Have a function name the extra to install where a package is missing, with a `MissingPackageError`.

    Args:
        extra: the extra that the function needs as a whole.
        purpose: what the function does, for the message; its name unless given.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except ModuleNotFoundError as error:
                if error.name not in EXTRAS:
                    raise
                doing = purpose or f"bertsmith.{function.__qualname__}"
                raise MissingPackageError(error.name, doing, needs=extra) from error

        return checked

    return decorate


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known name, or an empty string."""
    folded = {other.casefold(): other for other in known}
    close = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.6)
    return f" Did you mean {quoted(folded[close[0]])}?" if close else ""


def cut(text: str) -> str:
    """Return a text for a message: what is too long ends in ``…``."""
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 1]}…"


def quoted(value: object) -> str:
    """Return a value for a message: a string in quotes, anything else as it prints itself; both cut."""
    return repr(cut(value)) if isinstance(value, str) else cut(str(value))


def listing(values: Iterable[object], limit: int = 10) -> str:
    """Join values for a message, quoting strings, cutting long ones, and stopping after ``limit``."""
    items = [quoted(value) for value in values]
    shown = ", ".join(items[:limit])
    return shown + (f" and {len(items) - limit:,} more" if len(items) > limit else "")


def path_of(value: Any, name: str, kind: type[UserError] = ConfigError) -> Path:
    """Return an argument as a path.

    Args:
        value: the argument.
        name: of the argument, for messages.
        kind: of the error.

    Raises:
        UserError: of that kind, if it is not a path, or one that no file system takes.
    """
    if not isinstance(value, str | os.PathLike):
        raise kind(f"{name} should be a path, not a {type(value).__name__}", remedy="Give a str or a pathlib.Path.")
    if not is_possible(value):
        raise kind(
            f"{name} is not a possible path: {quoted(str(value))} ({len(str(value)):,} characters)",
            remedy="Give the path of a file or folder, not its content.",
        )
    return Path(value)


def is_possible(path: str | os.PathLike[str]) -> bool:
    """Return whether this can be a path, of something that is there or not.

    A new file or folder with a line break in its name is no path, but the content of a file.
    """
    try:
        Path(path).stat()
    except OSError as error:
        return error.errno not in (errno.ENAMETOOLONG, errno.EINVAL) and "\n" not in str(path)
    except ValueError:  # a null character
        return False
    return True


def cannot_write(path: Path, error: Exception, remedy: str | None = None) -> OutputError:
    """Return the error that says why something cannot be written, and what to do: ``remedy``, or what is usual."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    reason = os.strerror(errno.ENOSPC) if full else getattr(error, "strerror", None) or error
    blocking = next((folder for folder in path.absolute().parents if folder.is_file()), None)
    if blocking is not None:
        reason = f"{blocking} is a file, not a folder"
    usual = "Make room, or give another place." if full else "Give another place, or see that it can be written to."
    return OutputError(f"this cannot be written: {reason}", where=str(path), remedy=remedy or usual)
