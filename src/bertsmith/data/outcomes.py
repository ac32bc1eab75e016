"""What the labels of a table are for the model: classes, sets of labels, or numbers.

A table stores one code per row. Its outcomes turn codes into the targets of the model, so that cleaning and splitting
treat equal labels alike, whatever they are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bertsmith.data.texts import INTEGER
from bertsmith.errors import did_you_mean, listing

if TYPE_CHECKING:
    from bertsmith.data.table import Labels

SEPARATOR, NO_LABELS = ";", "[]"
"""What separates the labels of a set in files for people, and what stands for a set without labels."""
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

    def strata(self, codes: np.ndarray) -> np.ndarray:
        """Return what a split keeps balanced: a class per row, int, shape (n,), or label sets, shape (n, labels)."""
        return self.targets(codes)

    @property
    def one_label_per_row(self) -> bool:
        """Whether a text with several labels has a row for each of them, in held-out splits too."""
        return False

    @abstractmethod
    def code(self, target: Any) -> tuple[int, Outcomes]:
        """Return the code of a target, and outcomes that have this code."""

    @abstractmethod
    def find(self, written: str, labels: Labels) -> tuple[int, Outcomes]:
        """Return the code of a label as people write it in corrections, and outcomes that have this code.

        Raises:
            ValueError: if it is not a label of the table, for a message.
        """

    def merge(self, codes: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, Outcomes] | None:
        """Return one code for the rows of each text, and outcomes that have these codes.

        Args:
            codes: of n rows, shape (n,).
            texts: number of the text of each row, 0…m−1, shape (n,).

        Returns:
            Codes of shape (m,); ``None`` if different labels of a text contradict one another.
        """
        return None

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
        return np.bincount(codes, minlength=n_labels)

    def code(self, target: Any) -> tuple[int, Outcomes]:
        """Return the class index."""
        return int(target), self

    def find(self, written: str, labels: Labels) -> tuple[int, Outcomes]:
        """Return the class index of a label text or number; see `Outcomes.find`."""
        return _class_index(written, labels), self


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
        return self.sets[codes]

    def counts(self, codes: np.ndarray, n_labels: int) -> np.ndarray:
        """Return the number of rows that have each label, shape (labels,)."""
        return self.sets[codes].sum(axis=0)

    def code(self, target: Any) -> tuple[int, Outcomes]:
        """Return the code of a label set, bool, shape (labels,); see `Outcomes.code`."""
        same = np.flatnonzero((self.sets == target).all(axis=1))
        return (int(same[0]), self) if len(same) else (len(self.sets), LabelSets(np.vstack([self.sets, target])))

    def find(self, written: str, labels: Labels) -> tuple[int, Outcomes]:
        """Return the code of labels separated by `SEPARATOR`, or of `NO_LABELS`; see `Outcomes.find`."""
        row = np.zeros(self.sets.shape[1], dtype=bool)
        if written != NO_LABELS:
            parts = [written] if written in labels.label2id else written.split(SEPARATOR)
            row[[_class_index(part.strip(), labels) for part in parts if part.strip()]] = True
        return self.code(row)

    @property
    def one_label_per_row(self) -> bool:
        """Whether no row has several labels; see `Outcomes.one_label_per_row`."""
        return not bool((self.sets.sum(axis=1) > 1).any())

    def merge(self, codes: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, Outcomes] | None:
        """Return the code of the union of each text's labels if no row has several labels; see `Outcomes.merge`."""
        if not self.one_label_per_row:
            return None
        united = np.zeros((int(texts.max()) + 1, self.sets.shape[1]), dtype=bool)
        np.logical_or.at(united, texts, self.sets[codes])
        sets, inverse = np.unique(united, axis=0, return_inverse=True)
        return len(self.sets) + inverse.reshape(-1), LabelSets(np.vstack([self.sets, sets]))

    def key(self) -> bytes:
        """Return the label sets."""
        return self.sets.tobytes()


@dataclass(frozen=True, eq=False)
class Numbers(Outcomes):
    """A number per row.

    Attributes:
        values: the distinct numbers by code, float64, shape (values,).
    """

    values: np.ndarray

    def targets(self, codes: np.ndarray) -> np.ndarray:
        """Return the numbers, float64, shape (n,)."""
        return self.values[codes]

    def counts(self, codes: np.ndarray, n_labels: int) -> np.ndarray:
        """Return the number of rows, shape (1,)."""
        return np.array([len(codes)])

    def code(self, target: Any) -> tuple[int, Outcomes]:
        """Return the code of a number; see `Outcomes.code`."""
        same = np.flatnonzero(self.values == target)
        return (int(same[0]), self) if len(same) else (len(self.values), Numbers(np.append(self.values, target)))

    def find(self, written: str, labels: Labels) -> tuple[int, Outcomes]:
        """Return the code of a number; see `Outcomes.find`."""
        try:
            number = float(written)
        except ValueError:
            number = float("nan")
        if not np.isfinite(number):
            raise ValueError(f"{written!r} is not a number")
        return self.code(number)

    def merge(self, codes: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, Outcomes] | None:
        """Return the code of the mean of each text's numbers; see `Outcomes.merge`."""
        means, inverse = np.unique(np.bincount(texts, self.values[codes]) / np.bincount(texts), return_inverse=True)
        return len(self.values) + inverse, Numbers(np.append(self.values, means))

    def strata(self, codes: np.ndarray) -> np.ndarray:
        """Return the quantile bin of every row, shape (n,)."""
        ranks = np.argsort(np.argsort(self.values[codes], kind="stable"), kind="stable")
        return ranks * min(BINS, max(len(codes) // 4, 1)) // max(len(codes), 1)

    def key(self) -> bytes:
        """Return the numbers."""
        return self.values.tobytes()


def majority(votes: np.ndarray, *, ordered: bool) -> Any:
    """Return the target that counts if coders differ, or ``None`` for a tie.

    A set has the labels that more than half of the coders gave. Without such a label, more than half of the coders must
    have given none. Of ordered classes, the median counts; if it lies between two classes, the one that more coders
    gave. Otherwise, the class that most coders gave counts.

    Args:
        votes: the target of each coder, shape (coders,) or (coders, labels).
        ordered: whether the classes are ordered.
    """
    n = len(votes)
    if votes.ndim == 2:
        given = votes.sum(axis=0)
        found = 2 * given > n
        is_tie = (2 * given == n).any() or (not found.any() and 2 * (votes.sum(axis=1) == 0).sum() <= n)
        return None if is_tie else found
    classes, counts = np.unique(votes, return_counts=True)
    if ordered:
        counts = np.where(np.isin(classes, np.sort(votes)[[(n - 1) // 2, n // 2]]), counts, 0)
    best = classes[counts == counts.max()]
    return best[0] if len(best) == 1 else None


def join_labels(row: np.ndarray, labels: Labels) -> str:
    """Return a label set as people write it in corrections, from a bool array of shape (labels,)."""
    return SEPARATOR.join(text for text, yes in zip(labels.texts, row, strict=True) if yes) or NO_LABELS


def _class_index(written: str, labels: Labels) -> int:
    for text in (written, written.removeprefix("'")):  # CSV output puts ' before cells that a spreadsheet would execute
        if text in labels.label2id:
            return labels.label2id[text]
        if labels.numbered and INTEGER.fullmatch(text) and int(text) in labels.numbers:
            return labels.numbers.index(int(text))
    hint = did_you_mean(written, labels.texts) or f" The labels are {listing(labels.texts)}."
    raise ValueError(f"{written!r} is not a label of the table.{hint}")
