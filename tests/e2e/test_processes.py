"""The command in a separate process: signals, and a network that is down."""

import contextlib
import io
import itertools
import json
import os
import pkgutil
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from benchmarks.chaos import remains, state

from bertsmith.cli.train import stoppable
from bertsmith.compute import memory
from bertsmith.data import stream
from bertsmith.folders.claim import lock
from bertsmith.inference import chunks
from bertsmith.testing import tiny_model, tiny_table
from tests.processes import Command

ENDLESS = ("--device", "cpu", "--epochs", "400", "--patience", "400", "--learning-rate", "1e-5")


@pytest.fixture
def csv(tmp_path):
    tiny_table().to_csv(tmp_path / "t.csv", index=False)
    return tmp_path / "t.csv"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_save_and_say_how_to_resume(number, csv, tiny, tmp_path, cli):
    command = ["train", csv, "-o", tmp_path / "run", "--model", tiny, *ENDLESS]
    process = Command(*command)
    messages = []
    for line in process.stderr:
        messages.append(line)
        if line.startswith("epoch 2,"):
            break
    process.send_signal(number)
    messages.append(process.finish())
    assert process.returncode == 130, "".join(messages)
    assert "the same command with --resume" in "".join(messages)
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["status"] == "interrupted"
    assert list((tmp_path / "run" / "checkpoints").glob("checkpoint-*"))
    code, _, refused = cli(*command)
    assert code == 2
    assert "--resume" in refused


def test_sigterm_before_training_ends_the_run(csv, tiny, tmp_path):
    command = [sys.executable, "-m", "bertsmith", "train", str(csv), "-o", str(tmp_path / "run"), "--model", str(tiny)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"})
    first = process.stderr.readline()
    assert "reading the table" in first
    time.sleep(0.3)  # while it imports what is slow
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=120)[1]
    assert process.returncode == 130, rest
    assert "stopped before training began" in rest
    assert "the same command" in rest
    assert not (tmp_path / "run").exists()


def test_a_second_ctrl_c_says_how_to_resume(csv, tiny, tmp_path):
    process = Command("train", csv, "-o", tmp_path / "run", "--model", tiny, *ENDLESS)
    for line in process.stderr:
        if line.startswith("epoch 2,"):
            break
    process.send_signal(signal.SIGSTOP)  # both signals arrive before it can act on the first
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    rest = process.finish()
    assert process.returncode == 130, rest
    assert "the same command with --resume" in rest


def test_a_second_ctrl_c_stops_at_once():
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in the background of a shell
    with stoppable() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_may_arrive_while_the_command_prints(monkeypatch, tmp_path):
    class Interrupted(io.RawIOBase):
        """A file during whose first write a signal arrives."""

        def writable(self):
            return True

        def fileno(self):
            return log.fileno()

        def write(self, data):
            os.kill(os.getpid(), signal.SIGINT)
            return len(data)

    with (tmp_path / "log").open("w") as log, stoppable() as stop:
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BufferedWriter(Interrupted())))
        sys.stderr.write("epoch 1\n")
        sys.stderr.flush()
        assert stop()
        monkeypatch.undo()
    assert (tmp_path / "log").read_text()


def test_no_second_process_writes_to_a_run_folder(csv, tiny, tmp_path):
    command = [sys.executable, "-m", "bertsmith", "train", str(csv), "-o", str(tmp_path / "run"), "--model", str(tiny)]
    with lock(tmp_path / "run", "training into this run folder"):
        for flags in ([], ["--overwrite"]):
            second = subprocess.run([*command, *flags], capture_output=True, text=True)
            assert second.returncode == 2
            assert "another process is training into this run folder" in second.stderr
    assert not (tmp_path / "run").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["t.csv"]


KILLS = (
    ("nothing yet", "bertsmith.workflows.train:clean", 1),
    ("no checkpoint yet", "bertsmith.training.callback:EventCallback.on_step_end", 3),
    ("a checkpoint half written", "bertsmith.training.checkpoints:save_file", 2),
    ("training", "bertsmith.training.callback:EventCallback.on_step_end", 9),
    ("scoring", "bertsmith.workflows.train:score_splits", 1),
    ("scoring", "bertsmith.workflows.train:write_report", 1),
)
"""State of the run after a kill, and when the kill happens: the function, and the number of its call."""


def _kill_at(name, call):
    owner, _, attribute = name.replace(":", ".").rpartition(".")
    owner = pkgutil.resolve_name(owner)
    function, calls = getattr(owner, attribute), itertools.count(1)

    def deadly(*given, **named):
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*given, **named)

    setattr(owner, attribute, deadly)


def test_a_run_killed_in_every_phase_resumes_to_the_same_result(csv, tiny, tmp_path):
    """``benchmarks/chaos.py`` kills at random moments."""
    settings = ("--device", "cpu", "--epochs", "4", "--learning-rate", "1e-2", "--precision", "fp32")

    def train(name, before=None):
        resume = ["--resume"] if (tmp_path / name / "run.json").is_file() else []
        command = ("train", csv, "-o", tmp_path / name, "--model", tiny, "--explanations", "off", *settings, *resume)
        process = Command(*command, before=before)
        return process.finish(), process.returncode

    for expected, function, call in KILLS:
        messages, code = train("run", partial(_kill_at, function, call))
        assert code == -signal.SIGKILL, messages
        assert state(tmp_path / "run") == expected
    for name in ("run", "whole"):
        messages, code = train(name)
        assert code == 0, messages
    assert remains(tmp_path / "run") == remains(tmp_path / "whole")


def _limit_address_space(left):
    """Limit this process to ``left`` further MiB of memory, and give it a large token budget."""
    import resource

    memory.TOKEN_BUDGETS["cpu"] = 2**20
    size = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize"))
    limit = int(size.split()[1]) * 1024 + left * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def test_address_space_limits_are_respected(csv, tiny, tmp_path):
    """If little memory is free, the token budget is smaller. If not even one text fits, an error reports it."""
    large = tiny_model(tmp_path / "large", hidden_size=768, intermediate_size=3072, num_hidden_layers=4)
    flags = ["--device", "cpu", "--epochs", "1", "--precision", "fp32"]
    for model, left, expected, said in (
        (tiny, 1500, 0, r"only [\d.]+ [GM]iB of memory is free"),
        (large, 500, 2, r"memory is too small even for one text of \d+ tokens: such a text needs about [\d.]+ [GM]iB"),
    ):
        process = Command(
            *("train", csv, "-o", tmp_path / "run", "--model", model, *flags, "--overwrite"),
            before=partial(_limit_address_space, left),
        )
        messages = process.finish()
        assert process.returncode == expected, messages
        assert "Traceback" not in messages
        assert re.search(said, messages), messages


def test_an_unreachable_hub_is_reported_within_15_seconds(csv, tmp_path):
    began = time.perf_counter()
    process = Command("train", csv, "-o", tmp_path / "run", environment={"HF_ENDPOINT": "http://127.0.0.1:1"})
    said = process.finish()
    assert time.perf_counter() - began < 15
    assert process.returncode == 2
    assert "'google-bert/bert-base-uncased' is not on this machine" in said
    assert "packaged:minilm" in said
    assert not (tmp_path / "run").exists()


def test_predictions_to_a_closed_stdout_are_refused(old_export, csv):
    line = f"{sys.executable} -m bertsmith predict {old_export} {csv} >&-"
    out = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert out.returncode == 2
    assert "standard output is closed" in out.stderr


@pytest.mark.parametrize("command", ["inspect {table} >&-", "predict {run} {table} <&- | head -1"])
def test_closed_streams_are_not_internal_errors(command, old_export, csv):
    """A shell may close standard output, and the reader of a pipe may stop reading."""
    line = command.format(run=old_export, table=csv).replace("predict", f"{sys.executable} -m bertsmith predict")
    line = line.replace("inspect", f"{sys.executable} -m bertsmith inspect")
    out = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert not re.search("traceback|error", out.stderr, re.IGNORECASE)  # whether counts are printed is a race


def _small_chunks():
    chunks.CHUNK_ROWS = stream.CHUNK_ROWS = 1024


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_predictions_resume(number, finished, tmp_path, cli, monkeypatch):
    for module in (chunks, stream):
        monkeypatch.setattr(module, "CHUNK_ROWS", 1024)
    table = tiny_table(8_000)[["Text"]]
    table.to_csv(tmp_path / "t.csv")
    out, folder = tmp_path / "out.csv", tmp_path / "out.csv.unfinished"
    command = ["predict", finished, tmp_path / "t.csv", "-o", out]
    process = Command(*command, before=_small_chunks)
    while not (folder / "00000000.json").exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.05)  # until the process knows, too, that the chunk is written
    process.send_signal(number)
    messages = process.finish()
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 130, messages
        assert "--resume" in messages
    assert not out.exists()
    code, _, refused = cli(*command)
    assert code == 2
    assert f"where: {folder}\n" in refused
    assert "--resume" in refused
    written = (folder / "00000000.csv").stat().st_mtime_ns
    kept, over = [], threading.Event()

    def look():
        while not over.wait(0.01):
            with contextlib.suppress(FileNotFoundError):  # removed in the end
                kept.append((folder / "00000000.csv").stat().st_mtime_ns)

    looking = threading.Thread(target=look)
    looking.start()
    code, _, err = cli(*command, "--resume")
    over.set()
    looking.join()
    assert code == 0, err
    assert set(kept) == {written}  # it was not labelled again
    assert not folder.exists()
    lines = out.read_text().splitlines()
    assert [line.split(",")[1] for line in lines[1:]] == table["Text"].tolist()
