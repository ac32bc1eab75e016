"""The end of a study: train the winner and the defaults, compare them on the test texts, write the result."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState

from bertsmith.config import Config
from bertsmith.data.table import Table
from bertsmith.data.template import stored_groups
from bertsmith.errors import ConfigError, RunFolderError
from bertsmith.evaluation.baseline import verdict
from bertsmith.evaluation.evaluate import difference_interval, paired_differences
from bertsmith.events import FinalStarted, StudyListener
from bertsmith.folders import atomic
from bertsmith.folders.claim import known_settings
from bertsmith.folders.run import Run, damage_errors
from bertsmith.folders.study import DEFAULTS, Study
from bertsmith.report.report import text_names
from bertsmith.report.study import advice, write_study_report
from bertsmith.tasks.registry import get_task
from bertsmith.tuning.config import StudyConfig
from bertsmith.tuning.store import ERROR, Store, is_done
from bertsmith.workflows.seeds import run_seeds
from bertsmith.workflows.trial_workers import STATES, STEPS_PER_EPOCH, Search, primary_score, rank_key


def trial_records(trials: list[FrozenTrial], cv: int | None) -> list[dict[str, Any]]:
    """Return the trials that are done as entries of ``study.json``; ``cv`` is the number of folds."""
    steps_per_unit = 1 if cv else STEPS_PER_EPOCH
    return [
        {
            "number": t.number,
            "state": STATES.get(t.state, "failed"),
            "values": list(t.values or []) if t.state == TrialState.COMPLETE else [],
            "seconds": t.user_attrs.get("seconds"),
            "settings": dict(t.params),
            "curve": t.user_attrs.get("curve")
            or [(step / steps_per_unit, value) for step, value in sorted(t.intermediate_values.items())],
            "why": t.user_attrs.get(ERROR, ""),
        }
        for t in trials
        if is_done(t)
    ]


def finish_study(
    study: Study,
    store: Store,
    table: Table,
    search: Search,
    config: Config,
    defaults: Mapping[str, Any],
    observe: StudyListener,
    stop: Callable[[], bool],
) -> None:
    """Train the winner and, for comparison, ``config`` without the search; test each once; write the result.

    If another process completes a better trial meanwhile, that trial is the winner.
    """
    study_config = search.study_config
    tested: int | None = None
    try:
        with FileLock(study.path / ".finish.lock", timeout=0):
            while (winner := _best_trial(store)).number != tested:
                tested = winner.number
                is_default = dict(winner.params) == dict(defaults) and search.config == config
                default_config = config.model_copy(update={"seeds": study_config.final_seeds})
                tuned_config = search.trial_config(winner.params).model_copy(update={"seeds": study_config.final_seeds})
                best_config = default_config if is_default else tuned_config
                atomic.write_text(study.settings, _toml(best_config))
                best = _train_final("the best settings", study.best, table, best_config, observe, stop)
                baseline = best
                if not is_default:  # only the winner measures what columns are worth
                    default_config = default_config.model_copy(update={"no_ablation": True})
                    run = Run(study.path / DEFAULTS)
                    baseline = _train_final("the default settings", run, table, default_config, observe, stop)
                result = _result(winner, best, baseline, study_config, is_default)
                trials = store.trials
                same = [t for t in trials if t.state == TrialState.COMPLETE and dict(t.params) == dict(defaults)]
                result["defaults"]["score"] = primary_score(same[0]) if same and search.config == config else None
                revealed = study.info.get("told", [])  # test results that the user has seen so far
                if (entry := [winner.number, study_config.final_seeds]) not in revealed:
                    revealed = [*revealed, entry]
                study.update(told=revealed, trials=trial_records(trials, study_config.cv))
                result["told"] = len(revealed)
                result["importance"] = store.retry(lambda: _importance(store.study))
                result["trials"] = {s: sum(t["state"] == s for t in study.info["trials"]) for s in STATES.values()}
                if len(study_config.objectives) > 1:
                    result["front"] = sorted(t.number for t in store.retry(lambda: store.study.best_trials))
                result["advice"] = advice(study.info, result)
                study.update(result=result, given=_without_defaults(search.config))
                write_study_report(study.path, study.info)
    except Timeout:
        pass  # another process on this folder trains the winner


def _best_trial(store: Store) -> FrozenTrial:
    trials = store.trials
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    if not complete:
        errors = [t.user_attrs[ERROR] for t in trials if ERROR in t.user_attrs]
        raise ConfigError(
            f"the study has no complete trial: {errors[0] if errors else 'the time limit was reached'}",
            remedy="Change the settings or the search space." if errors else "Allow a longer search with --minutes.",
        )
    return max(complete, key=rank_key)


def _train_final(
    name: str, run: Run, table: Table, config: Config, observe: StudyListener, stop: Callable[[], bool]
) -> Run:
    info = run.info if run.layout.run.is_file() else {}
    with damage_errors(run.layout.run):
        known = known_settings(info["config"]) if info else {}
    # Older versions also compared the columns of the defaults.
    if known and {**known, "no_ablation": config.no_ablation} == config.dump():
        if info.get("status") == "finished":
            return run
        config = config.model_copy(update={"no_ablation": known["no_ablation"]})
    observe(FinalStarted(name))
    resume = known == config.dump() and run.is_resumable
    return run_seeds(
        table, config, run.path, resume=resume, overwrite=bool(info) and not resume, observe=observe, stop=stop
    )


def _result(
    winner: FrozenTrial, best: Run, baseline: Run, study_config: StudyConfig, is_default: bool
) -> dict[str, Any]:
    n_seeds, primary = study_config.final_seeds, study_config.objectives[0]
    test = best.metrics["splits"]["test"]
    result: dict[str, Any] = {
        "trial": winner.number,
        "settings": dict(winner.params),
        "is_default": is_default,
        "score": primary_score(winner),
        "values": dict(zip(study_config.objectives, winner.values, strict=True)),
        "test": test["metrics"][primary],
        "texts": test["texts"],
        "defaults": {"test": baseline.metrics["splits"]["test"]["metrics"][primary]},
    }
    if n_seeds > 1:
        for entry, run in ((result, best), (result["defaults"], baseline)):
            entry["seeds"] = {"n": n_seeds, **run.metrics["seeds"]["test"][primary]}
        result["seeds"]["held_out"] = text_names(best.metrics)["held_out"]
    if is_default:
        where = "in cross-validation" if study_config.cv else "on validation"
        result["verdict"] = f"no trial was better {where} than the default settings"
        return result
    result["difference"] = _difference(best, baseline)
    sentence = verdict(
        result["difference"],
        result["texts"],
        metric=get_task(best.task).primary_name,
        rival="the default settings",
        if_worse=": use the defaults",
    )
    mean = f" averaged over {n_seeds} seeds," if n_seeds > 1 else ""
    result["verdict"] = f"on test,{mean} the winner is {sentence}"
    return result


def _difference(best: Run, baseline: Run) -> dict[str, Any]:
    """Return the difference of two runs in the primary test metric, averaged over seeds, and its interval."""
    values, draws, task = [], [], get_task(best.task)
    for pair in zip(best.members or [best], baseline.members or [baseline], strict=True):
        frames = [run.predictions.sort_values(["row", "text"], ignore_index=True) for run in pair]
        texts = [frame[["row", "text"]] for frame in frames]
        if not texts[0].equals(texts[1]):  # as in an unfinished study of an older version
            raise RunFolderError(
                "the winner and the defaults have different test texts, so bertsmith cannot compare them",
                where=str(best.path.parent),
                remedy=f"Delete its folders {best.path.name} and {baseline.path.name}, and run the command again.",
            )
        first, second = (task.stored_scores(frame) for frame in frames)
        targets, groups = task.stored_targets(frames[0], best.labels), stored_groups(frames[0])
        seed = best.info["config"]["seed"]  # the same resamples for every seed of the models
        value, drawn = paired_differences(task, targets, first, second, seed=seed, groups=groups)
        values.append(value)
        draws.append(drawn)
    interval = difference_interval(np.mean(draws, axis=0), groups)
    return {"metric": task.primary, "value": float(np.mean(values)), "interval": interval}


def _importance(study: optuna.Study) -> dict[str, float]:
    """Return the share of each setting in the variation of the scores; empty if it cannot be computed."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the evaluator expects lower values to be better: hence the minus below
            importance = get_param_importances(
                study, evaluator=PedAnovaImportanceEvaluator(), target=lambda t: -t.values[0]
            )
    except (ValueError, RuntimeError):
        return {}
    return {name: float(value) for name, value in importance.items()}


def _without_defaults(config: Config) -> dict[str, Any]:
    """Return the settings that differ from their defaults, or have another meaning if the user sets them."""
    defaults, sizes = Config().dump(), {"validation_size", "test_size"} & config.model_fields_set
    return {name: value for name, value in config.dump().items() if value != defaults[name] or name in sizes}


def _toml(config: Config) -> str:
    """Return the settings that differ from their defaults, as a file for ``train --config``."""
    omitted = ("validation", "test", "sql", "corrections", "set")
    lines = ["# Settings of the winner: bertsmith train TABLE -o RUN --config best.toml"]
    lines += _toml_pairs({name: value for name, value in _without_defaults(config).items() if name not in omitted})
    if config.set:
        lines += ["", "[set]", *_toml_pairs(config.set)]
        if "eval_steps" in config.set:
            lines.append("# eval_strategy and eval_steps fit the size of this table; remove both for a larger table.")
    return "\n".join(lines) + "\n"


def _toml_pairs(values: Mapping[str, Any]) -> list[str]:
    """Return values by name; TOML has no null."""
    return [f"{name} = {_toml_value(value)}" for name, value in values.items() if value is not None]


def _toml_value(value: Any) -> str:
    if isinstance(value, Mapping):
        quoted = {_toml_value(str(name)): entry for name, entry in value.items()}
        return f"{{ {', '.join(_toml_pairs(quoted))} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml_value(entry) for entry in value if entry is not None)}]"
    if isinstance(value, float):  # JSON has no infinity
        return float.__repr__(value)
    # Strings are as in JSON, but without surrogate pairs, and with an escape for DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
