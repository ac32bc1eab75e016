"""Estimate the gain of more labels of a project, and whether the labels are enough."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from bertsmith.config import Config
from bertsmith.evaluation.intervals import wilson
from bertsmith.evaluation.learning_curve import ExpectedGain, learning_curve, stopping_rule
from bertsmith.evaluation.multi_label import best_thresholds
from bertsmith.evaluation.rule import Rule
from bertsmith.labelling.pool import EMPTY, PoolFile, read_about
from bertsmith.labelling.project import PAUSE, Project
from bertsmith.labelling.table import Snapshot
from bertsmith.tasks.base import Task
from bertsmith.tasks.registry import get_task
from bertsmith.workflows.embeddings import head_features, regression_scores

MORE = 300
"""Number of further labels that an estimate considers."""
FEWEST_RANDOM, FEWEST_SHARED = 30, 30
"""Fewest random texts for a score, and fewest random texts with two coders for a ceiling."""


def estimate_project(project: Project, config: Config, more: int = MORE) -> ExpectedGain:
    """Estimate the gain of more labels, with the regression that chooses texts, and save it in the project.

    Args:
        project: a project whose pool is embedded.
        config: the seed.
        more: number of further labels, at most those that the pool has.
    """
    snapshot = Snapshot.of(project)
    pool = PoolFile(project.path, *read_about(project.path))
    rows, targets, random = snapshot.labelled_targets()
    more = min(more, max(int((pool.hashes != EMPTY).sum()) - len(rows), 0))
    seconds = [d.seconds for d in snapshot.decisions if 0 < d.seconds < PAUSE]
    sample = snapshot.random_part
    agreement, is_settled = sample.agreement.ceiling, all(each.labels is not None for each in sample.labelled)
    ceiling = None
    # The accuracy leaves out ties: if ties are left, it is too high.
    if agreement.value is not None and agreement.interval and agreement.texts >= FEWEST_SHARED and is_settled:
        ceiling = agreement.value, agreement.interval[1]
    found = estimate_gain(
        pool.read(rows),
        targets,
        random,
        get_task(snapshot.task),
        len(snapshot.labels),
        more,
        seed=config.seed,
        hours=float(np.median(seconds)) * more / 3600 if seconds else None,
        ceiling=ceiling,
    )
    project.set_settings({"estimate": found.to_dict()})
    return found


def estimate_gain(
    embeddings: np.ndarray,
    targets: np.ndarray,
    random: np.ndarray,
    task: Task,
    n_labels: int,
    more: int,
    *,
    seed: int,
    hours: float | None = None,
    ceiling: tuple[float, float] | None = None,
) -> ExpectedGain:
    """Estimate the gain of more labels.

    Args:
        embeddings: of n labelled texts, shape (n, hidden size).
        targets: their targets.
        random: whether each text was drawn at random, shape (n,).
        task: the kind of label.
        n_labels: number of labels.
        more: number of further labels.
        seed: of folds and resamples.
        hours: time for these labels.
        ceiling: share of random texts to which two coders gave the same labels, and its upper bound.
    """
    n, features = len(targets), head_features(embeddings)
    estimate = ExpectedGain(n, more, hours=hours, ceiling=ceiling, metric=task.primary_name, random=int(random.sum()))

    def predict(inside: np.ndarray, outside: np.ndarray) -> np.ndarray | None:
        counts = targets[inside].sum(axis=0) if targets.ndim == 2 else np.bincount(targets[inside])
        if (counts > 0).sum() < 2:
            return None
        return regression_scores(task, features[inside], targets[inside], features[outside], n_labels, seed=seed)

    def adjust(scores: np.ndarray, fold: np.ndarray) -> np.ndarray:
        for f in range(fold.max() + 1):
            others = (fold >= 0) & (fold != f)
            scores[fold == f] = task.apply(_thresholds(task, targets[others], scores[others]), scores[fold == f])
        return scores

    def score(drawn: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return task.resampled(drawn, targets, scores)[task.primary]

    with threadpool_limits(1):  # many small fits: one thread is faster than several
        rule = adjust if targets.ndim == 2 else None
        curve = learning_curve(n, predict, score, seed=seed, adjust=rule) if more else None
    if curve is not None:
        gain = curve.gain(n, more, seed=seed)
        estimate = replace(estimate, gain=gain.value, low=gain.low, high=gain.high, most=gain.most)
    found = score_on_random(features, targets, random, task, n_labels, seed=seed)
    if targets.ndim == 2:
        estimate = replace(estimate, accuracy_name="The share of texts whose labels are all correct")
    if found is not None:
        estimate = replace(estimate, accuracy=found[0], accuracy_low=found[1], accuracy_high=found[2])
    enough, reason = stopping_rule(estimate)
    return replace(estimate, enough=enough, reason=reason)


def score_on_random(
    features: np.ndarray, targets: np.ndarray, random: np.ndarray, task: Task, n_labels: int, *, seed: int
) -> tuple[float, float, float] | None:
    """Train on the chosen texts, and score the random ones, which represent the pool.

    Args:
        features: from `head_features`, shape (n, hidden size).
        targets, random, task, n_labels, seed: see `estimate_gain`.

    Returns:
        The accuracy (of sets: exact matches) and its 95 % interval (Wilson 1927), or ``None`` if the texts are too few.
        Unlike macro-F1, the accuracy on few texts is unbiased.
    """
    chosen, drawn_at_random = np.flatnonzero(~random), np.flatnonzero(random)
    counts = targets[chosen].sum(axis=0) if targets.ndim == 2 else np.bincount(targets[chosen], minlength=1)
    if len(drawn_at_random) < FEWEST_RANDOM or (counts > 0).sum() < 2:
        return None
    fit_rule = partial(_thresholds, task) if targets.ndim == 2 else None
    scores = regression_scores(
        task, features[chosen], targets[chosen], features[drawn_at_random], n_labels, seed=seed, fit_rule=fit_rule
    )
    right = task.is_right(targets[drawn_at_random], scores)
    return float(right.mean()), *wilson(right)


def _thresholds(task: Task, targets: np.ndarray, scores: np.ndarray) -> Rule:
    """Return a threshold per label, as the model has with several labels per text.

    Without thresholds, few labels exceed 0.5 after training on few texts: the curve would stay near 0.
    """
    return Rule(offsets=tuple(best_thresholds(targets, task.logits(scores)).tolist()))
