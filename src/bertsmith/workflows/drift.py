"""Compare new texts with the test texts of a run."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertsmith.config import Config
from bertsmith.data.language import guess_language
from bertsmith.data.table import ORDINAL, SINGLE_LABEL
from bertsmith.data.template import Text, flat, flat_texts, is_empty
from bertsmith.errors import ConfigError, DataError
from bertsmith.events import PredictionListener, RowsPredicted
from bertsmith.folders.run import open_run
from bertsmith.inference.predict import predict_chunks
from bertsmith.inference.table_writers import PROBABILITY
from bertsmith.measuring.drift import LEVEL, Difference, compare_labels, compare_scalars, compare_topics
from bertsmith.measuring.label_shift import FeatureTotals
from bertsmith.measuring.text_features import TextFeatures
from bertsmith.tasks.registry import get_task
from bertsmith.workflows.measure import noted
from bertsmith.workflows.predict import PredictOptions, open_model, opened

SCALARS = ("confidence", "length (logarithm of characters)", "share of texts in the main language")


@dataclass(frozen=True)
class Drift:
    """How new texts differ from the test texts of a run.

    Attributes:
        corpus: the name of the new texts.
        texts: their number.
        test_texts: number of test texts.
        differences: one per property.
    """

    corpus: str
    texts: int
    test_texts: int
    differences: tuple[Difference, ...]

    @property
    def differs(self) -> bool:
        """Whether any property differs by more than chance explains."""
        return any(difference.differs for difference in self.differences)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready content."""
        differences = [{**vars(d), "differs": d.differs} for d in self.differences]
        return {**vars(self), "differences": differences, "differs": self.differs}


def compare_texts(
    path: Path, source: Any, config: Config, *, observe: PredictionListener = lambda event: None
) -> Drift:
    """Compare new texts with the test texts of a run; see `bertsmith.drift`."""
    run = open_run(path)
    task = get_task(run.task)
    if run.task not in (SINGLE_LABEL, ORDINAL):
        raise ConfigError(
            f"drift compares the classes of texts, and the run is of the task {run.task}",
            where=str(path),
            remedy="Give a run whose texts have one class each.",
        )
    frame, others, k = run.predictions, flat_texts(run.validation_predictions), len(run.labels)
    texts, probabilities = flat_texts(frame), task.stored_scores(frame)
    known = set(texts)
    features = TextFeatures.fit([text for text in others if text not in known])
    guesses = Counter(guess_language(text) for text in texts)
    guesses.pop(None, None)
    language = guesses.most_common(1)[0][0] if guesses else None

    def measure(some: list[str], table: np.ndarray) -> np.ndarray:
        in_language = [guess_language(text) == language for text in some]
        columns = features(some, table)[:, k - 1 :]  # without the predicted labels: confidence, length, topics
        return np.column_stack([columns[:, :2], in_language, columns[:, 2:]])

    reference, totals, counts = measure(texts, probabilities), None, np.zeros(k, dtype=np.int64)
    options = PredictOptions(probabilities=True)
    with opened(source, config, run.template, options, observe) as stream:
        classifier, _ = open_model(path, config, options, observe)
        read: deque[Sequence[Text]] = deque()
        for cells, _counts in predict_chunks(
            classifier, noted(stream, read), probabilities=True, progress=lambda n: observe(RowsPredicted(n))
        ):
            chunk = read.popleft()
            rows = [i for i, text in enumerate(chunk) if not is_empty(text)]
            if not rows:
                continue
            table = np.array([[cells[f"{PROBABILITY}{text}"][i] for text in run.labels.texts] for i in rows])
            some = FeatureTotals.of(measure([flat(chunk[i]) for i in rows], table))
            totals = some if totals is None else totals + some
            counts += np.bincount(task.predicted(table), minlength=k)
    if totals is None:
        raise DataError("the corpus has no texts", where=stream.name)
    n_scalars = len(SCALARS)
    level = 1 - (1 - LEVEL) / (n_scalars + 2)  # Bonferroni
    topics = FeatureTotals(totals.texts, totals.sums[n_scalars:], totals.products[n_scalars:, n_scalars:])
    found = [
        *compare_scalars(SCALARS, reference, totals, level),
        compare_labels(np.bincount(task.predicted(probabilities), minlength=k), counts, level),
        compare_topics(reference[:, n_scalars:], topics, level),
    ]
    return Drift(stream.name, totals.texts, len(texts), tuple(d for d in found if d is not None))
