"""``bertsmith pack``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bertsmith.cli.options import MeasurementOption, RunArgument
from bertsmith.cli.terminal import stderr_console


def pack(
    run: RunArgument,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.zip", help="Archive to write; RUN.zip by default.")
    ] = None,
    texts: Annotated[bool, typer.Option("--texts/--no-texts", help="Include the texts, or only their hashes.")] = True,
    measurement: MeasurementOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing archive.")] = False,
) -> None:
    """Write a replication archive of a run: settings, scores, predictions, model, and a methods paragraph.

    Example: bertsmith pack runs/reviews -o reviews.zip --no-texts
    """
    from bertsmith.errors import counted
    from bertsmith.folders.claim import claim
    from bertsmith.folders.files import OutputFile
    from bertsmith.folders.run import open_run

    open_run(run)
    folder = run.resolve()
    path = folder.with_name(f"{folder.name}.zip") if output is None else output
    with claim(OutputFile(path, (), (".zip",)), overwrite=overwrite):
        from bertsmith.workflows.pack import pack_run

        n_files = pack_run(run, path, texts=texts, measurement=measurement)
    err = stderr_console()
    err.print(f"{counted(n_files, 'file')} packed into {path}, {path.stat().st_size / 1e6:,.1f} MB")
    if texts:
        err.print(
            "note: the archive contains texts of your tables: check that you may publish them, or pass --no-texts"
        )
