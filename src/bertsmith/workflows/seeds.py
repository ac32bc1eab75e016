"""Train with several seeds: how far the figures move by chance, the best of the models, and all of them together."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bertsmith.compute.machine import versions
from bertsmith.config import PRIMARY, Config
from bertsmith.data.table import Table
from bertsmith.errors import ConfigError, Interrupted
from bertsmith.evaluation.evaluate import evaluate
from bertsmith.evaluation.intervals import paired_difference
from bertsmith.events import RunListener, SeedStarted
from bertsmith.folders import atomic
from bertsmith.folders import run as runs
from bertsmith.folders.claim import check_output, check_settings_same, create, lock
from bertsmith.report.card import write_card
from bertsmith.report.report import write_report
from bertsmith.training.distributed import started
from bertsmith.workflows.score import groups_in, targets_of
from bertsmith.workflows.train import run_training, train_into


def run_seeds(
    read: Callable[[], Table],
    config: Config,
    output: Path,
    *,
    resume: bool,
    overwrite: bool,
    observe: RunListener,
    stop: Callable[[], bool],
) -> runs.Run:
    """Run all five steps with each of ``config.seeds`` seeds; see `bertsmith.train` for the arguments.

    Every seed is a run of its own in ``RUN/seeds``, on the same split. The files of the one that was best on validation
    become those of the run, and its metrics say how far all of them are apart.
    """
    if config.seeds == 1:
        return run_training(read, config, output, resume=resume, overwrite=overwrite, observe=observe, stop=stop)
    if started()[1] > 1:
        raise ConfigError("several processes train one model, not several", remedy="Leave out --seeds, or torchrun.")
    with lock(output), atomic.disk_errors(output, atomic.RESUME_REMEDY):
        check_output(output, resume=resume, overwrite=overwrite)
        run = runs.Run(output)
        ours = resume
        if resume:
            check_settings_same(run, config.dump())

        def make_place() -> None:
            nonlocal ours
            if not ours:
                create(output).update(status="running", created=runs.now(), config=config.dump(), versions=versions())
            ours = True

        table = cache(read)
        try:
            for number in range(config.seeds):
                _one(table, config, run, number, observe, stop, make_place)
        except BaseException as error:
            if ours and run.layout.run.is_file():
                run.update(status="interrupted" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed")
            raise
        return _gather(run, config)


def _one(
    read: Callable[[], Table],
    config: Config,
    run: runs.Run,
    number: int,
    observe: RunListener,
    stop: Callable[[], bool],
    make_place: Callable[[], None],
) -> None:
    seed = (config.seed + number) % 2**32
    path = run.layout.seeds / str(seed)
    one = runs.Run(path)
    if one.layout.run.is_file() and one.info.get("status") == "finished":
        return
    observe(SeedStarted(seed, number + 1, config.seeds))
    train_into(
        path,
        read,
        config.model_copy(update={"seed": seed, "seeds": 1}),
        resume=one.layout.run.is_file() and one.is_resumable,
        observe=observe,
        stop=stop,
        split_seed=config.seed,
        make_place=make_place,
    )


def _gather(run: runs.Run, config: Config) -> runs.Run:
    """Make the best of several runs the run, and say what all of them are like."""
    members = run.members
    scores = [m.metrics["splits"]["validation"]["metrics"][PRIMARY]["value"] for m in members]
    best = members[int(np.argmax(scores))]
    metrics = {**best.metrics, "seeds": _compare(members, best, config.seed)}
    for file in (best.layout.labels, best.layout.splits, best.layout.history):
        with atomic.replaced_file(run.path / file.name) as part:
            shutil.copyfile(file, part)
    for folder in (best.layout.model, best.layout.predictions):
        with atomic.replaced_folder(run.path / folder.name) as part:
            shutil.copytree(folder, part, dirs_exist_ok=True)
    atomic.write_json(run.layout.metrics, metrics)
    of_best = {
        k: v for k, v in best.info.items() if k not in ("status", "config", "created", "finished", "model_files")
    }
    run.update(**of_best, best_seed=int(best.path.name))
    write_card(run)
    write_report(run)
    run.finish(keep_checkpoints=config.keep_checkpoints)
    return run


def _compare(members: list[runs.Run], best: runs.Run, seed: int) -> dict[str, Any]:
    def value(member: runs.Run, split: str, metric: str) -> float:
        return float(member.metrics["splits"][split]["metrics"][metric]["value"])

    metrics = (PRIMARY, "accuracy")
    each = [
        {"seed": int(m.path.name), **{s: {k: value(m, s, k) for k in metrics} for s in ("validation", "test")}}
        for m in members
    ]
    spread = {}
    for metric in metrics:
        of_test = [value(m, "test", metric) for m in members]
        spread[metric] = {"mean": float(np.mean(of_test)), "standard_deviation": float(np.std(of_test, ddof=1))}
    probabilities = np.mean([np.stack(m.predictions["probabilities"].to_list()) for m in members], axis=0)
    targets = targets_of(best.predictions, best.labels)
    groups = groups_in(best.predictions)
    together = evaluate(targets, probabilities, best.labels, seed=seed, detail=False, groups=groups)
    alone = np.stack(best.predictions["probabilities"].to_list())
    ours, theirs, n_classes = probabilities.argmax(axis=1), alone.argmax(axis=1), len(best.labels)
    difference = paired_difference(targets, ours, theirs, n_classes, seed=seed, groups=groups)
    return {
        "each": each,
        "best": int(best.path.name),
        "test": spread,
        "ensemble": {
            "metrics": together["metrics"],
            "difference": {"metric": PRIMARY, "value": difference[0], "interval": list(difference[1:])},
        },
    }
