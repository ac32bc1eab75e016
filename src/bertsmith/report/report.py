"""`report.html`: one self-contained page that a non-programmer can read, offline and on a phone."""

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
from bertsmith.report.figures import Line, curves, heatmap, histogram, reliability

MATRIX_AS_TABLE = 20
"""Up to this many classes the confusion matrix is a table with figures in it; beyond, a picture to point at."""
MISTAKES, SAMPLES, PAIRS = 20, 10, 20
EXAMPLE = 160
"""Characters of an example in a table."""
METRIC_NAMES = {
    "macro_f1": ("Macro-F1", "the mean over the classes of precision and recall combined; every class counts the same"),
    "accuracy": ("Accuracy", "the share of texts labelled right"),
    "balanced_accuracy": ("Balanced accuracy", "the share labelled right within a class, averaged over the classes"),
    "macro_precision": (
        "Macro precision",
        "of the texts given a label, the share it is right for, averaged over classes",
    ),
    "macro_recall": ("Macro recall", "of the texts of a class, the share that was found, averaged over classes"),
    "weighted_f1": ("Weighted F1", "F1 with every class weighted by its texts"),
    "weighted_precision": ("Weighted precision", "precision with every class weighted by its texts"),
    "weighted_recall": ("Weighted recall", "recall with every class weighted by its texts: the same as accuracy"),
    "mcc": ("Matthews correlation", "1 is perfect, 0 is no better than chance"),
    "log_loss": ("Log loss", "how far the probabilities are off; less is better"),
    "macro_average_precision": ("Macro average precision", "how well each class is ranked, whatever the threshold"),
}


@cache
def environment() -> jinja2.Environment:
    """Return the templates, with autoescape on: texts, labels and names come from anywhere."""
    result = jinja2.Environment(
        loader=jinja2.PackageLoader("bertsmith.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    result.filters["number"] = lambda value, digits=3: "–" if value is None else f"{value:,.{digits}f}"
    result.filters["integer"] = lambda value: f"{value:,}"
    result.filters["percent"] = lambda value: "–" if value is None else f"{100 * value:.1f} %"
    return result


def best_epoch(run: Run) -> float | None:
    """Return the epoch whose weights were kept, if it is known."""
    return next((float(e["epoch"]) for e in run.history if e["step"] == run.info["training"]["best_step"]), None)


def write_report(run: Run) -> Path:
    """Draw the page of a run that was scored, from what is in its folder.

    Returns:
        Where it was written.

    Raises:
        RunFolderError: if a file of the run is missing or damaged.
    """
    info, metrics, history = run.info, run.metrics, run.history
    predictions = run.predictions
    findings = info["data"]["findings"]
    test = metrics["splits"]["test"]
    names = [entry["label_text"] for entry in test["per_class"]]
    matrix = np.array(test["confusion"])
    mistakes = predictions[predictions["label"] != predictions["predicted"]]
    right = predictions[predictions["label"] == predictions["predicted"]]
    best = best_epoch(run)
    crossed = metrics["splits"]["validation"].get("folds", 0)
    page = (
        environment()
        .get_template("report.html")
        .render(
            title=run.path.resolve().name,
            info=info,
            metrics=metrics,
            metric_names=METRIC_NAMES,
            test=test,
            crossed=crossed,
            tested="by" not in test,
            baseline=metrics["baseline"]["majority_class"],
            words=metrics["baseline"]["bag_of_words"],
            frozen=metrics["baseline"].get("frozen_embeddings"),  # older runs have none
            findings=findings,
            reliability=reliability(test["calibration"]["bins"]),
            abstention=_abstention_figure(metrics["abstention"]["accuracy_coverage"]),
            worse=[entry for entry in metrics["slices"] if entry["worse"]],
            rule=metrics["decision_rule"],
            seeds=metrics.get("seeds"),
            groups=predictions["group"].nunique() if "group" in predictions.columns else 0,
            lengths=_length_figure(findings),
            balance=_balance(findings),
            losses=_loss_figure(history, best) if history else None,
            scores=_score_figure(history, best) if history else None,
            classes=_classes(test, run),
            matrix=matrix.tolist() if len(names) <= MATRIX_AS_TABLE else None,
            heatmap=heatmap(matrix, names) if len(names) > MATRIX_AS_TABLE else None,
            names=names,
            pairs=_pairs(matrix, names, mistakes),
            n_mistakes=len(mistakes),
            never=[names[i] for i in never_predicted(matrix.tolist())],
            mistakes=_examples(
                mistakes.sort_values("confidence", ascending=False, kind="stable").head(MISTAKES), run.explanations
            ),
            samples=_examples(right.sample(min(SAMPLES, len(right)), random_state=info["config"]["seed"])),
        )
    )
    write_text(run.layout.report, page)
    return run.layout.report


def findings_page(findings: Findings) -> str:
    """Return the page of `inspect --html`."""
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
    """Return the page of `explain --html`.

    Args:
        explanations: of `bertsmith.inference.explain.Explanation.to_dict`.
        run: name of the run.
    """
    shown = [{**e, "pieces": pieces(e)} for e in explanations]
    return environment().get_template("explanations.html").render(title=f"Why? · {run}", explanations=shown)


def pieces(explanation: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a text cut into words and what is between them: ``text``, and ``share``, from −1 to 1, or ``None``."""
    text, words = explanation["text"], explanation["words"]
    most = max((abs(w["attribution"]) for w in words), default=0.0) or 1.0
    result: list[dict[str, Any]] = []
    end = 0
    for word in words:
        result.append({"text": text[end : word["start"]], "share": None})
        result.append({"text": word["text"], "share": word["attribution"] / most})
        end = word["end"]
    result.append({"text": text[end:], "share": None})
    return [piece for piece in result if piece["text"]]


def _length_figure(findings: dict[str, Any]) -> Markup:
    tokens = findings["tokens"]
    return histogram(
        tokens["edges"],
        tokens["counts"],
        x_label=f"length in {tokens['unit']}",
        mark=min(findings["max_length"], tokens["edges"][-1]),
        mark_label=f"kept: {findings['max_length']:,}",
    )


def _balance(findings: dict[str, Any]) -> dict[str, Any]:
    """Return the rows of every class, by split where splits are given; the bars are of those to train on."""
    imbalances = findings.get("imbalances") or {"texts": findings["imbalance"]}  # older runs have no splits here
    classes = [{**c, "counts": list(c.get("splits", {}).values()) or [c["rows"]]} for c in findings["classes"]]
    classes.sort(key=lambda c: (-c["counts"][0], -c["rows"]))
    most = max((c["counts"][0] for c in classes), default=1) or 1
    total = sum(c["counts"][0] for c in classes) or 1
    return {
        "imbalances": imbalances,
        "classes": [{**c, "width": 100 * c["counts"][0] / most, "share": c["counts"][0] / total} for c in classes],
    }


def _loss_figure(history: list[dict[str, Any]], best: float | None) -> Markup:
    lines = [
        Line("train loss", "c1", [(e["epoch"], e["train_loss"]) for e in history]),
        Line("validation loss", "c2", [(e["epoch"], e["validation_loss"]) for e in history]),
    ]
    return curves(lines, x_label="epoch", y_label="loss", mark=best, mark_label="best")


def _score_figure(history: list[dict[str, Any]], best: float | None) -> Markup:
    lines = [
        Line("validation macro-F1", "c1", [(e["epoch"], e["metrics"]["macro_f1"]) for e in history]),
        Line("validation accuracy", "c2", [(e["epoch"], e["metrics"]["accuracy"]) for e in history]),
    ]
    return curves(lines, x_label="epoch", y_label="score", mark=best, mark_label="best")


def _classes(test: dict[str, Any], run: Run) -> list[dict[str, Any]]:
    counts = {entry["label"]: entry["train"] for entry in run.class_counts}
    return [{**entry, "train": counts[entry["label"]]} for entry in test["per_class"]]


def _abstention_figure(curve: list[dict[str, float]]) -> Markup:
    line = Line("accuracy among the answered", "c1", [(e["coverage"], e["accuracy"]) for e in curve])
    return curves([line], x_label="share of the texts that are answered, the surest first", y_label="labelled right")


def _pairs(matrix: np.ndarray, names: list[str], mistakes: pd.DataFrame) -> list[dict[str, Any]]:
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]
    cells = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)]
    totals = matrix.sum(axis=1)
    found = []
    for i, j in cells:
        if wrong[i, j]:
            of_pair = mistakes[(mistakes["label_text"] == names[i]) & (mistakes["predicted_text"] == names[j])]
            surest = of_pair.sort_values("confidence", ascending=False, kind="stable")["text"].tolist()
            example = next(iter(surest), "")
            found.append(
                {
                    "label": names[i],
                    "predicted": names[j],
                    "texts": int(wrong[i, j]),
                    "of": int(totals[i]),
                    "example": example if len(example) <= EXAMPLE else f"{example[:EXAMPLE]}…",
                }
            )
    return found


def _examples(rows: pd.DataFrame, explanations: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    columns = ["row", "text", "label_text", "predicted_text", "confidence"]
    explained = {(e["row"], e["text"]): pieces(e) for e in explanations}
    examples = [dict(zip(columns, values, strict=True)) for values in rows[columns].itertuples(index=False)]
    return [{**example, "pieces": explained.get((example["row"], example["text"]))} for example in examples]
