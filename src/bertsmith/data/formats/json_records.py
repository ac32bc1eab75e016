"""JSON Lines, with one object per line, and JSON arrays of objects."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from bertsmith.data.formats.annotations import flatten
from bertsmith.data.formats.files import TableFile
from bertsmith.data.table import Cells, ChunkedTable, OnBadRow, Position
from bertsmith.data.texts import replace_surrogates
from bertsmith.errors import DataError, RowError


def read_json_array(file: TableFile, chunk_rows: int | None, on_bad_row: OnBadRow | None = None) -> ChunkedTable:
    """Read a JSON array of objects, one per row.

    Raises:
        DataError: if the file is not JSON, or an item is not an object.
    """
    name = file.path.name
    with file.text.open() as text:
        content = text.read()
    try:
        records = json.loads(content, object_pairs_hook=_refuse_repeated_keys)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"the file cannot be read as JSON: {error}", where=name, remedy="Correct the file, or save the table again."
        ) from error
    for number, record in enumerate(records, start=1):
        _check_record(record, f"{name}, entry {number:,}")
    records = list(flatten(records, name))
    return _table(file, chunk_rows, lambda: iter(records), records)


def read_json_lines(file: TableFile, chunk_rows: int | None, on_bad_row: OnBadRow | None) -> ChunkedTable:
    """Read JSON Lines, one object per row.

    Raises:
        RowError: if a line is not an object, unless there is ``on_bad_row``.
    """

    def records(on_bad_row: OnBadRow | None) -> Iterator[dict[str, Any]]:
        with file.text.open("\n") as lines:
            yield from flatten(_parse_lines(lines, file.path.name, on_bad_row), file.path.name)

    ignore = None if on_bad_row is None else lambda where, reason: None  # the first pass reports bad rows
    return _table(file, chunk_rows, lambda: records(ignore), records(on_bad_row))


def _table(
    file: TableFile,
    chunk_rows: int | None,
    records: Callable[[], Iterator[dict[str, Any]]],
    first_pass: Iterable[dict[str, Any]],
) -> ChunkedTable:
    if chunk_rows is None:
        all_records = list(first_pass)
        first_pass, records = all_records, lambda: iter(all_records)
    keys: dict[str, None] = {}
    nested: set[str] = set()
    n_rows = 0
    for record in first_pass:
        n_rows += 1
        keys.update(dict.fromkeys(record))
        nested.update(replace_surrogates(key) for key, value in record.items() if isinstance(value, list | dict))

    def chunks() -> Iterator[Cells]:
        remaining = records()
        while chunk := list(itertools.islice(remaining, chunk_rows)):
            yield {replace_surrogates(key): [replace_surrogates(record.get(key)) for record in chunk] for key in keys}

    columns = [replace_surrogates(key) for key in keys]
    return ChunkedTable(file.path.name, columns, chunks, n_rows, nested, file.text.notes)


def _parse_lines(lines: Iterable[str], name: str, on_bad_row: OnBadRow | None) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number:,}"
        try:
            try:
                record = json.loads(line, object_pairs_hook=_refuse_repeated_keys)
            except (ValueError, RecursionError) as error:
                raise RowError(
                    f"the line cannot be read as JSON: {error}",
                    where=where,
                    remedy="Write one object per line, with each key once, or a single array of objects: [{…}, {…}].",
                ) from error
            _check_record(record, where, RowError)
        except RowError as error:
            if on_bad_row is None:
                raise
            on_bad_row(Position("line", number), error.what)
            continue
        yield record


def _check_record(record: Any, where: str, error_type: type[DataError] = DataError) -> None:
    if not isinstance(record, dict):
        raise error_type(
            f"expected an object with one key per column, found {type(record).__name__}",
            where=where,
            remedy='Write every row as {"Text": "…", "Label Text": "…"}.',
        )

    if record and all(isinstance(value, dict) and "0" in value for value in record.values()):
        raise DataError(
            "the file holds an object for each column, not for each row",
            where=where,
            remedy='Save the table as an array of rows, in pandas with to_json(…, orient="records").',
        )


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        repeated = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {repeated!r} is repeated")
    return record
