"""``bertsmith export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bertsmith.cli.options import Json, LongTexts, RunArgument
from bertsmith.cli.terminal import print_json, sigterm_like_ctrl_c, stderr_console, stdout_console


def export(
    *,
    run: RunArgument,
    format: Annotated[str, typer.Option(metavar="onnx|openvino", help="Format of the export.")] = "onnx",
    precision: Annotated[
        str, typer.Option(metavar="fp32|bf16|int8", help="Precision; bf16 and int8 need --format openvino.")
    ] = "fp32",
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FOLDER",
            help="Folder to write; by default RUN/export/FORMAT or RUN/export/FORMAT-PRECISION.",
        ),
    ] = None,
    long: LongTexts = "auto",
    accept: Annotated[
        bool,
        typer.Option("--accept", help="Write the export even if its predictions differ from those of the original."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing export.")] = False,
    json: Json = False,
) -> None:
    """Export a run to a runtime without torch, and compare the export with the original on texts of the run.

    Example: bertsmith export runs/reviews --format onnx
    """
    stderr_console().print("loading the model, writing the export, comparing the two …", style="dim")
    from bertsmith.inference.export import export as export_run
    from bertsmith.tasks.registry import get_task

    with sigterm_like_ctrl_c():
        export = export_run(
            run, format=format, precision=precision, output=output, long=long, accept=accept, overwrite=overwrite
        )
    parity, task = export.about.parity, get_task(export.about.task)
    if json:
        print_json({"export": str(export.path), "format": format, "precision": precision, **parity})
        return
    out = stdout_console()
    speeds = parity["texts_per_second"]
    out.print(
        f"{parity['agreement']:.2%} of {parity['texts']:,} texts of the run {task.same_name} from export and "
        f"original. The largest difference of a {task.score_name} is {parity['largest_difference']:.2g}{task.unit_name}"
    )
    if precision != "fp32":
        bound = f"up to {parity['others_at_most']:.1%} of other texts may get a different prediction"
        out.print(f"{bound} (95 % upper bound)")
    out.print(f"texts per second on this machine: export {speeds['export']:,.0f}, original {speeds['original']:,.0f}")
    size = sum(p.stat().st_size for p in export.path.iterdir()) / 1e6
    out.print(f"export  {export.path} ({size:,.0f} MB)")
