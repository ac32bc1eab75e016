"""What inspecting a table finds: plain values that print, render and serialise themselves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from bertsmith.data.table import SPLITS

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderResult

SEVERITIES = ("error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """Something about the table that the user should know.

    Attributes:
        kind: a short stable name, for scripts.
        severity: ``"error"`` (train refuses), ``"warning"`` (look at it) or ``"info"``.
        count: rows (or classes) it is about.
        message: what was found.
        action: what train will do about it.
        rows: the first few source rows, 1 being the first after the header; of another file than the table itself, as
            ``"test.csv 12"``.
    """

    kind: str
    severity: str
    count: int
    message: str
    action: str
    rows: tuple[int | str, ...] = ()


@dataclass(frozen=True)
class ClassCount:
    """A class with the number of its rows, and where splits are given, by split."""

    number: int
    text: str
    rows: int
    splits: dict[str, int] = field(default_factory=dict)

    @property
    def training(self) -> int:
        """Rows to train on, of which the splits that are not given are held out."""
        return self.splits.get("train", 0) if self.splits else self.rows


@dataclass(frozen=True)
class Lengths:
    """How long the texts are.

    Attributes:
        unit: ``"characters"``, ``"tokens"``, or ``"tokens (estimated)"``.
        shortest, longest: extremes.
        percentiles: length by percentile.
        edges, counts: a histogram, ``len(edges) == len(counts) + 1``; the last bin takes all that is longer.
    """

    unit: str
    shortest: int
    longest: int
    percentiles: dict[int, int]
    edges: tuple[int, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Findings:
    """The result of `inspect`: figures, and findings in order of severity.

    Attributes:
        imbalance: rows of the largest class, as a multiple of those of the smallest, among the rows to train on.
        splits: usable rows by split, where splits are given; a row without one counts as train.
        imbalances: ``imbalance`` of each of these splits, over the classes that are in it.
    """

    name: str
    rows: int
    usable: int
    columns: dict[str, str]
    classes: tuple[ClassCount, ...]
    imbalance: float
    characters: Lengths
    tokens: Lengths
    max_length: int
    truncated: float
    splits: dict[str, int]
    findings: tuple[Finding, ...]
    imbalances: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        return asdict(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield show(self)

    def __str__(self) -> str:
        return as_text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return as_html(self)


def some_of(names: Sequence[str], limit: int = 8) -> str:
    """Join names for a message, and count those beyond ``limit``."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit:,} more" if len(names) > limit else "")


MOST_CLASSES = 30
"""Classes shown: the largest ones and the smallest ones, beyond this many."""

_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}


def show(findings: Findings) -> RenderableType:
    """Return findings as something ``rich`` can print."""
    columns = "columns: " + ", ".join(f"{role.replace('_', ' ')} = {name!r}" for role, name in findings.columns.items())
    parts: list[RenderableType] = [headline(findings), Text(columns, style="dim")]
    if findings.splits:
        given = ", ".join(f"{name} {n:,}" for name, n in findings.splits.items())
        free = [name for name in SPLITS if name not in findings.splits and "train" in findings.splits]
        held_out = f"; train holds out {' and '.join(free)} of its rows" if free else ""
        parts.append(Text(f"given splits: {given}{held_out}", style="dim"))
    parts += ["", class_chart(findings.classes), "", lengths_table(findings), _truncation(findings), ""]
    if findings.findings:
        parts += [finding_lines(finding) for finding in findings.findings]
        parts.append(Text("Rows are counted from 1, the header not counted.", style="dim"))
    else:
        parts.append(Text("Nothing to complain of.", style="green"))
    return Group(*parts)


def headline(findings: Findings) -> Text:
    """Return name, rows, classes and imbalance in one line."""
    unused = findings.rows - findings.usable
    return Text.assemble(
        (findings.name, "bold"),
        f": {findings.rows:,} rows",
        f", {findings.usable:,} usable" if unused else "",
        f", {len(findings.classes)} {'class' if len(findings.classes) == 1 else 'classes'}",
        _imbalance(findings),
    )


def _imbalance(findings: Findings) -> str:
    by_split = {name: ratio for name, ratio in findings.imbalances.items() if ratio == ratio}
    if by_split:
        return ", imbalance " + ", ".join(f"{ratio:.1f} : 1 in {name}" for name, ratio in by_split.items())
    return f", imbalance {findings.imbalance:.1f} : 1" if findings.imbalance == findings.imbalance else ""


def class_chart(classes: tuple[ClassCount, ...], width: int = 30) -> RenderableType:
    """Return the rows of every class, by split where splits are given, with bars of those to train on."""
    ordered = sorted(classes, key=lambda c: (-c.training, -c.rows))
    most = max(c.training for c in ordered) or 1
    total = sum(c.training for c in ordered) or 1
    splits = list(ordered[0].splits)
    shown: list[ClassCount | None] = list(ordered)
    if len(ordered) > MOST_CLASSES:
        half = MOST_CLASSES // 2
        shown = [*ordered[:half], None, *ordered[-half:]]
    grid = Grid.grid(padding=(0, 1))
    grid.add_column("label", justify="right", style="dim")
    grid.add_column("label text", overflow="ellipsis", max_width=28, no_wrap=True)
    for name in splits or ["rows"]:
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("share", justify="right", style="dim", no_wrap=True)
    grid.add_column("bar", style="cyan", no_wrap=True)
    if splits:
        grid.add_row("", "", *splits, "of train" if "train" in splits else "", "", style="dim")
    for entry in shown:
        if entry is None:
            grid.add_row("", f"… {len(ordered) - MOST_CLASSES:,} more …")
            continue
        bar = "█" * round(width * entry.training / most) or ("▏" if entry.training else "")
        rows = [f"{n:,}" for n in entry.splits.values()] or [f"{entry.rows:,}"]
        grid.add_row(str(entry.number), Text(entry.text), *rows, f"{entry.training / total:.1%}", bar)
    return grid


def lengths_table(findings: Findings) -> RenderableType:
    """Return the length percentiles, one line a unit."""
    grid = Grid.grid(padding=(0, 2))
    for _ in range(9):
        grid.add_column(justify="right", no_wrap=True)
    names = [f"{p} %" for p in findings.characters.percentiles]
    grid.add_row("length in", "shortest", *names, "longest", style="dim")
    for lengths in (findings.characters, findings.tokens):
        grid.add_row(*_length_row(lengths))
    return grid


def _length_row(lengths: Lengths) -> list[str]:
    middle = [f"{value:,}" for value in lengths.percentiles.values()]
    return [lengths.unit, f"{lengths.shortest:,}", *middle, f"{lengths.longest:,}"]


def _truncation(findings: Findings) -> Text:
    return Text(
        f"train would keep {findings.max_length} tokens of each text; {findings.truncated:.1%} of the texts are longer"
    )


def finding_lines(finding: Finding) -> RenderableType:
    """Return one finding: severity, message, example rows, and what train will do."""
    text = Text.assemble((f"{finding.severity:<8}", _STYLES[finding.severity]), finding.message)
    if finding.rows:
        text.append(f" (row{'s' if len(finding.rows) > 1 else ''} {', '.join(map(str, finding.rows))}", style="dim")
        text.append(", …)" if finding.count > len(finding.rows) else ")", style="dim")
    text.append(f"\n        → {finding.action}", style="dim")
    return text


def as_text(findings: Findings, width: int = 110) -> str:
    """Return findings as plain text."""
    buffer = io.StringIO()
    Console(file=buffer, width=width, no_color=True, highlight=False).print(show(findings))
    return buffer.getvalue().rstrip()


def as_html(findings: Findings) -> str:
    """Return findings as an HTML fragment, for notebooks."""
    console = Console(record=True, width=110, file=io.StringIO(), highlight=False)
    console.print(show(findings))
    return console.export_html(
        inline_styles=True, code_format='<pre style="line-height:1.25;font-family:monospace">{code}</pre>'
    )
