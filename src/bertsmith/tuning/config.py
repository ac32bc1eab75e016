"""Configuration of a study: number of trials, time limit, workers, objectives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from bertsmith.config import PRIMARY
from bertsmith.errors import ConfigError, listing, quoted

LATENCY = "latency"
OBJECTIVES = {PRIMARY: "maximize", "quadratic_kappa": "maximize", "r2": "maximize", LATENCY: "minimize"}
"""Objectives and their directions: the primary metrics of the tasks, and the milliseconds for a single text."""


@dataclass(frozen=True)
class StudyConfig:
    """Configuration of a study; see `bertsmith.tune`."""

    trials: int | None = 20
    minutes: float | None = None
    jobs: int = 1
    objectives: tuple[str, ...] = ()
    storage: str | None = None
    cv: int | None = None
    final_seeds: int = 1
    models: tuple[str, ...] = ()
    space: Path | Mapping[str, Any] | None = None

    def for_metric(self, primary: str) -> StudyConfig:
        """Return the configuration with the primary metric of a task as the first objective.

        Raises:
            ConfigError: if an objective is the primary metric of another task.
        """
        if others := [name for name in self.objectives if name not in (primary, LATENCY)]:
            raise ConfigError(
                f"--objective {others[0]} is not the primary metric of this task, which is {primary}",
                remedy=f"Pass --objective {primary}, or leave it out.",
            )
        return replace(self, objectives=(primary, LATENCY) if LATENCY in self.objectives else (primary,))

    def __post_init__(self) -> None:
        problems = []
        if self.trials is None and self.minutes is None:
            problems.append("trials, minutes: set one of them, so that the search ends")
        for name, minimum in (("trials", 1), ("jobs", 1), ("final_seeds", 1), ("cv", 2)):
            value = getattr(self, name)
            if value is None and name in ("trials", "cv"):
                continue
            if not isinstance(value, Integral) or value < minimum:
                hint = "; leave it out to score on the validation texts" if name == "cv" else ""
                problems.append(f"{name}: must be an integer of at least {minimum}, not {quoted(value)}{hint}")
        minutes: Any = self.minutes
        if minutes is not None and not (isinstance(minutes, Real) and 0 < float(minutes) < float("inf")):
            problems.append(f"minutes: must be a finite number greater than 0, not {quoted(minutes)}")
        for name in self.objectives:
            if name not in OBJECTIVES:
                problems.append(f"objective: unknown objective {name!r}; choose from {listing(OBJECTIVES)}")
        if self.objectives == (LATENCY,):
            problems.append("objective: must include a metric, such as macro_f1")
        if LATENCY in self.objectives and self.jobs > 1:
            problems.append("jobs: must be 1 with the objective latency, because parallel trials distort latencies")
        for name, values in (("objective", self.objectives), ("models", self.models)):
            if len(set(values)) < len(values):
                problems.append(f"{name}: each value must be unique")
        if problems:
            raise ConfigError(
                "the settings of the search are invalid:\n" + "\n".join(f"  - {problem}" for problem in problems),
                remedy="See bertsmith tune --help, or help(bertsmith.tune).",
            )
