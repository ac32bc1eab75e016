"""The server as a process: it shuts down without dropping requests, reloads, and runs in several processes."""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

import bertsmith as bs
from tests.processes import Command

pytest.importorskip("uvicorn", reason="uvicorn is not installed")


@contextmanager
def serving(folder, *flags, environment=None, start=Command):
    process = start("serve", folder, "--port", "0", "--device", "cpu", *flags, environment=environment)
    lines = []
    for line in process.stderr:
        lines.append(line)
        if found := re.search(r"http://127.0.0.1:(\d+)/?\"", line):
            break
    else:
        raise AssertionError("".join(lines))
    process.port = int(found[1])
    reader = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
    reader.start()
    process.lines = lines
    try:
        yield process
    finally:
        process.kill_group()
        process.wait()
        reader.join()
        process.stderr.close()


def _ask(port, path="/predict", body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        raw = json.dumps(body) if body is not None else None
        connection.request("POST" if raw else "GET", path, raw, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def _ready(port):
    for _ in range(600):
        try:
            if _ask(port, "/ready")[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError("the server is not ready")


def _load(port, answers, over):
    """Send requests until ``over`` is set; append each status, or ``None`` for a request without a response."""
    while not over.is_set():
        try:
            answers.append(_ask(port, body={"inputs": [["my cat"], ["red and blue"]] * 20})[0])
        except ConnectionRefusedError:
            return  # the server had stopped accepting
        except (OSError, http.client.HTTPException):
            answers.append(None)


def _under_load(port, n=4):
    answers, over = [], threading.Event()
    threads = [threading.Thread(target=_load, args=(port, answers, over)) for _ in range(n)]
    for thread in threads:
        thread.start()
    while len(answers) < 20:
        time.sleep(0.01)
    return answers, over, threads


def test_sigterm_answers_all_accepted_requests(finished):
    with serving(finished, "--runtime", "torch") as server:
        _ready(server.port)
        answers, over, threads = _under_load(server.port)
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 0
        over.set()
        for thread in threads:
            thread.join()
    assert set(answers) <= {200, 429}
    assert not any("my cat" in line for line in server.lines)


def test_a_new_model_is_loaded_without_dropping_requests(finished, tmp_path):
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    with serving(folder, environment={"BERTSMITH_TOKEN": "sesame"}) as server:
        _ready(server.port)
        assert _ask(server.port, "/info")[0] == 401
        key = {"X-API-Key": "sesame"}
        before = _ask(server.port, "/info", headers=key)[1]
        answers, over = [], threading.Event()

        def load():
            while not over.is_set():
                answers.append(_ask(server.port, body={"inputs": "my cat"}, headers=key)[0])

        thread = threading.Thread(target=load)
        thread.start()
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics["splits"]["test"]["texts"] = 12345
        (folder / "metrics.json").write_text(json.dumps(metrics))
        server.send_signal(signal.SIGHUP)
        for _ in range(300):
            if _ask(server.port, "/info", headers=key)[1]["test"]["texts"] == 12345:
                break
            time.sleep(0.1)
        else:
            raise AssertionError(server.lines)
        # A folder that cannot be loaded is reported, and the current model stays.
        shutil.rmtree(folder / "model")
        server.send_signal(signal.SIGHUP)
        for _ in range(300):
            if any("not reloaded" in line for line in server.lines):
                break
            time.sleep(0.1)
        over.set()
        thread.join()
        assert _ask(server.port, body={"inputs": "my cat"}, headers=key)[0] == 200
    assert before["test"]["texts"] != 12345
    assert set(answers) == {200}
    assert any("not reloaded" in line for line in server.lines)


class _Fresh(subprocess.Popen):
    """A command that imports everything, as its workers do."""

    def __init__(self, *arguments, environment):
        command = [sys.executable, "-m", "bertsmith", *map(str, arguments)]
        super().__init__(command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment)

    def kill_group(self):
        self.kill()  # its workers end with it


def test_workers_serve_and_sum_their_metrics(old_export):
    """From an export, which needs no torch, so each process starts within a moment."""
    expected = bs.load(old_export).predict_proba(["my cat"])[0].max()
    with serving(old_export, "--workers", "2", start=_Fresh) as server:
        _ready(server.port)
        answers = [_ask(server.port, body={"inputs": "my cat"}) for _ in range(30)]
        assert all(
            status == 200 and answer[0]["score"] == pytest.approx(expected, abs=1e-6) for status, answer in answers
        )
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        connection.close()
        (counted,) = [line for line in lines if line.startswith('bertsmith_requests_total{path="/predict"')]
        assert float(counted.rsplit(" ", 1)[1]) == 30
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 0


def test_a_worker_that_ended_is_not_measured(old_export, tmp_path):
    environment = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP"), str(tmp_path))}
    with serving(old_export, "--workers", "2", environment=environment, start=_Fresh) as server:
        _ready(server.port)
        assert _ask(server.port, body={"inputs": "my cat"})[0] == 200
        files = set(tmp_path.glob("bertsmith-*/gauge_live*.db"))
        assert files
        for file in files:
            os.kill(int(file.stem.rpartition("_")[2]), signal.SIGTERM)
        for _ in range(300):
            if not any(file.exists() for file in files):
                break
            time.sleep(0.1)
        assert not any(file.exists() for file in files)
        _ready(server.port)


def test_a_missing_run_exits_with_2(tmp_path):
    process = Command("serve", tmp_path / "none", "--port", "0")
    said = process.finish()
    assert process.returncode == 2
    assert f"where: {tmp_path / 'none'}" in said
    assert "Traceback" not in said
