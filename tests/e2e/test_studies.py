"""Studies in separate processes: kills, several workers, and a database that they share."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import optuna
import pytest

import bertsmith as bs
from bertsmith.testing import tiny_table
from bertsmith.tuning import store
from tests.processes import Command

FLAGS = ["--device", "cpu", "--epochs", "2", "--learning-rate", "1e-2", "--precision", "fp32"]


def _commands(tiny, place):
    tiny_table(100).to_csv(place / "t.csv", index=False)
    start = ["tune", place / "t.csv", "--model", tiny, *FLAGS]

    def to(folder, trials, *flags):
        return [*start, "-o", place / folder, "--trials", trials, *flags]

    return to


@pytest.fixture
def command(tiny, tmp_path):
    return _commands(tiny, tmp_path)


@pytest.fixture
def here(cli, monkeypatch):
    """Runs a command to its end in this process, which has everything imported; returns its output."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(command):
        code, _, said = cli(*command)
        assert code == 0, said
        return said

    return run


def _kill_after_a_trial(command):
    """Kill a study with SIGKILL a moment after a trial has ended."""
    process = Command(*command)
    for line in process.stderr:
        if re.match(r"trial \d (complete|pruned)", line):
            time.sleep(0.3)  # into the next one
            break
    process.kill_group()
    process.finish()


def _what_counts(folder):
    """Return what a study found, without times and numbers, which a kill may change."""
    study = bs.Study(folder)
    trials = [(t["state"], t["values"], t["settings"], t["curve"]) for t in study.info["trials"]]
    return trials, study.result["score"], study.result["test"]


def test_a_study_killed_twice_equals_an_uninterrupted_study(command, here, tmp_path):
    here(command("whole", 3))
    kept = []
    for _ in range(2):
        _kill_after_a_trial(command("killed", 3))
        before, kept = kept, [t.values for t in _trials(tmp_path / "killed") if t.values]
        assert kept[: len(before)] == before
        assert len(kept) > len(before)
    said = here(command("killed", 3))
    assert f"{len(kept)} trials are done" in said.replace(" of 3", "")
    assert _what_counts(tmp_path / "killed") == _what_counts(tmp_path / "whole")


def _trials(folder):
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "journal.log"))
    storage = optuna.storages.JournalStorage(backend)
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage).trials


@dataclass
class Shared:
    """A study of two workers: ended by Ctrl-C, then begun again, when one worker was killed.

    Attributes:
        ended, messages: exit code and messages of the first command.
        kept: the values of the trials that it left.
        ended_again, messages_again: of the second command.
        study: the study at the end.
    """

    ended: int
    messages: str
    kept: list[list[float]]
    ended_again: int
    messages_again: str
    study: bs.Study


def _fork_workers():
    """Start workers within a moment, without the imports of spawned ones."""
    get_context = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: get_context("fork" if method == "spawn" else method)


@pytest.fixture(scope="module")
def shared_study(tiny, tmp_path_factory):
    place = tmp_path_factory.mktemp("shared")
    command = _commands(tiny, place)("s", 6, "--jobs", 2)

    def until_a_trial_ends(before=None):
        process = Command(*command, before=before)
        for line in process.stderr:
            if re.match(r"trial \d (complete|pruned)", line):
                break
        return process

    first = until_a_trial_ends()
    first.send_signal(signal.SIGINT)
    messages = first.finish()
    kept = [t.values for t in _trials(place / "s") if t.state.is_finished() and t.values]
    second = until_a_trial_ends(_fork_workers)
    children = subprocess.run(["pgrep", "-P", str(second.pid), "-f", "forkserver"], capture_output=True, text=True)
    os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
    messages_again = second.finish()
    return Shared(first.returncode, messages, kept, second.returncode, messages_again, bs.Study(place / "s"))


def test_two_workers_share_a_study_and_ctrl_c_keeps_it(shared_study):
    assert shared_study.ended == 130, shared_study.messages
    assert "the same command" in shared_study.messages
    assert shared_study.kept
    found = shared_study.study.info["trials"]
    assert len({json.dumps(t["settings"]) for t in found}) == len(found) == 6
    assert all(values in [t["values"] for t in found] for values in shared_study.kept)
    assert shared_study.study.result is not None


def test_other_workers_repeat_the_trial_of_a_killed_worker(shared_study):
    assert shared_study.ended_again == 0, shared_study.messages_again
    assert len(shared_study.study.trials) == 6
    assert set(shared_study.study.trials["state"]) <= {"complete", "pruned"}


@pytest.fixture
def postgres(tmp_path):
    """A separate server on a free port of this machine; the URL of its database."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(p) for p in [shutil.which("initdb")] if p]
    if not found:
        pytest.skip("PostgreSQL is not installed")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs = found[-1].parent
    as_user = []
    folder = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    if os.getuid() == 0:  # which the server refuses to run as
        as_user = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
        shutil.chown(folder, "postgres", "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = folder / "data"

    def server(*arguments):
        subprocess.run([*as_user, *map(str, arguments)], check=True, capture_output=True, cwd="/")

    server(programs / "initdb", "-D", data, "-U", "me", "-A", "trust")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    start = (programs / "pg_ctl", "-D", data, "-w", "-o", options, "-l", folder / "log", "start")
    stop = (programs / "pg_ctl", "-D", data, "-w", "-m", "fast", "stop")
    server(*start)
    try:
        server(programs / "createdb", "-h", "127.0.0.1", "-p", port, "-U", "me", "studies")
        yield f"postgresql+psycopg://me@127.0.0.1:{port}/studies", lambda: server(*stop), lambda: server(*start)
    finally:
        subprocess.run([*as_user, *map(str, stop)], capture_output=True, cwd="/", check=False)
        shutil.rmtree(folder)


def _quick_heartbeat():
    """Shorten the heartbeats: a worker without a heartbeat for four seconds counts as dead."""
    store.HEARTBEAT, store.GRACE = 1, 4


def test_three_workers_on_a_real_database_lose_nothing_when_one_is_killed_and_it_restarts(postgres, command, tmp_path):
    url, stop, start = postgres
    workers = [Command(*command(f"machine{i}", 6, "--storage", url), before=_quick_heartbeat) for i in range(3)]
    for line in workers[0].stderr:
        if re.match(r"trial \d (complete|pruned)", line):
            break
    time.sleep(0.2)  # into the next one
    workers[0].kill_group()
    workers[0].finish()
    for worker in workers[1:]:  # have found the database
        messages = []
        assert any("split: " in line for line in worker.stderr if not messages.append(line)), messages
    stop()
    time.sleep(2)
    start()
    messages = [worker.finish() for worker in workers[1:]]
    assert [worker.returncode for worker in workers[1:]] == [0, 0], "\n\n".join(messages)
    storage = optuna.storages.RDBStorage(url)
    (name,) = optuna.get_all_study_names(storage)
    trials = optuna.load_study(study_name=name, storage=storage).trials
    storage.engine.dispose()
    states = [t.state.name for t in trials]
    # Machines do not share a lock, so each may start one trial too many.
    assert 6 <= states.count("COMPLETE") + states.count("PRUNED") <= 8, states
    assert "RUNNING" not in states  # a trial of the killed worker may still wait, if an extra trial replaced it
    results = [bs.Study(tmp_path / f"machine{i}").result for i in (1, 2)]
    assert results[0]["score"] == results[1]["score"]
    best = max(t.value for t in trials if t.state.name == "COMPLETE")
    assert results[0]["score"] == best
