"""Predictions for whole tables and for lines of text, written out as they are made."""

from __future__ import annotations

import base64
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import pandas as pd

from bertsmith.errors import ConfigError, DataError, listing
from bertsmith.inference.abstain import Abstention
from bertsmith.inference.labelling import Labelling, OneModel
from bertsmith.inference.spreadsheet import guard

FORMATS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet"}
COLUMNS = ("predicted", "predicted_text", "confidence")
ABSTAINED, LABEL_SET = "abstained", "label_set"


class Writer(Protocol):
    """Takes tables with the same columns, one after the other."""

    def write(self, frame: pd.DataFrame) -> None:
        """Write some rows."""
        ...


def predict_rows(
    classifier: Labelling,
    rows: pd.DataFrame,
    texts: list[str],
    *,
    probabilities: bool = False,
    abstain: Abstention | None = None,
    progress: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Predict some rows, in order.

    Args:
        classifier: the fitted model.
        rows: the input columns, kept as they are, n rows.
        texts: n texts; an empty one gets no prediction.
        probabilities: also give one column a class.
        abstain: when not to answer, or to answer with several labels.
        progress: is told how many texts were done since it was last told.

    Returns:
        The input columns with ``predicted`` (label number), ``predicted_text``, ``confidence`` and, if wanted,
        ``probability of LABEL TEXT`` for every class; with ``abstain`` also ``abstained`` (where it is true,
        ``predicted`` is missing) or ``label_set``, a list of label texts.

    Raises:
        DataError: if the input has a column of one of these names.
    """
    names = [f"probability of {text}" for text in classifier.labels.texts] if probabilities else []
    abstain = abstain or Abstention()
    more = [ABSTAINED] * (abstain.confidence is not None) + [LABEL_SET] * (abstain.in_set is not None)
    clash = [name for name in (*COLUMNS, *more, *names) if name in rows.columns]
    if clash:
        raise DataError(
            f"the input has columns that predict would write: {listing(clash)}", remedy="Rename or remove them."
        )
    filled = np.array([bool(text.strip()) for text in texts])
    predicted = classifier.predict_frame([text for text in texts if text.strip()], progress)
    predicted.index = pd.Index(np.flatnonzero(filled))
    table = np.stack(predicted["probabilities"].to_list()) if len(predicted) else np.empty((0, len(names)))
    predicted = predicted[list(COLUMNS)]
    if abstain.confidence is not None:
        answered = abstain.answered(table)
        predicted[list(COLUMNS[:2])] = predicted[list(COLUMNS[:2])].where(pd.Series(answered, predicted.index))
        predicted[ABSTAINED] = pd.Series(~answered, predicted.index, dtype="boolean")
    if abstain.in_set is not None:
        sets = abstain.sets(table, classifier.labels.texts)
        predicted[LABEL_SET] = pd.Series(sets, predicted.index, dtype=object)
    predicted = predicted.reindex(range(len(texts)))
    predicted["predicted"] = predicted["predicted"].astype("Int64")
    for i, name in enumerate(names):
        predicted[name] = pd.Series(table[:, i], index=np.flatnonzero(filled)).reindex(range(len(texts)))
    return pd.concat([rows.reset_index(drop=True), predicted], axis=1)


def predict_pieces(
    classifier: Labelling,
    pieces: Iterable[tuple[pd.DataFrame, list[str]]],
    *,
    probabilities: bool = False,
    abstain: Abstention | None = None,
    progress: Callable[[int], None] = lambda n: None,
) -> Iterator[tuple[pd.DataFrame, Counter[str]]]:
    """Predict piece by piece, in order.

    Args:
        classifier, probabilities, abstain: as for `predict_rows`.
        pieces: input columns and texts.
        progress: is told how many rows were done since it was last told.

    Yields:
        What `predict_rows` returns of each, and how many ``rows`` these are, how many of them ``empty``, how many
        ``abstained``, and how many texts were ``cut``.
    """
    for rows, texts in pieces:
        frame = predict_rows(classifier, rows, texts, probabilities=probabilities, abstain=abstain, progress=progress)
        empty = int(frame["confidence"].isna().sum())
        progress(empty)
        left = int(frame[ABSTAINED].sum()) if ABSTAINED in frame.columns else 0
        cut = classifier.count_long(texts) if isinstance(classifier, OneModel) else 0
        yield frame, Counter(rows=len(frame), empty=empty, abstained=left, cut=cut)


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
        types: the Arrow types of the input's columns in Parquet, and whether its values are as Arrow gives them;
            a column of none is written in the type of what is written first.
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
        self.stream, self.guarded, self.header = stream, guarded, header

    def write(self, frame: pd.DataFrame) -> None:
        frame = guard(frame) if self.guarded else frame.copy()
        for name in frame.columns[[pd.api.types.is_object_dtype(dtype) for dtype in frame.dtypes]]:
            if any(isinstance(v, bytes) for v in frame[name]):
                values = [_json(v) if isinstance(v, bytes) else v for v in frame[name]]
                frame[name] = pd.Series(values, index=frame.index, dtype=object)
        for name in frame.columns[frame.columns.get_loc(COLUMNS[0]) :]:
            if pd.api.types.is_float_dtype(frame[name]):  # ours alone: the input's own numbers stay as they are
                frame[name] = frame[name].map("{:.6f}".format, na_action="ignore")
        if LABEL_SET in frame.columns:
            frame[LABEL_SET] = frame[LABEL_SET].map(lambda s: json.dumps(s, ensure_ascii=False), na_action="ignore")
        frame.to_csv(self.stream, index=False, header=self.header, lineterminator="\n")
        self.header = False


class _JsonLines:
    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def write(self, frame: pd.DataFrame) -> None:
        for values in zip(*(frame[name].astype(object).tolist() for name in frame.columns), strict=True):
            record = {name: _json(value) for name, value in zip(frame.columns, values, strict=True)}
            self.stream.write(json.dumps(record, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def _json(value: Any) -> Any:
    """Return a value as JSON has it: what is missing, or no finite number, is null, bytes are Base64."""
    if value is None or value is pd.NA or value is pd.NaT:
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

    def write(self, frame: pd.DataFrame) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {name: _arrow(frame[name], self.types.get(name), self.as_read) for name in frame.columns}
        table = pa.table(columns) if self.writer is None else pa.table(columns).cast(self.writer.schema)
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.path, table.schema)
        self.writer.write_table(table)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def _arrow(values: pd.Series, kind: Any, as_read: bool) -> Any:
    import pyarrow as pa

    if as_read and kind is not None:  # NaN is no missing value
        return pa.array(values.tolist(), type=kind)
    if values.name == LABEL_SET:
        return pa.array([v if isinstance(v, list) else None for v in values], type=pa.list_(pa.string()))
    if values.dtype != object or (kind is not None and kind != pa.string()):
        return pa.Array.from_pandas(values, type=kind)
    return pa.array([None if v is None or v is pd.NA or v != v else str(v) for v in values], type=pa.string())
