"""Choose the texts to label next: uncertain, rare and diverse texts, and a random sample of the pool.

Uncertain texts are spread over clusters (Citovsky et al. 2021, arXiv:2107.14263). Without a model, texts in the middle
of clusters come first (Hacohen et al. 2022, arXiv:2202.02794). The random sample is drawn from rows that no other
reason touches, so it represents the pool.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bertsmith.data.near_duplicates import group_near_duplicates
from bertsmith.data.table import MULTI_LABEL

UNCERTAIN, DIVERSE, RARE, CHANCE = ("uncertain", "diverse", "rare", "random")
RANDOM_SHARE = 0.2
RARE_SHARE, DIVERSE_SHARE = 0.3, 0.1
"""Maximum shares of the chosen texts, without the random ones. With a model, the others are uncertain texts."""
RARE_BELOW = 10
"""Number of labelled texts from which a class is not rare."""
RESERVED = 1000
"""Maximum number of rows that only the random sample may take; of a small pool, a fifth."""
SPREAD_ROWS = 10_000
"""Rows of the pool among which diverse texts are chosen."""
PER_PICK = 5
"""Candidates for each text to choose, so that uncertain texts can be spread and near-duplicates be left out."""
SPARE = 1.5
"""Texts to rank for each text to choose, so that near-duplicates can be left out."""


SMALL_PART = 0.05
"""Smallest share of the pool's texts in a stratum. A smaller part can change an estimate by at most as much."""


@dataclass(frozen=True)
class ChosenText:
    """A chosen text: its row in the pool, from 0, and the reason."""

    row: int
    reason: str


def priorities(n_rows: int, seed: int) -> np.ndarray:
    """Return a pseudo-random number for each row of a pool, shape (rows,): a hash of row and seed (SplitMix64).

    A row keeps its number when rows are added at the end.
    """
    mask = (1 << 64) - 1
    x = np.arange(1, n_rows + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(
        (seed * 0xD1342543DE82EF95) & mask
    )
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    return x ^ (x >> np.uint64(31))


def random_rows(
    priority: np.ndarray, usable: np.ndarray, n: int, *, only_random: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the random sample: the usable rows with the smallest priorities.

    Args:
        priority: of each row, from `priorities`.
        usable: whether a row may be chosen: it has a text, and is not chosen yet.
        n: number of rows.
        only_random: no text of the pool has or gets another reason, so the random sample may take every row.

    Returns:
        The rows, and a mask of the rows that only the random sample may take, shape (rows,).
    """
    size = len(priority) if only_random else min(RESERVED, len(priority) // 5)
    reserved = np.zeros(len(priority), dtype=bool)
    order = np.argpartition(priority, size)[: size + 1] if size < len(priority) else np.arange(len(priority))
    order = order[np.argsort(priority[order])][:size]
    reserved[order] = True
    return order[usable[order]][:n], reserved


def inclusion_probabilities(rows: Sequence[int], sizes: Sequence[tuple[int, int]]) -> dict[int, float]:
    """Return the inclusion probability of each random text by row, for a pool that may have grown.

    Random texts drawn before the pool grew come from its first part only. So each part is a stratum: the probability is
    the share of its texts that are in the sample. Successive parts form one stratum until they have `SMALL_PART` of the
    texts, because the share of a small part is imprecise. If the last parts have fewer texts in total, they belong to
    the stratum before them.

    Args:
        rows: of the random texts, from 1.
        sizes: for each size that the pool had, its last row, and the number of its texts.

    Returns:
        The probabilities; none if a part has no random text, because the sample does not represent this part.
    """
    kept: list[tuple[int, int]] = []
    for size in sizes:
        if size[1] - (kept[-1][1] if kept else 0) >= SMALL_PART * sizes[-1][1]:
            kept.append(size)
    kept = [*kept[:-1], sizes[-1]]
    found: dict[int, float] = {}
    start, before = 0, 0
    for end, texts in kept:
        inside = [row for row in rows if start < row <= end]
        if not inside or texts <= before:
            return {}
        found |= dict.fromkeys(inside, len(inside) / (texts - before))
        start, before = end, texts
    return found


class Candidates:
    """The rows of a pool that can be chosen, collected in one pass, in memory that does not grow with the pool.

    Args:
        n: number of texts to choose.
        task: kind of label.
        counts: number of labelled texts of each class, shape (classes,); ``None`` without a model.
        seed: of the clusters.
    """

    def __init__(self, n: int, task: str, counts: np.ndarray | None, seed: int) -> None:
        self.n, self.task, self.counts, self.seed = n, task, counts, seed
        self.rows, self.priority = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint64)
        self.embeddings = np.empty((0, 0), dtype=np.float32)
        self.scores = np.empty((0, 0 if counts is None else len(counts)), dtype=np.float32)

    def add(self, rows: np.ndarray, priority: np.ndarray, scores: np.ndarray | None) -> None:
        """Add a chunk of usable rows, and keep the best candidates so far.

        Args:
            rows: m rows in ascending order.
            priority: of each row.
            scores: of the model, shape (m, classes); ``None`` without a model.
        """
        scores = np.empty((len(rows), 0)) if scores is None else scores
        self.rows = np.concatenate([self.rows, rows])
        self.priority = np.concatenate([self.priority, priority])
        self.scores = np.concatenate([self.scores, scores.astype(np.float32)])
        keep = np.zeros(len(self.rows), dtype=bool)
        keep[_smallest(self.priority, SPREAD_ROWS)] = True
        if self.counts is not None:
            keep[_smallest(-self.uncertainty, PER_PICK * self.n)] = True
            for column in self.scores.T:
                keep[_smallest(-column, max(4 * self.n // len(self.counts), 8))] = True
        self.rows, self.priority, self.scores = self.rows[keep], self.priority[keep], self.scores[keep]

    @property
    def uncertainty(self) -> np.ndarray:
        """How uncertain the model is about each candidate, from 0 to 1, shape (candidates,)."""
        if self.task == MULTI_LABEL:
            return np.asarray(1 - abs(2 * self.scores - 1).min(axis=1, initial=1))
        best = -np.partition(-self.scores, 1, axis=1)[:, :2]
        return np.asarray(1 - (best[:, 0] - best[:, 1]))

    def choose(self, embeddings: np.ndarray, known: np.ndarray) -> list[ChosenText]:
        """Rank candidates, about `SPARE` times as many as wanted, with the reasons mixed.

        Args:
            embeddings: of the candidates in `rows`, shape (candidates, hidden size).
            known: embeddings of the texts that are labelled or queued, shape (texts, hidden size).
        """
        self.embeddings = embeddings.astype(np.float32)
        n = min(int(SPARE * self.n) + 1, len(self.rows))
        free = np.ones(len(self.rows), dtype=bool)
        found: dict[str, list[int]] = {}
        if self.counts is not None:
            found[RARE] = self._rare(free, int(RARE_SHARE * n), self.counts)
            known = np.concatenate([known, self.embeddings[found[RARE]]])
        found[DIVERSE] = self._diverse(free, n if self.counts is None else int(DIVERSE_SHARE * n), known)
        if self.counts is not None:
            found[UNCERTAIN] = self._uncertain(free, n - sum(map(len, found.values())))
        ranked = [
            ((i + 0.5) / len(some), reason, int(self.rows[candidate]))
            for reason, some in found.items()
            for i, candidate in enumerate(some)
        ]
        return [ChosenText(row, reason) for _, reason, row in sorted(ranked)]

    def _rare(self, free: np.ndarray, n: int, counts: np.ndarray) -> list[int]:
        """Repeatedly take the likeliest texts of the class with the fewest labels, while classes are rare."""
        expected, found = np.where(counts < RARE_BELOW, counts, np.inf), list[int]()
        order = np.argsort(-self.scores, axis=0, kind="stable")
        position = np.zeros(len(counts), dtype=np.int64)
        while len(found) < n and expected.min() < RARE_BELOW:
            c = int(expected.argmin())
            while position[c] < len(order) and not free[order[position[c], c]]:
                position[c] += 1
            if position[c] == len(order):
                expected[c] = np.inf
                continue
            i = int(order[position[c], c])
            free[i] = False
            found.append(i)
            expected += self.scores[i]
            expected[c] += 0.5  # a class without similar texts must not take all choices
        return found

    def _diverse(self, free: np.ndarray, n: int, known: np.ndarray) -> list[int]:
        """Cluster the third of the texts that is farthest from all known ones; take texts in the middle of clusters."""
        rows = np.flatnonzero(free)[_smallest(self.priority[free], SPREAD_ROWS)]
        if len(known):
            nearest = np.full(len(rows), -1.0, dtype=np.float32)
            for start in range(0, len(known), 1000):
                similarity = self.embeddings[rows] @ known[start : start + 1000].T.astype(np.float32)
                nearest = np.maximum(nearest, similarity.max(axis=1))
            rows = rows[_smallest(nearest, max(len(rows) // 3, 5 * n))]
        labels, distance = self._clusters(rows, n)
        return self._take(free, rows, labels, distance, n)

    def _uncertain(self, free: np.ndarray, n: int) -> list[int]:
        """Take the most uncertain text of each cluster of uncertain texts."""
        uncertainty = self.uncertainty
        rows = np.flatnonzero(free)
        rows = rows[_smallest(-uncertainty[rows], PER_PICK * n)]
        labels, _ = self._clusters(rows, n)
        return self._take(free, rows, labels, -uncertainty[rows], n)

    def _clusters(self, rows: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the cluster of each row, and its squared distance from the centre."""
        x = self.embeddings[rows]
        if len(rows) <= n or not n:
            return np.arange(len(rows)), np.zeros(len(rows))
        from sklearn.cluster import MiniBatchKMeans

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fewer distinct texts than clusters
            model = MiniBatchKMeans(n, random_state=self.seed, n_init=1, batch_size=2048, max_iter=30).fit(x)
        return model.labels_, ((x - model.cluster_centers_[model.labels_]) ** 2).sum(axis=1)

    def _take(self, free: np.ndarray, rows: np.ndarray, labels: np.ndarray, cost: np.ndarray, n: int) -> list[int]:
        """Take the text with the lowest cost of each cluster, the largest clusters first, until there are n."""
        order = np.lexsort((cost, labels))
        first = np.r_[True, labels[order][1:] != labels[order][:-1]] if len(order) else np.empty(0, dtype=bool)
        in_cluster = np.arange(len(order)) - np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
        size = np.bincount(labels)[labels[order]] if len(order) else np.empty(0)
        chosen = rows[order[np.lexsort((-size, in_cluster))][:n]]
        free[chosen] = False
        return [int(row) for row in chosen]


def without_near_duplicates(
    ranked: Sequence[ChosenText], texts: Sequence[str], known: Iterable[str], n: int
) -> list[ChosenText]:
    """Return the first n choices that are not near-duplicates of an earlier choice or of a known text.

    Args:
        ranked: the choices, best first.
        texts: their texts.
        known: texts that are labelled, queued, or drawn at random.
        n: number of choices.
    """
    before = list(known)
    group = group_near_duplicates([*before, *texts])
    return [choice for i, choice in enumerate(ranked, start=len(before)) if group[i] == i][:n]


def _smallest(values: np.ndarray, n: int) -> np.ndarray:
    """Return the positions of the n smallest values, in ascending order of the positions."""
    if len(values) <= n:
        return np.arange(len(values))
    return np.sort(np.argpartition(values, n)[:n])
