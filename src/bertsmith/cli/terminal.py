"""Where commands print: results on stdout, talk on stderr."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console


def talk() -> Console:
    """Return the console for talk, on stderr."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def result() -> Console:
    """Return the console for results, on stdout."""
    return Console(file=sys.stdout, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print JSON on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")
