"""Run the trials of a study, in this process or in worker processes."""

from __future__ import annotations

import multiprocessing
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from bertsmith.compute.machine import cores, use_cores
from bertsmith.compute.memory import empty_device_cache, memory_errors
from bertsmith.config import Config
from bertsmith.errors import ConfigError, Interrupted, RunFolderError, UserError
from bertsmith.events import StorageUnavailable, StudyListener, TrialEnded, TrialScored, TrialStarted
from bertsmith.tuning.config import LATENCY, OBJECTIVES, StudyConfig
from bertsmith.tuning.space import Space, with_values
from bertsmith.tuning.store import ERROR, JOURNAL, WORKER, Store, TakenOverError, ignore_optuna_warnings, is_done
from bertsmith.workflows.trials import TrialData, run_trial, with_evaluation_steps

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
STEPS_PER_EPOCH = 12
"""Steps of the pruner in an epoch: trials are evaluated after halves or thirds of an epoch."""
MAX_FAILURES = 3
"""Failed trials, without a successful one, after which the search ends with the error."""
STOP_SECONDS = 30.0
"""Time for workers to end after they are asked to, before they are killed."""
POLL_SECONDS = 0.5
"""Time between two checks of the trials of other workers."""


@dataclass(frozen=True)
class Search:
    """Everything that a worker process needs; can be pickled.

    Attributes:
        data: the texts.
        config: settings of the user.
        study_config: configuration of the study.
        space: the search space.
        batch_size: texts per batch if neither the user nor the space sets it.
        name: name of the study in its storage.
        folder: folder of the study.
        deadline: end of the search in seconds since the epoch; ``None`` without a time limit.
    """

    data: TrialData
    config: Config
    study_config: StudyConfig
    space: Space
    batch_size: int
    name: str
    folder: Path
    deadline: float | None

    @property
    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.time() > self.deadline

    def trial_config(self, values: Mapping[str, Any]) -> Config:
        """Return the settings of a trial. It is evaluated within epochs if that takes little time."""
        config = with_values(self.config, values)
        if self.study_config.cv:
            return config
        return with_evaluation_steps(config, self.data, config.batch_size or self.batch_size)


def open_store(search: Search, observe: StudyListener, stop: Callable[[], bool]) -> Store:
    """Open the study in its storage.

    Raises:
        UserError: if the storage cannot be used, or the journal is damaged.
    """
    study_config = search.study_config
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if len(study_config.objectives) == 1 and study_config.cv:
        with ignore_optuna_warnings():
            pruner = optuna.pruners.WilcoxonPruner(p_threshold=0.1)
    elif len(study_config.objectives) == 1:  # from half an epoch on, compare with the other trials at the same epoch
        pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=STEPS_PER_EPOCH // 2, n_min_trials=3)
    try:
        return Store(
            search.folder,
            search.name,
            url=study_config.storage,
            directions=[OBJECTIVES[name] for name in study_config.objectives],
            pruner=pruner,
            seed=search.config.seed,
            on_unavailable=lambda reason: observe(StorageUnavailable(reason)),
            stop=stop,
        )
    except (ValueError, KeyError) as error:
        if study_config.storage is not None:
            raise
        raise RunFolderError(
            f"the journal of the study is damaged: {type(error).__name__}: {error}",
            where=str(search.folder / JOURNAL),
            remedy="Restore the file from a copy, or begin again with --overwrite.",
        ) from error


def run_trials(store: Store, search: Search, observe: StudyListener, stop: Callable[[], bool]) -> None:
    """Run trials until enough are done and no other worker runs one.

    Raises:
        Interrupted: if ``stop`` returned true.
    """
    while not search.is_over:
        if stop():
            raise Interrupted("stopped; finished trials are saved")
        trial = store.claim(search.space, search.study_config.trials)
        if trial is not None:
            start = time.perf_counter()
            observe(TrialStarted(trial.number, dict(trial.params)))
            try:
                state, values, reason = _run_claimed(store, trial, search, observe, stop)
            except TakenOverError:
                state, values, reason = "failed", (), "this worker did not respond, so another one repeats the trial"
            observe(TrialEnded(trial.number, state, values, time.perf_counter() - start, reason))
        elif any(t.state == TrialState.RUNNING for t in store.trials):
            time.sleep(POLL_SECONDS)
        else:
            return


def _run_claimed(
    store: Store, trial: optuna.Trial, search: Search, observe: StudyListener, stop: Callable[[], bool]
) -> tuple[str, tuple[float, ...], str]:
    """Run a trial; return its state, its values and why it failed."""
    start, study_config = time.perf_counter(), search.study_config
    objectives = study_config.objectives

    def on_score(at: float, score: float) -> None:
        observe(TrialScored(trial.number, at, score))
        step = round(at if study_config.cv else at * STEPS_PER_EPOCH)
        if len(objectives) == 1:
            # After a rollback, steps repeat. Optuna would ignore their new scores, and prune by the scores from before.
            reported = trial._cached_frozen_trial
            reported.intermediate_values = {s: v for s, v in reported.intermediate_values.items() if s < step}
            store.report(trial, score, step)
            if store.retry(trial.should_prune):
                raise optuna.TrialPruned

    try:
        with store.heartbeats(trial), memory_errors("out of memory", "Free memory, or use a smaller --model."):
            result = run_trial(
                search.data,
                search.trial_config(trial.params),
                on_score=on_score,
                stop=lambda: stop() or search.is_over,
                measure_latency=LATENCY in objectives,
            )
    except optuna.TrialPruned:
        store.set_attributes(trial, seconds=time.perf_counter() - start)
        store.tell(trial, TrialState.PRUNED)
        return "pruned", (), ""
    except UserError as error:
        store.fail(trial.number, error.what)
        done = [t for t in store.trials if is_done(t)]
        if len(done) >= MAX_FAILURES and all(t.state == TrialState.FAIL for t in done):
            raise
        return "failed", (), error.what
    except BaseException as error:
        store.requeue(trial.number, killed=isinstance(error, Exception) and not isinstance(error, Interrupted))
        if isinstance(error, Interrupted) and not stop():
            return "cut short", (), "the time limit was reached; the same command runs the trial again"
        raise
    values = (result.score, float(result.latency or 0))[: len(objectives)]
    store.set_attributes(trial, seconds=time.perf_counter() - start, curve=result.curve)
    store.tell(trial, TrialState.COMPLETE, values)
    return "complete", values, ""


def rank_key(trial: FrozenTrial) -> tuple[float, ...]:
    """Return a sort key of complete trials, largest for the best: by score, then speed, then age."""
    score, *latency = trial.values
    return score, *(-value for value in latency), -trial.number


def primary_score(trial: FrozenTrial) -> float:
    """Return the primary score of a complete trial, −∞ for any other."""
    return float(trial.values[0]) if trial.state == TrialState.COMPLETE else float("-inf")


# -- worker processes --------------------------------------------------------------------------------------------------


def run_workers(store: Store, search: Search, observe: StudyListener, stop: Callable[[], bool]) -> None:
    """Run the trials in worker processes and report their events.

    Raises:
        ConfigError: if every worker failed.
        Interrupted: if ``stop`` returned true.
    """
    context = multiprocessing.get_context("spawn")
    workers: list[BaseProcess] = [
        context.Process(target=run_worker, args=(search,), daemon=True) for _ in range(search.study_config.jobs)
    ]
    reported = {t.number: (t.state.name, len(t.intermediate_values)) for t in store.trials if t.state.is_finished()}
    empty_device_cache()  # of the model that prepared the search
    for worker in workers:
        worker.start()
    try:
        while any(worker.is_alive() for worker in workers):
            time.sleep(POLL_SECONDS)
            _report_changes(store, reported, observe, bool(search.study_config.cv))
            if stop():
                raise Interrupted("stopped; finished trials are saved")
        _report_changes(store, reported, observe, bool(search.study_config.cv))
    finally:
        stopped = [worker for worker in workers if worker.is_alive()]
        for worker in stopped:
            worker.terminate()  # on Windows, this ends a worker before it can queue its trial again
        try:
            deadline = time.monotonic() + STOP_SECONDS
            for worker in stopped:
                worker.join(max(0.0, deadline - time.monotonic()))
        finally:  # also after another Ctrl-C
            for worker in stopped:
                if worker.is_alive():
                    worker.kill()
                    worker.join()
            _requeue_trials(store, stopped)
    exit_codes = [worker.exitcode for worker in workers if worker.exitcode]
    if len(exit_codes) == len(workers):
        errors = [t.user_attrs[ERROR] for t in store.trials if ERROR in t.user_attrs]
        raise ConfigError(
            f"all worker processes failed (exit code {exit_codes[0]}){f': {errors[-1]}' if errors else ''}",
            remedy="Set jobs to 1 to see the error; finished trials are saved.",
        )
    if exit_codes or any(t.state == TrialState.RUNNING for t in store.trials):  # finish the trials of killed workers
        run_trials(store, search, observe, stop)


def _requeue_trials(store: Store, stopped: Sequence[BaseProcess]) -> None:
    """Queue the trials of stopped workers again. They did not crash, so the kills do not count."""
    names = tuple(f"{socket.gethostname()}-{worker.pid}-" for worker in stopped)  # of `Store.worker`
    for trial in store.trials if stopped else ():
        if trial.state == TrialState.RUNNING and str(trial.user_attrs.get(WORKER)).startswith(names):
            store.requeue(trial.number, killed=False)


def _report_changes(store: Store, reported: dict[int, tuple[str, int]], observe: StudyListener, cv: bool) -> None:
    """Emit events for what changed since the last call; ``reported`` holds states and numbers of scores by trial."""
    for trial in store.trials:
        state, n_scores = reported.get(trial.number, ("", 0))
        if trial.state == TrialState.WAITING or not trial.params:
            continue
        if not state:
            observe(TrialStarted(trial.number, dict(trial.params)))
        curve = sorted(trial.intermediate_values.items())
        for step, value in curve[n_scores:]:
            observe(TrialScored(trial.number, step if cv else step / STEPS_PER_EPOCH, value))
        if trial.state.is_finished() and state != trial.state.name:
            seconds = float(trial.user_attrs.get("seconds", 0.0))
            ended, reason = STATES[trial.state], str(trial.user_attrs.get(ERROR, ""))
            if not is_done(trial):
                ended, reason = "cut short", "it was interrupted, and its settings are queued again"
            values = tuple(trial.values or ()) if trial.state == TrialState.COMPLETE else ()
            observe(TrialEnded(trial.number, ended, values, seconds, reason))
        reported[trial.number] = (trial.state.name, len(curve))


def has_ended(parent: BaseProcess | None) -> bool:
    """Return whether a parent process has ended. Windows keeps reporting the id of a parent that has ended."""
    return parent is not None and not parent.is_alive()


def run_worker(search: Search) -> None:
    """Run trials in a worker process, with a share of the cores, until enough are done or the parent has ended."""
    import torch

    stopped: list[bool] = []
    parent = multiprocessing.parent_process()

    def stop() -> bool:
        return bool(stopped) or has_ended(parent)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.append(True))
    use_cores(search.config.threads)
    use_cores(max(1, cores() // search.study_config.jobs))
    torch.set_num_threads(cores())
    try:
        with closing(open_store(search, lambda event: None, stop)) as store:
            run_trials(store, search, lambda event: None, stop)
    except Interrupted:
        pass
    except UserError:
        raise SystemExit(1) from None
