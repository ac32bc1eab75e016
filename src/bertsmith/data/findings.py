"""What inspecting a table finds: plain values that print, render and serialise themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

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
        from bertsmith.data.show import show

        yield show(self)

    def __str__(self) -> str:
        from bertsmith.data.show import as_text

        return as_text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from bertsmith.data.show import as_html

        return as_html(self)


def some_of(names: Sequence[str], limit: int = 8) -> str:
    """Join names for a message, and count those beyond ``limit``."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit:,} more" if len(names) > limit else "")
