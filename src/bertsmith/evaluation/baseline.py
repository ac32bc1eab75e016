"""Was fine-tuning worth it? Two rivals trained in seconds: a bag of words, and a regression on frozen embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertsmith.evaluation.calibration import log_sum_exp
from bertsmith.evaluation.decision import folds
from bertsmith.evaluation.metrics import macro_f1

STRENGTH = 1.0
"""Inverse strength of the L2 penalty, ``C``."""
FOLDS = 3
EMBEDDING_STRENGTH = 0.1
"""The same of the regression on embeddings, whose values lie between −1 and 1."""
ABSENT = -5.0
"""Bias of a class without a training text in that regression."""
CALIBRATION_ROWS = 3000
"""Most texts that margins are cross-fitted on."""


@dataclass(frozen=True)
class Baseline:
    """The baseline's predictions.

    Attributes:
        probabilities: shape (texts, classes).
        classifier: the variant that won on the training texts, in words.
    """

    probabilities: np.ndarray
    classifier: str


def bag_of_words(
    train: Sequence[str], targets: np.ndarray, texts: Sequence[str], *, n_classes: int, seed: int
) -> Baseline:
    """Fit a linear SVM on TF-IDF features and predict other texts.

    The loss of a text is weighted by the inverse frequency of its class, since macro-F1 is compared. Softmax turns
    margins into probabilities, after a temperature alone or a temperature and an offset a class (bias-corrected
    temperature scaling, Alexandari et al. 2020, arXiv:1901.06852). Both are fitted on cross-fitted margins of the
    training texts; the variant with the higher macro-F1 there is used.

    Args:
        train: n training texts.
        targets: their class indices, shape (n,).
        texts: m texts to predict.
        n_classes: number of classes; those without a training text get probability 0.
        seed: of the folds.
    """
    vectorizer = features()
    x = vectorizer.fit_transform(train)
    classes, y = np.unique(targets, return_inverse=True)
    some = np.random.default_rng(seed).permutation(len(y))[:CALIBRATION_ROWS]
    held_out = _cross_fitted(x[some], y[some], len(classes), seed)
    margins = _margins(x, y, vectorizer.transform(texts), len(classes))
    variants = [_fit_softmax(held_out, y[some], with_offsets=which) for which in (False, True)]
    scores = [macro_f1(y[some], (held_out / t + b).argmax(axis=1)) for t, b in variants]
    best = int(np.argmax(scores))  # the simpler one of equals
    temperature, offsets = variants[best]
    probabilities = np.zeros((len(texts), n_classes))
    logits = margins / temperature + offsets
    probabilities[:, classes] = np.exp(logits - log_sum_exp(logits)[:, None])
    return Baseline(probabilities, ("linear SVM", "linear SVM with an offset a class")[best])


@dataclass(frozen=True)
class Regression:
    """A logistic regression.

    Attributes:
        weight: shape (classes, hidden size).
        bias: shape (classes,).
    """

    weight: np.ndarray
    bias: np.ndarray

    def probabilities(self, embeddings: np.ndarray) -> np.ndarray:
        """Return the probability of every class for n texts, shape (n, classes)."""
        logits = embeddings @ self.weight.T + self.bias
        result: np.ndarray = np.exp(logits - log_sum_exp(logits)[:, None])
        return result


def regression_on_embeddings(embeddings: np.ndarray, targets: np.ndarray, *, n_classes: int) -> Regression:
    """Fit a logistic regression on embeddings of the checkpoint before fine-tuning.

    The loss of a text is weighted by the inverse frequency of its class, as for `bag_of_words`.

    Args:
        embeddings: of n training texts, with values between −1 and 1, shape (n, hidden size).
        targets: their class indices, shape (n,), of two classes at least.
        n_classes: number of classes; one without a training text is hardly ever predicted.
    """
    from sklearn.linear_model import LogisticRegression

    center = embeddings.mean(axis=0)
    model = LogisticRegression(C=EMBEDDING_STRENGTH, class_weight="balanced", max_iter=1000)
    model.fit(embeddings - center, targets)
    found, biases = model.coef_, model.intercept_
    if len(found) == 1:
        found, biases = np.concatenate([-found, found]) / 2, np.concatenate([-biases, biases]) / 2
    weight, bias = np.zeros((n_classes, embeddings.shape[1])), np.full(n_classes, ABSENT)
    weight[model.classes_], bias[model.classes_] = found, biases - found @ center
    return Regression(weight, bias)


def _cross_fitted(x: Any, y: np.ndarray, n_classes: int, seed: int) -> np.ndarray:
    """Return the margins of every text under an SVM fitted without it, shape (texts, classes)."""
    margins = np.empty((len(y), n_classes))
    fold = folds(y, seed, FOLDS)
    for f in np.unique(fold):  # very few texts do not fill all folds
        inside, outside = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        margins[outside] = _margins(x[inside], y[inside], x[outside], n_classes)
    return margins


def _margins(x: Any, y: np.ndarray, others: Any, n_classes: int) -> np.ndarray:
    """Fit an SVM, one class against the rest, and return the margins of other texts, shape (others, classes).

    A class without a text has the margin −1, on the boundary of "not this class".
    """
    from sklearn.svm import LinearSVC

    margins = np.full((others.shape[0], n_classes), -1.0)
    seen = np.unique(y)
    if len(seen) < 2:
        margins[:, seen] = 1.0
        return margins
    model = LinearSVC(C=STRENGTH, class_weight="balanced", tol=0.1, random_state=0).fit(x, y)
    found = model.decision_function(others)
    margins[:, seen] = np.stack([-found, found], axis=1) if found.ndim == 1 else found
    return margins


def _fit_softmax(margins: np.ndarray, y: np.ndarray, *, with_offsets: bool) -> tuple[float, np.ndarray]:
    """Return the temperature and the offsets, shape (classes,), that make the classes most likely.

    Offsets have a standard normal prior, so that those of rare classes stay small.
    """
    from scipy.optimize import minimize

    n, n_classes = margins.shape
    rows, counts = np.arange(n), np.bincount(y, minlength=n_classes)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        scaled, offsets = np.exp(parameters[0]) * margins, parameters[1:]
        logits = scaled + offsets if with_offsets else scaled
        norm = log_sum_exp(logits)
        p = np.exp(logits - norm[:, None])
        slope = float((p * scaled).sum() - scaled[rows, y].sum())
        gradient = np.concatenate([[slope], p.sum(axis=0) - counts + offsets if with_offsets else offsets])
        return float((norm - logits[rows, y]).sum() + offsets @ offsets / 2) / n, gradient / n

    start = np.zeros(1 + n_classes if with_offsets else 1)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(-3, 3)] + [(None, None)] * (len(start) - 1)).x
    return float(np.exp(-found[0])), found[1:] if with_offsets else np.zeros(n_classes)


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
    rival: str = "a bag of words with a linear SVM",
    kind: str = "test texts",
    if_worse: str = ": use that, or label more texts",
) -> str:
    """Say in one sentence whether it was worth it, from the paired difference in macro-F1 and its 95 % interval."""
    interval = f"[{low:+.3f}, {high:+.3f}]"
    if low > 0:
        return f"better than {rival} by {difference:.3f} macro-F1 {interval}"
    if high < 0:
        return f"worse than {rival} by {-difference:.3f} macro-F1 {interval}{if_worse}"
    return f"not distinguishable from {rival} on {texts:,} {kind}: {difference:+.3f} macro-F1 {interval}"
