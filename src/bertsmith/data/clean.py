"""Clean a table: normalise texts, drop rows that cannot be used, and report every dropped row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import xxhash
from datasketch import MinHash, MinHashLSH

from bertsmith.data.table import MISSING, Table
from bertsmith.data.texts import normalise

EMPTY = "empty text"
NO_LABEL = "missing label"
DUPLICATE = "duplicate"
CONFLICT = "conflicting labels"
IN_TEST = "also in test"
IN_VALIDATION = "also in validation"

SIMILARITY = 0.8
"""Smallest Jaccard similarity of the shingles of two near-duplicates."""
SHINGLE_CHARS = 5
PERMUTATIONS = 64
_SEPARATORS = re.compile(r"[\W_]+")


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
        """Groups of near-duplicates among the usable rows, shape (rows,); see `group_near_duplicates`."""
        return group_near_duplicates(self.table.frame["text"].tolist())


def clean(table: Table) -> Cleaned:
    """Normalise the texts, and drop the rows that cannot be trained on or scored.

    Rows without a text or a label are dropped from every split. Given test and validation tables lose no other rows:
    a text in a given test table is dropped from train and validation, and a text in a given validation table is
    dropped from train. In train, one of several rows with the same text and class remains, and texts with several
    classes are dropped.
    """
    frame = table.frame
    original = frame["text"].fillna("").tolist()
    normalised = [normalise(text) for text in original]
    n_normalised = sum(old.strip() != new for old, new in zip(original, normalised, strict=True))
    frame = frame.assign(text=pd.Series(normalised, dtype="str"))
    reason = np.full(len(frame), "", dtype=object)
    duplicate_of = np.zeros(len(frame), dtype=np.int64)

    reason[frame["text"].to_numpy() == ""] = EMPTY
    reason[(reason == "") & (frame["target"].to_numpy() == MISSING)] = NO_LABEL

    split = frame["split"].fillna("train").to_numpy()
    texts = frame["text"].to_numpy(dtype=object)
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

    positions = np.flatnonzero((split == "train") & (reason == ""))
    by_text = frame.iloc[positions].groupby("text", sort=False)
    n_classes = by_text["target"].transform("nunique").to_numpy()
    first = by_text["row"].transform("first").to_numpy()
    is_repeated = frame["text"].iloc[positions].duplicated().to_numpy() & (n_classes == 1)
    reason[positions[n_classes > 1]] = CONFLICT
    reason[positions[is_repeated]] = DUPLICATE
    duplicate_of[positions] = np.where(is_repeated | (n_classes > 1), first, duplicate_of[positions])

    is_dropped = reason != ""
    dropped = frame.loc[is_dropped, ["source", "row"]].reset_index(drop=True)
    dropped = dropped.assign(reason=reason[is_dropped].astype(str), duplicate_of=duplicate_of[is_dropped])
    return Cleaned(replace(table, frame=frame).take(~is_dropped), dropped, n_normalised)


def group_near_duplicates(texts: Sequence[str]) -> np.ndarray:
    """Group near-duplicates: texts that are similar to each other, directly or through other texts.

    Texts are compared by the sets of their five-character shingles, ignoring case, punctuation and white space. MinHash
    (Broder 1997) finds candidate pairs, which are then compared exactly. Grouped texts are always similar, but a pair
    just above the threshold may be missed.

    Args:
        texts: n texts.

    Returns:
        The group of every text, shape (n,): the position of the first text in the group.
    """
    signatures = MinHash.bulk(
        ([shingle.encode() for shingle in _shingles(text)] for text in texts),
        num_perm=PERMUTATIONS,
        hashfunc=xxhash.xxh32_intdigest,
    )
    index = MinHashLSH(threshold=SIMILARITY, num_perm=PERMUTATIONS)
    group = np.arange(len(texts))
    for i, signature in enumerate(signatures):
        for j in index.query(signature):
            a, b = _root(group, i), _root(group, j)
            if a != b and _is_similar(texts[i], texts[j]):
                group[max(a, b)] = min(a, b)
        index.insert(i, signature, check_duplication=False)
    return np.array([_root(group, i) for i in range(len(texts))], dtype=np.int64)


def _root(group: np.ndarray, i: int) -> int:
    """Return the first text of the group of text ``i``, and shorten the path to it (union-find)."""
    while group[i] != i:
        group[i] = group[group[i]]
        i = int(group[i])
    return i


def _shingles(text: str) -> set[str]:
    plain = f" {_SEPARATORS.sub(' ', text.casefold()).strip()} "
    if not plain.strip():  # a text of punctuation only
        plain = text
    return {plain[i : i + SHINGLE_CHARS] for i in range(max(len(plain) - SHINGLE_CHARS + 1, 1))}


def _is_similar(a: str, b: str) -> bool:
    one, two = _shingles(a), _shingles(b)
    n_common = len(one & two)
    return n_common >= SIMILARITY * (len(one) + len(two) - n_common)
