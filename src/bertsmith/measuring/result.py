"""The result of a measurement: one share per class and group, with notes for the reader."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bertsmith.errors import DataError, counted

ALL = None
"""The group of a share of the whole corpus."""


@dataclass(frozen=True)
class Share:
    """The share of a class in a corpus, or in a group of it.

    Attributes:
        label_text: the class.
        group: the group; ``None`` for the whole corpus.
        share: the corrected share, from 0 to 1; ``None`` if it cannot be estimated.
        interval: its 95 % interval; ``None`` without a share.
        naive: the share of texts with this predicted label.
        estimator: ``"PPI++"``, ``"DSL"`` or ``"adjusted count"``.
        labelled: number of labelled texts behind the share.
        texts: number of texts of the corpus.
        labelled_share: the share that the labelled texts alone give; ``None`` without a labelled sample.
        labelled_interval: its 95 % interval. The model helps if it is wider than ``interval``.
    """

    label_text: str
    group: str | None
    share: float | None
    interval: tuple[float, float] | None
    naive: float
    estimator: str
    labelled: int
    texts: int
    labelled_share: float | None = None
    labelled_interval: tuple[float, float] | None = None

    @property
    def difference(self) -> float | None:
        """The naive value minus the corrected value."""
        return None if self.share is None else self.naive - self.share


@dataclass(frozen=True)
class MeanLevel:
    """The mean of ordered labels or of a number in a corpus, or in a group of it, in units of the labels.

    Attributes:
        group: the group; ``None`` for the whole corpus.
        mean: the corrected mean; ``None`` if it cannot be estimated.
        interval: its 95 % interval; ``None`` without a mean.
        naive: the mean of the predicted levels or numbers.
        estimator, labelled, texts: as for `Share`.
        labelled_mean, labelled_interval: the mean that the labelled texts alone give, and its 95 % interval.
    """

    group: str | None
    mean: float | None
    interval: tuple[float, float] | None
    naive: float
    estimator: str
    labelled: int
    texts: int
    labelled_mean: float | None = None
    labelled_interval: tuple[float, float] | None = None

    @property
    def difference(self) -> float | None:
        """The naive value minus the corrected value."""
        return None if self.mean is None else self.naive - self.mean


@dataclass(frozen=True)
class Measurement:
    """Shares of the classes of a corpus, or the mean of numeric labels.

    Attributes:
        corpus: the name of the corpus.
        sample: the name of the labelled sample; ``None`` without one.
        by: the column of the groups; ``None`` without groups.
        shares: of the whole corpus, then of each group in order of its name.
        in_corpus: whether the sample is part of the corpus; then the intervals are for this corpus.
        more_labels: how many more labelled texts give an interval of ± 1 point, by label text.
        least_widths: the least width of an interval with these predictions, relative to that of the labelled texts
            alone, by label text: √(1 − ρ²), where ρ is the correlation of predictions and labels.
        left_out: number of rows of the sample left out by reason.
        empty: number of rows of the corpus without a text.
        notes: sentences about the shares: left-out rows, doubts, and the number of further labels.
        means: for ordered labels or a number, the mean of the whole corpus, then of each group in order of its name.
        clusters: number of groups of the sample that were drawn at random; ``None`` if texts were drawn.
        trained: number of rows of the corpus left out because they are training or validation texts.
        run: what identifies the run, from `run_identity`.
    """

    corpus: str
    sample: str | None
    by: str | None
    shares: tuple[Share, ...]
    in_corpus: bool = True
    more_labels: dict[str, int] = field(default_factory=dict)
    least_widths: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    empty: int = 0
    notes: tuple[str, ...] = ()
    means: tuple[MeanLevel, ...] = ()
    clusters: int | None = None
    trained: int = 0
    run: dict[str, Any] = field(default_factory=dict)

    @property
    def whole(self) -> tuple[Share, ...]:
        """The shares of the whole corpus."""
        return tuple(share for share in self.shares if share.group is ALL)

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the groups, in order."""
        estimates: tuple[Share | MeanLevel, ...] = (*self.shares, *self.means)
        return tuple(dict.fromkeys(e.group for e in estimates if e.group is not None))

    @property
    def mean_name(self) -> str:
        """What the means are: of ordered labels, which also have shares, or of numbers."""
        return "mean level" if self.shares else "mean number"

    def rows(self) -> list[dict[str, Any]]:
        """Return one JSON-ready row per share."""
        return _rows(self.shares)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready content."""
        rows = {"shares": self.rows(), "means": _rows(self.means)}
        return {**rows, **{n: v for n, v in vars(self).items() if n not in rows}, "notes": list(self.notes)}


def run_identity(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return what identifies a run, from its ``run.json``: when it was created, and the fingerprint of its table."""
    return {"created": info.get("created"), "fingerprint": info["data"]["fingerprint"]}


def read_measurement(path: Path, info: Mapping[str, Any]) -> dict[str, Any]:
    """Read the output of ``bertsmith measure --json``.

    Args:
        path: the file.
        info: ``run.json`` of the run that the measurement must come from.

    Raises:
        DataError: if the file cannot be read, is something else, or comes from another run.
    """
    try:
        measured = json.loads(path.read_text(encoding="utf-8"))
        _ = (measured["shares"] or measured["means"])[0]["estimator"]
    except OSError as error:
        raise DataError(
            f"the file cannot be read: {error.strerror}", where=str(path), remedy="Check the path."
        ) from error
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"the file is not the output of bertsmith measure --json ({type(error).__name__})",
            where=str(path),
            remedy="Create it with: bertsmith measure RUN CORPUS … --json > FILE.json",
        ) from error
    identity = run_identity(info)
    if measured.get("run", identity) != identity:  # older versions wrote no run
        raise DataError("the measurement comes from another run", where=str(path), remedy="Pass that run.")
    return dict(measured)


def show_mean(value: float | None) -> str:
    """Return a mean with three significant digits, or as a whole number from 1000 on; a dash without a mean."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}"


def empty_rows(n: int) -> list[str]:
    """Return the note on rows of the corpus without a text, if there are any."""
    return [f"{counted(n, 'row of the corpus has', 'rows of the corpus have')} no text"] if n else []


def _rows(estimates: Sequence[Share | MeanLevel]) -> list[dict[str, Any]]:
    return [{n: list(v) if isinstance(v, tuple) else v for n, v in asdict(e).items()} for e in estimates]
