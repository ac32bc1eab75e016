"""What signals ask of the server, from the first moment to the last: to end, or to load again."""

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

TICK = 0.1
"""Seconds between two looks at what signals have asked for."""
LINGER = 0.3
"""Seconds in which the last connections are taken before the server ends."""
_SO_ATTACH_FILTER = 26
"""Of Linux; Python has no name for it."""
_TERMINAL = tuple(getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name))
"""Signals that a terminal sends to every process it runs."""


@dataclass
class SignalRequests:
    """What signals have asked for.

    A handler interrupts the main thread anywhere, even where that holds a lock or writes to the log. So it only sets a
    flag here, and `watch` acts on it.

    Attributes:
        end: SIGINT or SIGTERM came.
        reload: SIGHUP came.
    """

    end: bool = False
    reload: bool = False

    def heed(self) -> dict[int, Any]:
        """Note signals from now on, and return the handlers from before."""
        before: dict[int, Any] = {
            number: signal.signal(number, self._end) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return before | self.heed_reload()

    def heed_reload(self) -> dict[int, Any]:
        """Note SIGHUP alone, one that `held_back` as well."""
        if not hasattr(signal, "SIGHUP"):  # Windows
            return {}
        before: dict[int, Any] = {signal.SIGHUP: signal.signal(signal.SIGHUP, self._reload)}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, before)
        return before

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.end = True

    def _reload(self, number: int, frame: FrameType | None) -> None:
        self.reload = True


@contextlib.contextmanager
def handle_signals() -> Iterator[SignalRequests]:
    """Note what signals ask for. Once the server has ended they are ignored: the process ends anyway."""
    wishes = SignalRequests()
    handlers = wishes.heed()
    try:
        yield wishes
        handlers = dict.fromkeys(handlers, signal.SIG_IGN)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def watch(
    wishes: SignalRequests, *, end: Callable[[], None] | None = None, reload: Callable[[], None] | None = None
) -> None:
    """Start a thread that does what signals ask for: ``reload`` each time, ``end`` once; ``None`` is left to others."""

    def look() -> None:
        while not wishes.end:
            if reload is not None and wishes.reload:
                wishes.reload = False
                threading.Thread(target=reload, daemon=True).start()
            time.sleep(TICK)
        if end is not None:
            end()

    threading.Thread(target=look, daemon=True).start()


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Start processes that a terminal cannot end, which signals all processes it runs: that is up to their parent.

    SIGINT never reaches them, and SIGHUP does when they call `SignalRequests.heed_reload`.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINAL)
    resource_tracker.ensure_running()  # multiprocessing's helper: the first start starts it, which unblocks SIGINT
    signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINAL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def take_no_more(listening: socket.socket) -> None:
    """Have the system take no more connections, and wait until those that it took already are accepted.

    On Linux a filter lets none in, a program of one instruction: keep 0 bytes of every packet. A queue of length 0
    would still take one connection at a time, which is reset when the socket closes: with 24 clients 10 were in 24
    endings, none with the filter.
    """
    with contextlib.suppress(OSError):
        listening.listen(0)
    if sys.platform == "linux":
        nothing = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
        program = struct.pack("HP", 1, ctypes.addressof(nothing))
        with contextlib.suppress(OSError):
            listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    time.sleep(LINGER)
