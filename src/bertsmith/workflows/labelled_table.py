"""Read a labelled table for a finished run."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from bertsmith.config import Config
from bertsmith.data.columns import canonical
from bertsmith.data.label_checks import describe_far_numbers, far_numbers
from bertsmith.data.read import read_table
from bertsmith.data.sources import read_raw
from bertsmith.data.table import Table
from bertsmith.errors import DataError, counted
from bertsmith.folders.run import Run

_COLUMNS = ("label_column", "label_text_column", "label_columns")


def read_labelled(source: Any, config: Config, run: Run) -> Table:
    """Read a labelled table with the labels of a run.

    If the settings name no label columns, those that the training was given come before usual names. If the settings
    give no separator of labels, that of the training comes before a detected one.

    Args:
        source: what `bertsmith.data.read.read_table` takes.
        config: how to read it.
        run: the run.

    Raises:
        DataError: if the table cannot be read, or its labels are not those of the run.
    """
    raw, trained = read_raw(source, config), run.info["config"]
    names = {canonical(name) for name in raw.frame.columns}
    settings: dict[str, Any] = {"sql": None}  # it is read
    if not any(getattr(config, name) for name in _COLUMNS):
        for name in _COLUMNS:
            columns = trained.get(name)
            if columns and names.issuperset(map(canonical, [columns] if isinstance(columns, str) else columns)):
                settings[name] = columns
    config = config.model_copy(update=settings)
    separator = trained.get("label_separator")
    if separator and not config.label_separator:
        with suppress(DataError):
            with_separator = config.model_copy(update={"label_separator": separator})
            return read_table(raw, with_separator, known=run.labels, template=run.template)
    return read_table(raw, config, known=run.labels, template=run.template)


def far_number_notes(table: Table) -> list[str]:
    """Return a note about numbers that may be codes for a missing label."""
    is_far = far_numbers(table.targets)
    if not is_far.any():
        return []
    rows = f"{counted(int(is_far.sum()), 'row')} {describe_far_numbers(table.targets, is_far)}"
    return [f"{rows}, used as numbers; if they stand for a missing label, empty these cells"]
