"""Baselines that train in seconds: a bag of words, and a logistic regression on the checkpoint's frozen embeddings."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bertsmith.data.template import Text, segments
from bertsmith.data.texts import signed_interval
from bertsmith.evaluation.calibration import log_sum_exp, softmax
from bertsmith.evaluation.decision import stratified_folds

SVM_C = 1.0
REGRESSION_C = 0.1
"""Inverse strength of the L2 penalty of the regression on embeddings, whose values lie between −1 and 1."""
ABSENT_CLASS_BIAS = -5.0
FOLDS = 3
MAX_CALIBRATION_TEXTS = 3000


@dataclass(frozen=True)
class Baseline:
    """Predictions of a baseline.

    Attributes:
        scores: shape (texts, outputs).
        classifier: name of the variant used.
    """

    scores: np.ndarray
    classifier: str


def bag_of_words(
    train: Sequence[Text], targets: np.ndarray, texts: Sequence[Text], *, n_classes: int, seed: int
) -> Baseline:
    """Fit a linear SVM on TF-IDF features and predict other texts.

    Class weights are inverse to class frequency, because the comparison is by macro-F1. Softmax turns margins into
    probabilities, after a temperature or after bias-corrected temperature scaling (Alexandari et al. 2020,
    arXiv:1901.06852). Both are fitted on cross-fitted margins of the training texts. The variant with the higher
    macro-F1 on these is used. The features of a pair are those of its segments, and of `combine_pairs`.

    Args:
        train: n training texts or pairs.
        targets: their class indices, shape (n,).
        texts: m texts to predict.
        n_classes: number of classes; classes without training texts get probability 0.
        seed: of the folds.
    """
    from sklearn.metrics import f1_score

    x, others = tfidf_features(train, texts)
    classes, y = np.unique(targets, return_inverse=True)
    sample = np.random.default_rng(seed).permutation(len(y))[:MAX_CALIBRATION_TEXTS]
    held_out = _cross_fitted_margins(x[sample], y[sample], len(classes), seed)
    margins = svm_margins(x, y, others, len(classes))
    variants = [_fit_softmax(held_out, y[sample], with_offsets=use) for use in (False, True)]
    scores = [f1_score(y[sample], (held_out / t + b).argmax(axis=1), average="macro") for t, b in variants]
    best = int(np.argmax(scores))  # the simpler variant wins ties
    temperature, offsets = variants[best]
    probabilities = np.zeros((len(texts), n_classes))
    probabilities[:, classes] = softmax(margins / temperature + offsets)
    return Baseline(probabilities, ("linear SVM", "linear SVM with class offsets")[best])


@dataclass(frozen=True)
class LinearModel:
    """A fitted linear model, such as a logistic regression.

    Attributes:
        weight: shape (outputs, hidden size).
        bias: shape (outputs,).
    """

    weight: np.ndarray
    bias: np.ndarray

    def logits(self, embeddings: np.ndarray) -> np.ndarray:
        """Return logits of shape (n, outputs) for embeddings of shape (n, hidden size)."""
        return embeddings @ self.weight.T + self.bias


def fit_regression(embeddings: np.ndarray, targets: np.ndarray, *, n_classes: int) -> LinearModel:
    """Fit a logistic regression on embeddings, with class weights inverse to class frequency.

    Args:
        embeddings: of n training texts, with values between −1 and 1, shape (n, hidden size).
        targets: their class indices, shape (n,), with at least two classes.
        n_classes: number of classes; classes without training texts get bias `ABSENT_CLASS_BIAS`.
    """
    from sklearn.linear_model import LogisticRegression

    center = embeddings.mean(axis=0)
    model = LogisticRegression(C=REGRESSION_C, class_weight="balanced", max_iter=1000)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The number of unique classes")  # normal with few texts per class
        model.fit(embeddings - center, targets)
    coefficients, biases = model.coef_, model.intercept_
    if len(coefficients) == 1:  # two classes: scikit-learn fits one row
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        biases = np.concatenate([-biases, biases]) / 2
    weight, bias = np.zeros((n_classes, embeddings.shape[1])), np.full(n_classes, ABSENT_CLASS_BIAS)
    weight[model.classes_], bias[model.classes_] = coefficients, biases - coefficients @ center
    return LinearModel(weight, bias)


def _cross_fitted_margins(x: Any, y: np.ndarray, n_classes: int, seed: int) -> np.ndarray:
    """Return the margins of each text under an SVM fitted on the other folds, shape (texts, classes)."""
    margins = np.empty((len(y), n_classes))
    fold = stratified_folds(y, seed, FOLDS)
    for f in np.unique(fold):  # fewer than `FOLDS` if the texts are very few
        inside, outside = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        margins[outside] = svm_margins(x[inside], y[inside], x[outside], n_classes)
    return margins


def svm_margins(x: Any, y: np.ndarray, others: Any, n_classes: int) -> np.ndarray:
    """Fit a one-vs-rest SVM to class indices, and return the margins of other texts, shape (others, classes).

    Classes without training texts get margin −1, the boundary of "not this class".
    """
    from sklearn.svm import LinearSVC

    margins = np.full((others.shape[0], n_classes), -1.0)
    seen = np.unique(y)
    if len(seen) < 2:
        margins[:, seen] = 1.0
        return margins
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The number of unique classes")  # normal with few texts per class
        model = LinearSVC(C=SVM_C, class_weight="balanced", tol=0.1, random_state=0).fit(x, y)
    found = model.decision_function(others)
    margins[:, seen] = np.stack([-found, found], axis=1) if found.ndim == 1 else found
    return margins


def _fit_softmax(margins: np.ndarray, y: np.ndarray, *, with_offsets: bool) -> tuple[float, np.ndarray]:
    """Return the maximum-likelihood temperature and class offsets, shape (classes,).

    A standard normal prior keeps the offsets of rare classes small.
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


def tfidf_features(train: Sequence[Text], texts: Sequence[Text]) -> tuple[Any, Any]:
    """Return the TF-IDF features of training texts and of other texts, sparse, each of shape (texts, features)."""
    vectorizer = tfidf_vectorizer()

    def features(texts: Sequence[Text]) -> Any:
        parts = [vectorizer.transform(part) for part in zip(*map(segments, texts), strict=True)]
        return combine_pairs(*parts) if len(parts) == 2 else parts[0]

    if isinstance(train[0], str):
        return vectorizer.fit_transform(train), features(texts)
    vectorizer.fit([segment for text in train for segment in segments(text)])
    return features(train), features(texts)


def combine_pairs(a: Any, b: Any) -> Any:
    """Return the features of pairs: both segments, their product and their distance (Conneau et al. 2017).

    Args:
        a, b: the features of the segments, arrays or sparse matrices of shape (n, k).

    Returns:
        Features of shape (n, 4k).
    """
    if isinstance(a, np.ndarray):
        return np.hstack([a, b, a * b, abs(a - b)])
    from scipy.sparse import hstack

    return hstack([a, b, a.multiply(b), abs(a - b)], format="csr")


def tfidf_vectorizer() -> Any:
    """Return an unfitted TF-IDF vectorizer of word 1- and 2-grams, and of character 2- to 4-grams within words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    return make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=50_000, token_pattern=r"\w+|[^\w\s]"),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, max_features=50_000),
    )


def verdict(
    difference: Mapping[str, Any],
    texts: int,
    *,
    metric: str = "macro-F1",
    rival: str = "a bag of words with a linear SVM",
    kind: str = "test texts",
    if_worse: str = ". Label more texts, or use a scikit-learn model instead",
) -> str:
    """Phrase a `paired_difference` as a sentence that follows "The model is"."""
    value, (low, high) = difference["value"], difference["interval"] or (0, 0)
    interval = signed_interval(difference["interval"])
    if low > 0:
        return f"better than {rival} by {value:.3f} {metric} {interval}"
    if high < 0:
        return f"worse than {rival} by {-value:.3f} {metric} {interval}{if_worse}"
    return f"not distinguishable from {rival} on {texts:,} {kind}: {value:+.3f} {metric} {interval}"
