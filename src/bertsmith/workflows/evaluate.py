"""Score a finished run on another table."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertsmith.config import Config
from bertsmith.data.clean import clean
from bertsmith.data.read import read_table
from bertsmith.data.table import Table
from bertsmith.errors import ConfigError, DataError
from bertsmith.evaluation.evaluate import evaluate
from bertsmith.events import Scored, Scoring, ScoringListener
from bertsmith.folders import atomic
from bertsmith.folders import run as runs
from bertsmith.inference.classifier import Classifier
from bertsmith.workflows.score import groups_of, hashes, predictions_frame, write_predictions


def _place(run: runs.Run, name: str | None, table: str, described: dict[str, Any], *, overwrite: bool) -> Path:
    """Return the folder of an evaluation, by the name given or else that of the table.

    Raises:
        ConfigError: if the name given is no plain one, or the evaluation of something else is there.
    """
    if name is not None and not re.fullmatch(r"\w([\w.-]*\w)?", name):
        raise ConfigError(
            f"--name {name!r} cannot be the name of a folder",
            remedy="Write it with letters, digits, _ and, within, - and .",
        )
    named = name or re.sub(r"[^\w.-]+", "-", re.sub(r"(\.\w+)+$", "", Path(table).name)).strip(".-") or "table"
    place = run.layout.evaluations / named
    try:
        kept = json.loads((place / "metrics.json").read_text(encoding="utf-8"))
        before = {key: kept[key] for key in described}
    except (OSError, ValueError, KeyError, TypeError):
        before = {} if place.exists() else described
    if before == described or overwrite:
        return place
    other = before.get("source") != described["source"]
    which = f"of another table, {before.get('source')!r}," if other else "of this table, before it was changed,"
    raise ConfigError(
        f"an evaluation {which} is there already",
        where=str(place),
        remedy="Pass --name with another name, or --overwrite to replace it.",
    )


@dataclass(frozen=True)
class Evaluation:
    """A finished run scored on another table: the figures, the rows left out by reason, and where it is kept."""

    metrics: dict[str, Any]
    left_out: dict[str, int]
    path: Path


def run_evaluation(
    path: Path,
    source: Any,
    config: Config,
    *,
    name: str | None = None,
    overwrite: bool = False,
    observe: ScoringListener = lambda event: None,
) -> Evaluation:
    """Score a finished run on another table; see `bertsmith.evaluate`."""
    run = runs.open_run(path)
    config = config.model_copy(update={"validation": None, "test": None})  # one table is scored, and no other
    table = source if isinstance(source, Table) else read_table(source, config, known=run.labels)
    if table.labels != run.labels:
        raise DataError(
            "the table's classes are not those of the run", remedy="Give evaluate the file itself, not a read table."
        )
    # As a given test table: only what cannot be scored is left out.
    cleaned = clean(dataclasses.replace(table, frame=table.frame.assign(split="test")))
    if not len(cleaned.table):
        raise DataError("no row has both a text and a label", where=table.name)
    whole = str(Path(source).resolve()) if isinstance(source, str | Path) and Path(source).is_file() else table.name
    described = {"source": whole, "fingerprint": cleaned.table.fingerprint}
    place = _place(run, name, table.name, described, overwrite=overwrite)
    classifier = Classifier.load(path, device=config.device)
    observe(Scoring(len(cleaned.table)))
    texts = cleaned.table.frame["text"].tolist()
    seen = int(hashes(texts).isin(run.training_hashes).sum())
    probabilities = classifier.predict_proba(texts, lambda n: observe(Scored(n)))
    metrics = evaluate(
        cleaned.table.targets,
        probabilities,
        run.labels,
        seed=run.info["config"]["seed"],
        groups=groups_of(cleaned.table),
    )
    metrics["seen_in_training"] = seen
    with atomic.disk_errors(place):
        run.layout.evaluations.mkdir(exist_ok=True)
        with atomic.replaced_folder(place) as folder:
            of = {"table": table.name, **described, "left_out": cleaned.counts}
            atomic.write_json(folder / "metrics.json", {**of, **metrics})
            write_predictions(folder, "predictions", predictions_frame(cleaned.table, probabilities))
    return Evaluation(metrics, cleaned.counts, place)
