"""Progress of training: a live display in a terminal or a notebook, plain lines in a file or pipe."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager

from rich.console import Console, Group
from rich.progress_bar import ProgressBar
from rich.table import Table as Grid
from rich.text import Text

from bertsmith.compute.memory import format_bytes
from bertsmith.data.findings import finding_lines, headline, label_chart
from bertsmith.data.texts import decimals
from bertsmith.errors import counted, number_form
from bertsmith.events import (
    AblationStarted,
    CheckpointChosen,
    CheckpointsDamaged,
    Collapsed,
    Compiling,
    Evaluated,
    Finished,
    FoldDone,
    FoldStarted,
    MemoryExceeded,
    MemoryLimited,
    Prepared,
    RolledBack,
    RunEvent,
    Scoring,
    SeedStarted,
    Started,
    StepDone,
    TrackingFailed,
    TrainingEstimated,
)
from bertsmith.progress.display import Display, NotebookDisplay, display_of

_METRICS = {"macro_f1": "macro-F1", "micro_f1": "micro-F1", "quadratic_kappa": "kappa", "r2": "R²", "mae": "MAE"}
"""Short titles of metrics whose names are not titles."""


class TrainingProgress(AbstractContextManager["TrainingProgress"]):
    """Show the events of a run; a listener and a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.evaluations: list[Evaluated] = []
        self.started: Started | None = None
        self.start = 0.0
        self.last_step = StepDone(0, 0.0, 0.0)
        self.live: Display | None = None
        self.metric = "score"

    def __exit__(self, *details: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def __call__(self, event: RunEvent) -> None:
        """Show an event."""
        if isinstance(event, CheckpointChosen):
            self.console.print(f"checkpoint {event.name}: {event.reason}")
        elif isinstance(event, Prepared):
            self._show_prepared(event)
        elif isinstance(event, TrainingEstimated):
            less = ", less if it stops early" if event.may_stop else ""
            self.console.print(f"training takes about {format_duration(event.seconds)}{less}")
        elif isinstance(event, Started):
            self._stop()  # after a rollback, training starts again without an end
            self.started, self.start = event, time.perf_counter()
            if event.contrastive:
                self.console.print("contrastive training: the model learns whether two texts have the same label")
            self.live = display_of(self.console, self._table)
            if self.live is not None:
                self.live.start()
            else:
                self.console.print(f"training for at most {counted(event.steps, 'step')}")
        elif isinstance(event, StepDone):
            self.last_step = event
        elif isinstance(event, Evaluated):
            self.evaluations.append(event)
            if self.live is None:
                line = ", ".join(f"{c} {v}" for c, v in zip(_columns(event), self._row(event), strict=True))
                self.console.print(line)
        elif isinstance(event, CheckpointsDamaged):
            steps = ", ".join(f"{step:,}" for step in event.damaged)
            named = number_form(len(event.damaged), "step")
            origin = f"the checkpoint of step {event.step:,}" if event.step else "the beginning"
            self.console.print(
                f"skipping damaged or incomplete checkpoints ({named} {steps}): resuming from {origin}", style="yellow"
            )
        elif isinstance(event, MemoryExceeded):
            self.console.print(
                f"out of memory at step {event.step:,}: "
                f"continuing with micro-batches of {event.token_budget:,} tokens; the result stays the same",
                style="yellow",
            )
        elif isinstance(event, MemoryLimited):
            self.console.print(
                f"only {format_bytes(event.free)} of memory is free: "
                f"training with micro-batches of {event.token_budget:,} tokens; the result stays the same",
                style="yellow",
            )
        elif isinstance(event, Compiling):
            self.console.print(f"compiling the layers, because {format_duration(event.seconds)} of training remain")
        elif isinstance(event, RolledBack):
            self.evaluations = [e for e in self.evaluations if e.step <= event.to_step]
            origin = f"the checkpoint of step {event.to_step:,}" if event.to_step else "the beginning"
            self.console.print(
                f"{event.what}\nrepeating from {origin} with fp32 and learning rate {event.learning_rate:g}",
                style="yellow",
            )
        elif isinstance(event, Collapsed):
            self.console.print(
                f"after epoch {event.epoch:g}, the model predicts the same label for every validation text: "
                f"{event.label_text!r}. This is common at the start. If it continues, try a smaller "
                "--learning-rate, or add texts with other labels",
                style="yellow",
            )
        elif isinstance(event, Finished):
            self._stop()
            if not event.step:  # only the head was fitted
                return
            reason = "stopped early" if event.stopped_early else "done"
            best = next(
                (f"epoch {e.epoch:g}" for e in self.evaluations if e.step == event.best_step), f"step {event.best_step}"
            )
            selected = (
                f"best: {best}" if event.selected else f"last: {best} (too few validation texts to select an epoch)"
            )
            score = "" if event.best_score is None else f"; {selected}, validation {self.metric} {event.best_score:.3f}"
            self.console.print(f"{reason} after {format_duration(event.seconds)}{score}")
        elif isinstance(event, FoldStarted):
            self.console.print(f"fold {event.number} of {event.of}: training on the other folds", style="bold")
        elif isinstance(event, FoldDone):
            self.console.print(f"fold {event.number} of {event.of}: {self.metric} {event.score:.3f}")
            if event.number == event.of:
                self.console.print("all folds are done: training on the texts of all folds", style="bold")
        elif isinstance(event, SeedStarted):
            self.evaluations = []
            self.console.print(f"seed {event.seed} ({event.number} of {event.of})", style="bold")
        elif isinstance(event, AblationStarted):
            added = ", ".join(event.added)
            self.console.print(f"training on {event.alone} alone, to measure the effect of {added} …", style="dim")
        elif isinstance(event, TrackingFailed):
            self.console.print(
                f"{event.tracker} failed, and training continues without it: {event.why}", style="yellow"
            )
        elif isinstance(event, Scoring):
            self.console.print(f"scoring {counted(event.texts, 'text')} …", style="dim")
        if isinstance(self.live, NotebookDisplay):
            self.live.refresh()

    def _show_prepared(self, prepared: Prepared) -> None:
        from bertsmith.tasks.registry import get_task

        findings, sizes, recipe = prepared.findings, prepared.split, prepared.recipe
        self.metric = get_task(findings.task).primary_name
        show = self.console.print
        show(headline(findings))
        show(label_chart(findings))
        for finding in findings.findings:
            show(finding_lines(finding))
        folds = f"{prepared.folds}-fold cross-validation"
        validation = folds if prepared.folds else f"{sizes['validation']:,} validation"
        show(f"split: {sizes['train']:,} train, {validation}, {sizes['test']:,} test")
        show(
            f"model: {prepared.model}, {prepared.parameters / 1e6:.0f} M parameters, on {prepared.device}; "
            f"maximum length {prepared.max_length} tokens"
        )
        settings = (
            "epochs",
            "batch_size",
            "learning_rate",
            "head_rate",
            "layer_decay",
            "precision",
            "patience",
            "imbalance",
            "consistency",
            "contrastive",
        )
        for key in settings if recipe.epochs else settings[:1]:
            value = getattr(recipe, key)
            line = Text(f"{key.replace('_', ' ')}: {f'{value:g}' if isinstance(value, float) else value}  ")
            show(line.append(recipe.reasons.get(key, "set by the user"), "dim"))

    def _row(self, event: Evaluated) -> list[str]:
        *others, primary = event.metrics.values()
        return [
            f"{event.epoch:g}",
            f"{event.train_loss:.4f}",
            f"{event.validation_loss:.4f}",
            *map(decimals, others),
            f"{decimals(primary)}{' (best)' if event.best else ''}",
            f"{event.learning_rate:.2e}",
            f"{event.texts_per_second:.0f}",
            self._time_left(event.step),
        ]

    def _time_left(self, step: int) -> str:
        if self.started is None or step <= self.started.step:
            return "–"
        per_step = (time.perf_counter() - self.start) / (step - self.started.step)
        return format_duration(per_step * (self.started.steps - step))

    def _table(self) -> Group:
        grid = Grid(box=None, padding=(0, 1))
        for column in _columns(self.evaluations[-1]) if self.evaluations else ():
            grid.add_column(column, justify="right", header_style="dim")
        for event in self.evaluations:
            grid.add_row(*self._row(event)[:-1], "", style="bold" if event.best else "")
        total = self.started.steps if self.started else 1
        bar = Grid.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=total, completed=self.last_step.step, width=40),
            Text(
                f"step {self.last_step.step:,} of {total:,}, {self.last_step.texts_per_second:.0f} texts/s, "
                f"{self._time_left(self.last_step.step)} left",
                style="dim",
            ),
        )
        return Group(grid, bar)


def _columns(event: Evaluated) -> list[str]:
    """Return the titles of the columns; the primary metric is the last one of the metrics."""
    metrics = [_METRICS.get(name, name) for name in event.metrics]
    return ["epoch", "train loss", "val. loss", *metrics, "learning rate", "texts/s", "time left"]


def format_duration(seconds: float) -> str:
    """Return a duration such as ``3 min 05 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
