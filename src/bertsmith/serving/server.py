"""The server processes: serve from one process or several, drain on SIGTERM or SIGINT, reload on SIGHUP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from filelock import FileLock
from prometheus_client.multiprocess import mark_process_dead

from bertsmith.compute.machine import cores
from bertsmith.compute.system import RELOAD_SIGNAL, block_terminal_signals, own_port
from bertsmith.errors import ConfigError, UserError
from bertsmith.serving.access import is_local
from bertsmith.serving.aliases import VertexRoutes
from bertsmith.serving.app import create_app
from bertsmith.serving.loader import Loader, ServerConfig, Service, open_model
from bertsmith.serving.middleware import Limits, log, log_line
from bertsmith.serving.prometheus import MULTIPROC_DIR, ServerMetrics
from bertsmith.serving.signals import SignalFlags, stop_accepting, watch

CONFIG_VARIABLE = "BERTSMITH_SERVING"
"""Environment variable that passes the configuration to worker processes."""
SHUTDOWN_SECONDS, HANDOVER_SECONDS = 30, 1
"""Time to finish open requests when the server shuts down, and when workers take over from their parent."""
LOADING, LOADED = "loading", "loaded"
"""Files in the shared folder: the parent still answers requests; a worker has loaded the model."""


class _Server(uvicorn.Server):
    """A server that leaves signals to `bertsmith.serving.signals`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing."""
        yield


def serve(config: ServerConfig, signals: SignalFlags) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        UserError: if the folder contains no usable classifier, or the address is in use.
    """
    _set_up_log()
    with contextlib.closing(listen(config.host, config.port)) as listening:
        if config.workers > 1:
            _serve_from_workers(config, listening, signals)
        else:
            asyncio.run(_serve_from_this_process(config, listening, signals))


async def _serve_from_this_process(config: ServerConfig, listening: socket.socket, signals: SignalFlags) -> None:
    """Serve from one process. Requests get 503 until the model is loaded."""
    loader = Loader(config, ServerMetrics())
    app = _app(config, lambda: loader.service, loader.metrics)
    server = _Server(_uvicorn_config(app, config.host))

    def shut_down() -> None:
        if loader.service is not None:
            loader.service.draining = True
        log_line(event="ending")
        stop_accepting(listening)
        server.should_exit = True

    watch(signals, on_end=shut_down, on_reload=loader.reload)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        await asyncio.to_thread(loader.load)
        if not signals.end:
            _log_address(listening, config)
    finally:
        if loader.service is None:
            server.should_exit = True
        await serving
        await asyncio.to_thread(loader.close)


def _app(config: ServerConfig, get_service: Callable[[], Service | None], metrics: ServerMetrics) -> FastAPI:
    return create_app(
        get_service, metrics, config.limits, config.token, config.vertex, only_local=is_local(config.host)
    )


def _uvicorn_config(app: Any, host: str, **options: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=host,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        loop="asyncio",  # the same on every machine, whatever is installed
        http="h11",
        ws="none",
        **{"timeout_graceful_shutdown": SHUTDOWN_SECONDS, **options},
    )


class _LoadingServer(_Server):
    """Answer requests from the parent process until a worker has loaded the model: with 503, except ``/health``.

    Workers accept connections only after the load. Without this server a request would wait until then.
    """

    def __init__(self, config: ServerConfig, listening: socket.socket, shared: Path) -> None:
        app = _app(config, lambda: None, ServerMetrics())
        super().__init__(_uvicorn_config(app, config.host, timeout_graceful_shutdown=HANDOVER_SECONDS))
        self.shared = shared
        (shared / LOADING).touch()
        self.thread = threading.Thread(target=self._run_in_thread, args=(listening.dup(),), daemon=True)
        self.thread.start()

    def _run_in_thread(self, listening: socket.socket) -> None:
        try:
            self.run([listening])
        finally:
            (self.shared / LOADING).unlink()

    async def on_tick(self, counter: int) -> bool:
        """Return whether to stop; uvicorn asks ten times a second."""
        return await super().on_tick(counter) or (self.shared / LOADED).exists()

    def close(self) -> None:
        """Stop, unless a worker has taken over already."""
        self.should_exit = True
        self.thread.join()


def _serve_from_workers(config: ServerConfig, listening: socket.socket, signals: SignalFlags) -> None:
    """Serve from several processes, each with its share of the cores; uvicorn starts and restarts them."""
    from uvicorn.supervisors import Multiprocess

    class Workers(Multiprocess):
        def init_processes(self) -> None:
            with block_terminal_signals():
                super().init_processes()

        def keep_subprocess_alive(self) -> None:
            before = {process.pid for process in self.processes}
            with block_terminal_signals():
                super().keep_subprocess_alive()
            for ended in before - {process.pid for process in self.processes}:
                mark_process_dead(ended)  # its tokens in the queue are no part of the sum

        def handle_signals(self) -> None:
            if signals.reload:
                signals.reload = False
                self.handle_hup()
            super().handle_signals()

        def handle_hup(self) -> None:
            try:  # here first, so that a model that cannot be loaded is reported once
                open_model(config)
            except UserError as error:
                log_line(event="not reloaded", error=str(error))
                return
            for worker in self.processes:
                if worker.process.is_alive() and worker.pid is not None and RELOAD_SIGNAL is not None:
                    os.kill(worker.pid, RELOAD_SIGNAL)

    app = "bertsmith.serving.server:worker_app"
    workers = Workers(_uvicorn_config(app, config.host, factory=True, workers=config.workers), sockets=[listening])
    signals.install()  # replaces the handlers that the line before installed, which act too late
    with tempfile.TemporaryDirectory(prefix="bertsmith-") as folder:
        os.environ[MULTIPROC_DIR] = folder
        os.environ[CONFIG_VARIABLE] = json.dumps(asdict(config))
        os.environ["OMP_NUM_THREADS"] = str(max(1, cores() // config.workers))
        with contextlib.closing(_LoadingServer(config, listening, Path(folder))) as loading_server:

            def shut_down() -> None:
                log_line(event="ending")
                stop_accepting(listening)
                loading_server.should_exit = True
                workers.should_exit.set()

            watch(signals, on_end=shut_down)
            open_model(config)  # so that a model that cannot be loaded is reported once
            if signals.end:
                return
            _log_address(listening, config)
            workers.run()


def worker_app() -> FastAPI:
    """Create the application of a worker process from the configuration in the environment."""
    _set_up_log()
    threading.Thread(target=_terminate_with_parent, daemon=True).start()
    content = json.loads(os.environ[CONFIG_VARIABLE])
    nested = {"limits": Limits(**content["limits"]), "vertex": VertexRoutes(**content["vertex"])}
    config = ServerConfig(**{**content, **nested})
    shared = Path(os.environ[MULTIPROC_DIR])
    loader, signals = Loader(config, ServerMetrics()), SignalFlags()
    lock = FileLock(shared / "reload.lock")  # workers reload in turn: memory holds one extra model in total

    def reload() -> None:
        with lock:
            loader.reload()

    signals.install_reload()
    watch(signals, on_reload=reload)
    loader.load()
    (shared / LOADED).touch()
    parent = multiprocessing.parent_process()
    while (shared / LOADING).exists() and parent is not None and parent.is_alive():
        time.sleep(0.02)
    return _app(config, lambda: loader.service, loader.metrics)


def _terminate_with_parent() -> None:
    """Wait for the parent process to end, even by SIGKILL, then terminate this worker."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def run_app(app: Any, listening: socket.socket, signals: SignalFlags) -> None:
    """Serve an application from this process until SIGTERM, SIGINT or SIGHUP, which a closed terminal sends."""
    server = _Server(_uvicorn_config(app, listening.getsockname()[0], timeout_graceful_shutdown=HANDOVER_SECONDS))

    def shut_down() -> None:
        stop_accepting(listening)
        server.should_exit = True

    def hang_up() -> None:
        signals.end = True

    watch(signals, on_end=shut_down, on_reload=hang_up)
    asyncio.run(server.serve(sockets=[listening]))


def listen(host: str, port: int) -> socket.socket:
    """Listen on an address.

    Raises:
        ConfigError: if it is in use, or not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio disables Nagle's algorithm only if the protocol is named; otherwise a response may wait 40 ms.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    own_port(listening)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}",
            remedy="Pass another --port (0 selects a free one) or --host.",
        ) from error
    listening.listen(2048)
    listening.set_inheritable(True)
    return listening


def address_of(listening: socket.socket) -> str:
    """Return the address of the pages, such as ``http://127.0.0.1:8080`` or ``http://[::1]:8080``."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _log_address(listening: socket.socket, config: ServerConfig) -> None:
    host, address = listening.getsockname()[0], address_of(listening)
    has_token = config.token is not None
    log_line(event="listening", address=address, page=f"{address}/ui", workers=config.workers, token=has_token)
    if not has_token and not is_local(host):
        log_line(event="warning", warning="other machines can use this server without a token: set BERTSMITH_TOKEN")


def _set_up_log() -> None:
    log.handlers, log.propagate = [logging.StreamHandler(sys.stderr)], False
    log.setLevel(logging.INFO)
