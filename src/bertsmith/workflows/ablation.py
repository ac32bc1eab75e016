"""What the columns after the first text column are worth: the model against one that reads that column alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from bertsmith.config import Config
from bertsmith.data.table import Table
from bertsmith.data.template import Template, texts_of
from bertsmith.data.texts import normalise, signed_interval
from bertsmith.errors import listing
from bertsmith.evaluation.evaluate import paired_difference
from bertsmith.events import AblationStarted, RunListener
from bertsmith.folders.run import Run
from bertsmith.inference.classifier import Classifier
from bertsmith.tasks.registry import get_task
from bertsmith.training.recipe import Recipe
from bertsmith.workflows.baselines import FrozenEmbeddings
from bertsmith.workflows.cross_validation import score_folds
from bertsmith.workflows.prepare import TrainingInputs, prepare_model
from bertsmith.workflows.score import CrossValidation
from bertsmith.workflows.training_labels import TrainingLabels
from bertsmith.workflows.trials import TrialData, run_trial

MAX_TEXTS = 4000
"""With more training texts, both models are trained again, on a sample of this size."""


def compare_columns(
    run: Run,
    tables: dict[str, Table],
    predicted: np.ndarray,
    inputs: TrainingInputs,
    recipe: Recipe,
    config: Config,
    cross_validation: CrossValidation | None,
    *,
    observe: RunListener,
    stop: Callable[[], bool],
) -> dict[str, Any] | None:
    """Compare a model with one that reads the first text column alone, both before their rules.

    The second model is trained in the same way on the same texts, and both are scored on the test texts. With
    cross-validation, both are scored on the cross-validated texts, by models of the same folds.

    Args:
        run: the run of the model.
        tables: the texts by split.
        predicted: scores of the model for the test texts before its rule, shape (n, outputs).
        inputs: the checkpoint and the task of the model.
        recipe: the training settings of the model.
        config: the settings.
        cross_validation: the predictions of the cross-validation, if any.
        observe: called with an event before training begins.
        stop: called after every step; training is interrupted if it returns true.

    Returns:
        JSON-ready: ``added`` and ``alone`` (the columns), ``texts`` (training and scored texts), ``with`` and
        ``without`` (the primary metric), ``difference`` and ``verdict``. The result is ``None`` for a single
        column, without an ablation, or if only the head is fitted.

    Raises:
        Interrupted: if ``stop`` returned true.
        UserError: if training fails.
    """
    template = tables["train"].columns.template
    if template.is_plain or config.no_ablation or not recipe.epochs:
        return None
    observe(AblationStarted(template.text_column[0], template.added))
    alone = {name: _first_column(table) for name, table in tables.items()}
    n_train, scored = len(tables["train"]), tables["test"]
    if cross_validation is not None:
        scored, predicted = tables["train"], cross_validation.scores
        without = _cross_validate(run, alone["train"], inputs, recipe, config, cross_validation.fold, stop)
    else:
        soft_labels = inputs.train.soft_labels
        if n_train > MAX_TEXTS:
            n_train = MAX_TEXTS
            rows = np.sort(np.random.default_rng(config.seed).permutation(len(tables["train"]))[:n_train])
            tables, alone = ({**some, "train": some["train"].take(rows)} for some in (tables, alone))
            soft_labels = None if soft_labels is None else soft_labels[rows]
            predicted = _train(tables, soft_labels, config, recipe, stop)
        without = _train(alone, soft_labels, config, recipe, stop)
    task, groups = get_task(scored.task), scored.groups
    difference = paired_difference(task, scored.targets, predicted, without, seed=config.seed, groups=groups)
    values = [task.scalar_metrics(scored.targets, scores)[task.primary] for scores in (predicted, without)]
    return {
        "added": list(template.added),
        "alone": template.text_column[0],
        "texts": {"train": n_train, "scored": len(scored)},
        "with": values[0],
        "without": values[1],
        "difference": difference,
        "verdict": _verdict(template, task.primary_name, difference),
    }


def _first_column(table: Table) -> Table:
    """Return a table with the first text column alone; its rows stay the same."""
    frame, template = table.frame, table.columns.template
    first = [normalise(text) for text in frame["first" if template.by_line else "text"].fillna("")]
    frame = frame.drop(columns=["first", "pair"], errors="ignore").assign(text=pd.Series(first, dtype="str"))
    return replace(table, frame=frame, columns=replace(table.columns, template=Template(template.text_column[:1])))


def _train(
    tables: dict[str, Table], soft_labels: np.ndarray | None, config: Config, recipe: Recipe, stop: Callable[[], bool]
) -> np.ndarray:
    """Train on the train split, select the epoch on validation, and return the scores of the test texts."""
    data = TrialData(tables["train"], tables["validation"], labels=TrainingLabels(soft_labels))
    loaded = run_trial(data, config, on_score=lambda epoch, score: None, stop=stop, recipe=recipe).loaded
    assert loaded is not None  # `None` only with folds
    test = tables["test"]
    return Classifier(loaded, test.labels, get_task(test.task)).predict_proba(texts_of(test.frame))


def _cross_validate(
    run: Run,
    table: Table,
    inputs: TrainingInputs,
    recipe: Recipe,
    config: Config,
    fold: np.ndarray,
    stop: Callable[[], bool],
) -> np.ndarray:
    """Return the scores of each training text by a model that was not trained on its fold."""
    everything, template = np.ones(len(table), dtype=bool), table.columns.template
    checkpoint, task = inputs.checkpoint, inputs.task
    loaded, tokens = prepare_model(
        checkpoint, config, task, table.labels, texts_of(table.frame), everything, template=template
    )
    frozen = None
    if loaded.mean_pooling:  # otherwise, heads begin at random
        tables = {"train": table, "test": table.take(np.array([], dtype=np.int64))}
        frozen = FrozenEmbeddings.embed(task, loaded, tables, {"train": tokens}, config.seed)
    folder = run.layout.folds / "first-column"
    scores = score_folds(
        checkpoint,
        task,
        config,
        recipe,
        table,
        tokens,
        fold,
        frozen.initial_head if frozen else lambda mask: None,
        folder,
        readings=("truncate",),
        emit=lambda event: None,
        stop=stop,
        soft_labels=inputs.train.soft_labels,
    )
    return scores["truncate"]


def _verdict(template: Template, metric: str, difference: Mapping[str, Any]) -> str:
    """Phrase the difference and its interval as a sentence."""
    plural = len(template.added) > 1
    value, (low, high) = difference["value"], difference["interval"] or (0, 0)
    columns, interval = listing(template.added, 5), signed_interval(difference["interval"])
    if low > 0 or high < 0:
        effect = "raise" if low > 0 else "lower"
        return f"{columns} {effect}{'' if plural else 's'} {metric} by {abs(value):.3f} {interval}"
    return f"{columns} {'make' if plural else 'makes'} no distinguishable difference: {value:+.3f} {metric} {interval}"
