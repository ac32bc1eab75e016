"""Kill runs at random moments, resume them, and compare each byte by byte with an uninterrupted run.

Each run is a separate process, forked from a process with all imports. SIGKILL ends it without any cleanup.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COMPARED = ("step", "epoch", "train_loss", "validation_loss", "metrics", "learning_rate", "best")


def train(table: str, model: str, output: str, resume: bool, settings: dict) -> None:
    """Train in this process without output. Frequent checkpoints make the state of the run vary from kill to kill."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    import torch

    import bertsmith as bs
    from bertsmith.training import callback

    torch.set_num_threads(1)
    callback.SAVE_SECONDS = 0.2
    bs.train(table, output=output, model=model, resume=resume, device="cpu", **settings)


@dataclass
class TrialResult:
    """Result of one run.

    Attributes:
        moments: seconds before each kill.
        left: state of the run folder after each kill, from `state`.
        same: whether the run equals the uninterrupted run.
    """

    moments: list[float]
    left: list[str]
    same: bool


def kills(folder: Path, table: Path, model: Path, settings: dict, *, n: int, seed: int) -> Iterator[TrialResult]:
    """Kill and resume runs one after the other, each until it finishes, and yield the result of each run.

    Args:
        folder: folder for the runs; each run that equals the uninterrupted run is deleted.
        table, model, settings: of the runs.
        n: total number of kills; a run that finishes before its kill does not count.
        seed: of the moments.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["bertsmith.workflows.train", "torch", "transformers", "datasets", "sklearn.linear_model"]
    )

    def start(name: str, resume: bool) -> multiprocessing.Process:
        process = context.Process(target=train, args=(str(table), str(model), str(folder / name), resume, settings))
        process.start()
        return process

    for name in ("warm-up", "whole"):
        began = time.monotonic()
        process = start(name, resume=False)
        process.join()
        if process.exitcode:
            raise RuntimeError(f"the uninterrupted run failed with exit code {process.exitcode}")
        duration = time.monotonic() - began
    expected = remains(folder / "whole")
    choose = random.Random(seed)
    killed = 0
    while killed < n:
        moments, left = [], []
        run = folder / f"run-{killed}"
        while True:
            process = start(run.name, resume=(run / "run.json").is_file())
            moment = choose.uniform(0, 1.1 * duration)
            process.join(moment if killed < n else None)
            process.kill()  # has no effect on a process that has ended
            process.join()
            if process.exitcode == -signal.SIGKILL:
                killed += 1
                moments.append(moment)
                left.append(state(run))
                if left[-1] == "finished":
                    break
            elif process.exitcode:
                raise RuntimeError(f"{run} does not resume after kills at {moments} s: exit code {process.exitcode}")
            else:
                break
        yield TrialResult(moments, left, remains(run) == expected)
        if remains(run) == expected:
            shutil.rmtree(run)


def remains(run: Path) -> tuple[bytes, object, object]:
    """Return the parts of a finished run that must be equal: weights, metrics, history."""
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    return (
        (run / "model" / "model.safetensors").read_bytes(),
        json.loads((run / "metrics.json").read_text()),
        [{key: entry[key] for key in COMPARED} for entry in history],
    )


def state(run: Path) -> str:
    """Return the state of a run folder after a kill."""
    if not (run / "run.json").is_file():
        return "nothing yet"
    status = json.loads((run / "run.json").read_text())["status"]
    checkpoints = sorted(p.name for p in (run / "checkpoints").glob("checkpoint-*"))
    if (run / "checkpoints").is_dir() and list((run / "checkpoints").glob(".*")):
        return "a checkpoint half written"
    if status == "running":
        return "scoring" if (run / "model").is_dir() else "training" if checkpoints else "no checkpoint yet"
    return str(status)


def main(n: int, seed: int = 0) -> int:
    """Kill ``n`` times and print the results; return 1 if a run differs from the uninterrupted run."""
    from bertsmith.testing import tiny_model, tiny_table

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_table().to_csv(folder / "table.csv", index=False)
        model = tiny_model(folder / "model")
        settings = {"epochs": 12, "patience": 4, "learning_rate": 1e-2, "precision": "fp32"}
        outcomes, left = [], collections.Counter()
        for outcome in kills(folder, folder / "table.csv", model, settings, n=n, seed=seed):
            outcomes.append(outcome)
            left.update(outcome.left)
            sys.stdout.write(
                f"\r{sum(left.values())} kills, {len(outcomes)} runs, {sum(o.same for o in outcomes)} equal"
            )
            sys.stdout.flush()
    same = sum(len(o.moments) for o in outcomes if o.same)
    sys.stdout.write(f"\nAfter {same} of {n} kills, the run equals the uninterrupted run. States at the kills: ")
    sys.stdout.write(", ".join(f"{state} {count}" for state, count in left.most_common()) + "\n")
    return int(same < n)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("-n", type=int, default=200, help="number of kills")
    arguments.add_argument("--seed", type=int, default=0, help="seed of the moments")
    sys.exit(main(**vars(arguments.parse_args())))
