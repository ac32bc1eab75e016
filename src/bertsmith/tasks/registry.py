"""The kinds of label by name."""

from __future__ import annotations

from typing import Any

from bertsmith.data.table import SINGLE_LABEL
from bertsmith.errors import ModelError, counted, listing
from bertsmith.tasks.base import Task
from bertsmith.tasks.multi_label import MultiLabel
from bertsmith.tasks.ordinal import Ordinal
from bertsmith.tasks.regression import RegressionTask
from bertsmith.tasks.single_label import SingleLabel

TASKS: dict[str, Task] = {task.name: task for task in (SingleLabel(), MultiLabel(), Ordinal(), RegressionTask())}


def get_task(name: str = SINGLE_LABEL) -> Task:
    """Return the task of a table, a run or an export.

    Raises:
        ModelError: if this version does not know it.
    """
    if name not in TASKS:
        raise ModelError(
            f"the task {name!r} is unknown; this version supports {listing(TASKS)}",
            remedy="Use the version of bertsmith that trained the model, or a newer one.",
        )
    return TASKS[name]


def describe(task: Task, n: int) -> str:
    """Return what a model of a task with n labels is."""
    return task.described.format(n=n, labels=counted(n, "label"))


def task_of_config(config: Any) -> Task:
    """Return the task of a model, from its configuration.

    Args:
        config: of a sequence-classification model of transformers.
    """
    from bertsmith.model.load import saved_settings

    saved = saved_settings(config)
    if isinstance(saved, dict) and isinstance(saved.get("task"), str):
        return get_task(saved["task"])
    by_type = {task.problem_type: task for task in (TASKS["regression"], TASKS["multi-label"])}
    return by_type.get(getattr(config, "problem_type", None) or "", get_task())
