"""The model card, `model/README.md`: what others need to know before they use the model."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertsmith.data.texts import decimals
from bertsmith.errors import ConfigError, did_you_mean, listing, number_form
from bertsmith.folders.atomic import write_text
from bertsmith.folders.run import Run
from bertsmith.report.report import best_epoch, environment, text_names
from bertsmith.tasks.registry import describe, get_task

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|multilingual|code")
_LICENSES = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0
etalab-2.0 eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0
lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1
openmdw-1.0 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
"""
LICENSES = frozenset(_LICENSES.split())
"""The identifiers of licences that the hub knows (https://huggingface.co/docs/hub/repositories-licenses)."""
_METRIC_TYPES = {
    "mcc": "matthews_correlation",
    "spearman": "spearmanr",
    "r2": "r_squared",
}
"""Types of metrics on the hub. Averages of ``f1``, ``precision`` or ``recall`` have its type; other names stay."""


@dataclass(frozen=True)
class Details:
    """Metadata of a card that only the user knows.

    Attributes:
        repository: ``owner/name`` on the hub, if the card goes there.
        language: codes of the languages of the texts, such as ``en``.
        license: the licence of the model.
        datasets: ids of the datasets on the hub that the model was trained on.

    Raises:
        ConfigError: if the hub does not accept a value.
    """

    repository: str | None = None
    language: tuple[str, ...] = ()
    license: str | None = None
    datasets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if wrong := [code for code in self.language if not LANGUAGE.fullmatch(code)]:
            what = number_form(len(wrong), "is not a language code", "are not language codes")
            raise ConfigError(f"language: {listing(wrong)} {what}", remedy="Use an ISO 639 code, such as en.")
        if self.license is not None and self.license not in LICENSES:
            raise ConfigError(
                f"license: the hub does not know {self.license!r}.{did_you_mean(self.license, LICENSES)}",
                remedy="Use an identifier such as apache-2.0, cc-by-4.0, mit or other.",
            )
        ids = [*self.datasets, *([] if self.repository is None else [self.repository])]
        if wrong := [name for name in ids if not HUB_ID.fullmatch(name) or ".." in name or "--" in name]:
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

    Args:
        run: the run.
        details: metadata that the run does not have.

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
                metric_type=_metric_type(name),
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
        metrics=list(dict.fromkeys(_metric_type(name) for name in task.headline)),
        widget=[{"text": item}] if isinstance(item, str) else None,
        eval_results=results or None,
    )


def _name(run: Run, details: Details) -> str:
    return details.repository.rpartition("/")[2] if details.repository else run.path.resolve().name


def _checkpoint(run: Run) -> str:
    """Return the name of the checkpoint; for a local folder, only its last part."""
    name = str(run.info["model"]["name"])
    return name if HUB_ID.fullmatch(name) and not Path(name).exists() else re.split(r"[/\\]", name)[-1]


def _example(run: Run) -> Any:
    """Return an invented input with the columns of the model."""
    template = run.template
    (item,) = template.texts([["a new text" if template.is_plain else f"{name} …"] for name in template.columns])
    return item


def _hub_datasets(sources: list[str]) -> list[str]:
    """Return the ids of the datasets of the hub among the sources of a table."""
    found = (re.match(r"hf://(?:datasets/)?([^/\s]+/[^/\s:]+)", source) for source in sources)
    return list(dict.fromkeys(match[1] for match in found if match))


def _metric_type(name: str) -> str:
    average, _, last = name.rpartition("_")
    is_average = average in ("macro", "micro", "weighted", "samples") and last in ("f1", "precision", "recall")
    return _METRIC_TYPES.get(name, last if is_average else name)


def _escape(text: str) -> str:
    """Escape Markdown and put the text on one line, for a table cell."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", " ".join(text.split()))
