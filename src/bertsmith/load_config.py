"""Merge flags, environment variables, a configuration file and defaults into one checked `Config`.

Flags win over the environment, which wins over the file, which wins over the defaults.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bertsmith.config import Config
from bertsmith.errors import ConfigError, did_you_mean, quoted, shorten, with_article

ENV_PREFIX = "BERTSMITH_"
TOKEN, RUN, HOST = "BERTSMITH_TOKEN", "BERTSMITH_RUN", "BERTSMITH_HOST"
"""Environment variables of a server, which are not settings: its token, and its arguments."""
_OF_A_SERVICE = re.compile(r"BERTSMITH_(\w+_)?(SERVICE_(HOST|PORT)|PORT)(_\w+)?")
"""Variables that Kubernetes sets in every container, if a service is called ``bertsmith`` or ``bertsmith-NAME``."""


def resolve(
    flags: Mapping[str, object],
    file: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    api: bool = False,
    only: Collection[str] | None = None,
    check_set: Callable[[Mapping[str, Any]], Mapping[str, str]] = lambda values: {},
) -> Config:
    """Merge flags, environment, file and defaults into one checked `Config`.

    Args:
        flags: values from the command line or keyword arguments; ``None`` is ignored.
        file: a TOML file with the same names, where ``-`` and ``_`` are the same, and a table ``[set]``.
        environ: the environment variables; ``os.environ`` if ``None``.
        api: use the names of Python arguments in messages, not flags.
        only: the names that ``flags`` may have, if not all; a file and the environment may have all.
        check_set: returns the problems of training arguments by name.

    Raises:
        ConfigError: listing every unknown name, wrong type, value out of range and contradiction at once.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    set_sources: dict[str, str] = {}
    layers = [
        _file_layer(file),
        _environment_layer(environ),
        {
            name: (value, shorten(name) if api else f"--{name.replace('_', '-')}")
            for name, value in flags.items()
            if value is not None
        },
    ]
    unused = [] if only is None else [name for name in layers[-1] if name in Config.model_fields and name not in only]
    problems += [f"{layers[-1].pop(name)[1]}: this function does not use this setting" for name in unused]
    for layer in layers:
        for name, (value, source) in layer.items():
            if name not in Config.model_fields:
                problems.append(f"{source}: unknown setting.{did_you_mean(name, Config.model_fields)}")
                continue
            if name == "set" and isinstance(value, Mapping):
                set_sources |= dict.fromkeys(value, source)
                value = {**values.get("set", {}), **value}
            values[name], sources[name] = value, source
    try:
        config = Config(**values)
    except ValidationError as error:
        wrong = {str(detail["loc"][0]): detail for detail in error.errors()}
        for name, detail in wrong.items():
            message = detail["msg"][0].lower() + detail["msg"][1:]
            problems.append(f"{sources.get(name, name)}: {message}, not {_shown(detail['input'])}")
        config = Config(**{name: value for name, value in values.items() if name not in wrong})
    problems += _contradictions(config, sources, api)
    if config.set:
        problems += [f"{set_sources[name]} {name}: {message}" for name, message in check_set(config.set).items()]
    if problems:
        count = "one setting is" if len(problems) == 1 else f"{len(problems)} settings are"
        raise ConfigError(
            f"{count} invalid:\n" + "\n".join(f"  - {problem}" for problem in problems),
            remedy="Correct the settings; "
            f"{'the page Settings of the documentation' if api else '--help'} lists names, types and ranges.",
        )
    return config


def _shown(value: Any) -> str:
    """Return a value for a message, or its type if it is not a string, a number or a short list."""
    parts = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(part, str | int | float | Path | None) for part in parts):
        return with_article(value)
    return quoted(value) if isinstance(value, str) else shorten(repr(value))


SAME_ARGUMENT = {
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "learning_rate": "learning_rate",
}
"""Settings that are also fields of ``TrainingArguments``, under another name."""


def _contradictions(config: Config, sources: Mapping[str, str], api: bool) -> list[str]:
    def name(field: str) -> str:
        return sources.get(field, field if api else f"--{field.replace('_', '-')}")

    problems = []
    if (config.sql is None) != (config.db is None):
        problems.append(f"{name('sql')} needs {name('db')}, and {name('db')} needs {name('sql')}")
    for flag, table, size in (("test", config.test, "test_size"), ("validation", config.validation, "validation_size")):
        if table is not None and size in sources:
            problems.append(f"{name(flag)} and {name(size)} both define the {flag} texts: keep one of them")
    if config.split_column and (config.validation or config.test):
        given = name("validation" if config.validation else "test")
        problems.append(f"{name('split_column')} and {given} both define the split: keep one of them")
    if config.cv == 1:
        problems.append(f"{name('cv')}: cross-validation needs at least 2 folds; 0 uses a validation split")
    for other in ("validation", "validation_size"):
        if config.cv and other in sources:
            problems.append(f"{name('cv')} and {name(other)} both define how to validate: keep one of them")
    validates = next((other for other in ("validation", "validation_size") if other in sources), None)
    if config.test_size == 0 and (config.cv == 0 or validates):
        other = name(validates) if validates else f"{name('cv')} 0"
        problems.append(f"{name('test_size')} 0 needs cross-validation, which {other} excludes")
    if config.validation_size + config.test_size >= 1:
        problems.append(f"{name('validation_size')} and {name('test_size')} must leave texts for training")
    for flag, argument in SAME_ARGUMENT.items():
        if flag in sources and argument in config.set:
            problems.append(f"{name(flag)} and {name('set')} {argument} set the same argument: keep one of them")
    return problems


def _environment_layer(environ: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    layer: dict[str, tuple[Any, str]] = {}
    for key, text in environ.items():
        is_other = key in (TOKEN, RUN, HOST) or _OF_A_SERVICE.fullmatch(key)
        if key.upper().startswith(ENV_PREFIX) and not is_other and text:
            name = key[len(ENV_PREFIX) :].lower()
            layer[name] = parse_assignments(text.split()) if name == "set" else text, f"environment variable {key}"
    return layer


def _file_layer(file: Path | None) -> dict[str, tuple[Any, str]]:
    if file is None:
        return {}
    content = read_toml(file, "configuration file", example='model = "packaged:minilm"')
    return {key.replace("-", "_"): (value, f"{file}: {shorten(key)}") for key, value in content.items()}


def read_toml(file: Path, what: str, *, example: str) -> dict[str, Any]:
    """Read a TOML file; ``what`` it is and an ``example`` line are for messages.

    Raises:
        ConfigError: if it cannot be read.
    """
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"the {what} cannot be read: {error.strerror}", where=str(file), remedy="Check the path."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the {what} is not TOML: {error}", where=str(file), remedy=f"For example:  {example}"
        ) from error


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
                f"--set {assignment}: expected NAME=VALUE", remedy="For example:  --set weight_decay=0.05"
            )
        name = name.strip()
        if name in values:
            raise ConfigError(f"--set {name} is given more than once", remedy="Pass each name once.")
        try:
            values[name] = json.loads(text)
        except json.JSONDecodeError:
            values[name] = {"True": True, "False": False, "None": None}.get(text, text)
    return values
