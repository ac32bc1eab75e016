"""Find near-duplicates, which would make a model look better than it is if they were in several splits."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import xxhash
from datasketch import MinHash

from bertsmith.data.texts import folded

SIMILARITY = 0.8
"""Smallest Jaccard similarity of the shingles of two near-duplicates."""
SHINGLE_CHARS = 5
PERMUTATIONS, BANDS, ROWS = 64, 9, 7
"""Hashes of a text, bands, and hashes of a band. Candidates have all hashes of a band in common.

These numbers balance missed and unnecessary candidates at the threshold `SIMILARITY`.
"""
LIKELY = 0.7
"""Candidates with a smaller share of common hashes, which estimates the similarity, have no exact comparison."""
MEMBERS = 4
"""Number of texts of a group to which a candidate is compared, for each band."""
_SEPARATORS = re.compile(r"[\W_]+")


def group_near_duplicates(texts: Sequence[str]) -> np.ndarray:
    """Group near-duplicates: texts that are similar to each other, directly or through other texts.

    Texts are compared by the sets of their five-character shingles, ignoring case, punctuation, white space, Unicode
    form and invisible characters. MinHash (Broder 1997) finds candidate pairs, and an exact comparison follows.
    Grouped texts are always similar, but MinHash can miss pairs with a similarity below 0.9.

    Args:
        texts: n texts.

    Returns:
        The group of every text, shape (n,): the position of the first text in the group.
    """
    hashes = MinHash.generator(
        ([shingle.encode() for shingle in _shingles(text)] for text in texts),
        num_perm=PERMUTATIONS,
        hashfunc=xxhash.xxh32_intdigest,
    )
    signatures = np.array([minhash.hashvalues for minhash in hashes], dtype=np.uint32)
    group = list(range(len(texts)))
    index: defaultdict[tuple[int, bytes], list[int]] = defaultdict(list)
    for i, values in enumerate(signatures):
        buckets = [index[start, values[start : start + ROWS].tobytes()] for start in range(0, BANDS * ROWS, ROWS)]
        candidates = np.array(sorted({j for bucket in buckets for j in bucket}), dtype=np.int64)
        is_likely = (signatures[candidates] == values).mean(axis=1) >= LIKELY
        for j in candidates[is_likely].tolist():
            a, b = _root(group, i), _root(group, j)
            if a != b and _is_similar(texts[i], texts[j]):
                group[max(a, b)] = min(a, b)
        for bucket in buckets:
            # Some texts stand for a group, or the time would grow with the square of its size.
            if sum(_root(group, j) == _root(group, i) for j in bucket) < MEMBERS:
                bucket.append(i)
    return np.array([_root(group, i) for i in range(len(texts))], dtype=np.int64)


def merge_groups(groups: np.ndarray, similar: np.ndarray) -> np.ndarray:
    """Merge two groupings: rows share a merged group if they share either group, directly or through other rows."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    # The nodes of the graph are the rows and the groups of both kinds; edges link a row to its two groups.
    n = len(groups)
    ends = np.concatenate([n + groups, n + groups.max() + 1 + similar])
    size = int(ends.max()) + 1
    graph = csr_array((np.ones(2 * n), (np.tile(np.arange(n), 2), ends)), shape=(size, size))
    return np.unique(connected_components(graph, directed=False)[1][:n], return_inverse=True)[1]


def _root(group: list[int], i: int) -> int:
    """Return the first text of the group of text ``i``, and shorten the path to it (union-find)."""
    while group[i] != i:
        group[i] = group[group[i]]
        i = group[i]
    return i


@lru_cache(maxsize=2)
def _shingles(text: str) -> set[str]:
    plain = f" {_SEPARATORS.sub(' ', folded(text)).strip()} "
    if not plain.strip():  # a text of punctuation only
        plain = text
    return {plain[i : i + SHINGLE_CHARS] for i in range(max(len(plain) - SHINGLE_CHARS + 1, 1))}


def _is_similar(a: str, b: str) -> bool:
    one, two = _shingles(a), _shingles(b)
    n_common = len(one & two)
    return n_common >= SIMILARITY * (len(one) + len(two) - n_common)
