"""Texts above the maximum length: choose how the model reads them, and measure what that is worth."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertsmith.config import PRIMARY, Config
from bertsmith.data.table import Table
from bertsmith.evaluation.decision import MIN_TEXTS
from bertsmith.evaluation.intervals import label_metrics, paired_difference, resampled_differences
from bertsmith.inference.classifier import Classifier
from bertsmith.model.tokenizer import Tokens
from bertsmith.training.recipe import Recipe
from bertsmith.training.time_estimate import BACKWARD
from bertsmith.workflows.score import CrossValidation, table_groups

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
        validation: probabilities of the validation texts, read like this, shape (n, classes); ``None`` if unknown.
        compared: metric, gain and standard error of each candidate on validation; empty without a choice.
    """

    long: str
    cut: float
    validation: np.ndarray | None
    compared: dict[str, Any]


def candidates(
    config: Config, tokens: Mapping[str, Tokens], max_length: int, recipe: Recipe, folds: int = 0
) -> tuple[str, ...]:
    """Return the ways to read long texts that a run needs, the cheapest first.

    A choice of the user is compared with ``"truncate"`` at the end. With ``"auto"``, all ways are candidates if more
    than `MIN_CUT` of the training texts are longer and enough validation texts exist. Windows must also fit the time,
    which is estimated from numbers of tokens, so that all machines choose the same.

    Args:
        config: the settings.
        tokens: all tokens by split.
        max_length: maximum number of tokens.
        recipe: for the number of epochs.
        folds: number of folds; 0 without cross-validation.
    """
    lengths = {name: part.full_lengths for name, part in tokens.items()}
    if config.long != "auto":
        return tuple(name for name in BY_COST if name in ("truncate", config.long))
    if not (lengths["train"] > max_length).mean() > MIN_CUT or len(lengths["validation"]) < MIN_TEXTS:
        return BY_COST[:1]
    passes = BACKWARD * recipe.epochs * (2 if recipe.consistency else 1) * max(folds, 1)
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
    texts, n_classes, groups = table.frame["text"].tolist(), len(table.labels), table_groups(table)
    found = dict(cross_validation.readings) if cross_validation is not None else {}
    best, compared = names[0], {}
    for name in names:
        if name not in found:
            found[name] = predict_reading(classifier, name, tokens["validation"], texts, progress)
        new, old = found[name].argmax(axis=1), found[best].argmax(axis=1)
        new_score, old_score = (label_metrics(table.targets, labels, n_classes)[PRIMARY] for labels in (new, old))
        differences = resampled_differences(table.targets, new, old, n_classes, seed=config.seed, groups=groups)
        gain, error = new_score - old_score, float(np.std(differences))
        compared[name] = {PRIMARY: new_score, "gain": gain, "standard_error": error, "over": best}
        best = name if gain > error else best
    classifier.long = best
    return Reading(best, cut, found[best], compared)


def predict_reading(
    classifier: Classifier, long: str, tokens: Tokens, texts: list[str], progress: Callable[[int], None] | None = None
) -> np.ndarray:
    """Return the probabilities of a classifier that reads long texts in another way, shape (n, classes)."""
    other = copy.copy(classifier)
    other.long = long
    return other.probabilities_of(other.reuse_tokens(tokens, texts), progress)


def measure_reading(
    classifier: Classifier,
    reading: Reading,
    test: Table,
    tokens: Tokens,
    probabilities: np.ndarray,
    config: Config,
    cross_validation: CrossValidation | None = None,
) -> dict[str, Any]:
    """Measure on the test texts what the chosen way to read long texts is worth, with the same model.

    Args:
        classifier: the saved model.
        reading: the choice.
        test: n texts.
        tokens: their tokens.
        probabilities: their probabilities, shape (n, classes).
        config: the settings.
        cross_validation: as for `choose_reading`.

    Returns:
        JSON-ready entry ``long_texts`` of ``metrics.json``: ``long``, ``setting``, ``max_length``, ``cut``,
        ``validation``, and ``test``, the difference to ``"truncate"``; ``None`` if the beginnings are read, or all of
        every text.
    """
    longer = np.flatnonzero(tokens.full_lengths > classifier.max_length)
    measured = None
    if reading.long != "truncate" and len(longer):
        with_choice, truncated = probabilities.argmax(axis=1), probabilities.argmax(axis=1)
        if cross_validation is not None and not cross_validation.has_test:
            with_choice, truncated = (
                cross_validation.readings[name].argmax(axis=1) for name in (reading.long, "truncate")
            )
        else:
            texts = test.frame["text"].iloc[longer].tolist()
            truncated[longer] = predict_reading(classifier, "truncate", tokens.take(longer), texts).argmax(axis=1)
        n_classes = len(test.labels)
        value, low, high = paired_difference(
            test.targets, with_choice, truncated, n_classes, seed=config.seed, groups=table_groups(test)
        )
        score = label_metrics(test.targets, truncated, n_classes)[PRIMARY]
        measured = {"metric": PRIMARY, "truncate": score, "value": value, "interval": [low, high]}
        measured |= {"texts": len(test), "longer": len(longer)}
    return {
        "long": reading.long,
        "setting": config.long,
        "max_length": classifier.max_length,
        "cut": reading.cut,
        "validation": reading.compared,
        "test": measured,
    }
