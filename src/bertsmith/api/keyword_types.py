"""Types of the keyword arguments of the Python API, for completion and type checkers.

Generated from `bertsmith.config` by ``python -m tests.keyword_types``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict


class PredictSettings(TypedDict, total=False):
    """How to read texts, and where to compute."""

    text_column: str | Sequence[str] | None
    pair_column: str | None
    with_columns: Sequence[str]
    sql: str | None
    db: str | None
    sheet: str | None
    encoding: str | None
    max_unpacked: float
    long: Literal["auto", "truncate", "head-tail", "window"]
    device: Literal["auto", "cuda", "xpu", "mps", "cpu"]
    threads: int | None


class NextSettings(PredictSettings, total=False):
    """How to read a pool, the checkpoint of its embeddings, and where to compute."""

    model: str
    max_length: int | None
    seed: int


class TableSettings(TypedDict, total=False):
    """How to read one labelled table."""

    text_column: str | Sequence[str] | None
    pair_column: str | None
    with_columns: Sequence[str]
    label_column: str | None
    label_text_column: str | None
    label_columns: Sequence[str]
    label_separator: str | None
    group_column: str | None
    coder_column: str | None
    corrections: Path | str | None
    sql: str | None
    db: str | None
    sheet: str | None
    encoding: str | None
    max_unpacked: float


class EvaluateSettings(TableSettings, total=False):
    """How to read a table, and where to compute."""

    long: Literal["auto", "truncate", "head-tail", "window"]
    device: Literal["auto", "cuda", "xpu", "mps", "cpu"]
    threads: int | None


class ReadSettings(TableSettings, total=False):
    """How to read tables that are split or not."""

    task: Literal["auto", "single-label", "multi-label", "ordinal", "regression"]
    split_column: str | None
    validation: Any
    test: Any


class LabelErrorSettings(ReadSettings, total=False):
    """How to read a table, to embed its texts, and to assign them to folds."""

    seed: int
    model: str
    max_length: int | None
    device: Literal["auto", "cuda", "xpu", "mps", "cpu"]


class InspectSettings(ReadSettings, total=False):
    """How to read and split a table, and to count tokens."""

    validation_size: float
    test_size: float
    near_duplicates: Literal["together", "ignore"]
    model: str
    max_length: int | None
    long: Literal["auto", "truncate", "head-tail", "window"]
    device: Literal["auto", "cuda", "xpu", "mps", "cpu"]
    threads: int | None
    allow_pickle: bool
    seed: int


class TuneSettings(InspectSettings, total=False):
    """How to read a table, to fine-tune and to decide, without ``cv`` and ``seeds``: `tune` has its own parameters."""

    epochs: float | None
    batch_size: int | None
    learning_rate: float | None
    head_rate: float | None
    layer_decay: float | None
    dropout: float | None
    consistency: float | None
    patience: int | None
    imbalance: Literal["auto", "none", "weights", "effective-number", "focal", "logit-adjustment", "balanced-sampling"]
    label_noise: Literal["auto", "off"]
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    set: dict[str, Any]
    keep_checkpoints: bool
    decision_rule: Literal["auto", "off"]
    no_ablation: bool
    explanations: Literal["auto", "off"]


class TrainSettings(TuneSettings, total=False):
    """How to read a table, to fine-tune and to decide."""

    cv: int | None
    effort: Literal["quick", "normal"]
    seeds: int
