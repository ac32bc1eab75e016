"""The listener that sends the events of a run or a study to an experiment tracker. It never sends a text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bertsmith.config import Config, EvalConfig, ModelConfig, TrainConfig
from bertsmith.errors import ConfigError, first_line
from bertsmith.events import (
    Evaluated,
    FinalStarted,
    FoldDone,
    Prepared,
    RunFinished,
    SeedStarted,
    TrackingFailed,
    TrialEnded,
    TrialScored,
    TrialStarted,
)
from bertsmith.folders.run import Run
from bertsmith.report.report import report_page
from bertsmith.tracking.trackers import Scalar, TensorBoard, Tracker, find_tracker

FINALS = {"the best settings": "winner", "the default settings": "defaults"}
"""Names of the final runs of a study in a tracker."""


class Tracking(AbstractContextManager["Tracking"]):
    """Send the events of a run or a study to a tracker, and pass them on; a listener and a context manager.

    Each run, seed, trial and final run is one run in the tracker. An error of the tracker does not end training.

    Args:
        name: the tracker, a key of `TRACKERS`; ``None`` to pass events on only.
        folder: the folder of the run or study, whose name the runs in the tracker get; a URL if it is a str.
        config: the settings.
        observe: called with each event.

    Raises:
        ConfigError: if the tracker is not usable.
    """

    def __init__(self, name: str | None, folder: Path | str, config: Config, observe: Callable[[Any], None]) -> None:
        self.kind = None if name is None else find_tracker(name)
        if self.kind is TensorBoard and isinstance(folder, str):
            raise ConfigError(
                f"--track {name} needs a run folder", where=folder, remedy="Pass a folder with -o, or another tracker."
            )
        self.name, self.folder, self.observe = name, Path(folder), observe
        self.settings = _scalars(config)
        self.part = self.seed = ""
        self.trials: dict[int, tuple[dict[str, Any], list[TrialScored]]] = {}
        self.tracker: Tracker | None = None

    def __exit__(self, *details: object) -> None:
        self._try(lambda: self._close(failed=True))  # finished runs are closed already

    def __call__(self, event: Any) -> None:
        """Pass on an event, and send it to the tracker."""
        self.observe(event)
        self._try(lambda: self._track(event))

    def _try(self, action: Callable[[], None]) -> None:
        if self.kind is None:
            return
        try:
            with redirect_stdout(sys.stderr):  # stdout is for results, and trackers print messages
                action()
        except Exception as error:  # an error of a tracker does not end training
            self.kind = None
            self.observe(TrackingFailed(str(self.name), f"{type(error).__name__}: {first_line(error)}"))

    def _track(self, event: Any) -> None:
        if isinstance(event, SeedStarted):
            self.seed = f"seed-{event.seed}"
        elif isinstance(event, FinalStarted):
            self.part = FINALS[event.name]
        elif isinstance(event, Prepared):
            self._open(self.part, self.seed, settings=_prepared(event))
        elif isinstance(event, Evaluated) and self.tracker is not None:
            values = {"epoch": event.epoch, "train/loss": event.train_loss, "validation/loss": event.validation_loss}
            values |= {f"validation/{name}": value for name, value in event.metrics.items()}
            values |= {"train/learning_rate": event.learning_rate, "train/texts_per_second": event.texts_per_second}
            self.tracker.log(values, event.step)
        elif isinstance(event, FoldDone) and self.tracker is not None:
            self.tracker.log({"fold/score": event.score}, event.number)
        elif isinstance(event, RunFinished):
            self._finish_run(Run(event.path))
        elif isinstance(event, TrialStarted):
            self.trials[event.number] = (event.settings, [])
        elif isinstance(event, TrialScored) and event.number in self.trials:
            self.trials[event.number][1].append(event)
        elif isinstance(event, TrialEnded) and event.number in self.trials:
            self._finish_trial(event)

    def _open(self, *parts: str, settings: Mapping[str, Scalar] | None = None) -> Tracker:
        assert self.kind is not None
        self._close(failed=True)
        names = [part for part in parts if part]
        name = "-".join([self.folder.resolve().name, *names])
        folder = self.folder.joinpath("tensorboard", *names)
        self.tracker = self.kind(name, folder, {**self.settings, **(settings or {})})
        return self.tracker

    def _close(self, *, failed: bool) -> None:
        tracker, self.tracker = self.tracker, None
        if tracker is not None:
            tracker.finish({}, [], failed=failed)

    def _finish_run(self, run: Run) -> None:
        tracker = self.tracker or self._open(self.part)  # of several seeds, the best one is a new run
        self.tracker, self.seed = None, ""
        with TemporaryDirectory() as folder:
            report, card = Path(folder) / "report.html", Path(folder) / "model_card.md"
            report.write_text(report_page(run, quotes=False), encoding="utf-8")
            card.write_text((run.layout.model / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
            tracker.finish(final_values(run), [report, card], failed=False)

    def _finish_trial(self, event: TrialEnded) -> None:
        """Send a trial when it ends: several trials may run at once, and some trackers allow one run at a time."""
        settings, scores = self.trials.pop(event.number)
        chosen = {name: value for name, value in settings.items() if isinstance(value, str | int | float)}
        tracker = self._open(f"trial-{event.number}", settings={**chosen, "state": event.state})
        self.tracker = None
        for number, scored in enumerate(scores, start=1):
            tracker.log({"epoch": scored.at, "validation/score": scored.value}, number)
        values = dict(zip(("trial/score", "trial/latency"), event.values, strict=False))
        tracker.finish({**values, "trial/seconds": event.seconds}, [], failed=event.state == "failed")


def final_values(run: Run) -> dict[str, float]:
    """Return the test metrics of a run with their intervals, such as ``test/macro_f1`` and ``test/macro_f1_low``.

    Without a test split, the metrics of the cross-validation have the prefix ``cross_validation``.
    """
    metrics = run.metrics
    test = metrics["splits"]["test"]
    prefix = "cross_validation" if "by" in test else "test"
    values = {}
    for name, entry in test["metrics"].items():
        values[f"{prefix}/{name}"] = entry["value"]
        for end, bound in zip(("low", "high"), entry.get("interval") or (), strict=False):
            values[f"{prefix}/{name}_{end}"] = bound
    for name, entry in (metrics.get("seeds") or {"test": {}})["test"].items():
        values |= {f"{prefix}/{name}_mean": entry["mean"], f"{prefix}/{name}_deviation": entry["standard_deviation"]}
    return {name: float(value) for name, value in values.items() if value is not None}


def _scalars(config: Config) -> dict[str, Scalar]:
    """Return the settings of model, training and evaluation; settings of the table may contain private paths."""
    names = [name for step in (ModelConfig, TrainConfig, EvalConfig) for name in step.model_fields]
    values = {name: getattr(config, name) for name in names}
    return {name: value for name, value in values.items() if isinstance(value, str | int | float)}


def _prepared(event: Prepared) -> dict[str, Scalar]:
    recipe = {name: value for name, value in asdict(event.recipe).items() if name != "reasons"}
    texts = {f"{name}_texts": n for name, n in event.split.items()}
    about = {"model": event.model, "parameters": event.parameters, "device": event.device}
    return {**about, "max_length": event.max_length, "task": event.findings.task, **texts, **recipe}
