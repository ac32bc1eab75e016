"""SVG figures that need no library in the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from bertsmith.data.texts import decimals
from bertsmith.errors import counted

HALF_WIDTH, FULL_WIDTH, HEIGHT = 440, 760, 240
"""Sizes in user units (pixels); two figures of half width share a row."""
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 14, 40
"""Margins around the plot."""


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        name: shown in the legend.
        css: its class: ``c1`` or ``c2`` (a color), and optionally ``points`` (do not join the points) or ``thin``
            (do not mark them).
        points: (x, y).
    """

    name: str
    css: str
    points: Sequence[tuple[float, float]]


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    mark: float | None = None,
    mark_label: str = "",
    legend: bool = True,
) -> Markup:
    """Draw curves over a common x axis.

    Args:
        lines: the curves, the last one in front; points that are not finite, or ``None`` in JSON, are left out.
        x_label, y_label: axis labels.
        mark: x of an optional vertical line.
        mark_label: its label.
        legend: whether to add a legend.
    """

    def is_shown(point: tuple[float, float]) -> bool:
        return all(value is not None and math.isfinite(value) for value in point)

    lines = [Line(line.name, line.css, list(filter(is_shown, line.points))) for line in lines]
    points = [p for line in lines for p in line.points]
    if not points:
        return Markup("<p>No data.</p>")
    x_axis = Axis([p[0] for p in points] + ([mark] if mark is not None else []), LEFT, HALF_WIDTH - RIGHT)
    y_axis = Axis([p[1] for p in points], HEIGHT - BOTTOM, TOP)
    parts = [_frame(x_axis, y_axis, x_label, y_label)]
    if mark is not None:
        parts.append(_mark(x_axis, mark, mark_label))
    for line in lines:
        path = " ".join(f"{x_axis(x):.1f},{y_axis(y):.1f}" for x, y in line.points)
        if "points" not in line.css:
            parts.append(Markup('<polyline class="line {}" points="{}"/>').format(line.css, path))
        if "thin" in line.css and len(line.points) > 1:
            continue
        for x, y in line.points:
            parts.append(
                Markup(
                    '<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3.5"><title>{}: {:.4g}</title></circle>'
                ).format(line.css, x_axis(x), y_axis(y), line.name, y)
            )
    keys = Markup("").join(
        Markup('<span class="key"><i class="{}"></i>{}</span>').format(line.css, line.name) for line in lines
    )
    chart = svg(parts, HALF_WIDTH, f"{y_label} over {x_label}")
    return chart + Markup('<p class="legend">{}</p>').format(keys) if legend else chart


def histogram(
    edges: Sequence[int], counts: Sequence[int], *, x_label: str, mark: float | None = None, mark_label: str = ""
) -> Markup:
    """Draw a histogram of texts, whose last bin includes all larger values.

    Args:
        edges: bin edges, one more than counts.
        counts: texts in each bin.
        x_label: axis label.
        mark: x of an optional vertical line.
        mark_label: its label.
    """
    x_axis = Axis([edges[0], edges[-1], *([mark] if mark is not None else [])], LEFT, FULL_WIDTH - RIGHT)
    y_axis = Axis([0, max(counts)], HEIGHT - BOTTOM, TOP)
    parts = [_frame(x_axis, y_axis, x_label, "texts")]
    for low, high, n in zip(edges, edges[1:], counts, strict=False):
        until = "or more" if high == edges[-1] else f"to {high - 1}"
        left, right, top = x_axis(low), x_axis(high), y_axis(n)
        parts.append(
            Markup(
                '<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{} {}: {}</title></rect>'
            ).format(left, top, max(right - left - 1, 0.5), y_axis(0) - top, low, until, counted(n, "text"))
        )
    if mark is not None:
        parts.append(_mark(x_axis, mark, mark_label))
    return svg(parts, FULL_WIDTH, f"Histogram of {x_label}")


def reliability_diagram(bins: Sequence[Mapping[str, float]], x_label: str, y_label: str) -> Markup:
    """Draw accuracy over confidence, one dot per bin with an area in proportion to its texts, and the diagonal.

    Args:
        bins: with ``confidence``, ``accuracy`` and ``texts``.
        x_label, y_label: what the page calls confidence and accuracy.
    """
    named = [{**entry, x_label: entry["confidence"], y_label: entry["accuracy"]} for entry in bins]
    return _dots(named, x_label, y_label, (0, 1), "Reliability diagram")


def number_diagram(bins: Sequence[Mapping[str, float]]) -> Markup:
    """Draw mean labels over mean predictions, as `reliability_diagram` does.

    Args:
        bins: with ``predicted``, ``label`` and ``texts``.
    """
    values = [entry[name] for entry in bins for name in ("predicted", "label")]
    return _dots(bins, "predicted", "label", (min(values), max(values)), "Labels by prediction")


def _dots(bins: Sequence[Mapping[str, float]], x: str, y: str, limits: tuple[float, float], title: str) -> Markup:
    x_axis = Axis(limits, LEFT, HALF_WIDTH - RIGHT, integers=False)
    y_axis = Axis(limits, HEIGHT - BOTTOM, TOP, integers=False)
    parts = [
        _frame(x_axis, y_axis, x, y),
        Markup('<line class="mark" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
            x_axis(x_axis.low), y_axis(y_axis.low), x_axis(x_axis.high), y_axis(y_axis.high)
        ),
    ]
    total = sum(entry["texts"] for entry in bins)
    for entry in bins:
        parts.append(
            Markup(
                '<circle class="dot c1" cx="{:.1f}" cy="{:.1f}" r="{:.1f}" fill-opacity="0.75">'
                "<title>{}: {} {}, {} {}</title></circle>"
            ).format(
                x_axis(entry[x]),
                y_axis(entry[y]),
                3 + 11 * (entry["texts"] / total) ** 0.5,
                counted(int(entry["texts"]), "text"),
                x,
                decimals(entry[x]),
                y,
                decimals(entry[y]),
            )
        )
    return svg(parts, HALF_WIDTH, title)


def heatmap(matrix: np.ndarray, names: Sequence[str], *, confusion: bool = True) -> Markup:
    """Draw a large matrix of texts, one square per nonzero cell: red for confused classes, otherwise blue.

    Args:
        matrix: texts by class (rows) and prediction (columns), or by two labels, shape (classes, classes). With
            two labels, the diagonal has the number of texts with each label, and no squares.
        names: label texts.
        confusion: whether the columns are predictions.
    """
    size = 900  # width and height in user units
    cell = size / len(matrix)
    totals = matrix.sum(axis=1) if confusion else matrix.diagonal()
    cells = matrix if confusion else matrix - np.diag(totals)
    parts = [Markup('<rect class="ground" width="{0}" height="{0}"/>').format(size)]
    for i, j in zip(*np.nonzero(cells), strict=True):
        share = matrix[i, j] / totals[i]
        parts.append(
            Markup(
                '<rect class="{}" x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}" fill-opacity="{:.2f}"'
                ' data-cell="{} {} {}: {:,} of {}"/>'
            ).format(
                "right" if i == j or not confusion else "wrong",
                j * cell,
                i * cell,
                cell,
                cell,
                0.3 + 0.7 * float(share) ** 0.5,
                names[i],
                "→" if confusion else "+",
                names[j],
                int(matrix[i, j]),
                counted(int(totals[i]), "text"),
            )
        )
    return Markup('<svg class="heatmap" viewBox="0 0 {0} {0}" role="img" aria-label="{1}">{2}</svg>').format(
        size, "Confusion matrix" if confusion else "Labels that occur together", Markup("").join(parts)
    )


class Axis:
    """Maps data to user units, between round ticks."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, integers: bool = True) -> None:
        low, high = min(values), max(values)
        if low == high:
            low, high = (low - 0.5, high + 0.5) if low else (0.0, 1.0)
        step = 10 ** math.floor(math.log10((high - low) / 4))
        if integers and all(float(value).is_integer() for value in values):
            step = max(step, 1)
        step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= 6)
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        self.ticks = [low + i * step for i in range(round((high - low) / step) + 1)]
        self.decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        """Return the position of a value."""
        return float(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start))

    def labels(self) -> list[tuple[float, str]]:
        """Return position and text of every tick."""
        kind = f",.{self.decimals}f" if self.decimals < 5 else ".3g"  # many zeros would not fit
        return [(self(tick), format(round(tick, self.decimals), kind)) for tick in self.ticks]


def _frame(x_axis: Axis, y_axis: Axis, x_label: str, y_label: str) -> Markup:
    return vertical_axis(y_axis, x_axis.end, y_label) + x_ticks(x_axis.labels()) + x_title(x_axis, x_label)


def vertical_axis(axis: Axis, end: float, title: str) -> Markup:
    """Return ticks and title at the left, and lines of a grid to the position ``end``."""
    parts = [
        Markup(
            '<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>'
            '<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>'
        ).format(LEFT, end, LEFT - 6, y + 4, text, y=y)
        for y, text in axis.labels()
    ]
    return Markup("").join(parts) + Markup(
        '<text class="axis" transform="translate(12 {}) rotate(-90)" text-anchor="middle">{}</text>'
    ).format((axis.start + axis.end) / 2, title)


def x_ticks(ticks: Iterable[tuple[float, str]], height: float = HEIGHT) -> Markup:
    """Return texts at positions below the plot of a figure with a height."""
    tick = Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>')
    return Markup("").join(tick.format(x, height - BOTTOM + 16, text) for x, text in ticks)


def x_title(axis: Axis, title: str, height: float = HEIGHT) -> Markup:
    """Return the title below the ticks."""
    return Markup('<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>').format(
        (axis.start + axis.end) / 2, height - 6, title
    )


def _mark(x_axis: Axis, value: float, label: str) -> Markup:
    x = x_axis(value)
    anchor, shift = ("end", -5) if x > (x_axis.start + x_axis.end) / 2 else ("start", 5)
    return Markup(
        '<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'
        '<text class="axis" x="{tx:.1f}" y="{ty}" text-anchor="{anchor}">{label}</text>'
    ).format(x=x, top=TOP, bottom=HEIGHT - BOTTOM, tx=x + shift, ty=TOP + 10, anchor=anchor, label=label)


def svg(parts: Sequence[Markup], width: int, title: str) -> Markup:
    """Return a figure of half or full width from its parts."""
    return Markup('<svg class="figure{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        " full" if width == FULL_WIDTH else "", width, HEIGHT, escape(title), Markup("").join(parts)
    )
