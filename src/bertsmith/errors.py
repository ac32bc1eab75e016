"""Errors that the user can fix. Any other exception is a bug in bertsmith."""

from __future__ import annotations

import difflib
import errno
import functools
import importlib
import os
import re
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

EXTRAS = {
    "pandas": "tables",
    "pyarrow": "tables",
    "accelerate": "train",
    "cleanlab": "train",
    "datasets": "train",
    "datasketch": "train",
    "huggingface_hub": "train",
    "jinja2": "train",
    "psutil": "train",
    "safetensors": "train",
    "scipy": "train",
    "sklearn": "train",
    "threadpoolctl": "train",
    "torch": "train",
    "transformers": "train",
    "optuna": "tune",
    "captum": "explain",
    "nncf": "export",
    "onnx": "export",
    "onnxscript": "export",
    "openvino": "openvino",
    "openpyxl": "excel",
    "python_calamine": "excel",
    "sqlalchemy": "sql",
    "fsspec": "ray",
    "ray": "ray",
    "tensorboard": "tensorboard",
    "mlflow": "mlflow",
    "alembic": "mlflow",
    "wandb": "wandb",
    "trackio": "trackio",
}
"""The extra of each package that may be missing, by import name."""

_MAX_SHOWN = 80
"""Most characters of a value in a message."""
DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
"""Error numbers of a disk that is full, read-only or broken."""


class UserError(Exception):
    """Base class of the errors that the user can fix.

    Args:
        what: what is wrong, with the offending value.
        where: the file, column, row, flag or key.
        remedy: what to do about it, naming the flag or the edit.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__(what)

    def __str__(self) -> str:
        lines = (self.what, self.where and f"  where: {self.where}", self.remedy and f"  what to do: {self.remedy}")
        return "\n".join(filter(None, lines))


class DataError(UserError):
    """A table cannot be read, or its labels are inconsistent."""


class RowError(DataError):
    """Some rows of a table cannot be read; the other rows can."""


class ConfigError(UserError):
    """A setting does not exist, has the wrong type, or contradicts another setting."""


class MissingPackageError(ConfigError):
    """A package that is not installed.

    Args:
        package: the name of its import.
        purpose: what needs it.
        needs: the extra for the whole purpose, used if the extra of the package is smaller.
        otherwise: another remedy.
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
        self.args = (package, purpose)  # for pickle


class ModelError(UserError):
    """A checkpoint is missing, unreachable, unsafe, or of the wrong kind."""


class RunFolderError(UserError):
    """A run folder is missing, unfinished, already finished, or was not created by bertsmith."""


class OutputError(UserError):
    """A file cannot be written: the disk is full, read-only or broken, or the folder does not exist."""


class HubError(UserError):
    """The Hugging Face hub cannot be reached, or refuses a push."""


class DeviceError(UserError):
    """The requested device is missing or out of memory."""


class TrainingError(UserError):
    """Training failed: a loss or gradient is not finite."""


class Interrupted(Exception):  # noqa: N818 - an interruption is not an error
    """The user interrupted training, after a checkpoint was saved."""

    exit_code = 130


def needing(extra: str | None = None, purpose: str | None = None) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function raise a `MissingPackageError`, with the extra to install, if a package is missing.

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


_FLAG = re.compile(r"bertsmith [a-z]+ [^;\n]*?(?:\.(?=\s|$)|;|\n|$)|(?<![^\s(])(?:--([a-z]+(?:-[a-z]+)*)|-o\b)")
"""A command with its flags, which stay, up to the end of the sentence; or a flag outside of a command."""


@contextmanager
def naming_parameters() -> Iterator[None]:
    """Rename flags in errors, ``--text-column``, to parameters of Python functions, ``text_column``."""
    try:
        yield
    except UserError as error:

        def parameter(found: re.Match[str]) -> str:
            if found[0] == "-o":
                return "output"
            return found[1].replace("-", "_") if found[1] else found[0]

        def rename(message: str | None) -> str | None:
            return message and _FLAG.sub(parameter, message)

        error.what, error.where, error.remedy = str(rename(error.what)), rename(error.where), rename(error.remedy)
        if len(error.args) == 1:
            error.args = (error.what,)
        raise


def rendered_by(target: str, *, optional: bool = False) -> Callable[[Any], Any]:
    """Return a method that a higher package implements, such as the HTML of a run in a notebook.

    Args:
        target: ``"module:function"``; the function gets the value.
        optional: return ``None`` where a package is missing or the value cannot be read, as notebooks expect of
            ``_repr_html_``.
    """
    module, _, name = target.partition(":")

    @needing()
    def method(self: Any) -> Any:
        return getattr(importlib.import_module(module), name)(self)

    def tolerant(self: Any) -> Any:
        try:
            return method(self)
        except UserError:
            return None

    return tolerant if optional else method


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known name, or an empty string."""
    by_folded = {other.casefold(): other for other in known}
    close = difflib.get_close_matches(name.casefold(), list(by_folded), n=1, cutoff=0.6)
    return f" Did you mean {quoted(by_folded[close[0]])}?" if close else ""


def shorten(text: str) -> str:
    """Shorten a text for a message; a shortened text ends in ``…``."""
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 1]}…"


def quoted(value: object) -> str:
    """Format a value for a message: shortened, and in quotes if it is a string."""
    return repr(shorten(value)) if isinstance(value, str) else shorten(str(value))


def listing(values: Iterable[object], limit: int = 10) -> str:
    """Format the first ``limit`` values for a message, each by `quoted`, and count the others."""
    items = [quoted(value) for value in values]
    shown = ", ".join(items[:limit])
    return shown + (f" and {len(items) - limit:,} more" if len(items) > limit else "")


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """Format a number with its noun: ``"1 row"``, ``"2,000 rows"``; ``plural`` is for other endings and for verbs."""
    return f"{n:,} {number_form(n, noun, plural)}"


def number_form(n: int, noun: str, plural: str | None = None) -> str:
    """Return the singular for 1, otherwise the plural, by default with an ``s``."""
    return noun if n == 1 else plural or f"{noun}s"


def with_article(value: object) -> str:
    """Return the type of a value with its article: ``"an int"``, ``"a DataFrame"``."""
    name = type(value).__name__
    return f"{'an' if name[:1] in 'aeioAEIO' or name == 'ndarray' else 'a'} {name}"


def lower_first(title: str) -> str:
    """Return a title as it is written within a sentence: ``"Macro-F1"`` becomes ``"macro-F1"``, ``"R²"`` stays."""
    return title[:1].lower() + title[1:] if title[1:2].islower() else title


def to_path(value: Any, name: str, error_type: type[UserError] = ConfigError, *, any_encoding: bool = False) -> Path:
    """Convert an argument to a path.

    Raises:
        UserError: of class ``error_type``, if the value is not a path, or if no file system accepts it. Without
            ``any_encoding``, also if the path is not UTF-8: pyarrow and tokenizers require UTF-8.
    """
    if not isinstance(value, str | os.PathLike):
        raise error_type(f"{name} should be a path, not {with_article(value)}", remedy="Pass a str or a pathlib.Path.")
    value = os.fspath(value)
    if not is_valid_path(value):
        raise error_type(
            f"{name} is not a valid path: {quoted(value)} ({len(value):,} characters)",
            remedy="Pass the path of a file or folder, not its content.",
        )
    if not any_encoding and re.search("[\ud800-\udfff]", str(value)):
        raise error_type(f"{name} is not valid UTF-8", where=str(value), remedy="Rename the file and its folders.")
    if is_url(value):
        raise error_type(
            f"{name} is a URL, but bertsmith reads and writes only files and folders",
            where=value,
            remedy="Mount the storage as a folder, or copy the files before or after the command.",
        )
    return Path(value)


def is_url(value: str) -> bool:
    """Return whether this is a URL, also as a `Path`, which removes a slash. The drives of Windows have one letter."""
    return bool(_URL.match(value)) and not (is_valid_path(value) and Path(value).exists())


_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def is_valid_path(path: str | os.PathLike[str]) -> bool:
    """Return whether this can be the path of a file or folder, whether that exists or not.

    A path with a line break is valid only if it exists: otherwise it is probably the content of a file.
    """
    try:
        Path(path).stat()
    except OSError as error:
        return error.errno not in (errno.ENAMETOOLONG, errno.EINVAL) and "\n" not in str(path)
    except ValueError:  # a null character
        return False
    return True


def first_line(error: BaseException) -> str:
    """Return the first line of a message, without users and passwords; without a message, the type."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    line = re.sub(r"""(?<!/)(//)\S*@|(?<![^\s/])(['"]?)[^\s/]*[^\s/'"]@""", r"\1\2***@", line)
    return re.sub(r"(?i)(password|pwd|secret|token)=[^&\s]+", r"\1=***", line)


def write_error(path: Path, error: Exception, remedy: str | None = None) -> OutputError:
    """Return the `OutputError` for a path that cannot be written.

    Args:
        path: the file or folder.
        error: what the operating system or a library raised.
        remedy: what to do; by default, to free space or to give another path.
    """
    disk_full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    reason = os.strerror(errno.ENOSPC) if disk_full else getattr(error, "strerror", None) or error
    blocking = next((folder for folder in path.absolute().parents if folder.is_file()), None)
    if blocking is not None:
        reason = f"{blocking} is a file, not a folder"
    default = "Choose another path, or check the permissions."
    remedy = remedy or ("Free some space, or choose another path." if disk_full else default)
    if isinstance(error, PermissionError) and path.exists() and os.name == "nt":
        remedy = f"Close the programs that have the path open. {remedy}"
    return OutputError(f"the path cannot be written: {reason}", where=str(path), remedy=remedy)


def save_traceback(error: BaseException) -> str:
    """Write the traceback of an internal error to a temporary file, and return its path."""
    with tempfile.NamedTemporaryFile("w", prefix="bertsmith-", suffix=".log", delete=False, encoding="utf-8") as log:
        log.writelines(traceback.format_exception(error))
    return log.name
