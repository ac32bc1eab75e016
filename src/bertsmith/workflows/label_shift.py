"""Measure a corpus without labelled texts from it: test label shift, then count with an adjustment, or refuse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bertsmith.data.template import flat_texts
from bertsmith.errors import DataError, listing, quoted
from bertsmith.folders.run import Run
from bertsmith.measuring.estimate import Estimates, Totals, sum_totals
from bertsmith.measuring.label_shift import ALPHA, FEWEST, adjusted_count, label_shift_test
from bertsmith.measuring.quantities import Quantities, Results
from bertsmith.measuring.result import Measurement
from bertsmith.measuring.text_features import TextFeatures
from bertsmith.tasks.registry import get_task

if TYPE_CHECKING:
    from bertsmith.workflows.measure import Tally


@dataclass(frozen=True)
class HeldOut:
    """The test texts of a run, which show how the model errs.

    Attributes:
        targets: their class indices, shape (n,).
        predicted: the predicted class indices, shape (n,).
        rows: the features of the texts, shape (n, features).
        features: computes the same features of other texts.
    """

    targets: np.ndarray
    predicted: np.ndarray
    rows: np.ndarray
    features: TextFeatures

    @classmethod
    def of(cls, run: Run) -> HeldOut:
        """Read the test predictions of a run.

        Raises:
            DataError: if a class has too few test texts.
        """
        frame = run.predictions
        task = get_task(run.task)
        targets = task.stored_targets(frame, run.labels)
        n_texts = np.bincount(targets, minlength=len(run.labels))
        if n_texts.min() < FEWEST:
            c = int(n_texts.argmin())
            raise DataError(
                f"the run has {n_texts[c]:,} test texts of the class {quoted(run.labels.texts[c])}, and counting "
                f"without labelled texts needs {FEWEST} of each class",
                where=str(run.path),
                remedy="Give a labelled sample of the corpus with --labelled.",
            )
        probabilities, texts = task.stored_scores(frame), flat_texts(frame)
        others = run.validation_predictions["text"]  # not the texts of the test: it would reject too often
        features = TextFeatures.fit(others[~others.isin(frame["text"])].tolist())
        return cls(targets, task.predicted(probabilities), features(texts, probabilities), features)


def measure_under_label_shift(asked: Quantities, corpus: str, tally: Tally, held_out: HeldOut) -> Measurement:
    """Count with an adjustment, and refuse where the texts of a class have changed.

    Raises:
        DataError: if the test rejects label shift for the whole corpus.
    """
    k, groups = len(asked.labels), tally.groups
    whole = sum_totals(tally.totals.values())
    features = list(tally.features.values())
    p_value = label_shift_test(held_out.targets, held_out.rows, sum(features[1:], start=features[0]), k)
    if p_value < ALPHA:
        raise DataError(
            "the texts of this corpus differ from the test texts of the run by more than the shares of the classes "
            f"(p = {p_value:.2g}), so its predictions cannot be corrected without labelled texts from it",
            where=corpus,
            remedy="Label about 200 texts that are drawn at random from the corpus, and give them with --labelled.",
        )
    notes = [
        "no labelled texts: the shares are valid only if the texts of each class are like those of the run's test "
        f"texts; the data do not contradict this (p = {p_value:.2g})"
    ]
    results, changed = Results(asked, "adjusted count"), []

    def count(totals: Totals) -> Estimates:
        found = adjusted_count(held_out.targets, held_out.predicted, totals.counts[:k], asked.outcomes)
        empty = np.zeros(len(asked.names))
        return Estimates(found.value, found.low, found.high, empty, empty)

    results.add(None, count(whole), whole, 0)
    for group in groups:
        totals = tally.totals[group]
        differs = label_shift_test(held_out.targets, held_out.rows, tally.features[group], k) < ALPHA / len(groups)
        if differs:
            changed.append(group)
        results.add(group, None if differs else count(totals), totals, 0)
    if changed:
        notes.append(f"groups whose texts differ from the run's test texts have no estimate: {listing(changed)}")
    return Measurement(
        corpus,
        None,
        tally.by,
        tuple(results.shares),
        empty=tally.empty,
        notes=tuple(notes),
        means=tuple(results.means),
    )
