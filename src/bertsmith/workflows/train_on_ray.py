"""Train one model on a Ray cluster. If a worker dies, training loses the steps since the last checkpoint."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bertsmith.compute.processes import GPU_BACKENDS, TIMEOUT, rank_and_world_size
from bertsmith.config import Config
from bertsmith.errors import (
    ConfigError,
    DeviceError,
    Interrupted,
    MissingPackageError,
    RunFolderError,
    TrainingError,
    UserError,
    counted,
)
from bertsmith.events import RunListener
from bertsmith.folders.claim import claim
from bertsmith.folders.new_run import RunFolder
from bertsmith.folders.remote import RemoteRun
from bertsmith.folders.run import Run
from bertsmith.inference.ray_data import cluster
from bertsmith.workflows.run_at_url import copied_from_url, copied_to_url

RESTARTS = 3
"""Number of times that training continues from its last checkpoint after a worker died."""
POLL_SECONDS = 0.5
"""Seconds between two checks whether to stop."""


@dataclass(frozen=True)
class _Job:
    """The arguments of each worker.

    Attributes:
        source, config, output, resume, overwrite: see `bertsmith.train`.
        folder: the base of relative paths.
        scratch: a temporary folder; its name is unique to this command.
        events: a queue for the events of the main worker.
        stops: a queue; the workers stop once it has an item.
    """

    source: Any
    config: Config
    output: Path | str
    resume: bool
    overwrite: bool
    folder: Path
    scratch: Path
    events: Any
    stops: Any


def train_on_ray(
    source: Any,
    config: Config,
    output: Path | str,
    *,
    address: str,
    workers: int,
    resume: bool,
    overwrite: bool,
    observe: RunListener,
    stop: Callable[[], bool],
) -> Run:
    """Train with several workers of a Ray cluster. The result equals that of one process, except for rounding.

    Args:
        source, config, output, resume, overwrite: see `bertsmith.train`. Every machine needs them under the
            same path. An output of type str is a URL.
        address: of the cluster, as in ``ray.init``.
        workers: number of worker processes, each with a GPU if the cluster has GPUs, else with a core.
        observe: receives the events of the run.
        stop: called regularly; if it returns true, training saves a checkpoint and stops.

    Returns:
        The run; if ``output`` is a URL, a copy in a temporary folder.

    Raises:
        Interrupted: if ``stop`` returned true.
        UserError: as in `bertsmith.train`, if Ray is missing, or if workers die again and again.
    """
    try:
        import ray
        import ray.train.torch
        from ray.util.queue import Queue
    except ModuleNotFoundError as error:
        raise MissingPackageError(error.name or "ray", "--ray", needs="ray") from error
    if workers < 1:
        raise ConfigError(f"workers={workers} should be at least 1", remedy="Pass the number of workers.")
    with ExitStack() as stack:
        if isinstance(output, str):
            RemoteRun(output).check(resume=resume, overwrite=overwrite)
            path, observe = stack.enter_context(copied_from_url(output, observe))
        else:
            path = output = output.absolute()
            with claim(RunFolder(path), resume=resume, overwrite=overwrite):
                path.parent.mkdir(parents=True, exist_ok=True)
        # Without this, Ray shows a worker all GPUs of its machine.
        os.environ["TRAIN_ENABLE_SHARE_CUDA_VISIBLE_DEVICES"] = "0"
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".ray", dir=path.parent))
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        stack.enter_context(cluster(address))
        if not uses_gpus(config.device, workers, ray.cluster_resources()):
            config = config.model_copy(update={"device": "cpu"})
        events, stops = (Queue(actor_options={"num_cpus": 0}) for _ in range(2))
        job = _Job(source, config, output, resume, overwrite, Path.cwd(), scratch, events, stops)
        with _listening(job, observe, stop):
            _fit(job, workers)
    return Run(path)


def uses_gpus(device: str, workers: int, resources: Mapping[str, float]) -> bool:
    """Return whether each worker gets a GPU; otherwise each gets a core.

    Raises:
        DeviceError: if the cluster has fewer cores than workers, or lacks the device. (Ray would wait for cores.)
    """
    cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if workers > cores:
        raise DeviceError(
            f"--workers {workers}: the cluster has {counted(cores, 'core')}",
            remedy="Use fewer workers, or add machines to the cluster.",
        )
    if device not in ("auto", "cpu", "cuda") or (device == "cuda" and workers > gpus):
        raise DeviceError(
            f"--device {device}: for {counted(workers, 'worker')}, the cluster has {counted(gpus, 'GPU')} with CUDA",
            remedy="Leave out --device, or use fewer workers.",
        )
    return device != "cpu" and gpus >= workers


def _fit(job: _Job, workers: int) -> None:
    """Train, and continue after each death of a worker."""
    from ray.train import TrainingFailedError

    before = _info(_run_at(job.output)).get("created")
    for attempt in range(RESTARTS + 1):
        try:
            _trainer(job, workers).fit()
            return
        except TrainingFailedError as error:
            _raise_cause(error)
            if attempt == RESTARTS:
                raise TrainingError(
                    f"workers died {RESTARTS + 1} times: {str(error).strip().splitlines()[-1]}",
                    where=str(job.output),
                    remedy="See the logs of the cluster (ray logs). Then run the same command with --resume.",
                ) from error
        run = _run_at(job.output)
        info = _info(run)
        if job.resume or info.get("created") != before:  # this command created the run: do not replace it
            if info.get("status") == "finished":
                return
            job = replace(job, resume=run.is_resumable, overwrite=False)


def _trainer(job: _Job, workers: int) -> Any:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    use_gpu = job.config.device != "cpu"
    return TorchTrainer(
        _work,
        train_loop_config={"job": job},
        torch_config=TorchConfig(GPU_BACKENDS if use_gpu else "gloo", timeout_s=int(TIMEOUT.total_seconds())),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu),
        # Ray would also retry after errors of the user.
        run_config=RunConfig(name="train", storage_path=str(job.scratch), failure_config=FailureConfig(max_failures=0)),
    )


def _work(settings: Mapping[str, Any]) -> None:
    """Train in a worker. Ray has connected the workers, and set the variables that torchrun sets."""
    from bertsmith.workflows.seeds import run_seeds

    job: _Job = settings["job"]
    with suppress(OSError):  # other machines may lack it, and need it for relative paths only
        os.chdir(job.folder)
    os.environ["TORCHELASTIC_RUN_ID"] = "ray"
    rank, _ = rank_and_world_size()
    path, how = job.output, {"resume": job.resume, "overwrite": job.overwrite}
    observe: RunListener = job.events.put
    with ExitStack() as stack:
        if isinstance(path, str):
            folder = Path(tempfile.gettempdir()) / f"bertsmith{job.scratch.name}{rank}"
            copied = copied_to_url(path, folder, **how, observe=observe, is_main=rank == 0)
            path, observe = stack.enter_context(copied)
        run_seeds(job.source, job.config, path, **how, observe=observe, stop=_stopping(job.stops))


def _stopping(stops: Any) -> Callable[[], bool]:
    """Return a function that returns whether a queue has an item. It asks the queue from time to time."""
    asked, stopped = float("-inf"), False

    def stop() -> bool:
        nonlocal asked, stopped
        if not stopped and time.monotonic() - asked >= POLL_SECONDS:
            asked, stopped = time.monotonic(), not stops.empty()
        return stopped

    return stop


def _run_at(output: Path | str) -> Run | RemoteRun:
    return RemoteRun(output) if isinstance(output, str) else Run(output)


def _info(run: Run | RemoteRun) -> dict[str, Any]:
    """Return the content of ``run.json``; empty without a run or if it is damaged."""
    with suppress(RunFolderError):
        return run.info if isinstance(run, RemoteRun) or run.layout.run.is_file() else {}
    return {}


@contextmanager
def _listening(job: _Job, observe: RunListener, stop: Callable[[], bool]) -> Iterator[None]:
    """In this context, a thread passes events on, and stops the workers if needed."""
    ended = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        listener = executor.submit(_listen, job, observe, stop, ended)
        try:
            yield
        finally:
            ended.set()
            listener.result()


def _listen(job: _Job, observe: RunListener, stop: Callable[[], bool], ended: threading.Event) -> None:
    from ray.exceptions import RayError
    from ray.util.queue import Empty

    stopped = False
    while True:
        is_last_round = ended.is_set()  # read before the queue, which then has all events
        try:
            if not stopped and stop():
                stopped = True
                job.stops.put(True)
            observe(job.events.get(timeout=POLL_SECONDS))
        except Empty:
            if is_last_round:
                return
        except RayError:  # the cluster has ended
            return
        except Exception:  # of the listener
            job.stops.put(True)
            raise


def _raise_cause(error: Any) -> None:
    """Raise the first interruption or user error of a worker, if there is one."""
    for failure in getattr(error, "worker_failures", {}).values():
        cause = getattr(failure, "_base_exc", failure)
        if isinstance(cause, UserError | Interrupted):
            raise cause from error
