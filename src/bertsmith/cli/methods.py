"""``bertsmith methods``."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from bertsmith.cli.options import MeasurementOption, RunArgument


def methods(
    run: RunArgument,
    form: Annotated[
        Literal["markdown", "latex", "bibtex"],
        typer.Option("--format", help="Format of the paragraph; bibtex prints its references."),
    ] = "markdown",
    measurement: MeasurementOption = None,
) -> None:
    """Print a methods paragraph for a paper, and the source of each number.

    Example: bertsmith methods runs/reviews --format latex
    """
    from bertsmith.folders.run import open_run
    from bertsmith.measuring.result import read_measurement
    from bertsmith.report.methods import write_methods

    opened = open_run(run)
    measured = None if measurement is None else read_measurement(measurement, opened.info)
    result = write_methods(opened, measured)
    sys.stdout.write({"markdown": result.markdown, "latex": result.latex, "bibtex": result.bibtex}[form]())
