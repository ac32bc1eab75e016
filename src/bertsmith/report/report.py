"""`report.html`: one self-contained page for readers who do not program, offline and on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from bertsmith.data.findings import Findings
from bertsmith.evaluation.metrics import never_predicted
from bertsmith.folders.atomic import write_text
from bertsmith.folders.run import Run
from bertsmith.report.figures import Line, heatmap, histogram, line_chart, reliability_diagram

MAX_TABLE_CLASSES = 20
"""With more classes, the confusion matrix is a heatmap."""
MISTAKES, SAMPLES, PAIRS = 20, 10, 20
EXAMPLE_CHARACTERS = 160
METRIC_NAMES = {
    "macro_f1": ("Macro-F1", "the F1 score of each class, averaged; every class has the same weight"),
    "accuracy": ("Accuracy", "the share of texts with the correct label"),
    "balanced_accuracy": ("Balanced accuracy", "the accuracy within each class, averaged over the classes"),
    "macro_precision": (
        "Macro precision",
        "of the texts that received a label, the share that has it, averaged over the classes",
    ),
    "macro_recall": (
        "Macro recall",
        "of the texts that have a label, the share that received it, averaged over the classes",
    ),
    "weighted_f1": ("Weighted F1", "F1 averaged with each class weighted by its number of texts"),
    "weighted_precision": ("Weighted precision", "precision averaged with the same weights"),
    "weighted_recall": ("Weighted recall", "recall averaged with the same weights, which equals accuracy"),
    "mcc": ("Matthews correlation", "the correlation of labels and predictions: 1 is perfect, 0 is chance"),
    "log_loss": ("Log loss", "the error of the probabilities; lower is better"),
    "macro_average_precision": (
        "Macro average precision",
        "how well the probabilities rank the texts of each class above others, averaged over the classes",
    ),
}


@cache
def environment() -> jinja2.Environment:
    """Return the template environment, with autoescape: texts, labels and names are untrusted."""
    result = jinja2.Environment(
        loader=jinja2.PackageLoader("bertsmith.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    result.filters["number"] = lambda value, digits=3: "–" if value is None else f"{value:,.{digits}f}"
    result.filters["integer"] = lambda value: f"{value:,}"
    result.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.1f}\u00a0%"
    return result


def best_epoch(run: Run) -> float | None:
    """Return the epoch of the weights in the run, if known."""
    return next((float(e["epoch"]) for e in run.history if e["step"] == run.info["training"]["best_step"]), None)


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
    info, metrics = run.info, run.metrics
    predictions = run.predictions
    findings = info["data"]["findings"]
    test = metrics["splits"]["test"]
    names = [entry["label_text"] for entry in test["per_class"]]
    train_counts = {entry["label"]: entry["train"] for entry in run.class_counts}
    matrix = np.array(test["confusion"])
    is_table = len(names) <= MAX_TABLE_CLASSES
    is_right = predictions["label"] == predictions["predicted"]
    mistakes = predictions[~is_right].sort_values("confidence", ascending=False, kind="stable")
    right = predictions[is_right]
    page = (
        environment()
        .get_template("report.html")
        .render(
            title=run.path.resolve().name,
            info=info,
            metrics=metrics,
            metric_names=METRIC_NAMES,
            test=test,
            folds=metrics["splits"]["validation"].get("folds", 0),
            tested="by" not in test,
            **text_names(metrics),
            baseline=metrics["baseline"]["majority_class"],
            words=metrics["baseline"]["bag_of_words"],
            frozen=metrics["baseline"].get("frozen_embeddings"),  # absent from older runs
            findings=findings,
            reliability=reliability_diagram(test["calibration"]["bins"]),
            abstention=_abstention_figure(metrics["abstention"]["accuracy_coverage"]),
            worse=[entry for entry in metrics["slices"] if entry["worse"]],
            rule=metrics["decision_rule"],
            seeds=metrics.get("seeds"),
            long=metrics.get("long_texts"),  # absent from older runs
            groups=predictions["group"].nunique() if "group" in predictions.columns else 0,
            lengths=_length_figure(findings),
            balance=_balance(findings),
            history=_history_figures(run.history, best_epoch(run)),
            classes=[{**entry, "train": train_counts[entry["label"]]} for entry in test["per_class"]],
            matrix=matrix.tolist() if is_table else None,
            heatmap=None if is_table else heatmap(matrix, names),
            names=names,
            pairs=_confused_pairs(matrix, names, mistakes),
            n_mistakes=len(mistakes),
            never=[names[i] for i in never_predicted(matrix.tolist())],
            mistakes=_examples(mistakes.head(MISTAKES), run.explanations),
            samples=_examples(right.sample(min(SAMPLES, len(right)), random_state=info["config"]["seed"])),
        )
    )
    write_text(run.layout.report, page)
    return run.layout.report


def findings_page(findings: Findings) -> str:
    """Return the page that ``inspect --html`` writes."""
    values = findings.to_dict()
    return (
        environment()
        .get_template("findings.html")
        .render(
            title=findings.name,
            findings=values,
            lengths=_length_figure(values),
            balance=_balance(values),
        )
    )


def explanations_page(explanations: list[dict[str, Any]], run: str) -> str:
    """Return the page that ``explain --html`` writes.

    Args:
        explanations: from `bertsmith.inference.explain.Explanation.to_dict`.
        run: name of the run.
    """
    entries = [{**e, "spans": highlight(e)} for e in explanations]
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
    tokens = findings["tokens"]
    return histogram(
        tokens["edges"],
        tokens["counts"],
        x_label=f"length in {tokens['unit']}",
        mark=min(findings["max_length"], tokens["edges"][-1]),
        mark_label=f"maximum: {findings['max_length']:,}",
    )


def _balance(findings: dict[str, Any]) -> dict[str, Any]:
    """Return class counts, by split if the table has splits; bars and order follow the first column."""
    imbalances = findings.get("imbalances") or {"texts": findings["imbalance"]}  # older runs lack the splits
    classes = [{**c, "counts": list(c.get("splits", {}).values()) or [c["rows"]]} for c in findings["classes"]]
    classes.sort(key=lambda c: (-c["counts"][0], -c["rows"]))
    most = max((c["counts"][0] for c in classes), default=1) or 1
    total = sum(c["counts"][0] for c in classes) or 1
    return {
        "imbalances": imbalances,
        "classes": [{**c, "width": 100 * c["counts"][0] / most, "share": c["counts"][0] / total} for c in classes],
    }


def _history_figures(history: list[dict[str, Any]], best: float | None) -> list[Markup]:
    """Return the curves of loss and of scores over the epochs; none without a history."""
    if not history:
        return []

    def line(name: str, css: str, values: list[float]) -> Line:
        return Line(name, css, [(e["epoch"], value) for e, value in zip(history, values, strict=True)])

    losses = [
        line("training loss", "c1", [e["train_loss"] for e in history]),
        line("validation loss", "c2", [e["validation_loss"] for e in history]),
    ]
    scores = [
        line("validation macro-F1", "c1", [e["metrics"]["macro_f1"] for e in history]),
        line("validation accuracy", "c2", [e["metrics"]["accuracy"] for e in history]),
    ]
    return [
        line_chart(lines, x_label="epoch", y_label=label, mark=best, mark_label="best")
        for label, lines in (("loss", losses), ("score", scores))
    ]


def _abstention_figure(curve: list[dict[str, float]]) -> Markup:
    line = Line("accuracy of these texts", "c1", [(e["coverage"], e["accuracy"]) for e in curve])
    return line_chart([line], x_label="share of the texts that the model answers", y_label="accuracy", legend=False)


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
        example = next(iter(mistakes["text"][is_pair]), "")
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


def _examples(rows: pd.DataFrame, explanations: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    columns = ["row", "text", "label_text", "predicted_text", "confidence"]
    explained = {(e["row"], e["text"]): highlight(e) for e in explanations}
    examples = [dict(zip(columns, values, strict=True)) for values in rows[columns].itertuples(index=False)]
    return [{**example, "spans": explained.get((example["row"], example["text"]))} for example in examples]
