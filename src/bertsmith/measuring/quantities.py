"""The measured quantities: the share of each class and, for ordered labels, the mean level; or the mean of numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bertsmith.data.table import Labels
from bertsmith.measuring.estimate import Estimates, Totals
from bertsmith.measuring.label_shift import AdjustedCount
from bertsmith.measuring.pseudo_outcomes import LEVEL_NAME, NUMBER_NAME
from bertsmith.measuring.result import MeanLevel, Share


@dataclass(frozen=True)
class Quantities:
    """One column per quantity, with values from 0 to 1; a number can be outside.

    Attributes:
        labels: the k classes; for a regression, the name of the number.
        ordered: whether the labels are ordered. Then the last column is the level, from the lowest to the highest.
        range: for a regression, the numbers that are scaled to 0 and 1.
    """

    labels: Labels
    ordered: bool
    range: tuple[float, float] | None = None

    @property
    def n_shares(self) -> int:
        """Number of columns with a share; the others have a mean."""
        return len(self.labels) if self.range is None else 0

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each column."""
        if self.range is not None:
            return (NUMBER_NAME,)
        return (*self.labels.texts, LEVEL_NAME) if self.ordered else self.labels.texts

    @property
    def lowest(self) -> np.ndarray:
        """The value that is scaled to 0, shape (columns,)."""
        rest = [float(min(self.labels.numbers))] if self.ordered else []
        return np.array([0.0] * len(self.labels) + rest if self.range is None else self.range[:1])

    @property
    def span(self) -> np.ndarray:
        """The difference that is scaled to 1, shape (columns,)."""
        if self.range is not None:
            return np.array([self.range[1] - self.range[0] or 1.0])
        numbers = self.labels.numbers
        rest = [float(max(numbers) - min(numbers))] if self.ordered else []
        return np.array([1.0] * len(self.labels) + rest)

    def of(self, values: np.ndarray) -> np.ndarray:
        """Return the columns of texts, from probabilities, indicators or numbers, shape (n, k)."""
        return values @ self.outcomes if self.range is None else (values - self.lowest) / self.span

    @property
    def outcomes(self) -> np.ndarray:
        """Values of a text with one of the labels, shape (k, columns). Multiply probabilities or indicators by them."""
        shares = np.eye(len(self.labels))
        if not self.ordered:
            return shares
        levels = (np.array(self.labels.numbers) - self.lowest[-1]) / max(self.span[-1], 1.0)
        return np.column_stack([shares, levels])


@dataclass
class Results:
    """Collects the estimates of a corpus and of its groups.

    Attributes:
        quantities: the estimated quantities.
        estimator: as for `Share`.
        shares, means: one entry per class and group, and per group.
    """

    quantities: Quantities
    estimator: str
    shares: list[Share] = field(default_factory=list)
    means: list[MeanLevel] = field(default_factory=list)

    def add(
        self,
        group: str | None,
        estimates: Estimates | AdjustedCount | None,
        totals: Totals,
        labelled: int = 0,
        alone: Estimates | None = None,
    ) -> None:
        """Add the estimates of a group.

        Args:
            group: the group; ``None`` for the whole corpus.
            estimates: of all columns; ``None`` if they cannot be estimated.
            totals: of the group.
            labelled: number of labelled texts.
            alone: what they give without predictions; ``None`` without labelled texts.
        """
        lowest, span, rest = self.quantities.lowest, self.quantities.span, (self.estimator, labelled, totals.texts)
        for c, name in enumerate(self.quantities.names):
            naive = float(lowest[c] + span[c] * totals.naive[c])
            values = (*_scaled(estimates, c, lowest[c], span[c]), naive, *rest, *_scaled(alone, c, lowest[c], span[c]))
            if c < self.quantities.n_shares:
                self.shares.append(Share(name, group, *values))
            else:
                self.means.append(MeanLevel(group, *values))


def _scaled(
    estimates: Estimates | AdjustedCount | None, column: int, lowest: float, span: float
) -> tuple[float | None, tuple[float, float] | None]:
    """Return the value and the interval of a column, in the units of the user."""
    if estimates is None:
        return None, None
    value, low, high = (float(lowest + span * v[column]) for v in (estimates.value, estimates.low, estimates.high))
    return value, (low, high)
