"""``bertsmith compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bertsmith.cli.options import Json
from bertsmith.cli.terminal import print_json, result


def compare(
    *,
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN…", show_default=False, help="Two or more runs; the first is the yardstick."),
    ],
    json: Json = False,
) -> None:
    """Put runs side by side on their common test rows, with paired confidence intervals.

    Example: bertsmith compare runs/minilm runs/bert-base
    """
    from rich.table import Table
    from rich.text import Text

    from bertsmith.api import compare as compare_runs

    entries = compare_runs(*runs)
    if json:
        print_json(entries)
        return
    grid = Table(box=None, padding=(0, 2))
    for heading in (
        "run",
        "macro-F1",
        "95 % interval",
        "accuracy",
        "log loss",
        "macro-F1 to the first",
        "95 % interval",
    ):
        grid.add_column(heading, justify="left" if heading == "run" else "right", header_style="dim")
    for entry in entries:
        macro, difference = entry["metrics"]["macro_f1"], entry["difference"]
        row = [
            f"{macro['value']:.3f}",
            "{:.3f} to {:.3f}".format(*macro["interval"]),
            f"{entry['metrics']['accuracy']['value']:.3f}",
            f"{entry['metrics']['log_loss']['value']:.3f}",
        ]
        if difference is None:
            row += ["–", ""]
        else:
            low, high = difference["interval"]
            clear = "" if difference["distinguishable"] else " (not distinguishable)"
            row += [f"{difference['value']:+.3f}{clear}", f"{low:+.3f} to {high:+.3f}"]
        grid.add_row(Text(entry["name"]), *row)
    out = result()
    out.print(grid)
    out.print(f"on the same {entries[0]['texts']:,} test texts; differences are paired, text by text")
