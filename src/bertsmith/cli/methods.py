"""``bertsmith methods``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from bertsmith.cli.options import RunArgument


def methods(
    run: RunArgument,
    form: Annotated[
        Literal["markdown", "latex", "bibtex"],
        typer.Option("--format", help="Format of the paragraph; bibtex prints its references."),
    ] = "markdown",
    measurement: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Output of bertsmith measure --json, for a paragraph on the shares."),
    ] = None,
) -> None:
    """Print a methods paragraph for a paper, and the source of each number.

    Example: bertsmith methods runs/reviews --format latex
    """
    from bertsmith.errors import DataError
    from bertsmith.folders.run import open_run
    from bertsmith.measuring.result import run_identity
    from bertsmith.report.methods import write_methods

    opened, measured = open_run(run), None
    if measurement is not None:
        try:
            measured = json.loads(measurement.read_text(encoding="utf-8"))
            _ = (measured["shares"] or measured["means"])[0]["estimator"]
        except OSError as error:
            raise DataError(
                f"the file cannot be read: {error.strerror}", where=str(measurement), remedy="Check the path."
            ) from error
        except (ValueError, LookupError, TypeError) as error:
            raise DataError(
                f"the file is not the output of bertsmith measure --json ({type(error).__name__})",
                where=str(measurement),
                remedy="Create it with: bertsmith measure RUN CORPUS … --json > FILE.json",
            ) from error
        if measured.get("run", run_identity(opened.info)) != run_identity(opened.info):  # older versions wrote no run
            raise DataError("the measurement comes from another run", where=str(measurement), remedy="Pass that run.")
    result = write_methods(opened, measured)
    sys.stdout.write({"markdown": result.markdown, "latex": result.latex, "bibtex": result.bibtex}[form]())
