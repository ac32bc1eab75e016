"""Measure a corpus without labelled texts: test label shift, then return an adjusted count, or refuse."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from bertsmith.bootstrap import FEW_GROUPS
from bertsmith.data.template import Texts, flat, stored_groups, texts_of
from bertsmith.errors import DataError, counted, listing, quoted
from bertsmith.folders.run import Run
from bertsmith.measuring.estimate import Totals, sum_totals
from bertsmith.measuring.label_shift import (
    ALPHA,
    FEWEST,
    AdjustedCount,
    adjusted_count,
    combined_p_value,
    label_shift_test,
)
from bertsmith.measuring.quantities import Quantities, Results
from bertsmith.measuring.result import Measurement
from bertsmith.measuring.text_features import fit_axes, fit_clusters, text_features
from bertsmith.tasks.base import Task
from bertsmith.tasks.registry import get_task
from bertsmith.workflows.corpus_sample import SIZE, CorpusSample, Embedder, validation_rows

if TYPE_CHECKING:
    import pandas as pd

    from bertsmith.workflows.measure import Tally

USELESS_WIDTH = 0.5
"""Width of an interval that says next to nothing about a share."""
GROUPED = "this test assumes that texts of the same group are independent, so it finds differences too often"
FEWEST_IN_GROUP = 50
"""Minimum of sampled texts in a group, for a separate test of the group."""


@dataclass(frozen=True)
class HeldOut:
    """The n test texts of a run, which show the error rates of the model.

    Attributes:
        run: the run.
        targets, predicted: true and predicted class indices, shape (n,).
        scores: probabilities of the classes, shape (n, classes).
        texts: the texts.
        groups: the group of each text, such as its author, shape (n,); ``None`` for independent texts.
    """

    run: Run
    targets: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray
    texts: Texts
    groups: np.ndarray | None = None

    @classmethod
    def of(cls, run: Run) -> HeldOut:
        """Read the test predictions of a run.

        Raises:
            DataError: if the run has no test split, if a class has too few test texts, or if all are in one group.
        """
        if "by" in run.metrics["splits"]["test"]:  # by cross-validation
            raise DataError(
                "without --labelled, bertsmith measure needs the test texts of the run, but this run has none: "
                "the model was trained on all texts",
                where=str(run.path),
                remedy="Pass a labelled sample of the corpus with --labelled.",
            )
        held_out = cls._read(run, run.predictions)
        n_texts = np.bincount(held_out.targets, minlength=len(run.labels))
        if n_texts.min() < FEWEST:
            c = int(n_texts.argmin())
            raise DataError(
                f"the run has {counted(n_texts[c], 'test text')} of the class {quoted(run.labels.texts[c])}, but "
                f"without --labelled, bertsmith measure needs {FEWEST} of each class",
                where=str(run.path),
                remedy="Pass a labelled sample of the corpus with --labelled.",
            )
        if held_out.n_groups == 1:
            raise DataError(
                "without --labelled, bertsmith measure needs test texts of several groups: the run's test texts form "
                "one group, which says nothing about other groups",
                where=str(run.path),
                remedy="Pass a labelled sample of the corpus with --labelled.",
            )
        return held_out

    @property
    def n_groups(self) -> int | None:
        """The number of groups; ``None`` for independent texts."""
        return None if self.groups is None else len(np.unique(self.groups))

    @classmethod
    def _read(cls, run: Run, frame: pd.DataFrame) -> HeldOut:
        task = get_task(run.task)
        targets, scores = task.stored_targets(frame, run.labels), task.stored_scores(frame)
        return cls(run, targets, task.predicted(scores), scores, texts_of(frame), stored_groups(frame))

    def sample(self) -> HeldOut:
        """Return up to `SIZE` random texts, among them `FEWEST` of each class."""
        order = np.random.default_rng(0).permutation(len(self.targets))
        first = {int(i) for c in np.unique(self.targets) for i in order[self.targets[order] == c][:FEWEST]}
        rows = np.array([*first, *(i for i in order.tolist() if i not in first)])[: max(SIZE, len(first))]
        texts = Texts(self.texts[i] for i in rows)
        return HeldOut(self.run, self.targets[rows], self.predicted[rows], self.scores[rows], texts)

    def validation(self) -> HeldOut:
        """Return validation texts that are not among these texts."""
        return self._read(self.run, validation_rows(self.run.validation_predictions, self.texts))


class LabelShiftTest:
    """Tests whether texts of a corpus differ from held-out texts by more than the shares of the classes.

    Held-out texts are those of the test and validation split: twice the texts find smaller changes. Validation texts
    select the best epoch, but this changes their features by less than a standard error. Chosen validation texts do not
    count: they differ from the corpus.

    Args:
        held_out: the test texts.
        sample: texts of the corpus.
        embedder: the model of the run.
    """

    def __init__(self, held_out: HeldOut, sample: CorpusSample, embedder: Embedder) -> None:
        test, validation = held_out.sample(), held_out.validation()
        by_cv = "by" in held_out.run.metrics["splits"]["validation"]
        only_test = by_cv or held_out.run.has_chosen_validation
        known = [test] if only_test else [test, validation]
        fitted, before, now = (embedder.embeddings(some.texts) for some in (validation, test, sample))
        embeddings = [before] if only_test else [before, fitted]
        self.targets, self.n_classes = np.concatenate([some.targets for some in known]), test.scores.shape[1]
        self.groups = np.array(sample.groups, dtype=object)
        features = partial(features_of, get_task(held_out.run.task))
        self.features = [
            (
                np.concatenate([features(some, where(e)) for some, e in zip(known, embeddings, strict=True)]),
                features(sample, where(now)),
            )
            for where in (fit_axes(fitted, len(before)), fit_clusters(fitted, len(before)))
        ]

    def p_value(self, group: str | None = None) -> float | None:
        """Return the p-value of label shift in the corpus or in a group; ``None`` if the group is too small."""
        rows = np.ones(len(self.groups), dtype=bool) if group is None else self.groups == group
        if group is not None and rows.sum() < FEWEST_IN_GROUP:
            return None
        return combined_p_value(
            [label_shift_test(self.targets, known, corpus[rows], self.n_classes) for known, corpus in self.features]
        )


def features_of(task: Task, some: HeldOut | CorpusSample, coordinates: np.ndarray) -> np.ndarray:
    """Return the features of texts, with the labels that the task predicts."""
    scores = some.scores
    predicted = task.indicators(task.predicted(scores), scores.shape[1])
    return text_features([flat(text) for text in some.texts], task.confidence(scores), predicted, coordinates)


def measure_under_label_shift(
    quantities: Quantities, corpus: str, tally: Tally, held_out: HeldOut, embedder: Embedder
) -> Measurement:
    """Return adjusted counts, and refuse if the texts of a class have changed.

    Raises:
        DataError: if the test rejects label shift for the whole corpus.
    """
    k, groups = len(quantities.labels), tally.groups
    whole = sum_totals(tally.totals.values())
    test = LabelShiftTest(held_out, tally.kept, embedder)
    p_value = test.p_value()
    assert p_value is not None

    def count(totals: Totals) -> AdjustedCount:
        counts, outcomes, groups = totals.counts[:k], quantities.outcomes, held_out.groups
        return adjusted_count(held_out.targets, held_out.predicted, counts, outcomes, groups=groups)

    found = count(whole)
    if p_value < ALPHA or found.contradicts:
        shown = "below 0.001" if p_value < 0.001 else f"{p_value:.2g}"
        how = f"A test rejects the hypothesis that only the class shares differ (p-value {shown})"
        how += "" if held_out.groups is None else f"; {GROUPED}"
        if found.contradicts:
            how = "No mix of the classes would give these predicted labels"
        raise DataError(
            "without labelled texts, the predictions cannot be corrected: the corpus and the run's test texts "
            f"differ in more than their class shares. {how}",
            where=corpus,
            remedy="Label about 200 random texts of the corpus, and pass them with --labelled.",
        )
    notes = [
        "without labelled texts, the shares assume that, within each class, the corpus resembles the run's test texts. "
        f"A test does not reject this assumption (p-value {p_value:.2g}, significance level {ALPHA})"
    ]
    if held_out.n_groups is not None:
        notes.append(GROUPED)
        if held_out.n_groups < FEW_GROUPS:
            notes.append(
                f"the run's test texts form only {counted(held_out.n_groups, 'group')}, so the intervals are "
                "unreliable, and usually too narrow"
            )
    if (found.high - found.low).max() > USELESS_WIDTH:
        notes.append(
            "at least one 95 % interval covers more than half of the possible values: label about 200 random texts of "
            "the corpus"
        )
    results, changed, untested = Results(quantities, "adjusted count"), [], 0
    results.add(None, found, whole)
    for group in groups:
        totals = tally.totals[group]
        p_value = test.p_value(group)
        found = count(totals)
        differs = found.contradicts or (p_value is not None and p_value < ALPHA / len(groups))
        untested += p_value is None
        if differs:
            changed.append(group)
        results.add(group, None if differs else found, totals)
    if changed:
        notes.append(f"groups without an estimate, because they differ from the run's test texts: {listing(changed)}")
    if untested:
        notes.append(f"{counted(untested, 'group is', 'groups are')} too small for a separate test")
    notes += tally.notes
    return Measurement(
        corpus,
        None,
        tally.by,
        tuple(results.shares),
        empty=tally.empty,
        notes=tuple(notes),
        means=tuple(results.means),
    )
