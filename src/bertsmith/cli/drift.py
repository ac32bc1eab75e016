"""``bertsmith drift``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bertsmith.api.keyword_types import PredictSettings
from bertsmith.cli.options import Json, RunArgument, with_settings
from bertsmith.cli.terminal import print_json, stderr_console, stdout_console
from bertsmith.config import Config, DataConfig, ModelConfig

FEW = 100
"""With fewer test texts or new texts, a note says that small changes stay unnoticed."""


@with_settings(DataConfig, ModelConfig, only=PredictSettings.__optional_keys__ - {"long"})
def drift(
    *,
    run: RunArgument,
    new: Annotated[
        str | None,
        typer.Argument(metavar="NEW", show_default=False, help="Any table with a text column, or a .txt file."),
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE.html", help="HTML page to write.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing page.")] = False,
    json: Json = False,
    settings: Config,
) -> None:
    """Compare new texts with the test texts of a run.

    The compared properties are predicted labels, confidence, length, language, unknown tokens and embeddings.

    Example: bertsmith drift runs/reviews reviews_2025.csv
    """
    from bertsmith.errors import counted
    from bertsmith.folders.atomic import write_text
    from bertsmith.folders.claim import claim
    from bertsmith.folders.files import OutputFile
    from bertsmith.progress.prediction import PredictionProgress

    page = OutputFile(html, (new, settings.db), (".html", ".htm")) if html else None
    if page:
        page.check(overwrite=overwrite)  # before the slow part
    from bertsmith.workflows.drift import compare_texts

    with PredictionProgress(stderr_console()) as progress:
        found = compare_texts(run, new, settings, observe=progress)
    if page:
        from bertsmith.report.shares import drift_page

        with claim(page, overwrite=overwrite):
            write_text(page.path, drift_page(found.to_dict(), run.resolve().name))
        stderr_console().print(f"page: {html}")
    if json:
        print_json(found.to_dict())
        return
    out = stdout_console()
    for d in found.differences:
        means = "" if d.before is None or d.after is None else f", mean {d.before:.3f} before and {d.after:.3f} now"
        verdict = "differs" if d.differs else "similar"
        out.print(f"{verdict:<10} {d.name}: distance {d.distance:.3f}, threshold {d.threshold:.3f}{means}")
    if min(found.test_texts, found.sampled) < FEW:
        stderr_console().print(
            f"note: with {counted(found.test_texts, 'test text')} and {counted(found.texts, 'new text')}, small "
            "changes stay unnoticed"
        )
    if found.grouped:
        stderr_console().print(
            "note: the thresholds assume that texts of the same group are independent, so properties exceed them too "
            "often"
        )
    if found.differs:
        stderr_console().print(
            "note: the metrics of the run may not hold for these texts: label some of them, and run bertsmith evaluate"
        )
