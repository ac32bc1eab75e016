"""The server: load the classifier, answer until asked to end, finish what is in, and load anew on a signal."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import ipaddress
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from filelock import FileLock

from bertsmith.compute.machine import cores
from bertsmith.errors import ConfigError, UserError
from bertsmith.folders.run import Run
from bertsmith.inference.exported import Exported, ExportInfo, is_export
from bertsmith.inference.load import open_classifier
from bertsmith.inference.predictor import ModelPredictor
from bertsmith.serving.app import Service, create_app
from bertsmith.serving.batcher import Batcher
from bertsmith.serving.middleware import Limits
from bertsmith.serving.prometheus import SHARED, ServerMetrics
from bertsmith.serving.signals import SignalRequests, held_back, take_no_more, watch

log = logging.getLogger("bertsmith.serving")
SETTINGS = "BERTSMITH_SERVING"
"""Environment variable that hands the settings to worker processes."""
GRACE = 30
"""Seconds that requests which are in may take when the server is asked to end."""


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

    def __init__(self, serving: Serving, numbers: ServerMetrics) -> None:
        self.serving, self.numbers = serving, numbers
        self.service: Service | None = None
        self.closed = False
        self.lock = threading.Lock()  # loads are one after the other, so that the last one counts

    def load(self) -> None:
        """Load, and answer with what was loaded from now on.

        Raises:
            UserError: if there is nothing to load.
        """
        with self.lock:
            self._load()

    def _load(self) -> None:
        serving = self.serving
        found, _ = open_classifier(serving.path, device=serving.device, decide=serving.decide, runtime=serving.runtime)
        assert isinstance(found, ModelPredictor)
        about, explain = _about(Path(serving.path), found), _explain(found)
        tell("loaded", model=about["model"], runtime=about["runtime"], trained=about.get("trained"))
        if self.service is None:
            batcher = Batcher(found, max_wait=serving.limits.max_wait, on_batch=self.numbers.batched)
            self.service = Service(batcher, about, explain)
        else:
            self.service.batcher.classifier, self.service.about, self.service.explain = found, about, explain

    def reload(self) -> None:
        """Load again; where that fails, say so and go on."""
        with self.lock:
            if self.closed or self.service is None:
                return
            try:
                self._load()
            except UserError as error:
                tell("not reloaded", error=str(error))

    def close(self) -> None:
        """Wait for a load that is under way, and load no more: no thread may be in it when the process ends."""
        with self.lock:
            self.closed = True


def tell(event: str, **more: Any) -> None:
    """Write a line to the log."""
    log.info(json.dumps({"event": event, **more}))


def _about(path: Path, classifier: ModelPredictor) -> dict[str, Any]:
    labels = [
        {"label": n, "label_text": t} for n, t in zip(classifier.labels.numbers, classifier.labels.texts, strict=True)
    ]
    runtime = f"{classifier.about.format} {classifier.about.precision}" if isinstance(classifier, Exported) else "torch"
    about: dict[str, Any] = {"model": path.resolve().name, "labels": labels, "runtime": runtime}
    if is_export(path):
        run = ExportInfo.read(path).run
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


def _explain(classifier: ModelPredictor) -> Any:
    if isinstance(classifier, Exported) or importlib.util.find_spec("captum") is None:
        return None
    from bertsmith.inference.explain import explain

    return lambda classifier, text: explain(classifier, text).to_dict()


class _Server(uvicorn.Server):
    """Leaves signals to `bertsmith.serving.signals`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing."""
        yield


def serve(serving: Serving, wishes: SignalRequests) -> None:
    """Serve until asked to end.

    Args:
        serving: how.
        wishes: what signals have asked for.

    Raises:
        UserError: if there is nothing to serve, or the address is taken.
    """
    _set_up_log()
    with contextlib.closing(_listen(serving.host, serving.port)) as listening:
        if serving.workers > 1:
            _serve_many(serving, listening, wishes)
        else:
            asyncio.run(_serve_one(serving, listening, wishes))


async def _serve_one(serving: Serving, listening: socket.socket, wishes: SignalRequests) -> None:
    """Serve from this process; requests are answered with 503 until the model is loaded."""
    loader = Loader(serving, ServerMetrics())
    server = _Server(
        _config(create_app(lambda: loader.service, loader.numbers, serving.limits, serving.token), serving)
    )

    def end() -> None:
        if loader.service is not None:
            loader.service.draining = True
        tell("ending")
        take_no_more(listening)
        server.should_exit = True

    watch(wishes, end=end, reload=loader.reload)
    running = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        await asyncio.to_thread(loader.load)
        if not wishes.end:
            _say_where(listening, serving)
    finally:
        if loader.service is None:
            server.should_exit = True
        await running
        await asyncio.to_thread(loader.close)


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


def _serve_many(serving: Serving, listening: socket.socket, wishes: SignalRequests) -> None:
    """Serve from several processes, each with a share of the cores; uvicorn starts and watches them."""
    from uvicorn.supervisors import Multiprocess

    class Workers(Multiprocess):
        def init_processes(self) -> None:
            with held_back():
                super().init_processes()

        def keep_subprocess_alive(self) -> None:
            with held_back():
                super().keep_subprocess_alive()

        def handle_signals(self) -> None:
            if wishes.reload:
                wishes.reload = False
                self.handle_hup()
            super().handle_signals()

        def handle_hup(self) -> None:
            try:  # once, so that a model that cannot be loaded is reported once
                open_classifier(serving.path, device=serving.device, decide=serving.decide, runtime=serving.runtime)
            except UserError as error:
                tell("not reloaded", error=str(error))
                return
            for worker in self.processes:
                if worker.process.is_alive() and worker.pid is not None:
                    os.kill(worker.pid, signal.SIGHUP)

    config = _config("bertsmith.serving.server:worker_app", serving, factory=True, workers=serving.workers)
    workers = Workers(config, sockets=[listening])
    wishes.heed()  # where the line before put handlers that act only between two other things

    def end() -> None:
        tell("ending")
        take_no_more(listening)
        workers.should_exit.set()

    watch(wishes, end=end)
    open_classifier(serving.path, device=serving.device, decide=serving.decide, runtime=serving.runtime)
    if wishes.end:
        return
    with tempfile.TemporaryDirectory(prefix="bertsmith-") as folder:
        os.environ[SHARED] = folder
        os.environ[SETTINGS] = json.dumps(asdict(serving))
        os.environ["OMP_NUM_THREADS"] = str(max(1, cores() // serving.workers))
        _say_where(listening, serving)
        workers.run()


def worker_app() -> FastAPI:
    """Make the application of a worker process, from the settings in the environment."""
    _set_up_log()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    content = json.loads(os.environ[SETTINGS])
    serving = Serving(**{**content, "limits": Limits(**content["limits"])})
    loader, wishes = Loader(serving, ServerMetrics()), SignalRequests()
    lock = FileLock(Path(os.environ[SHARED]) / "reload.lock")  # memory holds one more model, not one more a worker

    def reload() -> None:
        with lock:
            loader.reload()

    wishes.heed_reload()
    watch(wishes, reload=reload)
    loader.load()
    return create_app(lambda: loader.service, loader.numbers, serving.limits, serving.token)


def _end_with_parent() -> None:
    """Wait until the process that started this worker is gone, however it ended, then end this one as well."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


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
