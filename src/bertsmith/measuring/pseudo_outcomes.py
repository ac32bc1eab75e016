"""A table for regressions on a corpus: for every text the prediction, corrected where it is labelled.

A regression on predicted labels is biased like their count. With the pseudo-outcome of design-based supervised
learning (Egami et al. 2023, arXiv:2306.04746), it is not: prediction plus, for a labelled text, its error divided by
the probability to be labelled.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertsmith.data.table import Cells
from bertsmith.folders.atomic import replaced_file
from bertsmith.measuring.estimate import Sample

OUTCOME = "outcome "
"""Prefix of the columns with pseudo-outcomes, before the label text."""
ROW, LABELLED, INCLUSION = "row", "labelled", "inclusion_probability"


class OutcomeFile:
    """Writes the table in two steps, so that memory does not grow: what is known while the corpus is read, then all.

    Args:
        path: the file to write.
        label_texts: of the classes.
    """

    def __init__(self, path: Path, label_texts: Sequence[str]) -> None:
        self.path, self.label_texts = path, tuple(label_texts)
        self._spool = tempfile.TemporaryFile("w+", newline="", encoding="utf-8")  # noqa: SIM115 - see `close`
        self._writer = csv.writer(self._spool)
        self._columns: list[str] | None = None
        self._labelled: dict[int, int] = {}
        self._rows = 0

    def close(self) -> None:
        """Remove the temporary file."""
        self._spool.close()

    def add(
        self,
        cells: Cells,
        rows: Iterable[int],
        predictions: np.ndarray,
        matched: Iterable[int | None],
        texts: Sequence[str],
    ) -> None:
        """Add rows of the corpus.

        Args:
            cells: the input columns of a chunk.
            rows: its n rows with a text.
            predictions: of these texts, shape (n, classes).
            matched: the position of each text in the sample, or ``None``.
            texts: of all rows; their column is not repeated.
        """
        if self._columns is None:
            self._columns = [name for name, column in cells.items() if list(map(str, column)) != list(texts)]
        for i, values, position in zip(rows, predictions.tolist(), matched, strict=True):
            row = self._rows + i + 1
            if position is not None:
                self._labelled[row] = position
            self._writer.writerow([row, *(cells[name][i] for name in self._columns), *values])
        self._rows += len(texts)

    def finish(self, sample: Sample, tuning: np.ndarray) -> None:
        """Write the table.

        Args:
            sample: the labelled texts, all of them in the corpus.
            tuning: weight of the predictions, shape (classes,).
        """
        self._spool.seek(0)
        k = len(self.label_texts)
        # With equal chances the labelled texts of a random sample stand for all others.
        corrections = (sample.outcomes - tuning * sample.predictions) / sample.inclusion[:, None]
        with replaced_file(self.path) as file, file.open("w", newline="", encoding="utf-8") as output:
            writer = csv.writer(output)
            outcomes = [f"{OUTCOME}{text}" for text in self.label_texts]
            writer.writerow([ROW, *(self._columns or []), LABELLED, INCLUSION, *outcomes])
            for line in csv.reader(self._spool):
                values = tuning * np.array(line[-k:], dtype=np.float64)
                position = self._labelled.get(int(line[0]))
                known: list[Any] = [0, ""]
                if position is not None:
                    values, known = values + corrections[position], [1, f"{sample.inclusion[position]:.8g}"]
                writer.writerow([*line[:-k], *known, *(f"{value:.8g}" for value in values)])
