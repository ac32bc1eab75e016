"""Choose a checkpoint by the language of the texts, for the setting ``model="auto"``."""

from __future__ import annotations

from collections import Counter

from bertsmith.config import DEFAULT_MODEL, Config
from bertsmith.data.language import guess_language
from bertsmith.data.table import Table
from bertsmith.events import CheckpointChosen, RunListener

AUTO = "auto"
MULTILINGUAL_MODEL = "FacebookAI/xlm-roberta-base"
MAX_TEXTS = 2000
"""Maximum number of texts whose language is guessed."""
MIN_SHARE = 0.9
"""Share of English among the guesses above which the checkpoint for English is chosen."""


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
    guesses = Counter(filter(None, map(guess_language, texts[:: -(-len(texts) // MAX_TEXTS) or 1])))
    total = guesses.total()
    if not total:
        name, reason = DEFAULT_MODEL, "bertsmith cannot guess the language of the texts"
    else:
        language, n = guesses.most_common(1)[0]
        name = DEFAULT_MODEL if guesses["English"] > MIN_SHARE * total else MULTILINGUAL_MODEL
        reason = f"{n / total:.0%} of the texts whose language bertsmith can guess are {language}"
    observe(CheckpointChosen(name, reason))
    return config.model_copy(update={"model": name})
