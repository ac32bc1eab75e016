"""The FastAPI application: the routes and the error responses."""

from __future__ import annotations

import asyncio
import importlib.resources
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.security import APIKeyHeader, HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from bertsmith import __version__
from bertsmith.data.table import REGRESSION
from bertsmith.data.template import Template, segments
from bertsmith.errors import UserError
from bertsmith.inference.predictor import ModelPredictor
from bertsmith.serving.aliases import Endpoints, VertexRoutes, add_aliases
from bertsmith.serving.batcher import QueueFullError
from bertsmith.serving.items import read_items
from bertsmith.serving.label_studio import add_label_studio, predict_tasks
from bertsmith.serving.loader import Service
from bertsmith.serving.middleware import Limits, Middleware
from bertsmith.serving.prometheus import ServerMetrics
from bertsmith.serving.request_errors import (
    RequestError,
    error_response,
    example_request,
    queue_full_response,
    validation_message,
)
from bertsmith.serving.schemas import (
    ExplainRequest,
    Health,
    Info,
    Parameters,
    PipelineRequest,
    PredictBody,
    Problem,
    Score,
    TaskPredictions,
    TasksRequest,
    apply_function,
    rank_labels,
)

TOKENIZE_IN_THREAD = 20_000
"""Characters in a request above which a thread tokenizes it, so that the event loop stays responsive."""


def create_app(
    get_service: Callable[[], Service | None],
    server_metrics: ServerMetrics,
    limits: Limits,
    token: str | None = None,
    vertex: VertexRoutes = VertexRoutes(),  # noqa: B008 - immutable
    *,
    only_local: bool = False,
) -> FastAPI:
    """Create the application.

    Args:
        get_service: returns the service; ``None`` while the model is loading.
        server_metrics: counts requests and batches.
        limits: limits of a request.
        token: token that requests must send; ``None``: requests need no token.
        vertex: the routes of Vertex AI.
        only_local: whether requests without a token must name this machine in the header ``Host``.
    """
    app: FastAPI = FastAPIOffline(
        title="bertsmith",
        version=__version__,
        description="A text classifier. POST /predict has the format of text-embeddings-inference, or of Label "
        "Studio. POST / has the format of Hugging Face's inference API.",
        redoc_url=None,
    )
    # The middleware checks the token. Here it is only part of the OpenAPI description.
    schemes = (HTTPBearer(auto_error=False), APIKeyHeader(name="X-API-Key", auto_error=False))
    secured = [Security(scheme) for scheme in schemes] if token else []
    problems: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem, "description": text}
        for status, text in (
            (400, "The body is not valid JSON."),
            (401, "The token is missing or wrong, or a local server without a token gets another `Host`."),
            (408, "The body did not arrive in time."),
            (413, "The body is too long, or the model does not read a text completely."),
            (415, "The content type of the body is not JSON."),
            (422, "A value in the body is invalid or exceeds a limit; `error` names the field."),
            (429, "The queue is full; `Retry-After` gives the seconds to wait."),
            (503, "The model is loading, the server is shutting down, or the request timed out."),
        )
    }

    def require_service() -> Service:
        service = get_service()
        if service is None:
            raise RequestError(503, "the model is loading", "Retry when GET /ready answers 200.")
        return service

    async def classify(
        request: Request,
        items: Sequence[Any],
        *,
        truncate: bool,
        side: str,
        field: str = "inputs",
        classifier: ModelPredictor | None = None,
    ) -> tuple[np.ndarray, ModelPredictor]:
        """Return adjusted logits of shape (texts, classes), and set the headers and log fields of the request."""
        start, batcher = time.perf_counter(), require_service().batcher
        classifier = batcher.classifier if classifier is None else classifier
        texts = read_items(items, classifier.template, limits, field)
        encode = partial(classifier.encode, texts, truncate=False)
        characters = sum(len(segment) for text in texts for segment in segments(text))
        tokens = await asyncio.to_thread(encode) if characters > TOKENIZE_IN_THREAD else encode()
        max_length = classifier.max_length
        left = side == "left" and classifier.long == "truncate"
        tokens = tokens.truncate(max_length, left=True) if left else classifier.read(tokens)
        too_long = np.flatnonzero(tokens.is_truncated)
        if len(too_long) and not truncate:
            first = f"{field}[{too_long[0]}]: {tokens.full_lengths[too_long[0]]:,} tokens, at most {max_length:,}"
            allowed = "set truncate to true" if field == "inputs" else "POST to /, which truncates texts"
            raise RequestError(413, first, f"Shorten the text, or {allowed}.")
        n_tokens = int(tokens.truncated_lengths.sum())
        encoded = time.perf_counter()
        async with asyncio.timeout(limits.seconds):
            logits, queue_seconds = await batcher.logits(classifier, tokens)
        end = time.perf_counter()
        server_metrics.queue_seconds.observe(queue_seconds)
        server_metrics.truncated_texts.inc(len(too_long))
        request.state.log_fields = {"texts": len(texts), "tokens": n_tokens, "queue_ms": round(1000 * queue_seconds, 2)}
        request.state.headers = {
            "x-compute-type": classifier.compute_type,
            "x-compute-characters": str(characters),
            "x-compute-tokens": str(n_tokens),
            "x-tokenization-time": _ms(encoded - start),
            "x-queue-time": _ms(queue_seconds),
            "x-inference-time": _ms(end - encoded - queue_seconds),
            "x-compute-time": _ms(end - start),
            "x-total-time": _ms(end - start),
            **({"x-truncated-texts": ",".join(map(str, too_long))} if len(too_long) else {}),
        }
        adjusted = classifier.rule.adjust(logits, decide=classifier.decide)
        require_service().observe(classifier, classifier.task.scores(adjusted), server_metrics)
        return adjusted, classifier

    predicted = list[Score] | list[list[Score]] | TaskPredictions

    @app.post("/predict", responses=problems, response_model=predicted, dependencies=secured)
    async def predict(body: PredictBody, request: Request) -> Response:
        """Classify a text or a batch, in the format of text-embeddings-inference: all labels, best first.

        The header `x-truncated-texts` lists the positions, from 0, of texts that the model does not read completely.
        A body with `tasks` is a request from Label Studio. The answer has a prediction for each task.
        """
        if isinstance(body, TasksRequest):
            return await predict_tasks(endpoints, body, request)
        single = not isinstance(body.inputs, list) or isinstance(body.inputs[0], str)
        items: Any = [body.inputs] if single else body.inputs
        side = body.truncation_direction.lower()
        logits, classifier = await classify(request, items, truncate=body.truncate, side=side)
        scores = logits if body.raw_scores else classifier.task.scores(logits)
        answer = rank_labels(scores, classifier.labels.texts)
        return JSONResponse(answer[0] if single else answer, headers=request.state.headers)

    options: dict[str, Any] = {"responses": problems, "dependencies": secured}
    ranked = list[Score] | list[list[Score]]

    @app.post("/invocations", response_model=ranked, description="`POST /` on the path of SageMaker.", **options)
    @app.post("/", response_model=ranked, **options)
    async def pipeline(body: PipelineRequest, request: Request) -> Response:
        """Classify a text or a flat list of texts, as Hugging Face's `pipeline("text-classification")` does.

        The key `long` of `/info` shows how the model reads long texts. The header `x-truncated-texts` lists the
        positions, from 0, of texts that the model does not read completely.
        """
        single = not isinstance(body.inputs, list)
        items: list[Any] = body.inputs if isinstance(body.inputs, list) else [body.inputs]
        logits, classifier = await classify(request, items, truncate=True, side="right")
        answer = _rank(logits, classifier, body.parameters)
        has_top_k = "top_k" in body.parameters.model_fields_set
        return JSONResponse(answer[0] if single and has_top_k else answer, headers=request.state.headers)

    unavailable = {"model": Problem, "description": "This server cannot explain predictions."}

    @app.post("/explain", responses={**problems, 404: unavailable}, dependencies=secured)
    async def explain(body: ExplainRequest, request: Request) -> Response:
        """Return the contribution of each word to the label of a text (integrated gradients)."""
        service = require_service()
        explainer = service.explain
        if explainer is None:
            what = "an explanation needs captum, torch and a tokenizer.json, and this server lacks one of them"
            raise RequestError(404, what, "Install 'bertsmith[explain]' and serve the run with --runtime torch.")
        from bertsmith.inference.explain import FORWARD_PASSES, STEPS  # needs torch, which an export does not

        classifier = service.batcher.classifier
        texts = read_items([body.inputs], classifier.template, limits)
        n_tokens = int(classifier.encode(texts).truncated_lengths[0])
        request.state.log_fields = {"texts": 1, "tokens": n_tokens}
        # The timeout stops only the wait for the answer; the deadline stops the model.
        deadline = time.perf_counter() + limits.seconds
        async with asyncio.timeout(limits.seconds):
            cost = FORWARD_PASSES * STEPS[0] * n_tokens
            answer = await service.batcher.run(lambda classifier: explainer(classifier, texts, deadline), cost)
        return JSONResponse(answer)

    @app.head("/health", include_in_schema=False)
    @app.get("/health", response_model=Health)
    async def health() -> dict[str, str]:
        """Report that the process is running."""
        return {"status": "UP"}

    unready: dict[int | str, dict[str, Any]] = {503: problems[503]}

    @app.get("/ping", response_model=Health, responses=unready, description="`GET /ready` on the path of SageMaker.")
    @app.get("/ready", response_model=Health, responses=unready)
    async def ready() -> dict[str, str]:
        """Report whether the server can classify: 503 while the model is loading or the server is shutting down."""
        if require_service().draining:
            raise RequestError(503, "the server is shutting down", "Send the request to another server.")
        return {"status": "ready"}

    read: dict[int | str, dict[str, Any]] = {status: problems[status] for status in (401, 503)}

    # The facts about a run are absent for a model folder, not null.
    @app.get("/info", response_model=Info, response_model_exclude_unset=True, responses=read, dependencies=secured)
    async def info() -> dict[str, Any]:
        """Return the name of the model, its labels, its test metrics, and the limits of a request.

        `drift` is the latest comparison of the held-out texts of the model with 1,000 texts that this process
        classified. A new comparison follows after every 1,000 texts. The value is null before the first comparison, and
        with fewer than 50 held-out texts.
        """
        service = require_service()
        return {
            **service.info,
            "version": __version__,
            "drift": None if service.watch is None else service.watch.to_dict(),
            "explains": service.explain is not None,
            "max_length": service.batcher.classifier.max_length,
            "columns": list(service.batcher.classifier.template.columns),
            "long": service.batcher.classifier.long,
            "limits": {"body": limits.body, "texts": limits.texts, "characters": limits.characters},
        }

    exposition: dict[int | str, dict[str, Any]] = {401: problems[401], 200: {"content": {"text/plain": {}}}}

    @app.get("/metrics", response_class=Response, responses=exposition, dependencies=secured)
    async def metrics() -> Response:
        """Return the server's metrics in the Prometheus text format."""
        return Response(server_metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    endpoints = Endpoints(classify, _rank, ready, require_service, options, unready, limits)
    add_label_studio(app, endpoints)
    add_aliases(app, endpoints, vertex)
    page = importlib.resources.files("bertsmith.serving").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/ui", response_class=HTMLResponse)
    async def ui() -> HTMLResponse:
        """Return a page to try texts in."""
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
        return HTMLResponse(page, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"})

    @app.exception_handler(RequestError)
    async def on_request_error(request: Request, error: RequestError) -> JSONResponse:
        if error.logged:
            request.state.log_fields = {"error": error.error}  # Label Studio shows only the status
        return error_response(error.status, error.error, error.remedy)

    @app.exception_handler(QueueFullError)
    async def on_queue_full(request: Request, error: QueueFullError) -> JSONResponse:
        return queue_full_response(error.seconds)

    @app.exception_handler(TimeoutError)
    async def on_timeout(request: Request, error: TimeoutError) -> JSONResponse:
        what = f"the request took longer than {limits.seconds:g} s"
        return error_response(503, what, "Retry, with fewer or shorter texts.")

    @app.exception_handler(RequestValidationError)
    async def on_validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        content_type = request.headers.get("content-type", "")
        if not re.match(r"application/([^;]*\+)?json\b", content_type, re.IGNORECASE):
            sent = f"the content type is {content_type[:100]}" if content_type else "the body has no content type"
            return error_response(415, sent, "Send the header Content-Type: application/json.")
        service = get_service()
        template = Template() if service is None else service.batcher.classifier.template
        broken = next((entry for entry in error.errors() if entry["type"] == "json_invalid"), None)
        if broken is not None:
            what = f"the body is not valid JSON: character {broken['loc'][-1]}: {broken['ctx']['error']}"
            return error_response(400, what, example_request(template))
        nested = request.url.path == "/predict" != vertex.predict
        return error_response(422, *validation_message(error, template, nested=nested))

    @app.exception_handler(HTTPException)
    async def on_http_exception(request: Request, error: HTTPException) -> JSONResponse:
        headers, method, path = dict(error.headers or {}), request.method, request.url.path[:100]
        if isinstance(error.__cause__, RecursionError):
            return error_response(400, "the body is nested too deeply", "/docs describes the requests.", headers)
        what, remedy = {
            400: ("the body is not JSON in UTF-8", "Encode it in UTF-8."),  # FastAPI cannot decode it
            404: (f"the path {path} does not exist", "/docs lists the paths."),
            405: (f"the path {path} does not accept {method}", f"Send {headers.get('Allow') or 'another method'}."),
        }.get(error.status_code, (str(error.detail), "/docs describes the requests."))
        return error_response(error.status_code, what, remedy, headers)

    @app.exception_handler(UserError)
    async def on_user_error(request: Request, error: UserError) -> JSONResponse:
        return error_response(503, error.what, error.remedy or "Retry later.")

    app.add_middleware(
        Middleware,
        get_service=get_service,
        limits=limits,
        token=token,
        only_local=only_local,
        server_metrics=server_metrics,
        health_path=vertex.health,
    )
    return app


def _rank(logits: np.ndarray, classifier: ModelPredictor, parameters: Parameters) -> list[Any]:
    """Return the labels of each text with their scores, best first; without ``top_k``, only the best one."""
    has_top_k, function = "top_k" in parameters.model_fields_set, parameters.function_to_apply
    if function in ("softmax", "sigmoid") and classifier.task.name == REGRESSION:
        what = f"parameters.function_to_apply: the model predicts a number, to which {function} does not apply"
        raise RequestError(422, what, "Leave the parameter out.")
    scores = apply_function(logits, function) if function else classifier.task.scores(logits)
    ranked = rank_labels(scores, classifier.labels.texts, parameters.top_k if has_top_k else 1)
    return ranked if has_top_k else [best for (best,) in ranked]


def _ms(seconds: float) -> str:
    return f"{max(1000 * seconds, 0):.3f}"
