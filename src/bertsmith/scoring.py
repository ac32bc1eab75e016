"""Score a fitted model: on the splits of its own run, beside what one gets with less, and on other tables."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xxhash

from bertsmith import run as runs
from bertsmith import storage
from bertsmith.compute.device import choose_precision
from bertsmith.config import FEWEST_TO_SELECT, PRIMARY, Config
from bertsmith.data.clean import clean
from bertsmith.data.read import read_table
from bertsmith.data.table import Labels, Table
from bertsmith.errors import ConfigError, DataError
from bertsmith.evaluation.abstention import check
from bertsmith.evaluation.baseline import Baseline, Regression, bag_of_words, regression_on_embeddings, verdict
from bertsmith.evaluation.calibration import calibration, fit_temperature, scale
from bertsmith.evaluation.decision import Decision, tune
from bertsmith.evaluation.evaluate import evaluate
from bertsmith.evaluation.intervals import from_pairs, paired_difference
from bertsmith.evaluation.metrics import majority_probabilities, scalars
from bertsmith.evaluation.rule import Rule
from bertsmith.evaluation.slices import slices
from bertsmith.inference.classifier import Classifier
from bertsmith.inference.labelling import to_frame
from bertsmith.inference.spreadsheet import write_csv
from bertsmith.model.encoder import Tokens
from bertsmith.model.load import Loaded, fold
from bertsmith.preparing import EMBEDDED, draw_evenly, embed

TRAIN_SAMPLE = (200, 1000)
"""Fewest and most training texts that are scored, else a tenth of them: enough to see overfitting."""


@dataclass(frozen=True)
class Scoring:
    """The fitted model is about to be scored on so many texts."""

    texts: int


@dataclass(frozen=True)
class Scored:
    """So many more texts were scored."""

    texts: int


Listener = Callable[[Scoring | Scored], None]


def calibrate(
    fitted: Classifier, targets: np.ndarray, probabilities: np.ndarray, run: runs.Run, config: Config
) -> tuple[Decision, np.ndarray]:
    """Tune the decision rule and the temperature on validation, and put both into the model, here and on disk.

    Where the head ends in a linear layer they go into its weights, so that whoever loads the model gets them; else
    into its configuration, for bertsmith alone.

    Args:
        fitted: as training left it; its ``rule`` is set.
        targets: class indices of the validation texts, shape (n,).
        probabilities: of the same texts, from ``fitted``, shape (n, classes).
        run: whose model is written anew.
        config: whether a decision rule is wanted.

    Returns:
        The decision rule, and the probabilities that the model gives the same texts from now on.
    """
    decision = tune(targets, probabilities, seed=config.seed)
    if config.decision_rule == "off":
        decision = dataclasses.replace(decision, used=False, offsets=np.zeros(probabilities.shape[1]))
    offsets = tuple(decision.offsets.tolist()) if decision.used else ()
    temperature = fit_temperature(targets, scale(probabilities, 1.0, decision.offsets))
    if temperature != 1 or offsets:
        fitted.rule = Rule(temperature, offsets, folded=fold(fitted.loaded.model, temperature, offsets))
        fitted.loaded.model.config.bertsmith = fitted.rule.to_dict()
        run.save_model(fitted.loaded.save)
    return decision, scale(probabilities, temperature, decision.offsets)


@dataclass(frozen=True)
class Scores:
    """What a fitted model says of the splits.

    Attributes:
        splits: figures by split.
        probabilities: by split, shape (texts, classes).
        decision: the decision rule that is in the model.
        inference: see `choose_inference`.
        lengths: tokens of every test text, nothing cut, shape (texts,).
    """

    splits: dict[str, Any]
    probabilities: dict[str, np.ndarray]
    decision: Decision
    inference: dict[str, Any]
    lengths: np.ndarray


def score_splits(
    fitted: Classifier,
    parts: dict[str, Table],
    encoded: dict[str, Tokens],
    run: runs.Run,
    config: Config,
    observe: Listener,
) -> Scores:
    """Calibrate the fitted model and score it on every split: the only time that the test split is looked at.

    Every text is predicted once; of train a sample is scored.

    Args:
        fitted, run, config: as for `calibrate`.
        parts: the splits.
        encoded: their tokens, as training had them, cut nowhere before the model's maximum length.
        observe: is told how far it is.
    """
    sample, seed = parts["train"], config.seed
    size = min(max(len(sample) // 10, TRAIN_SAMPLE[0]), TRAIN_SAMPLE[1])
    if len(sample) > size:
        rows = np.sort(np.random.default_rng(seed).choice(len(sample), size, replace=False))
        sample, encoded = sample.take(rows), {**encoded, "train": encoded["train"].take(rows)}
    tables = {"validation": parts["validation"], "train": sample, "test": parts["test"]}
    observe(Scoring(sum(map(len, tables.values()))))
    splits: dict[str, Any] = {}
    probabilities: dict[str, np.ndarray] = {}
    for name, table in tables.items():
        tokens = fitted.own(encoded[name], table.frame["text"].tolist())
        found = fitted.probabilities_of(tokens, lambda n: observe(Scored(n)))
        if name == "validation":
            decision, found = calibrate(fitted, table.targets, found, run, config)
            inference = choose_inference(fitted, tokens, found)
        probabilities[name] = found
        splits[name] = evaluate(
            table.targets, found, table.labels, seed=seed, detail=name != "train", groups=groups_of(table)
        )
    splits["train"]["sample_of"] = len(parts["train"])
    return Scores(splits, probabilities, decision, inference, tokens.lengths)


def choose_inference(fitted: Classifier, validation: Tokens, probabilities: np.ndarray) -> dict[str, Any]:
    """Have the classifier predict in bf16 if its device is fast at that and the validation texts keep their labels.

    Args:
        fitted: calibrated; its ``dtype`` is set.
        validation: the validation texts.
        probabilities: of these in fp32, shape (n, classes).

    Returns:
        JSON-ready: ``precision`` of predictions, and, where bf16 was tried, ``texts``, ``agreement`` (share of them
        with the same label) and ``largest_difference`` (of a probability).
    """
    if choose_precision(fitted.loaded.device)[0] != "bf16" or len(validation) < FEWEST_TO_SELECT:
        return {"precision": "fp32"}
    fitted.compute_in(torch.bfloat16)
    shorter = fitted.probabilities_of(validation)
    same = shorter.argmax(axis=1) == probabilities.argmax(axis=1)
    if not same.all():
        fitted.compute_in(torch.float32)
    return {
        "precision": "bf16" if same.all() else "fp32",
        "texts": len(validation),
        "agreement": float(same.mean()),
        "largest_difference": float(abs(shorter - probabilities).max()),
    }


def groups_of(table: Table) -> np.ndarray | None:
    """Return the group of every row, shape (rows,), where the table has groups."""
    groups = table.frame["group"]
    return pd.factorize(groups)[0] if len(groups) and groups.notna().all() else None


def look_closer(classifier: Classifier, parts: dict[str, Table], scores: Scores) -> dict[str, Any]:
    """Say what the figures of the test split hide: where it is worse, when it should not answer, what the rule does.

    Args:
        classifier: as it stands on disk.
        parts: the splits.
        scores: of them.

    Returns:
        JSON-ready: ``calibration`` (to add to that of the split), ``abstention``, ``slices`` and ``decision_rule``.
    """
    test, said, tokens = parts["test"], scores.probabilities["test"], scores.lengths
    targets, predicted, rule = test.targets, said.argmax(axis=1), classifier.rule
    before = scale(said, 1 / rule.temperature, -np.array(rule.offsets or 0.0) / rule.temperature)
    columns = {
        "length in tokens": pd.Series(tokens),
        "cut at the maximum length": pd.Series(np.where(tokens > classifier.loaded.max_length, "yes", "no")),
        "label": pd.Series(np.array(test.labels.texts, dtype=object)[targets]).astype("category"),
        **{str(name): test.extra[name] for name in test.extra.columns},
    }
    ruled = {"metric": PRIMARY, **scores.decision.to_dict(), "folded": rule.folded}
    if scores.decision.used:
        plain = rule.apply(said, decide=False).argmax(axis=1)
        found = {
            name: from_pairs(targets, p, len(test.labels)) for name, p in (("with", predicted), ("without", plain))
        }
        ruled["test"] = {name: {m: s[m] for m in (PRIMARY, "accuracy")} for name, s in found.items()}
    return {
        "calibration": {"temperature": rule.temperature, "before": calibration(targets, before)},
        "abstention": check(targets, said, (parts["validation"].targets, scores.probabilities["validation"])),
        "slices": slices(predicted == targets, columns),
        "decision_rule": ruled,
    }


@dataclass(frozen=True)
class Frozen:
    """What a regression on embeddings of the checkpoint says, before fine-tuning.

    Attributes:
        regression: fitted to training texts.
        trained_on: how many.
        rows: positions of some texts of the test split, shape (n,).
        probabilities: of them, shape (n, classes).
    """

    regression: Regression
    trained_on: int
    rows: np.ndarray
    probabilities: np.ndarray

    @classmethod
    def fit(cls, loaded: Loaded, parts: dict[str, Table], encoded: dict[str, Tokens], seed: int) -> Frozen:
        """Fit it to the training texts, and ask it for the test texts; to at most `EMBEDDED` of each."""
        train, test = parts["train"], parts["test"]
        some = draw_evenly(train.targets, EMBEDDED, seed=seed)
        rows = np.sort(np.random.default_rng(seed).permutation(len(test))[:EMBEDDED])
        embeddings = embed(loaded, encoded["train"].take(some))
        regression = regression_on_embeddings(embeddings, train.targets[some], n_classes=len(train.labels))
        return cls(regression, len(some), rows, regression.probabilities(embed(loaded, encoded["test"].take(rows))))


def baselines(parts: dict[str, Table], probabilities: np.ndarray, frozen: Frozen, seed: int) -> dict[str, Any]:
    """Put the model's probabilities on test beside what one gets with less."""
    train, test = parts["train"], parts["test"]
    texts = {name: part.frame["text"].tolist() for name, part in (("train", train), ("test", test))}
    n_classes, rows = len(test.labels), frozen.rows
    words = bag_of_words(texts["train"], train.targets, texts["test"], n_classes=n_classes, seed=seed)
    embedded = Baseline(frozen.probabilities, "logistic regression")

    def beside(rival: Baseline, table: Table, ours: np.ndarray, name: str) -> dict[str, Any]:
        predictions = ours.argmax(axis=1), rival.probabilities.argmax(axis=1)
        value, low, high = paired_difference(
            table.targets, *predictions, n_classes, metric=PRIMARY, seed=seed, groups=groups_of(table)
        )
        return {
            "classifier": rival.classifier,
            "test": scalars(table.targets, rival.probabilities),
            "difference": {"metric": PRIMARY, "value": value, "interval": [low, high]},
            "verdict": verdict(value, low, high, len(table), rival=name),
        }

    return {
        "majority_class": {
            "label_text": test.labels.texts[int(train.counts.argmax())],
            "test": scalars(test.targets, majority_probabilities(train.counts, len(test))),
        },
        "bag_of_words": beside(words, test, probabilities, f"a bag of words with a {words.classifier}"),
        "frozen_embeddings": {
            **beside(
                embedded,
                test.take(rows),
                probabilities[rows],
                "a logistic regression on the frozen embeddings of the checkpoint",
            ),
            "texts": {"train": frozen.trained_on, "test": len(rows)},
        },
    }


def predictions_frame(table: Table, probabilities: np.ndarray) -> pd.DataFrame:
    """Return one row a text: where it stands, its label and group, and what the model says.

    Args:
        table: n texts.
        probabilities: of them, shape (n, classes).
    """
    labels = table.labels
    given = pd.DataFrame(
        {
            "row": table.frame["row"],
            "text": table.frame["text"],
            "label": np.array(labels.numbers, dtype=np.int64)[table.targets],
            "label_text": np.array(labels.texts, dtype=object)[table.targets],
        }
    )
    if table.frame["group"].notna().all():
        given["group"] = table.frame["group"]
    return pd.concat([given, to_frame(probabilities, labels)], axis=1)


def hashes(texts: Iterable[str]) -> pd.Series:
    """Return the XXH3 of every text, in hexadecimal: enough to tell whether a text was seen, and not what it said."""
    return pd.Series([xxhash.xxh3_64_hexdigest(text.encode()) for text in texts], dtype="str")


def targets_of(predictions: pd.DataFrame, labels: Labels) -> np.ndarray:
    """Return the class index of every text in predictions that were kept, shape (n,)."""
    index = {number: i for i, number in enumerate(labels.numbers)}
    return np.array([index[number] for number in predictions["label"]], dtype=np.int64)


def groups_in(predictions: pd.DataFrame) -> np.ndarray | None:
    """Return the group of every text in predictions that were kept, shape (n,), where there are groups."""
    return pd.factorize(predictions["group"])[0] if "group" in predictions.columns else None


def write_predictions(folder: Path, name: str, frame: pd.DataFrame) -> None:
    """Write predictions as ``NAME.parquet`` and ``NAME.csv``, where the probabilities are a JSON list.

    The CSV is for spreadsheets, with cells that would be formulas guarded; the Parquet file has the texts as they are.
    """
    with storage.replaced_file(folder / f"{name}.parquet") as file:
        frame.to_parquet(file, index=False)
    with storage.replaced_file(folder / f"{name}.csv") as file:
        rounded = [json.dumps([round(float(p), 6) for p in row]) for row in frame["probabilities"]]
        shown = frame.assign(probabilities=rounded)
        write_csv(shown, file)


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
    observe: Listener = lambda event: None,
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
    seen = int(hashes(texts).isin(run.trained_on).sum())
    probabilities = classifier.predict_proba(texts, lambda n: observe(Scored(n)))
    metrics = evaluate(
        cleaned.table.targets,
        probabilities,
        run.labels,
        seed=run.info["config"]["seed"],
        groups=groups_of(cleaned.table),
    )
    metrics["seen_in_training"] = seen
    with storage.told(place):
        run.layout.evaluations.mkdir(exist_ok=True)
        with storage.replaced_folder(place) as folder:
            of = {"table": table.name, **described, "left_out": cleaned.counts}
            storage.write_json(folder / "metrics.json", {**of, **metrics})
            write_predictions(folder, "predictions", predictions_frame(cleaned.table, probabilities))
    return Evaluation(metrics, cleaned.counts, place)
