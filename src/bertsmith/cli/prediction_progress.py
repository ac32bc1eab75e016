"""How far predictions are: a bar on a terminal, a line a minute in a log."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

EVERY = 60.0
"""Seconds between two lines."""


class PredictionProgress:
    """Is told how many rows were done; a context manager.

    Args:
        console: to draw on.
        n_rows: how many there are; none, where that is not known.
    """

    def __init__(self, console: Console, n_rows: int | None) -> None:
        self.console, self.n_rows = console, n_rows
        self.done = self.skipped = 0
        self.began = self.told = time.monotonic()
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("rows, {task.fields[rate]}"), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.bar.add_task("", total=n_rows, rate="")

    def __enter__(self) -> PredictionProgress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def skip(self, n: int) -> None:
        """Count rows that were done before."""
        self.done = self.skipped = n
        self.bar.update(self.task, completed=n)

    def __call__(self, n: int) -> None:
        """Count rows that are done now."""
        self.done += n
        now = time.monotonic()
        rate = (self.done - self.skipped) / max(now - self.began, 1e-9)
        self.bar.update(self.task, advance=n, rate=f"{rate:,.0f} rows/s")
        if self.console.is_terminal or now - self.told < EVERY:
            return
        self.told = now
        of, left = "", ""
        if self.n_rows is not None:
            of, left = f" of {self.n_rows:,}", f", {(self.n_rows - self.done) / max(rate, 1e-9) / 60:,.0f} min left"
        self.console.print(f"{self.done:,}{of} rows, {rate:,.0f} rows/s{left}", markup=False)
