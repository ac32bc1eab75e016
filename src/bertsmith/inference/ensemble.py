"""Ensemble of the models of a run: the mean of their probabilities (Lakshminarayanan et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from bertsmith.data.template import Texts
from bertsmith.errors import RunFolderError
from bertsmith.evaluation.rule import Rule
from bertsmith.folders.run import Run
from bertsmith.inference.abstain import HeldOutPredictions
from bertsmith.inference.classifier import Classifier
from bertsmith.inference.predictor import Items, Predictor, PredictProba
from bertsmith.model.tokens import Tokens


class Ensemble(Predictor):
    """Averages the probabilities of the models of all seeds of a run.

    Attributes:
        members: the classifiers.
        labels: the classes.
        task: the kind of label.
    """

    def __init__(self, members: Sequence[Classifier], run: Path | None = None) -> None:
        self.members, self.run = list(members), run
        first = self.members[0]
        self.labels, self.task, self.template, self.long = first.labels, first.task, first.template, first.long

    @classmethod
    def load(cls, run: Run, *, device: str = "auto", decide: bool = True, long: str = "auto") -> Ensemble:
        """Load the models of a run trained with several seeds.

        Raises:
            RunFolderError: if the run has only one model.
        """
        members = run.members
        if not members:
            raise RunFolderError(
                "the run has only one model, so it has no ensemble",
                where=str(run.path),
                remedy="Train with --seeds, such as --seeds 3.",
            )
        loaded = [Classifier.load(member.path, device=device, decide=decide, long=long) for member in members]
        return cls(loaded, run.path)

    def __repr__(self) -> str:
        return f"Ensemble({self.members})"

    @property
    def rules(self) -> list[Rule]:
        """The rules of the members."""
        return [member.rule for member in self.members]

    def held_out(self, *, test: bool = False, again: bool = True) -> HeldOutPredictions:
        """Return the predictions of all members; see `Predictor.held_out`."""
        each = [member.held_out(test=test, again=again) for member in self.members]
        return replace(each[0], scores=[scores for one in each for scores in one.scores])

    def prepare(self, texts: Items) -> tuple[PredictProba, int]:
        """Tokenize texts for the mean of the probabilities of the members; see `Predictor.prepare`."""
        texts, first = self.template.read(texts), self.members[0]
        tokens = first.encode(texts, truncate=False)
        return partial(self._mean, tokens, texts), int(first.read(tokens).is_truncated.sum())

    def _mean(self, tokens: Tokens, texts: Texts, progress: Callable[[int], None] | None = None) -> np.ndarray:
        result: np.ndarray = np.mean([m.probabilities_of(m.reuse_tokens(tokens, texts)) for m in self.members], axis=0)
        if progress:
            progress(len(result))
        return result
