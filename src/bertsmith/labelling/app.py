"""The application behind `bertsmith label`: one page, and its requests.

While coders label, they do not see each other's labels. The texts to settle are open to all coders: ``/disputed`` has
the labels and notes of every coder, also for those who have not labelled these texts yet.
"""

from __future__ import annotations

import hmac
import importlib.resources
import json
import zlib
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware

from bertsmith.errors import UserError
from bertsmith.labelling.decision import SETTLER, Decision
from bertsmith.labelling.project import TABLE, Project, Queued
from bertsmith.labelling.table import Snapshot, export

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from bertsmith.workflows.background_work import BackgroundWork

LOCAL = ("127.0.0.1", "localhost", "[::1]")
"""Host names of requests from this machine; other names indicate DNS rebinding."""
AHEAD = 10
"""Number of remaining texts of a coder at which the choice of the next texts begins."""
MAX_BODY = 1_000_000
"""Maximum number of bytes of a body."""
Name = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=80, pattern=r"^[^()]*[^()\s][^()]*$")
]
"""The name of a coder without outer spaces; parentheses are for names that bertsmith gives."""

Number = Annotated[int, Field(ge=0, lt=2**63)]
"""The number of a text."""


class _Guard:
    """Check the headers of a request before its body is read: the token, the type and the size.

    A page of another site can send no JSON, because its browser asks for permission first.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self._refusal(scope, Headers(scope=scope)) if scope["type"] == "http" else None
        if refused is None:
            await self.app(scope, receive, send)
        else:
            status, detail = refused
            await JSONResponse({"detail": detail}, status, {"Connection": "close"})(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        sent, length = headers.get("x-api-key", ""), headers.get("content-length", "")
        is_public = self.token is None or scope["path"] == "/"
        if not is_public and not hmac.compare_digest(sent.encode(), str(self.token).encode()):
            return 401, "the token is missing or wrong"
        if scope["method"] != "POST":
            return None
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return 415, "the content type of the body is not application/json"
        if not length.isdigit():
            return 411, "the request has no content length"
        return (413, f"the body is longer than {MAX_BODY:,} bytes") if int(length) > MAX_BODY else None


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class UndoBody(_Body):
    """The coder of the decision to undo, or the text of the settlement to undo."""

    coder: Name | None
    text: Number | None = None


class DecisionBody(_Body):
    """A decision of a coder. A decision without a coder settles a disagreement."""

    coder: Name | None
    text: Number
    status: Literal["labelled", "unsure", "skipped"]
    labels: list[str] = Field([], max_length=1000)
    note: str = Field("", max_length=5000)
    seconds: float = Field(0.0, ge=0, allow_inf_nan=False)


class CoderBody(_Body):
    """The name of a coder."""

    coder: Name


class CodebookBody(_Body):
    """A label, which may be new, and the parts of its entry to change."""

    label: str = Field(min_length=1, max_length=200)
    definition: str | None = Field(None, max_length=5000)
    examples: str | None = Field(None, max_length=5000)


def create_app(
    project: Project, background: BackgroundWork, *, coder: str | None = None, token: str | None = None
) -> FastAPI:
    """Create the application.

    Args:
        project: the project.
        background: chooses texts and trains.
        coder: the name that the page proposes.
        token: token that requests must send; ``None`` allows requests from this machine only.
    """
    app = FastAPI(title="bertsmith label", docs_url=None, redoc_url=None, openapi_url=None)
    page = importlib.resources.files("bertsmith.labelling").joinpath("page.html").read_text(encoding="utf-8")

    def answer(name: str, text: Queued | None) -> dict[str, Any]:
        """Return the text to label, without what could bias a coder: reason, and suggestion of a random text."""
        progress = project.progress(name)
        if progress["texts"] - progress["decided"] <= AHEAD:
            background.choose(automatic=True)
        shown = None
        if text is not None:
            suggestion = None if text.random else text.suggestion
            shown = {"id": text.id, "text": text.text, "pair": text.pair, "suggestion": suggestion}
        found = {"coder": name, "text": shown, "progress": progress, "rounds": background.state()}
        return {**found, "version": codebook()["version"]}

    def codebook() -> dict[str, Any]:
        """Return the labels with their entries, and a version, which differs after a change."""
        entries = project.setting("codebook", {})
        labels = [{"label": label, **entries.get(label, {})} for label in project.labels]
        return {"labels": labels, "version": zlib.crc32(json.dumps(labels).encode())}

    @app.get("/", response_class=HTMLResponse)
    def index() -> HTMLResponse:
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
        headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        return HTMLResponse(page, headers={**headers, "X-Frame-Options": "DENY"})

    @app.get("/project")
    def about() -> dict[str, Any]:
        """Return the data for the start of the page."""
        return {"name": project.path.resolve().name, "task": project.task, "coder": coder, **codebook()}

    @app.post("/next")
    def next_text(body: CoderBody) -> dict[str, Any]:
        """Return the next text of a coder."""
        name = project.coder(body.coder)
        return answer(name, project.next_text(name))

    @app.post("/decide")
    def decide(body: DecisionBody) -> dict[str, Any]:
        """Record a decision, and return the next text."""
        name = SETTLER if body.coder is None else project.coder(body.coder)
        labels = tuple(dict.fromkeys(body.labels))
        project.decide(Decision(body.text, name, body.status, labels, body.note.strip(), body.seconds))
        return {} if body.coder is None else answer(name, project.next_text(name))

    @app.post("/undo")
    def undo(body: UndoBody) -> dict[str, Any]:
        """Undo the last decision of a coder and return its text, or undo the settlement of a text."""
        if body.coder is None:
            if body.text is not None:  # the last settlement may be that of another coder
                project.undo(SETTLER, body.text)
            return {}
        name = project.coder(body.coder)
        return answer(name, project.undo(name) or project.next_text(name))

    @app.post("/codebook")
    def write_codebook(body: CodebookBody) -> dict[str, Any]:
        """Add a label, or change its definition and examples."""
        project.define(body.label, body.definition, body.examples)
        return about()

    @app.get("/disputed")
    def disputed() -> list[dict[str, Any]]:
        """Return the texts to settle, with all decisions."""
        return [
            {
                "text": {"id": text.id, "text": text.text, "pair": text.pair},
                "decisions": [{"coder": d.coder, "status": d.status, "labels": d.labels, "note": d.note} for d in some],
            }
            for text, some in Snapshot.of(project).disputed
        ]

    @app.get("/overview")
    def overview() -> dict[str, Any]:
        """Return agreement, label counts, and the expected gain of more labels."""
        found = {"estimate": project.setting("estimate"), "rounds": background.state()}
        return {**Snapshot.of(project).overview(), **found}

    @app.get("/rounds")
    def state() -> dict[str, Any]:
        """Return the state of the background work."""
        return background.state()

    @app.post("/{work}")
    def begin(work: Literal["choose", "train"]) -> dict[str, Any]:
        """Choose the next texts, or train on the labels, in the background."""
        getattr(background, work)()
        return background.state()

    @app.get("/labels.csv")
    def table() -> FileResponse:
        """Return the labels as a table."""
        export(project)
        return FileResponse(project.path / TABLE, media_type="text/csv", filename=TABLE)

    @app.exception_handler(UserError)
    async def on_user_error(request: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(RequestValidationError)
    async def on_invalid_body(request: Request, error: RequestValidationError) -> JSONResponse:
        # Without the input, which JSON cannot have if it is NaN or a lone surrogate.
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        return JSONResponse({"detail": wrong.encode("ascii", "backslashreplace").decode()}, 422)

    app.add_middleware(_Guard, token=token)
    if token is None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOCAL))
    return app
