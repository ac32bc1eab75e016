"""Calls that only some operating systems have. A test checks that other modules make no such call."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

NO_LIMIT = 2**16
"""Cores of a control group without a limit."""
LOCKS_OPEN_FILES = os.name == "nt"
"""Whether the system refuses to replace or remove open and memory-mapped files, and their folders."""
TERMINATE_KILLS = os.name == "nt"
"""Whether ``terminate`` of a child process kills it. Ctrl-C in the terminal reaches the child process, too."""
RELOAD_SIGNAL: int | None = getattr(signal, "SIGHUP", None)
"""The signal to reload the model of a server; ``None`` on Windows."""
_TERMINAL_SIGNALS = tuple(number for number in (signal.SIGINT, RELOAD_SIGNAL) if number is not None)
"""Signals that a terminal sends to every process of the foreground job."""
_SO_ATTACH_FILTER = 26
"""Linux constant that Python's socket module lacks."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``; both default to 128 KiB."""

# -- cores -------------------------------------------------------------------------------------------------------------


def affinity_cores() -> int:
    """Return the number of cores that this process may use; on macOS and Windows, that of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def control_group_cores(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the CPU limit of the control group (version 2 or 1) in cores, rounded up; `NO_LIMIT` without one."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return -(-int(quota) // int(period))
    except (OSError, ValueError):
        pass
    try:
        amount = int((folder / "cpu" / "cpu.cfs_quota_us").read_text())
        return -(-amount // int((folder / "cpu" / "cpu.cfs_period_us").read_text())) if amount > 0 else NO_LIMIT
    except (OSError, ValueError):
        return NO_LIMIT


def call_after_fork(function: Callable[[], None]) -> None:
    """Call a function in every forked child process. Windows has no fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)


# -- memory ------------------------------------------------------------------------------------------------------------


def free_memory(root: Path = Path("/")) -> int:
    """Return the bytes this process may still allocate: the minimum over machine, control groups and ulimits.

    Args:
        root: parent of ``proc`` and ``sys``, for tests.
    """
    import psutil

    return max(min([int(psutil.virtual_memory().available), *_control_groups(root), *_ulimits()]), 0)


def _control_groups(root: Path) -> list[int]:
    """Return the free memory of each control group (version 1 or 2) and its parents. Cached files count as free."""
    left = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        if not controllers:
            base, limit, used, cached = "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base, limit, used = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cached = "total_inactive_file"
        else:
            continue
        group = root / base / name.strip("/")
        for folder in (group, *group.parents):
            if folder == (root / base).parent:
                break
            most, now = _read(folder / limit).strip(), _read(folder / used).strip()
            if most.isdigit() and now.isdigit():
                files = re.search(rf"^{cached} (\d+)", _read(folder / "memory.stat"), re.M)
                left.append(int(most) - int(now) + (int(files[1]) if files else 0))
    return left


def _ulimits() -> list[int]:
    """Return the free memory below ``ulimit -v`` and ``ulimit -d``. Only Linux reports the memory that they count."""
    import psutil

    process = psutil.Process()
    if not hasattr(process, "rlimit"):
        return []
    used = process.memory_info()
    limits = ((psutil.RLIMIT_AS, used.vms), (psutil.RLIMIT_DATA, used.data))
    left = [(process.rlimit(kind)[0], now) for kind, now in limits]
    return [limit - now for limit, now in left if limit != psutil.RLIM_INFINITY]


def resident_memory() -> int:
    """Return the resident set size of this process in bytes, including freed memory."""
    import psutil

    return int(psutil.Process().memory_info().rss)


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[None]:
    """In this context, glibc keeps freed memory for the next step. On exit, it returns the memory to the system.

    Otherwise the kernel maps and zeroes new pages for each large tensor: 8 % of the training time of MiniLM. Other
    allocators are left unchanged.
    """
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(_MMAP_THRESHOLD, 32 * 2**20)  # the maximum
    library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        library.mallopt(_MMAP_THRESHOLD, 128 * 2**10)
        library.mallopt(_TRIM_THRESHOLD, 128 * 2**10)
        library.malloc_trim(0)


def trim_memory(limit: int) -> int:
    """Return freed memory to the system if this process holds more than ``limit`` bytes.

    Freed memory becomes fragmented, so a process would use more and more memory. Only glibc can return it.

    Returns:
        The limit for the next call. It is at least 1.25 times the memory in use, to avoid trimming at every call.
    """
    library = _glibc()
    if library is None or resident_memory() <= limit:
        return limit
    library.malloc_trim(0)
    return max(limit, resident_memory() * 5 // 4)


def _glibc() -> Any:
    """Return the C library if it is glibc, else ``None``."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


# -- signals, pipes and sockets ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def block_terminal_signals() -> Iterator[None]:
    """Start child processes with SIGINT and SIGHUP blocked, so that their parent decides when they end.

    A child receives SIGHUP again after `unblock`. Windows has no signal masks.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    previous = signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINAL_SIGNALS)
    resource_tracker.ensure_running()  # multiprocessing starts it with the first child and then unblocks SIGINT
    signal.pthread_sigmask(signal.SIG_BLOCK, _TERMINAL_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def unblock(number: int) -> None:
    """Receive a signal that `block_terminal_signals` blocks."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])


def is_closed_pipe(error: OSError, output: IO[str]) -> bool:
    """Return whether an error means that the reader of an output has ended, and not the reader of another pipe.

    On Windows, the error is an invalid argument, and nothing tells whose pipe it was.
    """
    if os.name == "nt":
        return isinstance(error, BrokenPipeError) or (error.errno == errno.EINVAL and error.filename is None)
    if isinstance(error, BrokenPipeError):
        with contextlib.suppress(OSError, ValueError):  # the output is closed, or not a file
            poll = select.poll()
            poll.register(output.fileno(), 0)
            return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    return False


def own_port(listening: socket.socket) -> None:
    """Allow a server to use a recently closed port, but not the port of another server.

    On Windows, ``SO_REUSEADDR`` would let two servers share a port.
    """
    option = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)
    listening.setsockopt(socket.SOL_SOCKET, option, 1)


def refuse_connections(listening: socket.socket) -> None:
    """Make the system refuse new connections to a socket, if it can.

    On Linux, a socket filter refuses them: one instruction that keeps 0 bytes of every packet. A backlog of 0 alone
    accepts one connection at a time, and resets it when the socket closes. In 24 shutdowns with 24 clients, this caused
    10 resets; the filter caused none.
    """
    with contextlib.suppress(OSError):
        listening.listen(0)
    if sys.platform == "linux":
        instruction = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
        program = struct.pack("HP", 1, ctypes.addressof(instruction))
        with contextlib.suppress(OSError):
            listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
