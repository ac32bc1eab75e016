"""How well coders agree: Krippendorff's alpha and Cohen's kappa, for all labels, each class and each pair of coders.

The package krippendorff is under the GPL, so bertsmith does not use it. Tests compare `alpha` with published examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from bertsmith.bootstrap import TAILS, draw_resamples
from bertsmith.data.table import MULTI_LABEL, ORDINAL
from bertsmith.evaluation.intervals import wilson

LabelSet = frozenset[str]
Coded = Mapping[tuple[int, str], LabelSet]
"""The labels that a coder gave to a text, by text and coder."""
NO_WIDTH = 1e-9
"""An interval of at most this width comes from equal resamples, and says nothing about other texts."""


@dataclass(frozen=True)
class Coefficient:
    """A coefficient of agreement: 1 is perfect, 0 is chance.

    Attributes:
        value: ``None`` if it is undefined, as when every text has the same label.
        interval: 95 % interval: bootstrap over texts, or Wilson (1927) for a share. ``None`` if undefined, or if
            nearly all resamples have the same value, as when the coders always agree.
        texts: number of texts with labels of at least two coders.
    """

    value: float | None
    interval: tuple[float, float] | None
    texts: int


@dataclass(frozen=True)
class Agreement:
    """Agreement between coders.

    Attributes:
        alpha: Krippendorff's alpha of all labels.
        classes: alpha of each class against all others, by label.
        pairs: Cohen's kappa of each pair of coders.
        ceiling: share of texts to which two coders gave the same labels, mean over pairs. No model agrees more with a
            coder than coders do, except by chance.
        disputed: texts with different labels.
    """

    alpha: Coefficient
    classes: dict[str, Coefficient]
    pairs: dict[tuple[str, str], Coefficient]
    ceiling: Coefficient
    disputed: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the coefficients, JSON-ready."""
        return {
            "alpha": vars(self.alpha),
            "ceiling": vars(self.ceiling),
            "classes": {label: vars(found) for label, found in self.classes.items()},
            "pairs": [{"coders": list(pair), **vars(found)} for pair, found in self.pairs.items()],
            "disputed": len(self.disputed),
        }


def measure_agreement(coded: Coded, labels: Sequence[str], task: str) -> Agreement:
    """Measure the agreement of coders on the texts that at least two of them labelled.

    Args:
        coded: the labels by text and coder.
        labels: all labels; for ordinal labels in their order.
        task: the kind of label, which determines the distance of two labels: equal or not, squared difference of
            ranks, or Jaccard distance of sets.
    """
    by_text: dict[int, dict[str, LabelSet]] = {}
    for (text, coder), given in sorted(coded.items()):
        by_text.setdefault(text, {})[coder] = given
    shared = {text: given for text, given in by_text.items() if len(given) > 1}
    order = _order(labels)
    values = sorted({given for some in shared.values() for given in some.values()}, key=order)
    position = {value: i for i, value in enumerate(values)}
    counts = np.zeros((len(shared), len(values)))
    for i, some in enumerate(shared.values()):
        for given in some.values():
            counts[i, position[given]] += 1
    distance = _distance(values, counts.sum(axis=0), task)
    classes = {}
    for label in labels:
        inside = np.array([label in value for value in values], dtype=bool)
        split = np.stack([counts[:, ~inside].sum(axis=1), counts[:, inside].sum(axis=1)], axis=1)
        classes[label] = alpha(split, 1 - np.eye(2))
    coders = sorted({coder for some in shared.values() for coder in some})
    ranks = np.array([order(value)[0] if value else 0 for value in values])
    weights = (ranks[:, None] - ranks) ** 2.0 if task == ORDINAL else 1 - np.eye(len(values))
    pairs, same = {}, []
    for one, two in combinations(coders, 2):
        both = [(some[one], some[two]) for some in shared.values() if one in some and two in some]
        if both:
            a, b = (np.array([position[pair[i]] for pair in both]) for i in (0, 1))
            pairs[one, two] = kappa(a, b, weights)
            same.append(_same(a, b))
    disputed = tuple(text for text, some in shared.items() if len(set(some.values())) > 1)
    return Agreement(alpha(counts, distance), classes, pairs, _mean(same), disputed)


def alpha(counts: np.ndarray, distance: np.ndarray) -> Coefficient:
    """Return Krippendorff's alpha (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability").

    Args:
        counts: how many coders gave each value to each text, shape (texts, values). Texts with one label do not count.
        distance: of two values, symmetric, with zeros on the diagonal, shape (values, values).
    """
    counts = counts[counts.sum(axis=1) > 1]
    n = len(counts)
    if not n:
        return Coefficient(None, None, 0)
    disagreement = np.einsum("uc,ck,uk->u", counts, distance, counts) / (counts.sum(axis=1) - 1)

    def of(drawn: np.ndarray) -> np.ndarray:
        totals = drawn @ counts
        expected = ((totals @ distance) * totals).sum(axis=1) / (totals.sum(axis=1) - 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(1 - (drawn @ disagreement) / expected)

    return _with_interval(of, n)


def kappa(one: np.ndarray, two: np.ndarray, weights: np.ndarray) -> Coefficient:
    """Return Cohen's weighted kappa of two coders (Cohen 1968).

    Args:
        one, two: value index of each text, shape (texts,).
        weights: disagreement of two values, shape (values, values).
    """
    n_values = len(weights)
    rows, columns = np.eye(n_values)[one], np.eye(n_values)[two]
    disagreement = weights[one, two]

    def of(drawn: np.ndarray) -> np.ndarray:
        expected = ((drawn @ rows) @ weights * (drawn @ columns)).sum(axis=1) / drawn.sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(1 - (drawn @ disagreement) / expected)

    return _with_interval(of, len(one))


def _same(one: np.ndarray, two: np.ndarray) -> Coefficient:
    """Return the share of texts with the same value, from value indices of shape (texts,)."""
    same = one == two
    return Coefficient(float(same.mean()), wilson(same), len(same))


def _mean(found: Sequence[Coefficient]) -> Coefficient:
    """Return the mean of the pairs of coders, weighted by texts. Pairs share texts, so the interval is their mean."""
    if not found:
        return Coefficient(None, None, 0)
    rows = np.array([[each.value, *(each.interval or ()), each.texts] for each in found])
    value, low, high = np.average(rows[:, :3], axis=0, weights=rows[:, 3]).tolist()
    return Coefficient(value, (low, high), int(rows[:, 3].max()))


def _with_interval(of: Callable[[np.ndarray], np.ndarray], n: int) -> Coefficient:
    value = float(of(np.ones((1, n)))[0])
    if not np.isfinite(value):
        return Coefficient(None, None, n)
    drawn = np.concatenate([of(some) for some in draw_resamples(n, None, np.random.default_rng(0))])
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.percentile(drawn, TAILS).tolist() if len(drawn) else (value, value)
    return Coefficient(value, (low, high) if high - low > NO_WIDTH else None, n)


def _order(labels: Sequence[str]) -> Callable[[LabelSet], list[int]]:
    position = {label: i for i, label in enumerate(labels)}
    return lambda value: sorted(position.get(label, len(position)) for label in value)


def _distance(values: Sequence[LabelSet], totals: np.ndarray, task: str) -> np.ndarray:
    """Return the distance between each pair of values, shape (values, values)."""
    n = len(values)
    if task == ORDINAL:  # the number of labels between two ranks, squared
        until = np.cumsum(totals) - totals / 2
        return (until[:, None] - until[None]) ** 2
    if task == MULTI_LABEL:
        return np.array([[1 - len(a & b) / max(len(a | b), 1) if a != b else 0.0 for b in values] for a in values])
    return 1 - np.eye(n)
