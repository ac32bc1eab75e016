"""Choose the texts of a pool to label next, for a labelling project or with a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from bertsmith.config import Config
from bertsmith.data.columns import LABEL, LABEL_TEXT, canonical, with_own_names
from bertsmith.data.formats.annotations import write_tasks
from bertsmith.data.label_sets import is_list
from bertsmith.data.outcomes import SEPARATOR
from bertsmith.data.stream import Stream, open_stream
from bertsmith.data.table import SPLITS, Cells
from bertsmith.data.template import Template, Text, Texts, flat, is_empty, normalise_text
from bertsmith.data.texts import is_missing, to_text
from bertsmith.errors import ConfigError, DataError, counted
from bertsmith.events import InputOpened, ModelOpened, PredictionListener, RowsPredicted
from bertsmith.folders.claim import lock
from bertsmith.folders.run import open_run
from bertsmith.labelling.choose import (
    CHANCE,
    RANDOM_SHARE,
    Candidates,
    ChosenText,
    inclusion_probabilities,
    priorities,
    random_rows,
    without_near_duplicates,
)
from bertsmith.labelling.pool import COLUMNS, EMPTY, EmptyPoolError, PoolFile, pool_size, with_known_columns
from bertsmith.labelling.project import TABLE, Project, Queued
from bertsmith.labelling.table import Snapshot
from bertsmith.tasks.registry import get_task
from bertsmith.workflows.embeddings import (
    embed_texts,
    fit_project_head,
    head_features,
    load_embedding_model,
    project_checkpoint,
)

CHUNK = 8192
"""Number of rows in a chunk."""
_LABELS = {*LABEL, *LABEL_TEXT, "split"}
"""Columns that `train` would read in an export; those of the pool get another name."""
Scored = tuple[np.ndarray, np.ndarray | None]
"""Rows of a pool, and their scores, shape (rows, classes); ``None`` without a model."""


@dataclass(frozen=True)
class ChosenTexts:
    """Texts to label.

    Attributes:
        texts: the chosen texts in a random order, so that the random ones are not together.
        inclusion: by row, the probability that a random text is among these texts, without those of other rounds.
        pool_rows: number of rows of the pool with a text.
    """

    texts: list[Queued]
    inclusion: dict[int, float]
    pool_rows: int

    def cells(self) -> Cells:
        """Return the columns of the pool, and why each text was chosen."""
        names = list(dict.fromkeys(name for text in self.texts for name in text.columns))
        added: Cells = {
            "row": [text.row for text in self.texts],
            "reason": [text.reason for text in self.texts],
            "random": [text.random for text in self.texts],
            "inclusion_probability": [self.inclusion.get(text.row) for text in self.texts],
        }
        pool = {name: [text.columns.get(name) for text in self.texts] for name in names}
        return with_own_names(pool, added, "pool") | added

    def tasks(self, tool: str) -> str:
        """Return the texts as a file of tasks for an annotation tool, with the other columns of `cells`."""
        texts = [_flat(text) for text in self.texts]
        columns = {
            f"pool {name}" if name == "text" or canonical(name) in _LABELS else name: [
                None if is_missing(value) else value for value in values
            ]
            for name, values in self.cells().items()
            if not (all(isinstance(value, str) for value in values) and values == texts)
        }
        facts = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return write_tasks(tool, texts, facts)


def choose_texts(
    path: Path,
    source: Any,
    config: Config,
    n: int,
    *,
    random_share: float = RANDOM_SHARE,
    observe: PredictionListener = lambda event: None,
) -> ChosenTexts:
    """Choose texts for a project, or with a run; see `choose_for_project` and `choose_with_run`.

    Args:
        path: the folder of the project or the run.
        source, config, n, random_share, observe: see `choose_for_project`.

    Raises:
        UserError: also if number or share are out of range.
    """
    if not all(map(isinstance, (n, random_share), (Integral, Real))) or n < 1 or not 0 <= random_share <= 1:
        raise ConfigError(
            "n must be an integer of at least 1, and random_share a number between 0 and 1; "
            f"they are {n!r} and {random_share!r}",
            remedy="Pass other values.",
        )
    if Project.exists(path) or (path / TABLE).is_file():  # a table without its project is an error
        return choose_for_project(Project(path), source, config, n, random_share=random_share, observe=observe)
    return choose_with_run(path, source, config, n, random_share=random_share, observe=observe)


def choose_for_project(
    project: Project,
    source: Any,
    config: Config,
    n: int,
    *,
    random_share: float = RANDOM_SHARE,
    suggestions: str | None = None,
    observe: PredictionListener = lambda event: None,
) -> ChosenTexts:
    """Choose texts with a regression on frozen embeddings, fitted to the labels of a project, and queue them.

    Args:
        project: the project.
        source: the pool, as for `bertsmith.predict`.
        config: how to read the pool, the checkpoint of the embeddings, device and seed. A project keeps the columns,
            the checkpoint and the seed of its first choice.
        n: number of texts.
        random_share: share of the texts to draw at random.
        suggestions: column of the pool with proposed labels.
        observe: called with each event.

    Raises:
        UserError: if the pool cannot be read, has changed, or has no text left, or if another process is choosing texts
            for the project.
    """
    config = with_known_columns(project, config)
    # Two processes that add embeddings at the same time would mix them up.
    template = Template(pair_column=config.pair_column)
    with lock(project.path, "choosing texts for this project"), _opened(source, config, template) as stream:
        observe(InputOpened(stream.n_rows, stream.notes, stream.skipped))
        name = project_checkpoint(project.path, config)
        loaded = load_embedding_model(name, config)
        observe(ModelOpened(None))
        pool = PoolFile(project.path, name, loaded.model.config.hidden_size)
        first, before = 0, pool.hashes
        for _, texts in stream.chunks():
            pool.update(texts, first, lambda some: embed_texts(loaded, some), stream.name)
            first += len(texts)
            observe(RowsPredicted(len(texts)))
        if first < pool.done:
            raise DataError(
                f"the pool has {counted(first, 'row')}, but had {pool.done:,} when bertsmith embedded it",
                where=stream.name,
                remedy="Pass the same pool, with new rows only at its end.",
            )
        # With another seed, the reserve would contain chosen texts, and would not be a random sample of the pool.
        seed = project.setting("seed", config.seed)
        project.set_settings({"seed": seed, **{name: getattr(config, name) for name in COLUMNS}})
        task = get_task(project.task)
        queued = project.rows
        # Older versions did not save the sizes: the embeddings show the size before this choice.
        sizes = project.setting("pool_sizes", [pool_size(before)] if queued and len(before) else [])
        sizes = [size for size in sizes if size[0] < first] + [pool_size(pool.hashes)]
        usable = pool.hashes != EMPTY
        usable[np.array(queued, dtype=np.int64) - 1] = False
        head, counts = fit_project_head(Snapshot.of(project), pool.read, task)

        def scored(free: np.ndarray) -> Iterator[Scored]:
            for start in range(0, len(free), CHUNK):
                rows = free[start : start + CHUNK]
                yield rows, None if head is None else task.scores(head.logits(head_features(pool.read(rows))))

        chosen = _choose(
            stream,
            usable,
            n,
            random_share,
            candidates=Candidates(0, project.task, counts, seed),
            scored=scored,
            embed=lambda rows, texts: pool.read(rows),
            known=pool.read(np.array(queued, dtype=np.int64) - 1),
            known_texts=[_flat(text) for text in project.texts],
            only_random=random_share == 1 and all(text.random for text in project.texts),
            order_seed=seed + len(queued),
            suggestions=suggestions,
        )
        project.set_settings({"pool_sizes": sizes})
        project.add_texts(chosen.texts)
        return replace(chosen, inclusion=inclusion_probabilities([t.row for t in chosen.texts if t.random], sizes))


def choose_with_run(
    path: Path,
    source: Any,
    config: Config,
    n: int,
    *,
    random_share: float = RANDOM_SHARE,
    observe: PredictionListener = lambda event: None,
) -> ChosenTexts:
    """Choose texts with the predictions and embeddings of a run. Texts that the run has seen are left out.

    Predicted numbers do not show which texts are uncertain or rare: with such a run, the texts are diverse or random.

    Raises:
        UserError: if the pool cannot be read or has no new text, or the run is damaged.
    """
    run = open_run(path)
    import pandas as pd

    from bertsmith.inference.classifier import Classifier
    from bertsmith.workflows.score import hash_texts

    with _opened(source, config, run.template) as stream:
        observe(InputOpened(stream.n_rows, stream.notes, stream.skipped))
        classifier = Classifier.load(path, device=config.device, long=config.long)
        observe(ModelOpened(None))
        known = set(pd.read_parquet(run.layout.splits, columns=["hash"])["hash"].dropna())
        parts: list[np.ndarray] = []
        for _, texts in stream.chunks():
            normal = [normalise_text(text) for text in texts]
            filled = np.array([not is_empty(text) for text in normal], dtype=bool)
            parts.append(np.stack([filled, ~hash_texts(normal).isin(known).to_numpy()]))
        filled, new = np.concatenate(parts, axis=1)
        has_labels = get_task(run.task).has_labels
        counts = np.array([sum(c[split] for split in SPLITS) for c in run.class_counts]) if has_labels else None

        def scored(free: np.ndarray) -> Iterator[Scored]:
            first = 0
            for _, texts in stream.chunks():
                rows = _rows_between(free, first, first + len(texts))
                if len(rows):
                    some = Texts(texts[row - first] for row in rows.tolist())
                    yield rows, None if counts is None else classifier.predict_proba(some)
                first += len(texts)
                observe(RowsPredicted(len(texts)))

        return _choose(
            stream,
            filled & new,
            n,
            random_share,
            candidates=Candidates(0, run.task, counts, config.seed),
            scored=scored,
            embed=lambda rows, texts: embed_texts(classifier.loaded, texts),
            known=np.empty((0, classifier.loaded.model.config.hidden_size), dtype=np.float32),
            only_random=random_share == 1 and bool(new.all()),
            order_seed=config.seed,
        )


def _choose(
    stream: Stream,
    usable: np.ndarray,
    n: int,
    random_share: float,
    *,
    candidates: Candidates,
    scored: Callable[[np.ndarray], Iterable[Scored]],
    embed: Callable[[np.ndarray, Sequence[Text]], np.ndarray],
    known: np.ndarray,
    known_texts: Sequence[str] = (),
    only_random: bool,
    order_seed: int,
    suggestions: str | None = None,
) -> ChosenTexts:
    """Choose the random sample, then the other texts, and read all of them from the pool."""
    if not (n_usable := int(usable.sum())):
        raise EmptyPoolError(
            "every text of the pool is labelled, queued or empty", where=stream.name, remedy="Add texts to the pool."
        )
    priority = priorities(len(usable), candidates.seed)
    chance, reserved = random_rows(priority, usable, round(random_share * n), only_random=only_random)
    candidates.n = n - len(chance)
    for rows, scores in scored(np.flatnonzero(usable & ~reserved)):
        candidates.add(rows, priority[rows], scores)
    texts = read_rows(stream, np.concatenate([candidates.rows, chance]))
    free = candidates.rows.tolist()
    ranked = candidates.choose(embed(candidates.rows, [texts[row][1] for row in free]), known) if free else []
    drawn = [ChosenText(row, CHANCE) for row in chance.tolist()]
    drawn_texts, ranked_texts = ([flat(texts[choice.row][1]) for choice in some] for some in (drawn, ranked))
    # The random texts are test texts: a near-duplicate among the training texts would leak.
    found = [*drawn, *without_near_duplicates(ranked, ranked_texts, [*known_texts, *drawn_texts], candidates.n)]
    shuffled = np.random.default_rng(order_seed).permutation(len(found))
    queue = [_queued(found[i], *texts[found[i].row], suggestions, stream.name) for i in shuffled]
    return ChosenTexts(queue, dict.fromkeys((chance + 1).tolist(), len(chance) / n_usable), n_usable)


def check_suggestions(suggestions: str | None, columns: Iterable[str], name: str) -> None:
    """Check that a pool has the column of the suggestions.

    Raises:
        ConfigError: if it has not.
    """
    if suggestions is not None and suggestions not in columns:
        raise ConfigError(f"the pool has no column {suggestions!r}", where=name, remedy="Check --suggestions.")


def _queued(choice: ChosenText, columns: dict[str, Any], text: Text, suggestions: str | None, name: str) -> Queued:
    check_suggestions(suggestions, columns, name)
    given: Any = None if suggestions is None else columns[suggestions]
    first, pair = (text, None) if isinstance(text, str) else text
    return Queued(
        choice.row + 1,
        first,
        choice.reason,
        choice.reason == CHANCE,
        pair,
        columns,
        None if is_missing(given) else SEPARATOR.join(map(to_text, given if is_list(given) else [given])),
    )


def _flat(text: Queued) -> str:
    return flat(text.text if text.pair is None else (text.text, text.pair))


def read_rows(stream: Stream, rows: np.ndarray) -> dict[int, tuple[dict[str, Any], Text]]:
    """Read rows of a stream, counted from 0, as their columns and their text."""
    wanted, found, first = np.sort(rows), dict[int, tuple[dict[str, Any], Text]](), 0
    for cells, texts in stream.chunks():
        for row in _rows_between(wanted, first, first + len(texts)).tolist():
            found[row] = {name: values[row - first] for name, values in cells.items()}, texts[row - first]
        first += len(texts)
    return found


def _rows_between(rows: np.ndarray, first: int, end: int) -> np.ndarray:
    """Return the rows that are in a chunk, from rows in ascending order."""
    return rows[np.searchsorted(rows, first) : np.searchsorted(rows, end)]


def _opened(source: Any, config: Config, template: Template) -> AbstractContextManager[Stream]:
    return nullcontext(source) if isinstance(source, Stream) else open_stream(source, config, template=template)
