"""Measure shares or a mean in a corpus, corrected by a labelled sample or under label shift."""

from __future__ import annotations

from collections.abc import Sequence, Set
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bertsmith.config import Config
from bertsmith.data.table import ORDINAL, Cells
from bertsmith.data.template import Text, flat, is_empty
from bertsmith.data.texts import group_name
from bertsmith.errors import ConfigError, DataError, counted, did_you_mean, listing, number_form, quoted
from bertsmith.events import PredictionListener, RowsPredicted
from bertsmith.folders.claim import claim
from bertsmith.folders.files import OutputFile
from bertsmith.folders.run import open_run
from bertsmith.inference.predict import predict_chunks
from bertsmith.inference.table_writers import PROBABILITY
from bertsmith.measuring.estimate import (
    Totals,
    corrected_means,
    correlations,
    labelled_means,
    labels_for_target,
    mean_z_score,
    sum_totals,
)
from bertsmith.measuring.pseudo_outcomes import OutcomeFile
from bertsmith.measuring.quantities import Quantities, Results
from bertsmith.measuring.result import Measurement, empty_rows, run_identity
from bertsmith.tasks.base import Task
from bertsmith.tasks.registry import get_task
from bertsmith.workflows.corpus_sample import CorpusSample, Embedder
from bertsmith.workflows.label_shift import HeldOut, measure_under_label_shift
from bertsmith.workflows.labelled_sample import NO_GROUP, LabelledSample, read_sample
from bertsmith.workflows.predict import open_model, opened
from bertsmith.workflows.predict_options import PredictOptions
from bertsmith.workflows.score import hash_texts

MAX_GROUPS = 2000
"""Maximum number of groups of a measurement."""
MAX_Z_SCORE = 4
"""A sample is not random if its mean prediction differs from that of the corpus by more standard errors than this."""
SMALL_POOL = 0.5
"""A note follows if the labelled texts come from a smaller fraction of the corpus, by their inclusion probabilities."""
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
    overwrite: bool = False,
    observe: PredictionListener = lambda event: None,
) -> Measurement:
    """Measure the shares of the classes in a corpus, or the mean of numeric labels; see `bertsmith.measure`."""
    run = open_run(path)
    task = get_task(run.task)
    if not task.one_class and labelled is None:
        predicted = "several labels per text" if task.has_labels else "numbers"
        raise ConfigError(
            f"the model predicts {predicted}, so a measurement needs labelled texts",
            where=str(path),
            remedy="Pass a labelled sample of the corpus with --labelled.",
        )
    if labelled is None and (random_sample or for_regression):
        flag = "--random-sample" if random_sample else "--for-regression"
        raise ConfigError(f"{flag} needs a labelled sample", remedy="Pass it with --labelled.")
    quantities = Quantities(run.labels, ordered=run.task == ORDINAL)
    options = PredictOptions(probabilities=task.has_labels)
    if not task.has_labels:  # scaled to about 0 to 1, as the tolerances of the estimates assume
        numbers = task.stored_targets(run.predictions, run.labels)
        quantities = replace(quantities, range=(float(numbers.min()), float(numbers.max())))
    outcomes = None
    with ExitStack() as stack:
        if for_regression is not None:
            output = OutputFile(for_regression, (source, labelled, config.db, config.corrections), (".csv",))
            stack.enter_context(claim(output, overwrite=overwrite))
            outcomes = OutcomeFile(for_regression, quantities.names, quantities.lowest, quantities.span)
            stack.callback(outcomes.close)
        sample = None if labelled is None else read_sample(run, labelled, config, by, random_sample=random_sample)
        held_out = HeldOut.of(run) if sample is None else None
        with opened(source, config, run.template, options, observe) as stream:
            classifier, _ = open_model(path, config, options, observe)
            tally = Tally(task, quantities, by, sample, outcomes, run.training_hashes, stream.text_columns)
            for cells, _counts, texts in predict_chunks(
                classifier, stream.chunks(), probabilities=task.has_labels, progress=lambda n: observe(RowsPredicted(n))
            ):
                tally.add(cells, texts)
        if not tally.totals:
            raise DataError(
                "all texts of the corpus are empty or in the training or validation texts of the run",
                where=stream.name,
                remedy="Check the file and --text-column.",
            )
        if sample is None:
            assert held_out is not None
            embedder = Embedder(run, classifier, config.device)
            found = measure_under_label_shift(quantities, stream.name, tally, held_out, embedder)
        else:
            found = _corrected(quantities, stream.name, tally, sample, classifier.predict_proba(sample.texts), outcomes)
        return replace(found, trained=tally.trained if tally.leaves_out else 0, run=run_identity(run.info))


class Tally:
    """Adds up the predictions of a corpus, by group.

    Attributes:
        totals: sums of the predictions by group.
        kept: a random sample of the corpus, if there is no labelled sample.
        rows: number of rows.
        empty: number of rows without a text.
        trained: number of rows with a text of the training. Without a sample, and if some of them were drawn, they are
            left out: the model predicts them better than the others, and no drawn text represents them.
    """

    def __init__(
        self,
        task: Task,
        quantities: Quantities,
        by: str | None,
        sample: LabelledSample | None,
        outcomes: OutcomeFile | None,
        trained: Set[str] = frozenset(),
        text_columns: Sequence[str] = (),
    ) -> None:
        self.task, self.quantities, self.by, self.sample = task, quantities, by, sample
        self.outcomes, self.text_columns, self.kept = outcomes, text_columns, CorpusSample()
        self.totals: dict[str, Totals] = {}
        self.rows = self.empty = self.trained = 0
        self._trained = trained if sample is None else sample.trained
        self.leaves_out = sample is None or sample.without_trained

    def add(self, cells: Cells, texts: Sequence[Text]) -> None:
        """Add a chunk of n rows: its columns, predictions among them, and its normalised texts."""
        filled = [i for i, text in enumerate(texts) if not is_empty(text)]
        seen = hash_texts(texts[i] for i in filled).isin(self._trained).tolist()
        self.trained += sum(seen)
        rows = [i for i, known in zip(filled, seen, strict=True) if not (known and self.leaves_out)]
        read = [flat(texts[i]) for i in rows]
        numbers = [self.rows + i + 1 for i in rows]
        self.rows, self.empty = self.rows + len(texts), self.empty + len(texts) - len(filled)
        if not rows:
            return
        names = self._groups(cells, rows)
        used = [f"{PROBABILITY}{text}" for text in self.quantities.labels.texts]
        columns = [cells[name] for name in (used if self.task.has_labels else [self.task.predicted_column])]
        scores = np.array([[column[i] for column in columns] for i in rows])
        decided = self.quantities.of(self.task.indicators(self.task.predicted(scores), len(columns)))
        predictions = self.quantities.of(scores)
        if self.sample is None:
            self.kept.add([texts[i] for i in rows], scores, names)
        groups: dict[str, list[int]] = {}
        for i, name in enumerate(names):
            groups.setdefault(name, []).append(i)
        for name, inside in groups.items():
            some = Totals.of(predictions[inside], decided[inside])
            self.totals[name] = self.totals[name] + some if name in self.totals else some
        if len(self.totals) > MAX_GROUPS:
            raise ConfigError(
                f"--by {self.by}: the column has more than {MAX_GROUPS:,} values",
                remedy="Name a column with fewer values, such as the month of a date.",
            )
        if self.sample is not None:
            for text, number, name in zip(read, numbers, names, strict=True):
                self.sample.see(text, number, name if self.by else None)
        if self.outcomes is not None:
            others = {name: column for name, column in self._inputs(cells).items() if name not in self.text_columns}
            self.outcomes.add(others, rows, numbers, predictions)

    @property
    def notes(self) -> list[str]:
        """What to know about the rows that no share counts, or that may not belong to the population."""
        known = f"{counted(self.trained, 'text')} of the corpus {number_form(self.trained, 'is', 'are')} also in the "
        known += "training or validation texts of the run"
        if not self.trained:
            return empty_rows(self.empty)
        if self.leaves_out:
            known += f": the estimates are for the other {counted(sum_totals(self.totals.values()).texts, 'text')}"
        else:
            known += (
                ", but not in the sample. If you drew only from the other texts, remove these texts from the corpus. "
                "If you drew from all texts, the estimates are for the whole corpus. But the model may predict its "
                "training texts better than the others, so compare the estimates with those of the labelled texts alone"
            )
        return [known, *empty_rows(self.empty)]

    @property
    def groups(self) -> list[str]:
        """The names of the groups in order; none without ``--by``."""
        return sorted(self.totals) if self.by else []

    def _inputs(self, cells: Cells) -> Cells:
        """Return the columns of the corpus, without those of the predictions."""
        added = {"predicted", self.task.predicted_column, "confidence"}
        added |= {f"{PROBABILITY}{text}" for text in self.quantities.labels.texts}
        return {name: column for name, column in cells.items() if name not in added}

    def _groups(self, cells: Cells, rows: list[int]) -> list[str]:
        if self.by is None:
            return [""] * len(rows)
        if self.by not in (inputs := self._inputs(cells)):
            raise ConfigError(
                f"--by {self.by}: the corpus has no such column.{did_you_mean(self.by, inputs)}",
                remedy=f"Name one of its columns: {listing(inputs)}.",
            )
        column = cells[self.by]
        return [group_name(column[i], unite_numbers=False) or NO_GROUP for i in rows]


def _corrected(
    quantities: Quantities,
    corpus: str,
    tally: Tally,
    labelled: LabelledSample,
    scores: np.ndarray,
    outcomes: OutcomeFile | None,
) -> Measurement:
    """Correct the predictions by the labelled sample, whose scores have shape (n, outputs)."""
    whole, matched = sum_totals(tally.totals.values()), labelled.match()
    if labelled.surplus.any():
        copies = [row for row, copy in zip(labelled.rows, labelled.surplus, strict=True) if copy]
        raise DataError(
            "some texts occur more often in the sample than in the corpus "
            f"({counted(len(copies), 'surplus row')}: {listing(copies, 5)})",
            where=labelled.name,
            remedy="Keep one row for each text that you drew: copies would make the interval too narrow.",
        )
    sample = labelled.with_predictions(scores, quantities, whole.texts)
    if sample.equal_chances and sample.clusters is None and mean_z_score(sample, whole) > MAX_Z_SCORE:
        raise DataError(
            "the predictions for the labelled texts differ from those for the corpus by more than chance, so the "
            "sample is not random",
            where=labelled.name,
            remedy="Draw the texts at random from this corpus. If some texts were more likely to be drawn than others, "
            "write the probability of each text into the column inclusion_probability.",
        )
    results = Results(quantities, "PPI++" if sample.equal_chances else "DSL")
    estimates, without_model = corrected_means(sample, whole), labelled_means(sample, whole)
    results.add(None, estimates, whole, len(sample), without_model)
    notes, found = list(labelled.notes), int(labelled.found.sum())
    if not sample.in_corpus:
        notes.append(
            f"labelled texts that are not in the corpus: {len(sample) - found:,} of {len(sample):,}; the intervals are "
            "for the population that sample and corpus come from"
            + ("" if found else ". Check that the sample belongs to this corpus")
        )
    drawn_from = labelled.drawn_from
    if drawn_from is not None and drawn_from < SMALL_POOL * whole.texts:
        notes.append(
            f"by their inclusion probabilities, the drawn texts come from about {drawn_from:,.0f} texts, but the "
            f"corpus has {whole.texts:,}. The estimates hold for the corpus only if these texts are a random part of it"
        )
    share_names = quantities.names[: quantities.n_shares]
    for text, everywhere in zip(share_names, labelled.outcomes.min(axis=0) == 1, strict=False):
        if everywhere:
            notes.append(f"every labelled text has the label {quoted(text)}: check that the labels are correct")
    if outcomes is not None:
        if not sample.in_corpus:
            raise DataError(
                f"--for-regression: {counted(len(sample) - found, 'labelled text is', 'labelled texts are')} not in "
                "the corpus",
                where=labelled.name,
                remedy="Pass the corpus from which the sample was drawn.",
            )
        outcomes.finish(sample, estimates.tuning, matched)
        if sample.clusters is not None:
            notes.append(
                "you labelled a sample of groups: pass the column of the groups to bertsmith.regress as clusters"
            )
    few = []
    groups = np.array([group or "" for group in labelled.groups], dtype=object)
    for group in tally.groups:
        inside, totals = groups == group, tally.totals[group]
        part = sample.take(inside)
        units = len(np.unique(part.units)) if inside.any() else 0
        if units < FEWEST_IN_GROUP:
            few.append(group)
        some, alone = None, None
        if units >= FEWEST_IN_GROUP:
            some, alone = corrected_means(part, totals, tuning=estimates.tuning), labelled_means(part, totals)
        results.add(group, some, totals, int(inside.sum()), alone)
    if few:
        notes.append(f"groups with fewer than {FEWEST_IN_GROUP} labelled texts have no estimate: {listing(few)}")
    n, outside = len(sample), None if sample.in_corpus else without_model
    needed = np.maximum(labels_for_target(estimates, n, whole.texts, outside) - n, 0)
    more_labels = dict(zip(share_names, needed.tolist(), strict=False))
    widths = np.sqrt(1 - correlations(sample)[: len(quantities.labels)] ** 2)
    least_widths = dict(zip(quantities.names, widths.tolist(), strict=False))
    narrowest, widest = (f"{width:.2f}" for width in (widths.min(), widths.max()))
    several, by_class = ("", "") if narrowest == widest else (f" to {widest}", ", depending on the class")
    notes.append(
        f"with this model, an interval is at best {narrowest}{several} times as wide as from the labelled texts alone"
        f"{by_class}"
        if narrowest < "1.00"
        else "the predictions of this model do not narrow the intervals of the labelled texts"
    )
    notes += tally.notes
    if more := max(more_labels.values(), default=0):
        notes.append(f"{counted(more, 'more labelled text')} would give every class an interval of ±1 percentage point")
    return Measurement(
        corpus,
        labelled.name,
        tally.by,
        tuple(results.shares),
        sample.in_corpus,
        more_labels,
        least_widths,
        labelled.left_out,
        tally.empty,
        tuple(notes),
        tuple(results.means),
        None if sample.clusters is None else len(np.unique(sample.clusters)),
    )
