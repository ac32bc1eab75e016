"""``bertsmith explain``."""

from __future__ import annotations

import contextlib
import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from bertsmith.cli.options import Json, RunArgument, with_settings
from bertsmith.cli.terminal import print_json, stderr_console, stdout_console
from bertsmith.config import Config, ModelConfig
from bertsmith.errors import counted

if TYPE_CHECKING:
    from bertsmith.data.template import Template

MAX_WORDS = 10
"""Words listed with their attribution."""


def _parse(text: str, template: Template) -> Any:
    """Return the text, or, for a template of several columns, the object that it contains as JSON."""
    from bertsmith.errors import ConfigError

    if template.is_plain:
        return text
    with contextlib.suppress(ValueError):
        if isinstance(item := json_module.loads(text), dict):
            return item
    example = json_module.dumps(template.example, ensure_ascii=False)
    raise ConfigError(
        f"--text must be a JSON object, because the model reads {template}",
        remedy=f"Write --text '{example}'.",
    )


@with_settings(ModelConfig, only=("device", "threads", "long"))
def explain(
    *,
    run: RunArgument,
    text: Annotated[
        list[str],
        typer.Option(
            "--text",
            metavar="TEXT",
            help="Text to explain; may be repeated. For a model that reads several columns, a JSON object.",
        ),
    ],
    label: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL", help="Label to explain; by default the predicted one, or the most likely one of several."
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="HTML page to write, with the words in colour.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing page.")] = False,
    json: Json = False,
    settings: Config,
    config: Path | None,
) -> None:
    """Show how much each word contributes to a prediction.

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
    from bertsmith.inference.explain import explain as explain_text

    classifier = Classifier.load(run, device=settings.device, long=settings.long)
    explanations = [explain_text(classifier, _parse(one, classifier.template), label) for one in text]
    if page:
        from bertsmith.report.report import explanations_page

        with claim(page, overwrite=overwrite):
            write_text(page.path, explanations_page([(e.title, e.to_dict()) for e in explanations], run.resolve().name))
        stderr_console().print(f"page: {html}")
    if json:
        print_json([e.to_dict() for e in explanations])
        return
    out = stdout_console()
    for explanation in explanations:
        largest = max((abs(w.attribution) for w in explanation.words), default=0.0) or 1.0
        line = Text(explanation.text[: explanation.words[0].start] if explanation.words else "")
        end = 0
        for word in explanation.words:
            share = word.attribution / largest
            style = (
                "" if abs(share) < 0.15 else f"{'bold ' if abs(share) > 0.5 else ''}{'green' if share > 0 else 'red'}"
            )
            line.append(word.text, style=style).append(word.after)
            end = word.end
        if explanation.unread:
            line.append(f" … (not read by the model: {counted(explanation.unread, 'character')})", "dim")
        else:
            line.append(explanation.text[end:])
        out.print(line)
        out.print(f"  {explanation.title}")
        for word in sorted(explanation.words, key=lambda w: -abs(w.attribution))[:MAX_WORDS]:
            out.print(f"  {word.attribution:+8.3g}  {word.text}")
        if len(explanation.words) > MAX_WORDS:
            more = counted(len(explanation.words) - MAX_WORDS, "more word")
            out.print(f"  … and {more} with smaller attributions")
        output = "logit" if explanation.predicted is None else "predicted value"
        out.print(
            f"  the attributions sum to {explanation.change + explanation.gap:+.3g}; exact attributions would sum to "
            f"{explanation.change:+.3g}, the change of the {output} from an empty text"
        )
