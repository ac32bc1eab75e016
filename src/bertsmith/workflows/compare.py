"""Compare finished runs on the same test rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from bertsmith.data.table import ORDINAL
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
    first, labels = frames[0], opened[0].labels
    rows, tables = _rows(first, texts, task.truth_column), {names[0]: task.stored_scores(first)}
    for run, frame in zip(opened[1:], frames[1:], strict=True):
        # Label numbers may differ, and so may the order of labels, unless it has a meaning.
        same = run.labels.texts == labels.texts or (
            task.name != ORDINAL and sorted(run.labels.texts) == sorted(labels.texts)
        )
        if not same or run.task != task.name:
            raise RunFolderError(
                "the runs have different labels or tasks, so bertsmith cannot compare them",
                where=f"{names[0]} and {run.path}",
                remedy="Compare runs that were trained on the same labels.",
            )
        if _rows(frame, texts, task.truth_column) != rows:
            common = len(pd.merge(frame[texts].drop_duplicates(), first[texts].drop_duplicates()))
            raise RunFolderError(
                "the runs have different test rows, so bertsmith cannot compare them: "
                f"{len(first):,} and {len(frame):,} texts, {common:,} in common",
                where=f"{names[0]} and {run.path}",
                remedy="Train both with the same table, --seed and split settings, or with the same --test table.",
            )
        tables[str(run.path)] = task.stored_scores(frame)[:, [run.labels.label2id[text] for text in labels.texts]]
    targets = task.stored_targets(first, labels)
    # With its own seed, a run gets the same intervals as in its report.
    seeds = [run.info.get("best_seed", run.info["config"]["seed"]) for run in opened]
    groups = next((found for found in map(stored_groups, frames) if found is not None), None)
    return [
        {"texts": len(targets), **entry}
        for entry in compare_classifiers(task, targets, tables, seeds=seeds, groups=groups)
    ]


def _rows(frame: pd.DataFrame, columns: Sequence[str], truth: str) -> list[tuple[str, ...]]:
    """Return columns and the label of every row, several label texts in alphabetical order."""
    labels = [value if isinstance(value, str | float) else sorted(value) for value in frame[truth]]
    return list(zip(*(map(repr, frame[name]) for name in columns), map(repr, labels), strict=True))
