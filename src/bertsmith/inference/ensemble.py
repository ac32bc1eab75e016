"""Several models of one run, asked together: the mean of what they say (Lakshminarayanan et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bertsmith.errors import RunFolderError
from bertsmith.evaluation.rule import Rule
from bertsmith.folders.run import Run
from bertsmith.inference.classifier import Classifier
from bertsmith.inference.predictor import Predictor

if TYPE_CHECKING:
    import pandas as pd


class Ensemble(Predictor):
    """The models of all seeds of a run; its probabilities are the mean of theirs.

    Attributes:
        members: the classifiers.
        labels: the classes.
    """

    def __init__(self, members: Sequence[Classifier]) -> None:
        self.members = list(members)
        self.labels = self.members[0].labels

    @classmethod
    def load(cls, run: Run, *, device: str = "auto", decide: bool = True) -> Ensemble:
        """Load the models of a run trained with several seeds.

        Raises:
            RunFolderError: if the run has one model only.
        """
        members = run.members
        if not members:
            raise RunFolderError(
                "the run has one model only, so there is no ensemble",
                where=str(run.path),
                remedy="Train with --seeds, such as --seeds 3.",
            )
        return cls([Classifier.load(member.path, device=device, decide=decide) for member in members])

    @property
    def rules(self) -> list[Rule]:
        """Those of its members."""
        return [member.rule for member in self.members]

    def predict_proba(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Return the probability of every class for every text, shape (texts, classes); rows sum to 1."""
        tokens = self.members[0].encode(texts, whole=True)
        result: np.ndarray = np.mean([m.probabilities_of(m.own(tokens, texts)) for m in self.members], axis=0)
        if progress:
            progress(len(result))
        return result


def mean_probabilities(predictions: Sequence[pd.DataFrame]) -> np.ndarray:
    """Return the mean of the probabilities in several predictions for the same texts, shape (texts, classes)."""
    result: np.ndarray = np.mean([np.stack(frame["probabilities"].to_list()) for frame in predictions], axis=0)
    return result
