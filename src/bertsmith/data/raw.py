"""A table as it stands in its source: columns under their own names, values as the format gives them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from numbers import Number
from typing import TYPE_CHECKING, Any

from bertsmith.data.table import Note
from bertsmith.errors import RowError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class RawTable:
    """A table as it stands in the source.

    Attributes:
        frame: the columns under their own names; values as the format gives them (texts, for a delimited file). Its
            ``attrs["arrow"]`` are the Arrow types of the columns by name, where the source has such.
        name: what to call the source in messages.
        notes: what reading found or repaired.
        class_names: for columns of a ``datasets.ClassLabel``, the label texts by number.
        split: the split of every row, where the source itself has splits (a ``DatasetDict``).
    """

    frame: pd.DataFrame
    name: str
    notes: tuple[Note, ...] = ()
    class_names: dict[str, list[str]] = field(default_factory=dict)
    split: pd.Series | None = None


def encodable_text(text: str) -> str:
    """Return a text that any encoding can write: lone surrogates become U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    return text


def encodable(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose names and texts any encoding can write: lone surrogates become U+FFFD."""
    import pandas as pd

    def mended(value: Any) -> Any:
        return value if not isinstance(value, str) or value.isascii() else encodable_text(value)

    columns = {i: frame.iloc[:, i] for i in range(frame.shape[1])}
    texts = {
        i: pd.Series([mended(v) for v in c], index=c.index, dtype=c.dtype)
        if c.dtype == object or pd.api.types.is_string_dtype(c)
        else c
        for i, c in columns.items()
    }
    result = pd.DataFrame(texts, index=frame.index)
    result.columns = pd.Index([mended(name) for name in frame.columns], dtype=object)
    result.attrs = frame.attrs
    return result


def texts_of(values: Iterable[Any], where: str, first: int = 1) -> list[str | None]:
    """Read a column as texts: numbers become their digits, missing becomes ``None``.

    Lone surrogates, which no encoding can write, become U+FFFD.

    Args:
        values: the cells.
        where: file and column, for messages.
        first: number of the row of the first of them.

    Raises:
        DataError: if a cell holds a list or an object.
    """
    texts: list[str | None] = []
    for row, value in enumerate(values, start=first):
        refuse_nested(value, row, where, "--text-column")
        if isinstance(value, str):
            texts.append(encodable_text(value))
        elif is_missing(value):
            texts.append(None)
        else:
            texts.append(str(int(value)) if isinstance(value, float) and value.is_integer() else str(value))
    return texts


def is_missing(value: Any) -> bool:
    """Return whether a cell is empty: ``None``, NaN, or what pandas has for it."""
    of_pandas = type(value).__name__ in ("NAType", "NaTType")  # which need not be there
    return value is None or of_pandas or (isinstance(value, Number) and value != value)


def refuse_nested(value: Any, row: int, where: str, flag: str) -> None:
    """Refuse a cell that is no text and no number.

    Raises:
        RowError: if it is a list, an object or bytes.
    """
    if isinstance(value, list | dict | bytes | set | tuple):
        held = "bytes" if isinstance(value, bytes) else f"a {type(value).__name__}"
        raise RowError(
            f"row {row:,} holds {held}, not text",
            where=where,
            remedy=f"Name the column that is meant with {flag}."
            + (" More than one label for a text is not supported." if flag == "--label-column" else ""),
        )
