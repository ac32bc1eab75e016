"""Progress of a study: a live table of trials in a terminal or a notebook, one line per trial in a file or pipe."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.progress_bar import ProgressBar
from rich.table import Table as Grid
from rich.text import Text

from bertsmith.errors import counted, listing, number_form
from bertsmith.events import (
    CheckpointChosen,
    FinalStarted,
    Prepared,
    StorageUnavailable,
    StudyEvent,
    StudyStarted,
    TrackingFailed,
    TrialEnded,
    TrialScored,
    TrialStarted,
)
from bertsmith.progress.display import Display, NotebookDisplay, display_of
from bertsmith.progress.training import TrainingProgress, format_duration

N_BEST = 5
"""Best trials in the table."""
FEW_VALIDATION_TEXTS = 200
"""Validation texts below which scores vary by several hundredths by chance."""


@dataclass
class _Trial:
    settings: dict[str, Any]
    best: float = float("-inf")
    ended: TrialEnded | None = None
    start: float = field(default_factory=time.perf_counter)

    @property
    def is_done(self) -> bool:
        """Whether it counts towards the number of trials."""
        return self.ended is not None and self.ended.state != "cut short"

    @property
    def score(self) -> float:
        """The best score so far; after the end the final score, which includes the gain of a decision rule."""
        if self.ended is not None and self.ended.values:
            return self.ended.values[0]
        return self.best

    @property
    def objectives(self) -> str:
        latency = [f"{value:.1f} ms per text" for value in self.ended.values[1:]] if self.ended is not None else []
        return ", ".join([f"{self.score:.3f}", *latency]) if self.score > float("-inf") else "–"


class TuningProgress(AbstractContextManager["TuningProgress"]):
    """Show the events of a study; a listener and a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.study: StudyStarted | None = None
        self.trials: dict[int, _Trial] = {}
        self.live: Display | None = None
        self.start = 0.0
        self.final: TrainingProgress | None = None
        self.is_unavailable = False

    def __exit__(self, *details: object) -> None:
        self._stop()
        if self.final is not None:
            self.final.__exit__(*details)

    def _stop(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def __call__(self, event: StudyEvent) -> None:
        """Show an event of the study or of its final runs."""
        was_unavailable, self.is_unavailable = self.is_unavailable, isinstance(event, StorageUnavailable)
        if was_unavailable and not self.is_unavailable:
            self.console.print("the storage is available again")
        if isinstance(event, StudyStarted):
            self._show_study(event)
        elif isinstance(event, TrialStarted):
            self.trials[event.number] = _Trial(event.settings)
        elif isinstance(event, TrialScored):
            trial = self.trials[event.number]
            trial.best = max(trial.best, event.value)
        elif isinstance(event, TrialEnded):
            self.trials[event.number].ended = event
            if self.live is None:
                self.console.print(self._line(event.number))
            elif event.why:
                self.console.print(f"trial {event.number} {event.state}: {event.why}", style="yellow")
        elif isinstance(event, StorageUnavailable):
            if not was_unavailable:
                self.console.print(
                    f"the storage is unavailable, retrying for ten minutes ({event.why})", style="yellow"
                )
        elif isinstance(event, FinalStarted):
            self._stop()
            self.console.print(f"final training with {event.name}", style="bold")
            self.final = TrainingProgress(self.console)
        elif isinstance(event, CheckpointChosen):
            self.console.print(f"checkpoint {event.name}: {event.reason}")
        elif isinstance(event, TrackingFailed):
            TrainingProgress(self.console)(event)
        elif self.final is not None and not isinstance(event, Prepared):
            self.final(event)
        if isinstance(self.live, NotebookDisplay):
            self.live.refresh()

    def _show_study(self, event: StudyStarted) -> None:
        self.study, self.start = event, time.perf_counter()
        train, validation, test, left_out = event.texts
        dropped = f"; {counted(left_out, 'row')} dropped" if left_out else ""
        if event.folds:
            self.console.print(
                f"split: {train + validation:,} texts for {event.folds}-fold cross-validation, {test:,} test for the "
                f"final comparison{dropped}"
            )
        else:
            self._show_validation(event, dropped)
        for name, dimension in event.space.items():
            self.console.print(f"  {name}: {dimension}")
        if event.shared is not None:
            name, others = event.shared
            new = "" if event.done else ", without a finished trial"
            more = f"; other studies in the database: {others}" if others else ""
            self.console.print(f"study {name} in the database{new}{more}")
        if event.trials is not None and event.done >= event.trials:
            self.console.print(f"the search is complete: {counted(event.done, 'trial is', 'trials are')} done")
        elif event.done:
            of = f"of {event.trials} trials " if event.trials is not None and event.trials > event.done else ""
            best = f", the best with {event.best:.3f}" if event.best is not None else ""
            done = counted(event.done, f"{of or 'trial '}is", f"{of or 'trials '}are")
            self.console.print(f"resuming: {done} done{best}")
        self.live = display_of(self.console, self._table)
        if self.live is not None:
            self.live.start()

    def _show_validation(self, event: StudyStarted, dropped: str) -> None:
        """Show the sizes of the split, and what its validation texts cannot show."""
        train, validation, test, _ = event.texts
        self.console.print(
            f"split: {train:,} train, {validation:,} validation, {test:,} test for the final comparison{dropped}"
        )
        if validation < FEW_VALIDATION_TEXTS:
            self.console.print(
                f"with {counted(validation, 'validation text')}, the best trial depends on chance: "
                "pass --cv 5 to score trials by cross-validation",
                style="yellow",
            )
        if n := len(event.unseen):
            self.console.print(
                f"no validation text has {number_form(n, 'the label', 'any of the labels')} "
                f"{listing(event.unseen)}: trials gain nothing by predicting {number_form(n, 'it', 'them')}",
                style="yellow",
            )

    def _line(self, number: int) -> str:
        trial = self.trials[number]
        ended = trial.ended
        assert ended is not None
        others = [t.score for n, t in self.trials.items() if n != number and t.ended and t.ended.state == "complete"]
        if self.study is not None and self.study.best is not None:
            others.append(self.study.best)
        best = ended.state == "complete" and trial.score > max(others, default=float("-inf"))
        score = ended.why or f"score {trial.objectives}{' (best so far)' if best else ''}"
        left = self._time_left()
        return (
            f"trial {number} {ended.state}: {score}, {format_duration(ended.seconds)}; {_settings(trial.settings)}"
            f"{f'; {left} left for the search' if left else ''}"
        )

    def _time_left(self) -> str:
        done = sum(t.is_done for t in self.trials.values())
        if self.study is None or self.study.trials is None or not done:
            return ""
        missing = self.study.trials - self.study.done - done
        return format_duration(missing * (time.perf_counter() - self.start) / done) if missing > 0 else ""

    def _table(self) -> Group:
        ended = {n: t for n, t in self.trials.items() if t.ended is not None and t.ended.state == "complete"}
        grid = Grid(box=None, padding=(0, 1))
        for column in ("trial", "score", "time", "settings"):
            grid.add_column(column, justify="left" if column == "settings" else "right", header_style="dim")
        for number, trial in sorted(ended.items(), key=lambda item: -item[1].score)[:N_BEST]:
            grid.add_row(*self._row(number, trial))
        for number, trial in self.trials.items():
            if trial.ended is None:
                grid.add_row(*self._row(number, trial), style="dim")
        parts: list[Any] = [grid]
        if self.study is not None and self.study.trials is not None:
            done = self.study.done + sum(t.is_done for t in self.trials.values())
            bar = Grid.grid(padding=(0, 1))
            left = self._time_left()
            status = f"{done} of {counted(self.study.trials, 'trial')}" + (
                f", {left} left for the search" if left else ""
            )
            bar.add_row(ProgressBar(total=self.study.trials, completed=done, width=40), Text(status, style="dim"))
            parts.append(bar)
        return Group(*parts)

    def _row(self, number: int, trial: _Trial) -> tuple[str, ...]:
        seconds = trial.ended.seconds if trial.ended is not None else time.perf_counter() - trial.start
        return (
            str(number),
            trial.objectives,
            format_duration(seconds),
            _settings(trial.settings),
        )


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(f"{n} {f'{v:.3g}' if isinstance(v, float) else v}" for n, v in settings.items())
