"""Ensemble of the models of a run: the mean of their probabilities (Lakshminarayanan et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bertsmith.errors import RunFolderError
from bertsmith.evaluation.rule import Rule
from bertsmith.folders.run import Run
from bertsmith.inference.classifier import Classifier
from bertsmith.inference.predictor import Items, Predictor


class Ensemble(Predictor):
    """Averages the probabilities of the models of all seeds of a run.

    Attributes:
        members: the classifiers.
        labels: the classes.
        task: the kind of label.
    """

    def __init__(self, members: Sequence[Classifier]) -> None:
        self.members = list(members)
        first = self.members[0]
        self.labels, self.task, self.template = first.labels, first.task, first.template

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
        return cls([Classifier.load(member.path, device=device, decide=decide, long=long) for member in members])

    @property
    def rules(self) -> list[Rule]:
        """The rules of the members."""
        return [member.rule for member in self.members]

    def predict_proba(self, texts: Items, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Return the mean of the probabilities of the members; see `Predictor.predict_proba`."""
        texts = self.template.read(texts)
        tokens = self.members[0].encode(texts, truncate=False)
        result: np.ndarray = np.mean([m.probabilities_of(m.reuse_tokens(tokens, texts)) for m in self.members], axis=0)
        if progress:
            progress(len(result))
        return result
