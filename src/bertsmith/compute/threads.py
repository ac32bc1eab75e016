"""Data parallelism over CPU cores: one worker thread per core, each with its own texts.

PyTorch splits each operation over all cores and waits for the slowest. Small operations gain little from that, and lose
nearly everything when another process is busy: MiniLM trained 20 times slower. Workers wait only once per step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

from bertsmith.compute.machine import cores
from bertsmith.compute.system import call_after_fork

T = TypeVar("T")
MAX_WORKERS = 8
"""In training, each worker holds a gradient of all weights."""
_lock = threading.Lock()
_active = 0
_threads_before = 1


def num_workers() -> int:
    """Return how many micro-batches a CPU computes at the same time."""
    return min(cores(), MAX_WORKERS)


def run(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Run tasks in parallel, each in one worker thread, and return their results in order.

    Raises:
        Exception: the first error of a task, once all tasks have ended.
    """
    if len(tasks) == 1:
        return [tasks[0]()]
    with _worker_threads():
        pool = _pool(cores())
        futures = [pool.submit(task) for task in tasks]
        for future in futures:
            future.exception()  # waits
        return [future.result() for future in futures]


@lru_cache(maxsize=1)
def _pool(n_cores: int) -> ThreadPoolExecutor:
    import torch

    threads = (_threads_per_worker(n_cores),)
    return ThreadPoolExecutor(
        min(n_cores, MAX_WORKERS), "bertsmith", initializer=torch.set_num_threads, initargs=threads
    )


call_after_fork(_pool.cache_clear)  # threads do not survive a fork


def _threads_per_worker(n_cores: int) -> int:
    return max(n_cores // MAX_WORKERS, 1)


@contextmanager
def _worker_threads() -> Iterator[None]:
    """In this context, limit PyTorch and its math library to the threads of one worker per operation.

    Each thread has its own limit. A new thread begins with the limit that any thread set last. So all threads get back
    the limit of the first.
    """
    import torch

    global _active, _threads_before
    with _lock:
        if not _active:
            _threads_before = torch.get_num_threads()
        _active += 1
        torch.set_num_threads(_threads_per_worker(cores()))
    try:
        yield
    finally:
        with _lock:
            _active -= 1
            torch.set_num_threads(_threads_before)
