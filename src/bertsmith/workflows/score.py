"""Score a fitted model on the splits of its own run, and keep its predictions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xxhash

from bertsmith.compute.device import choose_precision
from bertsmith.config import FEWEST_TO_SELECT, PRIMARY, Config
from bertsmith.data.table import Labels, Table
from bertsmith.evaluation.abstention import accuracy_coverage_curve, evaluate_abstention
from bertsmith.evaluation.calibration import PRIOR, WIDE_PRIOR, calibration_metrics, fit_temperature, scale
from bertsmith.evaluation.decision import Decision, tune_offsets
from bertsmith.evaluation.evaluate import evaluate
from bertsmith.evaluation.intervals import label_metrics
from bertsmith.evaluation.rule import Rule
from bertsmith.evaluation.slices import compare_slices
from bertsmith.events import Scored, Scoring, ScoringListener
from bertsmith.folders import atomic
from bertsmith.folders import run as runs
from bertsmith.inference.classifier import Classifier
from bertsmith.inference.predictor import to_frame
from bertsmith.inference.spreadsheet import write_csv
from bertsmith.model.load import fold
from bertsmith.model.tokenizer import Tokens

TRAIN_SAMPLE = (200, 1000)
"""Fewest and most training texts that are scored, else a tenth of them: enough to see overfitting."""


def fit_rule(
    targets: np.ndarray, probabilities: np.ndarray, config: Config, *, prior: float = PRIOR
) -> tuple[Decision, float]:
    """Tune the decision rule and the temperature on held-out texts.

    Args:
        targets: class indices of the texts, shape (n,).
        probabilities: of the same texts, shape (n, classes).
        config: whether a decision rule is wanted.
        prior: of the temperature, see `fit_temperature`.

    Returns:
        The decision rule, whose offsets are 0 where it is not used, and the temperature.
    """
    decision = tune_offsets(targets, probabilities, seed=config.seed)
    if config.decision_rule == "off":
        decision = dataclasses.replace(decision, used=False, offsets=np.zeros(probabilities.shape[1]))
    return decision, fit_temperature(targets, scale(probabilities, 1.0, decision.offsets), prior=prior)


def set_rule(fitted: Classifier, decision: Decision, temperature: float, run: runs.Run) -> None:
    """Put a decision rule and a temperature into a model, here and on disk.

    Where the head ends in a linear layer they go into its weights, so that whoever loads the model gets them; else
    into its configuration, for bertsmith alone.

    Args:
        fitted: as training left it; its ``rule`` is set.
        decision, temperature: of `fit_rule`.
        run: whose model is written anew.
    """
    offsets = tuple(decision.offsets.tolist()) if decision.used else ()
    if temperature != 1 or offsets:
        fitted.rule = Rule(temperature, offsets, folded=fold(fitted.loaded.model, temperature, offsets))
        fitted.loaded.model.config.bertsmith = fitted.rule.to_dict()
        run.save_model(fitted.loaded.save)


@dataclass(frozen=True)
class CrossValidated:
    """What models said of training texts that they were not trained on.

    Attributes:
        fold: of each training text, shape (n,).
        probabilities: of each, shape (n, classes).
        tested: whether other texts are there to test on.
    """

    fold: np.ndarray
    probabilities: np.ndarray
    tested: bool

    def calibrated(self, targets: np.ndarray, config: Config) -> np.ndarray:
        """Return the probabilities as they are with rule and temperature of all other folds, shape (n, classes)."""
        result = np.empty_like(self.probabilities)
        for f in range(int(self.fold.max()) + 1):
            inside = self.fold != f
            decision, temperature = fit_rule(targets[inside], self.probabilities[inside], config, prior=WIDE_PRIOR)
            result[~inside] = scale(self.probabilities[~inside], temperature, decision.offsets)
        return result


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
    observe: ScoringListener,
    crossed: CrossValidated | None = None,
) -> Scores:
    """Calibrate the fitted model and score it on every split: the only time that the test split is looked at.

    Every text is predicted once; of train a sample is scored. With cross-validation, what is called validation are the
    training texts, as models said that were not trained on them; so is the test, where there are no test texts.

    Args:
        fitted, run: as for `set_rule`.
        parts: the splits.
        encoded: their tokens, as training had them, cut nowhere before the model's maximum length.
        config: the settings.
        observe: receives `Scoring` once and `Scored` as texts are done.
        crossed: of the training texts, with cross-validation.
    """
    sample, seed = parts["train"], config.seed
    size = min(max(len(sample) // 10, TRAIN_SAMPLE[0]), TRAIN_SAMPLE[1])
    if len(sample) > size:
        rows = np.sort(np.random.default_rng(seed).choice(len(sample), size, replace=False))
        sample, encoded = sample.take(rows), {**encoded, "train": encoded["train"].take(rows)}
    tables = {"validation": parts["validation"], "train": sample, "test": parts["test"]}
    ready: dict[str, np.ndarray] = {}
    if crossed is not None:
        ready["validation"] = crossed.probabilities
        if not crossed.tested:
            ready["test"] = crossed.calibrated(parts["test"].targets, config)
    observe(Scoring(sum(len(table) for name, table in tables.items() if name not in ready)))

    def predict(name: str) -> np.ndarray:
        tokens = fitted.reuse_tokens(encoded[name], tables[name].frame["text"].tolist())
        return fitted.probabilities_of(tokens, lambda n: observe(Scored(n)))

    splits: dict[str, Any] = {}
    probabilities: dict[str, np.ndarray] = {}
    for name, table in tables.items():
        found = ready[name] if name in ready else predict(name)
        if name == "validation":
            prior = PRIOR if crossed is None else WIDE_PRIOR
            decision, temperature = fit_rule(table.targets, found, config, prior=prior)
            set_rule(fitted, decision, temperature, run)
            found = scale(found, temperature, decision.offsets)
        probabilities[name] = found
        splits[name] = evaluate(
            table.targets, found, table.labels, seed=seed, detail=name != "train", groups=groups_of(table)
        )
        if name in ready:
            splits[name] |= {"by": "cross-validation", "folds": int(crossed.fold.max()) + 1 if crossed else 0}
    checked = "validation" if crossed is None else "train"
    inference = choose_inference(fitted, encoded[checked], probabilities[checked])
    splits["train"]["sample_of"] = len(parts["train"])
    return Scores(splits, probabilities, decision, inference, encoded["test"].lengths)


def choose_inference(fitted: Classifier, validation: Tokens, probabilities: np.ndarray) -> dict[str, Any]:
    """Have the classifier predict in bf16 if its device is fast at that and the validation texts keep their labels.

    Args:
        fitted: calibrated; its ``dtype`` is set.
        validation: the validation texts, or others.
        probabilities: of these in fp32, shape (n, classes).

    Returns:
        JSON-ready: ``precision`` of predictions, and, where bf16 was tried, ``texts``, ``agreement`` (share of them
        with the same label) and ``largest_difference`` (of a probability).
    """
    if choose_precision(fitted.loaded.device)[0] != "bf16" or len(validation) < FEWEST_TO_SELECT:
        return {"precision": "fp32"}
    fitted.set_dtype(torch.bfloat16)
    shorter = fitted.probabilities_of(validation)
    same = shorter.argmax(axis=1) == probabilities.argmax(axis=1)
    if not same.all():
        fitted.set_dtype(torch.float32)
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


def look_closer(
    classifier: Classifier, parts: dict[str, Table], scores: Scores, crossed: CrossValidated | None = None
) -> dict[str, Any]:
    """Say what the figures of the test split hide: where it is worse, when it should not answer, what the rule does.

    Args:
        classifier: as it stands on disk.
        parts: the splits.
        scores: of them.
        crossed: as for `score_splits`.

    Returns:
        JSON-ready: ``calibration`` (to add to that of the split), ``abstention``, ``slices`` and ``decision_rule``.
    """
    test, said, tokens = parts["test"], scores.probabilities["test"], scores.lengths
    targets, predicted, rule = test.targets, said.argmax(axis=1), classifier.rule
    if crossed is not None and not crossed.tested:  # each fold has a rule and a temperature of its own
        before, plain = crossed.probabilities, crossed.probabilities.argmax(axis=1)
    else:
        before = scale(said, 1 / rule.temperature, -np.array(rule.offsets or 0.0) / rule.temperature)
        plain = rule.apply(said, decide=False).argmax(axis=1)
    columns = {
        "length in tokens": pd.Series(tokens),
        "cut at the maximum length": pd.Series(np.where(tokens > classifier.loaded.max_length, "yes", "no")),
        "label": pd.Series(np.array(test.labels.texts, dtype=object)[targets]).astype("category"),
        **{str(name): test.extra[name] for name in test.extra.columns},
    }
    ruled = {"metric": PRIMARY, **scores.decision.to_dict(), "folded": rule.folded}
    if scores.decision.used:
        found = {
            name: label_metrics(targets, p, len(test.labels)) for name, p in (("with", predicted), ("without", plain))
        }
        ruled["test"] = {name: {m: s[m] for m in (PRIMARY, "accuracy")} for name, s in found.items()}
    return {
        "calibration": {"temperature": rule.temperature, "before": calibration_metrics(targets, before)},
        "abstention": _check_abstention(parts, scores, crossed),
        "slices": compare_slices(predicted == targets, columns),
        "decision_rule": ruled,
    }


def _check_abstention(parts: dict[str, Table], scores: Scores, crossed: CrossValidated | None) -> dict[str, Any]:
    """Check thresholds on texts that they do not come from: without test texts, every other fold checks the others.

    Returns:
        JSON-ready: that of `check`, and ``texts`` that thresholds and sets were checked on.
    """
    targets, said = parts["test"].targets, scores.probabilities["test"]
    if crossed is None or crossed.tested:
        held_out = parts["validation"].targets, scores.probabilities["validation"]
        return {**evaluate_abstention(targets, said, held_out), "texts": len(targets)}
    even = crossed.fold % 2 == 0
    found = evaluate_abstention(targets[~even], said[~even], (targets[even], said[even]))
    curve = accuracy_coverage_curve(said.max(axis=1), said.argmax(axis=1) == targets)
    return {**found, "accuracy_coverage": curve, "texts": int((~even).sum())}


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
    with atomic.replaced_file(folder / f"{name}.parquet") as file:
        frame.to_parquet(file, index=False)
    with atomic.replaced_file(folder / f"{name}.csv") as file:
        rounded = [json.dumps([round(float(p), 6) for p in row]) for row in frame["probabilities"]]
        shown = frame.assign(probabilities=rounded)
        write_csv(shown, file)
