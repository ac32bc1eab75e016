"""Texts that nearly repeat one another: on both sides of a split they would make a model look better than it is."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import xxhash
from datasketch import MinHash, MinHashLSH

SIMILARITY = 0.8
"""Jaccard similarity of the texts' shingles from which on one nearly repeats the other."""
SHINGLE = 5
"""Characters."""
PERMUTATIONS = 64
_BETWEEN = re.compile(r"[\W_]+")


def near_duplicates(texts: Sequence[str]) -> np.ndarray:
    """Group texts that nearly repeat one another, directly or by way of others.

    Texts are compared by the sets of their five-character pieces, case, punctuation and white space aside. MinHash
    (Broder 1997) finds the candidates among all pairs, which are then compared exactly: what is grouped is alike, but
    a pair just above the threshold may go unseen.

    Args:
        texts: n texts.

    Returns:
        The group of every text, shape (n,): the position of its first text; a text like no other is alone in its group.
    """
    signatures = MinHash.bulk(
        ([piece.encode() for piece in _shingles(text)] for text in texts),
        num_perm=PERMUTATIONS,
        hashfunc=xxhash.xxh32_intdigest,
    )
    index = MinHashLSH(threshold=SIMILARITY, num_perm=PERMUTATIONS)
    group = np.arange(len(texts))
    for i, signature in enumerate(signatures):
        for j in index.query(signature):
            a, b = _first(group, i), _first(group, j)
            if a != b and _similar(texts[i], texts[j]):
                group[max(a, b)] = min(a, b)
        index.insert(i, signature, check_duplication=False)
    return np.array([_first(group, i) for i in range(len(texts))], dtype=np.int64)


def _first(group: np.ndarray, i: int) -> int:
    while group[i] != i:
        group[i] = group[group[i]]
        i = int(group[i])
    return i


def _shingles(text: str) -> set[str]:
    plain = f" {_BETWEEN.sub(' ', text.casefold()).strip()} "
    if not plain.strip():  # signs alone: they are all there is
        plain = text
    return {plain[i : i + SHINGLE] for i in range(max(len(plain) - SHINGLE + 1, 1))}


def _similar(a: str, b: str) -> bool:
    one, two = _shingles(a), _shingles(b)
    both = len(one & two)
    return both >= SIMILARITY * (len(one) + len(two) - both)
