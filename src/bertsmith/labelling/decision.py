"""A decision of a coder about a text, and whether it fits the project."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bertsmith.data.table import MULTI_LABEL
from bertsmith.errors import counted, listing, quoted

LABELLED, UNSURE, SKIPPED = STATUSES = ("labelled", "unsure", "skipped")
SETTLER = "(settled)"
"""The coder of decisions that settle a disagreement."""


@dataclass(frozen=True)
class Decision:
    """What a coder decided about a text; ``labels`` is empty unless the status is ``"labelled"``."""

    text: int
    coder: str
    status: str
    labels: tuple[str, ...] = ()
    note: str = ""
    seconds: float = 0.0


def misfit(decision: Decision, settings: Mapping[str, Any], others: Sequence[Decision], *, is_queued: bool) -> str:
    """Return why a decision does not fit the project, or an empty string."""
    if not is_queued:
        return "the project has no such text"
    if not decision.coder.strip():
        return "the name of the coder is empty"
    if decision.status not in STATUSES:
        return f"the status {quoted(decision.status)} is unknown"
    if unknown := [label for label in decision.labels if label not in settings["labels"]]:
        return f"the codebook lacks {listing(unknown)}"
    is_labelled = decision.status == LABELLED
    is_set = is_labelled and settings["task"] == MULTI_LABEL
    if len(decision.labels) != is_labelled and not is_set:
        return f"{counted(len(decision.labels), 'label')} given, {int(is_labelled)} expected"
    if decision.coder == SETTLER and not is_labelled:
        return "a settlement needs a label"
    if any(other.coder == SETTLER and set(other.labels) != set(decision.labels) for other in others):
        return "another decision has settled this text"
    return ""
