"""Texts above the maximum length: choose how the model reads them, and measure the gain."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertsmith.bootstrap import is_one_group
from bertsmith.config import Config
from bertsmith.data.table import Table
from bertsmith.data.template import Template, Texts, texts_of
from bertsmith.evaluation.decision import MIN_TEXTS
from bertsmith.evaluation.evaluate import paired_difference, paired_differences
from bertsmith.inference.classifier import Classifier
from bertsmith.model.tokens import Tokens
from bertsmith.training.recipe import Recipe
from bertsmith.workflows.fine_tune import BACKWARD
from bertsmith.workflows.score import CrossValidation

BY_COST = ("truncate", "head-tail", "window")
MIN_CUT = 0.05
"""Share of longer training texts above which validation chooses."""
MAX_COST = 0.25
"""Largest cost of scoring windows for the choice and the report, as a share of the training."""
OVERLAP_COST = 4 / 3
"""Tokens in windows per token of a text, because windows overlap by a quarter."""


@dataclass(frozen=True)
class Reading:
    """How a model reads texts above the maximum length.

    Attributes:
        long: the choice.
        cut: share of the training texts that are longer.
        validation: scores of the validation texts, read like this, shape (n, outputs); ``None`` if unknown.
        compared: metric, gain and standard error of each candidate on validation; empty without a choice.
    """

    long: str
    cut: float
    validation: np.ndarray | None
    compared: dict[str, Any]


def candidates(
    config: Config, tokens: Mapping[str, Tokens], max_length: int, recipe: Recipe, folds: int = 0, *, template: Template
) -> tuple[str, ...]:
    """Return the ways to read long texts that a run needs, the cheapest first.

    A choice of the user is compared with ``"truncate"`` at the end. With ``"auto"``, all ways are candidates if more
    than `MIN_CUT` of the training texts are longer and enough validation texts exist. Windows are a
    candidate only if they take little time. Numbers of tokens determine this, so that all machines choose the same.

    Args:
        config: the settings.
        tokens: all tokens by split.
        max_length: maximum number of tokens.
        recipe: for the number of epochs.
        folds: number of folds; 0 without cross-validation.
        template: the columns of the model; long pairs are truncated.
    """
    if not template.is_plain:
        return BY_COST[:1]
    lengths = {name: part.full_lengths for name, part in tokens.items()}
    if config.long != "auto":
        return tuple(name for name in BY_COST if name in ("truncate", config.long))
    if not (lengths["train"] > max_length).mean() > MIN_CUT or len(lengths["validation"]) < MIN_TEXTS:
        return BY_COST[:1]
    passes = BACKWARD * max(recipe.epochs, 1) * (2 if recipe.consistency else 1) * max(folds, 1)
    trained = passes * int(np.minimum(lengths["train"], max_length).sum())
    scored = OVERLAP_COST * sum(int(lengths[name].sum()) for name in ("validation", "test"))
    return BY_COST if scored <= MAX_COST * trained else BY_COST[:2]


def choose_reading(
    classifier: Classifier,
    names: tuple[str, ...],
    table: Table,
    tokens: Mapping[str, Tokens],
    config: Config,
    cross_validation: CrossValidation | None = None,
    progress: Callable[[int], None] | None = None,
) -> Reading:
    """Choose how a trained model reads long texts.

    Each candidate must exceed the best one so far, which is cheaper, by more than the standard error of the gain.

    Args:
        classifier: the model before calibration; its ``long`` is set.
        names: from `candidates`.
        table: the validation texts.
        tokens: all tokens by split.
        config: the settings; a choice of the user is kept.
        cross_validation: the predictions of the cross-validation, if any.
        progress: called with the number of texts done since the last call.
    """
    cut = float((tokens["train"].full_lengths > classifier.max_length).mean())
    if config.long != "auto" or len(names) == 1:
        classifier.long = names[-1] if config.long == "auto" else config.long
        return Reading(classifier.long, cut, None, {})
    task, texts, groups = classifier.task, texts_of(table.frame), table.groups
    found = dict(cross_validation.readings) if cross_validation is not None else {}
    best, compared = names[0], {}
    for name in names:
        if name not in found:
            found[name] = predict_reading(classifier, name, tokens["validation"], texts, progress)
        gain, error = 0.0, 0.0
        if name != best:
            gain, drawn = paired_differences(
                task, table.targets, found[name], found[best], seed=config.seed, groups=groups
            )
            error = float("nan") if is_one_group(groups) else float(drawn.std())  # which no gain exceeds
        score = task.scalar_metrics(table.targets, found[name])[task.primary]
        compared[name] = {task.primary: score, "gain": gain, "standard_error": error, "over": best}
        best = name if gain > error else best
    classifier.long = best
    return Reading(best, cut, found[best], compared)


def predict_reading(
    classifier: Classifier, long: str, tokens: Tokens, texts: Texts, progress: Callable[[int], None] | None = None
) -> np.ndarray:
    """Return the scores of a classifier that reads long texts in another way, shape (n, outputs)."""
    other = copy.copy(classifier)
    other.long = long
    return other.probabilities_of(other.reuse_tokens(tokens, texts), progress)


def measure_reading(
    classifier: Classifier,
    reading: Reading,
    test: Table,
    tokens: Tokens,
    scores: np.ndarray,
    config: Config,
    cross_validation: CrossValidation | None = None,
) -> dict[str, Any]:
    """Measure on the test texts what the chosen way to read long texts is worth, with the same model.

    Args:
        classifier: the saved model.
        reading: the choice.
        test: n texts.
        tokens: their tokens.
        scores: their scores, shape (n, outputs).
        config: the settings.
        cross_validation: as for `choose_reading`.

    Returns:
        JSON-ready entry ``long_texts`` of ``metrics.json``: ``long``, ``setting``, ``max_length``, ``cut``,
        ``validation``, and ``test``, the difference to ``"truncate"``. ``test`` is ``None`` if the choice is
        ``"truncate"`` or every text is short enough.
    """
    longer = np.flatnonzero(tokens.full_lengths > classifier.max_length)
    measured = None
    if reading.long != "truncate" and len(longer):
        task, with_choice, truncated = classifier.task, scores, scores.copy()
        if cross_validation is not None and not cross_validation.has_test:
            with_choice, truncated = (cross_validation.readings[name] for name in (reading.long, "truncate"))
        else:
            texts = texts_of(test.take(longer).frame)
            truncated[longer] = predict_reading(classifier, "truncate", tokens.take(longer), texts)
        difference = paired_difference(task, test.targets, with_choice, truncated, seed=config.seed, groups=test.groups)
        score = task.scalar_metrics(test.targets, truncated)[task.primary]
        measured = {**difference, "truncate": score, "texts": len(test), "longer": len(longer)}
    return {
        "long": reading.long,
        "setting": config.long,
        "max_length": classifier.max_length,
        "cut": reading.cut,
        "validation": reading.compared,
        "test": measured,
    }
