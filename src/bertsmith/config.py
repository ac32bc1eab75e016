"""Every setting, once: its name, type, range, default and help.

The command line, the ``BERTSMITH_…`` environment variables, the configuration file and the Python API take these names;
`bertsmith.resolve` merges them.
"""

from __future__ import annotations

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

from bertsmith.errors import is_valid_path

PRIMARY = "macro_f1"
"""The metric that chooses the best epoch, the decision rule and the winner of a study."""
FEWEST_TO_SELECT = 20
"""With fewer validation texts no epoch is selected, and the last weights are kept."""
DEFAULT_MODEL = "google-bert/bert-base-uncased"

Long = Literal["truncate", "window"]
"""How texts longer than the maximum length are read: their beginning, or all of them window by window."""
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


class Source:
    """A table that is not a file, as a setting: a data frame, a dataset, or an address on the hub.

    It stands for the table where settings are printed, compared and saved.
    """

    def __init__(self, table: Any) -> None:
        self.table = table

    def __repr__(self) -> str:
        return self.table if isinstance(self.table, str) else f"a {type(self.table).__name__} in memory"


def _as_source(value: Any) -> Any:
    if isinstance(value, str):
        return Source(value) if value.startswith("hf://") else Path(_as_path(value))
    if value is None or isinstance(value, Path | Source):
        return value
    if {kind.__module__.partition(".")[0] for kind in type(value).__mro__} & {"pandas", "datasets"}:
        return Source(value)
    raise PydanticCustomError(
        "table", "Input should be a path, hf://owner/name, a pandas data frame or a datasets.Dataset"
    )


TableSource = Annotated[
    Path | InstanceOf[Source] | None,
    BeforeValidator(_as_source),
    PlainSerializer(str, when_used="json-unless-none"),
    WithJsonSchema({"type": "string", "format": "path"}),
]


class Step(BaseModel):
    """What the settings of every step have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class DataConfig(Step):
    """Step 1: where the table is, which columns to use, how to split."""

    text_column: str | None = Field(None, description="Column that holds the texts; found by name unless given.")
    label_column: str | None = Field(None, description="Column that holds the label numbers (or words).")
    label_text_column: str | None = Field(None, description="Column that holds the labels in words.")
    group_column: str | None = Field(
        None, description="Keep rows with the same value here (author, document) in one split."
    )
    split_column: str | None = Field(None, description="Column that says train, validation or test for each row.")
    validation: TableSource = Field(None, description="Validation table; otherwise a share of the table is held out.")
    test: TableSource = Field(None, description="Test table; otherwise a share of the table is held out.")
    validation_size: Share = Field(0.1, description="Share of the rows held out for validation.")
    test_size: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1,
        description="Share of the rows held out for the test; 0: figures come from cross-validation, "
        "as below 300 labelled texts unless given.",
    )
    near_duplicates: Literal["together", "ignore"] = Field(
        "together", description="Keep texts that nearly repeat one another in one split, or split them as any others."
    )
    corrections: FilePath = Field(
        None, description="CSV of corrected labels, as inspect --label-errors writes it, to put into the table."
    )
    sql: str | None = Field(None, description="Query to read the table with, instead of a file (needs --db).")
    db: str | None = Field(None, description="Database URL for --sql, such as sqlite:///reviews.db.")
    sheet: str | None = Field(None, description="Excel sheet to read; the first one unless given.")
    encoding: str | None = Field(None, description="Encoding of a text file, where the guess is wrong.")
    max_unpacked: float = Field(
        4.0, gt=0, le=1024, description="Most GB that a packed table may hold; one that holds more is not unpacked."
    )


class ModelConfig(Step):
    """Step 2: which checkpoint, on which device, how long the texts may be."""

    model: Annotated[str, BeforeValidator(_as_name)] = Field(
        DEFAULT_MODEL, description="Checkpoint: a Hugging Face hub id, a local folder, or packaged:minilm."
    )
    max_length: int | None = Field(
        None, ge=8, le=131072, description="Tokens kept of each text; covers 99 % of the texts unless given."
    )
    device: Literal["auto", "cuda", "mps", "cpu"] = Field("auto", description="Where to compute.")
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU cores to use; all that this process may use unless given."
    )
    allow_pickle: bool = Field(
        False, description="Load a checkpoint that has only pickle weights (with weights_only, no code is run)."
    )


class TrainConfig(Step):
    """Steps 3 and 4: how to fine-tune. What is not given is derived from the data and said."""

    epochs: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        None, description="Most passes over the training texts; early stopping may take fewer."
    )
    batch_size: int | None = Field(None, ge=1, le=65536, description="Texts per optimizer step.")
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="Peak learning rate.")
    head_rate: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        None, description="Learning rate of the new head, as a multiple of that of the body."
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Learning rate of a layer, as a multiple of that of the one above it; 1: all alike."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="Share of the activations that is dropped; as in the checkpoint unless given."
    )
    consistency: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="Weight of R-Drop, by which each text is read twice and to be labelled alike; 0: read once."
    )
    patience: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description="Epochs without a better macro-F1 before training stops."
    )
    cv: Annotated[int, Field(ge=0, le=100)] | None = Field(
        None,
        description="Cross-validate with K folds, then train on all texts but those of the test; "
        "0: hold out validation texts. 3 below 300 labelled texts unless given, else 0.",
    )
    imbalance: Literal[
        "auto", "none", "weights", "effective-number", "focal", "logit-adjustment", "balanced-sampling"
    ] = Field(
        "auto",
        description="What to do about classes of unequal size; auto: tune a decision rule afterwards.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Number format of the training arithmetic; the weights stay fp32."
    )
    seed: int = Field(42, ge=0, lt=2**32, description="Seed of the split, the new head, the data order and dropout.")
    seeds: int = Field(
        1, ge=1, le=100, description="Train with this many seeds, keep the best by validation, and say the spread."
    )
    set: dict[str, Any] = Field(
        default_factory=dict,
        description="Any field of transformers.TrainingArguments, as NAME=VALUE; may be repeated.",
    )
    keep_checkpoints: bool = Field(False, description="Keep the checkpoints folder after training has finished.")
    profile: bool = Field(
        False, description="Write RUN/trace.json: what the machine does in five steps, for ui.perfetto.dev."
    )


class EvalConfig(Step):
    """Step 4, second half: how to decide, given the probabilities."""

    decision_rule: Literal["auto", "off"] = Field(
        "auto", description="Tune offsets of the classes for macro-F1 on validation, where that measurably helps."
    )
    explanations: Literal["auto", "off"] = Field(
        "auto", description="Explain the most confident mistakes on test, in a twentieth of the training time."
    )


STEPS: tuple[type[Step], ...] = (DataConfig, ModelConfig, TrainConfig, EvalConfig)


class Config(DataConfig, ModelConfig, TrainConfig, EvalConfig):
    """The resolved settings of a run: the steps' fields side by side, as the user writes them."""

    def dump(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        return self.model_dump(mode="json")
