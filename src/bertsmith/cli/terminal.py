"""Consoles: results go to stdout, messages and progress to stderr."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 120
"""Columns of a file or a pipe, which have no width."""


def _width(stream: IO[str]) -> int | None:
    return None if stream.isatty() else WIDTH


def use_utf8(stream: IO[str]) -> None:
    """Write UTF-8 and unchanged line ends to files and pipes on every system.

    A terminal keeps its encoding and shows ``?`` for a character that the encoding lacks.
    """
    if not isinstance(stream, io.TextIOWrapper):  # tests and notebooks replace the stream
        return
    if stream.isatty():
        stream.reconfigure(errors="replace")
    else:
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", newline="\n")


def stderr_console() -> Console:
    """Return the console for messages and progress."""
    from bertsmith.progress.display import PlainConsole

    class Messages(PlainConsole):
        def on_broken_pipe(self) -> None:
            """Let the command continue without messages; rich would exit with 1."""
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())

    return Messages(stderr=True, soft_wrap=True, width=_width(sys.stderr))


def stdout_console() -> Console:
    """Return the console for results."""
    from bertsmith.progress.display import PlainConsole

    class Results(PlainConsole):
        def on_broken_pipe(self) -> None:
            """Let `bertsmith.cli.app.main` end the command; rich would exit with 1."""
            raise BrokenPipeError

    return Results(file=sys.stdout, soft_wrap=True, width=_width(sys.stdout))


@contextmanager
def sigterm_like_ctrl_c() -> Iterator[None]:
    """Make SIGTERM raise KeyboardInterrupt, so that unfinished files are removed."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def confirm(question: str) -> bool:
    """Ask the user a question, and return whether the answer is yes.

    Raises:
        ConfigError: if standard input is not a terminal.
    """
    import typer

    from bertsmith.errors import ConfigError

    if not sys.stdin.isatty():
        raise ConfigError(
            f"bertsmith cannot ask without a terminal: {question}", remedy="Pass --yes to continue without asking."
        )
    return typer.confirm(question, err=True)


def check_stdout() -> None:
    """Check that standard output is open.

    Raises:
        OutputError: if standard output is closed.
    """
    from bertsmith.errors import OutputError

    if str(getattr(sys.stdout, "name", "")) == os.devnull:  # `main` opens it in place of a closed stdout
        raise OutputError("standard output is closed", remedy="Write to a file with -o.")


def print_json(value: Any) -> None:
    """Print JSON on stdout; ``NaN`` and infinity become ``null``."""
    from bertsmith.folders.atomic import to_json

    sys.stdout.write(to_json(value))
