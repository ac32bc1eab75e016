"""Flags from the fields of `bertsmith.config`: one description for the flag, the file, the environment and the API."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperCommand

from bertsmith.compute.machine import use_cores
from bertsmith.config import Config, DataConfig, EvalConfig, ModelConfig, Step, TrainConfig, parse_assignments, resolve
from bertsmith.errors import ConfigError, path_of

_PANELS: dict[type[Step], str] = {
    DataConfig: "Data",
    ModelConfig: "Model",
    TrainConfig: "Training",
    EvalConfig: "Evaluation",
}

ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE.toml", help="Settings by the names of these flags.")
]
Runtime = Annotated[
    str,
    typer.Option(
        metavar="auto|torch|onnx|openvino",
        help="What to compute with: auto takes an fp32 export of the run, where there is one, else torch.",
    ),
]
RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", show_default=False, help="Folder that bertsmith train wrote.")
]
RunOrExport = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", show_default=False, help="Folder that bertsmith train wrote, or that bertsmith export did."
    ),
]
DecisionRule = Annotated[bool, typer.Option(help="Use the decision rule tuned on validation, where the run has one.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
TableArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="TABLE",
        show_default=False,
        help="CSV, TSV, JSON Lines, JSON, Parquet, Feather or Excel file (gzip too), or hf://owner/name.",
    ),
]


class Command(TyperCommand):
    """A command that refuses an option given twice, of which the parser would take the last."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments of the command line.

        Raises:
            ConfigError: if an option is repeated that cannot be.
        """
        given = Counter(id(p) for p in self.make_parser(ctx).parse_args(args=list(args))[2])
        repeated = [
            "/".join(max(names, key=len) for names in (option.opts, option.secondary_opts) if names)
            for option in self.get_params(ctx)
            if given[id(option)] > 1 and not (getattr(option, "multiple", False) or option.is_eager)
        ]
        if repeated:
            raise ConfigError(f"given more than once: {', '.join(repeated)}", remedy="Give each option once.")
        return super().parse_args(ctx, args)


def with_settings(
    *steps: type[Step], only: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command a flag for every field of ``steps``, and hand it the resolved `Config` as ``settings``.

    The flags are read as texts: `resolve` checks them all at once, together with the file and the environment. A
    command with a parameter ``config`` is told the file as well.

    Args:
        steps: whose fields become flags.
        only: names of the fields to take; all of them if empty.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        fields = {
            name: (field, _PANELS[step])
            for step in steps
            for name, field in step.model_fields.items()
            if not only or name in only
        }

        told = "config" in inspect.signature(command).parameters

        @functools.wraps(command)
        def wrapper(**arguments: Any) -> None:
            flags = {name: arguments.pop(name) for name in fields}
            if flags.get("set") is not None:
                flags["set"] = parse_assignments(flags["set"])
            for name, value in arguments.items():
                if isinstance(value, Path):
                    path_of(value, name)
            file = arguments.pop("config")
            if told:
                arguments["config"] = file
            settings = resolve(flags, file, check_set=_problems_of)
            use_cores(settings.threads)
            command(**arguments, settings=settings)

        own = [
            p
            for p in inspect.signature(command, eval_str=True).parameters.values()
            if p.name not in ("settings", "config")
        ]
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        config = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ConfigFile)
        flags = [_parameter(name, field, panel) for name, (field, panel) in fields.items()]
        parameters = [*own, *flags, config]
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapper

    return decorate


def _problems_of(settings: Mapping[str, Any]) -> Mapping[str, str]:
    from bertsmith.training.arguments import argument_problems  # which needs transformers

    return argument_problems(settings)


def _parameter(name: str, field: FieldInfo, panel: str) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    kind: Any = str
    metavar: str | None = _metavar(field.annotation)
    if field.annotation is bool:
        kind, metavar = bool, None
    elif name == "set":
        kind, metavar = list[str], "NAME=VALUE"
    shown = isinstance(field.default, str | int | float) and kind is str
    option = typer.Option(
        flag,
        metavar=metavar,
        help=f"{field.description} [default: {field.default}]" if shown else field.description,
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


__all__ = [
    "Command",
    "Config",
    "ConfigFile",
    "DecisionRule",
    "Json",
    "RunArgument",
    "RunOrExport",
    "Runtime",
    "TableArgument",
    "with_settings",
]
