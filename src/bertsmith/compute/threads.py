"""Work spread over the cores of a CPU: one thread per core, each with texts of its own.

PyTorch splits each operation over all cores and waits for the slowest after each. Small operations gain little by that,
and beside another busy process they lose nearly everything. Threads that each compute
other texts wait for one another once per step.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

from bertsmith.compute.machine import cores

T = TypeVar("T")
MOST = 8
"""Threads at most: each keeps the gradient of all weights while a model trains."""
_lock = threading.Lock()
_active = 0
_threads_before = 1


def count() -> int:
    """Return how many micro-batches a CPU computes at once."""
    return min(cores(), MOST)


def run(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Do tasks at the same time, each by a single thread, and return their results in order.

    If one of them raises, the others are waited for, and the first error is raised.
    """
    if len(tasks) == 1:
        return [tasks[0]()]
    with _threads_apart():
        futures = [_pool().submit(task) for task in tasks]
        for future in futures:
            future.exception()  # waits
        return [future.result() for future in futures]


@lru_cache
def _pool() -> ThreadPoolExecutor:
    import torch

    return ThreadPoolExecutor(count(), "bertsmith", initializer=torch.set_num_threads, initargs=(_threads(),))


if hasattr(os, "register_at_fork"):  # a forked process has none of the threads
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _threads() -> int:
    """Return the threads of a worker: one, unless there are more cores than workers."""
    return max(cores() // count(), 1)


@contextmanager
def _threads_apart() -> Iterator[None]:
    """While in this context, have PyTorch and its math library use a worker's threads for each operation."""
    import torch

    global _active, _threads_before
    with _lock:
        if not _active:
            _threads_before = torch.get_num_threads()
            torch.set_num_threads(_threads())
        _active += 1
    try:
        yield
    finally:
        with _lock:
            _active -= 1
            if not _active:
                torch.set_num_threads(_threads_before)
