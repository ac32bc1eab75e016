"""JSON: an array of objects, or an object a line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from bertsmith.data.texts import encodable_text
from bertsmith.errors import DataError, RowError

if TYPE_CHECKING:
    import pandas as pd


def read_json(text: str, name: str) -> pd.DataFrame:
    """Read JSON, whole.

    Raises:
        DataError: if it is none, or holds something else than objects.
    """
    if text.lstrip().startswith("["):
        try:
            records = json.loads(text, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise DataError(f"this is not JSON: {error}", where=name, remedy="Save the table again.") from error
        for number, record in enumerate(records, start=1):
            _check_record(record, f"{name}, entry {number:,}")
    else:
        records = [record for _, record in json_lines(text.split("\n"), name)]
    import pandas as pd

    keys = list(dict.fromkeys(key for record in records for key in record))
    columns = (pd.Series([record.get(key) for record in records], dtype=object) for key in keys)
    frame = pd.DataFrame(dict(enumerate(columns)))
    frame.columns = pd.Index([encodable_text(key) for key in keys], dtype=object)
    return frame


def json_lines(
    lines: Iterable[str], name: str, bad: Callable[[int, RowError], None] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read JSON Lines one by one; empty lines are left out.

    Args:
        lines: the text, line by line.
        name: what to call it in messages.
        bad: is told the number of a line that is no object, and why; such lines are then left out.

    Yields:
        The number of the line, and its object.

    Raises:
        RowError: if a line is no object, unless ``bad`` is told.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number:,}"
        try:
            try:
                record = json.loads(line, object_pairs_hook=_once)
            except (ValueError, RecursionError) as error:
                raise RowError(
                    f"this line is not JSON: {error}",
                    where=where,
                    remedy="Write one object a line, or all of them in one array: [{…}, {…}].",
                ) from error
            _check_record(record, where, RowError)
        except RowError as error:
            if bad is None:
                raise
            bad(number, error)
            continue
        yield number, record


def _check_record(record: Any, where: str, kind: type[DataError] = DataError) -> None:
    if not isinstance(record, dict):
        raise kind(
            f"expected an object with the columns as keys, found {type(record).__name__}",
            where=where,
            remedy='Write every row as {"Text": "…", "Label Text": "…"}.',
        )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {twice!r} is there twice")
    return record
