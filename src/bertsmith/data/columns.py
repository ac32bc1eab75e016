"""Which column is which: by name, ignoring case, spaces and underscores. A guess that is not certain is an error."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bertsmith.config import DataConfig
from bertsmith.errors import DataError, did_you_mean, listing, quoted

if TYPE_CHECKING:
    import pandas as pd

TEXT = ("text",)
TEXT_SYNONYMS = ("sentence", "content", "body", "review", "message", "document", "tweet", "comment", "utterance")
LABEL = ("label",)
LABEL_SYNONYMS = ("category", "class", "target", "intent", "sentiment")
LABEL_TEXT = ("labeltext", "labelname")


@dataclass(frozen=True)
class Columns:
    """The names, in the source, of the columns in use; ``None`` where there is none."""

    text: str
    label: str | None
    label_text: str | None
    group: str | None = None
    split: str | None = None

    @property
    def used(self) -> tuple[str, ...]:
        """The names in use, in the order text, label, label text, group, split."""
        return tuple(n for n in (self.text, self.label, self.label_text, self.group, self.split) if n is not None)


def canonical(name: str) -> str:
    """Return a name without case, spaces and punctuation: ``"Label Text"`` becomes ``"labeltext"``."""
    return re.sub(r"[\W_]+", "", name).casefold()


def find_columns(
    names: Sequence[str],
    source: str,
    *,
    text: str | None = None,
    label: str | None = None,
    label_text: str | None = None,
    group: str | None = None,
    split: str | None = None,
    label_required: bool = True,
) -> Columns:
    """Say which of ``names`` holds what.

    Args:
        names: the column names of the source.
        source: its name, for messages.
        text, label, label_text, group, split: names the user gave; they must exist (case and spaces are forgiven).
        label_required: whether a table without any label column is an error.

    Raises:
        DataError: if a given column is not there, a needed one is not found, or several could be meant.
    """

    def given(name: str, flag: str) -> str:
        if name in names:
            return name
        alike = [other for other in names if canonical(other) == canonical(name)]
        if len(alike) == 1:
            return alike[0]
        raise DataError(
            f"there is no column {quoted(name)}.{did_you_mean(name, names)}",
            where=f"{source}, whose columns are {listing(names, 30)}",
            remedy=f"Pass {flag} with one of these names.",
        )

    def found(known: Sequence[str], flag: str, taken: Sequence[str | None]) -> str | None:
        matches = [name for name in names if canonical(name) in known and name not in taken]
        if len(matches) > 1:
            raise DataError(
                f"columns {listing(matches)} could each be meant",
                where=source,
                remedy=f"Say which one with {flag}.",
            )
        return matches[0] if matches else None

    text_name = given(text, "--text-column") if text else None
    label_name = given(label, "--label-column") if label else None
    label_text_name = given(label_text, "--label-text-column") if label_text else None
    chosen = [text_name, label_name, label_text_name]
    if label_text_name is None:
        label_text_name = found(LABEL_TEXT, "--label-text-column", chosen)
    if label_name is None and not label_text:
        label_name = found(LABEL, "--label-column", chosen)
        if label_name is None and label_text_name is None:
            label_name = found(LABEL_SYNONYMS, "--label-column", chosen)
    chosen = [label_name, label_text_name]
    if text_name is None:
        text_name = found(TEXT, "--text-column", chosen) or found(TEXT_SYNONYMS, "--text-column", chosen)
    if text_name is None:
        taken = [name for name in chosen if name is not None and canonical(name) in (*TEXT, *TEXT_SYNONYMS)]
        raise DataError(
            f"column {quoted(taken[0])} is taken for the labels, and no other is named like one that holds the texts"
            if taken
            else "no column is named like one that holds the texts (Text, Sentence, Content, Review, …)",
            where=f"{source}, whose columns are {listing(names, 30)}",
            remedy="Pass --text-column with the name of the column that holds the texts. "
            "The first row of a file must name the columns.",
        )
    if label_required and label_name is None and label_text_name is None:
        raise DataError(
            "no column is named like one that holds the labels (Label, Label Text, Category, Class, Target, …)",
            where=f"{source}, whose columns are {listing(names, 30)}",
            remedy="Pass --label-column (numbers or words) or --label-text-column with the name of the column.",
        )
    if text_name in (label_name, label_text_name) or (label_name is not None and label_name == label_text_name):
        raise DataError(
            f"column {quoted(text_name if text_name in (label_name, label_text_name) else label_name)} is given twice, "
            "for different things",
            where=source,
            remedy="Give the text, the label and the label text a column each.",
        )
    return Columns(
        text_name,
        label_name,
        label_text_name,
        group=given(group, "--group-column") if group else None,
        split=given(split, "--split-column") if split else None,
    )


def text_column(names: list[str], name: str, config: DataConfig) -> str:
    """Return the column with the texts to predict: the one named, the only one, or the one found by its name.

    Raises:
        DataError: if that is not certain.
    """
    if len(names) == 1 and config.text_column is None:
        return names[0]
    return find_columns(names, name, text=config.text_column, label_required=False).text


def is_text_lines(path: Path) -> bool:
    """Whether a file is read as plain text, one text a line, where texts are wanted."""
    return [s.lower() for s in path.suffixes if s.lower() != ".gz"][-1:] == [".txt"]


def check_flat(frame: pd.DataFrame, where: str) -> None:
    """See that the columns of a data frame have plain names.

    Raises:
        DataError: if the names have several levels.
    """
    if frame.columns.nlevels > 1:
        raise DataError(
            f"the column names have {frame.columns.nlevels} levels, such as {quoted(str(frame.columns[0]))}"
            if len(frame.columns)
            else "the column names have several levels",
            where=where,
            remedy="Give every column one name: df.columns = df.columns.map('_'.join)",
        )


def check_columns(names: list[str], n_rows: int, where: str, config: DataConfig) -> None:
    """See that a table has rows, and columns that can be told apart.

    Raises:
        DataError: if not.
    """
    repeated = sorted({name for name in names if names.count(name) > 1}, key=names.index)
    if repeated:
        raise DataError(
            f"several columns have the same name: {listing(repeated)}",
            where=where,
            remedy="Give every column a name of its own.",
        )
    if not n_rows or not names:
        given = f"--encoding {config.encoding} fits the file and that " if config.encoding else ""
        raise DataError("the table has no rows", where=where, remedy=f"Check that {given}it is the right file.")
