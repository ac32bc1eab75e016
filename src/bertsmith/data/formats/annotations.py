"""Exports of annotation tools in JSON, as rows of a table: Label Studio, Prodigy and Argilla.

The fields of the first record show the tool. Each label of each coder is a row with the columns of the
text, ``Label`` (a list) and ``coder``. Records of doccano are rows already.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Record = dict[str, Any]
LABEL, CODER = "Label", "coder"
ACCEPTED = "accept"
"""The answer of a Prodigy task whose label counts; others are rejected or ignored."""
_UNFINISHED = ("draft", "discarded", "pending")
"""States of Argilla records and responses that have no label."""


def flatten(records: Iterable[Record]) -> Iterator[Record]:
    """Yield rows for the records of an annotation tool; other records stay as they are."""
    iterator = iter(records)
    for first in iterator:
        convert = next((rows for is_shape, rows in _SHAPES if is_shape(first)), None)
        whole = itertools.chain([first], iterator)
        yield from whole if convert is None else itertools.chain.from_iterable(map(convert, whole))


def _is_label_studio(record: Record) -> bool:
    return isinstance(record.get("data"), dict) and isinstance(record.get("annotations"), list)


def _label_studio(record: Record) -> Iterator[Record]:
    """Yield a row per annotation, with the choices, ratings and taxonomies of its results."""
    columns = record.get("data") or {}
    annotations = [a for a in record.get("annotations") or [] if not a.get("was_cancelled")]
    for annotation in annotations:
        labels: list[Any] = []
        for result in annotation.get("result") or []:
            value = result.get("value") or {}
            labels += value.get("choices") or [path[-1] for path in value.get("taxonomy") or [] if path]
            labels += [value["rating"]] if "rating" in value else []
        coder = annotation.get("completed_by")
        yield {**columns, LABEL: labels, CODER: _name(coder, "email", "id")}
    if not annotations:
        yield {**columns, LABEL: None, CODER: None}


def _is_prodigy(record: Record) -> bool:
    return "text" in record and "answer" in record and "_task_hash" in record


def _prodigy(record: Record) -> Iterator[Record]:
    """Yield a row per answer; without an accepted one, the label is missing."""
    columns = {name: value for name, value in (record.get("meta") or {}).items() if not isinstance(value, list | dict)}
    labels: list[Any] | None = None
    if record.get("answer") == ACCEPTED:
        chosen = record.get("accept")
        labels = list(chosen) if isinstance(chosen, list) else [record["label"]] if "label" in record else []
    coder = record.get("_annotator_id") or record.get("_session_id")
    yield {"text": record.get("text"), LABEL: labels, CODER: coder, **columns}


def _is_argilla(record: Record) -> bool:
    return isinstance(record.get("fields"), dict) and "responses" in record


def _argilla(record: Record) -> Iterator[Record]:
    """Yield a row per coder. In version 2 responses are by question, in version 1 by coder."""
    columns, responses = record["fields"], record.get("responses") or {}
    by_coder: dict[Any, list[Any]] = {}
    if isinstance(responses, dict):
        given = [(r.get("user_id"), r.get("status"), r.get("value")) for some in responses.values() for r in some or []]
    else:
        given = [
            (r.get("user_id"), r.get("status"), question.get("value"))
            for r in responses
            for question in (r.get("values") or {}).values()
        ]
    for coder, status, value in given:
        if status not in _UNFINISHED and value is not None:
            by_coder.setdefault(coder, []).extend(value if isinstance(value, list) else [value])
    for coder, labels in by_coder.items():
        yield {**columns, LABEL: labels, CODER: coder}
    if not by_coder:
        yield {**columns, LABEL: None, CODER: None}


def _name(value: Any, *keys: str) -> Any:
    """Return the name of a coder, which is a number, or an object with a name."""
    return next((value[key] for key in keys if value.get(key)), None) if isinstance(value, dict) else value


_SHAPES: tuple[tuple[Callable[[Record], bool], Callable[[Record], Iterator[Record]]], ...] = (
    (_is_label_studio, _label_studio),
    (_is_prodigy, _prodigy),
    (_is_argilla, _argilla),
)


# -- tasks for these tools ---------------------------------------------------------------------------------------------

TOOLS = ("labelstudio", "doccano", "prodigy", "argilla")


def as_task(tool: str, text: str, facts: Record) -> Record:
    """Return a text as a task of a tool, with what is known about it.

    Args:
        tool: one of `TOOLS`.
        text: the text.
        facts: the other columns of its row.
    """
    if tool == "labelstudio":
        return {"data": {"text": text, **facts}}
    if tool == "argilla":
        return {"fields": {"text": text}, "metadata": facts}
    return {"text": text, "meta": facts} if tool == "prodigy" else {"text": text, "label": [], **facts}


def write_tasks(tool: str, texts: Iterable[str], facts: Iterable[Record]) -> str:
    """Return texts as a file of tasks: a JSON array for Label Studio, else JSON Lines; see `as_task`."""
    tasks = [as_task(tool, text, some) for text, some in zip(texts, facts, strict=True)]
    if tool == "labelstudio":
        return json.dumps(tasks, ensure_ascii=False, indent=1) + "\n"
    return "".join(json.dumps(task, ensure_ascii=False) + "\n" for task in tasks)
