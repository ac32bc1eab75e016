"""One trial: fine-tune with its settings on the training texts, score on validation. The test texts are not here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING

import numpy as np

from bertsmith.config import PRIMARY, Config
from bertsmith.data.table import Table
from bertsmith.errors import ConfigError
from bertsmith.evaluation.baseline import fit_regression
from bertsmith.evaluation.decision import tune_offsets
from bertsmith.evaluation.metrics import validation_metrics
from bertsmith.events import Evaluated, Event
from bertsmith.model import checkpoint
from bertsmith.model.load import Loaded
from bertsmith.model.tokenizer import Tokens
from bertsmith.training.arguments import training_arguments
from bertsmith.training.collate import TokenDataset
from bertsmith.training.trainer import fit
from bertsmith.workflows.prepare import EMBEDDED, begin_head, choose_recipe, draw_evenly, embed, prepare_model

if TYPE_CHECKING:
    import torch

LATENCY_TEXTS, LATENCY_WARM = 50, 5
FEW_TO_SCORE = 1 / 4
"""Of the training texts: with more validation texts than that, to score more than once an epoch takes too much time."""
Heard = Callable[[float, float], None]
"""Is told the epoch, or the fold (from 1), and the validation score."""


@dataclass
class TrialData:
    """What all trials share: the texts, and their token ids by model.

    Attributes:
        train, validation: the texts; of the test split nothing is known here.
        folds: where there is cross-validation, the fold of every text of both, shape (texts,); else ``None``.
    """

    train: Table
    validation: Table
    folds: np.ndarray | None = None
    _tokens: dict[str, Tokens] = field(default_factory=dict)
    _embedded: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def ready(self, config: Config, fold: int | None = None) -> tuple[Loaded, TokenDataset, TokenDataset]:
        """Return a model with a new head, and the tokenized texts to train and to validate on.

        Args:
            config: the settings.
            fold: that is held out, with cross-validation.
        """
        found = checkpoint.resolve(config.model, allow_pickle=config.allow_pickle)
        texts = [text for part in (self.train, self.validation) for text in part.frame["text"]]
        train = np.arange(len(texts)) < len(self.train)
        known = self._tokens.get(config.model)
        loaded, tokens = prepare_model(found, config, self.train.labels, texts, train, known)
        self._tokens[config.model] = tokens
        tokens, targets = tokens.cut(loaded.max_length), np.concatenate([self.train.targets, self.validation.targets])
        if fold is not None and self.folds is not None:
            train = self.folds != fold
        if loaded.pooled:
            key = (config.model, loaded.max_length)
            if key not in self._embedded:
                rows = draw_evenly(targets, EMBEDDED, seed=config.seed)
                self._embedded[key] = (rows, embed(loaded, tokens.take(rows)))
            rows, embeddings = self._embedded[key]
            inside, classes = train[rows], len(self.train.labels)
            begin_head(loaded, fit_regression(embeddings[inside], targets[rows[inside]], n_classes=classes))

        def part(which: np.ndarray) -> TokenDataset:
            return TokenDataset(tokens.take(np.flatnonzero(which)), targets[which])

        return loaded, part(train), part(~train)


@dataclass(frozen=True)
class TrialResult:
    """What a trial has to show.

    Attributes:
        score: the best on validation, with what a decision rule adds on texts it was not tuned on, where one would be
            used; with cross-validation the mean over the folds.
        curve: the epoch (or the fold, from 1) and the score of every evaluation, without a rule.
        latency: of a single text, milliseconds, where asked for.
        loaded: the model with the weights of the best evaluation; ``None`` with cross-validation.
    """

    score: float
    curve: list[tuple[float, float]]
    latency: float | None
    loaded: Loaded | None


def run_trial(
    bench: TrialData, config: Config, *, heard: Heard, stop: Callable[[], bool], latency: bool = False
) -> TrialResult:
    """Fine-tune and score with some settings.

    Args:
        bench: the texts.
        config: the settings.
        heard: is told every score, and may raise to prune the trial.
        stop: asked after every step.
        latency: measure how long a single text takes.

    Raises:
        Interrupted: after ``stop`` said yes.
        UserError: if training goes wrong.
    """
    if bench.folds is None:
        return _fit(bench, config, None, heard, stop, latency)
    outcomes = []
    for fold in range(int(bench.folds.max()) + 1):
        outcomes.append(_fit(bench, config, fold, lambda at, score: None, stop, latency))
        heard(fold + 1, outcomes[-1].score)
    return TrialResult(
        score=float(np.mean([o.score for o in outcomes])),
        curve=[(float(fold), o.score) for fold, o in enumerate(outcomes, 1)],
        latency=float(np.median([o.latency for o in outcomes if o.latency is not None])) if latency else None,
        loaded=None,
    )


def _fit(
    bench: TrialData, config: Config, fold: int | None, heard: Heard, stop: Callable[[], bool], latency: bool
) -> TrialResult:
    loaded, train, validation = bench.ready(config, fold)
    recipe = choose_recipe(config, loaded, train)
    arguments = training_arguments(recipe, config, Path(gettempdir()), loaded.device, saves=False)
    best: list[Evaluated] = []
    curve: list[tuple[float, float]] = []
    weights: dict[str, torch.Tensor] = {}
    said: list[tuple[np.ndarray, np.ndarray]] = []

    def score(targets: np.ndarray, probabilities: np.ndarray) -> Mapping[str, float]:
        said[1:] = [(targets, probabilities)]
        return validation_metrics(targets, probabilities)

    def listen(event: Event) -> None:
        if isinstance(event, Evaluated):
            curve.append((event.epoch, event.metrics[PRIMARY]))
            if event.best:
                best[:], said[:] = [event], said[-1:]
                weights.update((name, w.detach().cpu().clone()) for name, w in loaded.model.state_dict().items())
            heard(event.epoch, event.metrics[PRIMARY])

    fit(
        loaded,
        train,
        validation,
        arguments,
        recipe=recipe,
        score=score,
        emit=listen,
        stop=stop,
        user_arguments=config.set,
    )
    if not best:
        raise ConfigError(
            "a trial ended before it was scored",
            where=f"--set eval_steps={config.set.get('eval_steps')}",
            remedy="Leave that out: trials are scored at fractions of an epoch.",
        )
    loaded.model.load_state_dict(weights)
    rule = tune_offsets(*said[0], seed=config.seed) if config.decision_rule == "auto" else None
    return TrialResult(
        score=best[0].metrics[PRIMARY] + (rule.gain if rule is not None and rule.used else 0.0),
        curve=curve,
        latency=_latency(loaded, validation) if latency else None,
        loaded=loaded if fold is None else None,
    )


def steps_between(texts: int, batch_size: int) -> int | None:
    """Return after how many steps a trial is scored: a half, a third or a quarter of an epoch, if one divides it."""
    steps = math.ceil(texts / batch_size)
    return next((steps // parts for parts in (2, 3, 4) if steps % parts == 0), None)


def scored_within_epochs(config: Config, bench: TrialData, batch_size: int) -> Config:
    """Return settings with evaluations within epochs, where they take little of the time.

    Args:
        config: the settings; how often to evaluate is left as it is if the user said so.
        bench: the texts.
        batch_size: texts a step.
    """
    if len(bench.validation) > FEW_TO_SCORE * len(bench.train):
        return config
    steps = steps_between(len(bench.train), batch_size)
    whole = config.epochs is None or float(config.epochs).is_integer()
    if steps is None or not whole or "eval_strategy" in config.set or "eval_steps" in config.set:
        return config
    return config.model_copy(update={"set": {**config.set, "eval_strategy": "steps", "eval_steps": steps}})


def _latency(loaded: Loaded, texts: TokenDataset) -> float:
    """Return the median time for one text at a time, from token ids to logits on its device, in milliseconds."""
    import torch

    loaded.model.eval()
    times = []
    with torch.inference_mode():
        for i in range(LATENCY_WARM + LATENCY_TEXTS):
            ids = torch.tensor([texts[i % len(texts)]["input_ids"].tolist()], device=loaded.device)
            began = time.perf_counter()
            loaded.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.cpu()
            times.append(time.perf_counter() - began)
    return 1000 * float(np.median(times[LATENCY_WARM:]))
