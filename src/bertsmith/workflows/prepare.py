"""Prepare training: the splits of a table, and a checkpoint with a new head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress

import numpy as np
import pandas as pd
from transformers import set_seed

from bertsmith.compute.device import choose_device, describe_device
from bertsmith.config import Config
from bertsmith.data.clean import Cleaned
from bertsmith.data.inspect import choose_max_length, inspect
from bertsmith.data.table import MULTI_LABEL, SINGLE_LABEL, SPLITS, Labels, Table
from bertsmith.data.template import Template, Text, flat, texts_of
from bertsmith.errors import ConfigError
from bertsmith.evaluation.baseline import LinearModel
from bertsmith.events import Prepared
from bertsmith.model import pooling
from bertsmith.model.checkpoint import Checkpoint, resolve
from bertsmith.model.emoji import add_emoji_names
from bertsmith.model.load import LoadedModel, check_vocabulary, dropout_rates, load_model, load_tokenizer
from bertsmith.model.outputs import compute_embeddings, compute_features
from bertsmith.model.tokenizer import encode
from bertsmith.model.tokens import Tokens
from bertsmith.tasks.base import Task
from bertsmith.tasks.registry import get_task, task_of_config
from bertsmith.training.data import TokenDataset
from bertsmith.training.recipe import Recipe, choose_hyperparameters

MAX_EMBEDDED_TEXTS = 4000
"""Maximum number of texts per split to embed before fine-tuning."""
TRAINING_SETTINGS = (
    "epochs",
    "batch_size",
    "learning_rate",
    "head_rate",
    "layer_decay",
    "dropout",
    "consistency",
    "patience",
    "imbalance",
    "set",
)
"""Settings without effect if only the head is fitted."""


@dataclass(frozen=True)
class Splits:
    """A cleaned table and its splits.

    Attributes:
        cleaned: the rows to use, and the dropped rows.
        data: the rows to use, with their splits.
        fold: the fold of each training text, shape (training texts,); ``None`` without cross-validation.
    """

    cleaned: Cleaned
    data: Table
    fold: np.ndarray | None

    @cached_property
    def rows(self) -> dict[str, np.ndarray]:
        """Positions in ``data`` by split."""
        return {name: np.flatnonzero(self.data.frame["split"] == name) for name in SPLITS}

    @cached_property
    def scored_rows(self) -> dict[str, np.ndarray]:
        """Positions in ``data`` of the texts to score, by split.

        With cross-validation, the training texts are scored as validation, and as test if the table has no test texts.
        """
        if self.fold is None:
            return self.rows
        train, test = self.rows["train"], self.rows["test"]
        return {"train": train, "validation": train, "test": test if len(test) else train}

    @cached_property
    def scored_tables(self) -> dict[str, Table]:
        """The texts of `scored_rows`, by split."""
        return {name: self.data.take(rows) for name, rows in self.scored_rows.items()}

    @property
    def n_folds(self) -> int:
        """Number of folds; 0 without cross-validation."""
        return 0 if self.fold is None else int(self.fold.max()) + 1


@dataclass(frozen=True)
class TrainingInputs:
    """A checkpoint with a new head, and the tokenized texts.

    Attributes:
        checkpoint: the source of the weights.
        task: the kind of label, fitted to the training texts.
        loaded: the model.
        tokens: the tokens of all texts, enough for every choice of ``config.long``.
        train, validation: the training and validation texts, as the model reads them.
    """

    checkpoint: Checkpoint
    task: Task
    loaded: LoadedModel
    tokens: Tokens
    train: TokenDataset
    validation: TokenDataset

    def training_on(self, soft_labels: np.ndarray | None, kept: np.ndarray | None) -> TrainingInputs:
        """Set the labels to train on, and leave texts out; see `with_labels`."""
        return replace(self, train=with_labels(self.train, soft_labels, kept))


def with_labels(train: TokenDataset, soft_labels: np.ndarray | None, kept: np.ndarray | None) -> TokenDataset:
    """Set the labels to train on, and leave texts out.

    Args:
        train: the training texts.
        soft_labels: class probabilities, shape (training texts, classes); ``None`` to train on the labels.
        kept: mask of the texts to train on, shape (training texts,); ``None`` for all.
    """
    train = train if kept is None else train.take(np.flatnonzero(kept))
    train.soft_labels = soft_labels
    return train


def check_effort(config: Config) -> None:
    """Refuse settings of training if only the head is fitted; neither table nor model is needed.

    Raises:
        ConfigError: naming the first such setting.
    """
    defaults = Config()
    changed = (name for name in TRAINING_SETTINGS if getattr(config, name) != getattr(defaults, name))
    if config.effort == "quick" and (name := next(changed, None)):
        flag = f"--{name.replace('_', '-')}"
        raise ConfigError(
            f"--effort quick fits only the head, so {flag} has no effect",
            remedy=f"Leave out {flag} or --effort quick.",
        )


def prepare_inputs(data: Table, config: Config) -> TrainingInputs:
    """Load the checkpoint with a new head, and tokenize every text once.

    Raises:
        UserError: if the checkpoint, the device or the number of tokens is not usable.
    """
    data.columns.template.check_long(config.long)
    checkpoint = resolve(config.model, allow_pickle=config.allow_pickle)
    train = (data.frame["split"] == "train").to_numpy()
    task, template = get_task(data.task).fitted(data.targets[train]), data.columns.template
    loaded, tokens = prepare_model(
        checkpoint, config, task, data.labels, texts_of(data.frame), train, template=template
    )
    train_set, validation_set = (
        TokenDataset.reading(tokens.take(rows), data.targets[rows], loaded.max_length, config.long)
        for rows in (np.flatnonzero(train), np.flatnonzero(data.frame["split"] == "validation"))
    )
    return TrainingInputs(checkpoint, task, loaded, tokens, train_set, validation_set)


def prepared_event(table: Table, splits: Splits, inputs: TrainingInputs, recipe: Recipe) -> Prepared:
    """Describe what is ready for training."""
    loaded = inputs.loaded
    findings = inspect(
        table,
        tokens=inputs.tokens,
        symbol_names=loaded.emoji_names,
        max_length=loaded.max_length,
        cleaned=splits.cleaned,
        test=splits.scored_tables["test"],
    )
    return Prepared(
        findings,
        splits.cleaned,
        {name: len(rows) for name, rows in splits.rows.items()},
        inputs.checkpoint.name,
        loaded.model.num_parameters(),
        describe_device(loaded.device),
        loaded.max_length,
        recipe,
        splits.n_folds,
    )


def prepare_model(
    checkpoint: Checkpoint,
    config: Config,
    task: Task,
    labels: Labels,
    texts: Sequence[Text],
    train: np.ndarray,
    tokens: Tokens | None = None,
    *,
    template: Template,
) -> tuple[LoadedModel, Tokens]:
    """Load a checkpoint with a new head, tokenize texts, and choose the maximum length.

    A sentence-embedding checkpoint gets mean pooling, see `bertsmith.model.pooling`.

    Args:
        checkpoint: the checkpoint.
        config: device, maximum length, dropout, and the seed of the head.
        task: the kind of label.
        labels: the classes.
        texts: n texts.
        train: mask of the training texts, bool, shape (n,).
        tokens: the result of an earlier call with the same checkpoint and texts.
        template: the template of the texts.

    Returns:
        The model, and the tokens. If ``config.long`` is ``"truncate"``, they are truncated at the maximum length of the
        checkpoint.

    Raises:
        UserError: if the checkpoint, the device or the maximum length is not usable.
    """
    device = choose_device(config.device)
    tokenizer, names = add_emoji_names(load_tokenizer(checkpoint), list(map(flat, compress(texts, train))))
    if config.max_length and config.max_length > checkpoint.max_positions:
        raise ConfigError(
            f"--max-length {config.max_length}: {checkpoint.name} takes at most {checkpoint.max_positions} tokens",
            remedy="Leave out --max-length, or use a checkpoint for longer texts, such as answerdotai/ModernBERT-base.",
        )
    set_seed(config.seed)
    model = load_model(checkpoint, labels, problem_type=task.problem_type, dropout=config.dropout)
    if task_of_config(model.config).name != task.name:
        model.config.bertsmith = {"task": task.name}
    check_vocabulary(model, tokenizer, checkpoint)
    pooled = checkpoint.has_mean_pooling and checkpoint.model_type in pooling.MODEL_TYPES
    if pooled:
        pooling.add_pooling_layer(model)
    loaded = LoadedModel(model, tokenizer, device, checkpoint.max_positions, names, pooled, template)
    if tokens is None:
        truncate = config.long == "truncate"
        tokens = encode(texts, loaded, truncate=truncate)
    max_length = config.max_length or choose_max_length(tokens.full_lengths[train], checkpoint.max_positions)
    tokenizer.model_max_length = max_length
    return replace(loaded, max_length=max_length), tokens


def embed(loaded: LoadedModel, tokens: Tokens) -> np.ndarray:
    """Return embeddings of n texts before fine-tuning, with values between −1 and 1, shape (n, hidden size).

    With mean pooling, an embedding is the input of the last layer; otherwise it comes from the mean hidden state.
    """
    loaded.model.to(loaded.device).eval()
    tokens = tokens.truncate(loaded.max_length)
    if loaded.mean_pooling:
        return compute_features(loaded, tokens)
    return pooling.pooled_features(compute_embeddings(loaded, tokens))


def initialize_head(loaded: LoadedModel, regression: LinearModel | None) -> None:
    """Initialize the head of a model with mean pooling as a regression on `embed`; leave it unchanged with ``None``."""
    if regression is not None:
        pooling.set_head(loaded.model, regression.weight, regression.bias)


def fit_head(loaded: LoadedModel, task: Task, tokens: Tokens, targets: np.ndarray) -> None:
    """Fit the head of a model with mean pooling as a regression on `embed` of n texts, with targets of shape (n, …)."""
    initialize_head(loaded, task.fit_head(embed(loaded, tokens), targets, loaded.model.config.num_labels))


def sample_texts(codes: np.ndarray, size: int, *, task: Task, seed: int) -> np.ndarray:
    """Sample texts, and return their positions in ascending order.

    For a single label, classes are as balanced as possible, because macro-F1 weights them equally. For other tasks, the
    sample is random, because thresholds, calibration and means depend on the distribution of the labels.

    Args:
        codes: code of the labels of each text, shape (n,).
        size: number of texts; all texts if n is smaller.
        task: the kind of label.
        seed: seed of the sample.
    """
    order = np.random.default_rng(seed).permutation(len(codes))
    if task.name != SINGLE_LABEL:
        return np.sort(order[:size])
    in_class = pd.Series(codes[order]).groupby(codes[order]).cumcount().to_numpy()
    return np.sort(order[np.argsort(in_class, kind="stable")[:size]])


def choose_recipe(
    config: Config,
    task: Task,
    loaded: LoadedModel,
    train: TokenDataset,
    *,
    may_be_contrastive: bool = True,
    validates: bool = True,
) -> Recipe:
    """Choose the training settings that the user did not set.

    Args:
        config: the settings.
        task: the kind of label.
        loaded: the model.
        train: the training texts.
        may_be_contrastive: whether one process trains, with `bertsmith.workflows.fine_tune`.
        validates: whether validation texts are scored in each epoch.

    Raises:
        ConfigError: if a setting does not fit the task.
    """
    if config.imbalance != "auto":
        task.check_imbalance(config.imbalance)
    if config.effort == "quick" and not loaded.mean_pooling:
        raise ConfigError(
            "--effort quick needs a checkpoint made for sentence embeddings",
            remedy="Pass --model packaged:minilm or another such checkpoint, or leave out --effort quick.",
        )
    return choose_hyperparameters(
        config,
        counts=task.label_counts(train.labels, loaded.model.config.num_labels),
        texts=len(train),
        parameters=loaded.model.num_parameters(),
        device=loaded.device,
        tokens=int(train.lengths.sum()),
        dropout=max(dropout_rates(loaded.model.config).values(), default=0.0),
        fitted=loaded.mean_pooling,
        may_be_contrastive=may_be_contrastive
        and task.name == SINGLE_LABEL
        and config.imbalance in ("auto", "none")
        and not config.consistency,
        validates=validates,
        may_decide=config.decision_rule == "auto" and task.name in (SINGLE_LABEL, MULTI_LABEL),
    )
