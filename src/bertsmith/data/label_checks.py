"""Checks of the labels of a table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pandas as pd

from bertsmith.data.findings import Finding, join_names
from bertsmith.data.joined_labels import find_joined
from bertsmith.data.split import SMALL_CLASS_RULE
from bertsmith.data.table import MULTI_LABEL, ORDINAL, REGRESSION, SINGLE_LABEL, Labels, Table
from bertsmith.data.texts import folded
from bertsmith.errors import counted

MANY_CLASSES = 20
"""Above this number of classes, a single text in most of them suggests that the column does not hold classes."""
LEVELS = range(3, 12)
"""Numbers of classes that may be levels of a scale, such as 1 to 5 or 0 to 10."""
FEWEST_NUMBERS, FEWEST_CODED, FEWEST_NINES, MOST_CODED = 3, 3, 2, 0.25
"""For codes of missing labels: fewest other numbers, fewest rows with a code, and largest share of the rows. A code of
nines needs fewer rows: in long tails of rounded numbers, two rows often have the same number far from the others."""
_DEGREES = re.compile(
    r"\b(very|strongly|slightly|somewhat|extremely|low|medium|moderate|high|never|rarely|sometimes|often|always|stars?)\b",
    re.I,
)


def label_findings(table: Table) -> Iterator[Finding]:
    """Report classes that a model cannot learn, or hardly learns, and what the labels suggest about the task.

    Args:
        table: a cleaned table.
    """
    labels, split = table.labels, table.frame["split"]
    n_train = table.take(((split != "test") & (split != "validation")).to_numpy()).counts
    if table.task == REGRESSION or (n_train > 0).sum() < (1 if table.task == MULTI_LABEL else 2):
        return  # a number has no classes; and splitting a table with one class is an error

    one, several = ("label", "labels") if table.task == MULTI_LABEL else ("class", "classes")

    def classes(kind: str, names: list[str], message: str, action: str) -> Iterator[Finding]:
        if names:
            yield Finding(kind, "warning", len(names), f"{message}: {join_names(names)}", action)

    yield from classes(
        "untrained-class",
        [labels.texts[i] for i in np.flatnonzero(n_train == 0)],
        f"{several} without a usable training text",
        f"the model cannot learn such {several}, and their texts in validation and test count as errors",
    )
    n_held_out = 2 - sum(bool((split == name).any()) for name in ("validation", "test"))
    too_small, small = (
        [f"{labels.texts[i]} ({n_train[i]})" for i in np.flatnonzero(mask)]
        for mask in ((n_train > 0) & (n_train <= n_held_out), (n_train > n_held_out) & (n_train < 10))
    )
    is_balanced_only = table.task == MULTI_LABEL or table.columns.group is not None
    rule = f"a split may lack such {several}" if is_balanced_only else SMALL_CLASS_RULE
    yield from classes("class-too-small", too_small, f"{several} with too few texts for every split", rule)
    yield from classes(
        "small-class",
        small,
        f"{several} with fewer than 10 training texts",
        "used unchanged; the model may predict them poorly. Merge them if that is acceptable",
    )
    n_folded = Counter(map(folded, labels.texts))
    yield from classes(
        "labels-alike",
        [text for text in labels.texts if n_folded[folded(text)] > 1],
        "label texts that differ only in case, Unicode form or invisible characters",
        f"used as separate {several}; make them equal in the table if they mean the same",
    )
    if table.task == MULTI_LABEL:
        yield _sets(table)
    else:
        yield from classes(
            "joined-labels",
            find_joined(labels.texts),
            "label texts that seem to contain several labels",
            "bertsmith uses each as one class; pass --task multi-label to separate the labels",
        )
    n_single = int((table.counts == 1).sum())
    if len(labels) > MANY_CLASSES and 2 * n_single > len(labels):
        yield Finding(
            "near-unique-labels",
            "warning",
            n_single,
            f"{n_single:,} of {len(labels):,} {several} have a single text",
            f"the model cannot learn such {several}; merge them, or name the column of the {several} with "
            "--label-column",
        )
    ratio = n_train.max() / n_train[n_train > 0].min()
    if ratio >= 10:
        yield Finding(
            "imbalance",
            "info",
            len(labels),
            f"the largest {one} has {ratio:.0f} times as many training texts as the smallest",
            "used unchanged; to give all classes the same total weight in the training loss, pass --imbalance weights"
            if table.task == ORDINAL
            else f"macro-F1, the primary metric, weights all {several} equally",
        )
    if table.task == SINGLE_LABEL and _seem_ordered(labels):
        yield Finding(
            "ordered-labels",
            "info",
            len(labels),
            f"the classes seem to be ordered, from {labels.texts[0]!r} to {labels.texts[-1]!r}",
            "bertsmith does not use the order; pass --task ordinal if confusing distant classes is worse than "
            "confusing neighbouring ones",
        )


def far_numbers(numbers: np.ndarray) -> np.ndarray:
    """Return which numbers may be codes for a missing label, such as −999, bool, shape (n,).

    A code is the same number in two or more rows. It is further from the other numbers than these are from each other.

    Args:
        numbers: the labels, shape (n,).
    """
    values, counts = np.unique(numbers, return_counts=True)
    gaps = np.diff(values)
    none = np.zeros(len(numbers), dtype=bool)
    if len(values) <= FEWEST_NUMBERS:
        return none
    below = numbers <= values[gaps.argmax()]
    is_code: np.ndarray = below if below.sum() < (~below).sum() else ~below
    codes = np.isin(values, numbers[is_code])
    others = values[~codes]
    is_far = len(others) >= FEWEST_NUMBERS and gaps.max() > np.ptp(others)
    fewest = [FEWEST_NINES if set(f"{abs(code):g}") == {"9"} else FEWEST_CODED for code in values[codes]]
    return is_code if is_far and (counts[codes] >= fewest).all() and is_code.mean() <= MOST_CODED else none


def differing_labels(table: Table, groups: np.ndarray) -> tuple[np.ndarray, str]:
    """Return whether the labels differ within the group of each row, bool, shape (n,), and words for this.

    Neighbouring levels do not count, nor do numbers within a standard deviation.

    Args:
        table: n rows with labels.
        groups: the group of each row, shape (n,).
    """
    spread = pd.Series(table.codes).groupby(groups).transform("nunique") - 1
    most, words = 0.0, "that have a different label"
    if table.task in (ORDINAL, REGRESSION):
        grouped = pd.Series(table.targets).groupby(groups)
        spread = grouped.transform("max") - grouped.transform("min")
        most, words = 1.0, "whose label is more than one step away"
    if table.task == REGRESSION:
        most, words = float(table.targets.std()), "whose number differs by more than a standard deviation"
    return (spread > most).to_numpy(), words


def describe_far_numbers(numbers: np.ndarray, is_far: np.ndarray) -> str:
    """Return what follows a number of rows: the `far_numbers` among numbers, both of shape (n,), and the range."""
    codes, others = numbers[is_far], numbers[~is_far]
    listed = join_names([f"{code:g}" for code in np.unique(codes)])
    return f"with {listed}, far from all other numbers ({others.min():g} to {others.max():g})"


def _sets(table: Table) -> Finding:
    """Report how many labels the rows have."""
    sizes = table.targets.sum(axis=1)
    return Finding(
        "label-sets",
        "info",
        len(table),
        f"{sizes.mean():.2f} labels per row; rows with several labels: {int((sizes > 1).sum()):,} (at most "
        f"{counted(int(sizes.max()), 'label')}), without labels: {int((sizes == 0).sum()):,}",
        "each label has its own probability and threshold",
    )


def _seem_ordered(labels: Labels) -> bool:
    """Return whether classes are numbers without names, or have names of degrees, in consecutive numbers."""
    consecutive = labels.numbers == tuple(range(labels.numbers[0], labels.numbers[0] + len(labels)))
    if len(labels) not in LEVELS or not consecutive:
        return False
    return labels.are_numbers or sum(bool(_DEGREES.search(text)) for text in labels.texts) >= 2
