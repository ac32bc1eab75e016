"""``bertsmith label``."""

from __future__ import annotations

import contextlib
import os
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bertsmith.api.keyword_types import NextSettings
from bertsmith.cli.next import Number, PoolArgument, RandomShare, note_few_random
from bertsmith.cli.options import with_settings
from bertsmith.cli.terminal import confirm, stderr_console, stdout_console
from bertsmith.config import Config, DataConfig, ModelConfig, TrainConfig
from bertsmith.errors import ConfigError, UserError, counted, listing, number_form, quoted
from bertsmith.load_config import TOKEN
from bertsmith.serving.access import read_token
from bertsmith.serving.signals import handle_signals

if TYPE_CHECKING:
    from bertsmith.events import PredictionListener
    from bertsmith.labelling.project import Project


@with_settings(DataConfig, ModelConfig, TrainConfig, only=NextSettings.__optional_keys__ - {"long", "with_columns"})
def label(
    *,
    pool: PoolArgument = None,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="PROJECT", help="Folder of the project.")],
    labels: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Labels, separated by commas; ordinal labels in their order.")
    ] = None,
    task: Annotated[
        Literal["single-label", "multi-label", "ordinal"] | None,
        typer.Option(help="Kind of label of a new project, by default single-label."),
    ] = None,
    rename_label: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="OLD NEW",
            help="Rename a label, or merge OLD with an existing label NEW. The command does not open the page.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Merge labels without asking.")] = False,
    coder: Annotated[str | None, typer.Option(metavar="NAME", help="Name that the page proposes to the coder.")] = None,
    number: Number = 100,
    random_share: RandomShare = 0.2,
    suggestions: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of the pool with proposed labels, which the page shows on demand."),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Address to listen on. For an address that other machines can reach, set the environment variable "
            "BERTSMITH_TOKEN.",
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="N", help="Port; 0 selects a free one.")] = 8000,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
    settings: Config,
) -> None:
    """Label texts on a local page, one by one. bertsmith chooses the next texts, and needs no labels to begin.

    The page saves each decision in PROJECT immediately. At the end, PROJECT/labels.csv is a table for bertsmith train.

    Example: bertsmith label pool.csv -o projects/reviews --labels good,bad
    """
    from bertsmith.data.stream import open_stream
    from bertsmith.data.template import Template
    from bertsmith.labelling.pool import COLUMNS, EmptyPoolError, with_known_columns
    from bertsmith.labelling.project import Project
    from bertsmith.workflows.background_work import BackgroundWork
    from bertsmith.workflows.choose_texts import check_suggestions, choose_for_project
    from bertsmith.workflows.labelling_gain import estimate_project

    if rename_label is not None:
        if pool is not None or settings.sql is not None or labels is not None:
            raise ConfigError(
                "--rename-label cannot be combined with a pool or --labels",
                remedy="Rename the label first, then run bertsmith label again with the other arguments.",
            )
        _rename(Project(output), *rename_label, yes=yes)
        return
    names = [name.strip() for name in labels.split(",") if name.strip()] if labels else []
    if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ConfigError(f"--labels repeats {listing(repeated)}", remedy="Pass each label once.")
    token = read_token(os.environ)
    if token is None and not _is_local(host):
        raise ConfigError(
            f"--host {host} needs a token, because it is not 127.0.0.1, ::1 or localhost",
            remedy=f"Set {TOKEN}, or leave out --host.",
        )
    if not Project.exists(output):
        if pool is None and settings.sql is None:
            raise ConfigError("a new project needs a pool", remedy="Pass POOL, a table of texts without labels.")
        if len(names) < 2 and task == "ordinal":
            raise ConfigError(
                "an ordinal project needs at least two labels in order",
                remedy="Pass them with --labels, the lowest first.",
            )
        template = Template(pair_column=settings.pair_column)
        with open_stream(pool, settings, template=template) as stream:  # an unusable pool creates no project
            check_suggestions(suggestions, next(stream.chunks())[0], stream.name)
    is_new = not Project.exists(output)
    columns = {name: getattr(settings, name) for name in COLUMNS}
    project = Project(output, {"task": task or "single-label", "labels": names, **columns})
    if task not in (None, project.task):
        raise ConfigError(
            f"the project has the task {project.task}, not {task}",
            where=str(output),
            remedy="Leave out --task, or create another project with -o.",
        )
    if pool is not None or settings.sql is not None:
        settings = with_known_columns(project, settings)
    if (added := project.add_labels(names)) and not is_new:
        stderr_console().print(f"new labels in the project: {listing(added)}")

    def choose(observe: PredictionListener) -> int:
        try:
            if pool is None and settings.sql is None:
                raise EmptyPoolError("every text in the queue has a decision", remedy="Pass POOL for more texts.")
            chosen = choose_for_project(
                project, pool, settings, number, random_share=random_share, suggestions=suggestions, observe=observe
            )
        except EmptyPoolError:
            with contextlib.suppress(UserError):  # without embeddings
                estimate_project(project, settings)
            raise
        estimate_project(project, settings)
        note_few_random(chosen, round(random_share * number))
        return len(chosen.texts)

    _serve(project, BackgroundWork(project, choose, _train_flags(project, settings)), coder, token, host, port, browser)


def _rename(project: Project, old: str, new: str, *, yes: bool) -> None:
    from bertsmith.labelling.label_names import checked_rename
    from bertsmith.labelling.table import export

    old, new = checked_rename(project.read()[0], old, new)
    changed = counted(sum(old in decision.labels for decision in project.decisions), "decision")
    question = f"Merge {quoted(old)} with {quoted(new)}? This changes {changed}."
    if new in project.labels and not yes and not confirm(question):
        stderr_console().print("bertsmith changed nothing")
        return
    project.rename_label(old, new)
    stderr_console().print(f"{quoted(old)} is now {quoted(new)}, in {changed}")
    export(project)


def _serve(
    project: Project, background: Any, coder: str | None, token: str | None, host: str, port: int, browser: bool
) -> None:
    from bertsmith.labelling.app import create_app
    from bertsmith.labelling.project import TABLE
    from bertsmith.labelling.table import Snapshot, export
    from bertsmith.serving.server import address_of, listen, run_app

    err = stderr_console()
    with handle_signals() as signals, contextlib.closing(listen(host, port)) as listening:
        page = f"{address_of(listening)}/"
        err.print(f"page: {page}  (Ctrl-C stops the server; every decision is saved)")
        if not project.rows:
            background.choose()
        if browser:  # one that runs in the terminal returns at its end
            threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()
        try:
            run_app(create_app(project, background, coder=coder, token=token), listening, signals)
        finally:
            resume = background.close()
    try:
        n = export(project)
    finally:
        if resume:
            err.print(f"training stopped; to resume: {_as_typed(resume)}")
    table = project.path / TABLE
    err.print(f"{counted(n, 'labelled text')} written to {table}")
    if n and (unused := Snapshot.of(project).unused_labels):
        labels = number_form(len(unused), "label", "labels")
        err.print(f"note: a model cannot learn the {labels} {listing(unused)}, which no text has")
    if n:
        stdout_console().print(_as_typed(background.train_command(table, background.next_run())))


def _as_typed(arguments: list[str]) -> str:
    """Return a command for a shell, with double quotes, which all shells understand."""
    return " ".join(f'"{part}"' if {" ", ";"} & {*part} else part for part in ["bertsmith", *arguments])


def _is_local(host: str) -> bool:
    return host in ("127.0.0.1", "::1", "localhost")  # the page answers requests to these alone


def _train_flags(project: Project, settings: Config) -> tuple[str, ...]:
    """Return the flags that train on the labels: the checkpoint of the project, the device, and changed settings."""
    from bertsmith.workflows.embeddings import project_checkpoint

    default, flags = Config(), ["--model", project_checkpoint(project.path, settings), "--device", settings.device]
    for name in ("threads", "max_length", "seed"):
        if (value := getattr(settings, name)) != getattr(default, name):
            flags += [f"--{name.replace('_', '-')}", str(value)]
    return tuple(flags)
