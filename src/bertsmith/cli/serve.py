"""``bertsmith serve``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from bertsmith.cli.options import DecisionRule, LongTexts, Runtime
from bertsmith.errors import ConfigError, listing
from bertsmith.load_config import ENV_PREFIX, HOST, RUN
from bertsmith.serving.access import read_token
from bertsmith.serving.signals import handle_signals


def serve(
    *,
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            envvar=RUN,
            show_default=False,
            help="Run folder of bertsmith train, or folder of bertsmith export.",
        ),
    ],
    host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", envvar=HOST, help="Address to listen on; 0.0.0.0 listens on all addresses."),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(min=0, max=65535, metavar="N", envvar="AIP_HTTP_PORT", help="Port; 0 selects a free one."),
    ] = 8080,
    workers: Annotated[int, typer.Option(min=1, max=256, metavar="N", help="Number of server processes.")] = 1,
    device: Annotated[
        str,
        typer.Option(metavar="auto|cuda|xpu|mps|cpu", envvar=f"{ENV_PREFIX}DEVICE", help="Device to compute on."),
    ] = "auto",
    runtime: Runtime = "auto",
    decision_rule: DecisionRule = True,
    long: LongTexts = "auto",
    max_body: Annotated[int, typer.Option(min=1, metavar="BYTES", help="Maximum size of a request.")] = 2_000_000,
    max_texts: Annotated[int, typer.Option(min=1, metavar="N", help="Maximum number of texts in a request.")] = 1000,
    max_characters: Annotated[int, typer.Option(min=1, metavar="N", help="Maximum characters in a text.")] = 100_000,
    max_wait: Annotated[
        float,
        typer.Option(
            min=0.01,
            metavar="SECONDS",
            help="Maximum expected wait in the queue; requests that would wait longer get status 429.",
        ),
    ] = 0.5,
    timeout: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Time limit for a request.")] = 30.0,
) -> None:
    """Serve a run over HTTP.

    To classify texts, send POST requests to / or to /predict. /ui is a test page, and /docs describes the API.

    If the environment variable BERTSMITH_TOKEN is set, requests must send its value as TOKEN in a header.
    The header is Authorization: Bearer TOKEN or X-API-Key: TOKEN.

    On SIGTERM, the server answers the open requests and exits. On SIGHUP, it loads the model again.

    Example: bertsmith serve runs/reviews --port 8080
    """
    token = read_token(os.environ)
    with handle_signals() as signals:
        from bertsmith.serving.aliases import VertexRoutes
        from bertsmith.serving.loader import ServerConfig
        from bertsmith.serving.middleware import Limits
        from bertsmith.serving.server import serve as run_server

        limits = Limits(max_body, max_texts, max_characters, timeout, max_wait)
        vertex = VertexRoutes(os.environ.get("AIP_HEALTH_ROUTE") or None, os.environ.get("AIP_PREDICT_ROUTE") or None)
        wrong = [path for path in (vertex.health, vertex.predict) if path is not None and not path.startswith("/")]
        if wrong or (vertex.health is not None and vertex.health == vertex.predict):
            raise ConfigError(
                "the paths for health checks and predictions must differ and begin with a slash: "
                f"{listing(path or '' for path in (vertex.health, vertex.predict))}",
                where="environment variables AIP_HEALTH_ROUTE and AIP_PREDICT_ROUTE",
                remedy="Set two different paths that begin with a slash.",
            )
        config = ServerConfig(
            str(run), host, port, workers, device, decision_rule, runtime, limits, token, long, vertex
        )
        run_server(config, signals)
