"""What training and tuning begin with: the split texts, and a checkpoint with a new head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from transformers import set_seed

from bertsmith.compute.device import choose_device
from bertsmith.config import Config
from bertsmith.data.inspect import choose_max_length
from bertsmith.data.table import Table
from bertsmith.errors import ConfigError
from bertsmith.model.checkpoint import Checkpoint
from bertsmith.model.encode import count_tokens, n_tokens
from bertsmith.model.load import Loaded, check_vocabulary, load_model, load_tokenizer
from bertsmith.model.symbols import name_symbols
from bertsmith.training.recipe import Recipe, choose

if TYPE_CHECKING:
    from datasets import Dataset


def prepare_model(found: Checkpoint, config: Config, train: Table) -> Loaded:
    """Load a checkpoint with a new head, and choose how many tokens of each text are kept.

    Args:
        found: the checkpoint.
        config: which device, how many tokens, what dropout; its seed is that of the head.
        train: the texts to train on.

    Raises:
        UserError: if the checkpoint, the device or the number of tokens will not do.
    """
    device = choose_device(config.device)
    texts = train.frame["text"].tolist()
    tokenizer, names = name_symbols(load_tokenizer(found), texts)
    if config.max_length and config.max_length > found.max_positions:
        raise ConfigError(
            f"--max-length {config.max_length}: {found.name} takes at most {found.max_positions} tokens",
            remedy="Leave it out, or take a checkpoint for longer texts, such as answerdotai/ModernBERT-base.",
        )
    max_length = config.max_length or choose_max_length(count_tokens(texts, tokenizer), found.max_positions)
    tokenizer.model_max_length = max_length
    set_seed(config.seed)
    loaded = Loaded(load_model(found, train.labels, dropout=config.dropout), tokenizer, device, max_length, names)
    check_vocabulary(loaded.model, tokenizer, found)
    return loaded


def choose_recipe(config: Config, loaded: Loaded, train: Dataset) -> Recipe:
    """Choose the settings that the user left open.

    Args:
        config: what the user gave.
        loaded: of `prepare_model`.
        train: the training texts, encoded, with ``labels``.
    """
    return choose(
        config,
        counts=np.bincount(np.array(train["labels"]), minlength=loaded.model.config.num_labels),
        parameters=loaded.parameters,
        device=loaded.device,
        tokens=n_tokens(train),
        dropout=loaded.dropout,
    )
