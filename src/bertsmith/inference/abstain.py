"""Thresholds for abstention and label sets, from the held-out predictions of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bertsmith.errors import ConfigError
from bertsmith.evaluation.abstention import confidence_threshold, conformal_threshold, label_sets, min_texts
from bertsmith.evaluation.rule import Rule
from bertsmith.folders.run import Run


@dataclass(frozen=True)
class Abstention:
    """Thresholds of a prediction.

    Attributes:
        confidence: texts with lower confidence get no label; ``None``: every text gets one.
        in_set: labels with at least this probability are in the label set; ``None``: no label sets.
    """

    confidence: float | None = None
    in_set: float | None = None

    def answered(self, probabilities: np.ndarray) -> np.ndarray:
        """Return which texts get a label, shape (n,), from probabilities of shape (n, classes)."""
        threshold = 0.0 if self.confidence is None else self.confidence
        result: np.ndarray = probabilities.max(axis=1, initial=0.0) >= threshold
        return result

    def sets(self, probabilities: np.ndarray, texts: tuple[str, ...]) -> list[list[str]]:
        """Return the label set of every text, likeliest label first, from probabilities of shape (n, classes)."""
        inside = label_sets(probabilities, self.in_set or 0.0)
        order = np.argsort(-probabilities, axis=1, kind="stable")
        return [[texts[c] for c in row if inside[i, c]] for i, row in enumerate(order)]


@dataclass(frozen=True)
class HeldOutPredictions:
    """Held-out texts with the predictions of one or more models.

    Attributes:
        targets: class indices, shape (n,).
        probabilities: of each model, each of shape (n, classes).
    """

    targets: np.ndarray
    probabilities: list[np.ndarray]


def held_out_predictions(run: Run, *, ensemble: bool = False) -> HeldOutPredictions:
    """Return the held-out predictions of a run, or of all its seeds for an ensemble."""
    frames = [member.validation_predictions for member in (run.members if ensemble else [run])]
    targets = np.array([run.labels.numbers.index(number) for number in frames[0]["label"]])
    return HeldOutPredictions(targets, [np.stack(frame["probabilities"].to_list()) for frame in frames])


def fit_abstention(
    held_out: Callable[[], HeldOutPredictions],
    rules: Sequence[Rule],
    *,
    decide: bool = True,
    min_confidence: float | None = None,
    target_accuracy: float | None = None,
    coverage: float | None = None,
) -> Abstention:
    """Turn a target accuracy and a target coverage into thresholds.

    Args:
        held_out: loads the held-out predictions; called only if a target needs them.
        rules: of the models.
        decide: whether the models use their decision rule.
        min_confidence: lowest confidence of an answer.
        target_accuracy: target among the answered texts, an alternative to ``min_confidence``.
        coverage: target share of the texts whose label set contains the true label.

    Raises:
        ConfigError: if ``min_confidence`` and ``target_accuracy`` are both given, or a target is out of reach.
    """
    if target_accuracy == 1:
        raise ConfigError(
            "--target-accuracy 1: no threshold guarantees that every label is correct", remedy="Give a value below 1."
        )
    if min_confidence is not None and target_accuracy is not None:
        raise ConfigError("--min-confidence and --target-accuracy cannot be combined", remedy="Give one of them.")
    if target_accuracy is None and coverage is None:
        return Abstention(min_confidence)
    predictions = held_out()
    targets, tables = predictions.targets, predictions.probabilities
    if not decide:
        tables = [Rule(r.temperature, r.offsets).apply(p, decide=False) for r, p in zip(rules, tables, strict=True)]
    probabilities = np.mean(tables, axis=0)
    n = len(targets)
    if target_accuracy is not None:
        right = probabilities.argmax(axis=1) == targets
        min_confidence = confidence_threshold(probabilities.max(axis=1), right, target_accuracy)
        if min_confidence is None:
            needed = min_texts(target_accuracy)
            why = (
                f"a threshold for it needs {needed:,} validation texts, and the run has {n:,}"
                if needed > n
                else f"no threshold reaches it on at least {needed:,} of the {n:,} validation texts"
            )
            raise ConfigError(
                f"--target-accuracy {target_accuracy:g}: {why} (their accuracy is {right.mean():.3f})",
                remedy="Give a lower value, or pass --min-confidence.",
            )
    in_set = None
    if coverage is not None:
        if math.ceil((n + 1) * coverage - 1e-9) > n:
            raise ConfigError(
                f"--coverage {coverage:g}: the run's {n:,} validation texts are too few for this coverage",
                remedy=f"Give at most {math.floor(1000 * n / (n + 1)) / 1000:g}, or train with more validation texts.",
            )
        in_set = conformal_threshold(targets, probabilities, coverage)
    return Abstention(min_confidence, in_set)
