"""Compare new texts with the test texts of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bertsmith.config import Config
from bertsmith.data.language import guess_language
from bertsmith.data.template import Text, flat, is_empty, stored_groups, texts_of
from bertsmith.errors import DataError
from bertsmith.events import PredictionListener, RowsPredicted
from bertsmith.folders.run import open_run
from bertsmith.inference.predict import predict_chunks
from bertsmith.inference.table_writers import PROBABILITY
from bertsmith.measuring.drift import (
    CONFIDENCE,
    LABELS,
    LEVEL,
    NUMBER,
    Difference,
    compare_counts,
    compare_embeddings,
    compare_scalars,
)
from bertsmith.measuring.text_features import fit_axes
from bertsmith.tasks.registry import get_task
from bertsmith.workflows.corpus_sample import SIZE, CorpusSample, Embedder, validation_rows
from bertsmith.workflows.predict import open_model, opened
from bertsmith.workflows.predict_options import PredictOptions

SCALARS = (
    "length (logarithm of characters)",
    "share of texts recognised as the main language",
    "share of texts with unknown tokens",
)


@dataclass(frozen=True)
class Drift:
    """How new texts differ from the test texts of a run.

    Attributes:
        corpus: the name of the new texts.
        texts: their number.
        test_texts: number of test texts.
        sampled: number of new texts in the random sample, for all properties but the labels.
        differences: one per property.
        grouped: whether the run has groups, such as authors. Texts of the same group are alike, so chance explains
            larger distances than the thresholds.
    """

    corpus: str
    texts: int
    test_texts: int
    sampled: int
    differences: tuple[Difference, ...]
    grouped: bool = False

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
    if "by" in run.metrics["splits"]["test"]:  # by cross-validation
        raise DataError(
            "bertsmith drift needs the test texts of the run, but this run has none: the model was trained on all "
            "texts",
            where=str(path),
            remedy="Train again with --test-size 0.1, or label some new texts and run bertsmith evaluate.",
        )
    frame, k = run.predictions, len(run.labels)
    counts, n_texts, sample = np.zeros(k), 0, CorpusSample()
    options = PredictOptions(probabilities=task.has_labels)
    columns = [f"{PROBABILITY}{text}" for text in run.labels.texts] if task.has_labels else [task.predicted_column]
    with opened(source, config, run.template, options, observe) as stream:
        classifier, _ = open_model(path, config, options, observe)
        for cells, _counts, chunk in predict_chunks(
            classifier, stream.chunks(), probabilities=task.has_labels, progress=lambda n: observe(RowsPredicted(n))
        ):
            rows = [i for i, text in enumerate(chunk) if not is_empty(text)]
            if not rows:
                continue
            table = np.array([[cells[name][i] for name in columns] for i in rows])
            sample.add([chunk[i] for i in rows], table, [""] * len(rows))
            n_texts += len(rows)
            if task.has_labels:
                counts += task.indicators(task.predicted(table), k).sum(axis=0)
    if not sample.texts:
        raise DataError("all new texts are empty", where=stream.name, remedy="Check the file and --text-column.")
    chosen = np.random.default_rng(0).permutation(len(frame))[:SIZE]
    texts, scores = texts_of(frame.iloc[chosen]), task.stored_scores(frame)[chosen]
    embedder = Embedder(run, classifier, config.device)
    others = texts_of(validation_rows(run.validation_predictions, texts))
    axes = fit_axes(embedder.embeddings(others), len(texts))
    before, now = (axes(embedder.embeddings(some)) for some in (texts, sample.texts))
    guesses = Counter(guess_language(flat(text)) for text in texts)
    guesses.pop(None, None)
    language = guesses.most_common(1)[0][0] if guesses else None

    def scalars(some: Sequence[Text], scores: np.ndarray) -> np.ndarray:
        words = [flat(text) for text in some]
        in_language = [guess_language(text) == language for text in words]
        lengths = np.log1p([len(text) for text in words])
        first = task.confidence(scores) if task.has_labels else task.predicted(scores)
        return np.column_stack([first, lengths, in_language, embedder.has_unknown(some)])

    level = 1 - (1 - LEVEL) / (len(SCALARS) + 3)  # Bonferroni
    names = (CONFIDENCE if task.has_labels else NUMBER, *SCALARS)
    found = [
        *compare_scalars(names, scalars(texts, scores), scalars(sample.texts, sample.scores), level),
        compare_embeddings(before, now, level),
    ]
    if task.has_labels:
        reference = task.indicators(task.predicted(task.stored_scores(frame)), k).sum(axis=0)
        both = None if task.one_class else (len(frame), n_texts)
        found.insert(-1, compare_counts(LABELS, reference, counts, level, texts=both))
    grouped, differences = stored_groups(frame) is not None, tuple(d for d in found if d is not None)
    return Drift(stream.name, n_texts, len(frame), len(sample.texts), differences, grouped)
