"""Run commands in processes that are forked from one with everything imported, so that they start at once.

``python -m bertsmith`` imports PyTorch and Transformers for seconds. Tests of signals and kills need a separate process
for each command, not its imports.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PRELOAD = (
    "bertsmith.api.training",
    "bertsmith.cli.app",
    "bertsmith.cli.predict",
    "bertsmith.cli.train",
    "bertsmith.cli.tune",
    "bertsmith.inference.classifier",
    "bertsmith.serving.server",
    "bertsmith.tuning.store",
    "bertsmith.workflows.train",
    "bertsmith.workflows.trials",
    "captum.attr",
    "datasets",
    "optuna.importance",
    "sklearn.feature_extraction.text",
    "transformers",
)


def _run(
    arguments: list[str],
    environment: dict[str, str],
    folder: str,
    stderr: Connection,
    before: Callable[[], None] | None,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    os.dup2(stderr.fileno(), 1)
    os.dup2(stderr.fileno(), 2)
    sys.stdout, sys.stderr = (
        os.fdopen(1, "w", closefd=False, buffering=1),
        os.fdopen(2, "w", closefd=False, buffering=1),
    )
    sys.argv = ["bertsmith", *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server that forks ignores it
    os.setsid()

    from bertsmith.cli.app import main

    if before is not None:
        before()
    main(arguments)


class Command:
    """A command with its arguments as a process, with the part of ``subprocess.Popen`` that tests use.

    ``before`` is called in the process before the command.

    Attributes:
        stderr: its standard error, and standard output, line by line.
    """

    def __init__(
        self,
        *arguments: Any,
        environment: dict[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOAD))
        receive, send = context.Pipe(duplex=False)
        given = {**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1", **(environment or {})}
        command = [str(a) for a in arguments]
        self._process = context.Process(target=_run, args=(command, given, str(Path.cwd()), send, before))
        self._process.start()
        atexit.register(self._process.kill)  # a failed test does not wait for it
        send.close()
        self.stderr = os.fdopen(os.dup(receive.fileno()), encoding="utf-8")
        receive.close()

    @property
    def pid(self) -> int:
        pid = self._process.pid
        assert pid is not None
        return pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float = 120) -> int | None:
        self._process.join(timeout)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill_group(self) -> None:
        """Kill the process and those it started, unless it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def finish(self, timeout: float = 120) -> str:
        """Wait for the end and return the rest of what it prints."""
        with self.stderr:
            rest = self.stderr.read()
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise TimeoutError(f"the command has not ended: {rest}")
        return rest
