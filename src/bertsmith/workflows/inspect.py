"""Read and inspect a table with the settings of a command, and choose a checkpoint for its language."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from bertsmith.config import DEFAULT_MODEL, Config, DataConfig
from bertsmith.data.clean import clean
from bertsmith.data.corrections import COLUMNS
from bertsmith.data.inspect import inspect
from bertsmith.data.language import guess_language
from bertsmith.data.read import read_table
from bertsmith.data.split import inseparable_groups
from bertsmith.data.table import Table
from bertsmith.data.template import flat_texts, texts_of
from bertsmith.errors import ConfigError, UserError, listing
from bertsmith.events import CheckpointChosen, RunListener
from bertsmith.model import checkpoint
from bertsmith.tasks.registry import get_task

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd

    from bertsmith.data.findings import Findings

AUTO = "auto"
MULTILINGUAL_MODEL = "FacebookAI/xlm-roberta-base"
MAX_GUESSED_TEXTS = 2000
"""Maximum number of texts whose language is guessed."""
MIN_SHARE = 0.9
"""Share of English among the guesses above which the checkpoint for English is chosen."""
MAX_EMBEDDED_TEXTS = 10_000
"""Number of texts up to which label errors are searched with embeddings, which take about 10 ms each on a CPU core."""


def as_table(source: Any, config: Config) -> Table:
    """Return a `Table` unchanged, and read everything else.

    Raises:
        UserError: if it cannot be read.
    """
    return source if isinstance(source, Table) else read_table(source, config)


def check_read_settings(source: Any, config: Config) -> None:
    """Refuse settings for reading a table together with a `Table`.

    Raises:
        ConfigError: naming the settings.
    """
    splitting = ("validation_size", "test_size", "near_duplicates")
    unused = [
        name
        for name, field in DataConfig.model_fields.items()
        if name not in splitting and getattr(config, name) != field.default
    ]
    if isinstance(source, Table) and unused:
        raise ConfigError(
            f"settings without effect on a Table: {listing(unused)}", remedy="Pass them to read_table instead."
        )


def with_checkpoint(config: Config, table: Table, observe: RunListener = lambda event: None) -> Config:
    """Replace the model ``auto`` by the name of a checkpoint; return other settings unchanged.

    Texts that are mostly English get `DEFAULT_MODEL`, all others `MULTILINGUAL_MODEL`. The choice depends on the texts
    alone, so that a resumed run makes the same choice.

    Args:
        config: the settings.
        table: the texts.
        observe: called with `CheckpointChosen`.
    """
    if config.model != AUTO:
        return config
    texts = table.frame["text"].dropna().tolist()
    guesses = Counter(filter(None, map(guess_language, texts[:: -(-len(texts) // MAX_GUESSED_TEXTS) or 1])))
    total = guesses.total()
    if not total:
        name, reason = DEFAULT_MODEL, "bertsmith cannot guess the language of the texts"
    else:
        language, n = guesses.most_common(1)[0]
        name = DEFAULT_MODEL if guesses["English"] > MIN_SHARE * total else MULTILINGUAL_MODEL
        reason = f"{n / total:.0%} of the texts whose language bertsmith can guess are {language}"
    observe(CheckpointChosen(name, reason))
    return config.model_copy(update={"model": name})


def inspect_table(table: Table, config: Config) -> Findings:
    """Inspect a table. Without a local tokenizer of the checkpoint, the number of tokens is an estimate."""
    config = with_checkpoint(config, table)
    tokenizer = checkpoint.find_local_tokenizer(config.model)
    if tokenizer is None:
        return inspect(table, max_length=config.max_length, config=config)
    encoder, names = checkpoint.load_encoder(tokenizer, flat_texts(table.frame.dropna(subset="text").fillna("")))
    cleaned = clean(table)
    tokens = encoder.encode(texts_of(cleaned.table.frame))
    return inspect(
        table, tokens=tokens, symbol_names=names, max_length=config.max_length, cleaned=cleaned, config=config
    )


def suspected_label_errors(
    table: Table, config: Config, observe: Callable[[str | None], None] = lambda model: None
) -> pd.DataFrame:
    """Return the rows whose labels may be wrong; see `bertsmith.label_errors`.

    Args:
        table: the table as read.
        config: the settings.
        observe: called with the checkpoint whose embeddings are used, or ``None`` for a bag of words.
    """
    from bertsmith.evaluation.baseline import tfidf_vectorizer
    from bertsmith.workflows.embeddings import embed_texts, load_embedding_model

    cleaned = clean(table)
    usable = cleaned.table

    def featurize() -> Any:
        model = _embedding_model(usable, config)
        observe(model)
        if model is None:
            return tfidf_vectorizer().fit_transform(flat_texts(usable.frame))
        return embed_texts(load_embedding_model(model, config), texts_of(usable.frame))

    units, task = inseparable_groups(cleaned, config), get_task(table.task)
    try:
        found = task.label_errors(featurize, usable.targets, table.labels, seed=config.seed, units=units)
    except UserError as error:
        error.where = error.where or table.name
        raise
    rows = usable.frame.iloc[found["position"].to_numpy()].reset_index(drop=True)
    rows = rows.assign(corrected="", **found.drop(columns="position"))
    return rows[[name for name in COLUMNS if name in rows.columns]]


def _embedding_model(table: Table, config: Config) -> str | None:
    """Return a local checkpoint that is made for embeddings and fits the texts, or ``None``."""
    from bertsmith.workflows.embeddings import embedding_checkpoint

    if len(table) > MAX_EMBEDDED_TEXTS or table.columns.template.pair_column:
        return None
    name = embedding_checkpoint(with_checkpoint(config, table))
    if (
        name != config.model
        and with_checkpoint(config.model_copy(update={"model": AUTO}), table).model != DEFAULT_MODEL
    ):
        return None  # MiniLM reads English
    file = checkpoint.find_local_tokenizer(name)
    return name if file and checkpoint.Checkpoint(name, file.parent).has_mean_pooling else None
