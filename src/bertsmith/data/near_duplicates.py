"""Find near-duplicates, which would make a model look better than it is if they were in several splits."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import xxhash
from datasketch import MinHash, MinHashLSH

SIMILARITY = 0.8
"""Smallest Jaccard similarity of the shingles of two near-duplicates."""
SHINGLE_CHARS = 5
PERMUTATIONS = 64
_SEPARATORS = re.compile(r"[\W_]+")


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
