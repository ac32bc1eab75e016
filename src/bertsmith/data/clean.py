"""Clean a table: normalise texts, drop rows that cannot be used, and report every dropped row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from bertsmith.data.near_duplicates import group_near_duplicates, merge_groups
from bertsmith.data.table import MISSING, REGRESSION, Table
from bertsmith.data.template import texts_of
from bertsmith.data.texts import normalise

EMPTY = "empty text"
NO_LABEL = "missing label"
DUPLICATE = "duplicate"
CONFLICT = "conflicting labels"
AVERAGED = "averaged with another row"
UNITED = "labels added to another row"
IN_TEST = "also in test"
IN_VALIDATION = "also in validation"


@dataclass(frozen=True)
class Cleaned:
    """The result of `clean`.

    Attributes:
        table: the usable rows, with normalised texts.
        dropped: one line per dropped row: ``source``, ``row``, ``reason`` and ``duplicate_of`` (the row with the same
            text, or 0).
        normalised: number of texts that `normalise` changed beyond outer white space.
    """

    table: Table
    dropped: pd.DataFrame
    normalised: int

    @property
    def counts(self) -> dict[str, int]:
        """Number of dropped rows by reason."""
        return {str(reason): int(n) for reason, n in self.dropped["reason"].value_counts().items()}

    @cached_property
    def near_duplicates(self) -> np.ndarray:
        """Groups of near-duplicates among the usable rows, shape (rows,): the position of the first row of the group.

        Rows whose texts differ only in further columns (``with_columns``) are near-duplicates too. Several text columns
        have no such rule, because many rows can have the same title. See `group_near_duplicates`.
        """
        frame, template = self.table.frame, self.table.columns.template
        groups = _near_duplicates(frame["text"], frame.get("pair"))
        if template.with_columns and len(template.text_column) == 1 and len(frame):
            groups = merge_groups(groups, _near_duplicates(frame["first"].fillna(""), frame.get("pair")))
        first, inverse = np.unique(groups, return_index=True, return_inverse=True)[1:]
        return first[inverse]


def clean(table: Table) -> Cleaned:
    """Normalise the texts, and drop the rows that cannot be trained on or scored.

    Rows without a text or a label are dropped from every split. Given test and validation splits lose no other rows.
    Texts of a given test split are dropped from train and validation, and texts of a given validation split from train.
    In train, one of several rows with the same text and class remains, and texts with several classes are dropped. If
    labels are numbers, the first of several rows with the same text remains, with their mean. The mean minimizes the
    squared error, and each text counts once, as in the metrics. If rows can have several labels, but none does, a row
    stands for one label of its text. The first row of a text then gets the labels of all, in given splits too.
    """
    frame, outcomes = table.frame, table.outcomes
    is_changed, is_empty = np.zeros((2, len(frame)), dtype=bool)
    for name in ("text", "pair") if "pair" in frame.columns else ("text",):
        original = frame[name].fillna("").tolist()
        normalised = [normalise(text) for text in original]
        is_changed |= np.array([old.strip() != new for old, new in zip(original, normalised, strict=True)], dtype=bool)
        frame = frame.assign(**{name: pd.Series(normalised, dtype="str")})
        is_empty |= frame[name].to_numpy() == ""
    reason = np.full(len(frame), "", dtype=object)
    duplicate_of = np.zeros(len(frame), dtype=np.int64)

    reason[is_empty] = EMPTY
    reason[(reason == "") & (frame["target"].to_numpy() == MISSING)] = NO_LABEL

    split = frame["split"].fillna("train").to_numpy()
    texts = np.fromiter(texts_of(frame), dtype=object, count=len(frame))
    rows = frame["row"].to_numpy()
    for held_out, leak, others in (
        ("test", IN_TEST, ("train", "validation")),
        ("validation", IN_VALIDATION, ("train",)),
    ):
        in_split = (split == held_out) & (reason == "")
        first_row = dict(zip(texts[in_split][::-1], rows[in_split][::-1], strict=True))
        for i in np.flatnonzero(np.isin(split, others) & (reason == "")):
            if texts[i] in first_row:
                reason[i], duplicate_of[i] = leak, first_row[texts[i]]

    is_train = split == "train"
    positions = np.flatnonzero((is_train | outcomes.one_label_per_row) & (reason == ""))
    keys = pd.Series(texts)[positions]
    by_text = frame.iloc[positions].groupby(keys, sort=False)
    n_classes = by_text["target"].transform("nunique").to_numpy()
    first = by_text["row"].transform("first").to_numpy()
    is_later = keys.duplicated().to_numpy()
    is_repeated, differs = is_later & (n_classes == 1) & is_train[positions], n_classes > 1
    reason[positions[is_repeated]] = DUPLICATE
    if differs.any():
        codes, number = frame["target"].to_numpy(copy=True), pd.factorize(keys[differs])[0]
        merged = outcomes.merge(codes[positions[differs]], number)
        if merged is not None:
            of_texts, outcomes = merged
            codes[positions[differs]] = of_texts[number]
            frame, differs = frame.assign(target=codes), differs & is_later
        reason[positions[differs]] = CONFLICT if merged is None else AVERAGED if table.task == REGRESSION else UNITED
    duplicate_of[positions] = np.where(is_repeated | differs, first, duplicate_of[positions])

    is_dropped = reason != ""
    dropped = frame.loc[is_dropped, ["source", "row"]].reset_index(drop=True)
    dropped = dropped.assign(reason=reason[is_dropped].astype(str), duplicate_of=duplicate_of[is_dropped])
    cleaned = replace(table, frame=frame, outcomes=outcomes).take(~is_dropped)
    return Cleaned(cleaned, dropped, int(is_changed.sum()))


def _near_duplicates(texts: pd.Series, others: pd.Series | None) -> np.ndarray:
    """Group near-duplicates, or pairs whose segments are near-duplicates in either order; shape (rows,)."""
    if others is None:
        return group_near_duplicates(texts.tolist())
    # Both segments must be similar, because many pairs share their first text.
    one, two = np.sort(group_near_duplicates([*texts, *others]).reshape(2, -1), axis=0)
    return np.unique(one * 2 * len(texts) + two, return_inverse=True)[1]
