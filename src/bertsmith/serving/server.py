"""The server: load the classifier, answer until asked to end, finish what is in, and load anew on a signal."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib.util
import ipaddress
import json
import logging
import os
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from bertsmith.errors import ConfigError, UserError
from bertsmith.inference.exported import About, Exported, is_export
from bertsmith.inference.labelling import OneModel
from bertsmith.inference.opening import open_classifier
from bertsmith.run import Run
from bertsmith.serving.app import Service, create_app
from bertsmith.serving.batcher import Batcher
from bertsmith.serving.gate import Limits
from bertsmith.serving.numbers import SHARED, Numbers
from bertsmith.versions import cores

log = logging.getLogger("bertsmith.serving")
SETTINGS = "BERTSMITH_SERVING"
"""Environment variable that hands the settings to worker processes."""
GRACE = 30
"""Seconds that requests which are in may take when the server is asked to end."""
_SO_ATTACH_FILTER = 26
"""Of Linux; Python has no name for it."""
LINGER = 0.3
"""Seconds in which the last connections are taken before that."""


@dataclass(frozen=True)
class Serving:
    """How to serve.

    Attributes:
        path: a run folder or an export folder.
        host, port: where to listen; port 0 takes one that is free.
        workers: processes.
        device, decide, runtime: as for `open_classifier`.
        limits: of requests.
        token: that requests must bring; ``None``: none.
    """

    path: str
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    device: str = "auto"
    decide: bool = True
    runtime: str = "auto"
    limits: Limits = field(default_factory=Limits)
    token: str | None = None


class Loader:
    """Loads the classifier, now and whenever it is asked to."""

    def __init__(self, serving: Serving, numbers: Numbers) -> None:
        self.serving, self.numbers = serving, numbers
        self.service: Service | None = None
        self.lock = threading.Lock()

    def load(self) -> None:
        """Load, and answer with what was loaded from now on.

        Raises:
            UserError: if there is nothing to load; then what was loaded before goes on.
        """
        serving = self.serving
        found, _ = open_classifier(serving.path, device=serving.device, decide=serving.decide, runtime=serving.runtime)
        assert isinstance(found, OneModel)
        about, explain = _about(Path(serving.path), found), _explain(found)
        tell("loaded", model=about["model"], runtime=about["runtime"], trained=about.get("trained"))
        if self.service is None:
            batcher = Batcher(found, max_wait=serving.limits.max_wait, on_batch=self.numbers.batched)
            self.service = Service(batcher, about, explain)
        else:
            self.service.batcher.classifier, self.service.about, self.service.explain = found, about, explain

    def reload(self) -> None:
        """Load again; where that fails, say so and go on."""
        with self.lock:  # one after the other, so that the last one counts
            try:
                self.load()
            except UserError as error:
                tell("not reloaded", error=str(error))


def tell(event: str, **more: Any) -> None:
    """Write a line to the log."""
    log.info(json.dumps({"event": event, **more}))


def _about(path: Path, classifier: OneModel) -> dict[str, Any]:
    labels = [
        {"label": n, "label_text": t} for n, t in zip(classifier.labels.numbers, classifier.labels.texts, strict=True)
    ]
    runtime = f"{classifier.about.format} {classifier.about.precision}" if isinstance(classifier, Exported) else "torch"
    about: dict[str, Any] = {"model": path.resolve().name, "labels": labels, "runtime": runtime}
    if is_export(path):
        run = About.read(path).run
        return about | {
            "model": run["name"],
            "base_model": run["model"],
            "trained": run["trained"],
            "test": run["test"],
        }
    if Run(path).layout.run.is_file():
        test = Run(path).metrics["splits"]["test"]
        scores = {name: test["metrics"][name] for name in ("macro_f1", "accuracy")}
        info = Run(path).info
        more = {"base_model": info["model"]["name"], "trained": info["finished"]}
        return about | more | {"test": {"texts": test["texts"], **scores}}
    return about


def _explain(classifier: OneModel) -> Any:
    if isinstance(classifier, Exported) or importlib.util.find_spec("captum") is None:
        return None
    from bertsmith.inference.explain import explain

    return lambda classifier, text: explain(classifier, text).to_dict()


def _take_no_more(listening: socket.socket) -> None:
    """Have the system take no more connections, so that those it took already can be answered before it is closed.

    On Linux a filter lets none in, a program of one instruction: keep 0 bytes of every packet. A queue of length 0
    would still take one connection at a time.
    """
    with contextlib.suppress(OSError):
        listening.listen(0)
    if sys.platform == "linux":
        nothing = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
        program = struct.pack("HP", 1, ctypes.addressof(nothing))
        with contextlib.suppress(OSError):
            listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


class _Server(uvicorn.Server):
    """Ends with 0 when asked to, after what is in was answered."""

    loader: Loader
    listening: socket.socket

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Heed signals without raising them again in the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def end(number: int, frame: object) -> None:
            if self.loader.service is not None:
                self.loader.service.draining = True
            tell("ending")
            _take_no_more(self.listening)
            threading.Timer(LINGER, self.handle_exit, (number, None)).start()

        before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
        if hasattr(signal, "SIGHUP"):
            before[signal.SIGHUP] = signal.signal(
                signal.SIGHUP, lambda *_: threading.Thread(target=self.loader.reload, daemon=True).start()
            )
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def serve(serving: Serving) -> None:
    """Serve until asked to end.

    Raises:
        UserError: if there is nothing to serve, or the address is taken.
    """
    _set_up_log()
    with contextlib.closing(_listen(serving.host, serving.port)) as listening:
        if serving.workers > 1:
            _serve_many(serving, listening)
        else:
            asyncio.run(_serve_one(serving, listening))


async def _serve_one(serving: Serving, listening: socket.socket) -> None:
    """Serve from this process; requests are answered with 503 until the model is loaded."""
    loader = Loader(serving, Numbers())
    server = _Server(
        _config(create_app(lambda: loader.service, loader.numbers, serving.limits, serving.token), serving)
    )
    server.loader, server.listening = loader, listening
    running = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        await asyncio.to_thread(loader.load)
        _say_where(listening, serving)
    finally:
        if loader.service is None:
            server.should_exit = True
        await running


def _config(app: Any, serving: Serving, **more: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=serving.host,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
        lifespan="off",
        **more,
    )


def _serve_many(serving: Serving, listening: socket.socket) -> None:
    """Serve from several processes, each with a share of the cores; uvicorn starts, watches and reloads them."""
    from uvicorn.supervisors import Multiprocess

    class Workers(Multiprocess):
        def handle_hup(self) -> None:
            try:  # before those that answer are ended
                open_classifier(serving.path, device=serving.device, decide=serving.decide, runtime=serving.runtime)
            except UserError as error:
                tell("not reloaded", error=str(error))
                return
            super().handle_hup()

        def handle_term(self) -> None:
            tell("ending")
            _take_no_more(listening)
            time.sleep(LINGER)
            super().handle_term()

        handle_int = handle_term

    open_classifier(serving.path, device=serving.device, decide=serving.decide, runtime=serving.runtime)
    with tempfile.TemporaryDirectory(prefix="bertsmith-") as folder:
        os.environ[SHARED] = folder
        os.environ[SETTINGS] = json.dumps(asdict(serving))
        os.environ["OMP_NUM_THREADS"] = str(max(1, cores() // serving.workers))
        config = _config("bertsmith.serving.server:worker_app", serving, factory=True, workers=serving.workers)
        _say_where(listening, serving)
        Workers(config, sockets=[listening]).run()


def worker_app() -> FastAPI:
    """Make the application of a worker process, from the settings in the environment."""
    _set_up_log()
    content = json.loads(os.environ[SETTINGS])
    serving = Serving(**{**content, "limits": Limits(**content["limits"])})
    loader = Loader(serving, Numbers())
    loader.load()
    return create_app(lambda: loader.service, loader.numbers, serving.limits, serving.token)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}",
            remedy="Pass another --port (0 takes one that is free) or --host.",
        ) from error
    listening.listen(2048)
    listening.set_inheritable(True)
    return listening


def _say_where(listening: socket.socket, serving: Serving) -> None:
    host, port = listening.getsockname()[:2]
    address = f"http://{host}:{port}"
    tell("listening", address=address, page=f"{address}/ui", workers=serving.workers, token=serving.token is not None)
    if serving.token is None and not ipaddress.ip_address(host).is_loopback:
        tell("warning", warning="others can reach this address, and no token is asked for: set BERTSMITH_TOKEN")


class _Stamped(logging.Formatter):
    """Puts the time, UTC, before the rest of a JSON line."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        stamp = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return f'{{"time": "{stamp}", {line[1:]}' if line.startswith("{") else line


def _set_up_log() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Stamped("%(message)s"))
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
