"""ASGI middleware: the token, the size and the time limit of bodies, the full queue, metrics and the access log."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fastapi.responses import Response

from bertsmith.serving.access import names_this_machine
from bertsmith.serving.prometheus import ServerMetrics
from bertsmith.serving.request_errors import error_response, queue_full_response

if TYPE_CHECKING:
    from bertsmith.serving.loader import Service

log = logging.getLogger("bertsmith.serving")

PUBLIC_PATHS = ("/health", "/ready", "/ping", "/ui", "/docs", "/openapi.json", "/webhook")
"""Paths that need no token."""
DOCS_ASSETS = "/static-offline-docs/"
"""Prefix of the scripts and styles of ``/docs``, which need no token either."""
KNOWN_PATHS = (
    *("/predict", "/", "/invocations", "/classify", "/setup", "/versions", "/explain", "/info", "/metrics"),
    *PUBLIC_PATHS,
)
"""Paths with separate metrics; the metrics call every other path ``other``."""
MAX_PUBLIC_BODY = 1_000_000
"""Maximum number of bytes of a body on a path that needs no token."""
MAX_EXCESS = 10
"""A body that is too long is read up to this many times the limit, so that the client can receive the response."""
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def log_line(**fields: Any) -> None:
    """Write fields, and the UTC time before them, as a line of JSON to the log."""
    log.info(json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **fields}))


@dataclass(frozen=True)
class Limits:
    """Limits of a request.

    Attributes:
        body: bytes of the body.
        texts: texts in a request.
        characters: characters of a text.
        seconds: time to receive the body, and time to compute the response.
        max_wait: seconds of work in the queue above which requests are refused.
    """

    body: int = 2_000_000
    texts: int = 1000
    characters: int = 100_000
    seconds: float = 30.0
    max_wait: float = 0.5


class Middleware:
    """Check requests before the application parses them, then count and log them.

    A full queue refuses requests here, because a refusal must stay cheap under heavy load.
    """

    def __init__(
        self,
        app: Any,
        get_service: Callable[[], Service | None],
        limits: Limits,
        token: str | None,
        server_metrics: ServerMetrics,
        health_path: str | None = None,
        only_local: bool = False,
    ) -> None:
        self.public_paths = {*PUBLIC_PATHS, health_path}
        self.app, self.get_service, self.limits, self.token = app, get_service, limits, token
        self.server_metrics, self.only_local = server_metrics, only_local
        self.n_refused, self.last_refusal_logged = 0, 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond to a request, or pass it to the application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        status = 500
        scope.setdefault("state", {})

        async def send_and_note_status(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            body = self._check_token(scope) or await self._read_body(scope, receive)
            if isinstance(body, bytes) and scope["method"] == "POST":
                body = self._check_queue() or body
            if isinstance(body, Response):
                await body(scope, receive, send_and_note_status)
            else:
                await self.app(scope, _replay(body, receive), send_and_note_status)
        except Exception:
            log.exception("internal error")
            if status == 500:
                response = error_response(500, "internal error", "The traceback is in the server's log.")
                await response(scope, receive, send_and_note_status)
        finally:
            seconds = time.perf_counter() - start
            path = scope["path"] if scope["path"] in KNOWN_PATHS else "other"
            self.server_metrics.requests.labels(path, str(status)).inc()
            self.server_metrics.request_seconds.labels(path).observe(seconds)
            client = (scope.get("client") or ("",))[0]
            entry = {"client": client, "method": scope["method"], "path": scope["path"], "status": status}
            entry["ms"] = round(1000 * seconds, 2)
            self._log({**entry, **scope["state"].get("log_fields", {})})

    def _log(self, entry: dict[str, Any]) -> None:
        """Write one line per request. Refusals by a full queue share one line per second, with their count."""
        if entry["status"] == 429:
            now = time.time()
            self.n_refused += 1
            if now - self.last_refusal_logged < 1:
                return
            entry["refused"], self.n_refused, self.last_refusal_logged = self.n_refused, 0, now
        log_line(**entry)

    def _check_queue(self) -> Response | None:
        service = self.get_service()
        if service is None or not service.batcher.is_full:
            return None
        return queue_full_response(service.batcher.retry_after)

    def _check_token(self, scope: Scope) -> Response | None:
        if scope["path"] in self.public_paths or scope["path"].startswith(DOCS_ASSETS):
            return None
        headers = {name.lower(): value for name, value in scope["headers"]}
        if self.token is None:
            if not self.only_local or names_this_machine(headers.get(b"host", b"").decode("latin-1")):
                return None
            what = "a local server without a token needs a header Host that names this machine"
            return error_response(401, what, "Set BERTSMITH_TOKEN for the server, or send the header Host: localhost.")
        sent = headers.get(b"x-api-key", b"")
        bearer = headers.get(b"authorization", b"")
        if not sent and bearer[:7].lower() == b"bearer ":
            sent = bearer[7:].strip()
        elif not sent and bearer[:6].lower() == b"basic ":  # Label Studio sends a user name and a password
            with contextlib.suppress(binascii.Error):
                sent = base64.b64decode(bearer[6:]).partition(b":")[2]
        if hmac.compare_digest(sent, self.token.encode()):
            return None
        return error_response(
            401,
            "the token is missing or wrong",
            "Send the header Authorization: Bearer TOKEN, or X-API-Key: TOKEN.",
            {"WWW-Authenticate": "Bearer"},
        )

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes | Response:
        headers = {name.lower(): value for name, value in scope["headers"]}
        content_length = headers.get(b"content-length", b"0")
        limit, remedy = self.limits.body, "Send fewer or shorter texts; --max-body of the server sets the limit."
        if scope["path"] in self.public_paths and limit > MAX_PUBLIC_BODY:
            limit, remedy = MAX_PUBLIC_BODY, "Send a shorter body: this path needs no token, so its limit is fixed."
        too_long = error_response(
            413,
            f"the body is longer than {limit:,} bytes",
            remedy,
            {"Connection": "close"},
        )
        if not content_length.isdigit() or int(content_length) > MAX_EXCESS * limit:
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
                    if size <= limit:
                        body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if size > limit and (not more or size > MAX_EXCESS * limit):
                        return too_long
                    if not more:
                        return bytes(body)
        except TimeoutError:
            return error_response(
                408,
                f"the body did not arrive within {self.limits.seconds:g} s",
                "Send it again; --timeout of the server sets the limit.",
                {"Connection": "close"},
            )


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that gives a body that was read already, then waits for further messages."""
    replayed = False

    async def receive_again() -> MutableMapping[str, Any]:
        nonlocal replayed
        if not replayed:
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return receive_again
