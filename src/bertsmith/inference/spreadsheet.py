"""CSV that a spreadsheet opens as text: a cell of a table must not become a formula."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = re.compile(r"[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def guard(frame: pd.DataFrame) -> pd.DataFrame:
    """Put an apostrophe before every cell and column name that a spreadsheet would run as a formula.

    These begin with ``=``, ``+``, ``-``, ``@``, a tab or a carriage return; numbers stay as they are.
    Source: OWASP, CSV Injection.
    """
    import pandas as pd

    text = [not pd.api.types.is_numeric_dtype(dtype) for dtype in frame.dtypes]
    columns = [
        # as objects: a whole number beside a missing one must not become a float
        pd.Series([guarded_cell(cell) for cell in frame.iloc[:, i]], index=frame.index, dtype=object)
        if text[i]
        else frame.iloc[:, i]
        for i in range(frame.shape[1])
    ]
    guarded = pd.concat(columns, axis=1) if columns else frame.copy()
    guarded.columns = [guarded_cell(name) for name in frame.columns]
    return guarded


def guarded_cell(cell: Any) -> Any:
    """Return a cell as `guard` does."""
    if isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBER.fullmatch(cell):
        return f"'{cell}"
    return cell
