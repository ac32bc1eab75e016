"""``bertsmith explain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from bertsmith.cli.options import Json, RunArgument, with_settings
from bertsmith.cli.terminal import print_json, result, talk
from bertsmith.config import Config, ModelConfig

STRONGEST = 10
"""Words listed with their figure."""


@with_settings(ModelConfig, only=("device", "threads"))
def explain(
    *,
    run: RunArgument,
    text: Annotated[list[str], typer.Option("--text", metavar="TEXT", help="A text to explain; may be repeated.")],
    label: Annotated[
        str | None, typer.Option(metavar="LABEL", help="Explain this label text and not the predicted one.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with the words coloured.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page if it is there.")] = False,
    json: Json = False,
    settings: Config,
    config: Path | None,
) -> None:
    """Show which words moved a prediction, and by how much.

    Example: bertsmith explain runs/reviews --text "great phone, awful battery"
    """
    from bertsmith.folders.atomic import write_text
    from bertsmith.folders.claim import claim
    from bertsmith.folders.files import OutputFile
    from bertsmith.folders.run import open_run

    open_run(run)
    page = OutputFile(html, (config,), (".html", ".htm")) if html else None
    if page:
        page.check(overwrite=overwrite)  # before the slow part
    from bertsmith.inference.classifier import Classifier
    from bertsmith.inference.explain import explain as explained

    classifier = Classifier.load(run, device=settings.device)
    found = [explained(classifier, one, label) for one in text]
    if page:
        from bertsmith.report.report import explanations_page

        with claim(page, overwrite=overwrite):
            write_text(page.path, explanations_page([e.to_dict() for e in found], run.resolve().name))
        talk().print(f"page: {html}", markup=False)
    if json:
        print_json([e.to_dict() for e in found])
        return
    out = result()
    for explanation in found:
        most = max((abs(w.attribution) for w in explanation.words), default=0.0) or 1.0
        line = Text()
        end = 0
        for word in explanation.words:
            share = word.attribution / most
            style = (
                "" if abs(share) < 0.15 else f"{'bold ' if abs(share) > 0.5 else ''}{'green' if share > 0 else 'red'}"
            )
            line.append(explanation.text[end : word.start]).append(word.text, style=style)
            end = word.end
        if explanation.unread:
            line.append(
                f" … ({explanation.unread:,} more characters are beyond the maximum length, and not read)", "dim"
            )
        else:
            line.append(explanation.text[end:])
        out.print(line)
        other = (
            ""
            if explanation.label_text == explanation.predicted_text
            else f" (predicted: {explanation.predicted_text})"
        )
        out.print(f"  {explanation.label_text}, probability {explanation.probability:.3f}{other}", markup=False)
        for word in sorted(explanation.words, key=lambda w: -abs(w.attribution))[:STRONGEST]:
            out.print(f"  {word.attribution:+8.3f}  {word.text}", markup=False)
        if len(explanation.words) > STRONGEST:
            more = len(explanation.words) - STRONGEST
            out.print(f"  … and {more:,} more word{'s' if more > 1 else ''} that moved it less", markup=False)
        out.print(
            f"  all words add up to {explanation.change + explanation.gap:+.3f} "
            f"of a change of {explanation.change:+.3f} in the logit",
            markup=False,
        )
