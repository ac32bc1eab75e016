"""Parquet, Feather and Arrow streams, in batches: memory is bounded even if a small file unpacks to a large table."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from bertsmith.data.formats.files import TableFile, check_unpacked_size
from bertsmith.data.table import Cells, ChunkedTable, Note, OnBadRow
from bertsmith.errors import DataError, listing, number_form

_BATCH_ROWS = 65536
"""Maximum number of rows in memory both as Arrow and as Python values while a file is read whole."""
_TIMES = re.compile("timestamp|date|duration")
"""Arrow types whose values may be too large for Python, also within lists and objects."""


def read_arrow(
    file: TableFile, chunk_rows: int | None, on_bad_row: OnBadRow | None = None, *, kind: str
) -> ChunkedTable:
    """Read a file whose ``kind`` is ``"Parquet"`` or ``"Feather"``.

    Raises:
        DataError: if it is damaged or too large unpacked.
    """
    max_rows = chunk_rows or _BATCH_ROWS

    def batches() -> Iterator[Any]:
        n_bytes = 0
        for batch in _record_batches(file.binary, file.path, kind, max_rows)[1]:
            n_bytes += batch.nbytes
            check_unpacked_size(n_bytes, file.config.max_unpacked, file.path)
            yield batch

    schema = _record_batches(file.binary, file.path, kind, max_rows)[0]
    return _table(file.path.name, list(schema.names), list(schema.types), batches)


def read_stream(source: Any, name: str, chunk_rows: int | None) -> ChunkedTable:
    """Read an object that has ``__arrow_c_stream__``, such as a data frame of Polars or a relation of DuckDB.

    The whole table is in memory as Arrow, and ``chunk_rows`` of it as Python values.

    Raises:
        DataError: if the object is not a table, or cannot be read.
    """
    import pyarrow as pa

    try:
        table = pa.table(source)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(
            f"a {type(source).__name__} cannot be read as a table: {str(error).splitlines()[0]}",
            remedy="Pass a table with named columns, or convert it to pandas.",
        ) from error
    max_rows = chunk_rows or _BATCH_ROWS

    def slices() -> Iterator[Any]:
        return (table.slice(start, max_rows) for start in range(0, table.num_rows, max_rows))

    return _table(name, list(table.column_names), list(map(_as_written, table.schema.types)), slices)


def _table(name: str, columns: list[str], types: list[Any], parts: Callable[[], Iterator[Any]]) -> ChunkedTable:
    """Return a table whose record batches come from ``parts``, and note the columns with values that change."""
    n_rows, changed = 0, dict.fromkeys(columns, False)
    for part in parts():
        n_rows += part.num_rows
        for column, values in zip(columns, part.columns, strict=True):
            changed[column] = changed[column] or _has_unreadable(values)
    names = [column for column in columns if changed[column]]
    message = (
        f"{name} has values that Python cannot represent, in {number_form(len(names), 'column')} {listing(names)}. "
        "Invalid UTF-8 becomes U+FFFD, and other such values become missing"
    )
    notes = (Note("warning", message, len(names)),) if names else ()

    def chunks() -> Iterator[Cells]:
        for part in parts():
            yield {column: to_cells(values) for column, values in zip(columns, part.columns, strict=True)}

    nested = {column for column, arrow_type in zip(columns, types, strict=True) if _is_nested(arrow_type)}
    return ChunkedTable(
        name, columns, chunks, n_rows, nested, notes, dict(zip(columns, map(_storable, types), strict=True))
    )


def to_cells(column: Any) -> list[Any]:
    """Return an Arrow column as Python values.

    Invalid UTF-8 becomes U+FFFD. Times in a zone in which Python cannot hold them are in UTC. Other values that Python
    cannot hold become ``None``.
    """
    import pyarrow as pa

    try:
        return list(column.to_pylist())
    except (OverflowError, ValueError):
        if getattr(column.type, "tz", None):
            column = column.cast(pa.timestamp(column.type.unit, "UTC"))
        return [_cell(value) for value in column]


def _cell(value: Any) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return None if _is_nested(value.type) else error.object.decode(errors="replace")
    except (OverflowError, ValueError):
        return None


def _has_unreadable(column: Any) -> bool:
    """Return whether `to_cells` changes values: text that is not UTF-8, or times that Python cannot hold."""
    import pyarrow as pa

    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return True
    return bool(_TIMES.search(str(column.type)) and to_cells(column).count(None) > column.null_count)


def _as_written(arrow_type: Any) -> Any:
    """Return the type of a column for Python values in output files, with a single type for text."""
    import pyarrow as pa

    if pa.types.is_dictionary(arrow_type):
        arrow_type = arrow_type.value_type
    is_text = pa.types.is_string_view(arrow_type) or pa.types.is_large_string(arrow_type)
    return pa.string() if is_text else arrow_type


def _record_batches(binary: BinaryIO, path: Path, kind: str, max_rows: int) -> tuple[Any, Iterator[Any]]:
    """Return the Arrow schema, and the record batches of at most ``max_rows`` rows."""
    import pyarrow.ipc
    import pyarrow.parquet

    def batches() -> Iterator[Any]:
        with _report_damage(path, kind):
            if kind == "Parquet":
                yield from reader.iter_batches(max_rows)
                return
            for i in range(reader.num_record_batches):
                batch = reader.get_batch(i)
                yield from (batch.slice(start, max_rows) for start in range(0, batch.num_rows, max_rows))

    binary.seek(0)
    with _report_damage(path, kind):
        reader = pyarrow.parquet.ParquetFile(binary) if kind == "Parquet" else pyarrow.ipc.open_file(binary)
        schema = reader.schema_arrow if kind == "Parquet" else reader.schema
    return schema, batches()


def parquet_schema(path: Path) -> tuple[Any, int]:
    """Return the Arrow schema of a Parquet file, without metadata, and its number of rows.

    Raises:
        DataError: if it is damaged.
    """
    import pyarrow.parquet

    with _report_damage(path, "Parquet"), pyarrow.parquet.ParquetFile(path) as file:
        return file.schema_arrow.remove_metadata(), file.metadata.num_rows


@contextlib.contextmanager
def _report_damage(path: Path, kind: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"the {kind} file is damaged or truncated: {str(error).splitlines()[0]}",
            where=str(path),
            remedy="Copy or save the file again.",
        ) from error


def _is_nested(arrow_type: Any) -> bool:
    """Return whether values of an Arrow type are lists, objects or bytes."""
    import pyarrow.types as t

    is_bytes = t.is_binary(arrow_type) or t.is_large_binary(arrow_type) or t.is_fixed_size_binary(arrow_type)
    return bool(t.is_nested(arrow_type) or is_bytes)


def common_types(chunks: Callable[[], Iterable[Mapping[str, list[Any]]]]) -> dict[str, Any]:
    """Return for every column the Arrow type that holds its values in all chunks, or string if none does.

    Args:
        chunks: returns an iterator over the chunks, from the first.
    """
    import pyarrow as pa

    found: dict[str, Any] = {}
    promoted: set[str] = set()
    for cells in chunks():
        for name, values in cells.items():
            try:
                kind = pa.array(values, from_pandas=True).type
                both = (found.get(name, kind), kind)
                schemas = [pa.schema([(name, each)]) for each in both]
                found[name] = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
                if any(each not in (found[name], pa.null()) for each in both):
                    promoted.add(name)
            except (pa.ArrowException, TypeError, OverflowError):
                found[name] = pa.string()
    for cells in chunks() if promoted else ():  # floats, for example, do not hold all integers
        for name in promoted & cells.keys():
            try:
                pa.array(cells[name], type=found[name], from_pandas=True)
            except (pa.ArrowException, TypeError, OverflowError):
                found[name] = pa.string()
    return {name: _storable(kind) for name, kind in found.items()}


def _storable(arrow_type: Any) -> Any:
    """Return the type for output files: Parquet cannot store objects without fields, so they become text."""
    import pyarrow as pa

    return pa.string() if "struct<>" in str(arrow_type) else arrow_type
