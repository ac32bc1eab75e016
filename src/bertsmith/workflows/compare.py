"""Compare finished runs on the same test rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bertsmith.data.template import stored_groups
from bertsmith.errors import ConfigError, RunFolderError
from bertsmith.evaluation.evaluate import compare_classifiers
from bertsmith.folders.run import Run
from bertsmith.tasks.registry import get_task


def compare_runs(opened: Sequence[Run]) -> list[dict[str, Any]]:
    """Compare runs, each paired with the first; see `bertsmith.compare`."""
    if len(opened) < 2:
        raise ConfigError("a comparison needs at least two runs", remedy="Pass two or more runs.")
    names = [str(run.path) for run in opened]
    if len(set(names)) < len(names):
        raise ConfigError("the same run occurs twice", where=", ".join(names), remedy="Pass each run once.")
    task = get_task(opened[0].task)
    frames = [run.predictions for run in opened]
    # Runs may read different columns: what both read identifies a row.
    texts = [name for name in ("text", "pair") if all(name in frame.columns for frame in frames)]
    frames = [frame.sort_values(["row", *texts], ignore_index=True) for frame in frames]
    first = frames[0]
    for run, frame in zip(opened[1:], frames[1:], strict=True):
        if run.labels != opened[0].labels or run.task != opened[0].task:
            raise RunFolderError(
                "the runs have different labels or tasks, so bertsmith cannot compare them",
                where=f"{names[0]} and {run.path}",
                remedy="Compare runs that were trained on the same labels.",
            )
        columns = [*texts, task.truth_column]
        if len(frame) != len(first) or not (frame[columns].map(repr) == first[columns].map(repr)).all(axis=None):
            common = len(frame[texts].drop_duplicates().merge(first[texts].drop_duplicates()))
            raise RunFolderError(
                "the runs have different test rows, so bertsmith cannot compare them: "
                f"{len(first):,} and {len(frame):,} texts, {common:,} in common",
                where=f"{names[0]} and {run.path}",
                remedy="Train both with the same table, --seed and split settings, or with the same --test table.",
            )
    targets = task.stored_targets(first, opened[0].labels)
    # With its own seed, a run gets the same intervals as in its report.
    seeds = [run.info.get("best_seed", run.info["config"]["seed"]) for run in opened]
    tables = {name: task.stored_scores(frame) for name, frame in zip(names, frames, strict=True)}
    return [
        {"texts": len(targets), **entry}
        for entry in compare_classifiers(task, targets, tables, seeds=seeds, groups=stored_groups(first))
    ]
