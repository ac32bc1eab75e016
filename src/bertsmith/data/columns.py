"""Find the columns of a table by name, ignoring case, spaces and punctuation. An uncertain guess is an error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertsmith.config import DataConfig, Source
from bertsmith.data.template import Template
from bertsmith.errors import DataError, did_you_mean, listing, quoted

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

    template: Template
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
        """The names that are not ``None``, without those of further columns, which `Table.extra` keeps."""
        names = (self.template.pair_column, *self.label_names, self.group, self.split)
        return (*self.template.text_column, *(name for name in names if name is not None))


def canonical(name: str) -> str:
    """Return a name without case, spaces and punctuation: ``"Label Text"`` becomes ``"labeltext"``."""
    return re.sub(r"[\W_]+", "", name).casefold()


def with_own_names(columns: Mapping[str, Any], taken: Iterable[str], origin: str) -> dict[str, Any]:
    """Return columns under names of their own: ``ORIGIN NAME`` if another column has this name."""
    used, result = set(map(canonical, taken)), dict[str, Any]()
    for name, value in columns.items():
        own = name
        while canonical(own) in used or (own != name and own in columns):
            own = f"{origin} {own}"
        result[own] = value
    return result


def find_columns(
    names: Sequence[str],
    source: str,
    config: DataConfig,
    *,
    label_required: bool = True,
    template: Template | None = None,
) -> Columns:
    """Find the columns in use: by the settings, ignoring case and spacing, or by usual names.

    Args:
        names: the column names of the source.
        source: the name of the source, for messages.
        config: the settings.
        label_required: whether a table without a label column is an error.
        template: of a finished run, whose single text column comes before the usual names.

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
                f"several columns could be the one for {flag}: {listing(matches)}",
                where=source,
                remedy=f"Name the right one with {flag}.",
            )
        return matches[0] if matches else None

    named = [config.text_column] if isinstance(config.text_column, str) else list(config.text_column or ())
    texts = [column for name in named if (column := lookup(name, "--text-column"))]
    pair = lookup(config.pair_column, "--pair-column")
    further = [column for name in config.with_columns if (column := lookup(name, "--with-columns"))]
    label = lookup(config.label_column, "--label-column")
    label_text = lookup(config.label_text_column, "--label-text-column")
    labels = tuple(str(lookup(name, "--label-columns")) for name in config.label_columns)
    if not texts and template is not None and template.is_plain:
        texts = _same_name(
            template.text_column[0], [name for name in names if name not in (label, label_text, *labels)]
        )
    parts = [*texts, pair, *further]
    if labels and (label or label_text):
        raise DataError(
            "--label-columns cannot be combined with --label-column and --label-text-column",
            where=where,
            remedy="Leave out --label-columns, or leave out --label-column and --label-text-column.",
        )
    taken = [*texts, pair, label, label_text, *labels]
    if label_text is None and not labels:  # further columns may not be the labels: a model that reads them is no use
        # If the label column has another name, a column of label texts may answer another question.
        if label is None or canonical(label).startswith(LABEL):
            label_text = search(LABEL_TEXT, "--label-text-column", taken)
        if label is None:
            label = search(LABEL, "--label-column", taken)
        if label is None and label_text is None:
            label = search(LABEL_SYNONYMS, "--label-column", [*taken, *further])
    taken = [*parts, label, label_text, *labels]
    if not texts:
        text = search(TEXT, "--text-column", taken) or search(TEXT_SYNONYMS, "--text-column", taken)
        texts = [] if text is None else [text]
    if not texts:
        besides = "besides the label columns, " if any(taken) else ""
        raise DataError(
            f"{besides}no column name suggests texts (Text, Sentence, Content, Review, …)",
            where=where,
            remedy="Pass --text-column with the name of the column that holds the texts. "
            "The first row of a file must name the columns.",
        )
    if label_required and label is None and label_text is None and not labels:
        raise DataError(
            "no column name suggests labels (Label, Label Text, Category, Class, Target, …)",
            where=where,
            remedy="Pass --label-column (label numbers or label texts) or --label-text-column with the name of the "
            "column, or --label-columns with several columns of 0 and 1.",
        )
    template = Template(tuple(texts), pair, tuple(further))
    roles = [*template.columns, *labels, *(name for name in (label, label_text) if name is not None)]
    repeated = next((name for name in roles if roles.count(name) > 1), None)
    if repeated is not None:
        raise DataError(
            f"column {quoted(repeated)} is given twice, for different purposes",
            where=source,
            remedy="Pass different columns for the texts, the further columns, the label and the label text.",
        )
    return Columns(
        template,
        label,
        label_text,
        lookup(config.group_column, "--group-column"),
        lookup(config.split_column, "--split-column"),
        labels,
    )


def _same_name(name: str, names: Sequence[str]) -> list[str]:
    """Return the column of this name; without one, the column whose name differs only in case and spacing, if any."""
    similar = [other for other in names if canonical(other) == canonical(name)]
    return [name] if name in names else similar if len(similar) == 1 else []


def find_text_columns(
    names: list[str], source: str, config: DataConfig, template: Template | None = None
) -> tuple[str, ...]:
    """Return the columns of the texts to predict, in the order of `Template.columns`.

    A single text column is the configured one, the only one, the one of the template, or the one that its name
    suggests. An only column that its name marks as labels does not count. Other templates need their columns by name,
    unless the settings map them to other names.

    Args:
        names: the column names of the source.
        source: the name of the source, for messages.
        config: the settings, which may name the columns.
        template: the template of the model; by default a single text column.

    Raises:
        DataError: if a column is missing, or several columns match.
        ConfigError: if the settings do not fit the template.
    """
    template = template or Template()
    settings = template.settings(config)
    is_only = len(names) == 1 and canonical(names[0]) not in (*LABEL, *LABEL_TEXT)
    if is_only and template.is_plain and settings.text_column is None:
        return (names[0],)
    return find_columns(names, source, settings, label_required=False, template=template).template.columns


def check_one_source(source: Any, config: DataConfig) -> None:
    """Refuse a query (``--sql``) together with a table.

    Raises:
        DataError: if both are given.
    """
    if source is not None and config.sql is not None:
        where = str(source) if isinstance(source, str | Path) else repr(Source(source))
        raise DataError("both a table and --sql are given", where=where, remedy="Pass only one of them.")


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
            remedy="Give each column a different name.",
        )
    if not n_rows or not names:
        encoding = f" and that --encoding {config.encoding} fits" if config.encoding else ""
        raise DataError("the table has no rows", where=where, remedy=f"Check that it is the right file{encoding}.")
