"""Routes in the formats of Vertex AI and vLLM."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from bertsmith.inference.predictor import ModelPredictor
from bertsmith.serving.schemas import (
    Classified,
    ClassifyRequest,
    Health,
    Parameters,
    Predictions,
    VertexRequest,
)

if TYPE_CHECKING:
    from bertsmith.serving.loader import Service
    from bertsmith.serving.middleware import Limits


@dataclass(frozen=True)
class Endpoints:
    """The functions behind the routes; see `bertsmith.serving.app`.

    Attributes:
        classify: returns logits after the decision rule, shape (texts, classes), and the classifier.
        rank: returns the labels of each text with their scores, according to the parameters of a request.
        ready: reports whether the server can classify.
        service: returns the loaded model.
        options: arguments of the routes that classify.
        unready: responses of the routes that report whether the server can classify.
        limits: limits of a request.
    """

    classify: Callable[..., Awaitable[tuple[np.ndarray, ModelPredictor]]]
    rank: Callable[[np.ndarray, ModelPredictor, Parameters], Sequence[Any]]
    ready: Callable[[], Awaitable[dict[str, str]]]
    service: Callable[[], Service]
    options: dict[str, Any]
    unready: dict[int | str, dict[str, Any]]
    limits: Limits


@dataclass(frozen=True)
class VertexRoutes:
    """The routes that Vertex AI sets; ``None`` elsewhere.

    Attributes:
        health: the variable ``AIP_HEALTH_ROUTE``.
        predict: the variable ``AIP_PREDICT_ROUTE``.
    """

    health: str | None = None
    predict: str | None = None


def add_aliases(app: FastAPI, endpoints: Endpoints, vertex: VertexRoutes) -> None:
    """Add the routes. A route of Vertex AI replaces another route with the same path."""
    taken = {vertex.health, vertex.predict}
    app.router.routes = [route for route in app.router.routes if getattr(route, "path", "") not in taken]

    @app.post("/classify", response_model=Classified, **endpoints.options)
    async def classify(body: ClassifyRequest, request: Request) -> Response:
        """Classify a text or a list of texts, in the format of vLLM: the best label and all probabilities.

        `probs` lists the probabilities in the order of `labels` in `/info`. If the model does not read a text
        completely, the request gets status 413.
        """
        items: list[Any] = body.input if isinstance(body.input, list) else [body.input]
        logits, classifier = await endpoints.classify(request, items, truncate=False, side="right", field="input")
        texts = classifier.labels.texts
        data = [
            {"index": i, "label": texts[int(row.argmax())], "probs": row.tolist(), "num_classes": len(texts)}
            for i, row in enumerate(np.asarray(classifier.task.scores(logits), dtype=np.float64))
        ]
        tokens = request.state.log_fields["tokens"]
        answer = {
            "id": f"classify-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": endpoints.service().info["model"],
            "data": data,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
        }
        return JSONResponse(answer, headers=request.state.headers)

    async def vertex_predict(body: VertexRequest, request: Request) -> Response:
        """Classify instances, each a text or an object of columns, in the format of Vertex AI."""
        logits, classifier = await endpoints.classify(
            request, body.instances, truncate=True, side="right", field="instances"
        )
        predictions = endpoints.rank(logits, classifier, body.parameters)
        return JSONResponse({"predictions": predictions}, headers=request.state.headers)

    if vertex.predict is not None:
        app.post(vertex.predict, response_model=Predictions, **endpoints.options)(vertex_predict)
    if vertex.health is not None:
        app.get(vertex.health, response_model=Health, responses=endpoints.unready, name="vertex_health")(
            endpoints.ready
        )
