"""Score a model on the splits of its run, and write its predictions."""

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
from bertsmith.model.load import fold_calibration
from bertsmith.model.tokenizer import Tokens

TRAIN_SAMPLE = (200, 1000)
"""Minimum and maximum number of training texts to score; in between, a tenth of them. Shows overfitting."""


def fit_rule(
    targets: np.ndarray,
    probabilities: np.ndarray,
    config: Config,
    *,
    prior: float = PRIOR,
    model: np.ndarray | None = None,
) -> tuple[Decision, float]:
    """Tune the decision rule and the temperature on held-out texts.

    Args:
        targets: class indices of the texts, shape (n,).
        probabilities: their probabilities, shape (n, classes).
        config: the settings; ``decision_rule`` can turn the rule off.
        prior: prior of the temperature, see `fit_temperature`.
        model: number of the model that predicted each text, shape (n,), see `tune_offsets`.

    Returns:
        The decision rule, with offsets of 0 if it is not used, and the temperature.
    """
    decision = tune_offsets(targets, probabilities, seed=config.seed, model=model)
    if config.decision_rule == "off":
        decision = dataclasses.replace(decision, used=False, offsets=np.zeros(probabilities.shape[1]))
    return decision, fit_temperature(targets, scale(probabilities, 1.0, decision.offsets), prior=prior)


def apply_rule(classifier: Classifier, decision: Decision, temperature: float, run: runs.Run) -> None:
    """Put a decision rule, a temperature and the way to read long texts into a model, and save the model.

    If the head ends in a linear layer, its weights include the rule, for every library that loads the model. Otherwise
    the rule is in the model's configuration, and only bertsmith uses it.

    Args:
        classifier: the model after training, with the choice of ``long``; its ``rule`` is set.
        decision, temperature: the result of `fit_rule`.
        run: the run of the model.
    """
    offsets = tuple(decision.offsets.tolist()) if decision.used else ()
    is_long = classifier.long != "truncate"
    if temperature != 1 or offsets or is_long:
        classifier.rule = Rule(
            temperature, offsets, folded=fold_calibration(classifier.loaded.model, temperature, offsets)
        )
        long = {"long": classifier.long} if is_long else {}
        classifier.loaded.model.config.bertsmith = {**classifier.rule.to_dict(), **long}
        run.save_model(classifier.loaded.save)


@dataclass(frozen=True)
class CrossValidation:
    """Predictions for the training texts by models that were not trained on them.

    Attributes:
        fold: the fold of each training text, shape (n,).
        readings: the probabilities of each training text by the way to read long texts, each of shape (n, classes).
        long: the way that the model uses.
        has_test: whether the table has test texts.
    """

    fold: np.ndarray
    readings: dict[str, np.ndarray]
    long: str
    has_test: bool

    @property
    def probabilities(self) -> np.ndarray:
        """The probabilities of each training text, shape (n, classes)."""
        return self.readings[self.long]

    @property
    def n_folds(self) -> int:
        """Number of folds."""
        return int(self.fold.max()) + 1

    def calibrated(self, targets: np.ndarray, config: Config) -> np.ndarray:
        """Calibrate the probabilities of each fold with rule and temperature of the other folds, shape (n, classes)."""
        result = np.empty_like(self.probabilities)
        for f in range(self.n_folds):
            inside = self.fold != f
            decision, temperature = fit_rule(
                targets[inside], self.probabilities[inside], config, prior=WIDE_PRIOR, model=self.fold[inside]
            )
            result[~inside] = scale(self.probabilities[~inside], temperature, decision.offsets)
        return result


@dataclass(frozen=True)
class Scores:
    """Scores of a model on the splits.

    Attributes:
        splits: metrics by split.
        probabilities: probabilities by split, each of shape (texts, classes).
        decision: the decision rule of the model.
        inference: the result of `choose_inference`.
        lengths: number of tokens of every test text before truncation, shape (texts,).
    """

    splits: dict[str, Any]
    probabilities: dict[str, np.ndarray]
    decision: Decision
    inference: dict[str, Any]
    lengths: np.ndarray


def score_splits(
    classifier: Classifier,
    tables: dict[str, Table],
    tokens: dict[str, Tokens],
    run: runs.Run,
    config: Config,
    observe: ScoringListener,
    cross_validation: CrossValidation | None = None,
    validation: np.ndarray | None = None,
) -> Scores:
    """Calibrate a model and score it on every split. Nothing else uses the test split.

    Every text is predicted once; only a sample of the training texts is scored. With cross-validation, its predictions
    are scored as validation, and as test if the table has no test texts.

    Args:
        classifier, run: as for `apply_rule`.
        tables: the texts by split.
        tokens: the tokens by split, with all that the model reads.
        config: the settings.
        observe: called with `Scoring` once and with `Scored` after each batch.
        cross_validation: the predictions of the cross-validation, if any.
        validation: probabilities of the validation texts, if they are known.
    """
    sample, seed, n_train = tables["train"], config.seed, len(tables["train"])
    size = min(max(n_train // 10, TRAIN_SAMPLE[0]), TRAIN_SAMPLE[1])
    if n_train > size:
        rows = np.sort(np.random.default_rng(seed).choice(n_train, size, replace=False))
        sample, tokens = sample.take(rows), {**tokens, "train": tokens["train"].take(rows)}
    # Validation is first: it calibrates the model.
    tables = {"validation": tables["validation"], "train": sample, "test": tables["test"]}
    known: dict[str, np.ndarray] = {} if validation is None else {"validation": validation}
    if cross_validation is not None:
        known["validation"] = cross_validation.probabilities
        if not cross_validation.has_test:
            known["test"] = cross_validation.calibrated(tables["test"].targets, config)
    observe(Scoring(sum(len(table) for name, table in tables.items() if name not in known)))

    def predict(name: str) -> np.ndarray:
        own_tokens = classifier.reuse_tokens(tokens[name], tables[name].frame["text"].tolist())
        return classifier.probabilities_of(own_tokens, lambda n: observe(Scored(n)))

    splits: dict[str, Any] = {}
    probabilities: dict[str, np.ndarray] = {}
    for name, table in tables.items():
        predicted = known[name] if name in known else predict(name)
        if name == "validation":
            prior = PRIOR if cross_validation is None else WIDE_PRIOR
            model = None if cross_validation is None else cross_validation.fold
            decision, temperature = fit_rule(table.targets, predicted, config, prior=prior, model=model)
            apply_rule(classifier, decision, temperature, run)
            predicted = scale(predicted, temperature, decision.offsets)
        probabilities[name] = predicted
        splits[name] = evaluate(
            table.targets, predicted, table.labels, seed=seed, detail=name != "train", groups=table_groups(table)
        )
        if cross_validation is not None and name in known:
            splits[name] |= {"by": "cross-validation", "folds": cross_validation.n_folds}
    checked = "validation" if cross_validation is None else "train"
    inference = choose_inference(classifier, tokens[checked], probabilities[checked])
    splits["train"]["sample_of"] = n_train
    return Scores(splits, probabilities, decision, inference, tokens["test"].full_lengths)


def choose_inference(classifier: Classifier, validation: Tokens, probabilities: np.ndarray) -> dict[str, Any]:
    """Switch a classifier to bf16 if its device computes fast in bf16 and all predicted labels stay the same.

    Args:
        classifier: the calibrated model; its ``dtype`` is set.
        validation: the tokens of n texts, usually the validation texts.
        probabilities: their probabilities in fp32, shape (n, classes).

    Returns:
        JSON-ready: ``precision`` of predictions. If bf16 was tried also ``texts``, ``agreement`` (share of texts with
        the same label) and ``largest_difference`` (of a probability).
    """
    if choose_precision(classifier.loaded.device)[0] != "bf16" or len(validation) < FEWEST_TO_SELECT:
        return {"precision": "fp32"}
    classifier.set_dtype(torch.bfloat16)
    bf16 = classifier.probabilities_of(validation)
    same = bf16.argmax(axis=1) == probabilities.argmax(axis=1)
    if not same.all():
        classifier.set_dtype(torch.float32)
    return {
        "precision": "bf16" if same.all() else "fp32",
        "texts": len(validation),
        "agreement": float(same.mean()),
        "largest_difference": float(abs(bf16 - probabilities).max()),
    }


def table_groups(table: Table) -> np.ndarray | None:
    """Return the group index of every row, shape (rows,); ``None`` for a table without groups."""
    groups = table.frame["group"]
    return pd.factorize(groups)[0] if len(groups) and groups.notna().all() else None


def analyze_test(
    classifier: Classifier, tables: dict[str, Table], scores: Scores, cross_validation: CrossValidation | None = None
) -> dict[str, Any]:
    """Analyze the predictions for the test texts: calibration, abstention, slices and decision rule.

    Args:
        classifier: the saved model.
        tables: the texts by split.
        scores: the scores of the model.
        cross_validation: as for `score_splits`.

    Returns:
        JSON-ready: ``calibration`` (to merge with that of the split), ``abstention``, ``slices`` and ``decision_rule``.
    """
    test, probabilities, lengths = tables["test"], scores.probabilities["test"], scores.lengths
    targets, predicted, rule = test.targets, probabilities.argmax(axis=1), classifier.rule
    if cross_validation is not None and not cross_validation.has_test:  # rule and temperature differ between folds
        uncalibrated = cross_validation.probabilities
        without_rule = uncalibrated.argmax(axis=1)
    else:
        uncalibrated = scale(probabilities, 1 / rule.temperature, -np.array(rule.offsets or 0.0) / rule.temperature)
        without_rule = rule.apply(probabilities, decide=False).argmax(axis=1)
    columns = {
        "length in tokens": pd.Series(lengths),
        "longer than the maximum length": pd.Series(np.where(lengths > classifier.loaded.max_length, "yes", "no")),
        "label": pd.Series(np.array(test.labels.texts, dtype=object)[targets]).astype("category"),
        **{str(name): test.extra[name] for name in test.extra.columns},
    }
    decision_rule = {"metric": PRIMARY, **scores.decision.to_dict(), "folded": rule.folded}
    if scores.decision.used:
        metrics = {
            name: label_metrics(targets, labels, len(test.labels))
            for name, labels in (("with", predicted), ("without", without_rule))
        }
        decision_rule["test"] = {name: {m: v[m] for m in (PRIMARY, "accuracy")} for name, v in metrics.items()}
    return {
        "calibration": {"temperature": rule.temperature, "before": calibration_metrics(targets, uncalibrated)},
        "abstention": _check_abstention(tables, scores, cross_validation),
        "slices": compare_slices(predicted == targets, columns),
        "decision_rule": decision_rule,
    }


def _check_abstention(
    tables: dict[str, Table], scores: Scores, cross_validation: CrossValidation | None
) -> dict[str, Any]:
    """Check abstention thresholds on held-out texts. Without test texts, the odd folds check those of the even folds.

    Returns:
        JSON-ready: the result of `check`, and ``texts``, the number of texts that it used.
    """
    targets, probabilities = tables["test"].targets, scores.probabilities["test"]
    if cross_validation is None or cross_validation.has_test:
        held_out = tables["validation"].targets, scores.probabilities["validation"]
        return {**evaluate_abstention(targets, probabilities, held_out), "texts": len(targets)}
    even = cross_validation.fold % 2 == 0
    checked = evaluate_abstention(targets[~even], probabilities[~even], (targets[even], probabilities[even]))
    curve = accuracy_coverage_curve(probabilities.max(axis=1), probabilities.argmax(axis=1) == targets)
    return {**checked, "accuracy_coverage": curve, "texts": int((~even).sum())}


def predictions_frame(table: Table, probabilities: np.ndarray) -> pd.DataFrame:
    """Return one row per text with its source row, label, group and prediction.

    Args:
        table: n texts.
        probabilities: their probabilities, shape (n, classes).
    """
    labels = table.labels
    frame = pd.DataFrame(
        {
            "row": table.frame["row"],
            "text": table.frame["text"],
            "label": np.array(labels.numbers, dtype=np.int64)[table.targets],
            "label_text": np.array(labels.texts, dtype=object)[table.targets],
        }
    )
    if table.frame["group"].notna().all():
        frame["group"] = table.frame["group"]
    return pd.concat([frame, to_frame(probabilities, labels)], axis=1)


def hash_texts(texts: Iterable[str]) -> pd.Series:
    """Return the XXH3 hash of every text in hexadecimal: it identifies a text without revealing it."""
    return pd.Series([xxhash.xxh3_64_hexdigest(text.encode()) for text in texts], dtype="str")


def stored_targets(predictions: pd.DataFrame, labels: Labels) -> np.ndarray:
    """Return the class index of every text in saved predictions, shape (n,)."""
    index = {number: i for i, number in enumerate(labels.numbers)}
    return np.array([index[number] for number in predictions["label"]], dtype=np.int64)


def stored_groups(predictions: pd.DataFrame) -> np.ndarray | None:
    """Return the group index of every text in saved predictions, shape (n,); ``None`` without groups."""
    return pd.factorize(predictions["group"])[0] if "group" in predictions.columns else None


def write_predictions(folder: Path, name: str, frame: pd.DataFrame) -> None:
    """Write predictions as ``NAME.parquet`` and ``NAME.csv``.

    The CSV is for spreadsheets: formulas are escaped, and the probabilities are a JSON list.
    """
    with atomic.replaced_file(folder / f"{name}.parquet") as file:
        frame.to_parquet(file, index=False)
    with atomic.replaced_file(folder / f"{name}.csv") as file:
        rounded = [json.dumps([round(float(p), 6) for p in row]) for row in frame["probabilities"]]
        write_csv(frame.assign(probabilities=rounded), file)
