"""Tables of labelled texts, and their labels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bertsmith.data.outcomes import CLASSES, Outcomes
from bertsmith.data.texts import is_missing
from bertsmith.errors import counted

if TYPE_CHECKING:
    import pandas as pd

    from bertsmith.data.columns import Columns

SPLITS = ("train", "validation", "test")
SINGLE_LABEL, MULTI_LABEL, ORDINAL, REGRESSION = TASKS = ("single-label", "multi-label", "ordinal", "regression")
"""The kinds of label; see `bertsmith.tasks`."""
MISSING = -1
"""The code of a row without a label."""
Cells = dict[str, list[Any]]
"""The cells of some rows, by column."""


class Position(str):
    """Where a row is, such as ``"line 3"`` of a file or ``"row 3"`` of a table."""

    unit: str
    number: int

    def __new__(cls, unit: str, number: int) -> Position:
        """Format a position."""
        position = super().__new__(cls, f"{unit} {number:,}")
        position.unit, position.number = unit, number
        return position

    def __reduce__(self) -> tuple[type[Position], tuple[str, int]]:
        """Return how to copy and unpickle the position."""
        return Position, (self.unit, self.number)


OnBadRow = Callable[[Position, str], None]
"""Receives the position of a row that cannot be read, and the reason."""


def to_frame(cells: Cells) -> pd.DataFrame:
    """Return cells as a data frame; integers with missing values are ``Int64``, because floats would round them."""
    import pandas as pd

    def column(values: list[Any]) -> Any:
        present = [value for value in values if not is_missing(value)]
        if not present or len(present) == len(values) or any(type(value) is not int for value in present):
            return values
        fits = all(-(2**63) <= value < 2**63 for value in present)
        return pd.Series([None if is_missing(value) else value for value in values], dtype="Int64" if fits else object)

    return pd.DataFrame({name: column(values) for name, values in cells.items()})


@dataclass(frozen=True)
class Labels:
    """The classes: label numbers and label texts, by class index 0…k−1.

    The model is trained on the class index; the user sees only ``numbers`` and ``texts``.

    ``numbered`` is false if the table has no label numbers. The numbers are then positions of the label
    texts, so the same number in another table can mean another class.
    """

    numbers: tuple[int, ...]
    texts: tuple[str, ...]
    numbered: bool = field(default=True, compare=False)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def id2label(self) -> dict[int, str]:
        """Class index to label text, as in the configs of ``transformers``."""
        return dict(enumerate(self.texts))

    @property
    def label2id(self) -> dict[str, int]:
        """Label text to class index, as in the configs of ``transformers``."""
        return {text: index for index, text in enumerate(self.texts)}

    @property
    def are_numbers(self) -> bool:
        """Whether the classes are numbers without names."""
        return self.texts == tuple(map(str, self.numbers))


@dataclass(frozen=True)
class Note:
    """What a reader did that the user should know."""

    severity: str
    message: str
    count: int = 1
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Table:
    """Labelled texts.

    Attributes:
        frame: one row per text, index 0…n−1. ``source`` is the file name. ``row`` is 1 for the first row after the
            header. ``text`` may be missing; pairs also have ``pair``, the second text. ``target`` is the code of the
            labels, −1 if they are missing. ``split`` is ``"train"``, ``"validation"``, ``"test"``, or missing.
            ``group`` may be missing. ``first`` is the first text column, where ``text`` joins several. With
            ``--coder-column``, ``votes`` is the share of the coders who gave each class, missing if they agree.
        labels: the classes; for a regression, the name of the number.
        columns: the names of the columns in the source.
        extra: the other columns and the further columns of the template, aligned with ``frame``.
        name: the name of the table, for messages.
        notes: what the reader found or repaired.
        task: the kind of label, one of `TASKS`.
        outcomes: turns codes into targets.
        coded: with ``--coder-column``, the label texts by the number of the text and the coder.
    """

    frame: pd.DataFrame
    labels: Labels
    columns: Columns
    extra: pd.DataFrame
    name: str
    notes: tuple[Note, ...] = field(default=())
    task: str = SINGLE_LABEL
    outcomes: Outcomes = CLASSES
    coded: Mapping[tuple[int, str], frozenset[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.frame)

    def __repr__(self) -> str:
        classes = counted(len(self.labels), "class", "classes")
        return f"Table({self.name!r}, {counted(len(self), 'row')}, {classes})"

    @property
    def codes(self) -> np.ndarray:
        """Code of every row, shape (rows,), −1 if the label is missing; the class index if each row has one class."""
        return self.frame["target"].to_numpy()

    @cached_property
    def targets(self) -> np.ndarray:
        """Target of every row, shape (rows,) or (rows, labels), for a table without missing labels."""
        return self.outcomes.targets(self.codes)

    @property
    def groups(self) -> np.ndarray | None:
        """Group index of every row, shape (rows,); ``None`` for a table without groups."""
        groups = self.frame["group"]
        return groups.factorize()[0] if len(groups) and groups.notna().all() else None

    @property
    def vote_shares(self) -> np.ndarray | None:
        """Share of the coders who gave each class, shape (rows, classes), for a table without missing labels.

        ``None`` if no text has different labels by coder. A corrected label differs from that of the majority, and has
        the share 1.
        """
        votes = self.frame.get("votes")
        if votes is None or votes.isna().all():
            return None
        shares: np.ndarray = np.eye(len(self.labels))[self.codes]
        for row in np.flatnonzero(votes.notna()).tolist():
            if int(np.argmax(votes[row])) == self.codes[row]:
                shares[row] = votes[row]
        return shares

    @cached_property
    def strata(self) -> np.ndarray:
        """What a split keeps balanced, shape (rows,) or (rows, labels)."""
        return self.outcomes.strata(self.codes)

    @cached_property
    def counts(self) -> np.ndarray:
        """Number of rows of every class, shape (classes,)."""
        return self.outcomes.counts(self.codes[self.codes != MISSING], len(self.labels))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the texts, labels, splits, votes and groups, in order."""
        return self._digest(grouped=True)

    @property
    def fingerprints(self) -> tuple[str, str]:
        """The fingerprint with and without the groups; older versions saved the latter."""
        return self.fingerprint, self._digest(grouped=False)

    def _digest(self, *, grouped: bool) -> str:
        digest = hashlib.sha256(self.outcomes.key())
        for pair in self.frame.get("pair", ()):
            digest.update(f"{pair}\x1d".encode())
        columns = (self.frame[name] for name in ("text", "target", "split"))
        for text, target, name in zip(*columns, strict=True):
            digest.update(f"{target}\x1f{name}\x1f{text}\x1e".encode())
        for i, votes in enumerate(self.frame.get("votes", ())):
            if votes is not None:
                digest.update(f"{i}\x1f{votes}\x1e".encode())
        if grouped and self.frame["group"].notna().any():
            digest.update(f"\x1d{self.frame['group'].factorize()[0].tolist()}".encode())
        return digest.hexdigest()

    def take(self, rows: np.ndarray) -> Table:
        """Return a table of some rows, given as a boolean mask or as positions, shape (rows,)."""
        positions = np.flatnonzero(rows) if rows.dtype == bool else rows
        return replace(
            self,
            frame=self.frame.iloc[positions].reset_index(drop=True),
            extra=self.extra.iloc[positions].reset_index(drop=True),
        )


@dataclass(frozen=True)
class RawTable:
    """A table as read from its source, before its columns are interpreted.

    Attributes:
        frame: the columns under their original names, with cells as the format gives them.
        name: the name of the source, for messages.
        notes: what the reader found or repaired.
        class_names: for each column of ``datasets.ClassLabel`` or lists of it, the label texts by number.
        split: the split of every row, for a source with splits (a ``DatasetDict``); the categories are all splits.
    """

    frame: pd.DataFrame
    name: str
    notes: tuple[Note, ...] = ()
    class_names: dict[str, list[str]] = field(default_factory=dict)
    split: pd.Series | None = None


class Part(NamedTuple):
    """A file of a table: its cells, its columns in use, and its name for messages."""

    raw: RawTable
    columns: Columns
    name: str


@dataclass(frozen=True)
class ReadLabels:
    """The labels of all rows of a table.

    Attributes:
        task: the kind of label.
        labels: the classes.
        outcomes: turns codes into targets.
        codes: code of every row, shape (rows,), −1 if the label is missing.
        notes: what the reader found.
    """

    task: str
    labels: Labels
    outcomes: Outcomes
    codes: np.ndarray
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class ChunkedTable:
    """A table that is read in chunks, repeatedly if needed, so that memory does not grow with its size.

    Attributes:
        name: the name of the source, for messages.
        columns: the names of the columns.
        chunks: returns an iterator over the chunks, from the first.
        n_rows: the number of rows.
        nested: the columns that may contain lists, objects or bytes.
        notes: what the reader found or repaired.
        types: the Arrow types by column, for a source with such types.
    """

    name: str
    columns: list[str]
    chunks: Callable[[], Iterator[Cells]]
    n_rows: int
    nested: set[str] = field(default_factory=set)
    notes: tuple[Note, ...] = ()
    types: dict[str, Any] | None = None
