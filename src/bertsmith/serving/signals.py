"""Signals of the server: SIGTERM and SIGINT shut it down, SIGHUP reloads the model."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from bertsmith.compute.system import RELOAD_SIGNAL, refuse_connections, unblock

POLL_SECONDS = 0.1
"""Time between two checks of the flags."""
ACCEPT_SECONDS = 0.3
"""Time to accept the connections that the system completed before the shutdown."""


@dataclass
class SignalFlags:
    """The signals received so far.

    A handler can interrupt the main thread while it holds a lock or writes to the log. So handlers only set a flag,
    and the thread of `watch` acts on it.

    Attributes:
        end: SIGINT or SIGTERM arrived.
        reload: SIGHUP arrived.
    """

    end: bool = False
    reload: bool = False

    def install(self) -> dict[int, Any]:
        """Install the handlers and return the previous ones."""
        previous: dict[int, Any] = {
            number: signal.signal(number, self._on_end) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return previous | self.install_reload()

    def install_reload(self) -> dict[int, Any]:
        """Install the handler of SIGHUP, unblock the signal, and return the previous handler."""
        if RELOAD_SIGNAL is None:
            return {}
        previous: dict[int, Any] = {RELOAD_SIGNAL: signal.signal(RELOAD_SIGNAL, self._on_reload)}
        unblock(RELOAD_SIGNAL)
        return previous

    def _on_end(self, number: int, frame: FrameType | None) -> None:
        self.end = True

    def _on_reload(self, number: int, frame: FrameType | None) -> None:
        self.reload = True


@contextlib.contextmanager
def handle_signals() -> Iterator[SignalFlags]:
    """Install the handlers. Ignore the signals after the server has stopped, because the process exits anyway."""
    signals = SignalFlags()
    handlers = signals.install()
    try:
        yield signals
        handlers = dict.fromkeys(handlers, signal.SIG_IGN)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def watch(
    signals: SignalFlags, *, on_end: Callable[[], None] | None = None, on_reload: Callable[[], None] | None = None
) -> None:
    """Start a thread that calls ``on_reload`` after every SIGHUP and ``on_end`` once; ``None`` ignores a signal."""

    def poll() -> None:
        while not signals.end:
            if on_reload is not None and signals.reload:
                signals.reload = False
                threading.Thread(target=on_reload, daemon=True).start()
            time.sleep(POLL_SECONDS)
        if on_end is not None:
            on_end()

    threading.Thread(target=poll, daemon=True).start()


def stop_accepting(listening: socket.socket) -> None:
    """Make the system refuse new connections, and wait until the completed ones are accepted."""
    refuse_connections(listening)
    time.sleep(ACCEPT_SECONDS)
