"""Measure a corpus without labelled texts: test label shift, then return an adjusted count, or refuse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bertsmith.data.template import Texts, flat, texts_of
from bertsmith.errors import DataError, counted, listing, quoted
from bertsmith.folders.run import Run
from bertsmith.measuring.estimate import Estimates, Totals, sum_totals
from bertsmith.measuring.label_shift import ALPHA, FEWEST, AdjustedCount, adjusted_count, label_shift_test
from bertsmith.measuring.quantities import Quantities, Results
from bertsmith.measuring.result import Measurement, empty_rows
from bertsmith.measuring.text_features import text_features
from bertsmith.tasks.registry import get_task
from bertsmith.workflows.corpus_sample import SIZE, CorpusSample, Embedder

if TYPE_CHECKING:
    from bertsmith.workflows.measure import Tally

USELESS_WIDTH = 0.5
"""Width of an interval that says next to nothing about a share."""
FEWEST_IN_GROUP = 50
"""Minimum of sampled texts in a group, for a separate test of the group."""


@dataclass(frozen=True)
class HeldOut:
    """The n test texts of a run, which show the error rates of the model.

    Attributes:
        run: the run.
        targets, predicted: true and predicted class indices, shape (n,).
        scores: probabilities, shape (n, classes).
        texts: the texts.
    """

    run: Run
    targets: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray
    texts: Texts

    @classmethod
    def of(cls, run: Run) -> HeldOut:
        """Read the test predictions of a run.

        Raises:
            DataError: if a class has too few test texts.
        """
        frame, task = run.predictions, get_task(run.task)
        targets, scores = task.stored_targets(frame, run.labels), task.stored_scores(frame)
        n_texts = np.bincount(targets, minlength=len(run.labels))
        if n_texts.min() < FEWEST:
            c = int(n_texts.argmin())
            raise DataError(
                f"the run has {counted(n_texts[c], 'test text')} of the class {quoted(run.labels.texts[c])}, but "
                f"counting without labelled texts needs {FEWEST} of each class",
                where=str(run.path),
                remedy="Pass a labelled sample of the corpus with --labelled.",
            )
        return cls(run, targets, task.predicted(scores), scores, texts_of(frame))


class LabelShiftTest:
    """Tests whether texts of a corpus differ from the test texts by more than the shares of the classes.

    Args:
        held_out: the test texts.
        sample: texts of the corpus.
        embedder: the model of the run.
    """

    def __init__(self, held_out: HeldOut, sample: CorpusSample, embedder: Embedder) -> None:
        order = np.random.default_rng(0).permutation(len(held_out.targets))
        first = {int(i) for c in np.unique(held_out.targets) for i in order[held_out.targets[order] == c][:FEWEST]}
        rows = np.array([*first, *(i for i in order.tolist() if i not in first)])[: max(SIZE, len(first))]
        texts = [held_out.texts[i] for i in rows]
        before, now = embedder.positions(texts, sample.texts)
        self.targets, self.n_classes = held_out.targets[rows], held_out.scores.shape[1]
        self.features = text_features([flat(t) for t in texts], held_out.scores[rows], before)
        self.corpus = text_features([flat(t) for t in sample.texts], sample.probabilities, now)
        self.groups = np.array(sample.groups, dtype=object)

    def p_value(self, group: str | None = None) -> float | None:
        """Return the p-value of label shift in the corpus or in a group; ``None`` if the group is too small."""
        corpus = self.corpus if group is None else self.corpus[self.groups == group]
        if group is not None and len(corpus) < FEWEST_IN_GROUP:
            return None
        return label_shift_test(self.targets, self.features, corpus, self.n_classes)


def measure_under_label_shift(
    asked: Quantities, corpus: str, tally: Tally, held_out: HeldOut, embedder: Embedder
) -> Measurement:
    """Return adjusted counts, and refuse if the texts of a class have changed.

    Raises:
        DataError: if the test rejects label shift for the whole corpus.
    """
    k, groups = len(asked.labels), tally.groups
    whole = sum_totals(tally.totals.values())
    test = LabelShiftTest(held_out, tally.kept, embedder)
    p_value = test.p_value()
    assert p_value is not None

    def count(totals: Totals) -> AdjustedCount:
        return adjusted_count(held_out.targets, held_out.predicted, totals.counts[:k], asked.outcomes)

    found = count(whole)
    if p_value < ALPHA or found.contradicts:
        how = f"if only the shares differed, such a difference would have a probability of {_percent(p_value)}"
        if found.contradicts:
            how = "no shares of the classes explain the predicted labels"
        raise DataError(
            "without labelled texts, the predictions cannot be corrected: corpus and test texts of the run differ in "
            f"more than their class shares ({how})",
            where=corpus,
            remedy="Label about 200 random texts of the corpus, and pass them with --labelled.",
        )
    notes = [
        "without labelled texts, the shares assume that the texts of each class are like the run's test texts; a "
        f"test does not reject this (p-value {p_value:.2g}; `measure` refuses below {ALPHA})"
    ]
    if (found.high - found.low).max() > USELESS_WIDTH:
        notes.append("an interval is wider than half of the range: label about 200 random texts of the corpus")
    results, changed, untested = Results(asked, "adjusted count"), [], 0

    def estimates(adjusted: AdjustedCount) -> Estimates:
        empty = np.zeros(len(asked.names))
        return Estimates(adjusted.value, adjusted.low, adjusted.high, empty, empty)

    results.add(None, estimates(found), whole)
    for group in groups:
        totals = tally.totals[group]
        p_value = test.p_value(group)
        found = count(totals)
        differs = found.contradicts or (p_value is not None and p_value < ALPHA / len(groups))
        untested += p_value is None
        if differs:
            changed.append(group)
        results.add(group, None if differs else estimates(found), totals)
    if changed:
        notes.append(f"these groups differ from the run's test texts, and have no estimate: {listing(changed)}")
    if untested:
        notes.append(f"too small for a separate test: {counted(untested, 'group')}")
    notes += empty_rows(tally.empty)
    return Measurement(
        corpus,
        None,
        tally.by,
        tuple(results.shares),
        empty=tally.empty,
        notes=tuple(notes),
        means=tuple(results.means),
    )


def _percent(probability: float) -> str:
    return "less than 0.1 %" if probability < 0.001 else f"{100 * probability:.1f} %"
