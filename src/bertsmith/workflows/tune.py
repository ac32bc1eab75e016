"""Search for better settings than the defaults: prepare the texts and the search space, then run the trials."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
from optuna.trial import TrialState

from bertsmith.compute.device import kept_random_states
from bertsmith.compute.machine import versions
from bertsmith.compute.memory import memory_errors
from bertsmith.config import Config
from bertsmith.data.clean import clean
from bertsmith.data.split import assign_folds, split_cleaned
from bertsmith.errors import ConfigError, Interrupted
from bertsmith.events import StudyListener, StudyStarted
from bertsmith.folders.claim import claim
from bertsmith.folders.study import Study, begin_or_resume
from bertsmith.model import checkpoint
from bertsmith.model.load import dropout_rates
from bertsmith.tasks.registry import get_task
from bertsmith.training.arguments import argument_problems, training_arguments
from bertsmith.tuning.config import StudyConfig
from bertsmith.tuning.space import Categorical, Dimension, apply_changes, default_space, read_space
from bertsmith.tuning.store import is_done
from bertsmith.workflows.cross_validation import choose_folds
from bertsmith.workflows.inspect import as_table, with_checkpoint
from bertsmith.workflows.prepare import Splits, choose_recipe
from bertsmith.workflows.study_result import finish_study, trial_records
from bertsmith.workflows.training_labels import choose_training_labels
from bertsmith.workflows.trial_workers import (
    Search,
    open_store,
    primary_score,
    run_trials,
    run_workers,
)
from bertsmith.workflows.trials import TrialData


@kept_random_states()
def run_tuning(
    source: Any,
    config: Config,
    output: Path,
    study_config: StudyConfig,
    *,
    overwrite: bool,
    observe: StudyListener,
    stop: Callable[[], bool],
) -> Study:
    """Search, then train and test the winner; see `bertsmith.tune` for the arguments."""
    if config.seeds > 1:
        raise ConfigError(
            "tune does not use the setting seeds",
            remedy="Leave it out, also as environment variable BERTSMITH_SEEDS. Pass --final-seeds instead.",
        )
    if not config.test_size:
        raise ConfigError(
            "test_size must be greater than 0: a study needs test texts that no trial uses",
            remedy="Leave out the setting test_size.",
        )
    if overwrite and study_config.storage:
        raise ConfigError(
            "--overwrite cannot be combined with --storage: bertsmith does not delete a study in a database",
            remedy="To continue the study, leave out --overwrite. To begin again, pass another -o and --storage.",
        )
    if study_config.models:
        config = config.model_copy(update={"model": study_config.models[0]})
    changes = read_space(study_config.space, argument_problems) if study_config.space else {}
    study = Study(output)
    with claim(study, overwrite=overwrite):
        if stop():
            raise Interrupted("stopped before the search began")
        table = as_table(source, config)
        study_config = study_config.for_metric(get_task(table.task).primary)
        config = with_checkpoint(config, table, observe)
        cleaned = clean(table)
        if not (cleaned.table.frame["split"] == "test").any() and not choose_folds(config, cleaned.table)[1]:
            # By default, so small a table has no test texts: set test_size for the final runs and in best.toml.
            config = config.model_copy(update={"test_size": config.test_size})
        texts = split_cleaned(cleaned, config, config.seed)
        splits = Splits(cleaned, texts, None)
        train, validation = (splits.scored_tables[name] for name in ("train", "validation"))
        rows = np.concatenate([splits.rows[name] for name in ("train", "validation")])
        cv = study_config.cv
        data = TrialData(train, validation, assign_folds(cleaned, texts, rows, cv, config, config.seed) if cv else None)
        search, defaults = _start_search(data, config, study_config, changes, output, splits, overwrite)
        store = open_store(search, observe, stop)
        try:
            store.suggest_first({n: dim.nearest(defaults[n]) for n, dim in search.space.items() if n in defaults})
            scores = [primary_score(t) for t in store.trials if t.state == TrialState.COMPLETE]
            observe(
                StudyStarted(
                    study_config.trials,
                    sum(map(is_done, store.trials)),
                    max(scores, default=None),
                    search.space,
                    (len(train), len(validation), len(texts) - len(train) - len(validation), len(cleaned.dropped)),
                    tuple(text for text, n in zip(texts.labels.texts, validation.counts, strict=True) if not n),
                    (search.name, store.n_other_studies) if study_config.storage else None,
                    folds=cv or 0,
                )
            )
            try:
                (run_trials if study_config.jobs == 1 else run_workers)(store, search, observe, stop)
            finally:
                study.update(trials=trial_records(store.trials, cv))
            finish_study(study, store, table, search, config, defaults, observe, stop)
        finally:
            store.close()
    return study


@memory_errors("out of memory: {error}", "Free memory, raise the memory limit, or use a smaller --model.")
def _start_search(
    data: TrialData,
    config: Config,
    study_config: StudyConfig,
    changes: Mapping[str, Dimension | Any],
    output: Path,
    splits: Splits,
    overwrite: bool,
) -> tuple[Search, dict[str, Any]]:
    """Build the search space, and check that the folder has no study of another search.

    Returns:
        The search, and the value that `train` would use in each dimension of the space.
    """
    choices = changes.get("model")
    models = choices.values if isinstance(choices, Categorical) else study_config.models
    # This also reports a missing checkpoint before the search.
    limits = [checkpoint.resolve(name, allow_pickle=config.allow_pickle).max_positions for name in models]
    loaded, train, _ = data.prepare(config)
    recipe = choose_recipe(config, data.task, loaded, train)
    counts = data.train.counts[data.train.counts > 0]
    rates = set(dropout_rates(loaded.model.config).values())
    space, defaults = default_space(
        config,
        recipe,
        n_texts=len(data.train),
        imbalance_ratio=float(counts.max() / counts.min()),
        imbalances=data.task.imbalances,
        max_length=loaded.max_length if all(limit >= loaded.max_length for limit in limits) else None,
        dropout=rates.pop() if len(rates) == 1 else None,
        models=study_config.models,
    )
    space, fixed = apply_changes(space, config, changes)
    arguments = training_arguments(recipe, config, Path(gettempdir()), loaded.device, task=data.task, saves=False)
    chosen = {**vars(arguments), **vars(config), **vars(recipe), "max_length": loaded.max_length}
    for name, dimension in space.items():
        setting = getattr(config, name, None)
        if isinstance(dimension, Categorical) and setting in dimension.values:  # perhaps "auto"
            defaults[name] = setting
        elif name not in defaults and (value := chosen.get(name)) is not None:
            defaults[name] = value
    if not space:
        raise ConfigError(
            "the search space is empty: every setting is fixed",
            remedy="Fix fewer settings, so that the search can vary the others.",
        )
    fingerprints = splits.data.fingerprints
    searched = {
        "settings": fixed.dump(),
        "space": {name: asdict(dimension) for name, dimension in space.items()},
        "objectives": list(study_config.objectives),
        "cv": study_config.cv,
        "data": fingerprints[0],
    }
    study = Study(output)
    begin_or_resume(study, searched, fingerprints=fingerprints, overwrite=overwrite)
    study.update(versions=versions(), result=None)
    if not study_config.cv:
        data.labels = choose_training_labels(study, splits, partial(data.embed, config, loaded), config)
    search = Search(
        data,
        fixed,
        study_config,
        space,
        fixed.batch_size or recipe.batch_size,
        _study_name(study.info["searched"]),
        output,
        time.time() + 60 * study_config.minutes if study_config.minutes else None,
    )
    return search, {name: value for name, value in defaults.items() if name in space}


def _study_name(searched: Mapping[str, Any]) -> str:
    """Return the name of the study in a shared storage. It does not depend on paths, so machines find the same study.

    Args:
        searched: entry of ``study.json``; a study of an older version, with fewer settings, keeps its name.
    """
    local = ("validation", "test", "db", "corrections", "device", "threads", "no_token_cache")
    settings = {name: value for name, value in searched["settings"].items() if name not in local}
    content = json.dumps({**searched, "settings": settings}, sort_keys=True, default=str)
    return f"bertsmith-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
