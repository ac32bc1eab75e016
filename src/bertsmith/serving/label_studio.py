"""The machine learning backend of Label Studio: predictions of its tasks, as choices of its labelling interface.

The requests are those of Label Studio 1.x: ``POST /setup``, ``POST /predict``, ``GET /health``, ``GET /versions`` and
``POST /webhook``. Tested with requests that Label Studio 1.23 sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from bertsmith.data.table import MULTI_LABEL, REGRESSION
from bertsmith.data.template import Template, is_empty, normalise_text
from bertsmith.errors import listing, quoted
from bertsmith.serving.items import read_items
from bertsmith.serving.request_errors import RequestError
from bertsmith.serving.schemas import Event, ModelVersion, ModelVersions, Problem, SetupRequest, TasksRequest

if TYPE_CHECKING:
    from bertsmith.inference.predictor import ModelPredictor
    from bertsmith.serving.aliases import Endpoints
    from bertsmith.serving.loader import Service

EXAMPLE = (
    '<View><Text name="text" value="$text"/><Choices name="label" toName="text">'
    '<Choice value="LABEL"/>…</Choices></View>'
)
"""A labelling interface, with a choice for each label of the model."""


@dataclass(frozen=True)
class Interface:
    """The choices that a model makes in a labelling interface.

    Attributes:
        from_name: name of the ``Choices`` tag.
        to_name: name of the ``Text`` tag to which they belong.
        variable: field of a task that has the text.
        choices: the choice for each label of the model: its alias if it has one, or its value.
    """

    from_name: str
    to_name: str
    variable: str
    choices: tuple[str, ...]


def read_interface(config: str, classifier: ModelPredictor, field: str) -> Interface:
    """Find the choices for the labels of a model in a labelling interface.

    Raises:
        RequestError: if the interface is not valid, or has no choices for the labels.
    """
    if classifier.task.name == REGRESSION:
        raise RequestError(422, "the model predicts a number, not a choice", "Serve a model that predicts labels.")
    labels, best = classifier.labels.texts, None
    for tag, to_name, variable in _choices(config, field):
        answers = dict[str, str]()
        for choice in tag.iter("Choice"):
            value = choice.get("value", "")
            answers[value] = choice.get("alias") or value
        names = answers | {answer: answer for answer in answers.values()}
        missing = [label for label in labels if label not in names]
        if not missing and tag.get("choice") != "multiple" and classifier.task.name == MULTI_LABEL:
            what = f"the model gives a text several labels, and {quoted(tag.get('name', ''))} accepts one"
            raise RequestError(422, f"{field}: {what}", 'Add choice="multiple" to the tag Choices.')
        if not missing:
            return Interface(tag.get("name", ""), to_name, variable, tuple(names[label] for label in labels))
        best = missing if best is None or len(missing) < len(best) else best
    if best is None:
        raise RequestError(422, f"{field}: it has no Choices for a Text", f"Write it as in {EXAMPLE}")
    what = f"{field}: these labels of the model are missing from Choices: {listing(best)}"
    raise RequestError(422, what, f"Write it as in {EXAMPLE}")


def _choices(config: str, field: str) -> list[tuple[ElementTree.Element, str, str]]:
    """Return each ``Choices`` tag for a whole text, with the name and the variable of its ``Text`` tag."""
    try:
        if "<!DOCTYPE" in config:  # entities can expand to any size
            raise ElementTree.ParseError("it declares a document type")
        root = ElementTree.fromstring(config)
    except (ElementTree.ParseError, UnicodeEncodeError) as error:
        what = f"{field}: it is not a labelling interface: {error}"
        raise RequestError(422, what, f"Write it as in {EXAMPLE}") from None
    values = {tag.get("name", ""): tag.get("value", "") for tag in root.iter("Text")}
    variables = {name: value[1:] for name, value in values.items() if value.startswith("$")}
    return [
        (tag, to_name, variables[to_name])
        for tag in root.iter("Choices")
        if (to_name := tag.get("toName", "")) in variables and tag.get("perRegion") != "true"
    ]


def _items(tasks: Sequence[dict[str, Any]], template: Template, variable: str) -> list[dict[str, Any]]:
    """Return the texts of tasks as objects of columns, for `read_items`."""
    items = []
    for i, task in enumerate(tasks):
        data = task.get("data")
        if not isinstance(data, dict):
            raise RequestError(422, f"tasks[{i}].data: it is not an object", "Send tasks as Label Studio does.")
        cells = {name: value for name, value in data.items() if not isinstance(value, list | dict)}
        if template.is_plain and variable not in cells:
            what = f"tasks[{i}].data: it has no text {quoted(variable)}, which the labelling interface shows"
            raise RequestError(422, what, "Import tasks with this field.")
        items.append({"text": cells[variable]} if template.is_plain else cells)
    return items


async def predict_tasks(endpoints: Endpoints, body: TasksRequest, request: Request) -> Response:
    """Answer a request of Label Studio: one prediction per task, without choices for a task with an empty text."""
    service = endpoints.service()
    classifier, version = service.batcher.classifier, _version(service)
    interface = read_interface(body.label_config, classifier, "label_config")
    items = _items(body.tasks, classifier.template, interface.variable)
    texts = read_items(items, classifier.template, endpoints.limits, "tasks", allow_empty=True)
    results: list[dict[str, Any]] = [{"result": [], "score": None, "model_version": version} for _ in items]
    filled = [i for i, text in enumerate(texts) if not is_empty(normalise_text(text))]
    if filled:
        some = [items[i] for i in filled]
        options: dict[str, Any] = {"truncate": True, "side": "right", "field": "tasks", "classifier": classifier}
        logits, _ = await endpoints.classify(request, some, **options)
        scores = classifier.task.scores(logits)
        decided = classifier.task.indicators(classifier.task.predicted(scores), len(interface.choices)) > 0
        for i, row, score in zip(filled, decided, classifier.task.confidence(scores).tolist(), strict=True):
            results[i]["result"] = [
                {
                    "from_name": interface.from_name,
                    "to_name": interface.to_name,
                    "type": "choices",
                    "value": {"choices": [interface.choices[c] for c in np.flatnonzero(row)]},
                }
            ]
            results[i]["score"] = score
    return JSONResponse({"results": results}, headers=getattr(request.state, "headers", None))


def _version(service: Service) -> str:
    """Return the name of the model and when it was trained: Label Studio asks a new version for new predictions."""
    return " ".join(str(service.info[key]) for key in ("model", "trained") if service.info.get(key))


def add_label_studio(app: FastAPI, endpoints: Endpoints) -> None:
    """Add the routes that only Label Studio calls. `bertsmith.serving.app` has the other ones."""

    @app.post("/setup", response_model=ModelVersion, **endpoints.options)
    async def setup(body: SetupRequest) -> dict[str, str]:
        """Check that the labelling interface of a Label Studio project has the labels of the model."""
        service = endpoints.service()
        read_interface(body.label_config, service.batcher.classifier, "schema")
        return {"model_version": _version(service)}

    responses, secured = endpoints.options["responses"], endpoints.options["dependencies"]
    bodiless: dict[int | str, dict[str, Any]] = {status: responses[status] for status in (401, 503)}

    @app.get("/versions", response_model=ModelVersions, responses=bodiless, dependencies=secured)
    async def versions() -> dict[str, list[str]]:
        """Return the version of the model to Label Studio."""
        return {"versions": [_version(endpoints.service())]}

    problems = {status: about for status, about in responses.items() if status != 401}
    answers: dict[int | str, dict[str, Any]] = {
        204: {"description": "The server received the event. The response has no body."}
    }
    answers[501] = {"model": Problem, "description": "This server does not train."}

    @app.post("/webhook", status_code=204, responses={**problems, **answers})
    async def webhook(body: Event) -> None:
        """Ignore the events of a Label Studio project, such as a new annotation. Label Studio sends no token."""
        if body.action == "START_TRAINING":
            what = "this server does not train"
            raise RequestError(501, what, "Export the project as JSON, and run bertsmith train on this file.")
