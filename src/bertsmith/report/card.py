"""The model card, `model/README.md`: what others need to know before they use the model."""

from __future__ import annotations

import json
import re

from bertsmith.folders.atomic import write_text
from bertsmith.folders.run import Run
from bertsmith.report.report import best_epoch, environment, text_names
from bertsmith.tasks.registry import get_task

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def write_card(run: Run) -> None:
    """Write the model card of an evaluated run.

    Raises:
        RunFolderError: if a file of the run is missing or damaged.
    """
    info, metrics, task = run.info, run.metrics, get_task(run.task)
    test, base_model = metrics["splits"]["test"], info["model"]["name"]
    template = run.template
    cells = [["a new text" if template.is_plain else f"{name} …"] for name in template.columns]
    (item,) = template.texts(cells)
    card = (
        environment()
        .overlay(autoescape=False)
        .get_template("card.md")
        .render(
            name=_escape(run.path.resolve().name),
            info=info,
            example=json.dumps(
                [item if isinstance(item, str) else dict(zip(("text", "text_pair"), item, strict=True))],
                ensure_ascii=False,
            ),
            base_model=base_model if _HUB_ID.fullmatch(base_model) else None,
            test=test,
            **text_names(metrics),
            metric_names=task.metric_names,
            primary=task.primary,
            primary_name=task.primary_name,
            task=task.name,
            described=task.described.format(n=len(run.labels)),
            seeds=metrics.get("seeds"),
            best_epoch=best_epoch(run),
            verdict=metrics["baseline"]["bag_of_words"]["verdict"],
            classes=[
                {"label": e["label"], "text": _escape(e["label_text"]), "texts": e["texts"], "f1": e["f1"]}
                for e in test.get("per_class", ())
            ],
        )
    )
    write_text(run.layout.model / "README.md", card)


def _escape(text: str) -> str:
    """Escape Markdown and put the text on one line, for a table cell."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", " ".join(text.split()))
