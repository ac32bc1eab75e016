"""Features of texts for the test of label shift: what a text is about, how long it is, what the model makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TOPICS = 24
"""Most dimensions for what texts are about."""
TEXTS_PER_TOPIC = 10
MIN_ROWS_OF_WORD = 2


@dataclass(frozen=True)
class TextFeatures:
    """Computes features; fitted to texts that the test does not use again, because it would reject too often.

    Attributes:
        words: turns texts into weighted word counts; ``None`` with too few texts.
        topics: turns these into positions in a space of few dimensions (latent semantic analysis).
    """

    words: Any = None
    topics: Any = None

    @classmethod
    def fit(cls, texts: Sequence[str], seed: int = 0) -> TextFeatures:
        """Fit the topics to some texts."""
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        n_topics = min(TOPICS, len(texts) // TEXTS_PER_TOPIC)
        words = TfidfVectorizer(sublinear_tf=True, min_df=MIN_ROWS_OF_WORD)
        try:
            counts = words.fit_transform(texts)
        except ValueError:  # no word occurs twice
            return cls()
        n_topics = min(n_topics, counts.shape[1] - 1)
        return cls(words, TruncatedSVD(n_topics, random_state=seed).fit(counts)) if n_topics > 0 else cls()

    def __call__(self, texts: Sequence[str], probabilities: np.ndarray) -> np.ndarray:
        """Return the features of n texts with their probabilities (n, classes), shape (n, features)."""
        n_classes = probabilities.shape[1]
        predicted = np.eye(n_classes)[probabilities.argmax(axis=1)][:, :-1]
        lengths = np.log1p([len(text) for text in texts])
        columns = [predicted, probabilities.max(axis=1)[:, None], lengths[:, None]]
        if self.words is not None:
            columns.append(self.topics.transform(self.words.transform(texts)))
        return np.concatenate(columns, axis=1)
