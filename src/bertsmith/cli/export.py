"""``bertsmith export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bertsmith.cli.options import Json, RunArgument
from bertsmith.cli.terminal import print_json, result, sigterm_like_ctrl_c, talk


def export(
    *,
    run: RunArgument,
    format: Annotated[str, typer.Option(metavar="onnx|openvino", help="What to export to.")] = "onnx",
    precision: Annotated[
        str, typer.Option(metavar="fp32|bf16|int8", help="Number format: bf16 and int8 with openvino only.")
    ] = "fp32",
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FOLDER",
            help="Folder to write; RUN/export/FORMAT or FORMAT-PRECISION unless given.",
        ),
    ] = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="Write it even if it does not say what the original says.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an export that is there.")] = False,
    json: Json = False,
) -> None:
    """Write a folder that labels texts without torch, checked against the original on validation and test texts.

    Example: bertsmith export runs/reviews --format onnx
    """
    talk().print("[dim]loading the model, writing the export, comparing the two …[/]")
    from bertsmith.api.inference import export as write

    with sigterm_like_ctrl_c():
        made = write(run, format=format, precision=precision, output=output, accept=accept, overwrite=overwrite)
    found = made.about.parity
    if json:
        print_json({"export": str(made.path), "format": format, "precision": precision, **found})
        return
    out = result()
    speeds = found["texts_per_second"]
    out.print(
        f"{found['agreement']:.2%} of {found['texts']:,} validation and test texts are labelled as by the original; no "
        f"probability differs by more than {found['largest_difference']:.2g}"
    )
    if precision != "fp32":
        out.print(f"of other texts up to {found['others_at_most']:.1%} may be labelled otherwise (95 % upper bound)")
    out.print(f"texts a second here: {speeds['export']:,.0f}, the original {speeds['original']:,.0f}")
    size = sum(p.stat().st_size for p in made.path.iterdir()) / 1e6
    out.print(f"export  {made.path} ({size:,.0f} MB)", markup=False)
