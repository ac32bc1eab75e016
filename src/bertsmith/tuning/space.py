"""The search space: ranges that fit data and model, what a TOML file makes of them, and the settings of a trial."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from bertsmith.config import SAME_ARGUMENT, Config, ModelConfig, TrainConfig
from bertsmith.errors import ConfigError, did_you_mean, listing
from bertsmith.training.recipe import FEW_TEXTS, MAX_EPOCHS, Recipe

if TYPE_CHECKING:
    import optuna

LONG = 256
"""Tokens from which on half of them is a choice."""
UNEQUAL = 2.0
"""Times the texts of the smallest class that the largest one has, from which on something may be done about it."""
_NOT_TUNED = ("seed", "seeds", "set", "keep_checkpoints", "profile", "device", "threads", "allow_pickle")
_FIELDS = {n: f for step in (ModelConfig, TrainConfig) for n, f in step.model_fields.items() if n not in _NOT_TUNED}


@dataclass(frozen=True)
class Range:
    """ServerMetrics from ``low`` to ``high``, both included; ``log``: evenly by factors; ``whole``: integers."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{' (log)' if self.log else ''}"

    def nearest(self, value: Any) -> Any:
        """Return the number of the range that is nearest to a value."""
        inside = min(max(value, self.low), self.high)
        return round(inside) if self.whole else float(inside)


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]

    def __str__(self) -> str:
        return " | ".join(map(str, self.values))

    def nearest(self, value: Any) -> Any:
        """Return the value if it is a choice, else the first one."""
        return next((choice for choice in self.values if choice == value), self.values[0])


Dimension = Range | Choice
Space = dict[str, Dimension]


def default_space(
    config: Config,
    recipe: Recipe,
    *,
    texts: int,
    unequal: float,
    max_length: int,
    dropout: float,
    models: tuple[str, ...] = (),
) -> tuple[Space, dict[str, Any]]:
    """Return what is varied, and where: settings the user gave are left alone.

    Args:
        config: the user's settings.
        recipe: what `train` would do.
        texts: to train on.
        unequal: how many times the texts of the smallest class the largest one has.
        max_length: tokens kept of each text.
        dropout: of the checkpoint.
        models: checkpoints to choose among.

    Returns:
        The space, and what `train` would do for every dimension of it: the first trial.
    """
    rate, epochs = recipe.learning_rate, recipe.epochs
    batch_sizes = tuple(
        sorted({8, 16, 32, recipe.batch_size} if texts < FEW_TEXTS else {16, 32, 64, recipe.batch_size})
    )
    space: dict[str, tuple[Dimension, Any]] = {
        "learning_rate": (Range(rate / 5, min(rate * 5, 1.0), log=True), rate),
        "epochs": (
            Range(max(1, round(epochs / 2)), round(min(2 * epochs, max(epochs, MAX_EPOCHS))), whole=True),
            round(epochs),
        ),
        "batch_size": (Choice(batch_sizes), recipe.batch_size),
        "head_rate": (Range(1.0, 30.0, log=True), recipe.head_rate),
        "layer_decay": (Range(0.7, 1.0), recipe.layer_decay),
        "warmup_steps": (Range(0.0, 0.3), recipe.warmup),
        "weight_decay": (Range(1e-3, 0.3, log=True), recipe.weight_decay),
        "label_smoothing_factor": (Range(0.0, 0.2), 0.0),
        "dropout": (Range(0.0, max(0.3, dropout)), dropout),
    }
    if unequal >= UNEQUAL:
        methods = ("none", "weights", "focal", "logit-adjustment", "balanced-sampling")
        space["imbalance"] = (Choice(methods), recipe.imbalance)
    if max_length >= LONG:
        space["max_length"] = (Choice((max_length // 2, max_length)), max_length)
    if len(models) > 1:
        space["model"] = (Choice(models), models[0])
    free = {name: both for name, both in space.items() if not _is_given(config, name)}
    return {n: d for n, (d, _) in free.items()}, {n: value for n, (_, value) in free.items()}


def _is_given(config: Config, name: str) -> bool:
    if name in _FIELDS:
        return name != "model" and getattr(config, name) != _FIELDS[name].default
    return name in config.set


def read_space(
    source: Path | Mapping[str, Any], check_set: Callable[[Mapping[str, Any]], Mapping[str, str]]
) -> dict[str, Dimension | Any]:
    """Read what narrows or widens the search space.

    A table ``{low = …, high = …, log = true}`` is a `Range`, an array a `Choice`, a plain value fixes the setting.

    Args:
        source: a TOML file, or a mapping like its content, whose keys are settings of `train`, or training arguments of
            transformers.
        check_set: returns what is wrong with training arguments, by name.

    Raises:
        ConfigError: listing everything that is wrong in it.
    """
    where = "space" if isinstance(source, Mapping) else str(source)
    content = source if isinstance(source, Mapping) else _load(source)
    found: dict[str, Dimension | Any] = {}
    problems: list[str] = []
    for key, value in content.items():
        name = key.replace("-", "_")
        problem = f"{key}: it is there twice, with - and with _" if name in found else _known(key, name)
        if problem is None:
            try:
                found[name] = _dimension(name, value, check_set)
                continue
            except ValueError as error:
                problem = f"{key}: {error}"
        problems.append(problem)
    if problems:
        raise ConfigError(
            "the search space is wrong:\n" + "\n".join(f"  - {p}" for p in problems),
            where=where,
            remedy="Write {low = …, high = …} for a range, [ … ] for choices, or a plain value to fix a setting.",
        )
    return found


def _load(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"the search space cannot be read: {error.strerror}", where=str(file), remedy="Check the path."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the search space is not TOML: {error}",
            where=str(file),
            remedy="Write for instance: learning_rate = {low = 1e-5, high = 1e-3, log = true}",
        ) from error


def _known(key: str, name: str) -> str | None:
    from transformers import TrainingArguments

    arguments = {f.name for f in dataclasses.fields(TrainingArguments)}
    if name in ("seed", "seeds"):
        return f"{key}: the best of many seeds is luck, not a setting; --final-seeds says how far it goes"
    kept = ("eval_", "save_", "load_best", "output_", "logging_", "metric_for", "greater_")
    if name in SAME_ARGUMENT.values():
        ours = next(field for field, argument in SAME_ARGUMENT.items() if argument == name)
        if ours != name:
            return f"{key}: use {ours} instead"
    if name in _NOT_TUNED or name in Config.model_fields.keys() - _FIELDS.keys() or name.startswith(kept):
        return f"{key}: this is not for a search"
    if name not in _FIELDS and name not in arguments:
        return f"{key}: there is no such setting.{did_you_mean(name, {*_FIELDS, *arguments})}"
    return None


def _dimension(name: str, value: Any, check_set: Callable[[Mapping[str, Any]], Mapping[str, str]]) -> Dimension | Any:
    if isinstance(value, Mapping):
        odd = sorted(value.keys() - {"low", "high", "log"})
        if odd or not {"low", "high"} <= value.keys():
            raise ValueError(f"a range has low, high and, if wanted, log{f', not {listing(odd)}' if odd else ''}")
        low, high, log = value["low"], value["high"], value.get("log", False)
        numbers = [x for x in (low, high) if isinstance(x, int | float) and not isinstance(x, bool)]
        if len(numbers) < 2 or not all(abs(x) < float("inf") for x in numbers) or not isinstance(log, bool):
            raise ValueError("low and high are numbers, log is true or false")
        if low >= high:
            raise ValueError(f"low is below high, not {low:g} and {high:g}")
        if log and low <= 0:
            raise ValueError(f"with log, low is above 0, not {low:g}")
        whole = isinstance(low, int) and isinstance(high, int)
        for end in (low, high):
            _check(name, end, check_set)
        if not whole:
            _check(name, (low + high) / 2, check_set)
        return Range(low, high, log, whole)
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError("there is nothing to choose from")
        for entry in value:
            _check(name, entry, check_set)
        if len({str(entry) for entry in value}) < len(value):
            raise ValueError("a choice is there twice")
        return Choice(tuple(value)) if len(value) > 1 else value[0]
    _check(name, value, check_set)
    return value


def _check(name: str, value: Any, check_set: Callable[[Mapping[str, Any]], Mapping[str, str]]) -> None:
    if isinstance(value, bool) and name in _FIELDS:  # it would become a number, and none is true or false
        raise ValueError(f"not {str(value).lower()}")
    if name not in _FIELDS:
        if wrong := check_set({name: value}).get(name):
            raise ValueError(wrong)
        return
    try:
        Config(**{name: value})
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise ValueError(f"{message[0].lower()}{message[1:]}, not {value!r}") from error


def narrowed(space: Space, config: Config, read: Mapping[str, Dimension | Any]) -> tuple[Space, Config]:
    """Put what a file says, as of `read_space`, over a space; return it and the settings with those the file fixes.

    Raises:
        ConfigError: if the file has what the user gave as a flag.
    """
    if both := [name for name in read if _is_given(config, name)]:
        raise ConfigError(
            f"given as a flag and in the search space: {listing(both)}", remedy="Leave it out of one of them."
        )
    space = {**space}
    for name, dimension in read.items():
        space.pop(name, None)
        if isinstance(dimension, Range | Choice):
            space[name] = dimension
        else:
            config = with_values(config, {name: dimension})
    return space, config


def suggest(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """Return a trial's value for every dimension."""
    values: dict[str, Any] = {}
    for name, dimension in space.items():
        if isinstance(dimension, Choice):
            values[name] = trial.suggest_categorical(name, dimension.values)
        elif dimension.whole:
            values[name] = trial.suggest_int(name, int(dimension.low), int(dimension.high), log=dimension.log)
        else:
            values[name] = trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log)
    return values


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """Return settings with other values; those that are no settings of ours are training arguments."""
    ours = {name: value for name, value in values.items() if name in _FIELDS}
    arguments = {name: value for name, value in values.items() if name not in _FIELDS}
    return Config(**{**config.model_dump(), **ours, "set": {**config.set, **arguments}})
