"""The application: what is answered on which path."""

from __future__ import annotations

import asyncio
import importlib.resources
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from bertsmith.errors import UserError
from bertsmith.inference.predictor import ModelPredictor
from bertsmith.serving.batcher import Batcher, QueueFullError
from bertsmith.serving.middleware import Limits, Middleware
from bertsmith.serving.prometheus import ServerMetrics
from bertsmith.serving.schemas import (
    ExplainRequest,
    Health,
    PipelineRequest,
    PredictRequest,
    Problem,
    Refused,
    Score,
    problem,
    ranked,
    scores,
    what_is_wrong,
)

log = logging.getLogger("bertsmith.serving")

SLOW = 20_000
"""Characters from which on texts are tokenized off the loop that answers."""


@dataclass
class Service:
    """What the application answers with; `server` sets it and may exchange it.

    Attributes:
        batcher: asks the classifier.
        about: what ``/info`` says of it.
        explain: says which words moved a text; ``None`` where that cannot be said.
        draining: whether the server is about to end.
    """

    batcher: Batcher
    about: dict[str, Any]
    explain: Callable[[ModelPredictor, str], Any] | None = None
    draining: bool = False


def create_app(
    get: Callable[[], Service | None], numbers: ServerMetrics, limits: Limits, token: str | None = None
) -> FastAPI:
    """Make the application.

    Args:
        get: gives the service; ``None`` while it is loading.
        numbers: where requests are counted.
        limits: of requests.
        token: that requests must bring, unless it is ``None``.
    """
    app: FastAPI = FastAPIOffline(
        title="bertsmith",
        version=__version__,
        description="A text classifier. POST /predict speaks the format of text-embeddings-inference, POST / that of "
        "Hugging Face's inference.",
        redoc_url=None,
    )
    # The gate looks at the token; here it is only described.
    schemes = (HTTPBearer(auto_error=False), APIKeyHeader(name="X-API-Key", auto_error=False))
    secured = [Security(scheme) for scheme in schemes] if token else []
    problems: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem, "description": text}
        for status, text in (
            (400, "The body is no JSON."),
            (401, "The token is missing or wrong."),
            (408, "The body did not arrive in time."),
            (413, "The body or a text is too long."),
            (415, "The body is not said to be JSON."),
            (422, "Something in the body is not as it should be; `error` says where."),
            (429, "There is too much to do; `Retry-After` says when to ask again."),
            (503, "The model is loading, the server about to end, or the answer took too long."),
        )
    }

    def service() -> Service:
        there = get()
        if there is None:
            raise Refused(503, "the model is loading")
        return there

    async def label(
        request: Request, texts: Sequence[str], *, truncate: bool, side: str
    ) -> tuple[np.ndarray, ModelPredictor]:
        """Return the logits of texts, as the rule wants them, and note what headers and log say."""
        began, batcher = time.perf_counter(), service().batcher
        texts = _checked(texts, limits)
        classifier = batcher.classifier
        encode = partial(classifier.encode, texts, truncate=False)
        characters = sum(map(len, texts))
        whole = await asyncio.to_thread(encode) if characters > SLOW else encode()
        longest = classifier.max_length
        cut = np.flatnonzero(whole.lengths > longest)
        if len(cut) and not truncate:
            first = f"inputs[{cut[0]}]: {whole.lengths[cut[0]]:,} tokens"
            raise Refused(413, f"{first}, at most {longest:,}; pass truncate to have it cut")
        tokens = whole.cut(longest, left=True if side == "left" else None)
        kept = int(tokens.kept.sum())
        counted = time.perf_counter()
        try:
            async with asyncio.timeout(limits.seconds):
                logits, waited = await batcher.logits(classifier, tokens)
        except QueueFullError as full:
            raise Refused(429, f"there is too much to do: {full}", {"Retry-After": str(full.seconds)}) from full
        except TimeoutError as late:
            raise Refused(503, f"there was no answer in {limits.seconds:g} s") from late
        done = time.perf_counter()
        numbers.waited.observe(waited)
        numbers.truncated.inc(len(cut))
        numbers.queue.set(batcher.queued)
        request.state.said = {"texts": len(texts), "tokens": kept, "queue_ms": round(1000 * waited, 2)}
        request.state.headers = {
            "x-compute-type": "cpu",
            "x-compute-characters": str(characters),
            "x-compute-tokens": str(kept),
            "x-tokenization-time": _ms(counted - began),
            "x-queue-time": _ms(waited),
            "x-inference-time": _ms(done - counted - waited),
            "x-compute-time": _ms(done - began),
            "x-total-time": _ms(done - began),
            **({"x-truncated-texts": ",".join(map(str, cut))} if len(cut) else {}),
        }
        return classifier.rule.adjust(logits, decide=classifier.decide), classifier

    @app.post("/predict", responses=problems, response_model=list[Score] | list[list[Score]], dependencies=secured)
    async def predict(body: PredictRequest, request: Request) -> Response:
        """Label a text, or a batch of texts, in the format of text-embeddings-inference: all labels, best first.

        Texts that were cut are named in the header `x-truncated-texts`, counted from 0.
        """
        single = isinstance(body.inputs, str)
        texts = [body.inputs] if isinstance(body.inputs, str) else [text for (text,) in body.inputs]
        side = body.truncation_direction.lower()
        logits, classifier = await label(request, texts, truncate=body.truncate, side=side)
        answer = ranked(scores(logits, "none" if body.raw_scores else "softmax"), classifier.labels.texts)
        return JSONResponse(answer[0] if single else answer, headers=request.state.headers)

    @app.post("/", responses=problems, response_model=list[Score] | list[list[Score]], dependencies=secured)
    async def pipeline(body: PipelineRequest, request: Request) -> Response:
        """Label a text, or a flat list of texts, as Hugging Face's `pipeline("text-classification")` answers.

        Texts that are too long are cut, and named in the header `x-truncated-texts`, counted from 0.
        """
        single = isinstance(body.inputs, str)
        texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
        logits, classifier = await label(request, texts, truncate=True, side="right")
        top_k, said = body.parameters.top_k, "top_k" in body.parameters.model_fields_set
        values = scores(logits, body.parameters.function_to_apply or "softmax")
        answer = ranked(values, classifier.labels.texts, top_k if said else 1)
        if not said:
            return JSONResponse([best for (best,) in answer], headers=request.state.headers)
        return JSONResponse(answer[0] if single else answer, headers=request.state.headers)

    cannot = {"model": Problem, "description": "This server cannot explain."}

    @app.post("/explain", responses={**problems, 404: cannot}, dependencies=secured)
    async def explain(body: ExplainRequest, request: Request) -> Response:
        """Say which words moved the label of a text (integrated gradients)."""
        there = service()
        action = there.explain
        if action is None:
            raise Refused(404, "explanations need captum and torch: serve the run with --runtime torch")
        (text,) = _checked([body.inputs], limits)
        tokens = int(min(there.batcher.classifier.count_tokens([text])[0], there.batcher.classifier.max_length))
        request.state.said = {"texts": 1, "tokens": tokens}
        try:
            async with asyncio.timeout(limits.seconds):
                found = await there.batcher.alone(lambda classifier: action(classifier, text), tokens)
        except QueueFullError as full:
            raise Refused(429, f"there is too much to do: {full}", {"Retry-After": str(full.seconds)}) from full
        except TimeoutError as late:
            raise Refused(503, f"there was no answer in {limits.seconds:g} s") from late
        return JSONResponse(found)

    @app.head("/health", include_in_schema=False)
    @app.get("/health", response_model=Health)
    async def health() -> dict[str, str]:
        """Say that the server lives."""
        return {"status": "alive"}

    @app.get("/ready", response_model=Health, responses={503: problems[503]})
    async def ready() -> dict[str, str]:
        """Say whether texts can be labelled: not while the model is loading or the server about to end."""
        if service().draining:
            raise Refused(503, "the server is about to end")
        return {"status": "ready"}

    @app.get("/info", responses={status: problems[status] for status in (401, 503)}, dependencies=secured)
    async def info() -> dict[str, Any]:
        """Say which model this is, its labels, how good it was on its test texts, and what requests may hold."""
        there = service()
        return {
            **there.about,
            "version": __version__,
            "explains": there.explain is not None,
            "max_length": there.batcher.classifier.max_length,
            "limits": {"body": limits.body, "texts": limits.texts, "characters": limits.characters},
        }

    counted: dict[int | str, dict[str, Any]] = {401: problems[401], 200: {"content": {"text/plain": {}}}}

    @app.get("/metrics", response_class=Response, responses=counted, dependencies=secured)
    async def metrics() -> Response:
        """Return what was counted, in Prometheus' text format."""
        return Response(numbers.exposed(), media_type="text/plain; version=0.0.4; charset=utf-8")

    page = importlib.resources.files("bertsmith.serving").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/ui", response_class=HTMLResponse)
    async def ui() -> HTMLResponse:
        """Return a page to try texts in."""
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
        return HTMLResponse(page, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"})

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return problem(error.status, error.error, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        said = request.headers.get("content-type", "")
        if not re.match(r"application/([^;]*\+)?json\b", said, re.IGNORECASE):
            of = f"the body is sent as {said[:100]}" if said else "nothing says what the body is"
            return problem(415, f"{of}: send it with the header Content-Type: application/json")
        broken = next((entry for entry in error.errors() if entry["type"] == "json_invalid"), None)
        if broken is not None:
            return problem(400, f"the body is no JSON: character {broken['loc'][-1]}: {broken['ctx']['error']}")
        return problem(422, what_is_wrong(error, nested=request.url.path == "/predict"))

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        # 400 is of FastAPI, for what cannot be decoded.
        said = "the body is no JSON in UTF-8" if error.status_code == 400 else str(error.detail)
        return problem(error.status_code, said, headers)

    @app.exception_handler(UserError)
    async def told(request: Request, error: UserError) -> JSONResponse:
        return problem(503, error.what)

    app.add_middleware(Middleware, get=get, limits=limits, token=token, numbers=numbers)
    return app


def _checked(texts: Sequence[str], limits: Limits) -> list[str]:
    """Return texts without what no tokenizer takes.

    Raises:
        Refused: if there are too many, or one is too long.
    """
    if len(texts) > limits.texts:
        raise Refused(422, f"inputs: {len(texts):,} texts, at most {limits.texts:,} in one request")
    for i, text in enumerate(texts):
        if len(text) > limits.characters:
            raise Refused(422, f"inputs[{i}]: {len(text):,} characters, at most {limits.characters:,}")
    return [text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") for text in texts]


def _ms(seconds: float) -> str:
    return f"{max(1000 * seconds, 0):.3f}"
