"""Was BERT worth it? A bag of words and character n-grams with logistic regression, trained in seconds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertsmith.evaluation.metrics import macro_f1

GRID = (1.0, 10.0, 100.0)
"""Inverse strengths of the L2 penalty to choose from."""
FOLDS = 3
CHOICE_ROWS = 3000
"""Most texts that the strength is chosen on."""


@dataclass(frozen=True)
class Baseline:
    """What the baseline says of some texts.

    Attributes:
        probabilities: shape (texts, classes).
        c: the inverse strength chosen by cross-validation.
    """

    probabilities: np.ndarray
    c: float


def tfidf_logistic_regression(
    train: Sequence[str], targets: np.ndarray, texts: Sequence[str], *, n_classes: int, seed: int
) -> Baseline:
    """Fit on the training texts and predict others; the strength is chosen by cross-validation on train alone.

    Args:
        train: n training texts.
        targets: their class indices, shape (n,).
        texts: m texts to predict.
        n_classes: number of classes; those without a training text get probability 0.
        seed: of the folds.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import KFold

    words = features()

    def fitted(c: float, x: np.ndarray, y: np.ndarray) -> LogisticRegression:
        return LogisticRegression(C=c, max_iter=100, tol=1e-3).fit(x, y)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # close enough: it is a yardstick
        x = words.fit_transform(train).astype(np.float32)
        rng = np.random.default_rng(seed)
        some = rng.permutation(len(train))[:CHOICE_ROWS]
        scores = dict.fromkeys(GRID, 0.0)
        for inside, outside in KFold(min(FOLDS, len(some))).split(some):
            rows, others = some[inside], some[outside]
            if len(np.unique(targets[rows])) < 2:
                continue
            for c in GRID:
                scores[c] += macro_f1(targets[others], fitted(c, x[rows], targets[rows]).predict(x[others]))
        best = max(GRID, key=scores.__getitem__)
        model = fitted(best, x, targets)
        probabilities = np.zeros((len(texts), n_classes))
        probabilities[:, model.classes_] = model.predict_proba(words.transform(texts).astype(np.float32))
    return Baseline(probabilities, best)


def features() -> Any:
    """Return an unfitted bag of words, pairs of words, and characters in twos to fours within words, by TF-IDF."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    return make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=50_000, token_pattern=r"\w+|[^\w\s]"),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, max_features=50_000),
    )


def verdict(
    difference: float,
    low: float,
    high: float,
    texts: int,
    *,
    rival: str = "a bag of words with logistic regression",
    if_worse: str = ": use that, or train longer",
) -> str:
    """Say in one sentence whether it was worth it, from the paired difference in macro-F1 and its 95 % interval."""
    interval = f"[{low:+.3f}, {high:+.3f}]"
    if low > 0:
        return f"better than {rival} by {difference:.3f} macro-F1 {interval}"
    if high < 0:
        return f"worse than {rival} by {-difference:.3f} macro-F1 {interval}{if_worse}"
    return f"not distinguishable from {rival} on {texts:,} test texts: {difference:+.3f} macro-F1 {interval}"
