"""``bertsmith tune``."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Annotated, Any

import typer

from bertsmith.cli.options import Json, TableArgument, with_settings
from bertsmith.cli.terminal import print_json, stderr_console, stdout_console
from bertsmith.cli.train import Track, stoppable
from bertsmith.config import Config, DataConfig, EvalConfig, ModelConfig, TrainConfig
from bertsmith.data.texts import decimals, show_interval
from bertsmith.errors import ConfigError, Interrupted, counted
from bertsmith.tuning.config import StudyConfig

_SETTINGS = tuple(
    name
    for step in (DataConfig, ModelConfig, TrainConfig, EvalConfig)
    for name in step.model_fields
    if name not in ("effort", "seeds", "keep_checkpoints", "cv")
)
"""Settings with an option. In the environment and a file, ``cv`` and ``keep_checkpoints`` apply to the final runs."""
DEFAULT_TRIALS = 20
"""Trials if the user sets neither their number nor a time limit."""


def _option(metavar: str, help: str) -> Any:
    return typer.Option(metavar=metavar, help=help, rich_help_panel="Search")


@with_settings(DataConfig, ModelConfig, TrainConfig, EvalConfig, only=_SETTINGS)
def tune(
    *,
    table: TableArgument = None,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="STUDY", help="Study folder to write.")],
    trials: Annotated[
        int | None,
        _option(
            "N",
            f"Number of trials, including those of earlier commands (default: {DEFAULT_TRIALS}, or no limit with "
            "--minutes).",
        ),
    ] = None,
    minutes: Annotated[float | None, _option("X", "Time limit for the search, in minutes.")] = None,
    jobs: Annotated[int, _option("N", "Number of worker processes on this machine.")] = 1,
    objective: Annotated[
        list[str] | None,
        _option(
            "NAME",
            "What to optimize: the primary metric of the task, such as macro_f1. To optimize the latency too, repeat "
            "the option: --objective macro_f1 --objective latency.",
        ),
    ] = None,
    models: Annotated[str | None, _option("A,B,…", "Checkpoints to choose from, separated by commas.")] = None,
    space: Annotated[Path | None, _option("FILE.toml", "TOML file with changes to the search space.")] = None,
    cv: Annotated[int | None, _option("K", "Score trials by K-fold cross-validation.")] = None,
    storage: Annotated[str | None, _option("URL", "Database that several machines share.")] = None,
    final_seeds: Annotated[int, _option("N", "Number of seeds to train the winner and the defaults with.")] = 1,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the study in the folder; not with --storage.")
    ] = False,
    track: Track = None,
    json: Json = False,
    settings: Config,
) -> None:
    """Search for settings that beat the defaults on the validation split, then train and test the winner.

    Settings that you pass as options stay fixed. The same command resumes an interrupted study.

    Example: bertsmith tune reviews.csv -o studies/reviews --trials 20
    """
    names = tuple(name for part in (models or "").split(",") if (name := part.strip()))
    if models is not None and not names:
        raise ConfigError("--models names no checkpoint", remedy="Pass names with commas between them.")
    plan = StudyConfig(  # reports wrong options before the slow imports
        DEFAULT_TRIALS if trials is None and minutes is None else trials,
        minutes,
        jobs,
        tuple(objective or ()),
        storage,
        cv,
        final_seeds,
        names,
        space,
    )
    stderr_console().print("reading the table, loading the model …", style="dim")
    from bertsmith.progress.tuning import TuningProgress
    from bertsmith.tracking.listener import Tracking
    from bertsmith.workflows.tune import run_tuning

    gc.freeze()  # as `train` does
    with TuningProgress(stderr_console()) as progress, stoppable() as stop:
        try:
            with Tracking(track, output, settings, progress) as observe:
                study = run_tuning(table, settings, output, plan, overwrite=overwrite, observe=observe, stop=stop)
        except (Interrupted, KeyboardInterrupt) as stopped:
            what = str(stopped) if isinstance(stopped, Interrupted) else "stopped immediately"
            raise Interrupted(f"{what}\n  to resume: run the same command; finished trials are kept") from None
    outcome = study.result
    if outcome is None:
        stderr_console().print(
            "another process is training the winner of this study: run the same command again for the result"
        )
        return
    if json:
        print_json({"study": str(study.path), **outcome})
        return
    _show(study.path, outcome)


def _show(folder: Path, outcome: dict[str, Any]) -> None:
    from bertsmith.folders.study import Study
    from bertsmith.tasks.registry import get_task

    out = stdout_console()
    metric = get_task(Study(folder).best.task).primary_name
    counts = outcome["trials"]
    n = sum(counts.values())
    out.print(
        f"{counted(n, 'trial')}: {counts['complete']} complete, {counts['pruned']} pruned, {counts['failed']} failed"
    )
    where = "in cross-validation" if Study(folder).info["searched"].get("cv") else "on the validation texts"
    latency = f", {outcome['values']['latency']:.1f} ms per text" if "latency" in outcome["values"] else ""
    out.print(
        f"winner: trial {outcome['trial']}, {metric} {outcome['score']:.3f} {where}{latency}; "
        f"test {metric} [bold]{decimals(outcome['test']['value'])}[/]  "
        f"(95 % interval {show_interval(outcome['test']['interval'])}) on {counted(outcome['texts'], 'text')}",
        markup=True,
    )
    if seeds := outcome.get("seeds"):
        best, defaults = (
            f"{decimals(s['mean'])} (standard deviation {decimals(s['standard_deviation'])})"
            for s in (seeds, outcome["defaults"]["seeds"])
        )
        out.print(
            f"this score is that of the best seed on the {seeds['held_out']}. Over {seeds['n']} seeds, the mean "
            f"test {metric} is {best}"
            + ("" if outcome["is_default"] else f". With the default settings, it is {defaults}")
        )
    if n > 1:
        out.print(f"the score {where} of the best of {n} trials is optimistic: trust the test score")
    if outcome["told"] > 1:
        out.print(
            f"this study has shown {outcome['told']} test results: if the search continued after the first, the later "
            "ones are slightly optimistic"
        )
    out.print(outcome["verdict"])
    if not outcome["is_default"]:
        for name, value in outcome["settings"].items():
            out.print(f"  {name} = {f'{value:.3g}' if isinstance(value, float) else value}")
    for sentence in outcome["advice"]:
        out.print(f"next: {sentence}")
    out.print(f"report  {folder / 'report.html'}\nrun     {folder / 'best'}")
