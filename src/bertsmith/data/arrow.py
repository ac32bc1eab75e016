"""Parquet and Feather, read piece by piece."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from bertsmith.data.files import check_size
from bertsmith.errors import DataError

if TYPE_CHECKING:
    import pandas as pd


def read_arrow(file: BinaryIO, path: Path, kind: str, most: float) -> pd.DataFrame:
    """Read Parquet or Feather piece by piece, so that what is small in the file cannot fill the memory.

    The frame has the Arrow types of the columns by name in its ``attrs["arrow"]``.

    Raises:
        DataError: if it is damaged, or holds more than ``most`` GB.
    """
    schema, pieces = arrow_chunks(file, path, kind)
    columns: list[list[Any]] = [[] for _ in schema.names]
    size = 0
    for piece in pieces:
        size += piece.nbytes
        check_size(size, most, path)
        for values, column in zip(columns, piece.columns, strict=True):
            values += column.to_pylist()
    import pandas as pd

    frame = pd.DataFrame({i: pd.Series(values, dtype=object) for i, values in enumerate(columns)})
    frame.columns = pd.Index(schema.names, dtype=object)
    frame.attrs["arrow"] = dict(zip(schema.names, schema.types, strict=True))
    return frame


def arrow_chunks(file: BinaryIO, path: Path, kind: str, rows: int = 65536) -> tuple[Any, Iterator[Any]]:
    """Return the schema of a Parquet or Feather file, and its record batches.

    Args:
        file: of `open_bytes`.
        path: where it is.
        kind: ``"parquet"`` or ``"feather"``.
        rows: of a batch, at most.

    Raises:
        DataError: if it is damaged, also while the batches are read.
    """
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    @contextlib.contextmanager
    def damage_reported() -> Iterator[None]:
        try:
            yield
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(
                f"the {kind.title()} file is damaged or cut short: {str(error).splitlines()[0]}",
                where=str(path),
                remedy="Copy or write it again.",
            ) from error

    def batches() -> Iterator[Any]:
        with damage_reported():
            if kind == "parquet":
                yield from reader.iter_batches(rows)
                return
            for i in range(reader.num_record_batches):
                whole = reader.get_batch(i)
                yield from (whole.slice(start, rows) for start in range(0, whole.num_rows, rows))

    file.seek(0)
    with damage_reported():
        reader = pyarrow.parquet.ParquetFile(file) if kind == "parquet" else pyarrow.ipc.open_file(file)
        schema = reader.schema_arrow if kind == "parquet" else reader.schema
    return schema, batches()


def parquet_head(path: Path) -> tuple[Any, int]:
    """Return the schema of a Parquet file, and the number of its rows.

    Raises:
        DataError: if it is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return file.schema_arrow.remove_metadata(), file.metadata.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"the Parquet file is damaged or cut short: {str(error).splitlines()[0]}",
            where=str(path),
            remedy="Copy or write it again.",
        ) from error


def is_nested(kind: Any) -> bool:
    """Return whether values of an Arrow type are neither texts nor numbers: lists, objects, bytes."""
    import pyarrow.types as t

    return bool(t.is_nested(kind) or t.is_binary(kind) or t.is_large_binary(kind) or t.is_fixed_size_binary(kind))


def common_types(pieces: Iterable[Mapping[str, list[Any]]]) -> dict[str, Any]:
    """Return, for every column of tables with the same columns, the Arrow type that holds all its values.

    That is text, where none but that does.
    """
    import pyarrow as pa

    found: dict[str, Any] = {}
    for cells in pieces:
        for name, values in cells.items():
            try:
                kind = pa.array(values, from_pandas=True).type
                pair = [pa.schema([(name, each)]) for each in (found.get(name, kind), kind)]
                found[name] = pa.unify_schemas(pair, promote_options="permissive").field(0).type
            except (pa.ArrowException, TypeError, OverflowError):
                found[name] = pa.string()
    return found
