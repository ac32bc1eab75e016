"""Linear baselines for sets of labels and for numbers, on TF-IDF features and on embeddings."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from bertsmith.data.template import Text
from bertsmith.evaluation.baseline import (
    ABSENT_CLASS_BIAS,
    FOLDS,
    MAX_CALIBRATION_TEXTS,
    REGRESSION_C,
    Baseline,
    LinearModel,
    svm_margins,
    tfidf_features,
)
from bertsmith.evaluation.multi_label import best_thresholds

RIDGE_ALPHAS = (0.3, 1.0, 3.0, 10.0)
EMBEDDING_ALPHAS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Strengths of the L2 penalty of the ridge regression on embeddings; leave-one-out errors choose."""


def bag_of_words_for_sets(train: Sequence[Text], targets: np.ndarray, texts: Sequence[Text], *, seed: int) -> Baseline:
    """Fit one linear SVM per label on TF-IDF features, and predict other texts.

    Cross-fitted margins of the training texts calibrate the margins (Platt 1999) and set a threshold per label for
    macro-F1, as for the model.

    Args:
        train: n training texts.
        targets: whether each text has each label, bool, shape (n, labels).
        texts: m texts to predict.
        seed: of the folds.
    """
    x, others = tfidf_features(train, texts)
    sample = np.random.default_rng(seed).permutation(len(targets))[:MAX_CALIBRATION_TEXTS]
    fold = np.arange(len(sample)) % FOLDS
    held_out = np.empty((len(sample), targets.shape[1]))
    for f in np.unique(fold):
        inside, outside = sample[fold != f], sample[fold == f]
        held_out[fold == f] = _margins(x[inside], targets[inside], x[outside])
    slope, intercept = np.transpose([_platt(m, t) for m, t in zip(held_out.T, targets[sample].T, strict=True)])
    logits = _margins(x, targets, others) * slope + intercept
    logits += best_thresholds(targets[sample], held_out * slope + intercept)
    return Baseline(1 / (1 + np.exp(-logits)), "linear SVM per label")


def _margins(x: Any, targets: np.ndarray, others: Any) -> np.ndarray:
    """Return the margins of other texts, shape (others, labels); −1 for labels without texts."""
    return np.stack([svm_margins(x, has_label, others, 2)[:, 1] for has_label in targets.T.astype(np.int64)], axis=1)


def _platt(margins: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Return slope and intercept of the logistic regression of a label on its margins."""
    from sklearn.linear_model import LogisticRegression

    if truth.all() or not truth.any():
        return 0.0, ABSENT_CLASS_BIAS if not truth.any() else -ABSENT_CLASS_BIAS
    model = LogisticRegression().fit(margins[:, None], truth)
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def bag_of_words_for_numbers(train: Sequence[Text], targets: np.ndarray, texts: Sequence[Text]) -> Baseline:
    """Fit a ridge regression on TF-IDF features, with a cross-validated penalty, and predict other texts.

    Args:
        train: n training texts.
        targets: numbers, shape (n,).
        texts: m texts to predict.
    """
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GridSearchCV, KFold

    x, others = tfidf_features(train, texts)
    ridge = Ridge(solver="sparse_cg", random_state=0)
    folds = KFold(min(FOLDS, len(targets)), shuffle=True, random_state=0)  # tables may be sorted by their numbers
    search = GridSearchCV(ridge, {"alpha": RIDGE_ALPHAS}, scoring="neg_mean_squared_error", cv=folds)
    return Baseline(search.fit(x, targets).predict(others)[:, None], "ridge regression")


def fit_set_regression(embeddings: np.ndarray, targets: np.ndarray) -> LinearModel:
    """Fit a logistic regression per label on embeddings.

    Args:
        embeddings: of n training texts, with values between −1 and 1, shape (n, hidden size).
        targets: whether each text has each label, bool, shape (n, labels). Labels without texts get bias
            `ABSENT_CLASS_BIAS`.
    """
    from sklearn.linear_model import LogisticRegression

    center = embeddings.mean(axis=0)
    weight, bias = np.zeros((targets.shape[1], embeddings.shape[1])), np.full(targets.shape[1], ABSENT_CLASS_BIAS)
    for c in np.flatnonzero(targets.any(axis=0)):
        if targets[:, c].all():
            bias[c] = -ABSENT_CLASS_BIAS
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few iterations suffice for a start
            model = LogisticRegression(C=REGRESSION_C, max_iter=200).fit(embeddings - center, targets[:, c])
        weight[c] = model.coef_[0]
        bias[c] = model.intercept_[0] - model.coef_[0] @ center
    return LinearModel(weight, bias)


def fit_ridge(embeddings: np.ndarray, targets: np.ndarray) -> LinearModel:
    """Fit a ridge regression on embeddings.

    Args:
        embeddings: of n training texts, shape (n, hidden size).
        targets: numbers, shape (n,).
    """
    from sklearn.linear_model import RidgeCV

    center = embeddings.mean(axis=0)
    model = RidgeCV(alphas=EMBEDDING_ALPHAS).fit(embeddings - center, targets)
    return LinearModel(model.coef_[None], np.array([model.intercept_ - model.coef_ @ center]))
