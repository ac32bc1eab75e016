"""The labels of a project: which names are valid, and the place of new ones."""

from __future__ import annotations

from collections.abc import Sequence

from bertsmith.data.table import ORDINAL
from bertsmith.errors import ConfigError, listing


def checked_labels(labels: Sequence[str]) -> list[str]:
    """Return labels once each, with normalised spaces.

    Raises:
        ConfigError: if a label is empty or joins several labels.
    """
    names = list(dict.fromkeys(" ".join(label.split()) for label in labels))
    if wrong := [label for label in names if not label or ";" in label]:
        raise ConfigError(f"these cannot be labels: {listing(wrong)}", remedy="Use words without semicolons.")
    return names


def joined_labels(before: Sequence[str], given: Sequence[str], task: str) -> list[str]:
    """Return the labels of a project, and those given later. All ordinal labels together give the order.

    Raises:
        ConfigError: if a label differs from another in case only, or the place of a new ordinal label is unknown.
    """
    if task == ORDINAL and set(before) <= set(given):
        return list(given)
    new = [label for label in given if label not in before]
    known = {label.casefold(): label for label in before}
    if task == ORDINAL and new:
        raise ConfigError(
            f"the place of {listing(new)} among the ordinal labels {listing(before)} is unknown",
            remedy="Stop bertsmith label (Ctrl-C), and run it again with --labels and all labels, the lowest first.",
        )
    if alike := [label for label in new if label.casefold() in known]:
        raise ConfigError(
            f"the project has the labels {listing([known[label.casefold()] for label in alike])}, which differ from "
            f"{listing(alike)} only in upper and lower case",
            remedy="Write the labels as in the project.",
        )
    return [*before, *new]
