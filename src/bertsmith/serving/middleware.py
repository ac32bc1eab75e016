"""What stands before the application: the token, the size of bodies, a full queue, the numbers and the log."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi.responses import Response

from bertsmith.serving.batcher import Batcher
from bertsmith.serving.prometheus import ServerMetrics
from bertsmith.serving.schemas import problem

log = logging.getLogger("bertsmith.serving")

OPEN = ("/health", "/ready", "/ui", "/docs", "/openapi.json")
"""Paths that are answered without the token; so is what the page of `/docs` is made of."""
STATIC = "/static-offline-docs/"
"""Where that is."""
OVER = 10
"""Times the longest body that is read of one which is too long."""
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
        body: bytes.
        texts: in one request.
        characters: of a text.
        seconds: until the answer; also for the body to arrive.
        max_wait: seconds of work that may be queued before requests are refused.
    """

    body: int = 2_000_000
    texts: int = 1000
    characters: int = 100_000
    seconds: float = 30.0
    max_wait: float = 0.5


class Served(Protocol):
    """What is asked of a service here."""

    batcher: Batcher


class Middleware:
    """Around the application: the token, the size of the body and the time it takes, counting, and the log.

    Where the queue is full, requests are refused here already: that must cost little when there are many.
    """

    def __init__(
        self,
        app: Any,
        get: Callable[[], Served | None],
        limits: Limits,
        token: str | None,
        numbers: ServerMetrics,
    ) -> None:
        self.app, self.get, self.limits, self.token, self.numbers = app, get, limits, token, numbers
        self.refused, self.told = 0, 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or have the application answer it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500
        scope.setdefault("state", {})

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self._unknown(scope) or await self._body(scope, receive)
            if isinstance(refusal, bytes) and scope["method"] == "POST":
                refusal = self._full() or refusal
            if isinstance(refusal, Response):
                await refusal(scope, receive, watched)
            else:
                await self.app(scope, _replay(refusal, receive), watched)
        except Exception:
            log.exception("a fault in bertsmith")
            if status == 500:
                await problem(500, "a fault in bertsmith; the server's log has it")(scope, receive, watched)
        finally:
            seconds = time.perf_counter() - began
            path = scope["path"] if scope["path"] in _PATHS else "other"
            self.numbers.requests.labels(path, str(status)).inc()
            self.numbers.seconds.labels(path).observe(seconds)
            client = (scope.get("client") or ("",))[0]
            entry = {"client": client, "method": scope["method"], "path": scope["path"], "status": status}
            entry["ms"] = round(1000 * seconds, 2)
            self._log({**entry, **scope["state"].get("said", {})})

    def _log(self, entry: dict[str, Any]) -> None:
        """Write a line for a request; for those that a full queue refuses one a second, with their number."""
        now = time.time()
        if entry["status"] == 429:
            self.refused += 1
            if now - self.told < 1:
                return
            entry["refused"], self.refused, self.told = self.refused, 0, now
        log.info(json.dumps(entry))

    def _full(self) -> Response | None:
        there = self.get()
        if there is None or not there.batcher.full:
            return None
        seconds = str(there.batcher.retry_after)
        return problem(429, f"there is too much to do: ask again in {seconds} s", {"Retry-After": seconds})

    def _unknown(self, scope: Scope) -> Response | None:
        if self.token is None or scope["path"] in OPEN or scope["path"].startswith(STATIC):
            return None
        headers = {name.lower(): value for name, value in scope["headers"]}
        given = headers.get(b"x-api-key", b"")
        bearer = headers.get(b"authorization", b"")
        if not given and bearer[:7].lower() == b"bearer ":
            given = bearer[7:].strip()
        if hmac.compare_digest(given, self.token.encode()):
            return None
        return problem(
            401,
            "the token is missing or wrong: send Authorization: Bearer …, or X-API-Key",
            {"WWW-Authenticate": "Bearer"},
        )

    async def _body(self, scope: Scope, receive: Receive) -> bytes | Response:
        headers = {name.lower(): value for name, value in scope["headers"]}
        said = headers.get(b"content-length", b"0")
        too_long = problem(413, f"the body is longer than {self.limits.body:,} bytes", {"Connection": "close"})
        if not said.isdigit() or int(said) > self.limits.body:
            return too_long
        body = bytearray()
        size = 0
        try:
            async with asyncio.timeout(self.limits.seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return bytes(body)
                    size += len(message.get("body", b""))
                    if size <= self.limits.body:
                        body += message.get("body", b"")
                    more = message.get("more_body", False)
                    # What is too long is read on for a while, so that the sender is there to hear the answer.
                    if size > self.limits.body and (not more or size > OVER * self.limits.body):
                        return too_long
                    if not more:
                        return bytes(body)
        except TimeoutError:
            return problem(408, "the body did not arrive in time", {"Connection": "close"})


_PATHS = ("/predict", "/", "/explain", "/info", "/metrics", *OPEN)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return what gives a body that was read already, and then whatever comes."""
    given = False

    async def again() -> MutableMapping[str, Any]:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again
