"""Record a run in its folder: inputs, history, seconds of each phase and status."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd

from bertsmith.compute.machine import hardware, versions
from bertsmith.config import Config
from bertsmith.data.table import Table
from bertsmith.data.template import texts_of
from bertsmith.errors import Interrupted
from bertsmith.events import (
    CheckpointsDamaged,
    Evaluated,
    Event,
    Finished,
    Listener,
    Prepared,
    RolledBack,
    RunListener,
    Saved,
)
from bertsmith.folders.atomic import replaced_file, write_json
from bertsmith.folders.layout import step_of
from bertsmith.folders.new_run import check_room, check_same, create
from bertsmith.folders.run import Run, now
from bertsmith.workflows.prepare import Splits, TrainingInputs
from bertsmith.workflows.score import hash_texts


class PhaseTimer:
    """Measures the seconds of each phase of a run, including earlier attempts of a resumed run."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._phase: str | None = None
        self._since = 0.0

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the time in this context as a phase."""
        self._phase, self._since = phase, time.perf_counter()
        try:
            yield
        finally:
            self.seconds()
            self._phase = None

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add seconds by phase."""
        for phase, value in seconds.items():
            self._seconds[phase] = self._seconds.get(phase, 0.0) + value

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each phase so far, including the current one."""
        if self._phase is not None:
            now = time.perf_counter()
            self.add({self._phase: now - self._since})
            self._since = now
        return {phase: round(seconds, 3) for phase, seconds in self._seconds.items()}


def begin_run(
    output: Path,
    config: Config,
    splits: Splits,
    inputs: TrainingInputs,
    prepared: Prepared,
    phases: PhaseTimer,
    *,
    checkpoints: int,
    before_writing: Callable[[], None],
) -> Run:
    """Create the run folder and record settings, data and model.

    Args:
        output: the folder.
        config: the settings.
        splits, inputs, prepared: data, model and recipe.
        phases: the time so far.
        checkpoints: number of checkpoints to keep, 0 if the run writes none.
        before_writing: called before the first write.

    Raises:
        UserError: if the disk is too full or not writable.
    """
    check_room(output, parameters=prepared.parameters, checkpoints=checkpoints)
    before_writing()
    run = create(output)
    description = _describe(prepared, splits.data, inputs)
    run.update(status="running", created=now(), config=config.dump(), **description)
    _write_splits(run, splits, phases)
    run.truncate_history(0)
    return run


def resume_run(
    run: Run,
    config: Config,
    splits: Splits,
    inputs: TrainingInputs,
    prepared: Prepared,
    phases: PhaseTimer,
    observe: RunListener,
) -> Path | None:
    """Check that nothing has changed since a run began, and return its last intact checkpoint.

    Damaged checkpoints are reported and removed. The time spent before is added to ``phases``.

    Raises:
        RunFolderError: naming what has changed.
    """
    phases.add(run.info.get("seconds", {}))
    description = _describe(prepared, splits.data, inputs)
    check_same(run, config=config.dump(), fingerprints=splits.data.fingerprints, model=description["model"])
    checkpoint = run.last_checkpoint()
    step = step_of(checkpoint) if checkpoint else 0
    if damaged := run.remove_checkpoints_after(checkpoint):
        observe(CheckpointsDamaged(step, damaged))
    _write_splits(run, splits, phases)
    run.truncate_history(step)
    return checkpoint


def recording_listener(run: Run, phases: PhaseTimer, observe: RunListener) -> Listener:
    """Return a listener that writes events to the run folder and passes them on.

    The seconds of events include the time before the run was resumed.
    """
    earlier = phases.seconds().get("training", 0.0)

    def listener(event: Event) -> None:
        if isinstance(event, Evaluated | Finished):
            event = dataclasses.replace(event, seconds=event.seconds + earlier)
        if isinstance(event, Evaluated):
            run.log(dataclasses.asdict(event))
        elif isinstance(event, Saved):  # the time so far survives a kill
            run.update(seconds=phases.seconds())
        elif isinstance(event, RolledBack):
            run.truncate_history(event.to_step)
            run.update(went_back=dataclasses.asdict(event))
        observe(event)

    return listener


@contextmanager
def record_failure(run: Run, phases: PhaseTimer | None = None) -> Iterator[None]:
    """Write the status ``interrupted`` or ``failed`` to ``run.json`` if the block raises."""
    try:
        yield
    except BaseException as error:
        if run.layout.run.is_file():
            with suppress(OSError):  # the disk may be what failed
                status = "interrupted" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed"
                run.update(status=status, **({"seconds": phases.seconds()} if phases else {}))
        raise


def _write_splits(run: Run, splits: Splits, phases: PhaseTimer) -> None:
    write_json(run.layout.labels, _class_table(splits))
    with replaced_file(run.layout.splits) as file:
        _split_table(splits).to_parquet(file, index=False)
    run.layout.checkpoints.mkdir(exist_ok=True)
    run.update(status="running", seconds=phases.seconds())


def _describe(prepared: Prepared, data: Table, inputs: TrainingInputs) -> dict[str, Any]:
    checkpoint = inputs.checkpoint
    return {
        "task": data.task,
        "versions": versions(),
        "hardware": hardware(prepared.device),
        "data": {
            "fingerprint": data.fingerprint,
            "sources": [str(source) for source in data.frame["source"].unique()],
            "splits": prepared.split,
            "folds": prepared.folds,
            "left_out": prepared.cleaned.counts,
            "normalised": prepared.cleaned.normalised,
            "findings": prepared.findings.to_dict(),
        },
        "model": {
            "name": checkpoint.name,
            "type": checkpoint.model_type,
            "revision": checkpoint.revision,
            "files": checkpoint.digest,
            "parameters": prepared.parameters,
            "max_length": prepared.max_length,
        },
        "template": data.columns.template.to_dict(),
        "recipe": dataclasses.asdict(prepared.recipe),
    }


def _class_table(splits: Splits) -> dict[str, Any]:
    labels = splits.data.labels
    counts = {name: splits.data.take(rows).counts for name, rows in splits.rows.items()}
    return {
        "classes": [
            {"id": i, "label": number, "label_text": text, "counts": {name: int(n[i]) for name, n in counts.items()}}
            for i, (number, text) in enumerate(zip(labels.numbers, labels.texts, strict=True))
        ]
    }


def _split_table(splits: Splits) -> pd.DataFrame:
    frame = splits.data.frame
    used = frame[["source", "row", "split"]].assign(reason=None, hash=hash_texts(texts_of(frame)))
    unused = splits.cleaned.dropped[["source", "row", "reason"]].assign(split=None, hash=None)
    frame = pd.concat([used.astype(object), unused.astype(object)])[["source", "row", "split", "reason", "hash"]]
    frame = frame.astype({"source": "str", "row": "int64", "split": "str", "reason": "str", "hash": "str"})
    return frame.sort_values(["source", "row"], ignore_index=True)
