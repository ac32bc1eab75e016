"""What the labels of a table are for the model: classes, sets of labels, or numbers.

A table stores one code per row. Its outcomes turn codes into the targets of the model, so that cleaning and splitting
treat equal labels alike, whatever they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

BINS = 10
"""Numbers are split by this many quantile bins."""


class Outcomes(ABC):
    """Turns the codes of rows, int, shape (n,), into targets. A code of −1 is a missing label."""

    @abstractmethod
    def targets(self, codes: np.ndarray) -> np.ndarray:
        """Return the targets of the model, shape (n,) or (n, labels)."""

    @abstractmethod
    def counts(self, codes: np.ndarray, n_labels: int) -> np.ndarray:
        """Return the number of rows of every label, shape (labels,), for codes without missing ones."""

    @abstractmethod
    def strata(self, codes: np.ndarray) -> np.ndarray:
        """Return what a split keeps balanced: a class per row, int, shape (n,), or label sets, shape (n, labels)."""

    def key(self) -> bytes:
        """Return what a fingerprint needs besides the codes."""
        return b""


class Classes(Outcomes):
    """One class per row; the code is the class index."""

    def targets(self, codes: np.ndarray) -> np.ndarray:
        """Return the class indices, int64, shape (n,)."""
        return codes

    def counts(self, codes: np.ndarray, n_labels: int) -> np.ndarray:
        """Return the number of rows of every class, shape (labels,)."""
        import numpy as np

        return np.bincount(codes, minlength=n_labels)

    def strata(self, codes: np.ndarray) -> np.ndarray:
        """Return the class indices, shape (n,)."""
        return codes


CLASSES = Classes()


@dataclass(frozen=True, eq=False)
class LabelSets(Outcomes):
    """Any number of labels per row.

    Attributes:
        sets: the distinct label sets by code, bool, shape (sets, labels).
    """

    sets: np.ndarray

    def targets(self, codes: np.ndarray) -> np.ndarray:
        """Return whether each row has each label, bool, shape (n, labels)."""
        rows: np.ndarray = self.sets[codes]
        return rows

    def counts(self, codes: np.ndarray, n_labels: int) -> np.ndarray:
        """Return the number of rows that have each label, shape (labels,)."""
        result: np.ndarray = self.sets[codes].sum(axis=0)
        return result

    def strata(self, codes: np.ndarray) -> np.ndarray:
        """Return the label sets, bool, shape (n, labels)."""
        return self.targets(codes)

    def key(self) -> bytes:
        """Return the label sets."""
        return self.sets.tobytes()


@dataclass(frozen=True, eq=False)
class Numbers(Outcomes):
    """A number per row.

    Attributes:
        values: the distinct numbers by code, in ascending order, float64, shape (values,).
    """

    values: np.ndarray

    def targets(self, codes: np.ndarray) -> np.ndarray:
        """Return the numbers, float64, shape (n,)."""
        numbers: np.ndarray = self.values[codes]
        return numbers

    def counts(self, codes: np.ndarray, n_labels: int) -> np.ndarray:
        """Return the number of rows, shape (1,)."""
        import numpy as np

        return np.array([len(codes)])

    def strata(self, codes: np.ndarray) -> np.ndarray:
        """Return the quantile bin of every row, shape (n,)."""
        import numpy as np

        ranks = np.argsort(np.argsort(codes, kind="stable"), kind="stable")
        return ranks * min(BINS, max(len(codes) // 4, 1)) // max(len(codes), 1)

    def key(self) -> bytes:
        """Return the numbers."""
        return self.values.tobytes()
