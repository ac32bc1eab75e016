"""One trial: fine-tune on the training texts, score on the validation texts. Trials never see the test texts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import gettempdir

import numpy as np
import pandas as pd
import torch

from bertsmith.compute.device import choose_precision
from bertsmith.config import Config
from bertsmith.data.table import Labels, Table
from bertsmith.data.template import texts_of
from bertsmith.errors import ConfigError
from bertsmith.events import Evaluated, Event, RolledBack
from bertsmith.inference.classifier import Classifier
from bertsmith.model import checkpoint
from bertsmith.model.load import LoadedModel
from bertsmith.model.tokens import Tokens
from bertsmith.tasks.base import Task
from bertsmith.tasks.registry import get_task
from bertsmith.training.arguments import training_arguments
from bertsmith.training.data import TokenDataset
from bertsmith.training.recipe import Recipe, steps_per_epoch
from bertsmith.training.trainer import Training
from bertsmith.workflows.baselines import FrozenEmbeddings
from bertsmith.workflows.fine_tune import fine_tune
from bertsmith.workflows.prepare import (
    MAX_EMBEDDED_TEXTS,
    choose_recipe,
    embed,
    initialize_head,
    prepare_model,
    sample_texts,
    with_labels,
)
from bertsmith.workflows.training_labels import TrainingLabels

LATENCY_TEXTS, LATENCY_WARMUP = 50, 5
MAX_VALIDATION_SHARE = 1 / 4
"""Validation texts per training text above which several evaluations per epoch would take too much time."""
OnScore = Callable[[float, float], None]
"""Called with the epoch, or the fold (from 1), and the validation score."""


@dataclass
class TrialData:
    """The texts that all trials share, and their token ids by model and by whether they are truncated.

    Attributes:
        train, validation: the texts.
        folds: with cross-validation, the fold of every text of both tables, shape (texts,); else ``None``.
        labels: without folds, the labels to train on, unless ``label_noise`` is off in a trial.
    """

    train: Table
    validation: Table
    folds: np.ndarray | None = None
    labels: TrainingLabels = field(default_factory=TrainingLabels)
    _tokens: dict[tuple[str, bool], Tokens] = field(default_factory=dict)
    _embeddings: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    @cached_property
    def task(self) -> Task:
        """The kind of label, fitted to the training texts."""
        return get_task(self.train.task).fitted(self.train.targets)

    def groups(self, fold: int | None) -> np.ndarray | None:
        """Return the group index of every validation text, or of every text of a fold; ``None`` without groups."""
        if fold is None or self.folds is None:
            return self.validation.groups
        both = pd.concat([self.train.frame["group"], self.validation.frame["group"]])
        return both.factorize()[0][self.folds == fold] if both.notna().all() else None

    def labels_for(self, config: Config) -> TrainingLabels:
        """Return the labels that a trial trains on."""
        return TrainingLabels(self.labels.soft) if config.label_noise == "off" else self.labels

    def prepare(self, config: Config, fold: int | None = None) -> tuple[LoadedModel, TokenDataset, TokenDataset]:
        """Return a model with a new head, and the tokenized texts to train and to validate on.

        Args:
            config: the settings.
            fold: with cross-validation, the fold to validate on.
        """
        found = checkpoint.resolve(config.model, allow_pickle=config.allow_pickle)
        texts = [text for part in (self.train, self.validation) for text in texts_of(part.frame)]
        train = np.arange(len(texts)) < len(self.train)
        task, template, encoded = self.task, self.train.columns.template, (config.model, config.long == "truncate")
        loaded, tokens = prepare_model(
            found, config, task, self.train.labels, texts, train, self._tokens.get(encoded), template=template
        )
        self._tokens[encoded] = tokens
        targets = np.concatenate([self.train.targets, self.validation.targets])
        if fold is not None and self.folds is not None:
            train = self.folds != fold
        if loaded.mean_pooling:
            key = (config.model, loaded.max_length)
            if key not in self._embeddings:
                codes = np.concatenate([self.train.codes, self.validation.codes])
                rows = sample_texts(codes, MAX_EMBEDDED_TEXTS, task=task, seed=config.seed)
                self._embeddings[key] = (rows, embed(loaded, tokens.take(rows)))
            rows, embeddings = self._embeddings[key]
            fitted, kept = train.copy(), self.labels_for(config).kept
            if kept is not None:
                fitted[: len(kept)] = kept
            inside, classes = fitted[rows], len(self.train.labels)
            initialize_head(loaded, task.fit_head(embeddings[inside], targets[rows[inside]], classes))

        def subset(mask: np.ndarray) -> TokenDataset:
            return TokenDataset.reading(
                tokens.take(np.flatnonzero(mask)), targets[mask], loaded.max_length, config.long
            )

        return loaded, subset(train), subset(~train)

    def embed(self, config: Config, loaded: LoadedModel) -> FrozenEmbeddings:
        """Embed the training texts with the model of `prepare`, from their beginnings, as `train` does."""
        rows = np.arange(len(self.train))
        tokens = self._tokens[config.model, config.long == "truncate"].take(rows)
        tables = {"train": self.train, "test": self.train.take(rows[:0])}
        return FrozenEmbeddings.embed(self.task, loaded, tables, {"train": tokens}, config.seed)


@dataclass(frozen=True)
class TrialResult:
    """The result of a trial.

    Attributes:
        score: of the best evaluation, without a decision rule. If a rule is used, its gain on texts that it was not
            tuned on is added. With cross-validation, the mean over the folds.
        curve: epoch (or fold, from 1) and `Task.validation_metrics` of every evaluation.
        latency: milliseconds for a single text, if measured.
        loaded: model with the weights of the best evaluation; ``None`` with cross-validation.
    """

    score: float
    curve: list[tuple[float, float]]
    latency: float | None
    loaded: LoadedModel | None


def run_trial(
    data: TrialData,
    config: Config,
    *,
    on_score: OnScore,
    stop: Callable[[], bool],
    measure_latency: bool = False,
    recipe: Recipe | None = None,
) -> TrialResult:
    """Fine-tune and score with the settings of a trial.

    Args:
        data: the texts.
        config: the settings.
        on_score: called with every score; may raise an exception to prune the trial.
        stop: called after every step; returns whether to stop.
        measure_latency: whether to measure the time for a single text.
        recipe: the training settings; by default, those that the settings and the texts give.

    Raises:
        Interrupted: if ``stop`` returned true.
        UserError: if training fails.
    """
    if data.folds is None:
        return _fit(data, config, None, on_score, stop, measure_latency, recipe)
    results = []
    for fold in range(int(data.folds.max()) + 1):
        results.append(_fit(data, config, fold, lambda at, score: None, stop, measure_latency, recipe))
        on_score(fold + 1, results[-1].score)
    latencies = [result.latency for result in results if result.latency is not None]
    return TrialResult(
        score=float(np.mean([result.score for result in results])),
        curve=[(float(fold), result.score) for fold, result in enumerate(results, 1)],
        latency=float(np.median(latencies)) if latencies else None,
        loaded=None,
    )


def _fit(
    data: TrialData,
    config: Config,
    fold: int | None,
    on_score: OnScore,
    stop: Callable[[], bool],
    measure_latency: bool,
    recipe: Recipe | None,
) -> TrialResult:
    loaded, train, validation = data.prepare(config, fold)
    task = data.task
    recipe = recipe or choose_recipe(config, task, loaded, train)
    train = with_labels(train, *data.labels_for(config))  # after the recipe, as `train` does
    arguments = training_arguments(recipe, config, Path(gettempdir()), loaded.device, task=task, saves=False)
    curve: list[tuple[float, float]] = []
    last_scores = np.empty(0)
    best_scores: np.ndarray | None = None

    def on_scores(scores: np.ndarray) -> None:
        nonlocal last_scores
        last_scores = scores

    def on_event(event: Event) -> None:
        nonlocal best_scores
        if isinstance(event, Evaluated):
            curve.append((event.epoch, event.metrics[task.primary]))
            if event.best:
                best_scores = last_scores
            on_score(event.epoch, event.metrics[task.primary])
        elif isinstance(event, RolledBack):  # to the start, because trials save no checkpoint
            curve.clear()

    training = Training(
        loaded, train, validation, arguments, recipe, task, emit=on_event, on_scores=on_scores, stop=stop
    )
    fine_tune(training, config, emit_contrastive=lambda event: None)
    if best_scores is None:
        raise ConfigError(
            "a trial ended before its first evaluation",
            where=f"training argument eval_steps={config.set.get('eval_steps')}",
            remedy="Remove eval_steps: bertsmith evaluates trials at fractions of an epoch.",
        )
    targets = validation.labels  # bool for label sets; a batch has numbers
    # The epoch metric of label sets already has the best thresholds, so the gain is added to the score without them.
    score = float(task.resampled(np.ones((1, len(targets))), targets, best_scores)[task.primary][0])
    if config.decision_rule == "auto":
        rule, _ = task.fit_rule(targets, best_scores, seed=config.seed, groups=data.groups(fold))
        score += rule.gain if rule.used else 0.0
    return TrialResult(
        score=score,
        curve=curve,
        latency=_measure_latency(loaded, validation.tokens, data.train.labels, task) if measure_latency else None,
        loaded=loaded if fold is None else None,
    )


def evaluation_steps(steps: int) -> int | None:
    """Return the steps between evaluations: 1/2 or 1/3 of those of an epoch, or ``None`` if no fraction is whole."""
    return next((steps // parts for parts in (2, 3) if steps % parts == 0), None)


def with_evaluation_steps(config: Config, data: TrialData, batch_size: int) -> Config:
    """Return settings that evaluate within epochs, unless this is slow or the user set how often."""
    if len(data.validation) > MAX_VALIDATION_SHARE * len(data.train):
        return config
    kept = data.labels_for(config).kept
    n_train = len(data.train) if kept is None else int(kept.sum())
    steps = evaluation_steps(steps_per_epoch(n_train, batch_size, config.set))
    whole_epochs = config.epochs is None or float(config.epochs).is_integer()
    if steps is None or not whole_epochs or "eval_strategy" in config.set or "eval_steps" in config.set:
        return config
    return config.model_copy(update={"set": {**config.set, "eval_strategy": "steps", "eval_steps": steps}})


def _measure_latency(loaded: LoadedModel, tokens: Tokens, labels: Labels, task: Task) -> float:
    """Return the median milliseconds of a prediction for a single text, from token ids to logits."""
    classifier = Classifier(loaded, labels, task)
    if choose_precision(loaded.device)[0] == "bf16":
        classifier.set_dtype(torch.bfloat16)
    seconds = []
    for i in range(LATENCY_WARMUP + LATENCY_TEXTS):
        text = tokens.take(np.array([i % len(tokens)]))
        start = time.perf_counter()
        classifier.logits_of(text)
        seconds.append(time.perf_counter() - start)
    return 1000 * float(np.median(seconds[LATENCY_WARMUP:]))
