"""``bertsmith serve``."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from bertsmith.cli.options import DecisionRule, RunOrExport, Runtime
from bertsmith.config import TOKEN
from bertsmith.errors import ConfigError
from bertsmith.serving.signals import handle_signals


def serve(
    *,
    run: RunOrExport,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="0.0.0.0 is every address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="0 takes one that is free.")] = 8080,
    workers: Annotated[int, typer.Option(min=1, max=256, metavar="N", help="Processes.")] = 1,
    device: Annotated[str, typer.Option(metavar="auto|cuda|mps|cpu", help="Where to compute.")] = "auto",
    runtime: Runtime = "auto",
    decision_rule: DecisionRule = True,
    max_body: Annotated[int, typer.Option(min=1, metavar="BYTES", help="Longest body of a request.")] = 2_000_000,
    max_texts: Annotated[int, typer.Option(min=1, metavar="N", help="Most texts in a request.")] = 1000,
    max_characters: Annotated[int, typer.Option(min=1, metavar="N", help="Longest text.")] = 100_000,
    max_wait: Annotated[
        float, typer.Option(min=0.01, metavar="SECONDS", help="Work that may be queued; then it is 429.")
    ] = 0.5,
    timeout: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="For an answer.")] = 30.0,
) -> None:
    """Answer over HTTP: POST /predict and POST /, a page to try it on /ui, the description on /docs.

    With BERTSMITH_TOKEN in the environment, requests need it: Authorization: Bearer …, or X-API-Key. SIGTERM ends the
    server when what is in was answered; SIGHUP has it load the folder again.

    Example: bertsmith serve runs/reviews --port 8080
    """
    token = os.environ.get(TOKEN)
    if token is not None and not token.strip():
        raise ConfigError(
            f"environment variable {TOKEN}: there is no token in it", remedy="Give one, or unset it to ask for none."
        )
    with handle_signals() as signals:
        try:
            from bertsmith.serving.loader import ServerConfig
            from bertsmith.serving.middleware import Limits
            from bertsmith.serving.server import serve as start
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"serving needs the package {error.name}",
                remedy="Install what it takes: pip install fastapi fastapi-offline uvicorn prometheus-client.",
            ) from error
        limits = Limits(max_body, max_texts, max_characters, timeout, max_wait)
        start(ServerConfig(str(run), host, port, workers, device, decision_rule, runtime, limits, token), signals)
