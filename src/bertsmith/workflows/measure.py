"""Measure the shares of the classes in a corpus, corrected by a labelled sample or under label shift."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertsmith.config import Config
from bertsmith.data.stream import Chunk, Stream
from bertsmith.data.table import MULTI_LABEL, REGRESSION, Cells, Labels
from bertsmith.data.template import Text, flat, flat_texts, is_empty, normalise_text
from bertsmith.errors import ConfigError, DataError, did_you_mean, listing, quoted
from bertsmith.events import PredictionListener, RowsPredicted
from bertsmith.folders.run import Run, open_run
from bertsmith.inference.predict import predict_chunks
from bertsmith.inference.table_writers import PROBABILITY
from bertsmith.measuring.estimate import (
    Estimates,
    Totals,
    corrected_means,
    labels_for_target,
    power_tuning,
    sum_totals,
)
from bertsmith.measuring.label_shift import ALPHA, FEWEST, FeatureTotals, adjusted_count, label_shift_test
from bertsmith.measuring.pseudo_outcomes import OutcomeFile
from bertsmith.measuring.result import Measurement, Share
from bertsmith.measuring.text_features import TextFeatures
from bertsmith.tasks.base import Task
from bertsmith.tasks.registry import get_task
from bertsmith.workflows.labelled_sample import LabelledSample, group_name, read_sample
from bertsmith.workflows.predict import PredictOptions, open_model, opened

MAX_GROUPS = 2000
"""Most groups of a measurement."""
FEWEST_IN_GROUP = 2
"""Labelled texts, or clusters of them, that a group needs."""


def run_measurement(
    path: Path,
    source: Any,
    config: Config,
    *,
    labelled: Any = None,
    by: str | None = None,
    random_sample: bool = False,
    for_regression: Path | None = None,
    observe: PredictionListener = lambda event: None,
) -> Measurement:
    """Measure the shares of the classes in a corpus; see `bertsmith.measure`."""
    run = open_run(path)
    if run.task == REGRESSION:
        raise ConfigError("a regression has no shares", where=str(path), remedy="Train on classes of the numbers.")
    if run.task == MULTI_LABEL and labelled is None:
        raise ConfigError(
            "the shares of several labels per text need labelled texts",
            where=str(path),
            remedy="Give a labelled sample of the corpus with --labelled.",
        )
    if labelled is None and (random_sample or for_regression):
        flag = "--random-sample" if random_sample else "--for-regression"
        raise ConfigError(f"{flag} needs a labelled sample", remedy="Give it with --labelled.")
    sample = None if labelled is None else read_sample(run, labelled, config, by, random_sample=random_sample)
    held_out = HeldOut.of(run) if sample is None else None
    options = PredictOptions(probabilities=True)
    outcomes = None if for_regression is None else OutcomeFile(for_regression, run.labels.texts)
    try:
        with opened(source, config, run.template, options, observe) as stream:
            classifier, _ = open_model(path, config, options, observe)
            tally = _Tally(get_task(run.task), run.labels, by, sample, held_out, outcomes)
            texts: deque[Sequence[Text]] = deque()
            chunks = predict_chunks(
                classifier, noted(stream, texts), probabilities=True, progress=lambda n: observe(RowsPredicted(n))
            )
            for cells, _counts in chunks:
                tally.add(cells, texts.popleft())
        if not tally.totals:
            raise DataError("the corpus has no texts", where=stream.name)
        if sample is None:
            assert held_out is not None
            return _under_label_shift(run.labels, stream.name, tally, held_out)
        predictions = classifier.predict_proba(sample.texts)
        return _corrected(run.labels, stream.name, tally, sample, predictions, outcomes)
    finally:
        if outcomes is not None:
            outcomes.close()


def noted(stream: Stream, texts: deque[Sequence[Text]]) -> Iterator[Chunk]:
    """Yield the chunks of a stream, and keep their texts until they are predicted."""
    for cells, some in stream.chunks():
        texts.append(some)
        yield cells, some


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


class _Tally:
    """Adds up the predictions of a corpus, by group.

    Attributes:
        totals: sums of the predictions by group.
        features: sums of the features by group, if ``held_out`` is given.
        empty: number of rows without a text.
    """

    def __init__(
        self,
        task: Task,
        labels: Labels,
        by: str | None,
        sample: LabelledSample | None,
        held_out: HeldOut | None,
        outcomes: OutcomeFile | None,
    ) -> None:
        self.task, self.labels, self.by, self.sample = task, labels, by, sample
        self.held_out, self.outcomes = held_out, outcomes
        self.totals: dict[str, Totals] = {}
        self.features: dict[str, FeatureTotals] = {}
        self.empty = 0

    def add(self, cells: Cells, texts: Sequence[Text]) -> None:
        """Add a chunk of n rows: its columns, predictions among them, and its texts."""
        k = len(self.labels)
        rows = [i for i, text in enumerate(texts) if not is_empty(text)]
        read = [flat(normalise_text(texts[i])) for i in rows]
        self.empty += len(texts) - len(rows)
        if not rows:
            return
        names = self._groups(cells, rows)
        columns = [cells[f"{PROBABILITY}{text}"] for text in self.labels.texts]
        probabilities = np.array([[column[i] for column in columns] for i in rows])
        counted = self.task.indicators(self.task.predicted(probabilities), k)
        features = None if self.held_out is None else self.held_out.features(read, probabilities)
        codes = np.unique(names, return_inverse=True)
        for code, name in enumerate(codes[0].tolist()):
            inside = codes[1] == code
            some = Totals.of(probabilities[inside], counted[inside])
            self.totals[name] = self.totals[name] + some if name in self.totals else some
            if features is not None:
                more = FeatureTotals.of(features[inside])
                self.features[name] = self.features[name] + more if name in self.features else more
        if len(self.totals) > MAX_GROUPS:
            raise ConfigError(
                f"--by {self.by}: the column has more than {MAX_GROUPS:,} values",
                remedy="Name a column with fewer values, such as the month of a date.",
            )
        if self.sample is not None:
            matched = [
                self.sample.match(text, name if self.by else None) for text, name in zip(read, names, strict=True)
            ]
            if self.outcomes is not None:
                added = {
                    "predicted",
                    self.task.predicted_column,
                    "confidence",
                    *(f"{PROBABILITY}{t}" for t in self.labels.texts),
                }
                inputs = {name: column for name, column in cells.items() if name not in added}
                self.outcomes.add(inputs, rows, probabilities, matched, [flat(text) for text in texts])

    def _groups(self, cells: Cells, rows: list[int]) -> list[str]:
        if self.by is None:
            return [""] * len(rows)
        if self.by not in cells:
            raise ConfigError(
                f"--by {self.by}: the corpus has no such column.{did_you_mean(self.by, cells)}",
                remedy=f"Name one of its columns: {listing(cells)}.",
            )
        column = cells[self.by]
        return [group_name(column[i]) for i in rows]


def _corrected(
    labels: Labels,
    corpus: str,
    tally: _Tally,
    labelled: LabelledSample,
    predictions: np.ndarray,
    outcomes: OutcomeFile | None,
) -> Measurement:
    """Correct the predictions by the labelled sample."""
    whole = sum_totals(tally.totals.values())
    sample = labelled.with_predictions(predictions, whole.texts)
    estimator = "PPI++" if sample.equal_chances else "DSL"
    estimates = corrected_means(sample, whole)
    shares = _shares(labels, None, estimates, whole, estimator, len(sample))
    notes, found = [], int(labelled.found.sum())
    if not sample.in_corpus:
        notes.append(
            f"{len(sample) - found:,} of {len(sample):,} labelled texts are not in the corpus: the intervals are for "
            "the population that sample and corpus come from"
        )
    if outcomes is not None:
        if not sample.in_corpus:
            raise DataError(
                f"--for-regression: {len(sample) - found:,} labelled texts are not in the corpus",
                where=labelled.name,
                remedy="Give the corpus that the sample was drawn from.",
            )
        outcomes.finish(sample, power_tuning(sample, whole))
    few = []
    groups = np.array([group or "" for group in labelled.groups], dtype=object)
    for group in _names(tally):
        inside = groups == group
        part = sample.take(inside)
        units = len(np.unique(part.units)) if inside.any() else 0
        if units < FEWEST_IN_GROUP:
            few.append(group)
            shares += _shares(labels, group, None, tally.totals[group], estimator, int(inside.sum()))
            continue
        some = corrected_means(part, tally.totals[group], tuning=estimates.tuning)
        shares += _shares(labels, group, some, tally.totals[group], estimator, int(inside.sum()))
    if few:
        notes.append(f"groups with fewer than {FEWEST_IN_GROUP} labelled texts have no estimate: {listing(few)}")
    more = labels_for_target(estimates, len(sample), whole.texts) - len(sample)
    return Measurement(
        corpus,
        labelled.name,
        tally.by,
        tuple(shares),
        sample.in_corpus,
        {text: max(int(n), 0) for text, n in zip(labels.texts, more, strict=True)},
        labelled.left_out,
        tally.empty,
        tuple(notes),
    )


def _under_label_shift(labels: Labels, corpus: str, tally: _Tally, held_out: HeldOut) -> Measurement:
    """Count with an adjustment, and refuse where the texts of a class have changed.

    Raises:
        DataError: if the test rejects label shift for the whole corpus.
    """
    k, groups = len(labels), _names(tally)
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
    changed = []

    def count(group: str | None, totals: Totals) -> list[Share]:
        found = adjusted_count(held_out.targets, held_out.predicted, totals.counts)
        empty = np.zeros(k)
        estimates = Estimates(found.value, found.low, found.high, empty, empty)
        return _shares(labels, group, estimates, totals, "adjusted count", 0)

    shares = count(None, whole)
    for group in groups:
        totals = tally.totals[group]
        if label_shift_test(held_out.targets, held_out.rows, tally.features[group], k) < ALPHA / len(groups):
            changed.append(group)
            shares += _shares(labels, group, None, totals, "adjusted count", 0)
        else:
            shares += count(group, totals)
    if changed:
        notes.append(f"groups whose texts differ from the run's test texts have no estimate: {listing(changed)}")
    return Measurement(corpus, None, tally.by, tuple(shares), empty=tally.empty, notes=tuple(notes))


def _names(tally: _Tally) -> list[str]:
    """Return the names of the groups in order; none without ``--by``."""
    return sorted(tally.totals) if tally.by else []


def _shares(
    labels: Labels, group: str | None, estimates: Estimates | None, totals: Totals, estimator: str, labelled: int
) -> list[Share]:
    return [
        Share(
            text,
            group,
            None if estimates is None else float(estimates.value[c]),
            None if estimates is None else (float(estimates.low[c]), float(estimates.high[c])),
            float(totals.naive[c]),
            estimator,
            labelled,
            totals.texts,
        )
        for c, text in enumerate(labels.texts)
    ]
