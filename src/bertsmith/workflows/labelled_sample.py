"""A labelled sample of a corpus: how its texts were chosen, and where they are in the corpus."""

from __future__ import annotations

import dataclasses
from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bertsmith.config import Config
from bertsmith.data.clean import NO_LABEL, UNITED, clean
from bertsmith.data.columns import canonical
from bertsmith.data.sources import read_raw
from bertsmith.data.table import REGRESSION, Table
from bertsmith.data.template import Template, Texts, flat, texts_of, unguarded
from bertsmith.data.texts import group_name
from bertsmith.errors import DataError, counted, listing, number_form, quoted
from bertsmith.folders.run import Run
from bertsmith.labelling.table import OWN_COLUMNS
from bertsmith.measuring.design import NOT_RANDOM, Design, read_design
from bertsmith.measuring.estimate import Sample, order_z_score
from bertsmith.measuring.quantities import Quantities
from bertsmith.tasks.registry import get_task
from bertsmith.workflows.evaluate import far_number_notes, read_labelled
from bertsmith.workflows.score import hash_texts

FEWEST_LABELLED = 20
"""Fewest labelled texts of a sample."""
SEEN = "also in the training or validation texts of the run"
UNLABELLED = 0.05
"""Largest accepted fraction of drawn texts without a label, by weight. They change a share by at most as much."""
SORTED = 4
"""A sample whose last rows have no label is sorted if its labels have a stronger trend, in standard errors."""
NO_GROUP = "(missing)"
"""The group of a row without one."""


@dataclass
class LabelledSample:
    """A labelled sample, matched with its corpus while reading the corpus.

    Attributes:
        name: of the sample.
        rows: row numbers of the n texts, for messages.
        texts: normalised texts, or pairs. Texts of the corpus lose the apostrophe of `guarded_cell`.
        outcomes: 0 or 1 for each label of each text, shape (n, labels), or its number, shape (n, 1).
        inclusion: inclusion probability of each text, shape (n,); ``None`` if all have the same.
        clusters: cluster of each text, shape (n,); ``None`` if texts were drawn one by one.
        groups: group of each text if known, from the sample or from the corpus.
        left_out: number of rows left out by reason.
        notes: what to know about the rows that are left out.
        trained: hashes of the training and validation texts, without those that the sample lists as not drawn.
        drawn_from: number of texts that all drawn rows represent by their inclusion probabilities, also those without a
            label; ``None`` without probabilities.
        found: whether each text occurs in the corpus, shape (n,).
    """

    name: str
    rows: list[int]
    texts: Texts
    outcomes: np.ndarray
    inclusion: np.ndarray | None
    clusters: np.ndarray | None
    groups: list[str | None]
    left_out: dict[str, int]
    notes: tuple[str, ...] = ()
    trained: frozenset[str] = frozenset()
    drawn_from: float | None = None
    found: np.ndarray = field(init=False)
    _positions: dict[str, list[int]] = field(init=False, default_factory=dict)
    _guarded: dict[str, str] = field(init=False)
    _copies: dict[str, dict[str | None, list[tuple[float, int]]]] = field(init=False, default_factory=dict)
    _rng: np.random.Generator = field(init=False, default_factory=lambda: np.random.default_rng(0))

    def __post_init__(self) -> None:
        self.found = np.zeros(len(self.texts), dtype=bool)
        for i, text in enumerate(self.texts):
            self._positions.setdefault(flat(text), []).append(i)
        # `predict` guards texts in CSV. A sample from such a file has the texts of the corpus with an apostrophe.
        plain = {flat(unguarded(text)): flat(text) for text in self.texts}
        self._guarded = {text: guarded for text, guarded in plain.items() if text not in self._positions}

    def see(self, text: str, row: int, group: str | None) -> None:
        """Keep a row of the corpus for `match` if the sample has its text.

        Of the copies of a text in a group, a random choice is kept: as many as the sample has.
        """
        guarded = self._guarded.pop(text, None)
        if guarded is not None and guarded not in self._copies:
            self._positions[text] = self._positions.pop(guarded)
            for i in self._positions[text]:
                self.texts[i] = unguarded(self.texts[i])
        if text in self._positions:
            copies = self._copies.setdefault(text, {}).setdefault(group, [])
            insort(copies, (float(self._rng.random()), row))
            del copies[len(self._positions[text]) :]

    def match(self) -> dict[int, int]:
        """Match the sample with the corpus after reading it; return positions in the sample by row of the corpus.

        Each row is matched at most once. If a text occurs several times, a copy in the group of the sampled text is
        preferred. Without such a copy, a random copy is matched, and its group is used. The first copy would be a
        biased choice: repeated texts would accumulate in the first groups of the corpus.
        """
        matched = {}
        for text, by_group in self._copies.items():
            copies = sorted((key, row, group) for group, kept in by_group.items() for key, row in kept)
            for same_group in (True, False):
                for i in [i for i in self._positions[text] if not self.found[i]]:
                    copy = next((c for c in copies if c[2] == self.groups[i] or not same_group), None)
                    if copy is not None:
                        copies.remove(copy)
                        matched[copy[1]], self.groups[i], self.found[i] = i, copy[2], True
        return matched

    @property
    def without_trained(self) -> bool:
        """Whether the estimate is for the corpus without the texts in ``trained``.

        Some of them were drawn, and are left out. So the others represent the texts outside ``trained``. If none was
        drawn, they may have been chosen among the texts that were not drawn. Then the sample represents the whole
        corpus, as the random texts of a project do; its table lists the other texts as not drawn.
        """
        return SEEN in self.left_out

    @property
    def surplus(self) -> np.ndarray:
        """Whether a text was not found although an equal one was: the sample has more copies than the corpus."""
        known = {flat(text) for text, found in zip(self.texts, self.found, strict=True) if found}
        return ~self.found & np.array([flat(text) in known for text in self.texts])

    def with_predictions(self, scores: np.ndarray, quantities: Quantities, n_corpus: int) -> Sample:
        """Return the sample, after reading the corpus.

        Args:
            scores: probabilities or numbers of its texts, shape (n, labels).
            quantities: the measured quantities.
            n_corpus: number of texts of the corpus.
        """
        inclusion = np.ones(len(self.texts)) if self.inclusion is None else self.inclusion
        # The probabilities can be those of a smaller pool, or rows of the sample may have been left out. Then a smaller
        # share of the corpus is labelled than the probabilities say.
        inclusion = inclusion * min((1 / inclusion).sum() / n_corpus, 1.0)
        all_found = bool(self.found.all())
        bounded = quantities.range is None
        return Sample(quantities.of(self.outcomes), quantities.of(scores), inclusion, all_found, self.clusters, bounded)


def read_sample(
    run: Run, source: Any, config: Config, by: str | None, *, random_sample: bool = False
) -> LabelledSample:
    """Read a labelled sample, without the rows that an estimate cannot use.

    Args:
        run: the run that predicts.
        source: what `bertsmith.data.read.read_table` takes.
        config: how to read it.
        by: the column of the groups.
        random_sample: the sample is a simple random sample, according to the user.

    Raises:
        DataError: if the sampling design is unknown, too few texts are usable, or many drawn texts have no label.
    """
    unused = dict.fromkeys(("sql", "db", "sheet", "encoding", "validation", "test"))
    config = config.model_copy(update={**unused, "task": run.task})
    raw = read_raw(source, config)
    config, by = _named_as_in_sample(config, by, run.template, raw.frame.columns)
    whole = read_labelled(raw, config, run)
    cleaned = clean(dataclasses.replace(whole, frame=whole.frame.assign(split="test")))
    table = cleaned.table
    rows, texts = table.frame["row"].tolist(), texts_of(table.frame)
    extra = {str(name): table.extra[name].tolist() for name in table.extra.columns}
    outcomes = get_task(run.task).indicators(table.targets, len(run.labels))
    # Rows without a label count too: they may belong to the random sample.
    blank = cleaned.dropped["row"][cleaned.dropped["reason"] == NO_LABEL]
    drawn = whole.take(whole.frame["row"].isin([*rows, *blank]).to_numpy())
    labelled = ~drawn.frame["row"].isin(blank).to_numpy()
    columns = {str(name): drawn.extra[name].tolist() for name in drawn.extra.columns}
    design = read_design(
        columns, drawn.frame["row"].tolist(), table.name, declared_random=random_sample, unlabelled={*blank}
    )
    blank_notes = _check_blanks(table, design, drawn.frame["row"].to_numpy(), labelled, outcomes)
    n_blank = int((design.usable & ~labelled).sum())
    drawn_from = None if design.inclusion is None else float((1 / design.inclusion[design.usable]).sum())
    design = Design(design.usable[labelled], None if design.inclusion is None else design.inclusion[labelled])
    trained: frozenset[str] = frozenset(run.training_hashes)
    plain = Texts(map(unguarded, texts))
    texts = Texts(b if known else a for a, b, known in zip(texts, plain, hash_texts(plain).isin(trained), strict=True))
    hashes = hash_texts(texts)
    # Of a text that occurs several times, some copies can be drawn and others not. The drawn copies represent them all.
    trained = trained.difference(hashes[~design.usable])
    seen = hashes.isin(trained).to_numpy()
    usable = np.flatnonzero(design.usable & ~seen)
    _check_labels(texts, table.targets, rows, usable, table.name)
    left_out = {
        **cleaned.counts,
        NO_LABEL: n_blank,
        NOT_RANDOM: int((~design.usable).sum()),
        SEEN: int((design.usable & seen).sum()),
    }
    left_out = {reason: n for reason, n in left_out.items() if n}
    notes = [
        f"bertsmith left out {counted(n, 'row')} of the sample: {why}"
        for why, n in left_out.items()
        if why not in (NO_LABEL, UNITED)
    ]
    if len(usable) < FEWEST_LABELLED:
        reasons = "; ".join(f"{counted(n, 'row')} left out: {reason}" for reason, n in left_out.items())
        raise DataError(
            f"the sample has {counted(len(usable), 'usable text')}, but an estimate needs {FEWEST_LABELLED}"
            + (f" ({reasons})" if reasons else ""),
            where=table.name,
            remedy="Label more texts that are drawn at random from the corpus and that the run was not trained on.",
        )
    clusters = table.frame["group"].to_numpy()[usable] if table.columns.group else None
    if clusters is not None and len(np.unique(clusters)) < 2:
        raise DataError(
            f"all labelled texts have the same value in the column {quoted(table.columns.group)}, but an interval "
            "needs 2 groups that were drawn at random",
            where=table.name,
            remedy="Label the texts of more groups. If you drew texts and not groups, leave out --group-column.",
        )
    notes += blank_notes if run.task != REGRESSION else [*blank_notes, *far_number_notes(table)]
    groups = table.frame["group"] if by and table.columns.group == by else None
    name = next((name for name in extra if by and canonical(name) == canonical(by)), None)
    cells: Sequence[Any] = groups.tolist() if groups is not None else extra.get(name or "", [None] * len(rows))
    known = name is not None or groups is not None
    return LabelledSample(
        table.name,
        [rows[i] for i in usable],
        Texts(texts[i] for i in usable),
        outcomes[usable],
        None if design.inclusion is None else design.inclusion[usable],
        clusters,
        [group_name(cells[int(i)], unite_numbers=False) or NO_GROUP if known else None for i in usable],
        left_out,
        tuple(notes),
        trained,
        drawn_from,
    )


def _named_as_in_sample(
    config: Config, by: str | None, template: Template, columns: Iterable[str]
) -> tuple[Config, str | None]:
    """Return settings, and the column of the groups, with the names that the columns of a corpus have in a sample.

    The table of a labelling project names a column of the pool ``pool NAME`` if the project has a column NAME.
    """
    named, own = {canonical(name): name for name in columns}, set(map(canonical, OWN_COLUMNS))

    def rename(name: str) -> str:
        found = name
        while canonical(name) in own and (other := named.get(canonical(f"pool {found}"))):
            found = other
        return found

    given = template.settings(config)
    texts = (given.text_column,) if isinstance(given.text_column, str) else given.text_column
    renamed = tuple(map(rename, texts or template.text_column))
    update = {
        "text_column": renamed if texts or renamed != template.text_column else None,
        "pair_column": given.pair_column and rename(given.pair_column),
        "with_columns": tuple(map(rename, given.with_columns)),
        "group_column": config.group_column and rename(config.group_column),
    }
    return config.model_copy(update=update), by and rename(by)


def _check_blanks(
    table: Table, design: Design, rows: np.ndarray, labelled: np.ndarray, outcomes: np.ndarray
) -> list[str]:
    """Check that few drawn texts have no label: without its difficult texts, a sample is not random.

    Args:
        table: the n rows of the sample that have a label.
        design: of these rows and those without a label, m rows in total. Rows that were not drawn do not count.
        rows: numbers of the m rows, shape (m,).
        labelled: whether they have a label, shape (m,).
        outcomes: 0 or 1 for each label of the n rows, shape (n, labels).

    Returns:
        Notes on rows without a label. Those after the last labelled row are the rest of an unfinished sample.
    """
    blank, is_drawn = design.usable & ~labelled, design.usable[labelled]
    is_gap = blank & (rows < rows[labelled].max(initial=0))
    gaps, counts = rows[is_gap], is_gap | (design.usable & labelled)
    weights = np.ones(len(rows)) if design.inclusion is None else 1 / design.inclusion
    missing = weights[is_gap].sum() / max(weights[counts].sum(), 1)
    notes = []
    if missing > UNLABELLED:
        by_weight = "" if design.inclusion is None else f", and represent {100 * missing:.1f} % of the texts"
        raise DataError(
            f"{len(gaps):,} of {counts.sum():,} rows {number_form(len(gaps), 'has', 'have')} no label{by_weight} "
            f"({number_form(len(gaps), 'row')} {listing(gaps.tolist(), 5)}): if unlabelled texts are the difficult "
            "ones, the others are not a random sample",
            where=table.name,
            remedy="Label these rows too, each with the label that fits best. Remove rows that you did not draw.",
        )
    if len(gaps):
        off = f"each share can be off by up to {100 * missing:.1f} percentage points"
        notes.append(
            f"{number_form(len(gaps), 'row')} {listing(gaps.tolist(), 5)} of the sample "
            f"{number_form(len(gaps), 'has', 'have')} no label. If "
            f"{number_form(len(gaps), 'this text is', 'these texts are')} unlike the others, "
            + ("the mean can be off" if table.task == REGRESSION else off)
        )
    if rest := int(blank.sum()) - len(gaps):
        if is_drawn.sum() > 1 and order_z_score(outcomes[is_drawn]) > SORTED:
            raise DataError(
                "the drawn rows seem to be sorted by label, and the last "
                f"{number_form(rest, 'one has', f'{rest:,} have')} no label: the labelled rows are not a random sample",
                where=table.name,
                remedy="Label all rows, or shuffle the rows before you label the first ones.",
            )
        notes.append(
            f"{counted(rest, 'row')} at the end of the sample {number_form(rest, 'has', 'have')} no label; the others "
            "are a random sample only if the rows are in random order"
        )
    return notes


def _check_labels(texts: Texts, targets: np.ndarray, rows: Sequence[int], usable: np.ndarray, where: str) -> None:
    """Check that equal texts have the same labels, among the usable rows."""
    first: dict[str, int] = {}
    for i in usable.tolist():
        other = first.setdefault(flat(texts[i]), i)
        if not np.array_equal(targets[other], targets[i]):
            raise DataError(
                f"rows {rows[other]:,} and {rows[i]:,} of the sample have the same text and different labels",
                where=where,
                remedy="Decide which label is correct, and keep one row for each text that you drew.",
            )
