"""Where commands print: results on stdout, talk on stderr."""

from __future__ import annotations

import json
import sys
from typing import IO, Any

from rich.console import Console

WIDTH = 120
"""Columns where nobody says how many there are: in a file or a pipe."""


def _width(stream: IO[str]) -> int | None:
    return None if stream.isatty() else WIDTH


def talk() -> Console:
    """Return the console for talk, on stderr."""
    return Console(stderr=True, highlight=False, soft_wrap=True, width=_width(sys.stderr))


def result() -> Console:
    """Return the console for results, on stdout."""
    return Console(file=sys.stdout, highlight=False, soft_wrap=True, width=_width(sys.stdout))


def print_json(value: Any) -> None:
    """Print JSON on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")
