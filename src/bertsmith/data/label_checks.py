"""What there is to say of the classes of a table."""

from __future__ import annotations

from collections import Counter

import numpy as np

from bertsmith.data.findings import Finding, some_of
from bertsmith.data.labels import joined
from bertsmith.data.split import RULE
from bertsmith.data.table import MISSING, Table

_MANY_CLASSES = 20
"""Classes beyond which many with a single text suggest that the column holds something else."""


def label_findings(table: Table) -> list[Finding]:
    """Return what there is to say of classes that cannot be learned, or hardly."""
    found: list[Finding] = []
    counts, labels = table.counts, table.labels
    given = table.frame["split"]
    training = table.targets[((given != "test") & (given != "validation")).to_numpy()]
    trained = np.bincount(training[training != MISSING], minlength=len(labels))
    if (trained > 0).sum() < 2:  # which train refuses
        return found
    absent = [labels.texts[i] for i in np.flatnonzero(trained == 0)]
    if absent:
        found.append(
            Finding(
                "untrained-class",
                "warning",
                len(absent),
                f"no usable training text: {some_of(absent)}",
                "the class cannot be learned, and its texts in validation and test count as mistakes",
            )
        )
    held_out = 2 - sum(bool((given == name).any()) for name in ("validation", "test"))
    small = [f"{labels.texts[i]} ({trained[i]})" for i in np.flatnonzero((trained > 0) & (trained <= held_out))]
    if small:
        found.append(
            Finding(
                "class-too-small",
                "warning",
                len(small),
                f"too few texts to be in every split: {some_of(small)}",
                RULE,
            )
        )
    few = [f"{labels.texts[i]} ({trained[i]})" for i in np.flatnonzero((trained > held_out) & (trained < 10))]
    if few:
        found.append(
            Finding(
                "small-class",
                "warning",
                len(few),
                f"fewer than 10 texts to learn from: {some_of(few)}",
                "used as it is; expect little of these classes, and merge them if that is acceptable",
            )
        )
    folded = Counter(text.casefold() for text in labels.texts)
    alike = [text for text in labels.texts if folded[text.casefold()] > 1]
    if alike:
        found.append(
            Finding(
                "labels-alike",
                "warning",
                len(alike),
                f"label texts that differ only in case: {some_of(alike)}",
                "they stay classes of their own; make them equal in the table if they mean the same",
            )
        )
    if several := joined(labels.texts):
        found.append(
            Finding(
                "joined-labels",
                "warning",
                len(several),
                f"label texts that join others: {some_of(several)}",
                "each is a class of its own; more than one label for a text is not supported",
            )
        )
    single = int((counts == 1).sum())
    if len(labels) > _MANY_CLASSES and 2 * single > len(labels):
        found.append(
            Finding(
                "near-unique-labels",
                "warning",
                single,
                f"{single:,} of {len(labels):,} classes have a single text",
                "such classes cannot be learned; merge them, or name the column of the classes with --label-column",
            )
        )
    ratio = trained.max() / trained[trained > 0].min()
    if ratio >= 10:
        found.append(
            Finding(
                "imbalance",
                "info",
                len(labels),
                f"the largest class has {ratio:.0f} times as many texts to learn from as the smallest",
                "macro-F1, which gives every class the same weight, chooses the best epoch",
            )
        )
    return found
