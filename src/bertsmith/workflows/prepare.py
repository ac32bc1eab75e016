"""What training and tuning begin with: the split texts, and a checkpoint with a new head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import compress

import numpy as np
import pandas as pd
from transformers import set_seed

from bertsmith.compute.device import choose_device
from bertsmith.config import Config
from bertsmith.data.inspect import choose_max_length
from bertsmith.data.table import Labels
from bertsmith.errors import ConfigError
from bertsmith.evaluation.baseline import Regression
from bertsmith.model import pooling
from bertsmith.model.batch import TokenBatch
from bertsmith.model.checkpoint import Checkpoint
from bertsmith.model.emoji import add_emoji_names
from bertsmith.model.load import Loaded, check_vocabulary, load_model, load_tokenizer
from bertsmith.model.outputs import compute_embeddings, compute_features
from bertsmith.model.tokenizer import Tokens, encode
from bertsmith.training.data import TokenDataset
from bertsmith.training.recipe import Recipe, choose

EMBEDDED = 4000
"""Most texts of a split that are embedded before fine-tuning."""


def prepare_model(
    found: Checkpoint,
    config: Config,
    labels: Labels,
    texts: Sequence[str],
    train: np.ndarray,
    tokens: Tokens | None = None,
) -> tuple[Loaded, Tokens]:
    """Load a checkpoint with a new head, tokenize texts, and choose how many tokens of each are kept.

    A checkpoint made for sentence embeddings gets mean pooling, see `bertsmith.model.pooling`.

    Args:
        found: the checkpoint.
        config: which device, how many tokens, what dropout; its seed is that of the head.
        labels: the classes.
        texts: n texts.
        train: which of them to train on, bool, shape (n,).
        tokens: what an earlier call returned for the same checkpoint and texts.

    Returns:
        The model, and the texts tokenized, cut only at the most that the checkpoint takes.

    Raises:
        UserError: if the checkpoint, the device or the number of tokens will not do.
    """
    device = choose_device(config.device)
    tokenizer, names = add_emoji_names(load_tokenizer(found), list(compress(texts, train)))
    if config.max_length and config.max_length > found.max_positions:
        raise ConfigError(
            f"--max-length {config.max_length}: {found.name} takes at most {found.max_positions} tokens",
            remedy="Leave it out, or take a checkpoint for longer texts, such as answerdotai/ModernBERT-base.",
        )
    set_seed(config.seed)
    model = load_model(found, labels, dropout=config.dropout)
    check_vocabulary(model, tokenizer, found)
    pooled = found.has_mean_pooling and found.model_type in pooling.MODEL_TYPES
    if pooled:
        pooling.add_pooling_layer(model)
    loaded = Loaded(model, tokenizer, device, found.max_positions, names, pooled)
    tokens = encode(texts, loaded) if tokens is None else tokens
    max_length = config.max_length or choose_max_length(tokens.full_lengths[train], found.max_positions)
    tokenizer.model_max_length = max_length
    return replace(loaded, max_length=max_length), tokens


def embed(loaded: Loaded, tokens: Tokens) -> np.ndarray:
    """Return embeddings of n texts before fine-tuning, with values between −1 and 1, shape (n, hidden size).

    They are the means of the hidden states; with mean pooling in the model, what its head reads.
    """
    loaded.model.to(loaded.device).eval()
    batch = TokenBatch.from_tokens(tokens.truncate(loaded.max_length))
    if loaded.mean_pooling:
        return compute_features(loaded, batch)
    return pooling.pooled_features(compute_embeddings(loaded, batch))


def begin_head(loaded: Loaded, regression: Regression) -> None:
    """Have the head of a model with mean pooling begin as a regression on `embed`; leave others as they are."""
    if loaded.mean_pooling:
        pooling.set_head(loaded.model, regression.weight, regression.bias)


def draw_evenly(targets: np.ndarray, most: int, *, seed: int) -> np.ndarray:
    """Return the positions of some texts, in order, drawn so that each class has as many as others where it can.

    Args:
        targets: class indices, shape (n,).
        most: how many; all if there are fewer.
        seed: of the draw.
    """
    order = np.random.default_rng(seed).permutation(len(targets))
    in_class = pd.Series(targets[order]).groupby(targets[order]).cumcount().to_numpy()
    result: np.ndarray = np.sort(order[np.argsort(in_class, kind="stable")[:most]])
    return result


def choose_recipe(config: Config, loaded: Loaded, train: TokenDataset) -> Recipe:
    """Choose the settings that the user left open.

    Args:
        config: what the user gave.
        loaded: of `prepare_model`.
        train: the training texts, with their labels.
    """
    return choose(
        config,
        counts=np.bincount(train.labels, minlength=loaded.model.config.num_labels),
        parameters=loaded.parameters,
        device=loaded.device,
        tokens=int(train.lengths.sum()),
        dropout=loaded.dropout,
        fitted=loaded.mean_pooling,
    )
