"""What one gets with less than fine-tuning, beside the model's figures on test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from bertsmith.config import PRIMARY
from bertsmith.data.table import Table
from bertsmith.evaluation.baseline import Baseline, Regression, bag_of_words, fit_regression, verdict
from bertsmith.evaluation.intervals import paired_difference
from bertsmith.evaluation.metrics import majority_class_probabilities, scalar_metrics
from bertsmith.model.load import Loaded
from bertsmith.model.tokenizer import Tokens
from bertsmith.workflows.prepare import EMBEDDED, draw_evenly, embed
from bertsmith.workflows.score import CrossValidated, groups_of


@dataclass(frozen=True)
class FrozenEmbeddings:
    """Some training and test texts embedded before fine-tuning, and a regression on them.

    Attributes:
        rows: positions of the texts in their split, by split, each of shape (n,).
        embeddings: by split, each of shape (n, hidden size).
        targets: class indices of all training texts, shape (training texts,).
        n_classes: number of classes.
    """

    rows: dict[str, np.ndarray]
    embeddings: dict[str, np.ndarray]
    targets: np.ndarray
    n_classes: int

    @classmethod
    def embed(cls, loaded: Loaded, parts: dict[str, Table], encoded: dict[str, Tokens], seed: int) -> FrozenEmbeddings:
        """Embed the texts of train and test, or `EMBEDDED` of each."""
        test = np.sort(np.random.default_rng(seed).permutation(len(parts["test"]))[:EMBEDDED])
        rows = {"train": draw_evenly(parts["train"].targets, EMBEDDED, seed=seed), "test": test}
        embeddings = {name: embed(loaded, encoded[name].take(some)) for name, some in rows.items()}
        return cls(rows, embeddings, parts["train"].targets, len(parts["train"].labels))

    def regress(self, which: np.ndarray | None = None) -> Regression:
        """Fit the regression to the training texts, or those that a mask, shape (training texts,), picks."""
        some = self.rows["train"]
        inside = np.ones(len(some), dtype=bool) if which is None else which[some]
        return fit_regression(self.embeddings["train"][inside], self.targets[some[inside]], n_classes=self.n_classes)


def baselines(
    parts: dict[str, Table],
    probabilities: np.ndarray,
    frozen: FrozenEmbeddings,
    seed: int,
    crossed: CrossValidated | None = None,
) -> dict[str, Any]:
    """Put the model's probabilities on test beside what one gets with less.

    Args:
        parts: the splits.
        probabilities: of the test texts, shape (n, classes).
        frozen: embeddings from before fine-tuning.
        seed: of folds and bootstrap.
        crossed: as for `score_splits`; without test texts the rivals are cross-validated as well.
    """
    train, test, rows = parts["train"], parts["test"], frozen.rows["test"]
    texts = {name: parts[name].frame["text"].to_numpy() for name in ("train", "test")}
    n_classes = len(test.labels)
    rounds = [(np.ones(len(train), dtype=bool), np.ones(len(test), dtype=bool))]
    if crossed is not None and not crossed.tested:
        rounds = [(crossed.fold != f, crossed.fold == f) for f in range(int(crossed.fold.max()) + 1)]
    kind = "test texts" if len(rounds) == 1 else "cross-validated texts"
    said, embedded = np.empty((len(test), n_classes)), np.empty((len(rows), n_classes))
    for inside, outside in rounds:
        words = bag_of_words(
            texts["train"][inside].tolist(),
            train.targets[inside],
            texts["test"][outside].tolist(),
            n_classes=n_classes,
            seed=seed,
        )
        said[outside] = words.probabilities
        there = outside[rows]
        embedded[there] = frozen.regress(inside).probabilities(frozen.embeddings["test"][there])

    def beside(rival: Baseline, table: Table, ours: np.ndarray, name: str) -> dict[str, Any]:
        predictions = ours.argmax(axis=1), rival.probabilities.argmax(axis=1)
        value, low, high = paired_difference(table.targets, *predictions, n_classes, seed=seed, groups=groups_of(table))
        return {
            "classifier": rival.classifier,
            "test": scalar_metrics(table.targets, rival.probabilities),
            "difference": {"metric": PRIMARY, "value": value, "interval": [low, high]},
            "verdict": verdict(value, low, high, len(table), rival=name, kind=kind),
        }

    bag, regression = Baseline(said, words.classifier), Baseline(embedded, "logistic regression")
    return {
        "majority_class": {
            "label_text": test.labels.texts[int(train.counts.argmax())],
            "test": scalar_metrics(test.targets, majority_class_probabilities(train.counts, len(test))),
        },
        "bag_of_words": beside(bag, test, probabilities, f"a bag of words with a {bag.classifier}"),
        "frozen_embeddings": {
            **beside(
                regression,
                test.take(rows),
                probabilities[rows],
                "a logistic regression on the frozen embeddings of the checkpoint",
            ),
            "texts": {name: len(some) for name, some in frozen.rows.items()},
        },
    }
