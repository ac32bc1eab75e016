"""What a study tells while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bertsmith.tuning.space import Space


@dataclass(frozen=True)
class StudyStarted:
    """The study is open.

    Attributes:
        trials: how many there are to be; ``None`` where time alone ends it.
        done: how many are done already, of an earlier command.
        best: the best score among these; ``None`` where there is none.
        space: what is varied.
        texts: to train and to validate on, for the test at the end, and left out.
        unseen: label texts of classes without a text to validate on.
        shared: the study's name in a database, and the number of other studies there; ``None`` without one.
    """

    trials: int | None
    done: int
    best: float | None
    space: Space
    texts: tuple[int, int, int, int]
    unseen: tuple[str, ...] = ()
    shared: tuple[str, int] | None = None


@dataclass(frozen=True)
class TrialStarted:
    """A trial begins with these settings."""

    number: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class TrialScored:
    """A trial was scored on validation; ``at`` is the epoch, or the fold (from 1)."""

    number: int
    at: float
    value: float


@dataclass(frozen=True)
class TrialEnded:
    """A trial is over.

    Attributes:
        number: of the trial.
        state: ``"complete"``, ``"pruned"``, ``"failed"`` or, by the end of the search, ``"cut short"``.
        values: the objectives' values; empty where it failed or was pruned.
        seconds: it took.
        why: it failed or was cut short; else empty.
    """

    number: int
    state: str
    values: tuple[float, ...]
    seconds: float
    why: str = ""


@dataclass(frozen=True)
class StorageAway:
    """The storage did not answer, for the reason given; it is asked again."""

    why: str


@dataclass(frozen=True)
class FinalStarted:
    """The settings named are trained as a run of their own and scored on test."""

    name: str
