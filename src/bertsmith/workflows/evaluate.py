"""Read a labelled table for a finished run, and score the run on the table."""

from __future__ import annotations

import dataclasses
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertsmith.bootstrap import warn_of_few_groups
from bertsmith.config import Config
from bertsmith.data.clean import clean
from bertsmith.data.columns import canonical, check_one_source
from bertsmith.data.label_checks import describe_far_numbers, far_numbers
from bertsmith.data.read import read_table
from bertsmith.data.sources import read_raw
from bertsmith.data.table import Table
from bertsmith.data.template import flat, texts_of
from bertsmith.errors import ConfigError, DataError, counted, listing, number_form, quoted
from bertsmith.evaluation.evaluate import evaluate
from bertsmith.folders import atomic
from bertsmith.folders import run as runs
from bertsmith.inference.classifier import Classifier
from bertsmith.measuring.design import INCLUSION, RANDOM, read_design
from bertsmith.workflows.score import hash_texts, predictions_frame, write_predictions

_LABEL_COLUMNS = ("label_column", "label_text_column", "label_columns")
_MAX_NAME_BYTES = 200
"""Longest name of an evaluation; file systems take 255 bytes, and the name of a temporary folder is longer."""


def read_labelled(source: Any, config: Config, run: runs.Run) -> Table:
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
    check_one_source(source, config)
    raw, trained = read_raw(source, config), run.info["config"]
    names = {canonical(name) for name in raw.frame.columns}
    settings: dict[str, Any] = {"sql": None}  # it is read
    if not any(getattr(config, name) for name in _LABEL_COLUMNS):
        for name in _LABEL_COLUMNS:
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


def _evaluation_folder(
    run: runs.Run, name: str | None, table: str, description: dict[str, Any], *, overwrite: bool
) -> Path:
    """Return the folder of an evaluation, named after the table if ``name`` is ``None``."""
    if name is not None and not (
        isinstance(name, str) and re.fullmatch(r"\w([\w.-]*\w)?", name) and len(name.encode()) <= _MAX_NAME_BYTES
    ):
        raise ConfigError(
            f"--name {quoted(name)} cannot be the name of a folder",
            remedy=f"Use at most {_MAX_NAME_BYTES} letters, digits and underscores, with - or . between them.",
        )
    stem = re.sub(r"[^\w.-]+", "-", re.sub(r"(\.\w+)+$", "", Path(table).name))
    stem = stem.encode()[:_MAX_NAME_BYTES].decode(errors="ignore").strip(".-")
    folder_name = name or stem or "table"
    folder = run.layout.evaluations / folder_name
    try:
        saved = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        before = {key: saved[key] for key in description}
    except (OSError, ValueError, KeyError, TypeError):
        before = {} if folder.exists() else description
    if before == description or overwrite:
        return folder
    which = "an evaluation of an earlier version of this table"
    if not before:
        which = "other files, or an evaluation that cannot be read"
    elif before["source"] != description["source"]:
        which = f"an evaluation of another table, {before['source']!r}"
    raise ConfigError(
        f"the folder contains {which}",
        where=str(folder),
        remedy="Pass --name with another name, or --overwrite to replace it.",
    )


@dataclass(frozen=True)
class Evaluation:
    """An evaluation on another table: metrics, and its folder."""

    metrics: dict[str, Any]
    path: Path


def _notes(table: Table) -> list[str]:
    """Return what else to know about the metrics: classes without a text, and texts with different labels."""
    notes = []
    counts = table.outcomes.counts(table.codes, len(table.labels))
    if absent := [text for text, n in zip(table.labels.texts, counts, strict=True) if not n]:
        notes.append(
            f"no text has {number_form(len(absent), 'the label', 'the labels')} {listing(absent)}: a macro average "
            "can count such a label as 0"
        )
    by_text: dict[str, set[int]] = {}
    for text, code in zip(texts_of(table.frame), table.codes.tolist(), strict=True):
        by_text.setdefault(flat(text), set()).add(code)
    if n := sum(len(codes) > 1 for codes in by_text.values()):
        notes.append(
            f"{counted(n, 'text')} {number_form(n, 'occurs', 'occur')} with different labels, of which a model can "
            "predict only one"
        )
    return notes


def _design_notes(table: Table) -> list[str]:
    """Return how the columns of a sampling design limit the metrics, in which every row counts the same."""
    columns = {str(name): table.extra[name].tolist() for name in table.extra.columns}
    try:
        design = read_design(columns, table.frame["row"].tolist(), table.name, declared_random=True)
    except DataError:  # other columns of these names
        return []
    if n := int((~design.usable).sum()):
        return [
            f"{counted(n, 'row')} {number_form(n, 'was', 'were')} not drawn at random (columns {RANDOM} and "
            f"{INCLUSION}). The metrics do not apply to the texts that these rows come from: evaluate on the random "
            "rows alone"
        ]
    if design.inclusion is not None and not np.allclose(design.inclusion, design.inclusion[0]):
        return [
            f"the rows had different probabilities of being drawn (column {INCLUSION}), but bertsmith evaluate weights "
            "all rows equally. The metrics do not apply to the texts that you drew the rows from"
        ]
    return []


def run_evaluation(
    path: Path, source: Any, config: Config, *, name: str | None = None, overwrite: bool = False
) -> Evaluation:
    """Score a finished run on another table; see `bertsmith.evaluate`."""
    run = runs.open_run(path)
    # Only one table is scored.
    config = config.model_copy(update={"validation": None, "test": None, "task": run.task})
    template = run.template
    table = source if isinstance(source, Table) else read_labelled(source, config, run)
    if table.labels != run.labels or table.task != run.task:
        raise DataError(
            "the Table and the run have different labels or tasks",
            where=table.name,
            remedy="Pass the path of the file instead of a Table.",
        )
    if table.columns.template != template and not (table.columns.template.is_plain and template.is_plain):
        raise DataError(
            f"the Table has {table.columns.template}, but the model reads {template}",
            where=table.name,
            remedy="Pass the path of the file instead of a Table, or read the Table with the columns used in training.",
        )
    # Rows of a test table are dropped only if they cannot be scored.
    cleaned = clean(dataclasses.replace(table, frame=table.frame.assign(split="test")))
    if not len(cleaned.table):
        raise DataError(
            "no row has both a text and a label",
            where=table.name,
            remedy="Check --text-column and --label-column.",
        )
    is_file = isinstance(source, str | Path) and Path(source).is_file()
    description = {
        "source": str(Path(source).resolve()) if is_file else table.name,
        "fingerprint": cleaned.table.fingerprints[1],  # the same with and without --group-column
    }
    folder = _evaluation_folder(run, name, table.name, description, overwrite=overwrite)
    classifier = Classifier.load(path, device=config.device, long=config.long)
    texts = texts_of(cleaned.table.frame)
    seen = int(hash_texts(texts).isin(run.training_hashes).sum())
    probabilities = classifier.predict_proba(texts)
    metrics = evaluate(
        classifier.task,
        cleaned.table.targets,
        probabilities,
        run.labels,
        seed=run.info["config"]["seed"],
        groups=cleaned.table.groups,
    )
    metrics |= {"left_out": cleaned.counts, "seen_in_training": seen}
    notes = _notes(cleaned.table) if classifier.task.has_labels else far_number_notes(cleaned.table)
    few = warn_of_few_groups(cleaned.table.groups, "texts")
    metrics["notes"] = [*notes, *_design_notes(cleaned.table), *([few] if few else [])]
    content = {"table": table.name, **description, "long": classifier.long, **metrics}
    with atomic.disk_errors(folder):
        run.layout.evaluations.mkdir(exist_ok=True)
        with atomic.replaced_folder(folder) as temporary:
            atomic.write_json(temporary / "metrics.json", content)
            write_predictions(temporary, "predictions", predictions_frame(cleaned.table, probabilities))
    return Evaluation(metrics, folder)
