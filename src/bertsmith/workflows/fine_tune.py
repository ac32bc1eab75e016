"""The stages of fine-tuning: with few texts, contrastive training comes before training on labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

from bertsmith.config import Config
from bertsmith.events import Finished, Listener
from bertsmith.model.load import Loaded
from bertsmith.tasks.base import Task
from bertsmith.training.arguments import training_arguments
from bertsmith.training.data import TokenDataset
from bertsmith.training.recipe import Recipe
from bertsmith.training.trainer import fit
from bertsmith.workflows.prepare import embed, initialize_head


@dataclass(frozen=True)
class Stages:
    """Contrastive training and the head that is fitted after it, before or instead of training on labels.

    Attributes:
        loaded: the model, with mean pooling.
        train: the training texts.
        task: the kind of label, fitted to the training texts.
        recipe: the recipe of the run.
        config: the settings.
    """

    loaded: Loaded
    train: TokenDataset
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
        """Run the contrastive stage if the recipe has one, then ``main``.

        Args:
            main: trains as the recipe says: on labels, or if ``contrastive`` is ``"only"``, on pairs of texts.
            emit: receives the events of the contrastive stage.
            stop: called after each step.
            resumed: whether ``main`` continues from a checkpoint, so that the contrastive stage is over.
        """
        if self.recipe.contrastive == "first" and not resumed:
            first = self.recipe.contrastive_stage(len(self.train))
            arguments = training_arguments(
                first, self.config, Path(gettempdir()), self.loaded.device, saves=False, validates=False
            )
            fit(
                self.loaded,
                self.train,
                self.train.empty(),
                arguments,
                recipe=first,
                task=self.task,
                emit=emit,
                user_arguments=self.config.set,
                stop=stop,
            )
            self._fit_head()
        finished = main()
        if self.recipe.contrastive == "only":
            self._fit_head()
        return finished

    def _fit_head(self) -> None:
        n_labels = self.loaded.model.config.num_labels
        embeddings = embed(self.loaded, self.train.tokens)
        initialize_head(self.loaded, self.task.fit_head(embeddings, self.train.labels, n_labels))
