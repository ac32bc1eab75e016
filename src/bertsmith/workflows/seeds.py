"""Train with several seeds: how far the figures move by chance, the best of the models, and all of them together."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bertsmith.compute.machine import versions
from bertsmith.config import PRIMARY, Config
from bertsmith.data.table import Table
from bertsmith.errors import ConfigError
from bertsmith.evaluation.evaluate import evaluate
from bertsmith.evaluation.intervals import paired_difference
from bertsmith.events import RunListener, SeedStarted
from bertsmith.folders import atomic
from bertsmith.folders.claim import claim
from bertsmith.folders.new_run import RunFolder, check_same_settings, create
from bertsmith.folders.run import Run, now
from bertsmith.inference.ensemble import mean_probabilities
from bertsmith.report.card import write_card
from bertsmith.report.report import write_report
from bertsmith.training.distributed import started
from bertsmith.workflows.inspect import as_table
from bertsmith.workflows.record import failure_recorded
from bertsmith.workflows.score import groups_in, targets_of
from bertsmith.workflows.train import run_training, train_into


def run_seeds(
    source: Any,
    config: Config,
    output: Path,
    *,
    resume: bool,
    overwrite: bool,
    observe: RunListener,
    stop: Callable[[], bool],
) -> Run:
    """Train with each of ``config.seeds`` seeds; see `bertsmith.train` for the arguments.

    Each seed is a run of its own in ``RUN/seeds``, on the same split. The run takes the files of the seed with the best
    validation score. Its metrics include the spread over the seeds.
    """
    if config.seeds == 1:
        return run_training(source, config, output, resume=resume, overwrite=overwrite, observe=observe, stop=stop)
    if started()[1] > 1:
        raise ConfigError(
            "with torchrun, several processes train one model, not several", remedy="Leave out --seeds, or torchrun."
        )
    run = Run(output)
    with claim(RunFolder(output), resume=resume, overwrite=overwrite):
        if resume:
            check_same_settings(run, config.dump())
        created = resume

        def create_once() -> None:
            nonlocal created
            if not created:
                create(output).update(status="running", created=now(), config=config.dump(), versions=versions())
            created = True

        table = as_table(source, config)
        try:
            for number in range(config.seeds):
                _train_one(table, config, run, number, observe, stop, create_once)
        except BaseException:
            if not created:
                raise
            with failure_recorded(run):
                raise
        return _gather(run, config)


def _train_one(
    table: Table,
    config: Config,
    run: Run,
    number: int,
    observe: RunListener,
    stop: Callable[[], bool],
    before_writing: Callable[[], None],
) -> None:
    seed = (config.seed + number) % 2**32
    path = run.layout.seeds / str(seed)
    one = Run(path)
    begun = one.layout.run.is_file()
    if begun and one.info.get("status") == "finished":
        return
    observe(SeedStarted(seed, number + 1, config.seeds))
    train_into(
        path,
        table,
        config.model_copy(update={"seed": seed, "seeds": 1}),
        resume=begun and one.is_resumable,
        observe=observe,
        stop=stop,
        split_seed=config.seed,
        before_writing=before_writing,
    )


def _gather(run: Run, config: Config) -> Run:
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


def _compare(members: list[Run], best: Run, seed: int) -> dict[str, Any]:
    def value(member: Run, split: str, metric: str) -> float:
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
    probabilities = mean_probabilities([m.predictions for m in members])
    targets = targets_of(best.predictions, best.labels)
    groups = groups_in(best.predictions)
    together = evaluate(targets, probabilities, best.labels, seed=seed, detail=False, groups=groups)
    alone = np.stack(best.predictions["probabilities"].to_list())
    ours, theirs, n_classes = probabilities.argmax(axis=1), alone.argmax(axis=1), len(best.labels)
    difference = paired_difference(targets, ours, theirs, n_classes, metric=PRIMARY, seed=seed, groups=groups)
    return {
        "each": each,
        "best": int(best.path.name),
        "test": spread,
        "ensemble": {
            "metrics": together["metrics"],
            "difference": {"metric": PRIMARY, "value": difference[0], "interval": list(difference[1:])},
        },
    }
