"""Signals of the server: SIGTERM and SIGINT shut it down, SIGHUP reloads the model."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

POLL_SECONDS = 0.1
"""Time between two checks of the flags."""
ACCEPT_SECONDS = 0.3
"""Time to accept the connections that the system completed before the shutdown."""
_SO_ATTACH_FILTER = 26
"""Linux constant that Python's socket module lacks."""
_TERMINAL_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name))
"""Signals that a terminal sends to every process of the foreground job."""


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
        if not hasattr(signal, "SIGHUP"):  # Windows
            return {}
        previous: dict[int, Any] = {signal.SIGHUP: signal.signal(signal.SIGHUP, self._on_reload)}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, previous)
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


@contextlib.contextmanager
def block_terminal_signals() -> Iterator[None]:
    """Start child processes with SIGINT and SIGHUP blocked, so that only their parent decides when they end.

    A child receives SIGHUP again after `SignalFlags.install_reload`.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINAL_SIGNALS)
    resource_tracker.ensure_running()  # multiprocessing starts it with the first child and then unblocks SIGINT
    signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINAL_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def stop_accepting(listening: socket.socket) -> None:
    """Make the system refuse new connections, and wait until the completed ones are accepted.

    On Linux a socket filter refuses them: one instruction that keeps 0 bytes of every packet. A backlog of 0 alone
    lets one connection in at a time, which is reset when the socket closes: 10 resets in 24 endings with 24 clients,
    none with the filter.
    """
    with contextlib.suppress(OSError):
        listening.listen(0)
    if sys.platform == "linux":
        instruction = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
        program = struct.pack("HP", 1, ctypes.addressof(instruction))
        with contextlib.suppress(OSError):
            listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    time.sleep(ACCEPT_SECONDS)
