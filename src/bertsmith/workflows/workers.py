"""Those who do the trials: this process, or several of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from bertsmith.compute.machine import cores, use_cores
from bertsmith.config import PRIMARY, Config
from bertsmith.errors import ConfigError, Interrupted, UserError
from bertsmith.events import StorageUnavailable, StudyListener, TrialEnded, TrialScored, TrialStarted
from bertsmith.folders import atomic
from bertsmith.folders.study import Study
from bertsmith.tuning.plan import OBJECTIVES, Plan
from bertsmith.tuning.space import Space, with_values
from bertsmith.tuning.store import ERROR, Store, TakenOverError, experimental, is_done
from bertsmith.workflows.trials import TrialData, run_trial, scored_within_epochs

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
PARTS = 12
"""Points of an epoch that pruning tells apart: trials are scored after halves, thirds or quarters."""
ALL_FAILED = 3
"""Trials that may fail, with none that did not, before the search is given up."""
POLL = 0.5
"""Seconds between looks at what other workers do."""


@dataclass(frozen=True)
class Search:
    """What a worker needs; it can be pickled.

    Attributes:
        bench: the texts.
        config: the user's settings.
        plan: how to search.
        space: what is varied.
        batch_size: texts a step, where neither the user nor the space says.
        name: of the study in its storage.
        folder: of the study.
        until: time (seconds since the epoch) after which no trial goes on; ``None``: there is none.
    """

    bench: TrialData
    config: Config
    plan: Plan
    space: Space
    batch_size: int
    name: str
    folder: Path
    until: float | None


def deadline(plan: Plan) -> float | None:
    """Return when the search is over, in seconds since the epoch, where that is a matter of time."""
    return time.time() + 60 * plan.minutes if plan.minutes else None


def open_store(search: Search, observe: StudyListener) -> Store:
    """Open the study in its storage."""
    plan = search.plan
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if len(plan.objectives) == 1 and plan.cv:
        with experimental():
            pruner = optuna.pruners.WilcoxonPruner(p_threshold=0.1)
    elif len(plan.objectives) == 1:  # compared with the others at the same epoch, not before half of one
        pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=PARTS // 2, n_min_trials=3)
    return Store(
        search.folder,
        search.name,
        url=plan.storage,
        directions=[OBJECTIVES[name] for name in plan.objectives],
        pruner=pruner,
        seed=search.config.seed,
        on_away=lambda why: observe(StorageUnavailable(why)),
    )


def work(store: Store, search: Search, observe: StudyListener, stop: Callable[[], bool]) -> None:
    """Do trials until there are enough, and none is left running elsewhere."""
    while not _is_late(search):
        if stop():
            raise Interrupted("stopped; finished trials are kept")
        trial = store.claim(search.space, search.plan.trials)
        if trial is not None:
            _attempt(store, trial, search, observe, stop)
        elif any(t.state == TrialState.RUNNING for t in store.trials):
            time.sleep(POLL)
        else:
            return


def _is_late(search: Search) -> bool:
    return search.until is not None and time.time() > search.until


def _attempt(
    store: Store, trial: optuna.Trial, search: Search, observe: StudyListener, stop: Callable[[], bool]
) -> None:
    """Do a trial, and tell how it ended."""
    began = time.perf_counter()
    observe(TrialStarted(trial.number, dict(trial.params)))
    try:
        state, values, why = _do(store, trial, search, observe, stop)
    except TakenOverError:
        state, values, why = "failed", (), "this worker did not answer, so others do it again"
    observe(TrialEnded(trial.number, state, values, time.perf_counter() - began, why))


def _do(
    store: Store, trial: optuna.Trial, search: Search, observe: StudyListener, stop: Callable[[], bool]
) -> tuple[str, tuple[float, ...], str]:
    """Do a trial; return its state, its values and why it failed."""
    began, plan = time.perf_counter(), search.plan

    def heard(at: float, score: float) -> None:
        observe(TrialScored(trial.number, at, score))
        if len(plan.objectives) == 1:
            store.report(trial, score, round(at if plan.cv else at * PARTS))
            if store.patiently(trial.should_prune):
                raise optuna.TrialPruned

    def should_stop() -> bool:
        return stop() or _is_late(search)

    config, latency = config_of(search, trial.params), "latency" in plan.objectives
    try:
        with store.beating(trial):
            outcome = run_trial(search.bench, config, heard=heard, stop=should_stop, latency=latency)
    except optuna.TrialPruned:
        store.note(trial, seconds=time.perf_counter() - began)
        store.tell(trial, TrialState.PRUNED)
        return "pruned", (), ""
    except UserError as error:
        store.fail(trial.number, error.what)
        over = [t for t in store.trials if is_done(t)]
        if len(over) >= ALL_FAILED and all(t.state == TrialState.FAIL for t in over):
            raise
        return "failed", (), error.what
    except BaseException as error:
        store.give_back(trial.number, killed=False)
        if isinstance(error, Interrupted) and not stop():
            return "cut short", (), "the time was up; the same command begins it again"
        raise
    values = tuple(outcome.score if name == PRIMARY else float(outcome.latency or 0) for name in plan.objectives)
    with store.lock:
        if outcome.loaded is not None and outcome.score > max((score_of(t, plan) for t in store.trials), default=-1.0):
            with atomic.replaced_folder(Study(search.folder).best_trial) as folder:
                outcome.loaded.save(folder)
        store.note(trial, seconds=time.perf_counter() - began, curve=outcome.curve)
        store.tell(trial, TrialState.COMPLETE, values)
    return "complete", values, ""


def config_of(search: Search, values: Mapping[str, Any]) -> Config:
    """Return the settings of a trial, which is scored within epochs where that takes little time."""
    config = with_values(search.config, values)
    if search.plan.cv:
        return config
    return scored_within_epochs(config, search.bench, config.batch_size or search.batch_size)


def rank(trial: FrozenTrial, plan: Plan) -> tuple[float, float, int]:
    """Return what the best of complete trials is the largest by: its score, then its speed, then its age."""
    latency = dict(zip(plan.objectives, trial.values, strict=True)).get("latency", 0.0)
    return score_of(trial, plan), -latency, -trial.number


def score_of(trial: FrozenTrial, plan: Plan) -> float:
    """Return the primary score of a trial that is complete; of others less than any."""
    return float(trial.values[plan.objectives.index(PRIMARY)]) if trial.state == TrialState.COMPLETE else -1.0


# -- several workers ---------------------------------------------------------------------------------------------------


def watch(store: Store, search: Search, observe: StudyListener, stop: Callable[[], bool]) -> None:
    """Have worker processes do the trials, and tell what they do."""
    context = multiprocessing.get_context("spawn")
    workers: list[BaseProcess] = [
        context.Process(target=run_worker, args=(search, os.getpid()), daemon=True) for _ in range(search.plan.jobs)
    ]
    told: dict[int, tuple[str, int]] = {}
    for trial in store.trials:
        if is_done(trial):
            told[trial.number] = (trial.state.name, len(trial.intermediate_values))
    for worker in workers:
        worker.start()
    try:
        while any(worker.is_alive() for worker in workers):
            time.sleep(POLL)
            _tell(store, told, observe, bool(search.plan.cv))
            if stop():
                raise Interrupted("stopped; finished trials are kept")
        _tell(store, told, observe, bool(search.plan.cv))
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()
    failed = [worker.exitcode for worker in workers if worker.exitcode]
    if len(failed) == len(workers):
        over = [t.user_attrs[ERROR] for t in store.trials if ERROR in t.user_attrs]
        raise ConfigError(
            f"every worker ended early (exit code {failed[0]}){f': {over[-1]}' if over else ''}",
            remedy="Run the same command with --jobs 1 to see why; finished trials are kept.",
        )
    if any(t.state == TrialState.RUNNING for t in store.trials) or failed:  # a worker was killed: what it left is done
        work(store, search, observe, stop)


def _tell(store: Store, told: dict[int, tuple[str, int]], observe: StudyListener, cv: bool) -> None:
    for trial in store.trials:
        state, seen = told.get(trial.number, ("", 0))
        if trial.state == TrialState.WAITING or not trial.params:
            continue
        if not state:
            observe(TrialStarted(trial.number, dict(trial.params)))
        curve = sorted(trial.intermediate_values.items())
        for step, value in curve[seen:]:
            observe(TrialScored(trial.number, step if cv else step / PARTS, value))
        if trial.state.is_finished() and state != trial.state.name and is_done(trial):
            seconds = float(trial.user_attrs.get("seconds", 0.0))
            why = str(trial.user_attrs.get(ERROR, ""))
            values = tuple(trial.values or ()) if trial.state == TrialState.COMPLETE else ()
            observe(TrialEnded(trial.number, STATES[trial.state], values, seconds, why))
        told[trial.number] = (trial.state.name, len(curve))


def run_worker(search: Search, parent: int) -> None:
    """Be a worker process: do trials, with a share of the cores, until there are enough or the parent is gone."""
    import torch

    wish = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: wish.append(True))
    use_cores(search.config.threads)
    use_cores(max(1, cores() // search.plan.jobs))
    torch.set_num_threads(cores())
    store = open_store(search, lambda event: None)
    try:
        work(store, search, lambda event: None, lambda: bool(wish) or os.getppid() != parent)
    except Interrupted:
        pass
    except UserError:
        raise SystemExit(1) from None
    finally:
        store.close()
