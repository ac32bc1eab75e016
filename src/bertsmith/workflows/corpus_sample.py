"""A random sample of a large corpus, and embeddings of its texts by the model of a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bertsmith.data.template import Text, Texts, flat, flat_texts
from bertsmith.folders.run import Run
from bertsmith.inference.classifier import Classifier
from bertsmith.inference.predictor import Predictor
from bertsmith.model.outputs import compute_embeddings

SIZE = 2000
"""Maximum number of texts in a sample, and of test and validation texts to compare it with."""


def validation_rows(frame: pd.DataFrame, test: Sequence[Text]) -> pd.DataFrame:
    """Return up to `SIZE` rows of validation predictions, without those of test texts."""
    known = {flat(text) for text in test}
    return frame[[text not in known for text in flat_texts(frame)]].iloc[:SIZE]


class CorpusSample:
    """A random sample of up to `SIZE` texts of a corpus, drawn while reading it.

    Attributes:
        texts: n texts.
        groups: their groups.
        scores: probabilities of their labels, or predicted numbers, shape (n, outputs).
    """

    def __init__(self, seed: int = 0) -> None:
        self._rng, self._keys = np.random.default_rng(seed), np.empty(0)
        self.texts: list[Text] = []
        self.groups: list[str] = []
        self.scores = np.empty((0, 0))

    def add(self, texts: Sequence[Text], scores: np.ndarray, groups: Sequence[str]) -> None:
        """Add n texts with their scores, shape (n, outputs), and groups; keep those with the lowest keys."""
        keys = np.concatenate([self._keys, self._rng.random(len(texts))])
        kept = np.sort(np.argsort(keys)[:SIZE])
        n = len(self.texts)
        self._keys = keys[kept]
        self.texts = [self.texts[i] if i < n else texts[i - n] for i in kept]
        self.groups = [self.groups[i] if i < n else groups[i - n] for i in kept]
        self.scores = np.concatenate([self.scores.reshape(n, scores.shape[1]), scores])[kept]


class Embedder:
    """Computes embeddings with the model of a run.

    Args:
        run: the run.
        classifier: the loaded classifier of the run, with any runtime.
        device: device of the model.
    """

    def __init__(self, run: Run, classifier: Predictor, device: str) -> None:
        self.run = run
        self.model = classifier if isinstance(classifier, Classifier) else Classifier.load(run.path, device=device)

    def embeddings(self, texts: Sequence[Text]) -> np.ndarray:
        """Return the mean of the last hidden states of n texts, cut at the maximum length, shape (n, hidden size)."""
        tokens = self.model.encode(Texts(texts), truncate=False).truncate(self.model.max_length)
        return compute_embeddings(self.model.loaded, tokens)

    def has_unknown(self, texts: Sequence[Text]) -> np.ndarray:
        """Return whether each text has unknown tokens, shape (n,)."""
        return self.model.encode(Texts(texts)).has_unknown
