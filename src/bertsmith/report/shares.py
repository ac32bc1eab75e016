"""The page and the CSV file of a measurement."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from bertsmith.data.texts import guarded_cell, quoting
from bertsmith.measuring.pseudo_outcomes import LEVEL_NAME, NUMBER_NAME
from bertsmith.measuring.result import MeanLevel, Measurement, Share, show_mean
from bertsmith.report.figures import (
    BOTTOM,
    FULL_WIDTH,
    HALF_WIDTH,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    Axis,
    svg,
    vertical_axis,
    x_ticks,
    x_title,
)
from bertsmith.report.report import environment

MAX_FIGURES = 12
"""Most classes with a figure over the groups."""
NAMES = 9
"""Most names below the axis of a figure."""
AXIS_CHARACTERS = 100
"""Characters that fit below the axis."""
ROW, WIDE_LEFT, NAME_CHARACTERS = 30, 130, 18
COLUMNS = ("group", "label_text", "share", "low", "high", "naive", "difference", "estimator", "labelled", "texts")
ALONE = ("labelled_share", "labelled_low", "labelled_high")


def shares_csv(measurement: Measurement) -> str:
    """Return one line per share, and per mean level in the column ``mean``, for spreadsheets and R."""
    file = io.StringIO()
    means = ["mean", "labelled_mean"] if measurement.means else []
    rows: list[list[Any]] = [[*COLUMNS, *ALONE, *means]]
    estimates: list[Share | MeanLevel] = [*measurement.shares, *measurement.means]
    for e in estimates:
        name, share, alone, mean = (
            (e.label_text, e.share, e.labelled_share, (None, None))
            if isinstance(e, Share)
            else (LEVEL_NAME if measurement.shares else NUMBER_NAME, None, None, (e.mean, e.labelled_mean))
        )
        first = (share, *(e.interval or (None, None)), e.naive, e.difference)
        rest = (alone, *(e.labelled_interval or (None, None)), *(mean if means else ()))
        names = map(guarded_cell, (e.group or "", name))
        show = ("{:.6f}" if isinstance(e, Share) else "{:.8g}").format
        written = (["" if value is None else show(value) for value in values] for values in (first, rest))
        rows.append([*names, *next(written), e.estimator, e.labelled, e.texts, *next(written)])
    for row in rows:
        csv.writer(file, lineterminator="\n", quoting=quoting(row)).writerow(row)
    return file.getvalue()


def shares_page(measurement: Measurement, run: str) -> str:
    """Return the page that ``measure --html`` writes."""
    largest = sorted(measurement.whole, key=lambda s: -(s.share or 0))
    order = list(measurement.whole) if measurement.means else largest
    by_class = {
        s.label_text: [one for one in measurement.shares if one.group is not None and one.label_text == s.label_text]
        for s in order
    }
    most_wrong = max(measurement.whole, key=lambda s: abs(s.difference or 0), default=None)
    figures = {
        text: _over_groups([_Point.of(s) for s in some], "share in %", " %")
        for text, some in itertools.islice(by_class.items(), MAX_FIGURES)
        if some
    }
    means = [m for m in measurement.means if m.group is not None]
    return (
        environment()
        .get_template("shares.html")
        .render(
            title=f"{'Shares' if order else 'Mean'} · {measurement.corpus}",
            run=run,
            m=measurement,
            show_mean=show_mean,
            first=(*order, *measurement.means)[0],
            order=order,
            largest=largest[:3],
            by_class=by_class,
            most_wrong=most_wrong,
            outside=[s.label_text for s in order if s.interval and not s.interval[0] <= s.naive <= s.interval[1]],
            comparison=_comparison(order),
            figures=figures,
            mean=next(iter(measurement.means), None),
            means=means,
            means_figure=_over_groups([_Point.of(m) for m in means], measurement.mean_name, zero=False)
            if means
            else None,
        )
    )


def _comparison(shares: Sequence[Share]) -> Markup:
    """Draw the corrected share of each class, the naive count, and the share in the labelled texts."""
    values = [v for s in shares for v in (s.naive, *(s.interval or ()), *(s.labelled_interval or ()))]
    axis = Axis([0, *(100 * v for v in values)], WIDE_LEFT, HALF_WIDTH - RIGHT, integers=False)
    height = TOP + ROW * len(shares) + BOTTOM
    grid = Markup('<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{}" y2="{}"/>')
    parts = [grid.format(TOP, height - BOTTOM, x=x) for x, _ in axis.labels()]
    parts += [x_ticks(axis.labels(), height), x_title(axis, "share of the texts in %", height)]
    for i, s in enumerate(shares):
        y = TOP + ROW * (i + 0.5)
        parts.append(
            Markup('<text class="axis" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                WIDE_LEFT - 10, y + 4, _short(s.label_text, NAME_CHARACTERS)
            )
        )
        parts.append(_diamond(axis(100 * s.naive), y, f"{s.label_text}: naive count {s.naive:.1%}"))
        for value, interval, below, style, r in (
            (s.labelled_share, s.labelled_interval, 9, "c3", 2.5),
            (s.share, s.interval, 0, "c1", 4.5),
        ):
            if value is None or interval is None:
                continue
            low, high = (axis(100 * v) for v in interval)
            parts.append(
                Markup(
                    '<line class="line {style}" x1="{:.1f}" x2="{:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
                    '<circle class="dot {style}" cx="{:.1f}" cy="{y:.1f}" r="{r}"><title>{}: {:.1%}</title></circle>'
                ).format(low, high, axis(100 * value), s.label_text, value, y=y + below, style=style, r=r)
            )
    return Markup(
        '<svg class="figure" style="max-width: 38rem" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(HALF_WIDTH, height, "Corrected and naive share of every class", Markup("").join(parts))


@dataclass(frozen=True)
class _Point:
    """An estimate of a group, in the units of an axis."""

    group: str
    value: float | None
    interval: tuple[float, float] | None
    naive: float

    @classmethod
    def of(cls, e: Share | MeanLevel) -> _Point:
        """Return a mean as it is, and a share in percent."""
        if isinstance(e, MeanLevel):
            return cls(e.group or "", e.mean, e.interval, e.naive)
        interval = None if e.interval is None else (100 * e.interval[0], 100 * e.interval[1])
        return cls(e.group or "", None if e.share is None else 100 * e.share, interval, 100 * e.naive)


def _over_groups(points: Sequence[_Point], title: str, unit: str = "", *, zero: bool = True) -> Markup:
    """Draw the corrected value with its band over the groups, and the naive one.

    Args:
        points: one per group.
        title: of the vertical axis.
        unit: after a value.
        zero: whether the axis contains 0.
    """
    values = [v for p in points for v in (p.naive, *(p.interval or ()))]
    y_axis = Axis([*([0] if zero else []), *values], HEIGHT - BOTTOM, TOP, integers=False)
    width = FULL_WIDTH - RIGHT - LEFT
    xs = [LEFT + width * (i + 0.5) / len(points) for i in range(len(points))]
    step = -(-len(points) // NAMES)
    length = AXIS_CHARACTERS // -(-len(points) // step)
    ticks = [(x, _short(p.group, length)) for x, p in zip(xs, points, strict=True)][::step]
    parts = [vertical_axis(y_axis, FULL_WIDTH - RIGHT, title), x_ticks(ticks)]
    for known, run in itertools.groupby(zip(xs, points, strict=True), key=lambda pair: pair[1].interval is not None):
        if not known:
            continue
        found = [(x, p.interval or (0, 0), p.value or 0) for x, p in run]
        upper = [f"{x:.1f},{y_axis(high):.1f}" for x, (_, high), _ in found]
        lower = [f"{x:.1f},{y_axis(low):.1f}" for x, (low, _), _ in found]
        parts.append(Markup('<polygon class="band" points="{}"/>').format(" ".join(upper + lower[::-1])))
        line = " ".join(f"{x:.1f},{y_axis(value):.1f}" for x, _, value in found)
        parts.append(Markup('<polyline class="line c1" points="{}"/>').format(line))
    for x, p in zip(xs, points, strict=True):
        parts.append(_diamond(x, y_axis(p.naive), f"{p.group}: naive {p.naive:.3g}{unit}"))
        if p.value is not None and p.interval is not None:
            parts.append(
                Markup(
                    '<line class="line c1 thin" x1="{x:.1f}" x2="{x:.1f}" y1="{:.1f}" y2="{:.1f}"/>'
                    '<circle class="dot c1" cx="{x:.1f}" cy="{:.1f}" r="3.5">'
                    "<title>{}: {:.3g}{unit} ({:.3g} to {:.3g})</title></circle>"
                ).format(*(y_axis(v) for v in (*p.interval, p.value)), p.group, p.value, *p.interval, x=x, unit=unit)
            )
    return svg(parts, FULL_WIDTH, f"{title.capitalize()} over the groups")


def _diamond(x: float, y: float, title: str) -> Markup:
    return Markup('<path class="dot c2" d="M{x:.1f} {:.1f} l5 5 l-5 5 l-5 -5 Z"><title>{}</title></path>').format(
        y - 5, title, x=x
    )


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def drift_page(drift: dict[str, Any], run: str) -> str:
    """Return the page that ``drift --html`` writes.

    Args:
        drift: from `bertsmith.workflows.drift.Drift.to_dict`.
        run: name of the run.
    """
    return environment().get_template("drift.html").render(title=f"Drift · {drift['corpus']}", run=run, d=drift)
