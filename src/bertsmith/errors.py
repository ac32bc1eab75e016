"""The errors a user can mend. Everything else that is raised is a fault of ours."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known name, or an empty string."""
    folded = {other.casefold(): other for other in known}
    close = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.6)
    return f" Did you mean '{folded[close[0]]}'?" if close else ""


def listing(values: Iterable[object], limit: int = 10) -> str:
    """Join values for a message, quoting strings and cutting after ``limit``."""
    items = [repr(value) if isinstance(value, str) else str(value) for value in values]
    shown = ", ".join(items[:limit])
    return shown + (f" and {len(items) - limit:,} more" if len(items) > limit else "")
