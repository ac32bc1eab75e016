"""Predictions for whole tables and for lines of text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from bertsmith.data.stream import Chunk
from bertsmith.data.table import Cells, Labels
from bertsmith.errors import DataError, listing
from bertsmith.inference.abstain import Abstention
from bertsmith.inference.predictor import Label, Predictor
from bertsmith.inference.table_writers import ABSTAINED, LABEL_SET, PROBABILITY

LABELLED = "labelled "
"""In counts, what stands before a label text."""


def predict_rows(
    classifier: Predictor,
    cells: Cells,
    texts: list[str],
    *,
    probabilities: bool = False,
    abstain: Abstention | None = None,
    progress: Callable[[int], None] | None = None,
) -> Cells:
    """Predict some rows, in order.

    Args:
        classifier: the fitted model.
        cells: the input columns, kept as they are, n rows.
        texts: n texts; an empty one gets no prediction.
        probabilities: also give one column a class.
        abstain: when not to answer, or to answer with several labels.
        progress: is told how many texts were done since it was last told.

    Returns:
        The input columns with ``predicted`` (label number), ``predicted_text``, ``confidence`` and, if wanted,
        ``probability of LABEL TEXT`` for every class; with ``abstain`` also ``abstained`` (where it is true,
        ``predicted`` is missing) or ``label_set``, a list of label texts. What is missing is ``None``.

    Raises:
        DataError: if the input has a column of one of these names.
    """
    prepared = _prepare(classifier, (cells, texts))
    return _label(classifier.labels, prepared, probabilities, abstain or Abstention(), progress)


@dataclass(frozen=True)
class _Prepared:
    """A tokenized piece: which of its texts are not empty, what gives their probabilities, and how many are cut."""

    cells: Cells
    n_rows: int
    filled: list[int]
    probabilities: Label
    cut: int


def _prepare(classifier: Predictor, piece: Chunk) -> _Prepared:
    cells, texts = piece
    filled = [i for i, text in enumerate(texts) if text.strip()]
    label, cut = classifier.prepare([texts[i] for i in filled])
    return _Prepared(cells, len(texts), filled, label, cut)


def _label(
    labels: Labels,
    prepared: _Prepared,
    probabilities: bool,
    abstain: Abstention,
    progress: Callable[[int], None] | None,
) -> Cells:
    cells, filled = prepared.cells, prepared.filled
    table = prepared.probabilities(progress)

    def spread(values: Iterable[Any]) -> list[Any]:
        column: list[Any] = [None] * prepared.n_rows
        for i, value in zip(filled, values, strict=True):
            column[i] = value
        return column

    best = table.argmax(axis=1).tolist()
    answered = abstain.answered(table).tolist()
    label = [c if yes else None for c, yes in zip(best, answered, strict=True)]
    ours: Cells = {
        "predicted": spread(None if c is None else labels.numbers[c] for c in label),
        "predicted_text": spread(None if c is None else labels.texts[c] for c in label),
        "confidence": spread(table.max(axis=1, initial=0.0).tolist()),
    }
    if abstain.confidence is not None:
        ours[ABSTAINED] = spread(not yes for yes in answered)
    if abstain.in_set is not None:
        ours[LABEL_SET] = spread(abstain.sets(table, labels.texts))
    if probabilities:
        ours |= {f"{PROBABILITY}{text}": spread(table[:, c].tolist()) for c, text in enumerate(labels.texts)}
    if clash := [name for name in ours if name in cells]:
        raise DataError(
            f"the input has columns that predict would write: {listing(clash)}", remedy="Rename or remove them."
        )
    return cells | ours


def predict_chunks(
    classifier: Predictor,
    pieces: Iterable[Chunk],
    *,
    probabilities: bool = False,
    abstain: Abstention | None = None,
    progress: Callable[[int], None] = lambda n: None,
    waits: bool = False,
) -> Iterator[tuple[Cells, Counter[str]]]:
    """Predict piece by piece, in order; a thread reads and tokenizes the next one meanwhile.

    Args:
        classifier, probabilities, abstain: as for `predict_rows`.
        pieces: input columns and texts.
        progress: is told how many rows were done since it was last told.
        waits: pieces are waited for, so that a thread that reads the next one might never end: there is none then.

    Yields:
        What `predict_rows` returns of each, and how many ``rows`` these are, how many of them ``empty``, how many
        ``abstained``, how many texts were ``cut``, and how many got each label, by `LABELLED` and its text.
    """
    coming = (_prepare(classifier, piece) for piece in pieces)
    for prepared in coming if waits else _ahead(coming):
        found = _label(classifier.labels, prepared, probabilities, abstain or Abstention(), progress)
        empty = prepared.n_rows - len(prepared.filled)
        progress(empty)
        abstained = found.get(ABSTAINED, []).count(True)
        counts = Counter(rows=prepared.n_rows, empty=empty, abstained=abstained, cut=prepared.cut)
        counts.update(f"{LABELLED}{text}" for text in found["predicted_text"] if text is not None)
        yield found, counts


def _ahead(items: Iterator[_Prepared]) -> Iterator[_Prepared]:
    """Yield items, of which a thread makes the next one while the one before is in use."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
