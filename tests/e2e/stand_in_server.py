"""Start servers with a fake classifier whose load waits while a file exists; runs as a separate process.

Each line on stdin is JSON: the folder of a server and its flags. In that folder the server writes its log, a line per
load to ``loads``, and the exit code to ``code``. The file ``hold`` makes loads wait, and ``hold-workers`` makes loads
in worker processes wait. Servers are forked, so that imports happen once. At the end of stdin all remaining servers are
killed.
"""

import contextlib
import json
import multiprocessing
import os
import select
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from bertsmith.data.table import Labels
from bertsmith.evaluation.rule import Rule
from bertsmith.inference.predictor import ModelPredictor
from bertsmith.model.tokenizer import Encoder
from bertsmith.serving import loader
from bertsmith.tasks.registry import get_task


class Characters(Encoder):
    """One token per character."""

    key, unknown_id, special_counts = "characters", None, (0, 0)

    def __init__(self):
        pass

    def tokenize(self, texts, names):
        return {"input_ids": [[ord(character) for character in text] for text in texts]}

    def unknown_words(self, text):
        return []


class StandIn(ModelPredictor):
    labels = Labels((0, 1), ("a", "b"))
    task, rule, decide, max_length, encoder = get_task(), Rule(), True, 1000, Characters()
    loaded = SimpleNamespace(tokenizer=SimpleNamespace(is_fast=False))  # explains nothing

    def logits_of(self, tokens, progress=None):
        time.sleep(0.8)  # so that a request is running when a signal arrives
        return np.zeros((len(tokens), 2))


def open_classifier(path, **_):
    folder = Path(path)
    with (folder / "loads").open("a") as loads:
        loads.write(f"{os.getpid()}\n")
    in_worker = multiprocessing.parent_process() is not None
    while (folder / "hold").exists() or (in_worker and (folder / "hold-workers").exists()):
        time.sleep(0.02)
    return StandIn()


loader.open_classifier = open_classifier  # in workers too, because they import this file again


def start(folder, flags):
    """Fork a server into a new process group; return its process id in the parent."""
    if pid := os.fork():
        return pid
    os.setsid()
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from bertsmith.cli.app import main

    main(["serve", str(folder), "--port", "0", *flags])
    raise AssertionError("main exits")


if __name__ == "__main__":
    running, started = {}, []
    lines_end = False
    while running or not lines_end:
        if not lines_end and select.select([0], [], [], 0.05)[0]:
            read = os.read(0, select.PIPE_BUF * 64)  # complete lines, which are written at once
            lines_end = not read
            for pid in started if lines_end else ():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            for line in read.splitlines():
                name, flags = json.loads(line)
                pid = start(Path(name), flags)
                running[pid] = Path(name)
                started.append(pid)
        with contextlib.suppress(ChildProcessError):
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                (running.pop(pid) / "code").write_text(str(os.waitstatus_to_exitcode(status)))
        time.sleep(0.02 * lines_end)
