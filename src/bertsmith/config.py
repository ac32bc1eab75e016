"""Every setting, once: its name, type, range, default and help.

The command line, the ``BERTSMITH_…`` environment variables, the configuration file and the Python API take these names;
`bertsmith.load_config` merges them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PlainSerializer,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from bertsmith.errors import is_valid_path, with_article

PRIMARY = "macro_f1"
"""The metric that chooses the best epoch, the decision rule and the winner of a study."""
FEWEST_TO_SELECT = 20
"""With fewer validation texts, no epoch is selected and the last weights count."""
DEFAULT_MODEL = "google-bert/bert-base-uncased"

Long = Literal["auto", "truncate", "head-tail", "window"]
"""How texts above the maximum length are read; ``auto`` lets `train` choose, and elsewhere follows the run."""
OnError = Literal["fail", "skip"]
"""What happens to rows that cannot be read."""
CsvDialect = Literal["plain", "excel", "excel-semicolon"]
"""Delimiter, decimal separator and byte order mark of CSV."""
Share = Annotated[float, Field(gt=0, lt=1)]


def _as_path(value: Any) -> Any:
    if value is None or (isinstance(value, str | Path) and is_valid_path(value)):
        return value
    raise PydanticCustomError("path", "Should be a path")


def _as_name(value: Any) -> Any:
    if isinstance(value, str) and not value.startswith("packaged:") and not is_valid_path(value):
        raise PydanticCustomError("name", "Should be the name of a checkpoint or the path of a folder")
    return value


FilePath = Annotated[Path | None, BeforeValidator(_as_path)]


IN_MEMORY = " in memory"
"""The end of the recorded name of a table that is not a file."""


class Source:
    """A table that is not a file: a data frame, an Arrow table, a dataset, or ``hf://owner/name``."""

    def __init__(self, table: Any) -> None:
        self.table = table

    def __repr__(self) -> str:
        return self.table if isinstance(self.table, str) else f"{with_article(self.table)}{IN_MEMORY}"


def _as_source(value: Any) -> Any:
    if isinstance(value, str):
        return Source(value) if value.startswith("hf://") else Path(_as_path(value))
    if value is None or isinstance(value, Path | Source):
        return value
    if _packages(value) & {"pandas", "datasets"} or is_arrow_table(value):
        return Source(value)
    raise PydanticCustomError(
        "table", "Input should be a path, hf://owner/name, a data frame, an Arrow table or a datasets.Dataset"
    )


def is_arrow_table(value: Any) -> bool:
    """Return whether a value has an Arrow stream, as tables of Polars, DuckDB and PyArrow do.

    Data frames of pandas have one too, but bertsmith reads them directly.
    """
    return hasattr(value, "__arrow_c_stream__") and not _packages(value) & {"pandas", "datasets"}


def _packages(value: Any) -> set[str]:
    return {kind.__module__.partition(".")[0] for kind in type(value).__mro__}


TableSource = Annotated[
    Path | InstanceOf[Source] | None,
    BeforeValidator(_as_source),
    PlainSerializer(str, when_used="json-unless-none"),
    WithJsonSchema({"type": "string", "format": "path"}),
]


def _as_columns(value: Any) -> Any:
    """Return several columns as a list; a string may be a JSON list."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return value
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list | tuple):
        raise PydanticCustomError("columns", "Should be names of columns")
    if not all(isinstance(name, str) and name for name in value) or len(set(value)) < len(value):
        raise PydanticCustomError("columns", "Should be distinct names of columns")
    return _as_columns(value[0]) if len(value) == 1 else value or None


def _as_column_list(value: Any) -> Any:
    value = _as_columns(value)
    if isinstance(value, str):
        value = _as_columns([name.strip() for name in value.split(",")])
    return [value] if isinstance(value, str) else value or ()


class BaseConfig(BaseModel):
    """Base class of the sections of settings."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class DataConfig(BaseConfig):
    """Settings for reading and splitting a table."""

    text_column: Annotated[str | tuple[str, ...] | None, BeforeValidator(_as_columns)] = Field(
        None,
        description="Column with the texts; by default found by its name. May be repeated to join several columns.",
    )
    pair_column: str | None = Field(None, description="Column with the second text, for pairs of texts.")
    with_columns: Annotated[tuple[str, ...], BeforeValidator(_as_column_list)] = Field(
        (), description="Names of further columns, separated by commas, to add to the text as NAME: VALUE."
    )
    label_column: str | None = Field(None, description="Column with labels: label numbers or label texts.")
    label_text_column: str | None = Field(
        None,
        description="Column with label texts, the names of the labels. "
        "--label-column may then name the column of the label numbers.",
    )
    label_columns: Annotated[tuple[str, ...], BeforeValidator(_as_column_list)] = Field(
        (), description="Names of columns of 0 and 1, one per label, separated by commas; for --task multi-label."
    )
    label_separator: str | None = Field(
        None, min_length=1, description="Separator of several labels in a cell; detected by default."
    )
    task: Literal["auto", "single-label", "multi-label", "ordinal", "regression"] = Field(
        "auto",
        description="Kind of label: one class, several, one of ordered classes, or a number. auto: several with "
        "--label-columns or lists of several labels, otherwise one class.",
    )
    group_column: str | None = Field(
        None,
        description="Column with groups, such as authors. "
        "Intervals treat each group as one unit, and bertsmith train keeps each group in one split.",
    )
    coder_column: str | None = Field(
        None,
        description="Column with coders, if the table has one row per text and coder; "
        "bertsmith train uses the label of the majority, or the shares of the coders (soft labels).",
    )
    split_column: str | None = Field(None, description="Column with train, validation or test for each row.")
    validation: TableSource = Field(None, description="Validation table; a share of the rows by default.")
    test: TableSource = Field(None, description="Test table; a share of the rows by default.")
    validation_size: Share = Field(0.1, description="Share of the rows for validation.")
    test_size: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1,
        description="Share of the rows for the test. 0: no test split, so the metrics come from cross-validation. "
        "With few labelled texts (see --cv), 0 is the default.",
    )
    near_duplicates: Literal["together", "ignore"] = Field(
        "together", description="Keep near-duplicates in one split, or split them like other texts."
    )
    corrections: FilePath = Field(None, description="CSV of corrected labels, in the format of inspect --label-errors.")
    sql: str | None = Field(None, description="Query that returns the table, instead of a file; needs --db.")
    db: str | None = Field(None, description="Database URL for --sql, such as sqlite:///reviews.db.")
    sheet: str | None = Field(None, description="Excel sheet; the first one by default.")
    encoding: str | None = Field(None, description="Encoding of a text file; detected by default.")
    max_unpacked: float = Field(
        4.0, gt=0, le=1024, description="Maximum size of a decompressed table in GB; bertsmith refuses larger tables."
    )


class ModelConfig(BaseConfig):
    """Settings for the checkpoint and the device."""

    model: Annotated[str, BeforeValidator(_as_name)] = Field(
        DEFAULT_MODEL,
        description="Checkpoint: a Hugging Face hub id, a local folder, packaged:minilm, or auto, which chooses by the "
        "language of the texts.",
    )
    max_length: int | None = Field(
        None,
        ge=8,
        le=131072,
        description="Maximum number of tokens per text; by default, enough for 99 % of the texts.",
    )
    long: Long = Field(
        "auto",
        description="How to read texts above the maximum length. truncate: the beginning; head-tail: beginning and "
        "end; window: the whole text. auto: train chooses by the validation score; other commands read texts as in the "
        "run.",
    )
    device: Literal["auto", "cuda", "xpu", "mps", "cpu"] = Field(
        "auto", description="Device to compute on: cuda (NVIDIA, or AMD with ROCm), xpu (Intel), mps (Apple), cpu."
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="Number of CPU cores; by default all that this process may use."
    )
    allow_pickle: bool = Field(
        False,
        description="Allow pickle weights if a checkpoint has no safetensors; "
        "bertsmith loads only the weights and runs no code.",
    )


class TrainConfig(BaseConfig):
    """Settings for fine-tuning. By default, they are derived from the data and reported."""

    effort: Literal["quick", "normal"] = Field(
        "normal",
        description="quick: fit only the head, in seconds, for checkpoints made for sentence embeddings; "
        "normal: train the whole model.",
    )
    epochs: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        None, description="Maximum number of epochs; early stopping may end training earlier."
    )
    batch_size: int | None = Field(
        None,
        ge=1,
        le=65536,
        description="Texts per batch. A step has one batch, unless gradient_accumulation_steps is set.",
    )
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="Peak learning rate.")
    head_rate: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        None, description="Learning rate of the head, as a multiple of that of the encoder."
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="Layer-wise learning-rate decay: learning rate of a layer, divided by that of the layer above; "
        "1: no decay.",
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="Dropout probability; from the checkpoint by default."
    )
    consistency: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="Weight of R-Drop, a consistency loss between two passes with different dropout; 0: off."
    )
    patience: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description="Stop training after this number of epochs without a better primary metric."
    )
    cv: Annotated[int, Field(ge=0, le=100)] | None = Field(
        None,
        description="Cross-validate with N folds, then train on all but the test texts; 0: use a validation split. "
        "The default is the first of these that applies: 0 with validation texts or --validation-size; 3 with fewer "
        "than 300 labelled texts, or fewer than 10 per class on average; 5 with --test-size 0; otherwise 0.",
    )
    imbalance: Literal[
        "auto", "none", "weights", "effective-number", "focal", "logit-adjustment", "balanced-sampling"
    ] = Field(
        "auto",
        description="Handling of imbalanced classes in training; auto: none, because --decision-rule applies "
        "after training.",
    )
    label_noise: Literal["auto", "off"] = Field(
        "auto",
        description="Leave texts with probably wrong labels out of training if cross-validated regressions show that "
        "this helps. Applies to --task single-label with 300 to 4,000 training texts, at least 20 per class on "
        "average. Does not apply with --coder-column, or if bertsmith cross-validates the model (see --cv).",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Precision of training; the weights stay fp32. auto: the fastest suitable precision. "
        "On Apple GPUs, auto uses fp32; bf16 also works.",
    )
    seed: int = Field(42, ge=0, lt=2**32, description="Seed for split, head initialization, shuffling and dropout.")
    seeds: int = Field(
        1,
        ge=1,
        le=100,
        description="Number of seeds to train with; bertsmith train keeps the model with the best validation score "
        "and reports the spread.",
    )
    set: dict[str, Any] = Field(
        default_factory=dict,
        description="Field of transformers.TrainingArguments, as NAME=VALUE; may be repeated. "
        "bertsmith refuses fields that it cannot apply.",
    )
    keep_checkpoints: bool = Field(False, description="Keep the checkpoints after training.")


class EvalConfig(BaseConfig):
    """Settings for evaluation."""

    decision_rule: Literal["auto", "off"] = Field(
        "auto",
        description="auto: on validation, tune an offset to the score of each class (multi-label: a threshold for each "
        "label). bertsmith uses them only if the gain in macro-F1 exceeds its standard error.",
    )
    no_ablation: bool = Field(
        False, description="Skip the comparison with a model that reads only the first text column."
    )
    explanations: Literal["auto", "off"] = Field(
        "auto",
        description="Explain the most confident test mistakes, within 5 % of the training time, or 2 seconds if that "
        "is more.",
    )


class Config(DataConfig, ModelConfig, TrainConfig, EvalConfig):
    """All settings of a run."""

    def dump(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values, without the database URL, which can contain a password."""
        return self.model_dump(mode="json", exclude={"db"})
