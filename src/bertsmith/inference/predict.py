"""Predict rows and chunks of a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from bertsmith.data.stream import Chunk
from bertsmith.data.table import Cells
from bertsmith.data.template import Text, Texts, flat, is_empty, normalise_text
from bertsmith.errors import DataError, listing
from bertsmith.inference.abstain import Abstention
from bertsmith.inference.predictor import Predictor, PredictProba
from bertsmith.inference.table_writers import ABSTAINED, PROBABILITY
from bertsmith.measuring.expected_accuracy import grid_of, length_bin

LABELLED, CONFIDENCE, LENGTH = "labelled ", "confidence ", "length "
"""Prefixes of label texts and of bins of confidence and of length in counts."""


def predict_rows(
    classifier: Predictor,
    cells: Cells,
    texts: Sequence[Text],
    *,
    probabilities: bool = False,
    abstain: Abstention | None = None,
) -> Cells:
    """Predict rows.

    Args:
        classifier: the model.
        cells: the input columns, each of n rows.
        texts: n texts as the template renders them; an empty text gets no prediction.
        probabilities: add one column per class.
        abstain: thresholds for leaving texts unlabelled, or for label sets.

    Returns:
        The input columns, ``predicted`` (label number), ``predicted_text`` and ``confidence``. With ``probabilities``,
        also ``probability of LABEL TEXT`` for every class. With ``abstain``, also ``abstained`` (if true, ``predicted``
        is missing) or ``label_set``, a list of label texts. For sets of labels, ``predicted`` and ``predicted_texts``
        are lists. A regression has ``predicted`` (a number), and ``lower`` and ``upper`` with ``abstain``. Missing
        values are ``None``.

    Raises:
        DataError: if the input has a column with one of these names.
    """
    prepared = _prepare(classifier, (cells, texts))
    return _label(classifier, prepared, probabilities, abstain or Abstention())


class _Prepared(NamedTuple):
    """A tokenized chunk of normalised texts; ``predict_proba`` computes the probabilities of the filled ``rows``."""

    cells: Cells
    texts: Sequence[Text]
    rows: list[int]
    predict_proba: PredictProba
    cut: int


def _prepare(classifier: Predictor, chunk: Chunk) -> _Prepared:
    cells, texts = chunk[0], [normalise_text(text) for text in chunk[1]]
    rows = [i for i, text in enumerate(texts) if not is_empty(text)]
    predict_proba, cut = classifier.prepare(Texts(texts[i] for i in rows))
    return _Prepared(cells, texts, rows, predict_proba, cut)


def _label(
    classifier: Predictor,
    prepared: _Prepared,
    probabilities: bool,
    abstain: Abstention,
    progress: Callable[[int], None] | None = None,
) -> Cells:
    task, labels = classifier.task, classifier.labels
    scores = prepared.predict_proba(progress)

    def column(values: Iterable[Any]) -> list[Any]:
        result: list[Any] = [None] * len(prepared.texts)
        for i, value in zip(prepared.rows, values, strict=True):
            result[i] = value
        return result

    answered = (task.confidence(scores) >= (abstain.confidence or 0.0)).tolist()
    columns = task.prediction_columns(scores, labels)
    predictions: Cells = {
        name: column(
            value if yes or name == "confidence" else None for value, yes in zip(values, answered, strict=True)
        )
        for name, values in columns.items()
    }
    if abstain.confidence is not None:
        predictions[ABSTAINED] = column(not yes for yes in answered)
    if abstain.in_set is not None:
        predictions |= {n: column(v) for n, v in task.set_columns(scores, abstain.in_set, labels).items()}
    if probabilities and "confidence" in columns:
        predictions |= {f"{PROBABILITY}{text}": column(scores[:, c].tolist()) for c, text in enumerate(labels.texts)}
    if clash := [name for name in predictions if name in prepared.cells]:
        raise DataError(
            f"the input already has columns with names of the output: {listing(clash)}",
            remedy="Rename or remove these columns.",
        )
    return prepared.cells | predictions


def predict_chunks(
    classifier: Predictor,
    chunks: Iterable[Chunk],
    *,
    probabilities: bool = False,
    abstain: Abstention | None = None,
    progress: Callable[[int], None] = lambda n: None,
    waits: bool = False,
) -> Iterator[tuple[Cells, Counter[str], Sequence[Text]]]:
    """Predict chunk by chunk, in order. A thread reads and tokenizes the next chunk in advance.

    Args:
        classifier, probabilities, abstain: as for `predict_rows`.
        chunks: input columns and texts.
        progress: called with the number of rows done since the last call.
        waits: reading can block, as from stdin; chunks are then read without a thread, which might never end.

    Yields:
        The result of `predict_rows` for each chunk, its counts, and its normalised texts. The counts are ``rows``,
        ``empty``, ``abstained``, ``cut`` (truncated texts) and ``none`` (texts without any label). Further counts have
        the prefixes `LABELLED`, `CONFIDENCE` and `LENGTH`: the rows of each label, and of each bin of `grid_of` and of
        `length_bin`.
    """
    all_prepared = (_prepare(classifier, chunk) for chunk in chunks)
    for prepared in all_prepared if waits else _prefetch(all_prepared):
        cells = _label(classifier, prepared, probabilities, abstain or Abstention(), progress)
        n_rows = len(prepared.texts)
        empty = n_rows - len(prepared.rows)
        progress(empty)
        abstained = cells.get(ABSTAINED, []).count(True)
        counts = Counter(rows=n_rows, empty=empty, abstained=abstained, cut=prepared.cut)
        counts.update(f"{CONFIDENCE}{grid_of(c)}" for c in cells.get("confidence", ()) if c is not None)
        counts.update(f"{LENGTH}{length_bin(len(flat(prepared.texts[i])))}" for i in prepared.rows)
        for text in cells.get(classifier.task.predicted_column, ()) if classifier.task.has_labels else ():
            counts["none"] += text == []
            counts.update(f"{LABELLED}{t}" for t in (text if isinstance(text, list) else [text]) if t is not None)
        yield cells, counts, prepared.texts


def _prefetch(items: Iterator[_Prepared]) -> Iterator[_Prepared]:
    """Yield items; a thread computes the next item in advance."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(next, items, None)
        while (item := future.result()) is not None:
            future = pool.submit(next, items, None)
            yield item
