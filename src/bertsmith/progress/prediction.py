"""Progress of predictions: a bar in a terminal or a notebook, a line a minute in a file or pipe."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bertsmith.events import InputOpened, ModelOpened, PredictionEvent, RowsResumed
from bertsmith.progress.display import NotebookConsole, NotebookDisplay

LOG_SECONDS = 60.0
"""Seconds between two lines of a log."""
SKIPPED_SHOWN = 5
"""Skipped rows that are shown one by one."""


class PredictionProgress(AbstractContextManager["PredictionProgress"]):
    """Prints notes about the input, and the progress of predictions; a context manager.

    Args:
        console: to print on.
        counts: whether to show the number of rows.
    """

    def __init__(self, console: Console, *, counts: bool = True) -> None:
        self.console, self.counts = console, counts
        self.n_rows: int | None = None
        self.done = self.resumed = 0
        self.started = self.printed = time.monotonic()
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("rows, {task.fields[rate]}"), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, transient=True, disable=not counts or not console.is_terminal)
        self.task = self.bar.add_task("", total=None, rate="")
        in_notebook = counts and isinstance(console, NotebookConsole)
        self.notebook = NotebookDisplay(self.bar.get_renderable) if in_notebook else None

    def __exit__(self, *details: object) -> None:
        self.bar.stop()
        if self.notebook is not None:
            self.notebook.stop()

    def __call__(self, event: PredictionEvent) -> None:
        """Show an event."""
        if isinstance(event, InputOpened):
            self._show_input(event)
        elif isinstance(event, ModelOpened):
            if event.export:
                self.console.print(
                    f"using the {event.export} export of the run (--runtime torch uses the model itself)",
                    style="dim",
                )
            self.started = self.printed = time.monotonic()
            self.bar.start()
            if self.notebook is not None:
                self.notebook.start()
        elif isinstance(event, RowsResumed):
            if not event.rows:
                self.console.print("bertsmith finds no saved predictions, and begins with the first row", style="dim")
            self.done = self.resumed = event.rows
            self.bar.update(self.task, completed=event.rows)
        elif self.counts:
            self._advance(event.rows)

    def _show_input(self, event: InputOpened) -> None:
        self.n_rows = event.n_rows
        self.bar.update(self.task, total=event.n_rows)
        for note in event.notes:
            self.console.print(f"{note.severity}: {note.message}")
        if n := len(event.skipped):
            some = "; ".join(f"{place}: {why}" for place, why in event.skipped[:SKIPPED_SHOWN])
            more = f"; and {n - SKIPPED_SHOWN:,} more" if n > SKIPPED_SHOWN else ""
            self.console.print(f"warning: rows skipped because they cannot be read: {n:,}")
            self.console.print(f"  {some}{more}")

    def _advance(self, n: int) -> None:
        self.done += n
        now = time.monotonic()
        rate = (self.done - self.resumed) / max(now - self.started, 1e-9)
        self.bar.update(self.task, advance=n, rate=f"{rate:,.0f} rows/s")
        if self.notebook is not None:
            self.notebook.refresh()
            return
        if self.console.is_terminal or now - self.printed < LOG_SECONDS:
            return
        self.printed = now
        total, left = "", ""
        if self.n_rows is not None:
            total, left = f" of {self.n_rows:,}", f", {(self.n_rows - self.done) / max(rate, 1e-9) / 60:,.0f} min left"
        self.console.print(f"{self.done:,}{total} rows, {rate:,.0f} rows/s{left}")
