"""How the columns of a row become the text, or the pair of texts, that a model reads."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from bertsmith.config import DataConfig
from bertsmith.data.texts import normalise, to_texts, unguarded_cell
from bertsmith.errors import ConfigError, DataError, listing, quoted

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

Text = str | tuple[str, str]
"""What a model reads for a row: a text, or the two segments of a pair."""
SETTINGS = ("text_column", "pair_column", "with_columns")
"""The settings that name the columns of a template."""
_LINE_BREAK = re.compile(r"\s*[\n\r]\s*")


class Texts(list[Text]):
    """Texts as a `Template` renders them. Lists of a user's items become texts by `Template.read`."""


@dataclass(frozen=True)
class Template:
    """Which columns a model reads, in which order, and how they are joined.

    The text columns, and then the further columns as ``name: value``, are the lines of the first segment. Missing cells
    are left out. The pair column is the second segment. A single text column is used as it is.

    Attributes:
        text_column: the text columns.
        pair_column: the column of the second segment, if any.
        with_columns: the further columns.
    """

    text_column: tuple[str, ...] = ("text",)
    pair_column: str | None = None
    with_columns: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns in the order of `render`: text columns, pair column, further columns."""
        return (*self.text_column, *_names(self.pair_column), *self.with_columns)

    @property
    def flags(self) -> tuple[str, ...]:
        """The flag of each column in `columns`."""
        pair = ["--pair-column"] if self.pair_column else []
        return (*["--text-column"] * len(self.text_column), *pair, *["--with-columns"] * len(self.with_columns))

    @property
    def by_line(self) -> bool:
        """Whether the lines of the first segment come from several columns."""
        return len(self.text_column) + len(self.with_columns) > 1

    @property
    def is_plain(self) -> bool:
        """Whether the template is a single text column."""
        return len(self.columns) == 1

    @property
    def added(self) -> tuple[str, ...]:
        """The columns after the first text column."""
        return self.columns[1:]

    @property
    def example(self) -> str | dict[str, str]:
        """An item for `read`, for messages and documentation."""
        return "a text" if self.is_plain else dict.fromkeys(self.columns, "…")

    def __str__(self) -> str:
        if self.is_plain:
            return "single texts"
        if self.pair_column and not self.by_line:
            return f"pairs of texts ({self.text_column[0]}, {self.pair_column})"
        return f"the columns {', '.join(self.columns)}"

    def to_dict(self) -> dict[str, Any]:
        """Return the columns by setting, JSON-ready."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> Template:
        """Return the template of `to_dict`; a single text column for ``None``, as older versions saved it.

        Raises:
            ValueError: if the columns are not names.
        """
        if values is None:
            return cls()
        texts, pair, further = (values[name] for name in SETTINGS)
        if not texts or not all(isinstance(name, str) for name in (*texts, pair or "", *further)):
            raise ValueError("the columns of the template are not names")
        return cls(tuple(texts), pair, tuple(further))

    def render(self, cells: Sequence[Sequence[str | None]]) -> tuple[list[str | None], list[str | None] | None]:
        """Render rows.

        Args:
            cells: the cells of each column in `columns`, ``None`` if missing.

        Returns:
            The first segments, ``None`` without a cell in any text column; and the second segments, or ``None`` for a
            template without a pair.
        """
        n = len(self.text_column)
        pairs = list(cells[n]) if self.pair_column else None
        if not self.by_line:
            return list(cells[0]), pairs
        rows = zip(*cells, strict=True)
        return [self._join(row[:n], row[len(row) - len(self.with_columns) :]) for row in rows], pairs

    def _join(self, texts: Iterable[str | None], further: Iterable[str | None]) -> str | None:
        lines = [line for text in texts if (line := _one_line(text))]
        if not lines:
            return None
        cells = zip(self.with_columns, map(_one_line, further), strict=True)
        return "\n".join([*lines, *(f"{name}: {cell}" for name, cell in cells if cell)])

    def read_cells(self, table: Any, columns: Sequence[str], source: str, first_row: int = 1) -> list[list[str | None]]:
        """Return the cells of each column as texts, for `render`.

        Args:
            table: has the cells of a column under its name in the source.
            columns: these names, in the order of `columns`.
            source: the name of the source, for messages.
            first_row: the number of the first row.

        Raises:
            RowError: if a cell holds a list, an object or bytes.
        """
        return [
            to_texts(table[name], f"{source}, column {quoted(name)}", first_row, flag=flag)
            for name, flag in zip(columns, self.flags, strict=True)
        ]

    def texts(self, cells: Sequence[Sequence[str | None]]) -> list[Text]:
        """Render rows as texts; a missing segment is ``""``."""
        first, second = self.render(cells)
        if second is None:
            return [text or "" for text in first]
        return [(a or "", b or "") for a, b in zip(first, second, strict=True)]

    def settings(self, config: DataConfig) -> DataConfig:
        """Return settings that name the columns of another table, by default those of the template.

        A single text column has no default: `bertsmith.data.columns.find_columns` searches for it.

        Raises:
            ConfigError: if the settings name more or fewer columns than the template has.
        """
        result: dict[str, Any] = {}
        for name in SETTINGS:
            own, given = _names(getattr(self, name)), _names(getattr(config, name))
            if given and len(given) != len(own):
                raise ConfigError(
                    f"--{name.replace('_', '-')} names {listing(given)}, but the model reads {self}",
                    remedy=f"Pass as many columns as in training: {listing(own)}." if own else "Leave it out.",
                )
            result[name] = getattr(config, name) if given or self.is_plain else getattr(self, name)
        return DataConfig(**result)

    def check_long(self, long: str) -> None:
        """Check that this template supports a way to read long texts.

        Raises:
            ConfigError: if only the beginning of a text can be read.
        """
        if long in ("head-tail", "window") and not self.is_plain:
            raise ConfigError(
                f"--long {long} supports only a single text column, but the model reads {self}",
                remedy="Pass --long truncate.",
            )

    def read(self, items: Any) -> Texts:
        """Return a user's items as texts.

        Args:
            items: one item, or a list of items. An item is a string, a pair as a tuple of two strings, or a dict. The
                dict has the columns of the template, or ``text`` and ``text_pair``. `Texts` do not change.

        Raises:
            DataError: if an item is none of these, does not fit the template, or is not valid Unicode.
        """
        if isinstance(items, Texts):
            return items
        dimensions = getattr(items, "ndim", 1)
        if not isinstance(items, Iterable) or hasattr(items, "columns") or dimensions != 1:
            raise DataError(
                f"texts must be a list, not {type(items).__name__}"
                + (f" of {dimensions} dimensions" if dimensions != 1 else ""),
                remedy="Pass a list of texts, or the text column of a data frame.",
            )
        items = items.to_pylist() if hasattr(items, "to_pylist") else items  # an array of Arrow
        items = [items] if isinstance(items, str | Mapping) or _is_pair(items) else items
        return Texts(self._read_item(item, i) for i, item in enumerate(items))

    def _read_item(self, item: Any, i: int) -> Text:
        if isinstance(item, Mapping):
            text = self._read_columns(item, i)
        elif not isinstance(item, str) and not _is_pair(item):
            raise DataError(
                f"item {i} is not a string: {item!r}",
                remedy="Pass only strings: remove missing values, decode bytes, and flatten lists. "
                "A pair is a tuple of two strings.",
            )
        elif self.by_line or isinstance(item, str) is not self.is_plain:
            raise DataError(
                f"item {i} is a {'single text' if isinstance(item, str) else 'pair'}, but the model reads {self}",
                remedy="Pass two texts as a list of strings, not as a tuple."
                if self.is_plain
                else f"Pass a dict with {listing(self.columns)}" + ("." if self.by_line else ", or a tuple (a, b)."),
            )
        else:
            text = item
        for segment in segments(text):
            try:
                segment.encode()
            except UnicodeEncodeError as error:
                raise DataError(
                    f"item {i} is not valid Unicode: it has a lone surrogate, {segment[error.start]!r}",
                    remedy="Read the text with its correct encoding, or with errors='replace'.",
                ) from error
        return text

    def _read_columns(self, item: Mapping[str, Any], i: int) -> Text:
        if self.is_plain and [str(key).casefold() for key in item] == ["text"]:
            return self.texts([to_texts(list(item.values()), f"item {i}")])[0]
        other_names = {self.pair_column: "text_pair"} | ({} if self.by_line else {self.text_column[0]: "text"})
        found = {name: name if name in item else other_names.get(name) for name in self.columns}
        if absent := [name for name, key in found.items() if key not in item]:
            raise DataError(
                f"item {i} lacks {listing(absent)}: the model reads {self}",
                remedy="Pass each column by its name; a value may be None.",
            )
        if self.pair_column is None and "text_pair" in item and "text_pair" not in self.columns:
            raise DataError(f"item {i} is a pair, but the model reads {self}", remedy="Leave out text_pair.")
        where = f"item {i}"
        return self.texts([to_texts([item[key]], f"{where}, {quoted(key)}") for key in found.values() if key])[0]


def segments(text: Text) -> tuple[str, ...]:
    """Return the segments of a text: one, or two for a pair."""
    return (text,) if isinstance(text, str) else text


def normalise_text(text: Text) -> Text:
    """Normalise each segment of a text."""
    return normalise(text) if isinstance(text, str) else (normalise(text[0]), normalise(text[1]))


def unguarded(text: Text) -> Text:
    """Return a text as it was before `guarded_cell` put apostrophes before its segments."""
    cell = unguarded_cell
    return normalise_text(cell(text) if isinstance(text, str) else (cell(text[0]), cell(text[1])))


def is_empty(text: Text) -> bool:
    """Return whether a text, or a segment of a pair, has only white space."""
    return not all(segment.strip() for segment in segments(text))


def flat(text: Text) -> str:
    """Return a text in one string, for readers and for statistics: the segments of a pair are lines."""
    return "\n".join(segments(text))


def texts_of(frame: pd.DataFrame) -> Texts:
    """Return the texts of a table or of predictions, from the columns ``text`` and, for pairs, ``pair``."""
    if "pair" not in frame.columns:
        return Texts(frame["text"].tolist())
    return Texts(zip(frame["text"].tolist(), frame["pair"].tolist(), strict=True))


def stored_groups(frame: pd.DataFrame) -> np.ndarray | None:
    """Return the group index of every text in saved predictions, shape (n,); ``None`` without groups."""
    import pandas as pd

    return pd.factorize(frame["group"])[0] if "group" in frame.columns else None


def flat_texts(frame: pd.DataFrame) -> list[str]:
    """Return `flat` of the texts of a table or of predictions."""
    return [flat(text) for text in texts_of(frame)]


def _names(value: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def _one_line(cell: str | None) -> str:
    return _LINE_BREAK.sub(" ", cell or "").strip()


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and all(isinstance(part, str) for part in item)
