"""``bertsmith verify``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from bertsmith.cli.options import Json, RunArgument, TableArgument, with_settings
from bertsmith.cli.terminal import print_json, stderr_console, stdout_console
from bertsmith.config import Config, ModelConfig


@with_settings(ModelConfig, only=("device", "threads"))
def verify(
    *,
    run: RunArgument,
    table: TableArgument = None,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="Train again on the table with the settings of the run, and compare.")
    ] = False,
    json: Json = False,
    settings: Config,
) -> None:
    """Check the model files, metrics and predictions of a run. With TABLE, check the texts of the table too.

    The command recomputes the predictions for the test texts, and the metrics from the saved predictions.

    With --retrain, train again on TABLE and compare the results.

    Exit code 0: identical; 2: something differs.

    Example: bertsmith verify runs/reviews reviews.csv --retrain
    """
    from bertsmith.folders.run import open_run

    open_run(run)
    from bertsmith.workflows.verify import verify_run

    stderr_console().print("scoring the test texts again …", style="dim")
    checks = verify_run(run, table, retrain=retrain, device=settings.device)
    identical = all(check.identical is not False for check in checks)
    if json:
        print_json({"identical": identical, "checks": [asdict(check) for check in checks]})
    else:
        out = stdout_console()
        for check in checks:
            result = {True: "identical", False: "DIFFERS", None: "not checked"}[check.identical]
            out.print(f"{result:<11} {check.name}: {check.detail}")
        result = "identical"
        if not identical:
            result = "at least one check found a difference: see the lines with DIFFERS"
        elif any(check.identical is None for check in checks):
            result = "no differences; some checks were not possible: see the lines with “not checked”"
        out.print(result)
    if not identical:
        raise typer.Exit(2)
