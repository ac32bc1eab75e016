"""Baselines without fine-tuning, compared with the model on the test texts."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np

from bertsmith.config import PRIMARY
from bertsmith.data.table import Table
from bertsmith.data.template import texts_of
from bertsmith.evaluation.baseline import Regression, bag_of_words, combine_pairs, fit_regression, verdict
from bertsmith.evaluation.intervals import paired_difference
from bertsmith.evaluation.metrics import majority_class_probabilities, scalar_metrics
from bertsmith.model.load import Loaded
from bertsmith.model.tokenizer import Tokens, encoder_for
from bertsmith.workflows.prepare import MAX_EMBEDDED_TEXTS, embed, sample_balanced
from bertsmith.workflows.score import CrossValidation, table_groups


@dataclass(frozen=True)
class FrozenEmbeddings:
    """Embeddings of training and test texts before fine-tuning.

    Attributes:
        rows: positions of the embedded texts in their split, by split, each of shape (n,).
        embeddings: embeddings by split, each of shape (n, hidden size).
        features: input of the baseline by split; the embeddings, or for pairs those of both segments, combined.
        targets: class indices of all training texts, shape (training texts,).
        n_classes: number of classes.
        tokens_per_second: speed of the forward passes.
    """

    rows: dict[str, np.ndarray]
    embeddings: dict[str, np.ndarray]
    features: dict[str, np.ndarray]
    targets: np.ndarray
    n_classes: int
    tokens_per_second: float

    @classmethod
    def embed(cls, loaded: Loaded, tables: dict[str, Table], tokens: dict[str, Tokens], seed: int) -> FrozenEmbeddings:
        """Embed the training and test texts, at most `MAX_EMBEDDED_TEXTS` of each."""
        test = np.sort(np.random.default_rng(seed).permutation(len(tables["test"]))[:MAX_EMBEDDED_TEXTS])
        rows = {"train": sample_balanced(tables["train"].targets, MAX_EMBEDDED_TEXTS, seed=seed), "test": test}
        chosen = {name: tokens[name].take(positions) for name, positions in rows.items()}
        start = time.perf_counter()
        embeddings = {name: embed(loaded, some) for name, some in chosen.items()}
        seconds = time.perf_counter() - start
        n_tokens = sum(int(some.truncate(loaded.max_length).truncated_lengths.sum()) for some in chosen.values())
        features = embeddings
        if tables["train"].columns.template.pair_column:
            encoder, columns = encoder_for(loaded.tokenizer), loaded.columns
            features = {
                name: combine_pairs(
                    *(
                        embed(loaded, encoder.encode(segment, columns))
                        for segment in zip(*texts_of(tables[name].take(positions).frame), strict=True)
                    )
                )
                for name, positions in rows.items()
            }
        targets, n_classes = tables["train"].targets, len(tables["train"].labels)
        return cls(rows, embeddings, features, targets, n_classes, n_tokens / seconds)

    def fit_regression(self, mask: np.ndarray | None = None, *, baseline: bool = False) -> Regression:
        """Fit a regression to the training texts, or to those of a mask, shape (training texts,).

        It is the initial head of a model, or else the ``baseline``, which reads `features`.
        """
        rows, features = self.rows["train"], (self.features if baseline else self.embeddings)["train"]
        inside = np.ones(len(rows), dtype=bool) if mask is None else mask[rows]
        return fit_regression(features[inside], self.targets[rows[inside]], n_classes=self.n_classes)


def baselines(
    tables: dict[str, Table],
    probabilities: np.ndarray,
    frozen: FrozenEmbeddings,
    seed: int,
    cross_validation: CrossValidation | None = None,
) -> dict[str, Any]:
    """Score the baselines on the test texts, and compare the model with each.

    Args:
        tables: the texts by split.
        probabilities: the model's probabilities for the test texts, shape (n, classes).
        frozen: embeddings before fine-tuning.
        seed: seed of folds and bootstrap.
        cross_validation: as for `score_splits`; without test texts, the baselines are cross-validated too.
    """
    train, test, rows = tables["train"], tables["test"], frozen.rows["test"]
    texts = {name: texts_of(tables[name].frame) for name in ("train", "test")}
    n_classes = len(test.labels)
    rounds = [(np.ones(len(train), dtype=bool), np.ones(len(test), dtype=bool))]
    if cross_validation is not None and not cross_validation.has_test:
        rounds = [(cross_validation.fold != f, cross_validation.fold == f) for f in range(cross_validation.n_folds)]
    kind = "test texts" if len(rounds) == 1 else "cross-validated texts"
    bag_probabilities, regression_probabilities = np.empty((len(test), n_classes)), np.empty((len(rows), n_classes))
    for inside, outside in rounds:
        bag = bag_of_words(
            list(compress(texts["train"], inside)),
            train.targets[inside],
            list(compress(texts["test"], outside)),
            n_classes=n_classes,
            seed=seed,
        )
        bag_probabilities[outside] = bag.probabilities
        scored, regression = outside[rows], frozen.fit_regression(inside, baseline=True)
        regression_probabilities[scored] = regression.probabilities(frozen.features["test"][scored])

    def compare(classifier: str, baseline: np.ndarray, model: np.ndarray, table: Table, name: str) -> dict[str, Any]:
        predictions = model.argmax(axis=1), baseline.argmax(axis=1)
        value, low, high = paired_difference(
            table.targets, *predictions, n_classes, seed=seed, groups=table_groups(table)
        )
        return {
            "classifier": classifier,
            "test": scalar_metrics(table.targets, baseline),
            "difference": {"metric": PRIMARY, "value": value, "interval": [low, high]},
            "verdict": verdict(value, low, high, len(table), rival=name, kind=kind),
        }

    return {
        "majority_class": {
            "label_text": test.labels.texts[int(train.counts.argmax())],
            "test": scalar_metrics(test.targets, majority_class_probabilities(train.counts, len(test))),
        },
        "bag_of_words": compare(
            bag.classifier, bag_probabilities, probabilities, test, f"a bag of words with a {bag.classifier}"
        ),
        "frozen_embeddings": {
            **compare(
                "logistic regression",
                regression_probabilities,
                probabilities[rows],
                test.take(rows),
                "a logistic regression on the frozen embeddings of the checkpoint",
            ),
            "texts": {name: len(chosen) for name, chosen in frozen.rows.items()},
        },
    }
