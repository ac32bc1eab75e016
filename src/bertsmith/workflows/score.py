"""Score a model on the splits of its run, and write its predictions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xxhash

from bertsmith.compute.device import choose_precision
from bertsmith.config import FEWEST_TO_SELECT, Config
from bertsmith.data.table import Table
from bertsmith.data.template import Text, flat, texts_of
from bertsmith.evaluation.abstention import accuracy_coverage_curve
from bertsmith.evaluation.decision import TunedOffsets
from bertsmith.evaluation.evaluate import evaluate
from bertsmith.evaluation.rule import Rule
from bertsmith.evaluation.slices import compare_slices
from bertsmith.events import RunListener, Scoring
from bertsmith.folders import atomic
from bertsmith.folders import run as runs
from bertsmith.inference.classifier import Classifier
from bertsmith.inference.predictor import to_frame
from bertsmith.inference.table_writers import write_csv
from bertsmith.model.load import fold_calibration, saved_settings
from bertsmith.model.tokens import Tokens
from bertsmith.tasks.base import Task
from bertsmith.tasks.registry import get_task

TRAIN_SAMPLE = (200, 1000)
"""Minimum and maximum number of training texts to score; in between, a tenth of them. Shows overfitting."""


def apply_rule(classifier: Classifier, rule: Rule, run: runs.Run) -> None:
    """Put a decision rule, a calibration and the way to read long texts into a model, and save the model.

    If the head ends in a linear layer, its weights include the rule, for every library that loads the model. Otherwise
    the rule is in the model's configuration, and only bertsmith uses it.

    Args:
        classifier: the model after training, with the choice of ``long``; its ``rule`` is set.
        rule: what to apply to its outputs.
        run: the run of the model.
    """
    is_long = classifier.long != "truncate"
    if is_long or not rule.is_neutral:
        model = classifier.loaded.model
        classifier.rule = replace(rule, folded=fold_calibration(model, *rule.folding))
        long = {"long": classifier.long} if is_long else {}
        model.config.bertsmith = {**saved_settings(model.config), **classifier.rule.to_dict(), **long}
        run.save_model(classifier.loaded.save)


@dataclass(frozen=True)
class CrossValidation:
    """Predictions for the training texts by models that were not trained on them.

    Attributes:
        fold: the fold of each training text, shape (n,).
        readings: the scores of each training text by the way to read long texts, each of shape (n, outputs).
        long: the way that the model uses.
        has_test: whether the table has test texts.
    """

    fold: np.ndarray
    readings: dict[str, np.ndarray]
    long: str
    has_test: bool

    @property
    def scores(self) -> np.ndarray:
        """The scores of each training text, shape (n, outputs)."""
        return self.readings[self.long]

    @property
    def n_folds(self) -> int:
        """Number of folds."""
        return int(self.fold.max()) + 1

    def calibrated(self, task: Task, table: Table, config: Config) -> np.ndarray:
        """Calibrate the scores of each fold of a table with the rule of the other folds, shape (n, outputs)."""
        result = np.empty_like(self.scores)
        for f in range(self.n_folds):
            inside = self.fold != f
            others = table.take(inside)
            _, rule = task.fit_rule(
                others.targets,
                self.scores[inside],
                seed=config.seed,
                use_offsets=config.decision_rule == "auto",
                model=self.fold[inside],
                groups=others.groups,
            )
            result[~inside] = task.apply(rule, self.scores[~inside])
        return result


@dataclass(frozen=True)
class Scores:
    """Scores of a model on the splits.

    Attributes:
        splits: metrics by split.
        scores: by split, each of shape (texts, outputs).
        tuned: the offsets of the decision rule of the model.
        inference: the result of `choose_inference`.
        lengths: number of tokens of every test text before truncation, shape (texts,).
    """

    splits: dict[str, Any]
    scores: dict[str, np.ndarray]
    tuned: TunedOffsets
    inference: dict[str, Any]
    lengths: np.ndarray


def score_splits(
    classifier: Classifier,
    tables: dict[str, Table],
    tokens: dict[str, Tokens],
    run: runs.Run,
    config: Config,
    observe: RunListener,
    progress: Callable[[int], None],
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
        observe: called with `Scoring` once.
        progress: called at the beginning with 0, and after each batch with its number of texts.
        cross_validation: the predictions of the cross-validation, if any.
        validation: scores of the validation texts, if they are known.
    """
    task = classifier.task
    sample, seed, n_train = tables["train"], config.seed, len(tables["train"])
    size = min(max(n_train // 10, TRAIN_SAMPLE[0]), TRAIN_SAMPLE[1])
    if n_train > size:
        rows = np.sort(np.random.default_rng(seed).choice(n_train, size, replace=False))
        sample, tokens = sample.take(rows), {**tokens, "train": tokens["train"].take(rows)}
    # Validation is first: it calibrates the model.
    tables = {"validation": tables["validation"], "train": sample, "test": tables["test"]}
    known: dict[str, np.ndarray] = {} if validation is None else {"validation": validation}
    if cross_validation is not None:
        known["validation"] = cross_validation.scores
        if not cross_validation.has_test:
            known["test"] = cross_validation.calibrated(task, tables["test"], config)
    observe(Scoring(sum(len(table) for name, table in tables.items() if name not in known)))
    progress(0)

    def predict(name: str) -> np.ndarray:
        own_tokens = classifier.reuse_tokens(tokens[name], texts_of(tables[name].frame))
        return classifier.probabilities_of(own_tokens, progress)

    splits: dict[str, Any] = {}
    scores: dict[str, np.ndarray] = {}
    for name, table in tables.items():
        predicted = known[name] if name in known else predict(name)
        if name == "validation":
            tuned, rule = task.fit_rule(
                table.targets,
                predicted,
                seed=seed,
                use_offsets=config.decision_rule == "auto",
                model=None if cross_validation is None else cross_validation.fold,
                groups=table.groups,
            )
            apply_rule(classifier, rule, run)
            predicted = task.apply(rule, predicted)
        scores[name] = predicted
        splits[name] = evaluate(
            task, table.targets, predicted, table.labels, seed=seed, detail=name != "train", groups=table.groups
        )
        if cross_validation is not None and name in known:
            splits[name] |= {"by": "cross-validation", "folds": cross_validation.n_folds}
    checked = "validation" if cross_validation is None else "train"
    inference = choose_inference(classifier, tokens[checked], scores[checked])
    splits["train"]["sample_of"] = n_train
    return Scores(splits, scores, tuned, inference, tokens["test"].full_lengths)


def choose_inference(classifier: Classifier, validation: Tokens, scores: np.ndarray) -> dict[str, Any]:
    """Switch a classifier to bf16 if its device computes fast in bf16 and all predicted labels stay the same.

    Args:
        classifier: the calibrated model; its ``dtype`` is set.
        validation: the tokens of n texts, usually the validation texts.
        scores: their scores in fp32, shape (n, outputs).

    Returns:
        JSON-ready: ``precision`` of predictions. If bf16 was tried, also ``texts``, ``agreement`` (share of texts with
        the same label) and ``largest_difference`` (of a probability).
    """
    if choose_precision(classifier.loaded.device)[0] != "bf16" or len(validation) < FEWEST_TO_SELECT:
        return {"precision": "fp32"}
    classifier.set_dtype(torch.bfloat16)
    bf16 = classifier.probabilities_of(validation)
    same = classifier.task.is_same(scores, bf16)
    if not same.all():
        classifier.set_dtype(torch.float32)
    return {
        "precision": "bf16" if same.all() else "fp32",
        "texts": len(validation),
        "agreement": float(same.mean()),
        "largest_difference": float(abs(bf16 - scores).max()),
    }


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
    test, predicted, lengths = tables["test"], scores.scores["test"], scores.lengths
    task, targets, rule = classifier.task, test.targets, classifier.rule
    if cross_validation is not None and not cross_validation.has_test:  # the rule differs between folds
        uncalibrated = without_rule = cross_validation.scores
    else:
        uncalibrated, without_rule = task.undo(rule, predicted), task.without_offsets(rule, predicted)
    columns = {
        "length in tokens": pd.Series(lengths),
        "longer than the maximum length": pd.Series(np.where(lengths > classifier.loaded.max_length, "yes", "no")),
        **task.slice_columns(targets, test.labels),
        **{str(name): test.extra[name] for name in test.extra.columns},
    }
    decision_rule = {**scores.tuned.to_dict(), "metric": task.primary, "folded": rule.folded}
    if scores.tuned.used:
        decision_rule["test"] = {
            name: {m: task.scalar_metrics(targets, s)[m] for m in task.headline}
            for name, s in (("with", predicted), ("without", without_rule))
        }
    return {
        "calibration": {
            **{name: value for name, value in rule.to_dict().items() if name in ("temperature", "stretch")},
            "before": task.calibration(targets, uncalibrated),
        },
        "abstention": _check_abstention(task, tables, scores, cross_validation),
        "slices": compare_slices(task.is_right(targets, predicted), columns, test.groups),
        "decision_rule": decision_rule,
    }


def _check_abstention(
    task: Task, tables: dict[str, Table], scores: Scores, cross_validation: CrossValidation | None
) -> dict[str, Any]:
    """Check abstention thresholds on held-out texts. Without test texts, the odd folds check those of the even folds.

    Returns:
        JSON-ready: the result of `check`, and ``texts``, the number of texts that it used.
    """
    targets, predicted = tables["test"].targets, scores.scores["test"]
    if cross_validation is None or cross_validation.has_test:
        held_out = tables["validation"].targets, scores.scores["validation"]
        return {**task.abstention(targets, predicted, held_out), "texts": len(targets)}
    even = cross_validation.fold % 2 == 0
    checked = task.abstention(targets[~even], predicted[~even], (targets[even], predicted[even]))
    if "accuracy_coverage" in checked:
        curve = accuracy_coverage_curve(task.confidence(predicted), task.is_right(targets, predicted))
        checked["accuracy_coverage"] = curve
    return {**checked, "texts": int((~even).sum())}


def predictions_frame(table: Table, scores: np.ndarray) -> pd.DataFrame:
    """Return one row per text with its source row, label, group and prediction.

    Args:
        table: n texts.
        scores: shape (n, outputs).
    """
    task = get_task(table.task)
    frame = pd.DataFrame(
        {
            "row": table.frame["row"],
            **{name: table.frame[name] for name in ("text", "pair") if name in table.frame.columns},
            **{name: pd.Series(values) for name, values in task.truth_columns(table.targets, table.labels).items()},
        }
    )
    if table.frame["group"].notna().all():
        frame["group"] = table.frame["group"]
    return pd.concat([frame, to_frame(task, scores, table.labels)], axis=1)


def hash_texts(texts: Iterable[Text]) -> pd.Series:
    """Return the XXH3 hash of every text in hexadecimal: it identifies a text without revealing it."""
    return pd.Series([xxhash.xxh3_64_hexdigest(flat(text).encode()) for text in texts], dtype="str")


def write_predictions(folder: Path, name: str, frame: pd.DataFrame) -> None:
    """Write predictions as ``NAME.parquet`` and ``NAME.csv``.

    The CSV is for spreadsheets: formulas are escaped, and the probabilities are a JSON list.
    """
    with atomic.replaced_file(folder / f"{name}.parquet") as file:
        frame.to_parquet(file, index=False)
    with atomic.replaced_file(folder / f"{name}.csv") as file:
        if "probabilities" in frame.columns:
            rounded = [json.dumps([round(float(p), 6) for p in row]) for row in frame["probabilities"]]
            frame = frame.assign(probabilities=rounded)
        lists = [n for n in frame.columns if len(frame) and isinstance(frame[n].iloc[0], list)]
        frame = frame.assign(**{name: frame[name].map(lambda labels: ";".join(map(str, labels))) for name in lists})
        write_csv(frame, file)
