"""``bertsmith evaluate``."""

from __future__ import annotations

from typing import Annotated

import typer

from bertsmith.api.keyword_types import EvaluateSettings
from bertsmith.cli.options import Json, RunArgument, TableArgument, with_settings
from bertsmith.cli.terminal import print_json, stderr_console, stdout_console
from bertsmith.config import Config, DataConfig, ModelConfig
from bertsmith.data.texts import decimals, show_interval
from bertsmith.errors import counted


@with_settings(DataConfig, ModelConfig, only=EvaluateSettings.__optional_keys__)
def evaluate(
    *,
    run: RunArgument,
    table: TableArgument = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of the folder in RUN/evaluations; by default the name of the table."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing evaluation.")] = False,
    json: Json = False,
    settings: Config,
) -> None:
    """Evaluate a finished run on another labelled table.

    Example: bertsmith evaluate runs/reviews reviews_2025.csv
    """
    from bertsmith.folders.run import open_run

    open_run(run)
    from bertsmith.workflows.evaluate import run_evaluation

    evaluation = run_evaluation(run, table, settings, name=name, overwrite=overwrite)
    metrics = evaluation.metrics
    for reason, n in metrics["left_out"].items():
        stderr_console().print(f"dropped: {counted(n, 'row')} ({reason})")
    if seen := metrics["seen_in_training"]:
        stderr_console().print(
            f"warning: {counted(seen, 'of these texts was', 'of these texts were')} in the train or "
            "validation split of the run: the metrics are too optimistic"
        )
    for note in metrics["notes"]:
        stderr_console().print(f"note: {note}")
    if json:
        print_json(metrics)
        return
    out = stdout_console()
    out.print(f"on {counted(metrics['texts'], 'text')}")
    for metric, entry in metrics["metrics"].items():
        if entry["value"] is None:
            out.print(f"{metric:<24} undefined on these texts")
            continue
        interval = show_interval(entry["interval"])
        out.print(f"{metric:<24} {decimals(entry['value'])}  (95 % interval {interval})")
    out.print(f"saved to {evaluation.path}")
