"""Fine-tuning with few texts: on pairs of texts first, see `bertsmith.training.contrastive`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

import numpy as np

from bertsmith.config import Config
from bertsmith.events import Finished, Listener
from bertsmith.model.load import Loaded
from bertsmith.model.tokens import Tokens
from bertsmith.tasks.base import Task
from bertsmith.training.arguments import training_arguments
from bertsmith.training.data import TokenDataset
from bertsmith.training.recipe import Recipe
from bertsmith.training.trainer import fit
from bertsmith.workflows.prepare import embed, initialize_head


@dataclass(frozen=True)
class PairTraining:
    """Training on pairs of texts, and the head that is fitted after it.

    Attributes:
        loaded: the model, with mean pooling.
        train: the training texts.
        tokens: their tokens.
        targets: their labels.
        task: the kind of label, fitted to the training texts.
        recipe: the recipe of the run.
        config: the settings.
    """

    loaded: Loaded
    train: TokenDataset
    tokens: Tokens
    targets: np.ndarray
    task: Task
    recipe: Recipe
    config: Config

    def run(
        self,
        main: Callable[[], Finished],
        *,
        emit: Listener,
        stop: Callable[[], bool],
        resumed: bool = False,
    ) -> Finished:
        """Train on pairs first if the recipe says so, then call ``main``, the training of the recipe.

        Args:
            main: trains on labels, or if the recipe has no other stage, on pairs.
            emit: receives the events of the first stage.
            stop: called after each step.
            resumed: whether ``main`` continues from a checkpoint, so that the first stage is over.
        """
        if self.recipe.pairs == "first" and not resumed:
            first = self.recipe.on_pairs(len(self.train))
            arguments = training_arguments(
                first, self.config, Path(gettempdir()), self.loaded.device, saves=False, validates=False
            )
            fit(
                self.loaded,
                self.train,
                TokenDataset(self.tokens.take(np.array([], dtype=np.int64)), self.targets[:0]),
                arguments,
                recipe=first,
                task=self.task,
                emit=emit,
                user_arguments=self.config.set,
                stop=stop,
            )
            self._fit_head()
        finished = main()
        if self.recipe.pairs == "only":
            self._fit_head()
        return finished

    def _fit_head(self) -> None:
        n_labels = self.loaded.model.config.num_labels
        initialize_head(self.loaded, self.task.fit_head(embed(self.loaded, self.tokens), self.targets, n_labels))
