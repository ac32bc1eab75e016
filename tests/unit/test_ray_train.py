"""The steps before and after training on a Ray cluster; `test_distributed.py` trains on one."""

import importlib.util
import itertools
import pickle
import queue
import time
import types

import pytest

from bertsmith.config import Config
from bertsmith.errors import ConfigError, DataError, DeviceError, Interrupted, MissingPackageError, OutputError
from bertsmith.testing import tiny_table
from bertsmith.workflows import train_on_ray

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra ray is not installed"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # from Ray
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def test_too_few_workers_are_refused(tmp_path):
    how = {"resume": False, "overwrite": False, "observe": print, "stop": lambda: False}
    with pytest.raises(ConfigError, match="workers=0"):
        train_on_ray.train_on_ray(tiny_table(), Config(), tmp_path / "run", address="local", workers=0, **how)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("device", "gpus", "uses"),
    [("auto", 2, True), ("auto", 1, False), ("cuda", 4, True), ("cpu", 4, False), ("cuda", 1, None), ("mps", 2, None)],
)
def test_workers_get_a_gpu_each_or_a_core_each(device, gpus, uses):
    resources = {"CPU": 8.0, "GPU": float(gpus)}
    if uses is None:
        with pytest.raises(DeviceError, match=device):
            train_on_ray.uses_gpus(device, 2, resources)
    else:
        assert train_on_ray.uses_gpus(device, 2, resources) == uses


@pytest.mark.parametrize("cause", [DataError("a", where="b"), MissingPackageError("ray", "c"), Interrupted("d")])
def test_what_the_user_can_fix_is_raised_and_not_repeated(cause):
    error = RuntimeError("as Ray's WorkerGroupError")
    error.worker_failures = {0: RuntimeError("died")}
    train_on_ray._raise_cause(error)
    error.worker_failures[1] = types.SimpleNamespace(_base_exc=pickle.loads(pickle.dumps(cause)))
    with pytest.raises(type(cause)) as caught:
        train_on_ray._raise_cause(error)
    assert vars(caught.value) == vars(cause)


def test_events_reach_the_listener_and_stopping_reaches_the_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(train_on_ray, "POLL_SECONDS", 0.01)
    queued, stops, seen = queue.Queue(), queue.Queue(), []
    job = train_on_ray._Job(None, None, tmp_path, False, False, tmp_path, tmp_path, _Events(queued), stops)
    stop = train_on_ray._stopping(stops)
    with train_on_ray._listening(job, seen.append, lambda: seen[:2] == [1, 2]):
        assert not stop()
        steps = itertools.count(1)
        while not stop():  # also while events arrive without a pause
            queued.put(next(steps))
            time.sleep(0.001)
        queued.put("last")
    assert seen == [*range(1, next(steps)), "last"]


def test_an_error_of_a_listener_stops_the_workers_and_is_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(train_on_ray, "POLL_SECONDS", 0.01)
    queued, stops = queue.Queue(), queue.Queue()
    queued.put("event")
    job = train_on_ray._Job(None, None, tmp_path, False, False, tmp_path, tmp_path, _Events(queued), stops)

    def fail(event):
        raise OutputError(event)

    with pytest.raises(OutputError), train_on_ray._listening(job, fail, lambda: False):
        assert stops.get(timeout=10)
        raise Interrupted("by the workers")


class _Events:
    """A queue of Ray without Ray."""

    def __init__(self, queued):
        self.queued = queued

    def get(self, timeout):
        from ray.util.queue import Empty

        try:
            return self.queued.get(timeout=timeout)
        except queue.Empty:
            raise Empty from None
