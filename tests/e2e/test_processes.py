"""The command as a process of its own: signals, and a network that is not there."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from bertsmith.testing import tiny_table


@pytest.fixture
def csv(tmp_path):
    tiny_table().to_csv(tmp_path / "t.csv", index=False)
    return tmp_path / "t.csv"


def test_ctrl_c_saves_and_says_how_to_go_on(csv, tiny, tmp_path):
    command = [sys.executable, "-m", "bertsmith", "train", str(csv), "-o", str(tmp_path / "run"), "--model", str(tiny)]
    command += ["--device", "cpu", "--epochs", "400", "--patience", "400", "--learning-rate", "1e-5"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"})
    told = []
    for line in process.stderr:
        told.append(line)
        if line.startswith("epoch 2,"):
            break
    process.send_signal(signal.SIGINT)
    told += process.communicate(timeout=120)[1].splitlines(keepends=True)
    assert process.returncode == 130, "".join(told)
    assert "the same command with --resume" in "".join(told)
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    assert info["status"] == "interrupted"
    assert list((tmp_path / "run" / "checkpoints").glob("checkpoint-*"))
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr


def test_a_killed_run_ends_as_if_it_had_not_been_and_no_second_process_writes_there(csv, tiny, tmp_path):
    def command(name):
        flags = ["--model", str(tiny), "--device", "cpu", "--epochs", "60", "--patience", "60", "--precision", "fp32"]
        return [sys.executable, "-m", "bertsmith", "train", str(csv), "-o", str(tmp_path / name), *flags]

    def weights(name):
        return (tmp_path / name / "model" / "model.safetensors").read_bytes()

    subprocess.run(command("whole"), check=True, capture_output=True)
    resume: list[str] = []
    for moment in (0.6, 1.1, 0.9):  # seconds after the first epoch of each attempt
        process = subprocess.Popen([*command("run"), *resume], stderr=subprocess.PIPE, text=True)
        told = []
        for line in process.stderr:
            told.append(line)
            if line.startswith("epoch "):
                break
        else:
            pytest.fail("".join(told))
        if not resume:
            second = subprocess.run([*command("run"), "--overwrite"], capture_output=True, text=True)
            assert second.returncode == 2
            assert "another process is training into this run folder" in second.stderr
        time.sleep(moment)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        resume = ["--resume"]
    subprocess.run([*command("run"), "--resume"], check=True, capture_output=True)
    assert weights("run") == weights("whole")
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("run", "whole")]
    assert metrics[0] == metrics[1]


def test_a_hub_out_of_reach_is_told_within_15_seconds(csv, tmp_path):
    began = time.perf_counter()
    out = subprocess.run(
        [sys.executable, "-m", "bertsmith", "train", str(csv), "-o", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(tmp_path / "home")},
    )
    assert time.perf_counter() - began < 15
    assert out.returncode == 2
    assert "'google-bert/bert-base-uncased' is not on this machine and cannot be fetched" in out.stderr
    assert "packaged:minilm" in out.stderr
    assert not (tmp_path / "run").exists()
