"""Thresholds for abstention and label sets, from the held-out predictions of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bertsmith.data.template import flat_texts, stored_groups
from bertsmith.errors import ConfigError, counted
from bertsmith.evaluation.abstention import confidence_threshold, conformal_threshold, min_texts
from bertsmith.folders.run import Run, open_run
from bertsmith.tasks.registry import get_task

if TYPE_CHECKING:
    from bertsmith.inference.predictor import Predictor


@dataclass(frozen=True)
class Abstention:
    """Thresholds of a prediction.

    Attributes:
        confidence: texts with lower confidence get no label; ``None``: every text gets one.
        in_set: threshold of prediction sets, from `conformal_threshold`; ``None``: no prediction sets.
    """

    confidence: float | None = None
    in_set: float | None = None


@dataclass(frozen=True)
class HeldOutPredictions:
    """Held-out texts with the predictions of one or more models.

    Attributes:
        targets: shape (n,) or (n, labels), see `bertsmith.tasks.base.Task`.
        scores: of each model, each of shape (n, outputs).
        lengths: characters of the texts, shape (n,); ``None`` in exports of older versions.
        groups: group of each text, such as its author, shape (n,); ``None`` for independent texts.
        long: how the models read texts above the maximum length; see `Predictor.long`.
    """

    targets: np.ndarray
    scores: list[np.ndarray]
    lengths: np.ndarray | None = None
    groups: np.ndarray | None = None
    long: str = "truncate"


def held_out_predictions(run: Run | Path | str, *, test: bool = False) -> HeldOutPredictions:
    """Return the saved predictions for the validation split of a run, or for its test split.

    Thresholds come from validation, so that the test split can check them. Estimates for new texts come from the test
    split: on validation, the selected epoch and decision rule look better than on new texts.

    Args:
        run: the run, or its folder.
        test: whether to return those for the test split.
    """
    run = open_run(run)
    frame, task = run.predictions if test else run.validation_predictions, get_task(run.task)
    return HeldOutPredictions(
        task.stored_targets(frame, run.labels),
        [task.stored_scores(frame)],
        np.array([len(text) for text in flat_texts(frame)]),
        stored_groups(frame),
        run.info.get("long", "truncate"),
    )


def fit_abstention(
    classifier: Predictor,
    *,
    decide: bool = True,
    min_confidence: float | None = None,
    target_accuracy: float | None = None,
    coverage: float | None = None,
    probabilities: bool = False,
) -> Abstention:
    """Turn a target accuracy and a target coverage into thresholds.

    Args:
        classifier: from `open_classifier`; loads its held-out predictions only if a target needs them.
        decide: whether its models use their decision rule.
        min_confidence: lowest confidence of an answer.
        target_accuracy: target among the answered texts, an alternative to ``min_confidence``.
        coverage: target share of the texts whose label set contains the true label.
        probabilities: whether the user wants the probability of every class.

    Raises:
        ConfigError: if ``min_confidence`` and ``target_accuracy`` are both given, a target is out of reach, or the
            model predicts numbers, for which only ``coverage`` applies.
    """
    task = classifier.task
    if target_accuracy == 1:
        raise ConfigError(
            "--target-accuracy 1: no threshold guarantees that every label is correct", remedy="Pass a value below 1."
        )
    if min_confidence is not None and target_accuracy is not None:
        raise ConfigError("--min-confidence and --target-accuracy cannot be combined", remedy="Pass only one of them.")
    refused = {
        "--probabilities": probabilities,
        "--min-confidence": min_confidence is not None,
        "--target-accuracy": target_accuracy is not None,
    }
    if not task.has_labels and any(refused.values()):
        flags = " and ".join(flag for flag, given in refused.items() if given)
        raise ConfigError(
            f"{flags}: the model predicts numbers, which have no probabilities and no confidence",
            remedy=f"Leave out {flags}; --coverage gives an interval around each number.",
        )
    if target_accuracy is None and coverage is None:
        return Abstention(min_confidence)
    predictions = classifier.held_out()
    targets, tables = predictions.targets, predictions.scores
    if not decide:
        tables = [task.without_offsets(rule, scores) for rule, scores in zip(classifier.rules, tables, strict=True)]
    scores = np.mean(tables, axis=0)
    n = len(targets)
    if target_accuracy is not None:
        right = task.is_right(targets, scores)
        min_confidence = confidence_threshold(task.confidence(scores), right, target_accuracy)
        if min_confidence is None:
            needed = min_texts(target_accuracy)
            why = (
                f"this accuracy needs {counted(needed, 'held-out text')}, but the run has {n:,}"
                if needed > n
                else f"no threshold reaches this accuracy on at least {needed:,} of the {n:,} held-out texts"
            )
            raise ConfigError(
                f"--target-accuracy {target_accuracy:g}: {why} (accuracy on all held-out texts: {right.mean():.3f})",
                remedy="Pass a lower value, or --min-confidence.",
            )
    in_set = None
    if coverage is not None:
        conformity = task.conformity(targets, scores)
        n = len(conformity)
        if math.ceil((n + 1) * coverage - 1e-9) > n:
            raise ConfigError(
                f"--coverage {coverage:g} needs more than {counted(n, 'held-out text')}"
                + (" with a label" if n < len(targets) else ""),
                remedy=f"Pass at most {math.floor(1000 * n / (n + 1)) / 1000:g}, or train with more texts.",
            )
        in_set = conformal_threshold(conformity, coverage)
    return Abstention(min_confidence, in_set)
