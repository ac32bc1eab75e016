"""When not to answer, or to answer with several labels: thresholds from the validation texts of a run."""

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
    """Thresholds for answers.

    Attributes:
        confidence: texts with less get no label; ``None``: every text gets one.
        in_set: labels with at least this probability are in a text's label set; ``None``: no sets are wanted.
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
    """The validation texts, and what was said of them.

    Attributes:
        targets: class indices, shape (n,).
        said: the probabilities of every model that is asked, each of shape (n, classes).
    """

    targets: np.ndarray
    said: list[np.ndarray]


def held_out_predictions(run: Run, *, ensemble: bool = False) -> HeldOutPredictions:
    """Return the validation texts of a run, for all its seeds where ``ensemble`` says so."""
    frames = [member.validation_predictions for member in (run.members if ensemble else [run])]
    targets = np.array([run.labels.numbers.index(number) for number in frames[0]["label"]])
    return HeldOutPredictions(targets, [np.stack(frame["probabilities"].to_list()) for frame in frames])


def abstention(
    held_out: Callable[[], HeldOutPredictions],
    rules: Sequence[Rule],
    *,
    decide: bool = True,
    min_confidence: float | None = None,
    target_accuracy: float | None = None,
    coverage: float | None = None,
) -> Abstention:
    """Turn what is wanted into thresholds.

    Args:
        held_out: gives the validation texts, where they are needed.
        rules: of the models that are asked.
        decide: whether that uses its decision rule.
        min_confidence: least confidence to answer with.
        target_accuracy: wanted among the answered; the threshold is the least one that gave it on validation.
        coverage: share of the texts whose label set is to hold the true label.

    Raises:
        ConfigError: if both of the first two are wanted, or there is no threshold for what is wanted.
    """
    if target_accuracy == 1:
        raise ConfigError(
            "--target-accuracy 1: no threshold can promise that nothing is labelled wrong", remedy="Ask for less."
        )
    if min_confidence is not None and target_accuracy is not None:
        raise ConfigError("--min-confidence and --target-accuracy both say when to answer", remedy="Give one of them.")
    if target_accuracy is None and coverage is None:
        return Abstention(min_confidence)
    known = held_out()
    targets, said = known.targets, known.said
    if not decide:
        said = [Rule(r.temperature, r.offsets).apply(p, decide=False) for r, p in zip(rules, said, strict=True)]
    probabilities = np.mean(said, axis=0)
    n = len(targets)
    if target_accuracy is not None:
        right = probabilities.argmax(axis=1) == targets
        min_confidence = confidence_threshold(probabilities.max(axis=1), right, target_accuracy)
        if min_confidence is None:
            needed = min_texts(target_accuracy)
            why = (
                f"a threshold for that must rest on {needed:,} validation texts, and there are {n:,}"
                if needed > n
                else f"no threshold reached that on {needed:,} or more of the {n:,} validation texts"
            )
            raise ConfigError(
                f"--target-accuracy {target_accuracy:g}: {why} ({right.mean():.3f} of all are labelled right)",
                remedy="Ask for less, or pass --min-confidence.",
            )
    in_set = None
    if coverage is not None:
        if math.ceil((n + 1) * coverage - 1e-9) > n:
            raise ConfigError(
                f"--coverage {coverage:g}: the run's {n:,} validation texts are too few to promise that",
                remedy=f"Ask for at most {math.floor(1000 * n / (n + 1)) / 1000:g}, or train with more validation "
                "texts.",
            )
        in_set = conformal_threshold(targets, probabilities, coverage)
    return Abstention(min_confidence, in_set)
