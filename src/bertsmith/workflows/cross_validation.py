"""Cross-validation: every training text is scored by a model that was not trained on it.

With few texts, a validation split costs too many training texts. One model per fold is trained without the fold, and
its predictions calibrate the final model, which is trained on all texts. No epoch is selected on held-out texts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import gettempdir

import numpy as np

from bertsmith.config import Config
from bertsmith.data.clean import Cleaned
from bertsmith.data.split import assign_folds, split_cleaned
from bertsmith.data.table import Table
from bertsmith.data.template import texts_of
from bertsmith.errors import ConfigError, Interrupted
from bertsmith.evaluation.baseline import LinearModel
from bertsmith.evaluation.rule import Rule
from bertsmith.events import FoldDone, FoldStarted, Listener
from bertsmith.folders import atomic
from bertsmith.folders import run as runs
from bertsmith.inference.classifier import Classifier
from bertsmith.model.checkpoint import Checkpoint
from bertsmith.model.load import saved_settings
from bertsmith.model.tokens import Tokens
from bertsmith.tasks.base import Task
from bertsmith.tasks.registry import get_task
from bertsmith.training.arguments import training_arguments
from bertsmith.training.data import TokenDataset
from bertsmith.training.recipe import Recipe
from bertsmith.training.trainer import Training
from bertsmith.workflows.fine_tune import fine_tune
from bertsmith.workflows.prepare import Splits, TrainingInputs, initialize_head, prepare_model
from bertsmith.workflows.score import CrossValidation

FEW_LABELLED_TEXTS, FEW_LABELLED_TEXTS_PER_CLASS = 300, 10
"""Below one of these numbers of labelled texts, without those of a test table, cross-validation is the default."""
FEW_TEXT_FOLDS, DEFAULT_FOLDS = 3, 5
"""Default number of folds with few texts, and with many texts but no test texts."""


def are_few(texts: int, classes: int) -> bool:
    """Return whether the labelled texts are so few, for their number of classes, that all should train the model."""
    return texts < max(FEW_LABELLED_TEXTS, FEW_LABELLED_TEXTS_PER_CLASS * classes)


def choose_folds(config: Config, data: Table) -> tuple[int, float]:
    """Choose the number of folds, 0 for a validation split, and the share of test texts.

    Args:
        config: the settings. With few texts, the default share of test texts is 0, because too few would be tested.
        data: the table, with the splits that the user assigned.

    Raises:
        ConfigError: if cross-validation is requested for a table with validation texts.
    """
    split, share = data.frame["split"], config.test_size
    has_test = bool((split == "test").any())
    if (split == "validation").any():
        if config.cv or not share:
            raise ConfigError(
                "cross-validation cannot be combined with validation texts",
                where=data.name,
                remedy="Leave out --cv (or --test-size 0), or the validation texts.",
            )
        return 0, share
    few = are_few(int((split != "test").sum()), len(data.labels))
    folds = config.cv
    if folds is None and "validation_size" in config.model_fields_set and share:
        folds = 0
    if folds is None:
        folds = FEW_TEXT_FOLDS if few else 0 if share or has_test else DEFAULT_FOLDS
    return folds, 0.0 if folds and few and "test_size" not in config.model_fields_set else share


def split_into_folds(cleaned: Cleaned, k: int, test_size: float, config: Config, seed: int) -> tuple[Table, np.ndarray]:
    """Split a table into training and test texts, and assign a fold to each training text.

    Args:
        cleaned: the table.
        k: number of folds.
        test_size: share of the test texts, unless the table has test texts.
        config: the settings.
        seed: seed of split and folds.

    Returns:
        The table, and the fold of each training text, shape (training texts,).

    Raises:
        ConfigError: if the table has too few texts.
    """
    data = split_cleaned(cleaned, config, seed, test_size=test_size, folded=True)
    rows = np.flatnonzero(data.frame["split"] == "train")
    fold = assign_folds(cleaned, data, rows, k, config, seed)
    for f in range(k):
        if len(np.unique(data.codes[rows][fold != f])) < 2:
            raise ConfigError(f"--cv {k}: the training texts of a fold have only one class", remedy="Label more texts.")
    return data, fold


def split_or_fold(
    cleaned: Cleaned, config: Config, seed: int, resumed: runs.Run | None = None, *, single_process: bool = True
) -> tuple[Table, np.ndarray | None]:
    """Split a table; with cross-validation, also return the fold of each training text, shape (training texts,).

    A resumed run uses its first choice of folds. A table that is too small for folds gets a validation split, unless
    the user requested cross-validation.

    Args:
        cleaned: the table.
        config: the settings.
        seed: seed of split and folds.
        resumed: the run to resume.
        single_process: whether one process trains the model.

    Raises:
        UserError: if the table cannot be split as the settings say.
    """
    if resumed is None:
        k, test_size = choose_folds(config, cleaned.table)
    else:
        with runs.damage_errors(resumed.layout.run):
            k, n_test = int(resumed.info["data"].get("folds", 0)), resumed.info["data"]["splits"]["test"]
        test_size = config.test_size if n_test else 0.0
    required = config.cv or not config.test_size
    if k and not single_process:
        if required:
            raise ConfigError(
                "cross-validation needs a single process",
                remedy="Leave out --cv or --test-size 0, or train without torchrun and --ray.",
            )
        k = 0
    if k:
        try:
            return split_into_folds(cleaned, k, test_size, config, seed)
        except ConfigError:
            if required:
                raise
    return split_cleaned(cleaned, config, seed), None


def cross_validate(
    run: runs.Run,
    config: Config,
    splits: Splits,
    inputs: TrainingInputs,
    recipe: Recipe,
    names: tuple[str, ...],
    initial_head: Callable[[np.ndarray], LinearModel | None],
    observe: Listener,
    stop: Callable[[], bool],
) -> CrossValidation | None:
    """Score the training texts by cross-validation; return ``None`` with a validation split.

    See `score_folds` for the arguments.
    """
    if splits.fold is None:
        return None
    readings = score_folds(
        inputs.checkpoint,
        inputs.task,
        config,
        recipe,
        splits.scored_tables["train"],
        inputs.tokens.take(splits.rows["train"]),
        splits.fold,
        initial_head,
        run.layout.folds,
        readings=names,
        emit=observe,
        stop=stop,
        soft_labels=inputs.train.soft_labels,
    )
    return CrossValidation(splits.fold, readings, names[-1], has_test=len(splits.rows["test"]) > 0)


def score_folds(
    checkpoint: Checkpoint,
    task: Task,
    config: Config,
    recipe: Recipe,
    table: Table,
    tokens: Tokens,
    fold: np.ndarray,
    initial_head: Callable[[np.ndarray], LinearModel | None],
    folder: Path,
    *,
    readings: Sequence[str],
    emit: Listener,
    stop: Callable[[], bool],
    soft_labels: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Train a model without each fold, and score the texts of the fold. Saved scores of the same texts are reused.

    Args:
        checkpoint: the checkpoint.
        task: the kind of label, fitted to the training texts.
        config: the settings.
        recipe: the training settings.
        table: the training texts.
        tokens: the tokens of the training texts.
        fold: the fold of each text, shape (texts,).
        initial_head: returns the initial head for a mask of texts, shape (texts,); ``None`` for a random head.
        folder: the folder for the texts and the probabilities of each fold.
        readings: ways to read long texts.
        emit: called with each event.
        stop: called after every step; training is interrupted if it returns true.
        soft_labels: probabilities of the classes to train on, shape (texts, classes); ``None`` to train on the labels.

    Returns:
        Scores of each way to read long texts, each of shape (texts, outputs).

    Raises:
        Interrupted: if ``stop`` returned true; scored folds are saved.
        UserError: if training fails.
    """
    k, texts, template = int(fold.max()) + 1, texts_of(table.frame), table.columns.template
    chosen = readings.index(config.long) if config.long in readings else 0
    result = np.empty((len(readings), len(texts), len(table.labels)))

    def score(rows: np.ndarray) -> float:
        return float(task.validation_metrics(table.targets[rows], result[chosen, rows])[task.primary])

    for f in range(k):
        inside, outside = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        file, saved = folder / f"{f}.npy", False
        with contextlib.suppress(OSError, ValueError, EOFError), file.open("rb") as earlier:  # not saved, or damaged
            # Another version may put other texts into the fold.
            if np.array_equal(np.load(earlier, allow_pickle=False), outside):
                result[:, outside] = np.load(earlier, allow_pickle=False)
                saved = True
        if saved:
            emit(FoldDone(f + 1, k, score(outside)))
            continue
        emit(FoldStarted(f + 1, k))
        everything = np.ones(len(texts), dtype=bool)
        loaded, _ = prepare_model(checkpoint, config, task, table.labels, texts, everything, tokens, template=template)
        initialize_head(loaded, initial_head(fold != f))
        if recipe.contrastive == "only":
            recipe = recipe.contrastive_stage(len(inside))  # as many steps as with all texts
        nothing = np.array([], dtype=np.int64)
        train, validation = (
            TokenDataset.reading(tokens.take(rows), table.targets[rows], loaded.max_length, config.long)
            for rows in (inside, nothing)
        )
        train.soft_labels = None if soft_labels is None else soft_labels[inside]
        arguments = training_arguments(recipe, config, Path(gettempdir()), loaded.device, saves=False, validates=False)
        try:
            fine_tune(Training(loaded, train, validation, arguments, recipe, task, emit=emit, stop=stop), config)
        except Interrupted as error:
            raise Interrupted(f"stopped in fold {f + 1} of {k}; saved folds: {f}") from error
        rule = Rule.from_dict(saved_settings(loaded.model.config), len(table.labels))
        classifier = Classifier(loaded, table.labels, get_task(task.name), rule)
        for i, classifier.long in enumerate(readings):
            result[i, outside] = classifier.probabilities_of(tokens.take(outside))
        folder.mkdir(exist_ok=True)
        with atomic.replaced_file(file) as temporary, temporary.open("wb") as stream:
            np.save(stream, outside)
            np.save(stream, result[:, outside])
        emit(FoldDone(f + 1, k, score(outside)))
    return dict(zip(readings, result, strict=True))
