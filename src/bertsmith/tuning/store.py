"""The study in its storage: who takes which trial, what becomes of the trials of a worker that was killed."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from bertsmith.errors import ConfigError, OutputError
from bertsmith.tuning.space import Space, suggest

if TYPE_CHECKING:
    from optuna.pruners import BasePruner

JOURNAL = "journal.log"
ERROR, WORKER, RETRY = "error", "worker", "retry"
"""User attributes of a trial: why it failed, who works on it, how often its settings were begun before."""
MOST_RETRIES = 2
HEARTBEAT, GRACE = 30, 120
"""Seconds between the signs of life of a worker on a database, and without one after which it is taken for dead."""
AWAY_SECONDS = 600.0
"""How long a storage that does not answer is waited for."""
BY_CHANCE = 10
"""Trials before the sampler models what it has seen."""


class TakenOverError(Exception):
    """The other workers took this one for dead, and do its trial again."""


class Store:
    """A study in a journal file of its folder, or in a database that several machines share.

    Attributes:
        study: of Optuna.
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
        on_away: Callable[[str], None] = lambda why: None,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.folder, self.url, self.seed, self.on_away = folder, url, seed, on_away
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.lock = FileLock(folder / ".claim.lock")
        self.alive = FileLock(self._sign_of(self.worker))
        self._sign_of(self.worker).parent.mkdir(exist_ok=True)
        self.alive.acquire()
        with self.lock:
            self.storage: BaseStorage = _database(url) if url else self._journal()
            self.study = self.patiently(
                lambda: optuna.create_study(
                    storage=self.storage, study_name=name, directions=directions, pruner=pruner, load_if_exists=True
                )
            )

    def close(self) -> None:
        """Give up the sign of life."""
        self.alive.release()
        self._sign_of(self.worker).unlink(missing_ok=True)

    def _sign_of(self, worker: str) -> Path:
        return self.folder / ".workers" / f"{worker}.lock"

    def patiently(self, action: Callable[[], Any]) -> Any:
        """Do something with the storage, again and again as long as it does not answer.

        Raises:
            OutputError: after `AWAY_SECONDS`.
        """
        began, pause = time.monotonic(), 0.5
        while True:
            try:
                return action()
            except _away() as error:
                why, where = _cause(error), shown(self.url) if self.url else str(self.folder / JOURNAL)
                if time.monotonic() - began > AWAY_SECONDS:
                    raise OutputError(
                        f"the storage of the study does not answer: {why}",
                        where=where,
                        remedy="See that it is there, then run the same command again: finished trials are kept.",
                    ) from error
                self.on_away(f"{where}: {why}")
            time.sleep(pause)
            pause = min(2 * pause, 15.0)

    @property
    def others(self) -> int:
        """Other studies in the same storage."""
        names: list[str] = self.patiently(lambda: optuna.get_all_study_names(self.storage))
        return len(names) - 1

    # -- trials ------------------------------------------------------------------------------------------------------

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials."""
        found: list[FrozenTrial] = self.patiently(lambda: self.study.get_trials(deepcopy=False))
        return found

    def suggest_first(self, values: Mapping[str, Any]) -> None:
        """Have these settings tried first, if nothing was tried yet."""
        with self.lock:
            if not self.trials:
                self.patiently(lambda: self.study.enqueue_trial(dict(values)))

    def claim(self, space: Space, wanted: int | None) -> optuna.Trial | None:
        """Begin a trial, its settings chosen; none where those that are done and running are as many as wanted.

        One at a time in a folder, so that two workers on a machine neither begin one too many nor the same one.
        """
        with self.lock:
            self._revive()
            if wanted is not None and sum(is_done(t) or t.state == TrialState.RUNNING for t in self.trials) >= wanted:
                return None
            self.study.sampler = self._sampler()
            with experimental():
                trial: optuna.Trial = self.patiently(self.study.ask)
            try:
                if isinstance(self.storage, RDBStorage):
                    self.patiently(partial(self.storage.record_heartbeat, trial._trial_id))
                self.note(trial, **{WORKER: self.worker})
                with _ours():
                    self.patiently(lambda: suggest(trial, space))
            except TakenOverError:  # the storage was away for long in the midst of it
                return self.claim(space, wanted)
            return trial

    def _sampler(self) -> optuna.samplers.BaseSampler:
        """Return a sampler that depends on the seed and on the trials there are: what is resumed goes on the same."""
        given_back = sum(t.state == TrialState.FAIL and ERROR not in t.user_attrs for t in self.trials)
        parts = [self.seed, len(self.trials) - given_back]
        if self.url:  # where machines that do not know of one another may ask at the same time
            parts.append(uuid.uuid4().int % 2**32)
        seed = int(np.random.SeedSequence(parts).generate_state(1)[0])
        with experimental():
            return optuna.samplers.TPESampler(multivariate=True, n_startup_trials=BY_CHANCE, seed=seed)

    def _revive(self) -> None:
        """Have the settings of trials whose worker is gone tried again."""
        if self.url:
            with experimental():
                self.patiently(lambda: optuna.storages.fail_stale_trials(self.study))
            for trial in self.trials:  # begun by a worker that was gone before its first sign of life
                began = trial.datetime_start or datetime.min
                nobodys = trial.state == TrialState.RUNNING and WORKER not in trial.user_attrs
                if nobodys and (datetime.now() - began).total_seconds() > GRACE:
                    self.give_back(trial.number, killed=True)
            return
        for trial in self.trials:
            if trial.state == TrialState.RUNNING and not self._is_alive(trial.user_attrs.get(WORKER)):
                self.give_back(trial.number, killed=True)

    def _journal(self) -> BaseStorage:
        path = self.folder / JOURNAL
        others = {sign.stem for sign in self._sign_of(self.worker).parent.glob("*.lock")} - {self.worker}
        if path.is_file() and not any(self._is_alive(other) for other in others):
            content = path.read_bytes()
            if content and not content.endswith(b"\n"):  # a write that a full disk or a kill cut short
                os.truncate(path, content.rfind(b"\n") + 1)
        return JournalStorage(JournalFileBackend(str(path)))

    def _is_alive(self, worker: str | None) -> bool:
        if worker is None:  # killed while it took the trial
            return False
        if worker == self.worker:
            return True
        sign = FileLock(self._sign_of(worker), timeout=0)
        try:
            with sign:
                self._sign_of(worker).unlink(missing_ok=True)
            return False
        except Timeout:
            return True

    def give_back(self, number: int, *, killed: bool) -> None:
        """End a trial that was not finished, and have its settings tried again; if killed, a few times at most."""
        trial = self.trials[number]
        if trial.state.is_finished():  # others took it for dead
            return
        retry = trial.user_attrs.get(RETRY, 0) + killed
        if retry > MOST_RETRIES:
            self.fail(number, f"its worker was killed, {retry} times")
            return
        self.patiently(lambda: self.study.enqueue_trial(trial.params, user_attrs={RETRY: retry}))
        self._end(number, TrialState.FAIL)

    def fail(self, number: int, why: str) -> None:
        """End a trial that went wrong; it counts as one of those wanted. Raises `TakenOverError` as `tell` does."""
        trial = self.trials[number]
        if trial.state.is_finished():
            raise TakenOverError
        with _ours():
            self.patiently(lambda: self.storage.set_trial_user_attr(trial._trial_id, ERROR, why))
        self._end(number, TrialState.FAIL)

    def note(self, trial: optuna.Trial, **attributes: Any) -> None:
        """Set user attributes of a trial; raises `TakenOverError` as `tell` does."""
        with _ours():
            for name, value in attributes.items():
                self.patiently(partial(trial.set_user_attr, name, value))

    def report(self, trial: optuna.Trial, score: float, step: int) -> None:
        """Note a score of a trial that runs.

        Raises:
            TakenOverError: if others took its worker for dead and ended it.
        """
        with _ours():
            self.patiently(lambda: trial.report(score, step))

    def tell(self, trial: optuna.Trial, state: TrialState, values: Sequence[float] | None = None) -> None:
        """End a trial.

        Raises:
            TakenOverError: if others took its worker for dead and ended it.
        """
        self._end(trial.number, state, values)
        if self.trials[trial.number].state != state:  # to the others it failed
            raise TakenOverError

    def _end(self, number: int, state: TrialState, values: Sequence[float] | None = None) -> None:
        """End a trial that may have ended: a storage that goes away may have heard before, and not have answered."""

        def attempt() -> None:
            with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):
                self.study.tell(number, values, state, skip_if_finished=True)

        self.patiently(attempt)

    @contextmanager
    def beating(self, trial: optuna.Trial) -> Iterator[None]:
        """Give signs of life for a trial on a database, as long as this context lasts."""
        if not isinstance(self.storage, RDBStorage):
            yield
            return
        storage, over = self.storage, threading.Event()

        def beat() -> None:
            while True:
                with contextlib.suppress(*_away()):
                    storage.record_heartbeat(trial._trial_id)
                if over.wait(HEARTBEAT):
                    return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


@contextmanager
def _ours() -> Iterator[None]:
    try:
        yield
    except optuna.exceptions.UpdateFinishedTrialError as error:
        raise TakenOverError from error


@contextmanager
def experimental() -> Iterator[None]:
    """Use what Optuna warns of: what it may still change (its version is pinned), and signs of life by our own loop."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage")
        yield


def is_done(trial: FrozenTrial) -> bool:
    """Return whether a trial is one of those wanted, whatever came of it."""
    over = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    return over or (trial.state == TrialState.FAIL and ERROR in trial.user_attrs)


def shown(url: str) -> str:
    """Return the address of a database without its password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return str(make_url(url).render_as_string(hide_password=True))
    except ArgumentError:
        return "the address given"


def _database(url: str, tries: int = 5) -> BaseStorage:
    from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

    try:
        with experimental():
            return RDBStorage(
                url,
                heartbeat_interval=HEARTBEAT,
                grace_period=GRACE,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=MOST_RETRIES),
            )
    except ImportError as error:
        raise ConfigError(
            f"--storage {shown(url)}: the driver for it is not installed: {error.name or _cause(error)}",
            remedy="Install it, for PostgreSQL for instance: pip install 'psycopg[binary]', and postgresql+psycopg://…",
        ) from error
    except Exception as error:
        # Workers that start together make the tables together: all but one are refused, and find them there then.
        refused = isinstance(error, IntegrityError | ProgrammingError) or (
            isinstance(error, OperationalError) and "already exists" in str(error)
        )
        if not refused or tries == 1:
            why = _cause(error)
            raise ConfigError(
                f"--storage: the database cannot be used: {why}",
                where=shown(url),
                remedy="Give a URL such as postgresql+psycopg://user@host/database or sqlite:////folder/study.db, and "
                "see that the server is there.",
            ) from error
    time.sleep(1)
    return _database(url, tries - 1)


def _cause(error: BaseException) -> str:
    """Return the first line of what an error goes back to."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _away() -> tuple[type[Exception], ...]:
    """Return what a storage that does not answer is told by."""
    from sqlalchemy.exc import DBAPIError

    return (OSError, optuna.exceptions.StorageInternalError, DBAPIError)
