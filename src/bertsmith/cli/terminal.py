"""Where commands print: results on stdout, talk on stderr."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 120
"""Columns where nobody says how many there are: in a file or a pipe."""


def _width(stream: IO[str]) -> int | None:
    return None if stream.isatty() else WIDTH


def use_utf8(stream: IO[str]) -> None:
    """Have a file or a pipe get UTF-8 and unchanged line ends on every system.

    A terminal keeps its own encoding, and shows ``?`` for a character that this lacks.
    """
    if not isinstance(stream, io.TextIOWrapper):  # what a test or a notebook puts in its place takes any text
        return
    if stream.isatty():
        stream.reconfigure(errors="replace")
    else:
        stream.reconfigure(encoding="utf-8", newline="\n")


def talk() -> Console:
    """Return the console for talk, on stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True, width=_width(sys.stderr))


def result() -> Console:
    """Return the console for results, on stdout."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, soft_wrap=True, width=_width(sys.stdout))


@contextmanager
def sigterm_like_ctrl_c() -> Iterator[None]:
    """Have SIGTERM do what Ctrl-C does, so that what is half done is cleared away."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def check_stdout() -> None:
    """See that there is somewhere to print what was asked for.

    Raises:
        OutputError: if standard output is closed.
    """
    from bertsmith.errors import OutputError

    if str(getattr(sys.stdout, "name", "")) == os.devnull:  # which `main` puts in the place of a closed one
        raise OutputError("standard output is closed", remedy="Give -o a file.")


def print_json(value: Any) -> None:
    """Print JSON on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")
