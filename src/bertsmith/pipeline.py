"""The five steps, one after the other: what `train` and `evaluate` do."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from transformers import set_seed

from bertsmith import run as runs
from bertsmith.config import Config
from bertsmith.data.clean import Cleaned, clean
from bertsmith.data.findings import Findings
from bertsmith.data.inspect import choose_max_length, inspect
from bertsmith.data.read import SPLITS, read_table
from bertsmith.data.split import split
from bertsmith.data.table import Table
from bertsmith.errors import ConfigError, DataError, Interrupted
from bertsmith.evaluation.baseline import tfidf_logistic_regression, verdict
from bertsmith.evaluation.calibration import calibration, fit_temperature, scale
from bertsmith.evaluation.evaluate import evaluate
from bertsmith.evaluation.intervals import paired_difference
from bertsmith.evaluation.metrics import PRIMARY, majority_probabilities, quick, scalars
from bertsmith.inference.classifier import Classifier, to_frame
from bertsmith.model import checkpoint
from bertsmith.model.encode import count_tokens, encode
from bertsmith.model.load import Loaded, choose_device, describe_device, load_model, load_tokenizer, scale_head
from bertsmith.report.card import write_card
from bertsmith.report.report import write_report
from bertsmith.training.events import Evaluated, Event
from bertsmith.training.recipe import Recipe, choose
from bertsmith.training.trainer import check_settings, fit, training_arguments
from bertsmith.versions import hardware, versions

TRAIN_SAMPLE = 1000
"""Training texts that are scored at the end, drawn at random: enough to see overfitting."""


@dataclass(frozen=True)
class Prepared:
    """Everything is ready for training."""

    findings: Findings
    cleaned: Cleaned
    split: dict[str, int]
    model: str
    parameters: int
    device: str
    max_length: int
    recipe: Recipe


@dataclass(frozen=True)
class Scoring:
    """The fitted model is about to be scored on so many texts."""

    texts: int


@dataclass(frozen=True)
class Scored:
    """So many more texts were scored."""

    texts: int


Observer = Callable[[Event | Prepared | Scoring | Scored], None]


def run_training(
    read: Callable[[], Table],
    config: Config,
    output: Path,
    *,
    resume: bool,
    overwrite: bool,
    observe: Observer,
    stop: Callable[[], bool],
) -> runs.Run:
    """Run all five steps into a run folder; see `bertsmith.train` for the arguments."""
    runs.check_output(output, resume=resume, overwrite=overwrite)
    check_settings(config.set)
    seconds: dict[str, float] = {}

    with _timed(seconds, "data"):
        table = read()
        cleaned = clean(table)
        data = _split(cleaned, config)
        parts = {name: data.take((data.frame["split"] == name).to_numpy()) for name in SPLITS}

    with _timed(seconds, "model"):
        found = checkpoint.resolve(config.model, allow_pickle=config.allow_pickle)
        device = choose_device(config.device)
        tokenizer = load_tokenizer(found)
        tokens = count_tokens(parts["train"].frame["text"].tolist(), tokenizer)
        if config.max_length and config.max_length > found.max_positions:
            raise ConfigError(
                f"--max-length {config.max_length}: {found.name} takes at most {found.max_positions} tokens",
                remedy="Leave it out, or take a checkpoint for longer texts, such as answerdotai/ModernBERT-base.",
            )
        max_length = config.max_length or choose_max_length(tokens, found.max_positions)
        tokenizer.model_max_length = max_length
        set_seed(config.seed)
        loaded = Loaded(load_model(found, table.labels), tokenizer, device, max_length)
        findings = inspect(
            table, count_tokens=lambda texts: count_tokens(texts, tokenizer), max_length=max_length, cleaned=cleaned
        )

    recipe = choose(config, texts=len(parts["train"]), parameters=loaded.parameters, device=device)
    arguments = training_arguments(recipe, config, runs.Layout(output).checkpoints, device)
    sizes = {name: len(part) for name, part in parts.items()}
    prepared = Prepared(
        findings, cleaned, sizes, found.name, loaded.parameters, describe_device(device), max_length, recipe
    )
    described = _describe(prepared, data, found)
    from_checkpoint = None
    if resume:
        run = runs.Run(output)
        runs.check_same(run, config=config.dump(), fingerprint=described["data"]["fingerprint"])
        from_checkpoint = run.last_checkpoint()
    else:
        run = runs.create(output)
        run.update(status="running", created=runs.now(), config=config.dump(), **described)
        runs.write_json(run.layout.labels, _labels(table, parts))
        with runs.replaced_file(run.layout.splits) as file:
            _split_rows(data, cleaned).to_parquet(file, index=False)
    run.update(status="running")
    run.forget_history_after(int(from_checkpoint.name.rpartition("-")[2]) if from_checkpoint else 0)
    observe(prepared)

    def listen(event: Event) -> None:
        if isinstance(event, Evaluated):
            run.log(dataclasses.asdict(event))
        observe(event)

    try:
        with _timed(seconds, "training"):
            train, validation = (
                encode(part.frame["text"].tolist(), loaded, part.targets)
                for part in (parts["train"], parts["validation"])
            )
            finished = fit(
                loaded,
                train,
                validation,
                arguments,
                score=quick,
                emit=listen,
                patience=config.patience,
                by_hand=config.set,
                stop=stop,
                resume=from_checkpoint,
            )
            run.save_model(loaded.save)
        with _timed(seconds, "evaluation"):
            # What is scored is what the user gets: the model as it stands on disk.
            fitted = Classifier.load(run.layout.model, labels=table.labels, device=config.device)
            temperature = _calibrate(fitted, parts["validation"], run)
            splits, probabilities = _score(fitted, parts, config.seed, observe)
            uncalibrated = calibration(parts["test"].targets, scale(probabilities, 1 / temperature))
            splits["test"]["calibration"] |= {"temperature": temperature, "before": uncalibrated}
            predictions = _predictions(parts["test"], probabilities)
        with _timed(seconds, "baseline"):
            metrics = {
                "primary": PRIMARY,
                "splits": splits,
                "baseline": _baselines(parts, probabilities, config.seed),
            }
            runs.write_json(run.layout.metrics, metrics)
            _write_predictions(run.layout.predictions, "test", predictions)
    except BaseException as error:
        run.update(status="interrupted" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed")
        raise
    run.update(training=dataclasses.asdict(finished), seconds=seconds)
    write_card(run)
    write_report(run)
    run.finish(keep_checkpoints=config.keep_checkpoints)
    return run


@dataclass(frozen=True)
class Evaluation:
    """A finished run scored on another table: the figures, the rows left out by reason, and where it is kept."""

    metrics: dict[str, Any]
    left_out: dict[str, int]
    path: Path


def run_evaluation(
    path: Path, source: Any, config: Config, *, name: str | None = None, observe: Observer = lambda event: None
) -> Evaluation:
    """Score a finished run on another table; see `bertsmith.evaluate`."""
    run = runs.open_run(path)
    table = source if isinstance(source, Table) else read_table(source, config, known=run.labels)
    if table.labels != run.labels:
        raise DataError(
            "the table's classes are not those of the run", remedy="Give evaluate the file itself, not a read table."
        )
    # As a given test table: only what cannot be scored is left out.
    cleaned = clean(dataclasses.replace(table, frame=table.frame.assign(split="test")))
    if not len(cleaned.table):
        raise DataError("no row has both a text and a label", where=table.name)
    name = re.sub(r"[^\w.-]+", "-", name or re.sub(r"(\.\w+)+$", "", Path(table.name).name)).strip(".-") or "table"
    classifier = Classifier.load(path, device=config.device)
    observe(Scoring(len(cleaned.table)))
    texts = cleaned.table.frame["text"].tolist()
    probabilities = classifier.predict_proba(texts, lambda n: observe(Scored(n)))
    metrics = evaluate(cleaned.table.targets, probabilities, run.labels, seed=run.info["config"]["seed"])
    run.layout.evaluations.mkdir(exist_ok=True)
    with runs.replaced_folder(run.layout.evaluations / name) as folder:
        runs.write_json(folder / "metrics.json", {"table": table.name, "left_out": cleaned.counts, **metrics})
        _write_predictions(folder, "predictions", _predictions(cleaned.table, probabilities))
    return Evaluation(metrics, cleaned.counts, run.layout.evaluations / name)


def _split(cleaned: Cleaned, config: Config) -> Table:
    try:
        return split(
            cleaned.table, validation_size=config.validation_size, test_size=config.test_size, seed=config.seed
        )
    except DataError as error:
        if not cleaned.counts:
            raise
        left_out = ", ".join(f"{n:,} {reason}" for reason, n in cleaned.counts.items())
        raise DataError(f"{error.what} (rows left out: {left_out})", where=error.where, remedy=error.remedy) from error


def _calibrate(fitted: Classifier, validation: Table, run: runs.Run) -> float:
    """Fold the temperature that fits the validation split into the model, here and on disk, and return it."""
    targets = validation.targets
    temperature = fit_temperature(targets, fitted.predict_proba(validation.frame["text"].tolist()))
    if temperature == 1 or not scale_head(fitted.loaded.model, temperature):
        return 1.0
    run.save_model(fitted.loaded.save)
    return temperature


def _score(
    classifier: Classifier, parts: dict[str, Table], seed: int, observe: Observer
) -> tuple[dict[str, Any], np.ndarray]:
    """Score the fitted model on every split: the only time that the test split is looked at.

    Returns:
        What is said of each split, and the probabilities of the test texts, shape (texts, classes).
    """
    sample = parts["train"]
    if len(sample) > TRAIN_SAMPLE:
        sample = sample.take(np.sort(np.random.default_rng(seed).choice(len(sample), TRAIN_SAMPLE, replace=False)))
    tables = {"train": sample, "validation": parts["validation"], "test": parts["test"]}
    observe(Scoring(sum(map(len, tables.values()))))
    splits: dict[str, Any] = {}
    for name, table in tables.items():
        probabilities = classifier.predict_proba(table.frame["text"].tolist(), lambda n: observe(Scored(n)))
        splits[name] = evaluate(table.targets, probabilities, table.labels, seed=seed, detail=name != "train")
    splits["train"]["sample_of"] = len(parts["train"])
    return splits, probabilities


def _baselines(parts: dict[str, Table], probabilities: np.ndarray, seed: int) -> dict[str, Any]:
    """Put the model's probabilities on test beside what one gets with less."""
    train, test = parts["train"], parts["test"]
    n_classes = len(test.labels)
    words = tfidf_logistic_regression(
        train.frame["text"].tolist(), train.targets, test.frame["text"].tolist(), n_classes=n_classes, seed=seed
    )
    ours, theirs = probabilities.argmax(axis=1), words.probabilities.argmax(axis=1)
    value, low, high = paired_difference(test.targets, ours, theirs, n_classes, metric=PRIMARY, seed=seed)
    return {
        "majority_class": {
            "label_text": test.labels.texts[int(train.counts.argmax())],
            "test": scalars(test.targets, majority_probabilities(train.counts, len(test))),
        },
        "tfidf_logistic_regression": {
            "c": words.c,
            "test": scalars(test.targets, words.probabilities),
            "difference": {"metric": PRIMARY, "value": value, "interval": [low, high]},
            "verdict": verdict(value, low, high, len(test)),
        },
    }


def _predictions(table: Table, probabilities: np.ndarray) -> pd.DataFrame:
    labels = table.labels
    given = pd.DataFrame(
        {
            "row": table.frame["row"],
            "text": table.frame["text"],
            "label": np.array(labels.numbers, dtype=np.int64)[table.targets],
            "label_text": np.array(labels.texts, dtype=object)[table.targets],
        }
    )
    return pd.concat([given, to_frame(probabilities, labels)], axis=1)


def _write_predictions(folder: Path, name: str, frame: pd.DataFrame) -> None:
    with runs.replaced_file(folder / f"{name}.parquet") as file:
        frame.to_parquet(file, index=False)
    with runs.replaced_file(folder / f"{name}.csv") as file:
        rounded = [json.dumps([round(float(p), 6) for p in row]) for row in frame["probabilities"]]
        shown = frame.assign(probabilities=rounded)
        shown.to_csv(file, index=False)


def _describe(prepared: Prepared, data: Table, found: checkpoint.Checkpoint) -> dict[str, Any]:
    frame = data.frame
    digest = hashlib.sha256()
    for text, target, name in zip(frame["text"], frame["target"], frame["split"], strict=True):
        digest.update(f"{target}\x1f{name}\x1f{text}\x1e".encode())
    return {
        "versions": versions(),
        "hardware": hardware(prepared.device),
        "data": {
            "fingerprint": digest.hexdigest(),
            "sources": [str(source) for source in frame["source"].unique()],
            "splits": prepared.split,
            "left_out": prepared.cleaned.counts,
            "normalised": prepared.cleaned.normalised,
            "findings": prepared.findings.to_dict(),
        },
        "model": {
            "name": found.name,
            "type": found.model_type,
            "revision": found.revision,
            "parameters": prepared.parameters,
            "max_length": prepared.max_length,
        },
        "recipe": dataclasses.asdict(prepared.recipe),
    }


def _labels(table: Table, parts: dict[str, Table]) -> dict[str, Any]:
    counts = {name: part.counts for name, part in parts.items()}
    return {
        "classes": [
            {"id": i, "label": number, "label_text": text, "counts": {name: int(n[i]) for name, n in counts.items()}}
            for i, (number, text) in enumerate(zip(table.labels.numbers, table.labels.texts, strict=True))
        ]
    }


def _split_rows(data: Table, cleaned: Cleaned) -> pd.DataFrame:
    used = data.frame[["source", "row", "split"]].assign(reason=None)
    out = cleaned.dropped[["source", "row", "reason"]].assign(split=None)
    frame = pd.concat([used.astype(object), out.astype(object)])[["source", "row", "split", "reason"]]
    frame = frame.astype({"source": "str", "row": "int64", "split": "str", "reason": "str"})
    return frame.sort_values(["source", "row"], ignore_index=True)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    try:
        yield
    finally:
        seconds[name] = round(time.perf_counter() - began, 3)
