"""Signals in every state of a server: SIGTERM and SIGINT end it with 0, SIGHUP reloads; no process survives it."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is not installed")

PATIENCE = 60.0
"""Seconds to wait for a state."""


def groups():
    """Yield the id of every running process and of its group."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process ended meanwhile
            state, _, group, *_ = file.read_text().rpartition(") ")[2].split()
            if state != "Z":
                yield int(file.parent.name), int(group)


class Server:
    """A server that `stand_in_server` starts in a new folder."""

    def __init__(self, starter, folder, *flags):
        self.folder = folder
        folder.mkdir()
        self.hold()
        os.write(starter.stdin.fileno(), f"{json.dumps([str(folder), flags])}\n".encode())

    def hold(self):
        """Make the loads that start from now on wait."""
        (self.folder / "hold").touch()

    def release(self):
        (self.folder / "hold").unlink()

    def hold_workers(self):
        """Make the loads of worker processes wait."""
        (self.folder / "hold-workers").touch()

    def release_workers(self):
        (self.folder / "hold-workers").unlink()

    def _read(self, name):
        file = self.folder / name
        return file.read_text() if file.exists() else ""

    def until(self, holds):
        began = time.monotonic()
        while not holds():
            assert time.monotonic() - began < PATIENCE, self._read("log")
            assert not self._read("code"), self._read("log")
            time.sleep(0.02)

    def loads(self):
        return len(self._read("loads").splitlines())

    def logs(self, event, times=1):
        return self._read("log").count(f'"event": "{event}"') >= times

    @property
    def pid(self):
        """The parent process, which loads first."""
        self.until(self.loads)
        return int(self._read("loads").split()[0])

    def send(self, number, *, group=False):
        (os.killpg if group else os.kill)(self.pid, number)

    def ask(self, path="/predict", body=None):
        port = int(re.search(r"http://127.0.0.1:(\d+)", self._read("log"))[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        try:
            raw = json.dumps(body) if body else None
            connection.request("POST" if raw else "GET", path, raw, {"Content-Type": "application/json"})
            return connection.getresponse().status
        except OSError:
            return None
        finally:
            connection.close()

    def ready(self):
        self.until(lambda: self.logs("listening") and self.ask("/ready") == 200)

    def assert_clean_exit(self):
        pid, began = self.pid, time.monotonic()
        while not self._read("code"):
            assert time.monotonic() - began < PATIENCE, self._read("log")
            time.sleep(0.02)
        log = self._read("log")
        assert self._read("code") == "0", log
        assert self.logs("ending"), log
        assert "Traceback" not in log
        self.wait_for_no_process(pid)
        return log

    def wait_for_no_process(self, pid):
        """Wait until no process of the group runs."""
        began = time.monotonic()
        while left := [process for process, group in groups() if group == pid]:
            assert time.monotonic() - began < PATIENCE, left
            time.sleep(0.02)


def while_loading(start, number, workers):
    server = start("--workers", str(workers))
    server.send(signal.SIGHUP)
    server.send(number)
    server.until(lambda: server.logs("ending"))
    server.send(number)
    server.release()
    assert '"event": "listening"' not in server.assert_clean_exit()


def while_workers_load(start, number):
    server = start("--workers", "2")
    server.until(server.loads)
    server.release()
    server.until(lambda: server.logs("listening"))
    server.hold()
    server.send(signal.SIGHUP)
    server.send(number, group=True)
    server.until(lambda: server.logs("ending"))
    server.release()
    server.assert_clean_exit()


def answers_while_workers_load(start):
    server = start("--workers", "2")
    server.until(server.loads)
    server.hold_workers()
    server.release()
    server.until(lambda: server.loads() == 3)
    assert (server.ask("/ready"), server.ask("/health"), server.ask(body={"inputs": "x"})) == (503, 200, 503)
    server.release_workers()
    server.ready()
    assert [server.ask("/ready") for _ in range(20)] == [200] * 20
    server.send(signal.SIGTERM)
    server.assert_clean_exit()


def while_reloading(start, number, workers):
    server = start("--workers", str(workers))
    server.until(server.loads)
    if workers == 1:
        server.send(signal.SIGHUP)  # reloads after the first load
    server.release()
    server.until(lambda: server.logs("loaded", 2))
    server.ready()
    before = server.loads()
    server.hold()
    server.send(signal.SIGHUP, group=True)
    server.until(lambda: server.loads() > before)
    server.send(signal.SIGHUP)
    server.send(number, group=True)
    assert server.ask("/health") == 200
    server.until(lambda: server.logs("ending"))
    server.release()
    server.assert_clean_exit()


def while_draining(start, number, workers):
    server = start("--workers", str(workers))
    server.until(server.loads)
    server.release()
    server.until(lambda: server.logs("loaded", workers))
    server.ready()
    before = server.loads()
    server.send(signal.SIGHUP, group=True)  # while it is ready
    server.until(lambda: server.loads() > before and server.logs("loaded", 2 * workers))
    server.ready()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.ask, body={"inputs": "x"})
        time.sleep(0.3)
        server.send(number, group=True)
        for again in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            time.sleep(0.1)
            server.send(again, group=True)
        assert answer.result() == 200
    server.assert_clean_exit()


def without_its_parent(start):
    server = start("--workers", "2")
    server.until(server.loads)
    server.release()
    server.until(lambda: server.logs("loaded", 2))
    server.send(signal.SIGKILL)
    server.wait_for_no_process(server.pid)


SCENES = {
    "loading, SIGTERM, 1": (while_loading, signal.SIGTERM, 1),
    "loading, SIGINT, 1": (while_loading, signal.SIGINT, 1),
    "loading, SIGTERM, 2": (while_loading, signal.SIGTERM, 2),
    "loading, SIGINT, 2": (while_loading, signal.SIGINT, 2),
    "workers loading, SIGINT": (while_workers_load, signal.SIGINT),
    "reloading, SIGTERM, 1": (while_reloading, signal.SIGTERM, 1),
    "reloading, SIGINT, 1": (while_reloading, signal.SIGINT, 1),
    "reloading, SIGTERM, 2": (while_reloading, signal.SIGTERM, 2),
    "draining, SIGTERM, 1": (while_draining, signal.SIGTERM, 1),
    "draining, SIGINT, 1": (while_draining, signal.SIGINT, 1),
    "draining, SIGINT, 2": (while_draining, signal.SIGINT, 2),
    "workers loading, requests": (answers_while_workers_load,),
    "killed, 2": (without_its_parent,),
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """The future of every scene by its name; the scenes run at the same time."""
    folder = tmp_path_factory.mktemp("servers")
    script = Path(__file__).with_name("stand_in_server.py")
    starter = subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, cwd=script.parents[2])
    try:
        with ThreadPoolExecutor(len(SCENES)) as pool:

            def play(name, scene, *arguments):
                def start(*flags):
                    return Server(starter, folder / re.sub(r"\W+", "-", name), *flags)

                return pool.submit(scene, start, *arguments)

            played = {name: play(name, *scene) for name, scene in SCENES.items()}
        yield played
    finally:
        starter.stdin.close()
        starter.wait(timeout=PATIENCE)


@pytest.mark.parametrize("name", SCENES)
def test_signals_in_any_state_end_or_reload_the_server(name, scenes):
    assert scenes[name].exception() is None
