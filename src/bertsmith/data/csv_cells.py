"""Cells of CSV files: quotes, and a guard against formulas."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from typing import Any, Literal

_FORMULA = re.compile(r"[=+\-@\t\r]")
_NUMBER = re.compile(
    r"[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?"
    r"|[+-]?\d{1,3}([.,' \u00a0\u202f\u2019])\d{3}(\3\d{3})*((?!\3)[.,]\d*)?",
    re.ASCII,
)
"""Numbers with a decimal point or comma, also with separators of thousands, and nothing else."""


def quoting(values: Iterable[Any]) -> Literal[0, 1]:
    """Return the ``csv`` quoting of a row: all cells if one has a carriage return, which ``csv`` does not quote."""
    has_return = any(isinstance(value, str) and "\r" in value for value in values)
    return csv.QUOTE_ALL if has_return else csv.QUOTE_MINIMAL


def guarded_cell(cell: Any) -> Any:
    """Put an apostrophe before a cell that a spreadsheet would evaluate as a formula.

    Such cells begin with ``=``, ``+``, ``-``, ``@``, a tab or a carriage return and are not numbers (OWASP, CSV
    Injection).
    """
    if isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBER.fullmatch(cell):
        return f"'{cell}"
    return cell
