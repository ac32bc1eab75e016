"""Predictions for whole tables and for lines of text, written out as they are made."""

from __future__ import annotations

import base64
import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from bertsmith.data.raw import is_missing
from bertsmith.data.stream import Cells, Piece
from bertsmith.data.table import Labels
from bertsmith.errors import ConfigError, DataError, listing
from bertsmith.inference.abstain import Abstention
from bertsmith.inference.labelling import Labelling, OneModel
from bertsmith.inference.spreadsheet import guarded_cell

FORMATS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet"}
COLUMNS = ("predicted", "predicted_text", "confidence")
ABSTAINED, LABEL_SET = "abstained", "label_set"
PROBABILITY = "probability of "


class Writer(Protocol):
    """Takes rows with the same columns, piece by piece."""

    def write(self, cells: Cells) -> None:
        """Write some rows."""
        ...


def predict_rows(
    classifier: Labelling,
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
    probabilities: Callable[[Callable[[int], None] | None], np.ndarray]
    cut: int


def _prepare(classifier: Labelling, piece: Piece) -> _Prepared:
    cells, texts = piece
    filled = [i for i, text in enumerate(texts) if text.strip()]
    label = classifier.prepare([texts[i] for i in filled])
    cut = classifier.count_long(texts) if isinstance(classifier, OneModel) else 0
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


def predict_pieces(
    classifier: Labelling,
    pieces: Iterable[Piece],
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
        ``abstained``, and how many texts were ``cut``.
    """
    coming = (_prepare(classifier, piece) for piece in pieces)
    for prepared in coming if waits else _ahead(coming):
        found = _label(classifier.labels, prepared, probabilities, abstain or Abstention(), progress)
        empty = prepared.n_rows - len(prepared.filled)
        progress(empty)
        abstained = found.get(ABSTAINED, []).count(True)
        yield found, Counter(rows=prepared.n_rows, empty=empty, abstained=abstained, cut=prepared.cut)


def _ahead(items: Iterator[_Prepared]) -> Iterator[_Prepared]:
    """Yield items, of which a thread makes the next one while the one before is in use."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def output_format(path: Path) -> str:
    """Return the format that a file's name asks for.

    Raises:
        ConfigError: if it asks for none of those we write.
    """
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ConfigError(
            f"predictions cannot be written as {path.suffix or 'a file without a suffix'!r}",
            where=str(path),
            remedy=f"Name the file with one of {listing(FORMATS)}.",
        )
    return kind


@contextmanager
def open_writer(
    kind: str,
    target: Path | IO[str],
    *,
    guarded: bool = True,
    types: tuple[Mapping[str, Any], bool] = ({}, False),
    header: bool = True,
) -> Iterator[Writer]:
    """Open a writer for a format of `FORMATS`, on a file or on an open text stream (not for Parquet).

    Args:
        kind: the format.
        target: the file or stream.
        guarded: guard CSV against cells that a spreadsheet would run as formulas: see `guard`.
        types: the Arrow types of the input's columns, for Parquet, and whether its values are as Arrow gives them.
        header: begin CSV with the names of the columns.
    """
    if kind == "parquet":
        assert isinstance(target, Path)
        writer = _Parquet(target, *types)
        try:
            yield writer
        finally:
            writer.close()
    elif isinstance(target, Path):
        with target.open("w", encoding="utf-8", newline="") as stream:
            yield _Csv(stream, guarded, header) if kind == "csv" else _JsonLines(stream)
    else:
        yield _Csv(target, guarded, header) if kind == "csv" else _JsonLines(target)
        target.flush()


def join(kind: str, parts: Sequence[Path], target: Path) -> None:
    """Join what was written in parts, of which the first alone has a header, into one file."""
    if kind != "parquet":
        with target.open("wb") as whole:
            for path in parts:
                with path.open("rb") as part:
                    shutil.copyfileobj(part, whole)
        return
    import pyarrow.parquet as pq

    with pq.ParquetWriter(target, pq.read_schema(parts[0])) as writer:
        for path in parts:
            writer.write_table(pq.read_table(path).cast(writer.schema))


class _Csv:
    def __init__(self, stream: IO[str], guarded: bool, header: bool) -> None:
        self.writer = csv.writer(stream, lineterminator="\n")
        self.guarded, self.header = guarded, header

    def write(self, cells: Cells) -> None:
        names = list(cells)
        ours = names[names.index(COLUMNS[0]) :]
        columns = [[(_of_ours if name in ours else _of_input)(value) for value in cells[name]] for name in names]
        if self.guarded:
            names = [guarded_cell(name) for name in names]
            columns = [[guarded_cell(value) for value in values] for values in columns]
        if self.header:
            self.writer.writerow(names)
        self.writer.writerows(zip(*columns, strict=True))
        self.header = False


def _of_input(value: Any) -> Any:
    """Return a cell of the input as CSV has it: what is missing is empty, bytes are Base64, lists and objects JSON."""
    if isinstance(value, list | dict):
        return json.dumps(_json(value), ensure_ascii=False, default=str)
    return "" if is_missing(value) else _json(value) if isinstance(value, bytes) else value


def _of_ours(value: Any) -> Any:
    """Return a cell of ours as CSV has it: six decimals, and lists as JSON."""
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False)
    return f"{value:.6f}" if isinstance(value, float) else value


class _JsonLines:
    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def write(self, cells: Cells) -> None:
        for values in zip(*cells.values(), strict=True):
            record = {name: _json(value) for name, value in zip(cells, values, strict=True)}
            self.stream.write(json.dumps(record, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def _json(value: Any) -> Any:
    """Return a value as JSON has it: what is missing, or no finite number, is null, bytes are Base64."""
    if is_missing(value):
        return None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {str(key): _json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_json(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


class _Parquet:
    def __init__(self, path: Path, types: Mapping[str, Any], as_read: bool) -> None:
        self.path, self.types, self.as_read = path, types, as_read
        self.writer: Any = None

    def write(self, cells: Cells) -> None:
        import pyarrow.parquet as pq

        table = to_arrow(cells, self.types, self.as_read)
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.path, table.schema)
        self.writer.write_table(table.cast(self.writer.schema))

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def to_arrow(cells: Cells, types: Mapping[str, Any], as_read: bool) -> Any:
    """Return rows as an Arrow table.

    Args:
        cells: the columns of the input, then ours.
        types: of the columns of the input, by name.
        as_read: whether the values of the input are as Arrow gives them: then NaN is no missing value.
    """
    import pyarrow as pa

    columns = {}
    for name, values in cells.items():
        kind = types.get(name) or _type_of_ours(name)
        if kind == pa.string() and not as_read:
            values = [None if is_missing(value) else str(_of_input(value)) for value in values]
        columns[name] = pa.array(values, type=kind, from_pandas=not as_read)
    return pa.table(columns)


def _type_of_ours(name: str) -> Any:
    import pyarrow as pa

    if name.startswith(PROBABILITY):
        return pa.float64()
    types = (pa.int64(), pa.string(), pa.float64(), pa.bool_(), pa.list_(pa.string()))
    return dict(zip((*COLUMNS, ABSTAINED, LABEL_SET), types, strict=True)).get(name)
