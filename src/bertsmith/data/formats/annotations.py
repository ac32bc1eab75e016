"""Exports of annotation tools as rows of a table, and tasks for these tools.

The fields of the first JSON record show the tool. The answer of each coder is a row with the columns of the text,
``Label`` (a list) and ``coder``. If coders answer several questions, each has a column instead of ``Label``. Records
of doccano are rows already.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from bertsmith.data.texts import is_missing, json_ready
from bertsmith.errors import DataError

Record = dict[str, Any]
Answers = dict[str, list[Any]]
"""The labels of a text by the name of the question."""
Row = tuple[Record, Answers | None, Any]
"""The columns of a text, the answers of a coder, and the coder; without answers ``None``."""
LABEL, CODER = "Label", "coder"
ACCEPTED = "accept"
"""The answer of a Prodigy task whose label counts; others are rejected or ignored."""
_UNFINISHED = ("draft", "discarded", "pending")
"""States of Argilla records and responses that have no label."""


def flatten(records: Iterable[Record], name: str) -> Iterator[Record]:
    """Yield rows for the records of an annotation tool; other records stay as they are.

    Raises:
        DataError: if a record does not have the fields of the tool.
    """
    iterator = iter(records)
    number = 0

    def numbered(first: Record) -> Iterator[Record]:
        nonlocal number
        for record in itertools.chain([first], iterator):
            number += 1
            yield record

    for first in iterator:
        convert = next((rows for is_shape, rows in _SHAPES if is_shape(first)), iter)
        try:
            yield from convert(numbered(first))
        except (AttributeError, KeyError, TypeError) as error:
            raise DataError(
                "this is not a complete record of an annotation tool",
                where=f"{name}, record {number:,}",
                remedy="Export the project again as JSON, with its annotations.",
            ) from error


# -- Label Studio ------------------------------------------------------------------------------------------------------


def _label_studio(records: Iterable[Record]) -> Iterator[Record]:
    """Yield a row per annotation."""
    rows: list[Row] = []
    for record in records:
        given = [a for a in record.get("annotations") or [] if not a.get("was_cancelled")]
        columns = {**(record.get("data") or {})}
        rows += [(columns, _answers(a), _name(a.get("completed_by"), "email", "id")) for a in given]
        rows += [] if given else [(columns, None, None)]
    return _by_question(rows)


def _answers(annotation: Record) -> Answers:
    """Return the labels that an annotation gives to the whole text."""
    answers: Answers = {}
    for result in annotation.get("result") or []:
        value = result.get("value") or {}
        labels = None if "start" in value else _labels(value)  # a part of a text has a start
        if labels is not None:
            answers.setdefault(str(result.get("from_name")), []).extend(labels)
    return answers


def _labels(value: Record) -> list[Any] | None:
    """Return the choices, or the rating, number or last levels of a taxonomy; ``None`` for other values."""
    if isinstance(value.get("choices"), list):
        return list(value["choices"])
    if isinstance(value.get("taxonomy"), list):
        return [path[-1] for path in value["taxonomy"] if path]
    return [value[key] for key in ("rating", "number") if key in value] or None


_PACKED = ('{"choices"', '[{"taxonomy"', '[{"rating"', '[{"number"')
"""Beginnings of the cells of Label Studio's exports in CSV that hold JSON. In JSON_MIN, these are objects."""


def unpack_labels(cells: Sequence[Any]) -> list[Any] | None:
    """Return the labels of a column of Label Studio's exports in CSV, TSV or JSON_MIN as lists.

    A cell has one label, or several of them as ``{"choices": ["a", "b"]}``.

    Returns:
        A list per cell, ``None`` for an empty cell; or ``None`` if the column is not of this kind.
    """
    found = [_unpack(cell) for cell in cells]
    if not any(labels is not None for labels in found):
        return None
    return [
        labels if labels is not None or is_missing(cell) or cell == "" else [cell]
        for cell, labels in zip(cells, found, strict=True)
    ]


def _unpack(cell: Any) -> list[Any] | None:
    if isinstance(cell, str) and cell.startswith(_PACKED):
        with contextlib.suppress(ValueError):
            cell = json.loads(cell)
    values = cell if isinstance(cell, list) else [cell]
    labels = [_labels(value) for value in values if isinstance(value, dict)]
    is_packed = labels and len(labels) == len(values) and None not in labels
    return [one for some in labels for one in some or ()] if is_packed else None


# -- Prodigy and Argilla -----------------------------------------------------------------------------------------------


def _prodigy(record: Record) -> Record:
    """Return the row of an answer; the label is missing unless the answer is accepted."""
    columns = {name: value for name, value in (record.get("meta") or {}).items() if not isinstance(value, list | dict)}
    labels: list[Any] | None = None
    if record.get("answer") == ACCEPTED:
        chosen = record.get("accept")
        labels = list(chosen) if isinstance(chosen, list) else [record["label"]] if "label" in record else []
    coder = record.get("_annotator_id") or record.get("_session_id")
    return {**columns, "text": record.get("text"), LABEL: labels, CODER: coder}


def _argilla(records: Iterable[Record]) -> Iterator[Record]:
    """Yield a row per coder. In version 2 responses are by question, in version 1 by coder."""
    rows: list[Row] = []
    for record in records:
        responses = record.get("responses") or {}
        if isinstance(responses, dict):
            given = [(name, r, r.get("value")) for name, some in responses.items() for r in some or []]
        else:
            given = [(n, r, q.get("value")) for r in responses for n, q in (r.get("values") or {}).items()]
        by_coder: dict[Any, Answers] = {}
        for name, response, value in given:
            values = value if isinstance(value, list) else [] if value is None else [value]
            if response.get("status") not in _UNFINISHED and values and not isinstance(values[0], dict):
                by_coder.setdefault(response.get("user_id"), {}).setdefault(name, []).extend(values)
        columns = {**(record.get("metadata") or {}), **record["fields"]}
        rows += [(columns, answers, coder) for coder, answers in by_coder.items()]
        rows += [] if by_coder else [(columns, None, None)]
    return _by_question(rows)


def _by_question(rows: Sequence[Row]) -> Iterator[Record]:
    """Yield rows with a list of labels. If the coders answer several questions, each has a column with its name."""
    names = dict.fromkeys(name for _, answers, _ in rows for name in answers or ())
    columns = {name: name if len(names) > 1 else LABEL for name in names or (LABEL,)}
    for facts, answers, coder in rows:
        cells = {column: None if answers is None else answers.get(name, []) for name, column in columns.items()}
        yield {**facts, **cells, CODER: coder}


def _name(value: Any, *keys: str) -> Any:
    """Return the name of a coder, which is a number, or an object with a name."""
    return next((value[key] for key in keys if value.get(key)), None) if isinstance(value, dict) else value


_SHAPES: tuple[tuple[Callable[[Record], bool], Callable[[Iterable[Record]], Iterator[Record]]], ...] = (
    (lambda r: isinstance(r.get("data"), dict) and isinstance(r.get("annotations"), list), _label_studio),
    (lambda r: r.keys() >= {"text", "answer", "_task_hash"}, lambda records: map(_prodigy, records)),
    (lambda r: isinstance(r.get("fields"), dict) and "responses" in r, _argilla),
)


# -- tasks for these tools ---------------------------------------------------------------------------------------------


def as_task(tool: str, text: str, facts: Record) -> Record:
    """Return a text as a task of a tool, with what is known about it.

    Args:
        tool: ``"labelstudio"``, ``"doccano"``, ``"prodigy"`` or ``"argilla"``.
        text: the text.
        facts: the other columns of its row.
    """
    if tool == "labelstudio":
        return {"data": {**facts, "text": text}}
    if tool == "argilla":
        return {"fields": {"text": text}, "metadata": facts}
    if tool == "prodigy":
        return {"text": text, "meta": facts}
    filled = {name: "" if value is None else value for name, value in facts.items()}  # doccano cannot import null
    return {**filled, "text": text, "label": []}


def write_tasks(tool: str, texts: Iterable[str], facts: Iterable[Record]) -> str:
    """Return texts as a file of tasks: a JSON array for Label Studio and Argilla, else JSON Lines; see `as_task`."""
    tasks = [as_task(tool, text, json_ready(some)) for text, some in zip(texts, facts, strict=True)]
    if tool in ("labelstudio", "argilla"):
        return json.dumps(tasks, ensure_ascii=False, indent=1, default=str) + "\n"
    return "".join(json.dumps(task, ensure_ascii=False, default=str) + "\n" for task in tasks)
