"""The model card: `model/README.md`, what a stranger needs to know before using the model."""

from __future__ import annotations

import re

from bertsmith.folders.atomic import write_text
from bertsmith.folders.run import Run
from bertsmith.report.report import METRIC_NAMES, best_epoch, environment

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def write_card(run: Run) -> None:
    """Write the model card of a run that was scored.

    Raises:
        RunFolderError: if a file of the run is missing or damaged.
    """
    info, metrics = run.info, run.metrics
    card = (
        environment()
        .overlay(autoescape=False)
        .get_template("card.md")
        .render(
            name=_plain(run.path.resolve().name),
            info=info,
            base_model=info["model"]["name"] if _HUB_ID.fullmatch(info["model"]["name"]) else None,
            test=metrics["splits"]["test"],
            metric_names=METRIC_NAMES,
            seeds=metrics.get("seeds"),
            best_epoch=best_epoch(run),
            verdict=metrics["baseline"]["bag_of_words"]["verdict"],
            classes=[
                {"label": e["label"], "text": _plain(e["label_text"]), "texts": e["texts"], "f1": e["f1"]}
                for e in metrics["splits"]["test"]["per_class"]
            ],
        )
    )
    write_text(run.layout.model / "README.md", card)


def _plain(text: str) -> str:
    """Return a label text as one Markdown table cell that means nothing but itself."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", " ".join(text.split()))
