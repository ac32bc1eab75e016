"""The values that flow out of reading: a table of labelled texts, and the labels, linked both ways."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bertsmith.data.texts import encodable_text

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from bertsmith.data.columns import Columns

SPLITS = ("train", "validation", "test")
MISSING = -1
"""The class index of a row without a label."""


@dataclass(frozen=True)
class Labels:
    """The classes: the user's numbers and texts, by class index 0…k−1.

    The model is trained on the class index; the user only ever sees ``numbers`` and ``texts``.
    """

    numbers: tuple[int, ...]
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def id2label(self) -> dict[int, str]:
        """Class index to label text, as ``transformers`` wants it."""
        return dict(enumerate(self.texts))

    @property
    def label2id(self) -> dict[str, int]:
        """Label text to class index, as ``transformers`` wants it."""
        return {text: index for index, text in enumerate(self.texts)}


@dataclass(frozen=True)
class Note:
    """Something reading did that the user should know of."""

    severity: str
    message: str
    count: int = 1
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Table:
    """Labelled texts, as read.

    Attributes:
        frame: one row a text, index 0…n−1, with the columns ``source`` (name of the file), ``row`` (1 is the first row
            after the header), ``text`` (missing allowed), ``target`` (class index, −1 where the label is missing),
            ``split`` (``"train"``, ``"validation"``, ``"test"``, or missing) and ``group`` (missing allowed).
        labels: the classes.
        columns: what the columns are called in the source.
        extra: the columns not in use, aligned with ``frame``.
        name: what the table is called in messages.
        notes: what reading found or repaired.
    """

    frame: pd.DataFrame
    labels: Labels
    columns: Columns
    extra: pd.DataFrame
    name: str
    notes: tuple[Note, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.frame)

    def __repr__(self) -> str:
        classes = "1 class" if len(self.labels) == 1 else f"{len(self.labels)} classes"
        return f"Table({self.name!r}, {len(self):,} rows, {classes})"

    @cached_property
    def targets(self) -> np.ndarray:
        """Class index of every row, shape (rows,), −1 where the label is missing."""
        values: np.ndarray = self.frame["target"].to_numpy()
        return values

    @cached_property
    def counts(self) -> np.ndarray:
        """Rows of every class, shape (classes,)."""
        import numpy as np

        return np.bincount(self.targets[self.targets != MISSING], minlength=len(self.labels))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over texts, class indices and splits, in order."""
        digest = hashlib.sha256()
        columns = (self.frame[name] for name in ("text", "target", "split"))
        for text, target, name in zip(*columns, strict=True):
            digest.update(f"{target}\x1f{name}\x1f{text}\x1e".encode())
        return digest.hexdigest()

    def take(self, keep: np.ndarray) -> Table:
        """Return the table with only the rows where ``keep`` (boolean, or positions) says so."""
        import numpy as np

        positions = np.flatnonzero(keep) if keep.dtype == bool else keep
        return Table(
            self.frame.iloc[positions].reset_index(drop=True),
            self.labels,
            self.columns,
            self.extra.iloc[positions].reset_index(drop=True),
            self.name,
            self.notes,
        )


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
