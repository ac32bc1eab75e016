"""The page of a study: its result, which settings matter, and what to try next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from markupsafe import Markup

from bertsmith.config import PRIMARY
from bertsmith.errors import number_form
from bertsmith.folders.atomic import write_text
from bertsmith.report.figures import Line, line_chart
from bertsmith.report.report import environment
from bertsmith.tasks.registry import TASKS

EDGE = 0.05
"""A value is at the edge of its range within this share of it."""
MIN_IMPORTANCE = 0.02
"""Settings of lower importance are reported as unimportant."""
MIN_TRIALS = 10
"""Complete trials needed for importances and advice."""
NATURAL_LIMITS: dict[str, dict[str, float]] = {
    "layer_decay": {"high": 1.0},
    "dropout": {"low": 0.0},
    "label_smoothing_factor": {"low": 0.0},
    "warmup_steps": {"low": 0.0},
    "epochs": {"low": 1},
}
"""Bounds of ranges that cannot be extended."""
BEST_TRIALS = 15


def write_study_report(folder: Path, info: Mapping[str, Any]) -> Path:
    """Write the page of a study.

    Args:
        folder: the study folder.
        info: the content of its ``study.json``.

    Returns:
        The path of the page.
    """
    trials, result = info["trials"], info["result"]
    space, objectives = info["searched"]["space"], info["searched"]["objectives"]
    task = next(task for task in TASKS.values() if task.primary == objectives[0])
    metric, meaning = task.metric_names[task.primary]
    complete = [t for t in trials if t["state"] == "complete"]
    importance = sorted(result["importance"].items(), key=lambda i: -i[1]) if len(complete) >= MIN_TRIALS else []
    page = (
        environment()
        .get_template("study.html")
        .render(
            title=folder.resolve().name,
            info=info,
            result=result,
            objectives=objectives,
            metric=metric,
            meaning=meaning,
            primary_name=task.primary_name,
            ruled=task.primary == PRIMARY,  # which decision rules raise
            history=_history(complete),
            learning=_learning_curves(trials, result["trial"], "fold" if info["searched"]["cv"] else "epoch"),
            ranked=sorted(complete, key=lambda t: -t["values"][0])[:BEST_TRIALS],
            names=list(space),
            importance=importance,
            min_trials=MIN_TRIALS,
            shared={n: v for n, v in info["given"].items() if v not in (None, {}, "")},
            failed=[t for t in trials if t["state"] == "failed"],
            front=[t for t in complete if t["number"] in result.get("front", [])],
        )
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def advice(info: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    """Return sentences on what to try next; none with fewer than `MIN_TRIALS` complete trials.

    Args:
        info: the content of a ``study.json``.
        result: the result of the study, which may not be part of ``info`` yet.
    """
    space, trials = info["searched"]["space"], info["trials"]
    complete = [t for t in trials if t["state"] == "complete"]
    if len(complete) < MIN_TRIALS:
        return []
    sentences = []
    found = {t["values"][0] for t in complete}
    if len(found) == 1 and max(found) < 1:
        sentences.append("Every trial has the same score: the models learned nothing. Add texts, or allow more epochs.")
    for name, value in {} if result["is_default"] else result["settings"].items():
        dimension = space.get(name, {})
        if "low" not in dimension:
            continue
        position = _position(dimension, value)
        end, word = ("low", "below") if position < 0.5 else ("high", "above")
        if min(position, 1 - position) < EDGE and dimension[end] != NATURAL_LIMITS.get(name, {}).get(end):
            sentences.append(
                f"{name} of the best trial ({_short(value)}) is at the edge of its range: try values {word} "
                f"{_short(dimension[end])} with --space."
            )
    winner = next(t for t in trials if t["number"] == result["trial"])
    scores = [value for _, value in winner["curve"]]
    if "epochs" in space and not info["searched"]["cv"] and len(scores) > 1 and max(scores[:-1]) < scores[-1] < 1:
        sentences.append("The best trial had its highest score when training ended: try more epochs.")
    unimportant = [name for name, share in result["importance"].items() if share < MIN_IMPORTANCE]
    if unimportant:
        sentences.append(
            f"The score hardly depends on {', '.join(unimportant)}: fix {number_form(len(unimportant), 'it', 'them')}, "
            "so that the search varies the other settings more."
        )
    if difference := result.get("difference"):
        low, high = difference["interval"] or (0, 0)
        if high < 0:
            sentences.append(
                "On test, the best trial is worse than the defaults: use the defaults, or search with more validation "
                "texts."
            )
        elif low <= 0:
            sentences.append(
                "On test, the best trial and the defaults are not distinguishable: add texts rather than trials."
            )
    return sentences


def _learning_curves(trials: Sequence[Mapping[str, Any]], winner: int, x_label: str) -> Markup:
    lines = []
    for trial in sorted(trials, key=lambda t: t["number"] == winner):
        css = "c2" if trial["number"] == winner else "c1 thin"
        lines.append(Line(f"trial {trial['number']}", css, [(float(x), float(y)) for x, y in trial["curve"]]))
    return line_chart(lines, x_label=x_label, y_label="score", legend=False)


def _history(complete: Sequence[Mapping[str, Any]]) -> Markup:
    numbers, scores = [float(t["number"]) for t in complete], [float(t["values"][0]) for t in complete]
    best, points = list(zip(numbers, accumulate(scores, max), strict=True)), list(zip(numbers, scores, strict=True))
    return line_chart(
        [Line("best so far", "c1", best), Line("trial", "c2 points", points)], x_label="trial", y_label="score"
    )


def _position(dimension: Mapping[str, Any], value: Any) -> float:
    """Return the position of a value in its range, from 0 to 1."""
    low, high = dimension["low"], dimension["high"]
    if dimension["log"]:
        low, high, value = map(math.log, (low, high, value))
    return min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.5


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
