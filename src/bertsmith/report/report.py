"""`report.html`: one self-contained page for readers who do not program, offline and on a phone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from bertsmith.bootstrap import FEW_GROUPS
from bertsmith.data.findings import Findings, label_count
from bertsmith.data.table import MULTI_LABEL, ORDINAL, REGRESSION
from bertsmith.data.template import flat_texts
from bertsmith.data.texts import decimals
from bertsmith.errors import counted, lower_first
from bertsmith.folders.atomic import write_text
from bertsmith.folders.run import Run
from bertsmith.report.figures import Line, heatmap, histogram, line_chart, number_diagram, reliability_diagram
from bertsmith.tasks.base import Task
from bertsmith.tasks.registry import get_task

MAX_TABLE_CLASSES = 20
"""With more classes, the confusion matrix and the co-occurrence of labels are heatmaps."""
MISTAKES, SAMPLES, PAIRS = 20, 10, 20
EXAMPLE_CHARACTERS = 160
_TEMPLATES = {
    MULTI_LABEL: "report_multi_label.html",
    ORDINAL: "report_ordinal.html",
    REGRESSION: "report_regression.html",
}
"""Templates of the tasks that differ from the others."""


@cache
def environment(*, autoescape: bool = True) -> jinja2.Environment:
    """Return the template environment. HTML needs autoescape: texts, labels and names are untrusted."""
    result = jinja2.Environment(
        loader=jinja2.PackageLoader("bertsmith.report"),
        autoescape=autoescape,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    result.filters["number"] = lambda value, digits=None: (
        decimals(value) if None in (value, digits) else f"{value:,.{digits}f}"
    )
    result.filters["integer"] = lambda value: f"{value:,}"
    result.filters["counted"] = counted
    result.filters["lower_first"] = lower_first
    result.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.1f}\u00a0%"
    return result


def best_epoch(run: Run) -> float | None:
    """Return the epoch of the weights in the run, if known."""
    return next((float(e["epoch"]) for e in run.history if e["step"] == run.info["training"]["best_step"]), None)


def selecting_metric(run: Run) -> str:
    """Return the name of the metric that selects the epoch, as in the middle of a sentence."""
    task = get_task(run.task)
    name = str(run.info["config"].get("set", {}).get("metric_for_best_model") or task.primary).removeprefix("eval_")
    return lower_first(task.metric_names[name][0]) if name in task.metric_names else name


def text_names(metrics: dict[str, Any]) -> dict[str, str]:
    """Return what a page calls the texts that metrics and thresholds come from: ``evaluated`` and ``held_out``.

    With cross-validation, the held-out texts are cross-validated ones. So are the evaluated texts of a run that has no
    test split.
    """
    splits = metrics["splits"]
    cross_validated = "cross-validated texts"
    return {
        "evaluated": cross_validated if "by" in splits["test"] else "test texts",
        "held_out": cross_validated if "by" in splits["validation"] else "validation texts",
    }


def write_report(run: Run) -> Path:
    """Write the report of an evaluated run from the files in its folder.

    Returns:
        The path of the page.

    Raises:
        RunFolderError: if a file of the run is missing or damaged.
    """
    write_text(run.layout.report, report_page(run))
    return run.layout.report


def report_page(run: Run, *, quotes: bool = True) -> str:
    """Return the report of an evaluated run.

    Args:
        run: the run.
        quotes: quote texts and other cells of the table; a report for another machine quotes none.

    Raises:
        RunFolderError: if a file of the run is missing or damaged.
    """
    info, metrics, task = run.info, run.metrics, get_task(run.task)
    predictions = run.predictions
    findings = info["data"]["findings"]
    test = metrics["splits"]["test"]
    mistakes = task.mistakes(predictions, run.labels)
    right = predictions.drop(mistakes.index)
    return (
        environment()
        .get_template(_TEMPLATES.get(run.task, "report.html"))
        .render(
            title=run.path.resolve().name,
            info=info,
            quotes=quotes,
            metrics=metrics,
            metric_names=task.metric_names,
            primary=task.primary,
            primary_name=task.primary_name,
            selecting=selecting_metric(run),
            headline=task.headline,
            tunes=task.decides,
            template=str(run.template),
            example="" if run.template.is_plain else json.dumps(run.template.example, ensure_ascii=False),
            errors_found=task.has_labels,
            test=test,
            folds=metrics["splits"]["validation"].get("folds", 0),
            tested="by" not in test,
            **text_names(metrics),
            baseline=metrics["baseline"]["majority_class"],
            words=metrics["baseline"]["bag_of_words"],
            frozen=metrics["baseline"].get("frozen_embeddings"),  # absent from older runs
            findings=findings,
            worse=[entry for entry in metrics["slices"] if entry["worse"]],
            rule=metrics["decision_rule"],
            seeds=metrics.get("seeds"),
            columns=metrics.get("columns"),
            long=metrics.get("long_texts"),  # absent from older runs
            groups=predictions["group"].nunique() if "group" in predictions.columns else 0,
            few_groups=FEW_GROUPS,
            lengths=_length_figure(findings),
            balance=_balance(findings),
            history=curves(run.history, best_epoch(run), task),
            n_mistakes=len(mistakes),
            mistakes=_examples(mistakes.head(MISTAKES), task, run.explanations),
            samples=_examples(right.sample(min(SAMPLES, len(right)), random_state=info["config"]["seed"]), task),
            **_figures(run, test, metrics, mistakes if quotes else mistakes.head(0)),
        )
    )


def draw_reliability(task: str, bins: Sequence[Mapping[str, float]]) -> Markup:
    """Draw the reliability diagram of a task, with its names of the axes."""
    axes = ("probability", "share with the label") if task == MULTI_LABEL else ("confidence", "accuracy")
    return reliability_diagram(bins, *axes)


def _figures(run: Run, test: dict[str, Any], metrics: dict[str, Any], mistakes: pd.DataFrame) -> dict[str, Any]:
    """Return the figures and tables that only some tasks have."""
    if run.task == REGRESSION:
        return {"scatter": number_diagram(test["calibration"]["bins"]), "never": []}
    train_counts = {entry["label"]: entry["train"] for entry in run.class_counts}
    names = [entry["label_text"] for entry in test["per_class"]]
    is_table = len(names) <= MAX_TABLE_CLASSES
    shared = {
        "names": names,
        "classes": [{**entry, "train": train_counts[entry["label"]]} for entry in test["per_class"]],
        "reliability": draw_reliability(run.task, test["calibration"]["bins"]),
        "abstention": _abstention_figure(metrics["abstention"]["accuracy_coverage"]),
        "never": [e["label_text"] for e in test["per_class"] if e["texts"] and not e["predicted"]],
    }
    if "cooccurrence" in test:
        counts = {name: np.array(table) for name, table in test["cooccurrence"].items()}
        together = {
            title: (table - np.diag(np.diag(table))).tolist() if is_table else heatmap(table, names, confusion=False)
            for title, table in (("your labels", counts["labels"]), ("the predictions", counts["predicted"]))
        }
        return shared | {"together": together, "is_table": is_table}
    matrix = np.array(test["confusion"])
    return shared | {
        "matrix": matrix.tolist() if is_table else None,
        "heatmap": None if is_table else heatmap(matrix, names),
        "pairs": _confused_pairs(matrix, names, mistakes),
    }


def findings_page(findings: Findings) -> str:
    """Return the page that ``inspect --html`` writes."""
    values = findings.to_dict()
    return (
        environment()
        .get_template("findings.html")
        .render(
            title=findings.name,
            findings=values,
            count=label_count(findings),
            lengths=_length_figure(values),
            balance=_balance(values),
        )
    )


def explanations_page(explanations: Sequence[tuple[str, dict[str, Any]]], run: str) -> str:
    """Return the page that ``explain --html`` writes.

    Args:
        explanations: title and fields of each `bertsmith.inference.explain.Explanation`.
        run: name of the run.
    """
    entries = [{**e, "title": title, "spans": highlight(e), "numeric": "predicted" in e} for title, e in explanations]
    return environment().get_template("explanations.html").render(title=f"Why? · {run}", explanations=entries)


def highlight(explanation: dict[str, Any]) -> list[dict[str, Any]]:
    """Split an explained text into spans: ``text``, and ``share`` of the largest attribution, from −1 to 1.

    ``share`` is ``None`` between words.
    """
    text, words = explanation["text"], explanation["words"]
    largest = max((abs(w["attribution"]) for w in words), default=0.0) or 1.0
    spans: list[dict[str, Any]] = []
    end = 0
    for word in words:
        spans.append({"text": text[end : word["start"]], "share": None})
        spans.append({"text": word["text"], "share": word["attribution"] / largest})
        end = word["end"]
    spans.append({"text": text[end:], "share": None})
    return [span for span in spans if span["text"]]


def _length_figure(findings: dict[str, Any]) -> Markup:
    tokens, maximum = findings["tokens"], findings["max_length"]
    return histogram(
        tokens["edges"],
        tokens["counts"],
        x_label=f"length in {tokens['unit']}",
        mark=maximum if maximum <= tokens["edges"][-1] else None,
        mark_label=f"maximum: {maximum:,}",
    )


def _balance(findings: dict[str, Any]) -> dict[str, Any]:
    """Return class counts, by split if the table has splits; bars, shares and order follow the first column."""
    imbalances = findings.get("imbalances") or {"texts": findings["imbalance"]}  # older runs lack the splits
    classes = [{**c, "counts": list(c.get("splits", {}).values()) or [c["rows"]]} for c in findings["classes"]]
    classes.sort(key=lambda c: (-c["counts"][0], -c["rows"]))
    most = max((c["counts"][0] for c in classes), default=1) or 1
    total = sum(c["counts"][0] for c in classes) or 1
    if findings.get("task") == MULTI_LABEL:  # a text counts once, however many labels it has
        total = next(iter(findings["splits"].values()), findings["usable"]) or 1
    return {
        "imbalances": imbalances,
        "classes": [{**c, "width": 100 * c["counts"][0] / most, "share": c["counts"][0] / total} for c in classes],
    }


def curves(history: list[dict[str, Any]], best: float | None, task: Task) -> list[Markup]:
    """Return the curves of loss and of scores over the epochs; none without a history."""
    if not history:
        return []

    def line(name: str, css: str, values: list[float]) -> Line:
        return Line(name, css, [(e["epoch"], value) for e, value in zip(history, values, strict=True)])

    losses = [
        line("training loss", "c1", [e["train_loss"] for e in history]),
        line("validation loss", "c2", [e["validation_loss"] for e in history]),
    ]
    measured = sorted(history[0]["metrics"], key=lambda name: name != task.primary)
    measured = measured[:1] if task.name == REGRESSION else measured  # an error has another unit than R²
    scores = [
        line(f"validation {lower_first(task.metric_names[name][0])}", css, [e["metrics"][name] for e in history])
        for name, css in zip(measured, ("c1", "c2"), strict=False)
    ]
    return [
        line_chart(lines, x_label="epoch", y_label=label, mark=best, mark_label="final model")
        for label, lines in (("loss", losses), ("score", scores))
    ]


def _abstention_figure(curve: list[dict[str, float]]) -> Markup:
    line = Line("accuracy of these texts", "c1", [(e["coverage"], e["accuracy"]) for e in curve])
    return line_chart([line], x_label="share of the texts that the model labels", y_label="accuracy", legend=False)


def _confused_pairs(matrix: np.ndarray, names: list[str], mistakes: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the most frequent mistakes, each with its most confident example; mistakes are sorted by confidence."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    pairs = []
    for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True):
        if not wrong[i, j]:
            break
        is_pair = (mistakes["label_text"] == names[i]) & (mistakes["predicted_text"] == names[j])
        example = next(iter(flat_texts(mistakes[is_pair])), "")
        pairs.append(
            {
                "label": names[i],
                "predicted": names[j],
                "texts": int(wrong[i, j]),
                "of": int(matrix[i].sum()),
                "example": example if len(example) <= EXAMPLE_CHARACTERS else f"{example[:EXAMPLE_CHARACTERS]}…",
            }
        )
    return pairs


def _examples(rows: pd.DataFrame, task: Task, explanations: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    explained = {(e["row"], e["text"]): highlight(e) for e in explanations}
    return [
        {
            "row": row["row"],
            "text": row["text"],
            "truth": _display(row[task.truth_column]),
            "predicted": _display(row[task.predicted_column]),
            "confidence": row.get("confidence"),
            "spans": explained.get((row["row"], row["text"])),
        }
        for row in rows.assign(text=flat_texts(rows)).to_dict("records")
    ]


def _display(value: Any) -> str:
    """Return labels or a number as people read them."""
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if isinstance(value, float) else ", ".join(map(str, value))
