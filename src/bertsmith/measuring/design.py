"""The sampling design of a labelled sample. An estimate needs the inclusion probability of each text."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertsmith.data.columns import canonical
from bertsmith.data.texts import is_missing, to_truth
from bertsmith.errors import DataError, quoted

RANDOM, INCLUSION = "random", "inclusion_probability"
"""The columns that record how a text was chosen."""
NOT_RANDOM = "not chosen at random, or without an inclusion probability"


@dataclass(frozen=True)
class Design:
    """How the rows of a sample were chosen.

    Attributes:
        usable: whether the inclusion probability of a row is known, shape (rows,).
        inclusion: inclusion probabilities, shape (rows,); ``None`` if all rows have the same.
    """

    usable: np.ndarray
    inclusion: np.ndarray | None


def read_design(
    columns: Mapping[str, Sequence[Any]],
    rows: Sequence[int],
    where: str,
    *,
    declared_random: bool = False,
    unlabelled: Collection[int] = (),
) -> Design:
    """Read how the rows of a sample were chosen.

    Args:
        columns: the unused columns of the sample, among them perhaps ``random`` (true or false) and
            ``inclusion_probability`` (above 0, at most 1). A row with false is not usable, even with a probability.
        rows: the number of each row, for messages.
        where: the name of the sample, for messages.
        declared_random: all rows are a simple random sample of the corpus, according to the user.
        unlabelled: numbers of rows without a label, whose cells may be empty; such a row is then not usable.

    Raises:
        DataError: if the sampling design is unknown, or a cell is not valid.
    """
    found = {canonical(name): (name, values) for name, values in columns.items()}
    random = found.get(canonical(RANDOM))
    inclusion = found.get(canonical(INCLUSION))
    if random is None and inclusion is None:
        if declared_random:
            return Design(np.ones(len(rows), dtype=bool), None)
        raise DataError(
            "the sample does not say how its texts were chosen",
            where=where,
            remedy="If every text of the corpus had the same probability of being drawn, pass --random-sample. "
            f"Otherwise add the column {INCLUSION}, or label random texts. Texts that are easy, uncertain or found by "
            "a search do not represent the corpus.",
        )
    drawn = np.ones(len(rows), dtype=bool)
    if random is not None:
        place = f"{where}, column {quoted(random[0])}"
        cells = ("false" if row in unlabelled and _is_blank(c) else c for c, row in zip(random[1], rows, strict=True))
        drawn = np.array([_truth(c, row, place) for c, row in zip(cells, rows, strict=True)], dtype=bool)
    if inclusion is None:
        usable, probabilities = drawn, None
    else:
        place = f"{where}, column {quoted(inclusion[0])}"
        probabilities = np.array([_probability(c, row, place) for c, row in zip(inclusion[1], rows, strict=True)])
        usable = drawn & ~np.isnan(probabilities)
        without = drawn & ~usable & ~np.isin(rows, [*unlabelled])
        if random is not None and without.any():
            if not usable.any():
                raise DataError(
                    "the rows that were drawn at random have no inclusion probability: they may not represent the "
                    "whole pool",
                    where=place,
                    remedy="Pass labels.csv of the project, which has the random texts of all calls. If you drew only "
                    "from new rows of the pool, remove this column, and pass these rows as the corpus. Otherwise write "
                    "the probabilities.",
                )
            row = rows[int(np.flatnonzero(without)[0])]
            raise DataError(
                f"row {row:,} was drawn at random, but has no inclusion probability, while other rows have one",
                where=place,
                remedy="Write the probability of every row that was drawn at random.",
            )
    return Design(usable, probabilities)


def _is_blank(cell: Any) -> bool:
    return is_missing(cell) or not str(cell).strip()


def _truth(cell: Any, row: int, where: str) -> bool:
    found = to_truth(cell)
    if found is None:
        raise DataError(
            f"row {row:,} has {quoted(cell)}, which is neither true nor false",
            where=where,
            remedy="Write true for texts that were drawn at random, and false for others.",
        )
    return found


def _probability(cell: Any, row: int, where: str) -> float:
    if _is_blank(cell):
        return math.nan
    try:
        value = float(str(cell).replace(",", "."))  # at most 1, so a comma can only be a decimal comma
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise DataError(
            f"row {row:,} has {quoted(cell)}, which is not a probability above 0 and at most 1",
            where=where,
            remedy="Write the probability that each text is in the sample, above 0 and at most 1.",
        )
    return value
