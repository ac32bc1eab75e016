"""``bertsmith compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bertsmith.cli.options import Json
from bertsmith.cli.terminal import print_json, stdout_console
from bertsmith.data.texts import decimals, signed_interval


def compare(
    *,
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN…", show_default=False, help="Two or more run folders; the first is the reference."),
    ],
    json: Json = False,
) -> None:
    """Compare finished runs that have the same test rows, with paired confidence intervals.

    Example: bertsmith compare runs/minilm runs/bert-base
    """
    from rich.table import Table
    from rich.text import Text

    from bertsmith.folders.run import Run, open_run
    from bertsmith.tasks.registry import get_task
    from bertsmith.workflows.compare import compare_runs

    entries = compare_runs([open_run(run) for run in runs])
    if json:
        print_json(entries)
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    task = get_task(Run(runs[0]).task)
    shown = [*task.headline, *(["log_loss"] if "log_loss" in task.metric_names else [])]
    titles = [task.metric_names[name][0] for name in shown]
    for heading in ("run", *titles, f"{titles[0]}, difference from the first"):
        table.add_column(heading, no_wrap=True, header_style="dim")
    for entry in entries:
        metrics, difference = entry["metrics"], entry["difference"]
        first, change = metrics[shown[0]], ""
        low, high = map(decimals, first["interval"] or (None, None))
        if difference is not None:
            change = f"{difference['value']:+.3f} {signed_interval(difference['interval'])}"
            change += "" if difference["distinguishable"] else " not distinguishable"
        table.add_row(
            Text(entry["name"], overflow="fold"),
            Text(f"{decimals(first['value'])} [{low}, {high}]"),
            *(decimals(metrics[name]["value"]) for name in shown[1:]),
            Text(change),
        )
    out = stdout_console()
    out.print(table)
    out.print(f"on the same {entries[0]['texts']:,} texts; 95 % intervals; differences are paired by text")
