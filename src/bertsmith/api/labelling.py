"""Choose the texts to label next, with settings as keyword arguments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from bertsmith.api.keyword_types import NextSettings
from bertsmith.api.public import public, settings_of
from bertsmith.errors import to_path
from bertsmith.folders.run import Run

if TYPE_CHECKING:
    import pandas as pd

    from bertsmith.events import PredictionListener


@public("train")
def next_texts(
    run: Run | Path | str,
    pool: Any = None,
    *,
    n: int = 100,
    random_share: float = 0.2,
    on_event: PredictionListener | None = None,
    **settings: Unpack[NextSettings],
) -> pd.DataFrame:
    """Choose the texts to label next: uncertain and diverse texts, texts of rare classes, and a random sample.

    Except for random texts, bertsmith does not choose near-duplicates of chosen texts or of texts in the project.

    Args:
        run: the run, its folder, or the folder of a project of ``bertsmith label``. A project also queues the texts.
        pool: the texts without labels, as for `predict`.
        n: number of texts.
        random_share: share of the texts to draw at random, between 0 and 1. Test a model on these texts only.
        on_event: called with each event (see `bertsmith.events`).
        **settings: fields of `DataConfig` and `ModelConfig` for reading the pool, the checkpoint of the embeddings of a
            project, the device, and ``seed``.

    Returns:
        The chosen rows of the pool with their columns, and ``row`` (from 1), ``reason`` (``"uncertain"``,
        ``"diverse"``, ``"rare"`` or ``"random"``), ``random``, and ``inclusion_probability``. That is the probability
        that the random draw puts a text of the pool into these rows. It is missing for texts that were not drawn at
        random. If too few texts of the pool differ, there are fewer than ``n`` rows. Over all calls, the random sample
        contains at most a fifth of the pool, and at most 1,000 texts. If too few of these are left, more rows have
        another reason.
        With ``random_share=1``, this limit holds only if other texts of the pool are in the project or in the table of
        the run.

    Raises:
        UserError: if the pool cannot be read or has no new text, or run or project are not usable.
    """
    from bertsmith.data.table import to_frame
    from bertsmith.workflows.choose_texts import choose_texts

    config = settings_of(settings, NextSettings)
    folder = to_path(run, "run")
    observe = on_event or (lambda event: None)
    return to_frame(choose_texts(folder, pool, config, n, random_share=random_share, observe=observe).cells())
