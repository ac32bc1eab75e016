"""Fine-tune on all rows of a table, without a run folder and without a test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir

import numpy as np

from bertsmith.compute.device import kept_random_states
from bertsmith.compute.memory import memory_errors
from bertsmith.config import Config
from bertsmith.data.clean import clean
from bertsmith.data.split import split_cleaned
from bertsmith.data.table import Table
from bertsmith.evaluation.rule import Rule
from bertsmith.inference.classifier import Classifier
from bertsmith.model.load import fold_calibration, saved_settings
from bertsmith.tasks.registry import get_task
from bertsmith.training.arguments import training_arguments
from bertsmith.training.trainer import Training
from bertsmith.workflows.cross_validation import are_few
from bertsmith.workflows.fine_tune import fine_tune
from bertsmith.workflows.prepare import (
    MAX_EMBEDDED_TEXTS,
    check_effort,
    choose_recipe,
    fit_head,
    prepare_inputs,
    sample_texts,
)


@kept_random_states()
@memory_errors("out of memory", "Free memory, or use a smaller model.")
def fit_in_memory(table: Table, config: Config) -> Classifier:
    """Fine-tune a classifier on a table. Nothing is written.

    A share of the rows validates: it selects the epoch, and sets the calibration and the decision rule. With few rows,
    see `bertsmith.workflows.cross_validation.are_few`, all of them train, and the last weights are the result.

    Args:
        table: the rows; splits of the user are ignored.
        config: the settings.

    Raises:
        UserError: for everything that the user can fix.
    """
    check_effort(config)
    cleaned = clean(table)
    few = are_few(len(cleaned.table), len(cleaned.table.labels))
    size = 0.0 if few else config.validation_size
    data = split_cleaned(cleaned, config, config.seed, validation_size=size, test_size=0.0)
    inputs = prepare_inputs(data, config)
    loaded, task = inputs.loaded, inputs.task
    rows = np.flatnonzero(data.frame["split"] == "train")
    if loaded.mean_pooling:
        most = len(rows) if config.effort == "quick" else MAX_EMBEDDED_TEXTS
        chosen = rows[sample_texts(data.codes[rows], most, task=task, seed=config.seed)]
        fit_head(loaded, task, inputs.tokens.take(chosen), data.targets[chosen])
    recipe = choose_recipe(config, task, loaded, inputs.train, validates=not few)
    arguments = training_arguments(
        recipe, config, Path(gettempdir()), loaded.device, task=task, saves=False, validates=not few
    )
    fine_tune(Training(loaded, inputs.train, inputs.validation, arguments, recipe, task), config)
    final = get_task(data.task)
    rule = Rule.from_dict(saved_settings(loaded.model.config), len(data.labels))
    classifier = Classifier(loaded, data.labels, final, rule)
    if config.long not in ("auto", "truncate"):
        classifier.long = config.long
        loaded.model.config.bertsmith = {**saved_settings(loaded.model.config), "long": config.long}
    if few:
        return classifier
    rows = np.flatnonzero(data.frame["split"] == "validation")
    held_out, scores = data.take(rows), classifier.probabilities_of(inputs.tokens.take(rows))
    tunes = config.decision_rule == "auto"
    _, rule = final.fit_rule(held_out.targets, scores, seed=config.seed, use_offsets=tunes, groups=held_out.groups)
    if not rule.is_neutral:
        classifier.rule = replace(rule, folded=fold_calibration(loaded.model, *rule.folding))
        loaded.model.config.bertsmith = {**saved_settings(loaded.model.config), **classifier.rule.to_dict()}
        classifier.set_dtype(classifier.dtype)  # copies of the weights, if any, are out of date
    return classifier
