"""The page of a study: what was found, whether it helps, which settings matter, and what to try next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bertsmith.folders.atomic import write_text
from bertsmith.report.figures import Line, axes, curves, seed_curves
from bertsmith.report.report import environment

EDGE = 0.05
"""Share of a range, counted from an end of it, that is called its edge."""
LITTLE = 0.02
"""Share of the spread of the scores below which a setting is said to matter little."""
ENOUGH = 10
"""Finished trials from which on something is said of which settings matter."""
LIMITS: dict[str, dict[str, float]] = {
    "layer_decay": {"high": 1.0},
    "dropout": {"low": 0.0},
    "label_smoothing_factor": {"low": 0.0},
    "warmup_steps": {"low": 0.0},
    "epochs": {"low": 1},
}
"""Ends of ranges beyond which there is nothing."""
SHOWN = 15


def write_study_report(folder: Path, info: Mapping[str, Any]) -> Path:
    """Draw the page of a study from the content of its ``study.json``.

    Returns:
        Where it was written.
    """
    trials, result = info["trials"], info["result"]
    objectives = info["searched"]["objectives"]
    index = objectives.index("macro_f1")
    complete = [t for t in trials if t["state"] == "complete"]
    ranked = sorted(complete, key=lambda t: -t["values"][index])
    page = (
        environment()
        .get_template("study.html")
        .render(
            title=folder.resolve().name,
            info=info,
            result=result,
            objectives=objectives,
            index=index,
            history=_history(complete, index),
            learning=seed_curves(
                [([(float(x), float(y)) for x, y in t["curve"]], t["number"] == result["trial"]) for t in trials],
                x_label="fold" if info["searched"]["cv"] else "epoch",
                y_label="macro-F1",
            ),
            parallel=_parallel(info["searched"]["space"], complete, index, result["trial"]),
            ranked=ranked[:SHOWN],
            names=list(info["searched"]["space"]),
            importance=sorted(result["importance"].items(), key=lambda i: -i[1]) if len(complete) >= ENOUGH else [],
            enough=ENOUGH,
            given={n: v for n, v in info["given"].items() if v not in (None, {}, "")},
            failed=[t for t in trials if t["state"] == "failed"],
            front=[t for t in complete if t["number"] in result.get("front", [])],
        )
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def advice(info: Mapping[str, Any], result: Mapping[str, Any]) -> list[str]:
    """Return what to try next, a sentence each; nothing follows from fewer than `ENOUGH` finished trials.

    Args:
        info: the content of a ``study.json``.
        result: what was found, which need not stand there yet.
    """
    space, trials = info["searched"]["space"], info["trials"]
    complete = [t for t in trials if t["state"] == "complete"]
    if len(complete) < ENOUGH:
        return []
    sentences = []
    if len({t["values"][0] for t in complete}) == 1:
        sentences.append("Every trial has the same score: nothing was learned. Give more texts, or allow more epochs.")
    for name, value in {} if result["is_default"] else result["settings"].items():
        dimension = space.get(name, {})
        if "low" not in dimension:
            continue
        place = _place(dimension, value)
        end, word = ("low", "below") if place < 0.5 else ("high", "above")
        if min(place, 1 - place) < EDGE and dimension[end] != LIMITS.get(name, {}).get(end):
            sentences.append(
                f"{name} of the winner ({_short(value)}) is at the edge of its range: try values {word} "
                f"{_short(dimension[end])} with --space."
            )
    winner = next(t for t in trials if t["number"] == result["trial"])
    scores = [value for _, value in winner["curve"]]
    if "epochs" in space and not info["searched"]["cv"] and len(scores) > 1 and scores[-1] == max(scores):
        sentences.append("The winner's score was still at its best when training ended: try more epochs.")
    little = [name for name, share in result["importance"].items() if share < LITTLE]
    if little:
        sentences.append(f"Little depends on {', '.join(little)}: fixing them leaves more trials for the others.")
    if difference := result.get("difference"):
        low, high = difference["interval"]
        if high < 0:
            sentences.append("On test the winner is worse: keep what train does; search with more validation texts.")
        elif low <= 0:
            sentences.append("On test the two cannot be told apart: more texts will help more than more trials.")
    return sentences


def _history(complete: Sequence[Mapping[str, Any]], index: int) -> Any:
    points = [(float(t["number"]), float(t["values"][index])) for t in complete]
    best, so_far = [], float("-inf")
    for number, value in points:
        so_far = max(so_far, value)
        best.append((number, so_far))
    return curves(
        [Line("best so far", "c1", best), Line("trial", "c2 points", points)], x_label="trial", y_label="macro-F1"
    )


def _parallel(space: Mapping[str, Any], complete: Sequence[Mapping[str, Any]], index: int, winner: int) -> Any:
    scores = [t["values"][index] for t in complete]
    low, high = (min(scores), max(scores)) if scores else (0.0, 1.0)
    names = [*space, "macro-F1"]
    ends = [
        (_short(d["low"]), _short(d["high"])) if "low" in d else (str(d["values"][0]), str(d["values"][-1]))
        for d in space.values()
    ]
    rows = [
        (
            [*(_place(space[n], t["settings"][n]) for n in space), _share(t["values"][index], low, high)],
            _share(t["values"][index], low, high),
            t["number"] == winner,
        )
        for t in complete
    ]
    return axes(names, [*ends, (f"{low:.3f}", f"{high:.3f}")], rows)


def _place(dimension: Mapping[str, Any], value: Any) -> float:
    """Return where a value lies in a dimension, from 0 to 1."""
    import math

    if "low" not in dimension:
        values = list(dimension["values"])
        return _share(values.index(value), 0, len(values) - 1) if value in values else 0.0
    low, high = dimension["low"], dimension["high"]
    if dimension["log"]:
        low, high, value = map(math.log, (low, high, value))
    return _share(value, low, high)


def _share(value: float, low: float, high: float) -> float:
    return min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.5


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
