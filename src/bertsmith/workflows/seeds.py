"""Train with several seeds: spread of the scores, best model and ensemble."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bertsmith.compute.device import kept_random_states
from bertsmith.compute.machine import versions
from bertsmith.compute.processes import rank_and_world_size
from bertsmith.config import Config
from bertsmith.data.table import Table
from bertsmith.data.template import stored_groups
from bertsmith.errors import ConfigError
from bertsmith.evaluation.evaluate import evaluate, paired_difference
from bertsmith.events import Prepared, RunEvent, RunFinished, RunListener, SeedStarted
from bertsmith.folders import atomic
from bertsmith.folders.claim import claim, refuse_changes
from bertsmith.folders.new_run import RunFolder, check_same_settings, create
from bertsmith.folders.run import Run, damage_errors, now
from bertsmith.report.card import write_card
from bertsmith.report.report import write_report
from bertsmith.tasks.registry import get_task
from bertsmith.workflows.inspect import as_table
from bertsmith.workflows.prepare import check_effort
from bertsmith.workflows.run_record import record_failure
from bertsmith.workflows.train import run_training, train_into


@kept_random_states()
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

    Each seed is a run in ``RUN/seeds``, with the same split. The files of the seed with the best validation score are
    copied to the run. Its metrics include the spread over the seeds.
    """
    check_effort(config)
    if config.seeds == 1:
        return run_training(source, config, output, resume=resume, overwrite=overwrite, observe=observe, stop=stop)
    if config.effort == "quick":
        raise ConfigError(
            "--effort quick gives the same model for every seed", remedy="Leave out --seeds or --effort quick."
        )
    if rank_and_world_size()[1] > 1:
        raise ConfigError(
            "several seeds need a single process", remedy="Leave out --seeds, or train without torchrun and --ray."
        )
    run = Run(output)
    with claim(RunFolder(output), resume=resume, overwrite=overwrite):
        created = resume and run.layout.run.is_file()
        if created:
            check_same_settings(run, config.dump())

        def create_once() -> None:
            nonlocal created
            if not created:
                create(output).update(status="running", created=now(), config=config.dump(), versions=versions())
            created = True

        table = as_table(source, config)
        try:
            for number in range(config.seeds):
                _train_seed(table, config, run, number, observe, stop, create_once, resume=created)
        except BaseException:
            if not created:  # a run to overwrite is unchanged
                raise
            with record_failure(run):
                raise
        _finish(run, config)
    observe(RunFinished(run.path))
    return run


def _train_seed(
    table: Table,
    config: Config,
    run: Run,
    number: int,
    observe: RunListener,
    stop: Callable[[], bool],
    before_writing: Callable[[], None],
    *,
    resume: bool,
) -> None:
    seed = (config.seed + number) % 2**32
    member = Run(run.layout.seeds / str(seed))
    exists = resume and member.layout.run.is_file()  # otherwise the seed belongs to the run that is overwritten
    if exists and member.info.get("status") == "finished":
        return

    def check_split(event: RunEvent) -> None:
        if isinstance(event, Prepared):  # the splits differ if the version or the table differs
            own = _splits(member)
            if not all(_splits(other).equals(own) for other in run.members if other.layout.run.is_file()):
                refuse_changes("run", run.path, ["the splits of the table"])
        observe(event)

    observe(SeedStarted(seed, number + 1, config.seeds))
    train_into(
        member.path,
        table,
        # One seed is enough to measure what columns are worth.
        config.model_copy(update={"seed": seed, "seeds": 1, "no_ablation": config.no_ablation or number > 0}),
        resume=exists and member.is_resumable,
        observe=check_split,
        stop=stop,
        split_seed=config.seed,
        before_writing=before_writing,
    )


def _splits(run: Run) -> pd.DataFrame:
    """Return the split of every source row."""
    with damage_errors(run.layout.splits):
        return pd.read_parquet(run.layout.splits, columns=["row", "split"]).astype("str")


def _finish(run: Run, config: Config) -> None:
    """Copy the files of the best seed to the run, and add the comparison of the seeds."""
    members = run.members
    primary = get_task(members[0].task).primary
    scores = [m.metrics["splits"]["validation"]["metrics"][primary]["value"] for m in members]
    best = members[int(np.argmax([-np.inf if score is None else score for score in scores]))]
    metrics = {**best.metrics, "seeds": _compare(members, best, config.seed)}
    if columns := next((found for m in members if (found := m.metrics.get("columns"))), None):
        metrics["columns"] = columns
    for file in (best.layout.labels, best.layout.splits, best.layout.history):
        with atomic.replaced_file(run.path / file.name) as temporary:
            shutil.copyfile(file, temporary)
    for folder in (best.layout.model, best.layout.predictions):
        with atomic.replaced_folder(run.path / folder.name) as temporary:
            shutil.copytree(folder, temporary, dirs_exist_ok=True)
    atomic.write_json(run.layout.metrics, metrics)
    own = ("status", "config", "created", "finished", "model_files")
    run.update(**{k: v for k, v in best.info.items() if k not in own}, best_seed=int(best.path.name))
    write_card(run)
    write_report(run)
    run.finish(keep_checkpoints=config.keep_checkpoints)


def _compare(members: list[Run], best: Run, seed: int) -> dict[str, Any]:
    def value(member: Run, split: str, metric: str) -> float | None:
        return member.metrics["splits"][split]["metrics"][metric]["value"]

    task = get_task(best.task)
    metrics = task.headline
    each = [
        {"seed": int(m.path.name), **{s: {k: value(m, s, k) for k in metrics} for s in ("validation", "test")}}
        for m in members
    ]
    spread: dict[str, dict[str, float | None]] = {}
    for metric in metrics:
        values = [v for m in members if (v := value(m, "test", metric)) is not None]
        spread[metric] = {
            "mean": float(np.mean(values)) if values else None,
            "standard_deviation": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        }
    scores = np.mean([task.stored_scores(m.predictions) for m in members], axis=0)
    targets = task.stored_targets(best.predictions, best.labels)
    groups = stored_groups(best.predictions)
    ensemble = evaluate(task, targets, scores, best.labels, seed=seed, detail=False, groups=groups)
    single = task.stored_scores(best.predictions)
    return {
        "each": each,
        "best": int(best.path.name),
        "test": spread,
        "ensemble": {
            "metrics": ensemble["metrics"],
            "difference": paired_difference(task, targets, scores, single, seed=seed, groups=groups),
        },
    }
