"""One training on the workers of a Ray cluster, one of which is killed, ends like that of one process."""

import os
import pickle
import queue
import signal
import sys
import time
import types

import numpy as np
import psutil
import pytest

from bertsmith.errors import ConfigError, DataError, DeviceError, Interrupted, MissingPackageError
from bertsmith.events import Saved
from bertsmith.load_config import resolve
from bertsmith.testing import tiny_table
from bertsmith.workflows import train_on_ray
from tests.conftest import FAST, train

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's, of itself
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def cluster():
    """A local Ray with two cores."""
    import ray

    os.environ |= {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0", "BERTSMITH_CV": "0"}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def _on_ray(table, output, tiny, *, observe=lambda event: None, stop=lambda: False, workers=2, **settings):
    config = resolve({**FAST, "explanations": "off", "model": str(tiny), "threads": 1, **settings}, api=True)
    how = {"address": "local", "workers": workers, "resume": False, "overwrite": False}
    return train_on_ray.train_on_ray(table, config, output, observe=observe, stop=stop, **how)


def _workers():
    """Return the processes of Ray that train."""
    found = psutil.Process().children(recursive=True)
    return [process for process in found if "RayTrainWorker" in " ".join(process.cmdline())]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of processes")
def test_a_killed_worker_costs_only_time(cluster, tiny, tmp_path):
    table = tiny_table(121)
    killed = []

    def kill_a_worker(event):
        if isinstance(event, Saved) and not killed:
            killed.extend(_workers()[-1:])
            killed[0].send_signal(signal.SIGKILL)

    run = _on_ray(table, tmp_path / "ray", tiny, observe=kill_a_worker, dropout=0)
    assert killed
    assert run.info["status"] == "finished"
    alone = train(tiny, tmp_path / "alone", table=table, threads=1, dropout=0)
    ours, theirs = (np.stack(each.predictions["probabilities"]) for each in (run, alone))
    assert ours == pytest.approx(theirs, abs=1e-3)
    losses = [[entry["validation_loss"] for entry in each.history] for each in (run, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.endswith(".ray")] == []


def test_more_workers_than_cores_are_refused(cluster, tiny, tmp_path):
    for workers, error in ((9, DeviceError), (0, ConfigError)):
        with pytest.raises(error, match=str(workers)):
            _on_ray(tiny_table(), tmp_path / "run", tiny, workers=workers)
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
    queued, seen = queue.Queue(), []
    job = train_on_ray._Job(None, None, tmp_path, False, False, tmp_path, _Events(queued), tmp_path / "stop")
    with train_on_ray._listening(job, seen.append, lambda: seen == [1, 2]):
        for event in (1, 2):
            queued.put(event)
        while not job.stop_file.exists():
            time.sleep(0.01)
        queued.put(3)
    assert seen == [1, 2, 3]


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
