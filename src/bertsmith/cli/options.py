"""Options that several commands share, and options made from the settings in `bertsmith.config`."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperCommand, TyperGroup

from bertsmith.compute.machine import use_cores
from bertsmith.config import BaseConfig, DataConfig, EvalConfig, Long, ModelConfig, TrainConfig
from bertsmith.errors import ConfigError, to_path
from bertsmith.load_config import ENV_PREFIX, parse_assignments, resolve

_PANELS: dict[type[BaseConfig], str] = {
    DataConfig: "Data",
    ModelConfig: "Model",
    TrainConfig: "Training",
    EvalConfig: "Evaluation",
}

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE.toml", help="TOML file with settings, named like these options."),
]
Runtime = Annotated[
    str,
    typer.Option(
        metavar="auto|torch|onnx|openvino",
        help="Runtime. auto: on a CPU, an fp32 export of the run if one exists; otherwise torch.",
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", show_default=False, help="Run folder of bertsmith train.")]
MeasurementOption = Annotated[
    Path | None,
    typer.Option(
        "--measurement", metavar="FILE.json", help="Output of bertsmith measure --json, for a paragraph on the shares."
    ),
]
RunOrExport = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", show_default=False, help="Run folder of bertsmith train, or folder of bertsmith export."
    ),
]
LongTexts = Annotated[
    Long,
    typer.Option(
        envvar=f"{ENV_PREFIX}LONG",
        help="How to read texts above the maximum length. truncate: the beginning; head-tail: beginning and end; "
        "window: the whole text; auto: as the run does.",
    ),
]
DecisionRule = Annotated[bool, typer.Option(help="Use the decision rule tuned on validation, if the run has one.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
TableArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="TABLE",
        show_default=False,
        help="CSV, TSV, JSON Lines, JSON, Parquet, Feather or Excel file, which may be gzipped, or hf://owner/name.",
    ),
]


class _WithHelp:
    """The help of typer, without types of flags, which have no value, and for pipes that close early."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help.

        Raises:
            typer.Exit: if the reader of a pipe has ended, as ``head`` does.
        """
        try:
            super().format_help(ctx, formatter)  # type: ignore[misc]
        except SystemExit:  # of rich, with 1
            raise typer.Exit from None

    def get_params(self, ctx: Any) -> list[Any]:
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for option in params:
            if getattr(option, "is_flag", False):
                option.metavar = ""
        return params


class Group(_WithHelp, TyperGroup):
    """The command line."""


class Command(_WithHelp, TyperCommand):
    """A command that refuses repeated options; typer would use the last value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments of the command line.

        Raises:
            ConfigError: if an option is repeated and takes a single value.
        """
        counts = Counter(id(p) for p in self.make_parser(ctx).parse_args(args=list(args))[2])
        repeated = [
            "/".join(max(names, key=len) for names in (option.opts, option.secondary_opts) if names)
            for option in self.get_params(ctx)
            if counts[id(option)] > 1 and not (getattr(option, "multiple", False) or option.is_eager)
        ]
        if repeated:
            raise ConfigError(f"option given more than once: {', '.join(repeated)}", remedy="Pass each option once.")
        return super().parse_args(ctx, args)


def with_checked_paths(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command refuse URLs, and paths that no file system accepts."""

    @functools.wraps(command)
    def wrapper(**arguments: Any) -> None:
        for name, value in arguments.items():
            for path in value if isinstance(value, list | tuple) else [value]:
                if isinstance(path, Path):
                    to_path(path, name)
        command(**arguments)

    return wrapper


def with_settings(
    *configs: type[BaseConfig], only: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add an option to a command for every field of ``configs``, and pass the resolved `Config` as ``settings``.

    Options are parsed as strings. `resolve` checks them together with the file and the environment, and reports all
    problems at once. A command with a parameter ``config`` also gets the path of the file.

    Args:
        configs: sections of settings.
        only: names of the settings to use; empty: all.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        fields = {
            name: (field, _PANELS[config])
            for config in configs
            for name, field in config.model_fields.items()
            if not only or name in only
        }

        takes_config = "config" in inspect.signature(command).parameters

        @functools.wraps(command)
        def wrapper(**arguments: Any) -> None:
            flags = {name: arguments.pop(name) for name in fields}
            if flags.get("set") is not None:
                flags["set"] = parse_assignments(flags["set"])
            file = arguments.pop("config")
            if takes_config:
                arguments["config"] = file
            settings = resolve(flags, file, check_set=_problems_of)
            use_cores(settings.threads)
            command(**arguments, settings=settings)

        parameters = [
            p
            for p in inspect.signature(command, eval_str=True).parameters.values()
            if p.name not in ("settings", "config")
        ]
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        parameters += [_parameter(name, field, panel) for name, (field, panel) in fields.items()]
        parameters.append(
            inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ConfigFile)
        )
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def _problems_of(settings: Mapping[str, Any]) -> Mapping[str, str]:
    from bertsmith.training.arguments import argument_problems  # imports transformers

    return argument_problems(settings)


def _parameter(name: str, field: FieldInfo, panel: str) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    kind: Any = str
    metavar: str | None = _metavar(field.annotation)
    if field.annotation is bool:
        kind, metavar = bool, None
    elif name == "set":
        kind, metavar = list[str], "NAME=VALUE"
    elif name == "text_column":
        kind = list[str]
    has_default = isinstance(field.default, str | int | float) and kind is str
    option = typer.Option(
        *(["--with"] if name == "with_columns" else []),
        flag,
        metavar=metavar,
        # Parentheses, since rich takes square brackets for markup.
        help=f"{field.description} (default: {field.default})" if has_default else field.description,
        rich_help_panel=panel,
        show_default=False,
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _metavar(annotation: Any) -> str:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        annotation = next(a for a in typing.get_args(annotation) if a is not types.NoneType)
    if typing.get_origin(annotation) is Annotated:
        return _metavar(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is Literal:
        return "|".join(typing.get_args(annotation))
    return {int: "N", float: "X", Path: "FILE"}.get(annotation, "TEXT")
