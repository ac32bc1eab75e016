"""Verify a run: checksums, metrics and predictions; with its table, the texts and the training."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from math import isclose, isfinite
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from bertsmith import __version__
from bertsmith.config import IN_MEMORY, Config
from bertsmith.data.read import read_table
from bertsmith.data.template import normalise_text, stored_groups, texts_of
from bertsmith.errors import ConfigError, RunFolderError, counted, quoted
from bertsmith.evaluation.evaluate import evaluate
from bertsmith.folders.atomic import checksum
from bertsmith.folders.run import Run, damage_errors, open_run
from bertsmith.inference.classifier import Classifier
from bertsmith.tasks.registry import get_task
from bertsmith.workflows.score import hash_texts

TOLERANCE = 1e-3
"""Probabilities that differ by less are called the same: devices and library versions round differently."""
NOISE = 1e-6
"""Metrics that differ by less are called the same, relative to the larger one if it is above 1."""
BY_VERSION = ("interval", "bins", "by_chance", "expected_calibration_error", "abstention")
"""Keys of ``metrics.json`` whose values depend on resamples, bins and thresholds, so versions of bertsmith differ."""
MAX_SHOWN = 10
"""Most differences in a message."""


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: what was compared.
        identical: whether it is as recorded; ``None`` if it cannot be checked.
        detail: how much it differs, what it was compared on, or why it cannot be checked.
    """

    name: str
    identical: bool | None
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
    if retrain and (lost := _in_memory(run)):
        raise ConfigError(
            f"--retrain needs the {' and '.join(lost)} texts of the run, which were in memory",
            where=str(path),
            remedy="Leave out --retrain.",
        )
    checks = [_check_seals(run), _check_metrics(run), _check_predictions(run, device)]
    if table is not None:
        checks.append(_check_texts(run, table))
    if retrain:
        checks += _retrain(run, table, device)
    return checks


def _check_seals(run: Run) -> Check:
    files = run.info.get("model_files", {})
    changed = [
        name
        for name, digest in files.items()
        if not (run.layout.model / name).is_file() or checksum(run.layout.model / name) != digest
    ]
    detail = f"changed or missing: {', '.join(changed)}" if changed else f"{counted(len(files), 'file')}, SHA-256"
    return Check("model files", bool(files) and not changed, detail)


def _check_metrics(run: Run) -> Check:
    """Compare ``metrics.json`` with what the saved predictions of validation and test determine.

    Another version of bertsmith may have computed the values of `BY_VERSION` in another way, so they are then left out.
    """
    task, info = get_task(run.task), run.info
    written_by = info.get("versions", {}).get("bertsmith")
    frames = {"validation": run.validation_predictions, "test": run.predictions}
    with damage_errors(run.layout.metrics):
        stored = run.metrics
        saved = {name: (task.stored_targets(f, run.labels), task.stored_scores(f)) for name, f in frames.items()}
        seed = info.get("best_seed", info["config"]["seed"])
        pairs = {
            name: (
                stored["splits"][name],
                evaluate(task, *saved[name], run.labels, seed=seed, groups=stored_groups(frame)),
            )
            for name, frame in frames.items()
        }
        if "by" not in stored["splits"]["test"] and "abstention" in stored:
            again = {**task.abstention(*saved["test"], saved["validation"]), "texts": len(frames["test"])}
            pairs["abstention"] = stored["abstention"], again
    left_out = BY_VERSION if written_by != __version__ else ()
    values = [
        (f"{name}: {key}", before, now)
        for name, (recorded, computed) in pairs.items()
        for key, before, now in _common_values(recorded, computed)
        if not set(left_out) & {name, *key.split(".")}
    ]
    different = [
        f"{name.replace('metrics.', '', 1).removesuffix('.value')} {_shown(before)}, recomputed {_shown(now)}"
        for name, before, now in values
        if not _is_equal(before, now)
    ]
    detail = f"{counted(len(values), 'value')} of {' and '.join(frames)}"
    if different:
        more = f"; and {len(different) - MAX_SHOWN:,} more" if len(different) > MAX_SHOWN else ""
        detail = "; ".join(different[:MAX_SHOWN]) + more
    if left_out:
        detail += f"; not compared, because bertsmith {written_by} wrote the run: {', '.join(left_out)}"
    return Check("metrics of the saved predictions", not different, detail)


def _common_values(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the values that two JSON contents both have, each with its key."""
    if isinstance(before, dict) and isinstance(now, dict):
        parts = [(name, before[name], now[name]) for name in before if name in now]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        parts = [(str(i), *pair) for i, pair in enumerate(zip(before, now, strict=True))]
    else:
        yield key, before, now
        return
    for name, old, new in parts:
        yield from _common_values(old, new, f"{key}.{name}" if key else name)


def _is_equal(before: Any, now: Any) -> bool:
    if isinstance(now, float) and not isfinite(now):
        return before is None  # as in JSON
    if isinstance(before, int | float) and isinstance(now, int | float):
        return isclose(before, now, rel_tol=NOISE, abs_tol=NOISE)
    return bool(before == now)


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else quoted(value)


def _check_predictions(run: Run, device: str) -> Check:
    """Compute the predictions from the test texts."""
    if "by" in run.metrics["splits"]["test"]:
        return Check(
            "predictions", None, "the models of the folds predicted the texts, and the run does not keep these models"
        )
    try:
        classifier = Classifier.load(run.path, device=device)
    except RunFolderError as error:  # other checks still say what differs
        return Check("predictions", None, f"the model cannot be loaded: {error.what}")
    task, saved = get_task(run.task), run.predictions
    if saved["text"].isin(_splits(run).get("hash", [])).all():
        return Check("predictions", None, "the run is from an archive without texts, and has only hashes of the texts")
    scores = task.stored_scores(saved)
    # The saved scores are in fp32, even if the run predicts in bf16.
    computed = classifier.set_dtype(torch.float32).predict_proba(texts_of(saved))
    difference = float(abs(computed - scores).max()) / task.unit(scores)
    n_labels = int((~task.is_same(scores, computed)).sum())
    others = counted(n_labels, "different prediction")
    detail = f"{counted(len(saved), 'test text')}: {others}, scores differ by at most {difference:.1e}"
    return Check("predictions", n_labels == 0 and difference < TOLERANCE, detail)


def _check_texts(run: Run, table: Any) -> Check:
    """Compare the texts of a table with the hashes of those that the run used."""
    splits = _splits(run)
    used = set(splits["hash"][~splits["split"].isin(_in_memory(run))].dropna())
    settings = _settings(run).model_copy(update={"task": run.task})
    read = read_table(table, settings, known=run.labels, template=run.template)
    given = texts_of(read.frame.fillna({"text": "", "pair": ""}))
    missing = len(used - set(hash_texts(normalise_text(text) for text in given)))
    detail = (
        counted(len(used), "text")
        if not missing
        else f"texts of the run that are missing from the table: {missing:,} of {len(used):,}"
    )
    return Check("texts of the table", not missing, detail)


def _splits(run: Run) -> pd.DataFrame:
    with damage_errors(run.layout.splits):
        return pd.read_parquet(run.layout.splits)


def _in_memory(run: Run) -> list[str]:
    """Return the splits of a run whose table was not a file, so that it cannot be read again."""
    config = run.info["config"]
    return [name for name in ("validation", "test") if str(config.get(name)).endswith(IN_MEMORY)]


def _settings(run: Run) -> Config:
    """Return the settings to read a table with, or to train on it: those of the run without its sources."""
    known = {name: value for name, value in run.info["config"].items() if name in Config.model_fields}
    with damage_errors(run.layout.run):
        return Config.model_validate({**known, **dict.fromkeys(("sql", "db", *_in_memory(run)))})


def _retrain(run: Run, table: Any, device: str) -> list[Check]:
    from bertsmith.workflows.seeds import run_seeds

    settings = _settings(run)
    with damage_errors(run.layout.run):
        data = run.info["data"]
        # The run has a value for every setting, so its settings do not say which defaults depended on the table.
        split = {"cv": data.get("folds", 0), "test_size": settings.test_size if data["splits"]["test"] else 0.0}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        again = run_seeds(
            table,
            settings.model_copy(update=split if device == "auto" else {**split, "device": device}),
            Path(folder) / "run",
            resume=False,
            overwrite=False,
            observe=lambda event: None,
            stop=lambda: False,
        )
        checks = []
        for metric in get_task(run.task).headline:
            before, after = (r.metrics["splits"]["test"]["metrics"][metric]["value"] for r in (run, again))
            detail = f"{_shown(before)}, now {_shown(after)}"
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
