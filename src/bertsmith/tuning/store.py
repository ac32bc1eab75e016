"""The storage of a study: which worker runs which trial, and what happens to the trials of killed workers."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from bertsmith.errors import ConfigError, Interrupted, OutputError
from bertsmith.folders.study import CLAIM_LOCK
from bertsmith.tuning.space import Space, suggest

if TYPE_CHECKING:
    from optuna.pruners import BasePruner

JOURNAL = "journal.log"
ERROR, WORKER, RETRY = "error", "worker", "retry"
"""User attributes of a trial: why it failed, its worker, how many earlier workers crashed or were killed during it."""
MAX_RETRIES = 2
HEARTBEAT, GRACE = 30, 120
"""Seconds between heartbeats of a worker on a database, and seconds without one after which the worker is dead."""
RETRY_SECONDS = 600.0
"""How long to retry while the storage is unavailable."""
STARTUP_TRIALS = 10
"""Random trials before the sampler fits its model."""


class TakenOverError(Exception):
    """Another worker considered this one dead and repeats its trial."""


class Store:
    """A study in a journal file of its folder, or in a database that several machines share.

    Attributes:
        study: the Optuna study.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        url: str | None,
        directions: list[Any],
        pruner: BasePruner,
        seed: int,
        on_unavailable: Callable[[str], None] = lambda reason: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.folder, self.url, self.seed, self.on_unavailable, self.stop = folder, url, seed, on_unavailable, stop
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.is_unavailable = False  # since a call of `retry` gave up
        self.lock = FileLock(folder / CLAIM_LOCK)
        self.alive_lock = FileLock(self._alive_file(self.worker))  # the system releases it when the process dies
        with self.lock:
            self._alive_file(self.worker).parent.mkdir(exist_ok=True)
            self.alive_lock.acquire()
            self.storage: BaseStorage = _open_database(url) if url else self._open_journal()
            self.study = self.retry(
                lambda: optuna.create_study(
                    storage=self.storage, study_name=name, directions=directions, pruner=pruner, load_if_exists=True
                )
            )

    def close(self) -> None:
        """Release the lock that marks this worker as alive."""
        self.alive_lock.release()
        self._remove_alive_file(self.worker)

    def _alive_file(self, worker: str) -> Path:
        return self.folder / ".workers" / f"{worker}.lock"

    def _remove_alive_file(self, worker: str) -> None:
        with contextlib.suppress(OSError):  # Windows removes no file that is open, here or in another worker
            self._alive_file(worker).unlink()

    def retry(self, action: Callable[[], Any], *, ends_trial: bool = False) -> Any:
        """Call a function that uses the storage; retry while the storage is unavailable.

        With ``ends_trial``, a retry may find the trial ended: the storage became unavailable before it answered.

        Raises:
            OutputError: after `RETRY_SECONDS`; at once if an earlier call gave up, and none succeeded since.
            Interrupted: if ``stop`` returned true meanwhile.
            TakenOverError: if the function changes a trial that another worker ended.
        """
        start, pause, is_retry = time.monotonic(), 0.5, False
        while True:
            try:
                result = action()
                self.is_unavailable = False
                return result
            except optuna.exceptions.UpdateFinishedTrialError as error:
                if ends_trial and is_retry:
                    return None
                raise TakenOverError from error
            except _unavailable_errors() as error:
                reason, where = _root_cause(error), redact(self.url) if self.url else str(self.folder / JOURNAL)
                if self.is_unavailable or time.monotonic() - start > RETRY_SECONDS:
                    self.is_unavailable = True
                    raise OutputError(
                        f"the storage of the study is unavailable: {reason}",
                        where=where,
                        remedy="Make the storage available and run the same command again; finished trials are saved.",
                    ) from error
                if self.stop():
                    raise Interrupted("stopped; finished trials are saved") from error
                self.on_unavailable(f"{where}: {reason}")
            time.sleep(pause)
            pause, is_retry = min(2 * pause, 15.0), True

    @property
    def n_other_studies(self) -> int:
        """Number of other studies in the same storage."""
        return len(self.retry(lambda: optuna.get_all_study_names(self.storage))) - 1

    # -- trials ------------------------------------------------------------------------------------------------------

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials."""
        trials: list[FrozenTrial] = self.retry(lambda: self.study.get_trials(deepcopy=False))
        return trials

    def suggest_first(self, values: Mapping[str, Any]) -> None:
        """Enqueue these settings if the study has no trial yet."""
        with self.lock:
            if not self.trials:
                self.retry(lambda: self.study.enqueue_trial(dict(values)))

    def claim(self, space: Space, n_trials: int | None) -> optuna.Trial | None:
        """Start a trial and choose its settings; return ``None`` if ``n_trials`` trials are done or running.

        The lock of the folder prevents two workers on a machine from starting the same trial, or one too many.
        """
        with self.lock:
            self._requeue_abandoned()
            active = sum(is_done(t) or t.state == TrialState.RUNNING for t in self.trials)
            if n_trials is not None and active >= n_trials:
                return None
            self.study.sampler = self._sampler()
            with ignore_optuna_warnings():
                trial: optuna.Trial = self.retry(self.study.ask)
            try:
                if isinstance(self.storage, RDBStorage):
                    self.retry(partial(self.storage.record_heartbeat, trial._trial_id))
                self.set_attributes(trial, **{WORKER: self.worker})
                self.retry(lambda: suggest(trial, space))
            except TakenOverError:  # the storage was unavailable for so long that others repeat this trial
                return self.claim(space, n_trials)
            return trial

    def _sampler(self) -> optuna.samplers.BaseSampler:
        """Return a sampler seeded by the seed and the number of trials, so that a resumed study continues unchanged."""
        n_requeued = sum(t.state == TrialState.FAIL and ERROR not in t.user_attrs for t in self.trials)
        entropy = [self.seed, len(self.trials) - n_requeued]
        if self.url:  # machines do not share a lock and may ask at the same time
            entropy.append(uuid.uuid4().int % 2**32)
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        with ignore_optuna_warnings():
            return optuna.samplers.TPESampler(multivariate=True, n_startup_trials=STARTUP_TRIALS, seed=seed)

    def _requeue_abandoned(self) -> None:
        """Requeue the trials of dead workers."""
        stale: list[int] = []  # without those whose worker died before its first heartbeat
        if isinstance(self.storage, RDBStorage):
            stale = self.retry(partial(self.storage._get_stale_trial_ids, self.study._study_id))
        for trial in self.trials:
            if trial.state != TrialState.RUNNING:
                continue
            if self.url:
                age = (datetime.now() - (trial.datetime_start or datetime.min)).total_seconds()
                abandoned = trial._trial_id in stale or (WORKER not in trial.user_attrs and age > GRACE)
            else:
                abandoned = not self._is_alive(trial.user_attrs.get(WORKER))
            if abandoned:
                self.requeue(trial.number, killed=True)

    def _open_journal(self) -> BaseStorage:
        path = self.folder / JOURNAL
        others = {file.stem for file in self._alive_file(self.worker).parent.glob("*.lock")} - {self.worker}
        if path.is_file() and not any(self._is_alive(other) for other in others):
            content = path.read_bytes()
            if content and not content.endswith(b"\n"):  # the last write is incomplete: the disk was full, or a kill
                os.truncate(path, content.rfind(b"\n") + 1)
        # The default lock is a symbolic link, which Windows and some disks do not allow.
        return JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))

    def _is_alive(self, worker: str | None) -> bool:
        if worker is None:  # killed before it could write its name
            return False
        if worker == self.worker:
            return True
        try:
            with FileLock(self._alive_file(worker), timeout=0):
                self._remove_alive_file(worker)
            return False
        except Timeout:
            return True

    def requeue(self, number: int, *, killed: bool) -> None:
        """End an unfinished trial and enqueue its settings again; after `MAX_RETRIES` kills it fails instead.

        Args:
            number: of the trial.
            killed: whether its worker crashed or was killed, perhaps because of the trial.
        """
        trial = self.trials[number]
        retry = trial.user_attrs.get(RETRY, 0) + killed
        with contextlib.suppress(TakenOverError):  # another worker ended it, and enqueued its settings
            if retry > MAX_RETRIES:
                self.fail(number, f"its worker crashed or was killed {retry} times")
                return
            self.retry(partial(self.storage.set_trial_state_values, trial._trial_id, TrialState.FAIL), ends_trial=True)
            self.retry(lambda: self.study.enqueue_trial(trial.params, user_attrs={RETRY: retry}))

    def fail(self, number: int, reason: str) -> None:
        """End a trial as failed; raises `TakenOverError` if another worker ended it."""
        trial = self.trials[number]
        if trial.state.is_finished():
            raise TakenOverError
        self.retry(lambda: self.storage.set_trial_user_attr(trial._trial_id, ERROR, reason))
        self._end(number, TrialState.FAIL)

    def set_attributes(self, trial: optuna.Trial, **attributes: Any) -> None:
        """Set user attributes of a running trial; raises `TakenOverError` as `fail` does."""
        for name, value in attributes.items():
            self.retry(partial(trial.set_user_attr, name, value))

    def report(self, trial: optuna.Trial, score: float, step: int) -> None:
        """Report a score of a running trial; raises `TakenOverError` as `fail` does."""
        self.retry(lambda: trial.report(score, step))

    def tell(self, trial: optuna.Trial, state: TrialState, values: Sequence[float] | None = None) -> None:
        """End a trial; raises `TakenOverError` as `fail` does."""
        self._end(trial.number, state, values)
        if self.trials[trial.number].state != state:  # another worker marked it as failed
            raise TakenOverError

    def _end(self, number: int, state: TrialState, values: Sequence[float] | None = None) -> None:
        """End a trial; raises `TakenOverError` as `fail` does."""
        self.retry(partial(self.study.tell, number, values, state, skip_if_finished=True), ends_trial=True)

    @contextlib.contextmanager
    def heartbeats(self, trial: optuna.Trial) -> Iterator[None]:
        """Send heartbeats for a trial in a database while the context is open; `claim` sends the first one."""
        if not isinstance(self.storage, RDBStorage):
            yield
            return
        storage, stopped = self.storage, threading.Event()

        def send() -> None:
            while not stopped.wait(HEARTBEAT):
                with contextlib.suppress(*_unavailable_errors()):
                    storage.record_heartbeat(trial._trial_id)

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()


@contextlib.contextmanager
def ignore_optuna_warnings() -> Iterator[None]:
    """Ignore warnings about experimental features, since Optuna's version is pinned, and about heartbeats."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage")
        yield


def is_done(trial: FrozenTrial) -> bool:
    """Return whether a trial counts towards the number of trials: it is complete, pruned or failed by an error."""
    ended = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    return ended or (trial.state == TrialState.FAIL and ERROR in trial.user_attrs)


def redact(url: str) -> str:
    """Return the URL of a database without its password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return str(make_url(url).render_as_string(hide_password=True))
    except ArgumentError:
        return "the given URL"


def _open_database(url: str, tries: int = 5) -> BaseStorage:
    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

    try:
        with ignore_optuna_warnings():
            return RDBStorage(url, heartbeat_interval=HEARTBEAT, grace_period=GRACE)
    except ImportError as error:
        raise ConfigError(
            f"storage: the database driver {error.name or _root_cause(error)} is not installed",
            where=redact(url),
            remedy="Install it. For PostgreSQL, for example: pip install 'psycopg[binary]', with a URL that begins "
            "with postgresql+psycopg://",
        ) from error
    except Exception as error:
        # Workers that start together create the tables together: all but one fail and succeed when they retry.
        is_race = isinstance(error, IntegrityError | ProgrammingError) or (
            isinstance(error, OperationalError) and "already exists" in str(error)
        )
        if not is_race or tries == 1:
            raise ConfigError(
                f"storage: the database cannot be used: {_root_cause(error)}",
                where=redact(url),
                remedy="Start the server, or correct the URL, such as postgresql+psycopg://user@host/database or "
                "sqlite:////folder/study.db.",
            ) from error
    time.sleep(1)
    return _open_database(url, tries - 1)


def _root_cause(error: BaseException) -> str:
    """Return the first line of the error at the end of the chain of causes."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _unavailable_errors() -> tuple[type[Exception], ...]:
    from sqlalchemy.exc import DBAPIError

    return (OSError, optuna.exceptions.StorageInternalError, DBAPIError)
