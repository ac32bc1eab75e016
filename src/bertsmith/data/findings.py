"""What checks of a table look at, and their findings, printed and serialised."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from bertsmith.data.table import MULTI_LABEL, SINGLE_LABEL, SPLITS, Table
from bertsmith.errors import counted, number_form, rendered_by

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from rich.console import ConsoleOptions, RenderResult

    from bertsmith.config import Config
    from bertsmith.data.clean import Cleaned
    from bertsmith.model.tokens import Tokens

SEVERITIES = ("error", "warning", "info")
CHOSEN_VALIDATION = "not-random"
"""The kind of the finding that validation texts were chosen to be labelled, and test texts drawn at random."""
MAX_EXAMPLES = 5
"""Maximum number of example rows of a finding."""


@dataclass(frozen=True)
class Finding:
    """A property of the table that the user should know.

    Attributes:
        kind: a short stable name, for scripts.
        severity: ``"error"`` (train refuses the table), ``"warning"`` (needs attention) or ``"info"``.
        count: number of rows or classes.
        message: what was found.
        action: what train will do about it.
        rows: example rows, where 1 is the first row after the header; ``"test.csv 12"`` for a row of another file than
            the table itself.
    """

    kind: str
    severity: str
    count: int
    message: str
    action: str
    rows: tuple[int | str, ...] = ()


@dataclass(frozen=True)
class ClassCount:
    """A class with its number of rows, in total and by given split."""

    number: int
    text: str
    rows: int
    splits: dict[str, int] = field(default_factory=dict)

    @property
    def training(self) -> int:
        """Number of rows from which train takes its training texts and the splits that are not given."""
        return self.splits.get("train", 0) if self.splits else self.rows


@dataclass(frozen=True)
class Lengths:
    """The distribution of text lengths.

    Attributes:
        unit: ``"characters"``, ``"tokens"``, or ``"tokens (estimated)"``.
        shortest, longest: the extremes.
        percentiles: length by percentile.
        edges, counts: a histogram with ``len(edges) == len(counts) + 1``; the last bin includes all longer texts.
    """

    unit: str
    shortest: int
    longest: int
    percentiles: dict[int, int]
    edges: tuple[int, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Findings:
    """The result of `inspect`.

    Attributes:
        name: name of the table.
        rows, usable: number of rows, before and after cleaning.
        columns: source name of each column in use, by its role.
        classes: the classes.
        imbalance: size of the largest class relative to the smallest, among the rows to train on.
        characters, tokens: the distributions of text lengths.
        max_length: maximum number of tokens that train keeps of a text.
        truncated: share of the texts that are longer.
        splits: number of usable rows by given split; a row without one counts as train.
        findings: the findings, in order of severity.
        imbalances: ``imbalance`` of each given split, over its classes.
        task: the kind of label.
        numbers: mean, standard deviation and quartiles of labels that are numbers; empty for other tasks.
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
    task: str = SINGLE_LABEL
    numbers: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON-serialisable values."""
        return asdict(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield render(self)

    def __str__(self) -> str:
        buffer = io.StringIO()
        Console(file=buffer, width=110, no_color=True, highlight=False).print(self)
        return buffer.getvalue().rstrip()

    __repr__ = __str__

    _repr_html_ = rendered_by("bertsmith.progress.display:to_html", optional=True)


def join_names(names: Sequence[str]) -> str:
    """Join the first names for a message, and count the others."""
    shown, others = names[:8], len(names[8:])
    return ", ".join(shown) + (f" and {others:,} more" if others else "")


MAX_CLASSES, BAR = 30, 30
"""Maximum number of classes in a chart, and its longest bar. Of more classes, it shows the largest and smallest."""

_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}


def render(findings: Findings) -> RenderableType:
    """Render findings for ``rich``."""
    columns = "columns: " + ", ".join(f"{role.replace('_', ' ')} = {name!r}" for role, name in findings.columns.items())
    parts: list[RenderableType] = [headline(findings), Text(columns, style="dim")]
    longer = f"{findings.truncated:.1%} of the texts are longer"
    truncation = f"the model reads at most {findings.max_length} tokens at once; {longer}"
    if findings.splits:
        given = ", ".join(f"{name} {n:,}" for name, n in findings.splits.items())
        absent = [name for name in SPLITS if name not in findings.splits and "train" in findings.splits]
        held_out = f"; bertsmith train also holds out {' and '.join(absent)}" if absent else ""
        parts.append(Text(f"given splits: {given}{held_out}", style="dim"))
    parts += ["", label_chart(findings), "", lengths_table(findings), Text(truncation), ""]
    if findings.findings:
        parts += [finding_lines(finding) for finding in findings.findings]
        parts.append(Text("Row 1 is the first row after the header.", style="dim"))
    else:
        parts.append(Text("bertsmith found no problems.", style="green"))
    return Group(*parts)


def headline(findings: Findings) -> Text:
    """Render the name, and the numbers of rows and classes, in one line."""
    unused = findings.rows - findings.usable
    return Text.assemble(
        (findings.name, "bold"),
        f": {counted(findings.rows, 'row')}",
        f", {findings.usable:,} usable" if unused else "",
        f", {label_count(findings)}",
        _imbalance(findings),
    )


def label_count(findings: Findings) -> str:
    """Return how many classes or labels the table has, or that its labels are numbers."""
    if findings.numbers:
        return "numbers from {minimum:g} to {maximum:g}".format(**findings.numbers)
    one, several = ("label", "labels") if findings.task == MULTI_LABEL else ("class", "classes")
    return counted(len(findings.classes), one, several)


def label_chart(findings: Findings) -> RenderableType:
    """Render the number of rows of every class, or the distribution of the numbers."""
    if findings.numbers:
        values = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in findings.numbers.items())
        return Text(f"{findings.classes[0].text}: {values}")
    several = findings.task == MULTI_LABEL
    return class_chart(findings.classes, findings.splits.get("train", findings.usable) if several else None)


def _imbalance(findings: Findings) -> str:
    if findings.numbers:
        return ""
    by_split = {name: ratio for name, ratio in findings.imbalances.items() if ratio == ratio}
    if by_split:
        return ", imbalance " + ", ".join(f"{ratio:.1f} : 1 in {name}" for name, ratio in by_split.items())
    return f", imbalance {findings.imbalance:.1f} : 1" if findings.imbalance == findings.imbalance else ""


def class_chart(classes: tuple[ClassCount, ...], rows: int | None) -> RenderableType:
    """Render the number of rows of every class, by given split, with bars for the rows to train on.

    Args:
        classes: the classes.
        rows: total for the shares; ``None`` for the sum over the classes.
    """
    ordered = sorted(classes, key=lambda c: (-c.training, -c.rows))
    most = max(c.training for c in ordered) or 1
    total = (sum(c.training for c in ordered) if rows is None else rows) or 1
    splits = list(ordered[0].splits)
    shown: list[ClassCount | None] = list(ordered)
    if len(ordered) > MAX_CLASSES:
        half = MAX_CLASSES // 2
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
            grid.add_row("", f"… {len(ordered) - MAX_CLASSES:,} more …")
            continue
        bar = "█" * round(BAR * entry.training / most) or ("▏" if entry.training else "")
        counts = [f"{n:,}" for n in entry.splits.values()] or [f"{entry.rows:,}"]
        grid.add_row(str(entry.number), Text(entry.text), *counts, f"{entry.training / total:.1%}", bar)
    return grid


def lengths_table(findings: Findings) -> RenderableType:
    """Render the percentiles of the text lengths."""
    grid = Grid.grid(padding=(0, 2))
    for _ in range(9):
        grid.add_column(justify="right", no_wrap=True)
    names = [f"{p} %" for p in findings.characters.percentiles]
    grid.add_row("length in", "shortest", *names, "longest", style="dim")
    for lengths in (findings.characters, findings.tokens):
        values = (lengths.shortest, *lengths.percentiles.values(), lengths.longest)
        grid.add_row(lengths.unit, *(f"{value:,}" for value in values))
    return grid


def finding_lines(finding: Finding) -> RenderableType:
    """Render a finding: its severity, message, example rows, and what train will do."""
    text = Text.assemble((f"{finding.severity:<8}", _STYLES[finding.severity]), finding.message)
    if finding.rows:
        text.append(f" ({number_form(len(finding.rows), 'row')} {', '.join(map(str, finding.rows))}", style="dim")
        text.append(", …)" if finding.count > len(finding.rows) else ")", style="dim")
    text.append(f"\n        → {finding.action}", style="dim")
    return text


@dataclass(frozen=True)
class Inspected:
    """What checks look at.

    Attributes:
        table: the table as read.
        cleaned: the cleaned table.
        texts: the usable texts, the segments of pairs joined.
        lengths: their lengths in tokens, shape (usable rows,).
        max_length: maximum number of tokens that training keeps of a text.
        tokens: the tokens of the usable texts, if a tokenizer is available.
        symbol_names: for each symbol that the tokenizer reads as its name, the name.
        config: the settings for the split, if they are known.
        test: the texts that train scores at the end, if they are known.
    """

    table: Table
    cleaned: Cleaned
    texts: list[str]
    lengths: np.ndarray
    max_length: int
    tokens: Tokens | None
    symbol_names: Mapping[str, str]
    config: Config | None
    test: Table | None = None

    def rows(self, kind: str, severity: str, rows: pd.DataFrame, message: str, action: str) -> Finding:
        """Return a finding about some rows of the table. The message follows their number: ``"3 rows" + message``."""
        return Finding(
            kind, severity, len(rows), f"{counted(len(rows), 'row')} {message}", action, self.name_rows(rows)
        )

    def texts_where(self, kind: str, severity: str, mask: np.ndarray, message: str, action: str) -> Finding:
        """Return a finding about the usable rows of a boolean mask, shape (usable rows,), as `rows` does."""
        return self.rows(kind, severity, self.cleaned.table.frame[mask], message, action)

    def name_rows(self, rows: pd.DataFrame) -> tuple[int | str, ...]:
        """Return the row numbers of the first rows, with the file name for another file than the table itself."""
        head = zip(rows["source"].iloc[:MAX_EXAMPLES], rows["row"].iloc[:MAX_EXAMPLES], strict=True)
        return tuple(int(row) if source == self.table.name else f"{source} {row}" for source, row in head)
