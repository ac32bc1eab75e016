"""``bertsmith tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bertsmith.cli.options import Json, TableArgument, with_settings
from bertsmith.cli.terminal import print_json, result, talk
from bertsmith.cli.train import stoppable
from bertsmith.config import Config, DataConfig, EvalConfig, ModelConfig, TrainConfig
from bertsmith.errors import ConfigError, Interrupted
from bertsmith.tuning.config import StudyConfig

_OURS = tuple(
    name
    for step in (DataConfig, ModelConfig, TrainConfig, EvalConfig)
    for name in step.model_fields
    if name not in ("seeds", "keep_checkpoints", "profile", "cv")  # of which it has its own
)
_PANEL = "Search"
MOST_TRIALS = 20
"""Trials, where neither their number nor the time is given."""


@with_settings(DataConfig, ModelConfig, TrainConfig, EvalConfig, only=_OURS)
def tune(
    *,
    table: TableArgument = None,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="STUDY", help="Study folder to write.")],
    trials: Annotated[
        int | None,
        typer.Option(
            metavar="N", help=f"Trials, those done before counted. [default: {MOST_TRIALS}]", rich_help_panel=_PANEL
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(metavar="X", help="Time for the search, of this command alone.", rich_help_panel=_PANEL),
    ] = None,
    jobs: Annotated[int, typer.Option(metavar="N", help="Trials at once on this machine.", rich_help_panel=_PANEL)] = 1,
    objective: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="macro_f1, or with latency besides: repeat it.", rich_help_panel=_PANEL),
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(metavar="A,B,…", help="Checkpoints to choose among, with commas.", rich_help_panel=_PANEL),
    ] = None,
    space: Annotated[
        Path | None,
        typer.Option(metavar="FILE.toml", help="Ranges and choices other than the usual.", rich_help_panel=_PANEL),
    ] = None,
    cv: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            help="Score by K-fold cross-validation, where validation texts are few.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Database, for several machines that run this command.", rich_help_panel=_PANEL
        ),
    ] = None,
    final_seeds: Annotated[
        int,
        typer.Option(metavar="N", help="Seeds to train winner and defaults with in the end.", rich_help_panel=_PANEL),
    ] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew, in the place of a study.")] = False,
    json: Json = False,
    settings: Config,
) -> None:
    """Search for better settings than the defaults, on train and validation; then train and test the winner.

    What is given as a flag is not varied. The same command goes on with a study that was interrupted.

    Example: bertsmith tune reviews.csv -o studies/reviews --trials 20
    """
    how: dict[str, Any] = {
        "trials": MOST_TRIALS if trials is None and minutes is None else trials,
        "minutes": minutes,
        "jobs": jobs,
        "objectives": tuple(objective or ("macro_f1",)),
        "storage": storage,
        "cv": cv,
        "final_seeds": final_seeds,
        "models": _names(models),
        "space": space,
    }
    StudyConfig(**how)  # told at once, before anything slow is imported
    talk().print("[dim]reading the table, loading the model …[/]")
    from bertsmith.api import tune as search
    from bertsmith.cli.tuning_progress import TuningProgress

    given = {name: getattr(settings, name) for name in _OURS if getattr(settings, name) != _default(name)}
    with TuningProgress(talk()) as progress, stoppable() as stop:
        try:
            study = search(
                table,
                output=output,
                overwrite=overwrite,
                on_event=progress,
                stop=stop,
                **how,
                **given,
            )
        except (Interrupted, KeyboardInterrupt) as stopped:
            what = str(stopped) if isinstance(stopped, Interrupted) else "stopped at once"
            raise Interrupted(
                f"{what}; trials that were not finished are begun again\n  to go on: the same command"
            ) from None
    found = study.result
    if found is None:
        talk().print("another process finishes this study")
        return
    if json:
        print_json({"study": str(study.path), **found})
        return
    _show(study.path, found)


def _names(models: str | None) -> tuple[str, ...]:
    if models is None:
        return ()
    names = tuple(name.strip() for name in models.split(","))
    if not all(names):
        raise ConfigError("--models: a name is empty", remedy="Write them as a,b,c.")
    return names


def _default(name: str) -> Any:
    return Config.model_fields[name].get_default(call_default_factory=True)


def _show(folder: Path, found: dict[str, Any]) -> None:
    out = result()
    low, high = found["test"]["interval"]
    counts = found["trials"]
    n = sum(counts.values())
    out.print(
        f"{n} trial{'s' if n > 1 else ''}: {counts['complete']} finished, {counts['pruned']} given up early, "
        f"{counts['failed']} failed"
    )
    latency = f", {found['values']['latency']:.1f} ms a text" if "latency" in found["values"] else ""
    out.print(
        f"winner: trial {found['trial']}, validation macro-F1 {found['score']:.3f}{latency}; test macro-F1 "
        f"[bold]{found['test']['value']:.3f}[/]  (95 % interval {low:.3f} to {high:.3f}) on {found['texts']:,} texts"
    )
    if seeds := found.get("seeds"):
        best, usual = ("{mean:.3f} ± {standard_deviation:.3f}".format(**s) for s in (seeds, found["defaults"]["seeds"]))
        out.print(
            f"that is the seed which is best on validation; over {seeds['n']} seeds test macro-F1 is {best}"
            + ("" if found["is_default"] else f", and {usual} for what train does with the same flags")
        )
    if n > 1:
        out.print(
            f"the best of {n} trials owes part of its validation score to luck: the test figure is the one to trust"
        )
    if found["told"] > 1:
        out.print(
            f"of this study that is test result number {found['told']}: each one that was known before the search went "
            "on makes the next a little less trustworthy"
        )
    out.print(found["verdict"], markup=False)
    if not found["is_default"]:
        for name, value in found["settings"].items():
            out.print(f"  {name} = {f'{value:.3g}' if isinstance(value, float) else value}", markup=False)
    for sentence in found["advice"]:
        out.print(f"next: {sentence}", markup=False)
    out.print(f"report  {folder / 'report.html'}\nrun     {folder / 'best'}", markup=False)
