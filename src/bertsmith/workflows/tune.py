"""Tune: trials until there are enough, on one worker or many; then the winner as a run, beside the defaults."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState

from bertsmith.compute.machine import versions
from bertsmith.config import PRIMARY, Config
from bertsmith.data.clean import clean
from bertsmith.data.split import fold_of, split_cleaned
from bertsmith.data.table import Table
from bertsmith.errors import ConfigError, Interrupted
from bertsmith.evaluation.baseline import verdict
from bertsmith.evaluation.intervals import TAILS, label_metrics, resampled_differences
from bertsmith.events import FinalStarted, StudyListener, StudyStarted
from bertsmith.folders import atomic
from bertsmith.folders import run as runs
from bertsmith.folders.study import Study, agree, open_folder
from bertsmith.model import checkpoint
from bertsmith.report.study import advice, write_study_report
from bertsmith.training.arguments import problems_of, training_arguments
from bertsmith.tuning.plan import Plan
from bertsmith.tuning.space import Dimension, default_space, narrowed, read_space
from bertsmith.tuning.store import ERROR, Store, is_done
from bertsmith.workflows.prepare import choose_recipe
from bertsmith.workflows.score import groups_in, targets_of
from bertsmith.workflows.seeds import run_seeds
from bertsmith.workflows.trials import TrialData
from bertsmith.workflows.workers import (
    PARTS,
    STATES,
    Search,
    config_of,
    deadline,
    open_store,
    rank,
    score_of,
    watch,
    work,
)


def run_tuning(
    read: Callable[[], Table],
    config: Config,
    output: Path,
    plan: Plan,
    *,
    overwrite: bool,
    observe: StudyListener,
    stop: Callable[[], bool],
) -> Study:
    """Search, then train and test the winner; see `bertsmith.tune` for the arguments."""
    if not config.test_size:
        raise ConfigError(
            "--test-size 0: a study needs test texts that it never looks at", remedy="Leave out --test-size 0."
        )
    config = config.model_copy(update={"test_size": config.test_size})  # as set by the user: of few texts as well
    if plan.models:
        config = config.model_copy(update={"model": plan.models[0]})
    from_file = read_space(plan.space, problems_of) if plan.space else {}
    with atomic.disk_errors(
        output, "Make room or mend the place, then run the same command: finished trials are kept."
    ):
        study = open_folder(output, overwrite=overwrite)
        if stop():
            raise Interrupted("stopped before the search began")
        table = read()
        cleaned = clean(table)
        data = split_cleaned(cleaned, config, config.seed)
        train, validation = (data.take((data.frame["split"] == name).to_numpy()) for name in ("train", "validation"))
        rows = np.concatenate([np.flatnonzero(data.frame["split"] == name) for name in ("train", "validation")])
        folds = fold_of(cleaned, data, rows, plan.cv, config, config.seed) if plan.cv else None
        bench = TrialData(train, validation, folds)
        search, usual = _prepare(bench, config, plan, from_file, output, data.fingerprint, overwrite)
        store = open_store(search, observe)
        try:
            store.suggest_first({name: dim.nearest(usual[name]) for name, dim in search.space.items() if name in usual})
            done = sum(map(is_done, store.trials))
            best = max((score_of(t, plan) for t in store.trials if t.state == TrialState.COMPLETE), default=None)
            n_test = len(data) - len(train) - len(validation)
            sizes = (len(train), len(validation), n_test, len(cleaned.dropped))
            unseen = tuple(text for text, n in zip(data.labels.texts, validation.counts, strict=True) if not n)
            shared = (search.name, store.others) if plan.storage else None
            observe(StudyStarted(plan.trials, done, best, search.space, sizes, unseen, shared))
            try:
                (work if plan.jobs == 1 else watch)(store, search, observe, stop)
            finally:
                study.update(trials=_entries(store.trials, 1 if plan.cv else PARTS))
            _finish(study, store, lambda: table, search, config, usual, observe, stop)
        finally:
            store.close()
    return study


def _prepare(
    bench: TrialData,
    config: Config,
    plan: Plan,
    from_file: Mapping[str, Dimension | Any],
    output: Path,
    fingerprint: str,
    overwrite: bool,
) -> tuple[Search, dict[str, Any]]:
    """Find the search space, and see that the folder's study is of the same search.

    Returns:
        The search, and what `train` would do for every dimension of the space.
    """
    for name in plan.models:  # before anything is searched
        checkpoint.resolve(name, allow_pickle=config.allow_pickle)
    loaded, train, _ = bench.ready(config)
    counts = bench.train.counts
    recipe = choose_recipe(config, loaded, train)
    there = counts[counts > 0]
    space, usual = default_space(
        config,
        recipe,
        texts=len(bench.train),
        unequal=float(there.max() / there.min()),
        max_length=loaded.max_length,
        dropout=loaded.dropout,
        models=plan.models,
    )
    space, fixed = narrowed(space, config, from_file)
    arguments = training_arguments(recipe, config, Path(gettempdir()), loaded.device, saves=False)
    for name in space.keys() - usual.keys():  # what a file has and we do not vary by ourselves
        value = loaded.max_length if name == "max_length" else getattr(config, name, getattr(arguments, name, None))
        if value is not None:
            usual[name] = value
    if not space:
        raise ConfigError("every setting is fixed: there is nothing to search", remedy="Leave some of them out.")
    searched = {
        "settings": fixed.dump(),
        "space": {name: asdict(dimension) for name, dimension in space.items()},
        "objectives": list(plan.objectives),
        "cv": plan.cv,
        "data": fingerprint,
    }
    study = Study(output)
    agree(study, searched, overwrite=overwrite)
    study.update(versions=versions(), result=None)
    batch_size = fixed.batch_size or recipe.batch_size
    search = Search(bench, fixed, plan, space, batch_size, _study_name(study.info["searched"]), output, deadline(plan))
    return search, {name: value for name, value in usual.items() if name in space}


def _study_name(searched: Mapping[str, Any]) -> str:
    """Return a name that the same command has on every machine, wherever its files are.

    Args:
        searched: as it is in ``study.json``, so that a study of an older version, with fewer settings, keeps its name.
    """
    paths = ("validation", "test", "db", "corrections", "device", "threads")
    settings = {name: value for name, value in searched["settings"].items() if name not in paths}
    content = json.dumps({**searched, "settings": settings}, sort_keys=True, default=str)
    return f"bertsmith-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


# -- what came of it ---------------------------------------------------------------------------------------------------


def _entries(trials: list[FrozenTrial], parts: int) -> list[dict[str, Any]]:
    return [
        {
            "number": t.number,
            "state": STATES.get(t.state, "failed"),
            "values": list(t.values or []) if t.state == TrialState.COMPLETE else [],
            "seconds": t.user_attrs.get("seconds"),
            "settings": dict(t.params),
            "curve": t.user_attrs.get("curve")
            or [(step / parts, value) for step, value in sorted(t.intermediate_values.items())],
            "why": t.user_attrs.get(ERROR, ""),
        }
        for t in trials
        if is_done(t)
    ]


def _finish(
    study: Study,
    store: Store,
    read: Callable[[], Table],
    search: Search,
    config: Config,
    usual: Mapping[str, Any],
    observe: StudyListener,
    stop: Callable[[], bool],
) -> None:
    """Train the winner and, beside it, what `train` would do with ``config``; score both on test, once."""
    plan = search.plan
    complete = [t for t in store.trials if t.state == TrialState.COMPLETE]
    if not complete:
        why = next((t.user_attrs[ERROR] for t in store.trials if ERROR in t.user_attrs), "none was finished")
        failed = any(ERROR in t.user_attrs for t in store.trials)
        remedy = "Give other settings, or narrow the search space." if failed else "Give the search more --minutes."
        raise ConfigError(f"no trial gave a result: {why}", remedy=remedy)
    try:
        with FileLock(study.path / ".finish.lock", timeout=0):
            winner = max(complete, key=lambda t: rank(t, plan))
            is_default = dict(winner.params) == dict(usual) and search.config == config
            plain = config.model_copy(update={"seeds": plan.final_seeds})
            tuned = config_of(search, winner.params).model_copy(update={"seeds": plan.final_seeds})
            atomic.write_text(study.settings, _toml(plain if is_default else tuned))
            best = _final("the winner", study.best, read, plain if is_default else tuned, observe, stop)
            defaults = best if is_default else _final("the defaults", study.defaults, read, plain, observe, stop)
            result = _result(winner, best, defaults, plan, is_default)
            usual_trial = next((t for t in complete if dict(t.params) == dict(usual)), None)
            result["defaults"]["score"] = (
                score_of(usual_trial, plan) if usual_trial and search.config == config else None
            )
            told = study.info.get("told", [])
            if (this := [winner.number, plan.final_seeds]) not in told:
                study.update(told=[*told, this])
            result["told"] = len(study.info["told"])
            result["importance"] = store.patiently(lambda: _importance(store.study, plan))
            result["trials"] = {s: sum(e["state"] == s for e in study.info["trials"]) for s in STATES.values()}
            if len(plan.objectives) > 1:
                result["front"] = sorted(t.number for t in store.patiently(lambda: store.study.best_trials))
            result["advice"] = advice(study.info, result)
            study.update(result=result, given=_given(search.config))
            write_study_report(study.path, study.info)
    except Timeout:
        pass  # another worker of this folder does it


def _final(
    name: str,
    run: runs.Run,
    read: Callable[[], Table],
    config: Config,
    observe: StudyListener,
    stop: Callable[[], bool],
) -> runs.Run:
    there = run.info if run.layout.run.is_file() else {}
    same = there.get("config") == config.dump()
    if same and there.get("status") == "finished":
        return run
    observe(FinalStarted(name))
    resume = same and run.is_resumable
    return run_seeds(
        read, config, run.path, resume=resume, overwrite=bool(there) and not resume, observe=observe, stop=stop
    )


def _result(winner: FrozenTrial, best: runs.Run, defaults: runs.Run, plan: Plan, is_default: bool) -> dict[str, Any]:
    result: dict[str, Any] = {
        "trial": winner.number,
        "settings": dict(winner.params),
        "is_default": is_default,
        "score": score_of(winner, plan),
        "values": dict(zip(plan.objectives, winner.values, strict=True)),
        "test": best.metrics["splits"]["test"]["metrics"][PRIMARY],
        "texts": best.metrics["splits"]["test"]["texts"],
        "defaults": {"test": defaults.metrics["splits"]["test"]["metrics"][PRIMARY]},
    }
    if plan.final_seeds > 1:
        for found, run in ((result, best), (result["defaults"], defaults)):
            found["seeds"] = {"n": plan.final_seeds, **run.metrics["seeds"]["test"][PRIMARY]}
    if is_default:
        result["verdict"] = "no trial was better on validation than what train does with the same flags"
        return result
    value, low, high = _difference(best, defaults)
    result["difference"] = {"metric": PRIMARY, "value": value, "interval": [low, high]}
    sentence = verdict(
        value, low, high, result["texts"], rival="what train does with the same flags", if_worse=": use that"
    )
    over = f" in the mean of {plan.final_seeds} seeds" if plan.final_seeds > 1 else ""
    result["verdict"] = f"on test it is{over} {sentence}"
    return result


def _difference(best: runs.Run, defaults: runs.Run) -> tuple[float, float, float]:
    """Return by how much a run beats another on test, with the interval; of several seeds it is that of the means."""
    values, draws = [], []
    for ours, theirs in zip(best.members or [best], defaults.members or [defaults], strict=True):
        frames = [run.predictions.sort_values(["row", "text"], ignore_index=True) for run in (ours, theirs)]
        first, second = (np.stack(frame["probabilities"].to_list()).argmax(axis=1) for frame in frames)
        targets, n_classes = targets_of(frames[0], best.labels), len(best.labels)
        values.append(
            label_metrics(targets, first, n_classes)[PRIMARY] - label_metrics(targets, second, n_classes)[PRIMARY]
        )
        draws.append(  # of the same resamples for every seed
            resampled_differences(
                targets,
                first,
                second,
                n_classes,
                seed=best.info["config"]["seed"],
                groups=groups_in(frames[0]),
            )
        )
    low, high = np.percentile(np.mean(draws, axis=0), TAILS)
    return float(np.mean(values)), float(low), float(high)


def _importance(study: optuna.Study, plan: Plan) -> dict[str, float]:
    """Return the share of the scores' spread that goes back to each setting; empty where nothing can be said."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    index = plan.objectives.index(PRIMARY)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that less is better for it, which the sign takes care of
            found = get_param_importances(
                study, evaluator=PedAnovaImportanceEvaluator(), target=lambda t: -t.values[index]
            )
    except (ValueError, RuntimeError):
        return {}
    return {name: float(value) for name, value in found.items()}


def _given(config: Config) -> dict[str, Any]:
    """Return the settings that are not at their defaults."""
    usual = Config().dump()
    return {name: value for name, value in config.dump().items() if value != usual[name]}


def _toml(config: Config) -> str:
    """Return settings as a file for ``train --config``; what is at its default is left out."""
    left_out = ("validation", "test", "sql", "db", "corrections", "set")
    lines = ["# The winner's settings: bertsmith train TABLE -o RUN --config best.toml"]
    lines += [f"{name} = {json.dumps(value)}" for name, value in _given(config).items() if name not in left_out]
    if config.set:
        lines += ["", "[set]", *(f"{name} = {json.dumps(value)}" for name, value in config.set.items())]
        if "eval_steps" in config.set:
            lines.append("# eval_strategy and eval_steps suit this table: leave both out for a larger one.")
    return "\n".join(lines) + "\n"
