"""Keep only what is needed: normalise, drop what cannot be used, set aside what contradicts itself. Nothing silent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from bertsmith.data.near_duplicates import near_duplicates
from bertsmith.data.table import MISSING, Table
from bertsmith.data.texts import normalise

EMPTY = "empty text"
NO_LABEL = "missing label"
DUPLICATE = "duplicate"
CONFLICT = "conflicting labels"
IN_TEST = "also in test"
IN_VALIDATION = "also in validation"


@dataclass(frozen=True)
class Cleaned:
    """What cleaning left, and what it took.

    Attributes:
        table: the rows to use, texts normalised.
        dropped: one line a row taken out: ``source``, ``row``, ``reason`` and ``of`` (the row it repeats, or 0).
        normalised: how many texts were changed by `normalise` beyond outer white space.
    """

    table: Table
    dropped: pd.DataFrame
    normalised: int

    @property
    def counts(self) -> dict[str, int]:
        """Rows taken out, by reason."""
        return {str(reason): int(n) for reason, n in self.dropped["reason"].value_counts().items()}

    @cached_property
    def alike(self) -> np.ndarray:
        """Groups of rows to use whose texts nearly repeat one another, shape (rows,); see `near_duplicates`."""
        return near_duplicates(self.table.frame["text"].tolist())


def clean(table: Table) -> Cleaned:
    """Normalise the texts and take out what must not be trained on or scored.

    Empty texts and rows without a label go from every split. A text that stands in a given test table is taken out of
    train and validation, one in a given validation table out of train: leaks leave train, the test table stays whole.
    Of the rows to train on, one of several with the same text and class is kept, and texts that stand under several
    classes are set aside.

    Returns:
        The cleaned table with what was taken out; ``table`` itself is left alone.
    """
    frame = table.frame
    before = frame["text"].fillna("").tolist()
    after = [normalise(text) for text in before]
    normalised = sum(old.strip() != new for old, new in zip(before, after, strict=True))
    frame = frame.assign(text=pd.Series(after, dtype="str"))
    reason = np.full(len(frame), "", dtype=object)
    partner = np.zeros(len(frame), dtype=np.int64)

    reason[frame["text"].to_numpy() == ""] = EMPTY
    reason[(reason == "") & (frame["target"].to_numpy() == MISSING)] = NO_LABEL

    split = frame["split"].fillna("train").to_numpy()
    texts = frame["text"].to_numpy(dtype=object)
    rows = frame["row"].to_numpy()
    for held_out, why in (("test", IN_TEST), ("validation", IN_VALIDATION)):
        inside = (split == held_out) & (reason == "")
        first_row = dict(zip(texts[inside][::-1], rows[inside][::-1], strict=True))
        earlier = ("train",) if held_out == "validation" else ("train", "validation")
        for i in np.flatnonzero(np.isin(split, earlier) & (reason == "")):
            if texts[i] in first_row:
                reason[i], partner[i] = why, first_row[texts[i]]

    free = np.flatnonzero((split == "train") & (reason == ""))
    training = frame.iloc[free]
    n_classes = training.groupby("text", sort=False)["target"].transform("nunique").to_numpy()
    reason[free[n_classes > 1]] = CONFLICT
    first = training.groupby("text", sort=False)["row"].transform("first").to_numpy()
    repeated = training["text"].duplicated().to_numpy() & (n_classes == 1)
    reason[free[repeated]] = DUPLICATE
    partner[free] = np.where(repeated | (n_classes > 1), first, partner[free])

    out = reason != ""
    dropped = pd.DataFrame(
        {
            "source": frame["source"][out].to_numpy(),
            "row": rows[out],
            "reason": reason[out].astype(str),
            "of": partner[out],
        }
    )
    return Cleaned(replace(table, frame=frame).take(~out), dropped, normalised)
