"""How to search: how long, on how many workers, for what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertsmith.config import PRIMARY
from bertsmith.errors import ConfigError, listing

OBJECTIVES = {PRIMARY: "maximize", "latency": "minimize"}
"""What a study may aim at, and which way is better; latency is that of a single text, in milliseconds."""


@dataclass(frozen=True)
class Plan:
    """How to search.

    Attributes:
        trials: how many; ``None``: until the time is up.
        minutes: for the search; ``None``: until the trials are done.
        jobs: trials at once on this machine, a process each.
        objectives: one or two of `OBJECTIVES`; the first one chooses the winner.
        storage: URL of a database that machines share; ``None``: a journal in the study folder.
        cv: folds of a cross-validation over the train and validation texts; ``None``: the validation texts.
        final_seeds: seeds that winner and defaults are trained with.
        models: checkpoints to choose among.
        space: what changes the search space: a TOML file, or its content.
    """

    trials: int | None = 20
    minutes: float | None = None
    jobs: int = 1
    objectives: tuple[str, ...] = (PRIMARY,)
    storage: str | None = None
    cv: int | None = None
    final_seeds: int = 1
    models: tuple[str, ...] = ()
    space: Path | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.trials is None and self.minutes is None:
            problems.append("--trials or --minutes says when the search is over: give one of them")
        for name, value, low in (
            ("trials", self.trials, 1),
            ("jobs", self.jobs, 1),
            ("final-seeds", self.final_seeds, 1),
            ("cv", self.cv, 2),
        ):
            if value is not None and value < low:
                problems.append(f"--{name}: at least {low}, not {value}")
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            problems.append(f"--minutes: above 0, not {self.minutes:g}")
        for name in self.objectives:
            if name not in OBJECTIVES:
                problems.append(f"--objective {name}: there is no such objective, only {listing(OBJECTIVES)}")
        if PRIMARY not in self.objectives and set(self.objectives) <= OBJECTIVES.keys():
            problems.append(f"--objective: {PRIMARY} is always one of them")
        if "latency" in self.objectives and self.jobs > 1:
            problems.append("--objective latency: trials beside one another disturb its measurement: leave out --jobs")
        if len(set(self.objectives)) < len(self.objectives):
            problems.append("--objective: each once")
        if len(set(self.models)) < len(self.models):
            problems.append("--models: a checkpoint is there twice")
        if problems:
            raise ConfigError(
                "the search is not set up right:\n" + "\n".join(f"  - {p}" for p in problems),
                remedy="See bertsmith tune --help, or help(bertsmith.tune).",
            )
