"""Every setting, once: its name, type, range, default and help.

The command line, the ``BERTSMITH_…`` environment variables, the configuration file and the Python API all take these
names. Flags win over the environment, which wins over the file, which wins over the defaults.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from bertsmith.errors import ConfigError, cut, did_you_mean, is_possible, listing, quoted

ENV_PREFIX = "BERTSMITH_"
TOKEN = "BERTSMITH_TOKEN"
"""What requests to a server bring: no setting, though it is named like one."""
PRIMARY = "macro_f1"
"""The metric that chooses the best epoch, the decision rule and the winner of a study."""
FEWEST_TO_SELECT = 20
"""With fewer validation texts no epoch is selected, and the last weights are kept."""
DEFAULT_MODEL = "google-bert/bert-base-uncased"

Share = Annotated[float, Field(gt=0, lt=1)]


def _as_path(value: Any) -> Any:
    if value is None or (isinstance(value, str | Path) and is_possible(value)):
        return value
    raise PydanticCustomError("path", "Should be a path")


def _as_name(value: Any) -> Any:
    if isinstance(value, str) and not value.startswith("packaged:") and not is_possible(value):
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

    text_column: str | None = Field(None, description="Column with the texts; by default found by its name.")
    label_column: str | None = Field(
        None, description="Column with the labels, as numbers or words; by default found by its name."
    )
    label_text_column: str | None = Field(
        None, description="Column with the labels in words; by default found by its name."
    )
    group_column: str | None = Field(
        None, description="Column with groups, such as authors; all rows of a group are in the same split."
    )
    split_column: str | None = Field(None, description="Column with the split of each row: train, validation or test.")
    validation: TableSource = Field(None, description="Validation table; by default a share of the table is held out.")
    test: TableSource = Field(None, description="Test table; by default a share of the table is held out.")
    validation_size: Share = Field(0.1, description="Share of the rows for the validation split.")
    test_size: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1,
        description="Share of the rows for the test split; 0 evaluates by cross-validation, which is the default for "
        "fewer than 300 labelled texts.",
    )
    near_duplicates: Literal["together", "ignore"] = Field(
        "together", description="Keep near-duplicate texts together in one split, or ignore that they are similar."
    )
    corrections: FilePath = Field(
        None, description="CSV file with corrected labels, in the format of inspect --label-errors."
    )
    sql: str | None = Field(None, description="SQL query that returns the table; requires a database (db).")
    db: str | None = Field(None, description="Database URL for the SQL query, such as sqlite:///reviews.db.")
    sheet: str | None = Field(None, description="Excel sheet to read; by default the first one.")
    encoding: str | None = Field(None, description="Encoding of a text file; by default detected.")
    max_unpacked: float = Field(
        4.0, gt=0, le=1024, description="Largest size of a compressed table after decompression, in GB."
    )


class ModelConfig(Step):
    """Step 2: which checkpoint, on which device, how long the texts may be."""

    model: Annotated[str, BeforeValidator(_as_name)] = Field(
        DEFAULT_MODEL, description="Checkpoint: a Hugging Face Hub id, a local folder, or packaged:minilm."
    )
    max_length: int | None = Field(
        None, ge=8, le=131072, description="Maximum length of a text in tokens; by default 99 % of the texts fit."
    )
    device: Literal["auto", "cuda", "mps", "cpu"] = Field("auto", description="Device to compute on.")
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU cores to use; by default all that the process may use."
    )
    allow_pickle: bool = Field(
        False, description="Accept a checkpoint with pickled weights only; weights_only loading runs no code from it."
    )


class TrainConfig(Step):
    """Steps 3 and 4: how to fine-tune. What is not given is derived from the data and said."""

    epochs: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        None, description="Maximum number of passes over the training texts; early stopping may end sooner."
    )
    batch_size: int | None = Field(None, ge=1, le=65536, description="Texts per optimizer step.")
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = Field(None, description="Peak learning rate.")
    head_rate: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        None, description="Learning rate of the classification head, as a multiple of the learning rate of the body."
    )
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="Learning rate of a layer, as a multiple of the rate of the layer above; 1 disables the decay.",
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="Dropout probability; by default that of the checkpoint."
    )
    consistency: Annotated[float, Field(ge=0, le=100)] | None = Field(
        None, description="Weight of the R-Drop loss, which needs two forward passes per text; 0 disables it."
    )
    patience: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description="Epochs without a better validation macro-F1 before training stops."
    )
    cv: Annotated[int, Field(ge=0, le=100)] | None = Field(
        None,
        description="Number of cross-validation folds; 0 uses a validation split. The default is 3 for fewer than 300 "
        "labelled texts, else 0.",
    )
    imbalance: Literal[
        "auto", "none", "weights", "effective-number", "focal", "logit-adjustment", "balanced-sampling"
    ] = Field(
        "auto",
        description="How to handle imbalanced classes; auto tunes a decision rule after training.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Number format of the training arithmetic; the weights stay in fp32."
    )
    seed: int = Field(
        42, ge=0, lt=2**32, description="Seed of the splits, the classification head, the data order and dropout."
    )
    seeds: int = Field(
        1,
        ge=1,
        le=100,
        description="Number of seeds to train with; the best run on validation is kept and the spread is reported.",
    )
    set: dict[str, Any] = Field(
        default_factory=dict,
        description="Any field of transformers.TrainingArguments, as NAME=VALUE; may be repeated.",
    )
    keep_checkpoints: bool = Field(False, description="Keep the checkpoints folder after training.")
    profile: bool = Field(False, description="Write RUN/trace.json, a profile of five steps for ui.perfetto.dev.")


class EvalConfig(Step):
    """Step 4, second half: how to decide, given the probabilities."""

    decision_rule: Literal["auto", "off"] = Field(
        "auto", description="Tune class offsets for macro-F1 on validation, and use them if they measurably help."
    )
    explanations: Literal["auto", "off"] = Field(
        "auto", description="Explain the most confident mistakes on test, within a twentieth of the training time."
    )


STEPS: tuple[type[Step], ...] = (DataConfig, ModelConfig, TrainConfig, EvalConfig)


class Config(DataConfig, ModelConfig, TrainConfig, EvalConfig):
    """The resolved settings of a run: the steps' fields side by side, as the user writes them."""

    def dump(self) -> dict[str, Any]:
        """Return the settings as JSON-ready values."""
        return self.model_dump(mode="json")


def resolve(
    flags: Mapping[str, Any],
    file: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    api: bool = False,
    check_set: Callable[[Mapping[str, Any]], Mapping[str, str]] = lambda values: {},
) -> Config:
    """Merge flags, environment, file and defaults into one checked `Config`.

    Args:
        flags: values the user gave on the command line or as keyword arguments; ``None`` means not given.
        file: a TOML file with the same names (``-`` and ``_`` are the same; tables ``[set]`` for training arguments).
        environ: the environment; ``os.environ`` unless given.
        api: name the settings in messages as Python arguments and not as flags.
        check_set: returns what is wrong with training arguments, by name; asked where some are set.

    Raises:
        ConfigError: listing every unknown name, wrong type, value out of range and contradiction at once.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    set_by: dict[str, str] = {}
    layers = [
        _file_layer(file),
        _environment_layer(environ),
        {
            name: (value, cut(name) if api else f"--{name.replace('_', '-')}")
            for name, value in flags.items()
            if value is not None
        },
    ]
    for layer in layers:
        for name, (value, place) in layer.items():
            if name not in Config.model_fields:
                problems.append(f"{place}: there is no such setting.{did_you_mean(name, Config.model_fields)}")
                continue
            if name == "set" and isinstance(value, Mapping):
                set_by |= dict.fromkeys(value, place)
                value = {**values.get("set", {}), **value}
            values[name], origin[name] = value, place
    try:
        config = Config(**values)
    except ValidationError as error:
        wrong = {str(detail["loc"][0]): detail for detail in error.errors()}
        for name, detail in wrong.items():
            message = detail["msg"][0].lower() + detail["msg"][1:]
            problems.append(f"{origin.get(name, name)}: {message}, not {_shown(detail['input'])}")
        config = Config(**{name: value for name, value in values.items() if name not in wrong})
    problems += _contradictions(config, origin)
    if config.set:
        problems += [f"{set_by[name]} {name}: {message}" for name, message in check_set(config.set).items()]
    if problems:
        count = "a setting is" if len(problems) == 1 else f"{len(problems)} settings are"
        raise ConfigError(
            f"{count} wrong:\n" + "\n".join(f"  - {problem}" for problem in problems),
            remedy="Correct it there; docs/settings.md lists names, types and ranges."
            if api
            else "Correct it there; --help lists the settings.",
        )
    return config


def _shown(value: Any) -> str:
    """Return a value for a message: a text, a number or a few of them; of everything else, what it is."""
    parts = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(part, str | int | float | Path | None) for part in parts):
        return f"a {type(value).__name__}"
    return quoted(value) if isinstance(value, str) else cut(repr(value))


SAME_ARGUMENT = {
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "learning_rate": "learning_rate",
}
"""Settings that transformers has a training argument for, by its name."""


def _contradictions(config: Config, origin: Mapping[str, str]) -> list[str]:
    def name(field: str) -> str:
        return origin.get(field, f"--{field.replace('_', '-')}")

    problems = []
    if (config.sql is None) != (config.db is None):
        problems.append("--sql and --db go together: the query, and the database to put it to")
    for flag, table, size in (("test", config.test, "test_size"), ("validation", config.validation, "validation_size")):
        if table is not None and size in origin:
            problems.append(f"{name(flag)} and {name(size)} both say what the {flag} texts are: keep one of them")
    if config.split_column and (config.validation or config.test):
        problems.append(f"{name('split_column')} and --validation/--test both say how to split: keep one of them")
    if config.cv == 1:
        problems.append(f"{name('cv')}: a cross-validation has 2 folds at least; 0 holds out validation texts")
    for other in ("validation", "validation_size"):
        if config.cv and other in origin:
            problems.append(f"{name('cv')} and {name(other)} both say how to validate: keep one of them")
    validates = next((other for other in ("validation", "validation_size") if other in origin), None)
    if config.test_size == 0 and (config.cv == 0 or validates):
        other = name(validates) if validates else f"{name('cv')} 0"
        problems.append(f"{name('test_size')} 0 needs a cross-validation, which {other} rules out")
    if config.validation_size + config.test_size >= 1:
        problems.append(f"{name('validation_size')} and {name('test_size')} together must leave texts to train on")
    for flag, argument in SAME_ARGUMENT.items():
        if flag in origin and argument in config.set:
            problems.append(f"{name(flag)} and --set {argument} say the same thing: keep one of them")
    return problems


def _environment_layer(environ: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    given = {
        key: value
        for key, value in environ.items()
        if key.upper().startswith(ENV_PREFIX) and key != TOKEN and value != ""
    }
    layer: dict[str, tuple[Any, str]] = {}
    for key, text in given.items():
        name = key[len(ENV_PREFIX) :].lower()
        value: Any = parse_assignments(text.split()) if name == "set" else text
        layer[name] = (value, f"environment variable {key}")
    return layer


def _file_layer(file: Path | None) -> dict[str, tuple[Any, str]]:
    if file is None:
        return {}
    try:
        content = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"the configuration file cannot be read: {error.strerror}", where=str(file), remedy="Check the path."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the configuration file is not TOML: {error}", where=str(file), remedy='Write settings as: name = "value"'
        ) from error
    twice = [key for key in content if key != key.replace("-", "_") and key.replace("-", "_") in content]
    if twice:
        raise ConfigError(
            f"these settings are there twice, with - and with _: {listing(twice)}",
            where=str(file),
            remedy="Keep one of each.",
        )
    return {key.replace("-", "_"): (value, f"{file}: {cut(key)}") for key, value in content.items()}


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """Turn ``["weight_decay=0.05", "optim=adafactor"]`` into ``{"weight_decay": 0.05, "optim": "adafactor"}``.

    Raises:
        ConfigError: for an entry without ``=``, and for a name given twice.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.strip():
            raise ConfigError(
                f"--set {assignment}: expected NAME=VALUE", remedy="Write for instance: --set weight_decay=0.05"
            )
        name = name.strip()
        if name in values:
            raise ConfigError(f"--set {name} is given more than once", remedy="Give each name once.")
        try:
            values[name] = json.loads(text)
        except json.JSONDecodeError:
            values[name] = {"True": True, "False": False, "None": None}.get(text, text)
    return values
