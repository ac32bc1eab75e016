"""What a study looks like in a terminal: the best trials and the running ones, live; in a log: a line a trial."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table as Grid
from rich.text import Text

from bertsmith.cli.progress import TrainingProgress, clock
from bertsmith.errors import listing
from bertsmith.events import (
    FinalStarted,
    Prepared,
    StorageUnavailable,
    StudyEvent,
    StudyStarted,
    TrialEnded,
    TrialScored,
    TrialStarted,
)

BEST = 5
"""Trials in the table of the best."""
FEW = 200
"""Validation texts below which scores move by several hundredths by chance."""
_BARS = "▁▂▃▄▅▆▇█"


@dataclass
class _Trial:
    settings: dict[str, Any]
    curve: list[float] = field(default_factory=list)
    ended: TrialEnded | None = None
    began: float = field(default_factory=time.perf_counter)

    @property
    def score(self) -> float:
        """The best so far; at the end what the trial counts by, which a decision rule may have raised."""
        if self.ended is not None and self.ended.values:
            return self.ended.values[0]
        return max(self.curve, default=float("-inf"))

    @property
    def said(self) -> str:
        more = [f"{value:.1f} ms a text" for value in self.ended.values[1:]] if self.ended is not None else []
        return ", ".join([f"macro-F1 {self.score:.3f}", *more]) if self.score > float("-inf") else "–"


class TuningProgress:
    """Draws what it is told of; used as an observer of a study and as a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.study: StudyStarted | None = None
        self.trials: dict[int, _Trial] = {}
        self.live: Live | None = None
        self.began = 0.0
        self.final: TrainingProgress | None = None
        self.away = False

    def __enter__(self) -> TuningProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        if self.final is not None:
            self.final.__exit__(kind, error, trace)

    def _stop(self) -> None:
        if self.live is not None:
            self.live.update(self._table(), refresh=True)
            self.live.stop()
            self.live = None

    def __call__(self, event: StudyEvent) -> None:
        """Draw an event of a study, or of the runs at its end."""
        told, self.away = self.away, isinstance(event, StorageUnavailable)
        if told and not self.away:
            self.console.print("the storage answers again")
        if isinstance(event, StudyStarted):
            self._started(event)
        elif isinstance(event, TrialStarted):
            self.trials[event.number] = _Trial(event.settings)
        elif isinstance(event, TrialScored):
            self.trials[event.number].curve.append(event.value)
        elif isinstance(event, TrialEnded):
            self.trials[event.number].ended = event
            if self.live is None:
                self.console.print(self._line(event.number), markup=False)
            elif event.why:
                self.console.print(Text(f"trial {event.number} {event.state}: {event.why}"), style="yellow")
        elif isinstance(event, StorageUnavailable):
            if not told:
                self.console.print(
                    Text(f"the storage does not answer, and is asked again for ten minutes ({event.why})"),
                    style="yellow",
                )
        elif isinstance(event, FinalStarted):
            self._stop()
            self.console.print(f"[bold]training {event.name}, for the test[/]")
            self.final = TrainingProgress(self.console)
        elif self.final is not None and not isinstance(event, Prepared):  # what the table is like was seen
            self.final(event)

    def _started(self, event: StudyStarted) -> None:
        self.study, self.began = event, time.perf_counter()
        train, validation, test, left_out = event.texts
        self.console.print(
            f"{train:,} texts to train and {validation:,} to validate ({test:,} for the test at the end"
            f"{f', {left_out:,} left out' if left_out else ''})"
        )
        if validation < FEW:
            self.console.print(
                f"[yellow]{validation:,} validation texts are few:[/] which trial is best is a matter of luck, too; "
                "--cv 5 scores by cross-validation"
            )
        if event.unseen:
            self.console.print(
                Text(
                    f"no text to validate on has the label {listing(event.unseen)}: trials gain nothing by finding it"
                ),
                style="yellow",
            )
        for name, dimension in event.space.items():
            self.console.print(f"  {name}: {dimension}", markup=False)
        if event.shared is not None:
            name, others = event.shared
            new = "" if event.done else ", new or without a finished trial yet"
            more = f"; {others} of other data, flags or ranges there" if others else ""
            self.console.print(f"study {name} of the database{new}{more}", markup=False)
        if event.trials is not None and event.done >= event.trials:
            self.console.print(f"{event.done} trials are done and {event.trials} wanted: nothing is left to search")
        elif event.done:
            of = f" of {event.trials}" if event.trials is not None and event.trials > event.done else ""
            best = f", the best with {event.best:.3f}" if event.best is not None else ""
            are = "trial is" if event.done == 1 and not of else "trials are"
            self.console.print(f"going on: {event.done}{of} {are} done{best}")
        if self.console.is_terminal:
            self.live = Live(get_renderable=self._table, console=self.console, refresh_per_second=4)
            self.live.start()

    def _line(self, number: int) -> str:
        trial = self.trials[number]
        ended = trial.ended
        assert ended is not None
        before = [t.score for n, t in self.trials.items() if n != number and t.ended and t.ended.state == "complete"]
        if self.study is not None and self.study.best is not None:
            before.append(self.study.best)
        best = ended.state == "complete" and trial.score > max(before, default=float("-inf"))
        score = ended.why or f"{trial.said}{' (best so far)' if best else ''}"
        left = self._left()
        return (
            f"trial {number} {ended.state}: {score}, {clock(ended.seconds)}; {_settings(trial.settings)}"
            f"{f'; {left} left for the search' if left else ''}"
        )

    def _left(self) -> str:
        ended = [t for t in self.trials.values() if t.ended is not None]
        if self.study is None or self.study.trials is None or not ended:
            return ""
        missing = self.study.trials - self.study.done - len(ended)
        return clock(max(missing, 0) * (time.perf_counter() - self.began) / len(ended)) if missing > 0 else ""

    def _table(self) -> Group:
        ended = {n: t for n, t in self.trials.items() if t.ended is not None and t.ended.state == "complete"}
        grid = Grid(box=None, padding=(0, 1))
        for column in ("trial", "macro-F1", "", "time", "settings"):
            grid.add_column(column, justify="left" if column in ("", "settings") else "right", header_style="dim")
        for number, trial in sorted(ended.items(), key=lambda item: -item[1].score)[:BEST]:
            grid.add_row(*self._row(number, trial))
        for number, trial in self.trials.items():
            if trial.ended is None:
                grid.add_row(*self._row(number, trial), style="dim")
        parts: list[Any] = [grid]
        if self.study is not None and self.study.trials is not None:
            done = self.study.done + sum(t.ended is not None for t in self.trials.values())
            bar = Grid.grid(padding=(0, 1))
            left = self._left()
            said = f"{done} of {self.study.trials} trials{f', {left} left for the search' if left else ''}"
            bar.add_row(ProgressBar(total=self.study.trials, completed=done, width=40), Text(said, style="dim"))
            parts.append(bar)
        return Group(*parts)

    def _row(self, number: int, trial: _Trial) -> tuple[str, ...]:
        seconds = trial.ended.seconds if trial.ended is not None else time.perf_counter() - trial.began
        return (
            str(number),
            trial.said.removeprefix("macro-F1 "),
            _spark(trial.curve),
            clock(seconds),
            _settings(trial.settings),
        )


def _spark(curve: list[float]) -> str:
    """Return a curve in characters, from 0 to 1."""
    return "".join(_BARS[min(int(value * len(_BARS)), len(_BARS) - 1)] for value in curve[-16:])


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(f"{n} {f'{v:.3g}' if isinstance(v, float) else v}" for n, v in settings.items())
