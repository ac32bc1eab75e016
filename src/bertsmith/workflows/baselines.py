"""Baselines without fine-tuning, compared with the model on the test texts."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np

from bertsmith.data.table import Table
from bertsmith.data.template import texts_of
from bertsmith.evaluation.baseline import LinearModel, combine_pairs, verdict
from bertsmith.evaluation.evaluate import paired_difference
from bertsmith.model.load import LoadedModel
from bertsmith.model.tokenizer import encoder_for
from bertsmith.model.tokens import Tokens
from bertsmith.tasks.base import Task
from bertsmith.tasks.registry import get_task
from bertsmith.workflows.embeddings import regression_scores
from bertsmith.workflows.prepare import MAX_EMBEDDED_TEXTS, embed, sample_texts
from bertsmith.workflows.score import CrossValidation

MAX_COUNTED_TEXTS = 50_000
"""Training texts of the bag of words; each text of 200 words takes about 72 KiB of memory and 5 ms."""


@dataclass(frozen=True)
class FrozenEmbeddings:
    """Embeddings of training and test texts before fine-tuning.

    Attributes:
        rows: positions of the embedded texts in their split, by split, each of shape (n,).
        embeddings: embeddings by split, each of shape (n, hidden size).
        features: input of the baseline by split; the embeddings, or for pairs those of both segments, combined.
        task: the kind of label, fitted to the training texts.
        targets: of all training texts.
        n_labels: number of classes.
        mean_pooling: whether the head of the model begins as a regression on the embeddings.
        tokens_per_second: speed of the forward passes.
        groups: group of each training text; ``None`` without groups.
    """

    rows: dict[str, np.ndarray]
    embeddings: dict[str, np.ndarray]
    features: dict[str, np.ndarray]
    task: Task
    targets: np.ndarray
    n_labels: int
    mean_pooling: bool
    tokens_per_second: float
    groups: np.ndarray | None = None

    @classmethod
    def embed(
        cls,
        task: Task,
        loaded: LoadedModel,
        tables: dict[str, Table],
        tokens: dict[str, Tokens],
        seed: int,
        *,
        is_model: bool = False,
    ) -> FrozenEmbeddings:
        """Embed the training and test texts, at most `MAX_EMBEDDED_TEXTS` of each.

        If the regression is the model and not a baseline (``is_model``), embed all training texts and no test texts.
        """
        most = len(tables["train"]) if is_model else MAX_EMBEDDED_TEXTS
        n_test = 0 if is_model else MAX_EMBEDDED_TEXTS
        test = np.sort(np.random.default_rng(seed).permutation(len(tables["test"]))[:n_test])
        rows = {"train": sample_texts(tables["train"].codes, most, task=task, seed=seed), "test": test}
        chosen = {name: tokens[name].take(positions) for name, positions in rows.items() if len(positions)}
        start = time.perf_counter()
        embeddings = {name: embed(loaded, some) for name, some in chosen.items()}
        seconds = time.perf_counter() - start
        n_tokens = sum(int(some.truncate(loaded.max_length).truncated_lengths.sum()) for some in chosen.values())
        features = embeddings
        if tables["train"].columns.template.pair_column and not is_model:
            encoder, columns = encoder_for(loaded.tokenizer), loaded.columns
            features = {
                name: combine_pairs(
                    *(
                        embed(loaded, encoder.encode(segment, columns))
                        for segment in zip(*texts_of(tables[name].take(positions).frame), strict=True)
                    )
                )
                for name, positions in rows.items()
                if len(positions)
            }
        train, speed = tables["train"], n_tokens / seconds
        n_labels = len(train.labels)
        return cls(rows, embeddings, features, task, train.targets, n_labels, loaded.mean_pooling, speed, train.groups)

    def initial_head(self, mask: np.ndarray | None = None) -> LinearModel | None:
        """Fit a head to the training texts, or to those of a mask, shape (training texts,).

        Return ``None`` for a model whose head begins at random.
        """
        if not self.mean_pooling:
            return None
        rows = self.rows["train"]
        inside = np.ones(len(rows), dtype=bool) if mask is None else mask[rows]
        return self.task.fit_head(self.embeddings["train"][inside], self.targets[rows[inside]], self.n_labels)

    def baseline_scores(self, mask: np.ndarray, scored: np.ndarray, seed: int) -> np.ndarray:
        """Fit a regression to the training texts of a mask, and return its scores for test texts.

        For several labels and for ordered labels, a rule follows as for the model; see `regression_scores`.

        Args:
            mask: bool, shape (training texts,).
            scored: mask of the embedded test texts, bool, shape (embedded test texts,).
            seed: of the folds.
        """
        task, rows = self.task, self.rows["train"]
        inside = mask[rows]
        groups = None if self.groups is None else self.groups[rows[inside]]
        return regression_scores(
            task,
            self.features["train"][inside],
            self.targets[rows[inside]],
            self.features["test"][scored],
            self.n_labels,
            seed=seed,
            fit_rule=(lambda y, s: task.fit_rule(y, s, seed=seed, groups=groups)[1]) if task.needs_rule else None,
            groups=groups,
        )


def baselines(
    tables: dict[str, Table],
    scores: np.ndarray,
    frozen: FrozenEmbeddings,
    seed: int,
    cross_validation: CrossValidation | None = None,
) -> dict[str, Any]:
    """Score the baselines on the test texts, and compare the model with each.

    Args:
        tables: the texts by split.
        scores: of the model for the test texts, shape (n, outputs).
        frozen: embeddings before fine-tuning.
        seed: seed of folds and bootstrap.
        cross_validation: as for `score_splits`; without test texts, the baselines are cross-validated too.
    """
    train, test, rows = tables["train"], tables["test"], frozen.rows["test"]
    texts = {name: texts_of(tables[name].frame) for name in ("train", "test")}
    task, n_labels = get_task(test.task), len(test.labels)
    rounds = [(np.ones(len(train), dtype=bool), np.ones(len(test), dtype=bool))]
    if cross_validation is not None and not cross_validation.has_test:
        rounds = [(cross_validation.fold != f, cross_validation.fold == f) for f in range(cross_validation.n_folds)]
    kind = "test texts" if len(rounds) == 1 else "cross-validated texts"
    bag_scores, frozen_scores = np.empty((len(test), n_labels)), np.empty((len(rows), n_labels))
    for inside, outside in rounds:
        counted = np.flatnonzero(inside)
        counted = counted[sample_texts(train.codes[counted], MAX_COUNTED_TEXTS, task=task, seed=seed)]
        bag = task.bag_of_words(
            [texts["train"][int(i)] for i in counted],
            train.targets[counted],
            list(compress(texts["test"], outside)),
            n_labels,
            seed,
        )
        bag_scores[outside] = bag.scores
        if len(rows):
            frozen_scores[outside[rows]] = frozen.baseline_scores(inside, outside[rows], seed)

    def compare(classifier: str, baseline: np.ndarray, model: np.ndarray, table: Table, name: str) -> dict[str, Any]:
        difference = paired_difference(task, table.targets, model, baseline, seed=seed, groups=table.groups)
        return {
            "classifier": classifier,
            "test": task.scalar_metrics(table.targets, baseline),
            "difference": difference,
            "verdict": verdict(difference, len(table), metric=task.primary_name, rival=name, kind=kind),
        }

    naive, naive_scores = task.naive_baseline(train.targets, len(test), test.labels)
    result = {
        "majority_class": {"label_text": naive, "test": task.scalar_metrics(test.targets, naive_scores)},
        "bag_of_words": {
            **compare(bag.classifier, bag_scores, scores, test, f"a bag of words ({bag.classifier})"),
            "texts": {"train": min(len(train), MAX_COUNTED_TEXTS), "test": len(test)},
        },
    }
    if len(rows):
        result["frozen_embeddings"] = {
            **compare(
                task.head_name,
                frozen_scores,
                scores[rows],
                test.take(rows),
                f"frozen embeddings ({task.head_name})",
            ),
            "texts": {name: len(chosen) for name, chosen in frozen.rows.items()},
        }
    return result
