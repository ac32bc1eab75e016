"""HTML and figures of runs, studies and predictions for notebooks; all texts are escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from bertsmith.data.table import REGRESSION
from bertsmith.data.texts import decimals, show_interval
from bertsmith.errors import counted
from bertsmith.folders.atomic import write_text
from bertsmith.folders.run import Run
from bertsmith.folders.study import Study
from bertsmith.report.figures import heatmap, number_diagram
from bertsmith.report.report import best_epoch, curves, draw_reliability
from bertsmith.tasks.registry import get_task

if TYPE_CHECKING:
    from bertsmith.workflows.predict import Predictions

ROWS = 10
"""Maximum number of predictions in a notebook."""
LABELS = 20
"""Maximum number of labels with counts, and of classes in a table, in a notebook."""
_STYLE = Markup(
    "<style>.bertsmith { font-family: system-ui, sans-serif; max-width: 44rem; } .bertsmith svg { background: #fff; }"
    ".bertsmith .figure .grid { stroke: #dfe3ea; } .bertsmith .figure .tick, .bertsmith .figure .axis { fill: #5b6475;"
    " font-size: 12px; } .bertsmith .mark { stroke: #c2570c; stroke-width: 1.5; stroke-dasharray: 5 4; }"
    ".bertsmith .line { fill: none; stroke-width: 2.2; } .bertsmith .line.c1 { stroke: #2563ad; }"
    ".bertsmith .line.c2 { stroke: #c2570c; } .bertsmith .dot.c1 { fill: #2563ad; }"
    ".bertsmith .dot.c2 { fill: #c2570c; }"
    ".bertsmith .key { margin-right: 1.2rem; } .bertsmith .key i { display: inline-block; width: 1rem; height: .25rem;"
    " margin-right: .4rem; vertical-align: middle; } .bertsmith i.c1 { background: #2563ad; }"
    ".bertsmith i.c2 { background: #c2570c; } .bertsmith .ground { fill: transparent; }"
    ".bertsmith .right { fill: #2563ad; } .bertsmith .wrong { fill: #b42318; }"
    ".bertsmith .figure { max-width: 34rem; } .bertsmith text { font-family: system-ui, sans-serif; }"
    ".bertsmith .count { fill: #1c2330; font-size: 12px; } .bertsmith th, .bertsmith td { text-align: left; }</style>"
)


@dataclass(frozen=True)
class Figure:
    """A figure of the report.

    Attributes:
        title: the title.
        svg: the picture, with a legend in HTML if it has one.
    """

    title: str
    svg: Markup

    def _repr_html_(self) -> str:
        return str(
            _STYLE
            + Markup('<figure class="bertsmith"><figcaption>{}</figcaption>{}</figure>').format(self.title, self.svg)
        )

    def save(self, path: Path | str) -> None:
        """Write the picture as an SVG file."""
        picture = str(self.svg).partition("</svg>")[0] + "</svg>"
        style = str(_STYLE).replace(".bertsmith ", "")
        start, end = picture.split(">", 1)
        write_text(Path(path), f'{start} xmlns="http://www.w3.org/2000/svg">{style}{end}\n')


class Figures(dict[str, Figure]):
    """Figures by name; a notebook shows all of them."""

    def _repr_html_(self) -> str:
        return "".join(figure._repr_html_() for figure in self.values())


def run_figures(run: Run) -> Figures:
    """Return the figures of a finished run.

    Returns:
        ``loss`` and ``score`` by epoch, if the run has a validation split. ``reliability``, except for regressions.
        ``confusion`` with one class per text, and ``numbers`` for regressions.

    Raises:
        RunFolderError: if a file of the run is missing or damaged.
    """
    test, found = run.metrics["splits"]["test"], Figures()
    charts = curves(run.history, best_epoch(run), get_task(run.task))
    for name, title, chart in zip(("loss", "score"), ("Loss", "Validation scores"), charts, strict=False):
        found[name] = Figure(f"{title} by epoch", chart)
    bins = test["calibration"]["bins"]
    if run.task == REGRESSION:
        return Figures(found, numbers=Figure("Mean label by prediction", number_diagram(bins)))
    found["reliability"] = Figure("Accuracy by confidence", draw_reliability(run.task, bins))
    if "confusion" in test:
        names = [entry["label_text"] for entry in test["per_class"]]
        matrix = np.array(test["confusion"])
        chart = confusion_matrix(matrix, names) if len(names) <= LABELS else heatmap(matrix, names)
        found["confusion"] = Figure("Labels (rows) and predictions (columns)", chart)
    return found


def confusion_matrix(matrix: np.ndarray, names: Sequence[str]) -> Markup:
    """Draw a small confusion matrix with its counts.

    Args:
        matrix: texts by class (rows) and prediction (columns), shape (classes, classes).
        names: label texts.
    """
    cell, left, top = 44, 150, 110
    totals = np.maximum(matrix.sum(axis=1), 1)
    parts = []
    for i, name in enumerate(names):
        short, at = name if len(name) <= 20 else f"{name[:19]}…", (i + 0.5) * cell
        parts.append(
            Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(left - 8, top + at + 4, short)
        )
        parts.append(
            Markup('<text class="tick" transform="translate({} {}) rotate(-45)">{}</text>').format(
                left + at, top - 8, short
            )
        )
    for (i, j), n in np.ndenumerate(matrix):
        x, y, css = left + j * cell, top + i * cell, "right" if i == j else "wrong"
        parts.append(
            Markup(
                '<rect class="{}" x="{}" y="{}" width="{}" height="{}" fill-opacity="{:.2f}"/>'
                '<text class="count" x="{}" y="{}" text-anchor="middle">{:,}</text>'
            ).format(css, x, y, cell - 1, cell - 1, 0.7 * n / totals[i], x + cell / 2, y + cell / 2 + 4, int(n))
        )
    width, height = left + len(names) * cell + 90, top + len(names) * cell + 8
    return Markup(
        '<svg class="figure" viewBox="0 0 {0} {1}" width="{0}" role="img" aria-label="Confusion matrix">{2}</svg>'
    ).format(width, height, Markup("").join(parts))


def run_html(run: Run) -> str:
    """Return the metrics of a finished run with their intervals, or the last evaluation of an unfinished run."""
    info, task = run.info, get_task(run.task)
    rows: list[tuple[Any, ...]]
    head: tuple[str, ...]
    if info.get("status") == "finished":
        test = run.metrics["splits"]["test"]
        head = ("metric", "cross-validated texts" if "by" in test else "test texts", "95 % interval")
        entries = [(title, test["metrics"][name]) for name, (title, _) in task.metric_names.items()]
        rows = [(title, decimals(e["value"]), show_interval(e.get("interval"))) for title, e in entries]
        after = [f"{counted(test['texts'], 'text')} · {info['model']['name']}", f"report: {run.layout.report}"]
    else:
        head, last = ("validation", "last evaluation"), run.history[-1:]
        rows = [(task.metric_names[name][0], decimals(v)) for e in last for name, v in e["metrics"].items()]
        after = [f"epoch {e['epoch']:g}" for e in last]
    return _card(f"Run {run.path} · {info.get('status')}", head, rows, after)


def study_html(study: Study) -> str:
    """Return the result of a study and its best trials."""
    info, result = study.info, study.result
    index = int(info["searched"]["objectives"][0] == "latency")  # as in a study of an older version
    best = sorted((t for t in info.get("trials", []) if t["values"]), key=lambda t: -t["values"][index])[:ROWS]
    rows = [(t["number"], decimals(t["values"][index]), _settings(t["settings"])) for t in best]
    scored = "cross-validation" if info["searched"].get("cv") else "the validation texts"
    after = [f"{counted(len(info.get('trials', [])), 'trial')}; the score is from {scored}"]
    if result is not None:
        test = result["test"]
        after.append(
            f"winner: trial {result['trial']}, {decimals(test['value'])} on test, {show_interval(test['interval'])}"
        )
        after += [str(result["verdict"]), f"report: {study.report}"]
    return _card(f"Study {study.path}", ("trial", "score", "settings"), rows, after)


def predictions_html(predictions: Predictions) -> str:
    """Return the number of rows per label, and the first rows of predictions in memory."""
    counts = list(predictions.label_counts.items())
    more = len(counts) - LABELS
    after = [f"and {counted(more, 'more label')}"] if more > 0 else []
    without_label = (("without a text", predictions.empty), ("left unlabelled", predictions.abstained))
    after += [f"{counted(n, 'row')} {what}" for what, n in without_label if n]
    if predictions.path is not None:
        after.append(f"file: {predictions.path}")
    page = _card(counted(predictions.rows, "prediction"), ("label", "rows"), counts[:LABELS], after)
    if predictions.frame is not None:
        page += predictions.frame.head(ROWS).to_html(max_cols=12, escape=True, border=0)
    return page


def _card(title: str, head: Sequence[str], rows: Iterable[Sequence[Any]], after: Sequence[str]) -> str:
    cells = Markup("").join(
        Markup("<tr>{}</tr>").format(Markup("").join(Markup("<td>{}</td>").format(cell) for cell in row))
        for row in rows
    )
    heads = Markup("").join(Markup("<th>{}</th>").format(name) for name in head)
    lines = Markup("").join(Markup("<div>{}</div>").format(line) for line in after)
    return str(
        Markup(
            '{}<div class="bertsmith"><b>{}</b><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>{}</div>'
        ).format(_STYLE, title, heads, cells, lines)
    )


def _settings(settings: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {f'{value:.3g}' if isinstance(value, float) else value}" for name, value in settings.items()
    )
