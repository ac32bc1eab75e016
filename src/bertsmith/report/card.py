"""The model card, `model/README.md`: what others need to know before they use the model."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertsmith.data.texts import decimals
from bertsmith.errors import ConfigError, listing, number_form
from bertsmith.folders.atomic import write_text
from bertsmith.folders.run import Run
from bertsmith.report.report import best_epoch, environment, selecting_metric, text_names
from bertsmith.tasks.registry import describe, get_task

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|multilingual|code")


@dataclass(frozen=True)
class Details:
    """Metadata of a card that only the user knows.

    Attributes:
        repository: ``owner/name`` on the hub, if the card goes there.
        language: codes of the languages of the texts, such as ``en``.
        license: the licence of the model, which the hub checks.
        datasets: ids of the datasets on the hub that the model was trained on.

    Raises:
        ConfigError: if a language or a name is invalid.
    """

    repository: str | None = None
    language: tuple[str, ...] = ()
    license: str | None = None
    datasets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if wrong := [code for code in map(str, self.language) if not LANGUAGE.fullmatch(code)]:
            what = number_form(len(wrong), "is not a language code", "are not language codes")
            raise ConfigError(f"language: {listing(wrong)} {what}", remedy="Use an ISO 639 code, such as en.")
        ids = [*self.datasets, *([] if self.repository is None else [self.repository])]
        if wrong := [name for name in map(str, ids) if not HUB_ID.fullmatch(name) or ".." in name or "--" in name]:
            what = number_form(len(wrong), "is not the name of a hub repository", "are not names of hub repositories")
            raise ConfigError(f"{listing(wrong)} {what}", remedy="Write a name as owner/name.")


def write_card(run: Run) -> None:
    """Write the model card of an evaluated run.

    Raises:
        RunFolderError: if a file of the run is missing or damaged.
    """
    write_text(run.layout.model / "README.md", card_text(run))


def card_text(run: Run, details: Details = Details()) -> str:
    """Return the model card of an evaluated run, with metadata for the hub. It quotes no text of the table.

    Raises:
        RunFolderError: if a file of the run is missing or damaged.
    """
    info, metrics, task = run.info, run.metrics, get_task(run.task)
    test = metrics["splits"]["test"]
    item = _example(run)
    body = (
        environment(autoescape=False)
        .get_template("card.md")
        .render(
            name=_escape(_name(run, details)),
            info=info,
            checkpoint=_checkpoint(run),
            place=details.repository or "path/to/this/folder",
            example=json.dumps(
                [item if isinstance(item, str) else dict(zip(("text", "text_pair"), item, strict=True))],
                ensure_ascii=False,
            ),
            test=test,
            **text_names(metrics),
            metric_names=task.metric_names,
            primary=task.primary,
            primary_name=task.primary_name,
            task=task.name,
            described=describe(task, len(run.labels)),
            seeds=metrics.get("seeds"),
            best_epoch=best_epoch(run),
            selecting=selecting_metric(run),
            verdict=metrics["baseline"]["bag_of_words"]["verdict"],
            classes=[
                {"label": e["label"], "text": _escape(e["label_text"]), "texts": e["texts"], "f1": e["f1"]}
                for e in test.get("per_class", ())
            ],
        )
    )
    return f"---\n{card_data(run, details).to_yaml()}\n---\n\n{body.lstrip()}"


def card_data(run: Run, details: Details = Details()) -> ModelCardData:
    """Return the metadata of the card, with each metric and its interval as the hub's ``model-index``."""
    from huggingface_hub import EvalResult, ModelCardData

    info, task = run.info, get_task(run.task)
    test = run.metrics["splits"]["test"]
    datasets = list(details.datasets) or _hub_datasets(info["data"]["sources"])
    evaluated = "Cross-validated texts" if "by" in test else "Held-out test texts"
    results = []
    for name, (title, _) in task.metric_names.items():
        value, interval = test["metrics"][name]["value"], test["metrics"][name].get("interval")
        if value is None or not math.isfinite(value):
            continue
        bounds = f" (95 % interval {decimals(interval[0])} to {decimals(interval[1])})" if interval else ""
        results.append(
            EvalResult(
                task_type="text-classification",
                task_name=f"Text classification ({task.name})",
                dataset_type=datasets[0] if len(datasets) == 1 else "custom",
                dataset_name=f"{evaluated} of {datasets[0]}" if len(datasets) == 1 else evaluated,
                metric_type=name,
                metric_name=f"{title}{bounds}",
                metric_value=float(value),
                metric_args={"interval": interval, "level": 0.95} if interval else None,
            )
        )
    checkpoint, item = _checkpoint(run), _example(run)
    on_hub = bool(HUB_ID.fullmatch(checkpoint))
    return ModelCardData(
        model_name=_name(run, details),
        library_name="transformers",
        pipeline_tag="text-classification",
        language=list(details.language) or None,
        license=details.license,
        base_model=checkpoint if on_hub else None,
        base_model_relation="finetune" if on_hub else None,
        datasets=datasets or None,
        tags=["text-classification", "bertsmith"],
        metrics=list(task.headline),
        widget=[{"text": item}] if isinstance(item, str) else None,
        eval_results=results or None,
    )


def _name(run: Run, details: Details) -> str:
    return details.repository.rpartition("/")[2] if details.repository else run.path.resolve().name


def _checkpoint(run: Run) -> str:
    """Return the name of the checkpoint; for a local folder, only its last part."""
    model = run.info["model"]
    name = str(model["name"])
    is_local = model["revision"] is None if "revision" in model else Path(name).exists()  # older versions: no revision
    return name if HUB_ID.fullmatch(name) and not is_local else re.split(r"[/\\]", name)[-1]


def _example(run: Run) -> Any:
    """Return an invented input with the columns of the model."""
    template = run.template
    (item,) = template.texts([["a new text" if template.is_plain else f"{name} …"] for name in template.columns])
    return item


def _hub_datasets(sources: list[str]) -> list[str]:
    """Return the ids of the datasets of the hub among the sources of a table."""
    found = (re.match(r"hf://(?:datasets/)?([^/\s]+/[^/\s:]+)", source) for source in sources)
    return list(dict.fromkeys(match[1] for match in found if match))


def _escape(text: str) -> str:
    """Escape Markdown and put the text on one line, for a table cell."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", " ".join(text.split()))
