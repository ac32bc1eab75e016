"""``bertsmith evaluate``."""

from __future__ import annotations

from typing import Annotated

import typer

from bertsmith.cli.options import Json, RunArgument, TableArgument, with_settings
from bertsmith.cli.terminal import print_json, result, talk
from bertsmith.config import Config, DataConfig, ModelConfig

READING = (
    "text_column",
    "label_column",
    "label_text_column",
    "group_column",
    "sql",
    "db",
    "sheet",
    "encoding",
    "max_unpacked",
)


@with_settings(DataConfig, ModelConfig, only=(*READING, "device", "threads"))
def evaluate(
    *,
    run: RunArgument,
    table: TableArgument = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Folder for it in RUN/evaluations; the table's name unless given."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an evaluation that is there.")] = False,
    json: Json = False,
    settings: Config,
) -> None:
    """Score a finished run on another labelled table.

    Example: bertsmith evaluate runs/reviews reviews_2025.csv
    """
    from bertsmith.folders.run import open_run

    open_run(run)
    from bertsmith.workflows.evaluate import run_evaluation

    evaluation = run_evaluation(run, table, settings, name=name, overwrite=overwrite)
    metrics = evaluation.metrics
    for reason, n in evaluation.left_out.items():
        talk().print(f"left out: {n:,} rows ({reason})", markup=False)
    if seen := metrics["seen_in_training"]:
        talk().print(
            f"[yellow]warning:[/] {seen:,} of these texts were used to train the run or to choose in it: the figures "
            "flatter it"
        )
    if json:
        print_json(metrics)
        return
    out = result()
    out.print(f"on {metrics['texts']:,} texts", markup=False)
    for metric, entry in metrics["metrics"].items():
        if entry["value"] is None:
            out.print(f"{metric:<24} undefined on these texts", markup=False)
            continue
        interval = "  (95 % interval {:.3f} to {:.3f})".format(*entry["interval"]) if entry["interval"] else ""
        out.print(f"{metric:<24} {entry['value']:.3f}{interval}", markup=False)
    out.print(f"kept in {evaluation.path}", markup=False)
