"""Cross-validation within a training: every labelled text is scored by a model that was not trained on it.

Where texts are few, a validation split costs more than it gives. So the model is trained once without each fold, for
predictions that calibrate it, and once on all texts. Nothing is selected on the held-out texts: the last weights count.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from tempfile import gettempdir

import numpy as np

from bertsmith.config import PRIMARY, Config
from bertsmith.data.clean import Cleaned
from bertsmith.data.split import fold_of, split_cleaned
from bertsmith.data.table import Table
from bertsmith.errors import ConfigError, Interrupted
from bertsmith.evaluation.baseline import Regression
from bertsmith.evaluation.metrics import validation_metrics
from bertsmith.events import FoldDone, FoldStarted, Listener
from bertsmith.folders import atomic
from bertsmith.folders import run as runs
from bertsmith.inference.classifier import Classifier
from bertsmith.model.checkpoint import Checkpoint
from bertsmith.model.tokenizer import Tokens
from bertsmith.training.arguments import training_arguments
from bertsmith.training.data import TokenDataset
from bertsmith.training.recipe import Recipe
from bertsmith.training.trainer import fit
from bertsmith.workflows.prepare import begin_head, prepare_model

FEW = 300
"""Labelled texts, those of a given test table aside, below which training cross-validates by itself."""
FOLDS_OF_FEW, FOLDS = 3, 5
"""Folds then, and where there are no test texts."""


def choose_folds(config: Config, data: Table) -> tuple[int, float]:
    """Return how many folds to cross-validate with, 0 for a validation split, and the share of the test texts.

    Args:
        config: what the user set. The share of the test texts is 0 for few texts unless it is set: a tenth of them says
            nothing.
        data: the table before it is split, with the splits that are given.

    Raises:
        ConfigError: if validation texts are given as well.
    """
    given, share = data.frame["split"], config.test_size
    tested = bool((given == "test").any())
    if (given == "validation").any():
        if config.cv or not share:
            raise ConfigError(
                "the table has validation texts, and a cross-validation has none",
                where=data.name,
                remedy="Leave out --cv (or --test-size 0), or the validation texts.",
            )
        return 0, share
    few = int((given != "test").sum()) < FEW
    folds = config.cv
    if folds is None and "validation_size" in config.model_fields_set and share:
        folds = 0
    if folds is None:
        folds = FOLDS_OF_FEW if few else 0 if share or tested else FOLDS
    return folds, 0.0 if folds and few and "test_size" not in config.model_fields_set else share


def divide(cleaned: Cleaned, k: int, test_size: float, config: Config, seed: int) -> tuple[Table, np.ndarray]:
    """Split a table into training and test texts, and give each training text a fold.

    Args:
        cleaned: the table.
        k: number of folds.
        test_size: share of the test texts, unless these are given.
        config: the settings.
        seed: of split and folds.

    Returns:
        The table, and the fold of each training text, shape (training texts,).

    Raises:
        ConfigError: if there are too few texts for so many folds.
    """
    data = split_cleaned(cleaned, config, seed, validation_size=0.0, test_size=test_size)
    rows = np.flatnonzero(data.frame["split"] == "train")
    fold = fold_of(cleaned, data, rows, k, config, seed)
    for f in range(k):
        if len(np.unique(data.targets[rows][fold != f])) < 2:
            raise ConfigError(
                f"--cv {k}: without one of the folds there is only one class to train on", remedy="Label more texts."
            )
    return data, fold


def split_or_fold(
    cleaned: Cleaned, config: Config, seed: int, resumed: runs.Run | None = None, *, alone: bool = True
) -> tuple[Table, np.ndarray | None]:
    """Split a table; with cross-validation, return the fold of each training text as well, shape (texts,).

    A resumed run has the folds that it began with. A table that is too small for folds is split as usual, unless the
    user asked for a cross-validation.

    Args:
        cleaned: the table.
        config: the settings.
        seed: of split and folds.
        resumed: the run to resume.
        alone: whether one process trains the model.

    Raises:
        UserError: if the table cannot be split as the settings say.
    """
    if resumed is None:
        k, test_size = choose_folds(config, cleaned.table)
    else:
        with runs.damage_errors(resumed.layout.run):
            k, tested = int(resumed.info["data"].get("folds", 0)), resumed.info["data"]["splits"]["test"]
        test_size = config.test_size if tested else 0.0
    asked = config.cv or not config.test_size
    if k and not alone:
        if asked:
            raise ConfigError("a cross-validation trains in one process", remedy="Leave out --cv, or torchrun.")
        k = 0
    if k:
        try:
            return divide(cleaned, k, test_size, config, seed)
        except ConfigError:
            if asked:
                raise
    return split_cleaned(cleaned, config, seed), None


def score_folds(
    found: Checkpoint,
    config: Config,
    recipe: Recipe,
    table: Table,
    tokens: Tokens,
    fold: np.ndarray,
    regress: Callable[[np.ndarray], Regression],
    place: Path,
    *,
    emit: Listener,
    stop: Callable[[], bool],
) -> np.ndarray:
    """Train without each fold, and score its texts; folds that were scored before are read.

    Args:
        found: the checkpoint.
        config: the settings.
        recipe: how to train.
        table: the training texts.
        tokens: of these.
        fold: of each, shape (texts,).
        regress: fits the regression that a head begins as, to the texts that a mask, shape (texts,), picks.
        place: folder in which the probabilities of each fold are kept.
        emit: receives events.
        stop: asked after every step.

    Returns:
        Probabilities, shape (texts, classes).

    Raises:
        Interrupted: after ``stop`` said yes; the folds that are done are kept.
        UserError: if training goes wrong.
    """
    k, texts = int(fold.max()) + 1, table.frame["text"].tolist()
    result = np.empty((len(texts), len(table.labels)))
    for f in range(k):
        inside, outside = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        file = place / f"{f}.npy"
        with contextlib.suppress(OSError, ValueError):
            result[outside] = np.load(file, allow_pickle=False)
            emit(FoldDone(f + 1, k, _score(table.targets[outside], result[outside])))
            continue
        emit(FoldStarted(f + 1, k))
        every = np.ones(len(texts), dtype=bool)
        loaded, _ = prepare_model(found, config, table.labels, texts, every, tokens)
        begin_head(loaded, regress(fold != f))
        cut = tokens.truncate(loaded.max_length)
        try:
            fit(
                loaded,
                TokenDataset(cut.take(inside), table.targets[inside]),
                TokenDataset(cut.take(np.array([], dtype=np.int64)), np.array([], dtype=np.int64)),
                training_arguments(recipe, config, Path(gettempdir()), loaded.device, saves=False, validates=False),
                recipe=recipe,
                score=validation_metrics,
                emit=emit,
                user_arguments=config.set,
                stop=stop,
            )
        except Interrupted as error:
            kept = f"; the {f} before it are kept" if f > 1 else "; the one before it is kept" if f else ""
            raise Interrupted(f"stopped in fold {f + 1} of {k}, which begins anew{kept}") from error
        result[outside] = Classifier(loaded, table.labels).probabilities_of(cut.take(outside))
        place.mkdir(exist_ok=True)
        with atomic.replaced_file(file) as part, part.open("wb") as stream:
            np.save(stream, result[outside])
        emit(FoldDone(f + 1, k, _score(table.targets[outside], result[outside])))
    return result


def _score(targets: np.ndarray, probabilities: np.ndarray) -> float:
    return float(validation_metrics(targets, probabilities)[PRIMARY])
