"""A table for regressions on a corpus: for every text the prediction, corrected where it is labelled.

A regression on predicted labels is biased, as is their count. A regression on the pseudo-outcomes of design-based
supervised learning (Egami et al. 2023, arXiv:2306.04746) is not. The pseudo-outcome is the prediction. For a labelled
text, it adds the error divided by the inclusion probability.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertsmith.data.columns import with_own_names
from bertsmith.data.table import Cells
from bertsmith.data.texts import is_missing
from bertsmith.folders.atomic import replaced_file
from bertsmith.measuring.estimate import Sample

OUTCOME = "outcome "
"""Prefix of the columns with pseudo-outcomes, before the label text."""
LEVEL_NAME, NUMBER_NAME = "(level)", "(number)"
"""Stand for the level of an ordered label, and for a number, in place of a label text."""
ROW, LABELLED, INCLUSION = "row", "labelled", "inclusion_probability"


class OutcomeFile:
    """Writes the table in two steps, so that memory does not grow: first rows without corrections, then all.

    Args:
        path: the file to write; the rows without corrections are in a temporary file in its folder.
        names: of the outcomes, as in `Quantities`.
        lowest, span: of the outcomes, whose predictions are scaled, shape (outcomes,).
    """

    def __init__(self, path: Path, names: Sequence[str], lowest: np.ndarray, span: np.ndarray) -> None:
        self.path, self.names, self.lowest, self.span = path, tuple(names), lowest, span
        self._spool = tempfile.TemporaryFile("w+", dir=path.parent, encoding="utf-8")  # noqa: SIM115 - see `close`
        self._columns: list[str] = []
        self._texts = 0

    def close(self) -> None:
        """Remove the temporary file."""
        self._spool.close()

    def add(self, cells: Cells, rows: Sequence[int], numbers: Sequence[int], predictions: np.ndarray) -> None:
        """Add rows of the corpus.

        Args:
            cells: the columns of a chunk that the table shall have.
            rows: positions of its n rows with a text.
            numbers: their row numbers in the corpus.
            predictions: of these texts, shape (n, outcomes).
        """
        self._columns = list(cells)
        for i, number, values in zip(rows, numbers, predictions.tolist(), strict=True):
            line = ["" if is_missing(column[i]) else str(column[i]) for column in cells.values()]
            self._spool.write(json.dumps([number, line, values]) + "\n")
        self._texts += len(rows)

    def finish(self, sample: Sample, tuning: np.ndarray, labelled: Mapping[int, int]) -> None:
        """Write the table.

        Args:
            sample: the labelled texts, all of them in the corpus.
            tuning: weight of the predictions, shape (outcomes,).
            labelled: the position in the sample of each labelled row, by row number.
        """
        self._spool.seek(0)
        # Each labelled text also represents unlabelled texts, by the inverse of its inclusion probability. The weights
        # are scaled to sum to the corpus, as in the corrected shares: rows may have been left out of the sample.
        weights = 1 / sample.inclusion
        weights *= self._texts / weights.sum()
        corrections = (sample.outcomes - tuning * sample.predictions) * weights[:, None]
        with replaced_file(self.path) as file, file.open("w", newline="", encoding="utf-8") as output:
            writer = csv.writer(output)
            added = [LABELLED, INCLUSION, *(f"{OUTCOME}{name}" for name in self.names)]
            columns = with_own_names(dict.fromkeys(self._columns), [ROW, *added], "corpus")
            writer.writerow([ROW, *columns, *added])
            for number, line, predictions in map(json.loads, self._spool):
                values = tuning * np.array(predictions)
                position = labelled.get(number)
                known: list[Any] = [0, ""]
                if position is not None:
                    values, known = values + corrections[position], [1, f"{sample.inclusion[position]:.8g}"]
                values = self.lowest + self.span * values
                writer.writerow([number, *line, *known, *(f"{value:.8g}" for value in values)])
