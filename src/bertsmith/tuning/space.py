"""The search space: default ranges, changes from a TOML file, and the settings of a trial."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from bertsmith.config import Config, ModelConfig, TrainConfig
from bertsmith.errors import ConfigError, did_you_mean, listing
from bertsmith.load_config import SAME_ARGUMENT, read_toml
from bertsmith.training.recipe import FEW_TRAINING_TEXTS, MAX_EPOCHS, Recipe

if TYPE_CHECKING:
    import optuna

LONG_TEXTS = 256
"""From this maximum length on, half of it is in the search space."""
IMBALANCED = 2.0
"""Ratio of the largest to the smallest class from which on ``imbalance`` is in the search space."""
_FIXED = ("seed", "seeds", "set", "keep_checkpoints", "device", "threads", "allow_pickle")
_TUNABLE = {n: f for config in (ModelConfig, TrainConfig) for n, f in config.model_fields.items() if n not in _FIXED}
CheckArguments = Callable[[Mapping[str, Any]], Mapping[str, str]]
"""Returns the problems of training arguments of transformers, by name."""


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, inclusive; ``log``: on a log scale; ``whole``: integers only."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{' (log)' if self.log else ''}"

    def nearest(self, value: Any) -> Any:
        """Return the number in the range that is nearest to a value."""
        clipped = min(max(value, self.low), self.high)
        return round(clipped) if self.whole else float(clipped)


@dataclass(frozen=True)
class Categorical:
    """One of several values."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return " | ".join(map(str, self.values))

    def nearest(self, value: Any) -> Any:
        """Return the value if it is a choice, else the first choice."""
        return next((choice for choice in self.values if choice == value), self.values[0])


Dimension = Range | Categorical
Space = dict[str, Dimension]


IMBALANCES = ("none", "weights", "focal", "logit-adjustment", "balanced-sampling")
"""Treatments of imbalance in the search space."""


def default_space(
    config: Config,
    recipe: Recipe,
    *,
    n_texts: int,
    imbalance_ratio: float,
    imbalances: Sequence[str] = IMBALANCES,
    max_length: int | None,
    dropout: float | None,
    models: tuple[str, ...] = (),
) -> tuple[Space, dict[str, Any]]:
    """Return the default search space. Settings of the user are not part of it.

    Args:
        config: settings of the user.
        recipe: the settings that `train` would use.
        n_texts: number of training texts.
        imbalance_ratio: texts of the largest class, divided by the texts of the smallest one.
        imbalances: the treatments of imbalance that apply; only one for numbers, which have no label smoothing either.
        max_length: maximum length in tokens; ``None`` if a model takes fewer tokens. Each model then has its own.
        dropout: dropout rate of the checkpoint; ``None`` if its layers have different rates, which are then kept.
        models: checkpoints to choose from.

    Returns:
        The space, and the value that `train` would use in each dimension: the first trial.

    Raises:
        ConfigError: if nothing is trained.
    """
    if not recipe.epochs:
        raise ConfigError(
            "--effort quick fits only the head, so the search has no settings to vary",
            remedy="Leave out --effort quick, or run bertsmith train.",
        )
    rate, epochs = recipe.learning_rate, recipe.epochs
    batch_sizes = tuple(
        sorted({8, 16, 32, recipe.batch_size} if n_texts < FEW_TRAINING_TEXTS else {16, 32, 64, recipe.batch_size})
    )
    dimensions: dict[str, tuple[Dimension, Any]] = {
        "learning_rate": (Range(rate / 5, min(rate * 5, 1.0), log=True), rate),
        "epochs": (
            Range(max(1, round(epochs / 2)), round(min(2 * epochs, max(epochs, MAX_EPOCHS))), whole=True),
            round(epochs),
        ),
        "batch_size": (Categorical(batch_sizes), recipe.batch_size),
        "head_rate": (Range(1.0, 30.0, log=True), recipe.head_rate),
        "layer_decay": (Range(0.7, 1.0), recipe.layer_decay),
        "warmup_steps": (Range(0.0, 0.3), recipe.warmup),
        "weight_decay": (Range(1e-3, 0.3, log=True), recipe.weight_decay),
        "label_smoothing_factor": (Range(0.0, 0.2), 0.0),
    }
    if dropout is not None:
        dimensions["dropout"] = (Range(0.0, max(0.3, dropout)), dropout)
    if len(imbalances) == 1:
        del dimensions["label_smoothing_factor"]
    if imbalance_ratio >= IMBALANCED:
        methods = tuple(name for name in IMBALANCES if name in imbalances)
        dimensions["imbalance"] = (Categorical(methods), recipe.imbalance)
    if max_length is not None and max_length >= LONG_TEXTS:
        dimensions["max_length"] = (Categorical((max_length // 2, max_length)), max_length)
    if len(models) > 1:
        dimensions["model"] = (Categorical(models), models[0])
    free = {name: entry for name, entry in dimensions.items() if not _is_set(config, name)}
    return {name: dim for name, (dim, _) in free.items()}, {name: value for name, (_, value) in free.items()}


def _is_set(config: Config, name: str) -> bool:
    is_changed = name in _TUNABLE and name != "model" and getattr(config, name) != _TUNABLE[name].default
    return is_changed or SAME_ARGUMENT.get(name, name) in config.set


def read_space(source: Path | Mapping[str, Any], check_arguments: CheckArguments) -> dict[str, Dimension | Any]:
    """Read changes to the search space.

    A table ``{low = …, high = …, log = true}`` is a `Range`, and an array a `Categorical`. Any other value fixes
    the setting.

    Args:
        source: a TOML file or a mapping; its keys are settings of `train` or training arguments of transformers.
        check_arguments: checks training arguments.

    Raises:
        ConfigError: with all problems.
    """
    where = "space" if isinstance(source, Mapping) else str(source)
    example = "learning_rate = {low = 1e-5, high = 1e-3, log = true}"
    content = source if isinstance(source, Mapping) else read_toml(source, "search space", example=example)
    entries: dict[str, Dimension | Any] = {}
    problems: list[str] = []
    for key, value in content.items():
        name = key.replace("-", "_")
        problem = _name_problem(name)
        if problem is None:
            try:
                entries[name] = _parse(name, value, check_arguments)
                continue
            except ValueError as error:
                problem = str(error)
        problems.append(f"{key}: {problem}")
    if problems:
        raise ConfigError(
            "the search space is invalid:\n" + "\n".join(f"  - {problem}" for problem in problems),
            where=where,
            remedy="Write {low = …, high = …} for a range, [ … ] for choices, or a plain value to fix a setting.",
        )
    return entries


def _name_problem(name: str) -> str | None:
    from transformers import TrainingArguments

    arguments = {f.name for f in dataclasses.fields(TrainingArguments)}
    if name in ("seed", "seeds"):
        return "tune cannot vary the seed, because the best of many seeds is luck; final_seeds measures the spread"
    for setting, argument in SAME_ARGUMENT.items():
        if name == argument != setting:
            return f"use {setting} instead"
    managed = ("eval_", "save_", "load_best", "output_", "logging_", "metric_for", "greater_")
    if name in _FIXED or name in Config.model_fields.keys() - _TUNABLE.keys() or name.startswith(managed):
        return "tune cannot vary this setting: remove it"
    if name not in _TUNABLE and name not in arguments:
        return f"unknown setting.{did_you_mean(name, {*_TUNABLE, *arguments})}"
    return None


def _parse(name: str, value: Any, check_arguments: CheckArguments) -> Dimension | Any:
    if isinstance(value, Mapping):
        unknown = sorted(value.keys() - {"low", "high", "log"})
        if unknown or not {"low", "high"} <= value.keys():
            raise ValueError(
                f"a range has low, high and optionally log{f', not {listing(unknown)}' if unknown else ''}"
            )
        low, high, log = value["low"], value["high"], value.get("log", False)
        numbers = [x for x in (low, high) if isinstance(x, int | float) and not isinstance(x, bool)]
        if len(numbers) < 2 or not all(abs(x) < float("inf") for x in numbers) or not isinstance(log, bool):
            raise ValueError("low and high must be finite numbers, and log must be true or false")
        if low >= high:
            raise ValueError(f"low must be less than high, not {low:g} and {high:g}")
        if log and low <= 0:
            raise ValueError(f"with log, low must be greater than 0, not {low:g}")
        whole = isinstance(low, int) and isinstance(high, int)
        between = () if whole else (low + (high - low) / math.e,)  # never an integer, which some settings require
        for number in (low, high, *between):
            _check(name, number, check_arguments)
        return Range(low, high, log, whole)
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError("the list of choices is empty")
        for entry in value:
            _check(name, entry, check_arguments)
        if name == "long" and len(value) > 1 and {"auto", "window"} & {*map(str, value)}:
            raise ValueError(
                "with auto or window, trials read only the beginnings of texts: choose from truncate and head-tail"
            )
        if len({str(entry) for entry in value}) < len(value):
            raise ValueError("each choice must be unique")
        return Categorical(tuple(value)) if len(value) > 1 else value[0]
    _check(name, value, check_arguments)
    return value


def _check(name: str, value: Any, check_arguments: CheckArguments) -> None:
    if isinstance(value, bool) and name in _TUNABLE:  # pydantic would convert it to a number
        raise ValueError(f"must not be {str(value).lower()}")
    if name not in _TUNABLE:
        if problem := check_arguments({name: value}).get(name):
            raise ValueError(problem)
        return
    try:
        Config(**{name: value})
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise ValueError(f"{message[0].lower()}{message[1:]}, not {value!r}") from error


def apply_changes(space: Space, config: Config, changes: Mapping[str, Dimension | Any]) -> tuple[Space, Config]:
    """Return a space with the changes of `read_space`, and the settings with the values that they fix.

    Raises:
        ConfigError: if the changes contain a setting that the user has set as well.
    """
    if both := [name for name in changes if _is_set(config, name)]:
        raise ConfigError(
            f"settings that are both fixed and in the search space: {listing(both)}", remedy="Keep one of the two."
        )
    space = {**space}
    for name, dimension in changes.items():
        space.pop(name, None)
        if isinstance(dimension, Range | Categorical):
            space[name] = dimension
        else:
            config = with_values(config, {name: dimension})
    return space, config


def suggest(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """Return the values of a trial, by dimension."""
    values: dict[str, Any] = {}
    for name, dimension in space.items():
        if isinstance(dimension, Categorical):
            values[name] = trial.suggest_categorical(name, dimension.values)
        elif dimension.whole:
            values[name] = trial.suggest_int(name, int(dimension.low), int(dimension.high), log=dimension.log)
        else:
            values[name] = trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log)
    return values


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Return settings with new values; names that are not settings become training arguments of transformers."""
    settings = {name: value for name, value in values.items() if name in _TUNABLE}
    arguments = {name: value for name, value in values.items() if name not in _TUNABLE}
    given = config.model_dump(exclude_unset=True)  # a default has another meaning if the user sets it
    return Config(**{**given, **settings, "set": {**config.set, **arguments}})
