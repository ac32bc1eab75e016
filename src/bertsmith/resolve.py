"""Merge flags, environment variables, a configuration file and defaults into one checked `Config`.

Flags win over the environment, which wins over the file, which wins over the defaults.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bertsmith.config import Config
from bertsmith.errors import ConfigError, did_you_mean, listing, quoted, shorten

ENV_PREFIX = "BERTSMITH_"
TOKEN = "BERTSMITH_TOKEN"
"""The token of a server: an environment variable, but not a setting."""


def resolve(
    flags: Mapping[str, object],
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
            name: (value, shorten(name) if api else f"--{name.replace('_', '-')}")
            for name, value in flags.items()
            if value is not None
        },
    ]
    for layer in layers:
        for name, (value, place) in layer.items():
            if name not in Config.model_fields:
                problems.append(f"{place}: unknown setting.{did_you_mean(name, Config.model_fields)}")
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
            remedy="Correct it there; docs/reference/settings.md lists names, types and ranges."
            if api
            else "Correct it there; --help lists the settings.",
        )
    return config


def _shown(value: Any) -> str:
    """Return a value for a message: a text, a number or a few of them; of everything else, what it is."""
    parts = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(part, str | int | float | Path | None) for part in parts):
        return f"a {type(value).__name__}"
    return quoted(value) if isinstance(value, str) else shorten(repr(value))


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
            f"these settings are given twice, with - and with _: {listing(twice)}",
            where=str(file),
            remedy="Keep one of each.",
        )
    return {key.replace("-", "_"): (value, f"{file}: {shorten(key)}") for key, value in content.items()}


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """Parse ``["weight_decay=0.05", "optim=adafactor"]`` into ``{"weight_decay": 0.05, "optim": "adafactor"}``.

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
