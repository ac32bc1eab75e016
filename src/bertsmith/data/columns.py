"""Find the columns of a table by name, ignoring case, spaces and punctuation. An uncertain guess is an error."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bertsmith.config import DataConfig
from bertsmith.errors import DataError, did_you_mean, listing, quoted

if TYPE_CHECKING:
    import pandas as pd

TEXT = ("text",)
TEXT_SYNONYMS = ("sentence", "content", "body", "review", "message", "document", "tweet", "comment", "utterance")
LABEL = ("label", "labels")
LABEL_SYNONYMS = ("category", "class", "target", "intent", "sentiment")
LABEL_TEXT = ("labeltext", "labelname", "labeltexts", "labelnames")


@dataclass(frozen=True)
class Columns:
    """The source names of the columns in use; ``None`` for a column that the table does not have.

    ``labels`` are the columns of 0 and 1, one per label; ``label`` and ``label_text`` are then ``None``.
    """

    text: str
    label: str | None
    label_text: str | None
    group: str | None = None
    split: str | None = None
    labels: tuple[str, ...] = ()

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the label columns, in the order label, label text, columns of 0 and 1."""
        return tuple(name for name in (self.label, self.label_text, *self.labels) if name is not None)

    @property
    def used(self) -> tuple[str, ...]:
        """The names that are not ``None``, in the order text, labels, group, split."""
        names = (self.text, *self.label_names, self.group, self.split)
        return tuple(name for name in names if name is not None)


def canonical(name: str) -> str:
    """Return a name without case, spaces and punctuation: ``"Label Text"`` becomes ``"labeltext"``."""
    return re.sub(r"[\W_]+", "", name).casefold()


def find_columns(names: Sequence[str], source: str, config: DataConfig, *, label_required: bool = True) -> Columns:
    """Find the columns in use: those that the settings name, in any case and spacing, or by their names.

    Args:
        names: the column names of the source.
        source: the name of the source, for messages.
        config: the settings.
        label_required: whether a table without a label column is an error.

    Raises:
        DataError: if a configured or required column is missing, or several columns match.
    """
    where = f"{source}, with the columns {listing(names, 30)}"

    def lookup(name: str | None, flag: str) -> str | None:
        if not name:
            return None
        matches = [name] if name in names else [other for other in names if canonical(other) == canonical(name)]
        if len(matches) == 1:
            return matches[0]
        raise DataError(
            f"the table has no column {quoted(name)}.{did_you_mean(name, names)}",
            where=where,
            remedy=f"Pass {flag} with one of these names.",
        )

    def search(known: Sequence[str], flag: str, taken: Sequence[str | None]) -> str | None:
        matches = [name for name in names if canonical(name) in known and name not in taken]
        if len(matches) > 1:
            raise DataError(
                f"several columns match: {listing(matches)}", where=source, remedy=f"Name the right one with {flag}."
            )
        return matches[0] if matches else None

    text = lookup(config.text_column, "--text-column")
    label = lookup(config.label_column, "--label-column")
    label_text = lookup(config.label_text_column, "--label-text-column")
    labels = tuple(str(lookup(name, "--label-columns")) for name in config.label_columns or ())
    if labels and (label or label_text):
        raise DataError(
            "--label-columns cannot be combined with --label-column and --label-text-column",
            where=where,
            remedy="Leave out one of them.",
        )
    taken = [text, label, label_text, *labels]
    if labels:
        pass
    elif label is None and label_text is None:
        label_text = search(LABEL_TEXT, "--label-text-column", taken)
        label = search(LABEL, "--label-column", taken)
        if label is None and label_text is None:
            label = search(LABEL_SYNONYMS, "--label-column", taken)
    elif label_text is None:
        label_text = search(LABEL_TEXT, "--label-text-column", taken)
    taken = [label, label_text, *labels]
    if text is None:
        text = search(TEXT, "--text-column", taken) or search(TEXT_SYNONYMS, "--text-column", taken)
    if text is None:
        like_text = [name for name in taken if name is not None and canonical(name) in (*TEXT, *TEXT_SYNONYMS)]
        raise DataError(
            f"column {quoted(like_text[0])} is the label column, and no other column name suggests texts"
            if like_text
            else "no column name suggests texts (Text, Sentence, Content, Review, …)",
            where=where,
            remedy="Pass --text-column with the name of the column that holds the texts. "
            "The first row of a file must name the columns.",
        )
    if label_required and label is None and label_text is None and not labels:
        raise DataError(
            "no column name suggests labels (Label, Label Text, Category, Class, Target, …)",
            where=where,
            remedy="Pass --label-column (numbers or words) or --label-text-column with the name of the column, or "
            "--label-columns with several columns of 0 and 1.",
        )
    repeated = next((name for name in (*labels, text, label) if [text, *taken].count(name) > 1 and name), None)
    if repeated is not None:
        raise DataError(
            f"column {quoted(repeated)} is given twice, for different purposes",
            where=source,
            remedy="Give different columns for the text, the label and the label text.",
        )
    return Columns(
        text,
        label,
        label_text,
        lookup(config.group_column, "--group-column"),
        lookup(config.split_column, "--split-column"),
        labels,
    )


def find_text_column(names: list[str], source: str, config: DataConfig) -> str:
    """Return the column of the texts to predict: the configured one, the only one, or the one that its name suggests.

    Raises:
        DataError: if the column is missing, or several columns match.
    """
    if len(names) == 1 and config.text_column is None:
        return names[0]
    return find_columns(names, source, DataConfig(text_column=config.text_column), label_required=False).text


def check_single_level(frame: pd.DataFrame, where: str) -> None:
    """Check that the column names of a data frame have a single level.

    Raises:
        DataError: if the columns are a ``MultiIndex``.
    """
    if frame.columns.nlevels > 1:
        example = f", such as {quoted(str(frame.columns[0]))}" if len(frame.columns) else ""
        raise DataError(
            f"the column names have {frame.columns.nlevels} levels{example}",
            where=where,
            remedy="Give every column a single name: df.columns = df.columns.map('_'.join)",
        )


def check_columns(names: list[str], n_rows: int, where: str, config: DataConfig) -> None:
    """Check that a table has rows, and columns with distinct names.

    Raises:
        DataError: if it has not.
    """
    repeated = sorted({name for name in names if names.count(name) > 1}, key=names.index)
    if repeated:
        raise DataError(
            f"several columns have the same name: {listing(repeated)}",
            where=where,
            remedy="Give every column a different name.",
        )
    if not n_rows or not names:
        encoding = f"--encoding {config.encoding} fits the file and that " if config.encoding else ""
        raise DataError("the table has no rows", where=where, remedy=f"Check that {encoding}it is the right file.")
