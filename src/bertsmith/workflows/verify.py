"""Verify a run: checksums, scores and predictions; with its table, the texts and the training."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertsmith.config import Config
from bertsmith.data.read import read_table
from bertsmith.data.template import normalise_text, texts_of
from bertsmith.errors import ConfigError, counted
from bertsmith.folders.atomic import checksum
from bertsmith.folders.run import Run, open_run
from bertsmith.inference.classifier import Classifier
from bertsmith.tasks.registry import get_task
from bertsmith.workflows.score import hash_texts

TOLERANCE = 1e-3
"""Probabilities that differ by less are called the same: devices and library versions round differently."""


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: what was compared.
        identical: whether it is as recorded.
        detail: how much it differs, or what it was compared on.
    """

    name: str
    identical: bool
    detail: str


def verify_run(path: Path, table: Any = None, *, retrain: bool = False, device: str = "auto") -> list[Check]:
    """Compare a run with its records.

    Args:
        path: the run folder.
        table: the table that the run was trained on, to compare its texts.
        retrain: train again on the table with the settings of the run, and compare scores and weights.
        device: to compute on.

    Returns:
        One check each for checksums, metrics and predictions; with a table, also for the texts and the training.

    Raises:
        UserError: if the run or the table cannot be read.
    """
    run = open_run(path)
    if retrain and table is None:
        raise ConfigError("--retrain needs the table of the run", remedy="Pass the table after the run.")
    checks = [_check_seals(run), *_check_scores(run, device)]
    if table is not None:
        checks.append(_check_texts(run, table))
    if retrain:
        checks += _retrain(run, table)
    return checks


def _check_seals(run: Run) -> Check:
    files = run.info.get("model_files", {})
    changed = [
        name
        for name, digest in files.items()
        if not (run.layout.model / name).is_file() or checksum(run.layout.model / name) != digest
    ]
    detail = f"changed or missing: {', '.join(changed)}" if changed else f"{len(files)} files, SHA-256"
    return Check("model files", bool(files) and not changed, detail)


def _check_scores(run: Run, device: str) -> list[Check]:
    """Compute the metrics from the saved predictions, and the predictions from the texts."""
    saved, test = run.predictions, run.metrics["splits"]["test"]
    task = get_task(run.task)
    scores = task.stored_scores(saved)
    again = task.scalar_metrics(task.stored_targets(saved, run.labels), scores)
    values = {m: (float(test["metrics"][m]["value"]), float(again[m] or 0.0)) for m in task.headline}
    differences = {m: abs(a - b) for m, (a, b) in values.items()}
    detail = ", ".join(f"{m} {a:.4f}, now {b:.4f}" for m, (a, b) in values.items())
    checks = [Check("metrics of the saved predictions", max(differences.values()) < 1e-6, detail)]
    if "by" in test:  # the models of the folds are not kept
        return checks
    classifier = Classifier.load(run.path, device=device)
    computed = classifier.predict_proba(texts_of(saved))
    difference = float(abs(computed - scores).max()) / task.unit(scores)
    n_labels = int((~task.is_same(scores, computed)).sum())
    others = counted(n_labels, "different label")
    detail = f"{counted(len(saved), 'test text')}: {others}, scores differ by at most {difference:.1e}"
    return [*checks, Check("predictions", n_labels == 0 and difference < TOLERANCE, detail)]


def _check_texts(run: Run, table: Any) -> Check:
    """Compare the texts of a table with the hashes of those that the run used."""
    import pandas as pd

    used = set(pd.read_parquet(run.layout.splits)["hash"].dropna())
    settings = _settings(run).model_copy(update={"task": run.task})
    given = texts_of(read_table(table, settings, known=run.labels, template=run.template).frame.fillna({"text": ""}))
    missing = len(used - set(hash_texts(normalise_text(text) for text in given)))
    detail = (
        counted(len(used), "text")
        if not missing
        else f"{missing:,} of {len(used):,} texts of the run are not in the table"
    )
    return Check("texts of the table", not missing, detail)


def _settings(run: Run) -> Config:
    known = {name: value for name, value in run.info["config"].items() if name in Config.model_fields}
    return Config.model_validate(known)


def _retrain(run: Run, table: Any) -> list[Check]:
    from bertsmith.workflows.seeds import run_seeds

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        again = run_seeds(
            table,
            _settings(run),
            Path(folder) / "run",
            resume=False,
            overwrite=False,
            observe=lambda event: None,
            stop=lambda: False,
        )
        checks = []
        for metric in get_task(run.task).headline:
            before, after = (r.metrics["splits"]["test"]["metrics"][metric]["value"] for r in (run, again))
            detail = f"{before:.4f}, now {after:.4f} (difference {after - before:+.4f})"
            checks.append(Check(f"{metric} after training again", before == after, detail))
        weights = {name: digest for name, digest in run.info["model_files"].items() if name.endswith(".safetensors")}
        others = again.info["model_files"]
        same = all(others.get(name) == digest for name, digest in weights.items())
        detail = (
            "equal checksums"
            if same
            else "different checksums: another machine, or other versions, can round differently"
        )
        return [*checks, Check("weights after training again", same, detail)]
