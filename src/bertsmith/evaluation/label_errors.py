"""Probable label errors, by confident learning with cross-validated predictions of a regression on the texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from bertsmith.errors import DataError
from bertsmith.evaluation.decision import stratified_folds

FOLDS = 5
ALPHA = 1e-4
"""Strength of the L2 penalty on words: the best of 1e-5, 3e-5, 1e-4 on banking77 with a fifth of its labels flipped."""
EMBEDDING_C = 1.0
"""Inverse strength of the L2 penalty on embeddings; see benchmarks/LOG.md."""


def find_label_errors(
    featurize: Callable[[], Any], targets: np.ndarray, n_classes: int, *, seed: int, units: np.ndarray | None = None
) -> pd.DataFrame:
    """Find labels that may be wrong (confident learning, Northcutt et al. 2021, arXiv:1911.00068).

    Classes with fewer than `FOLDS` texts are left out; near-duplicates count once.

    Args:
        featurize: returns the features of n texts, TF-IDF (sparse) or embeddings of unit length, shape (n, features).
            It is called after all checks.
        targets: class indices, shape (n,).
        n_classes: number of classes.
        seed: of the folds.
        units: near-duplicates, as for `stratified_folds`. A copy with the same wrong label would make it plausible.

    Returns:
        One row per suspected label, least plausible first: ``position`` of the text, ``suggested`` (class index),
        ``given_probability`` and ``suggested_probability``.

    Raises:
        DataError: if fewer than two classes have `FOLDS` texts.
    """
    from cleanlab.filter import find_label_issues

    units = np.arange(len(targets)) if units is None else units
    enough = np.flatnonzero(np.bincount(_first(targets, units), minlength=n_classes) >= FOLDS)
    used = np.flatnonzero(np.isin(targets, enough))
    if len(enough) < 2:
        raise DataError(
            f"finding label errors needs at least two classes with {FOLDS} or more texts",
            remedy="Add labelled texts.",
        )
    y = np.searchsorted(enough, targets[used])
    probabilities = _cross_validated(featurize()[used], y, len(enough), seed, units[used])
    ranked = find_label_issues(y, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    best = probabilities[ranked].argmax(axis=1)
    return pd.DataFrame(
        {
            "position": used[ranked],
            "suggested": enough[best],
            "given_probability": probabilities[ranked, y[ranked]],
            "suggested_probability": probabilities[ranked, best],
        }
    )


def find_set_errors(
    featurize: Callable[[], Any], targets: np.ndarray, *, seed: int, units: np.ndarray | None = None
) -> pd.DataFrame:
    """Find label sets that may be wrong, by confident learning for each label.

    Labels that fewer than `FOLDS` texts have, or lack, are left as they are.

    Args:
        featurize, units: as for `find_label_errors`.
        targets: whether each text has each label, bool, shape (n, labels).
        seed: of the folds.

    Returns:
        As `find_label_errors`, with ``suggested`` as a bool row of ``targets``. The probabilities are those of the
        least certain label of each set.

    Raises:
        DataError: if no label has `FOLDS` texts.
    """
    from cleanlab.multilabel_classification.filter import find_label_issues

    units = np.arange(len(targets)) if units is None else units
    first = _first(targets, units)
    counts = first.sum(axis=0)
    used = np.flatnonzero(np.minimum(counts, len(first) - counts) >= FOLDS)
    if not len(used):
        raise DataError(
            f"finding label errors needs a label with at least {FOLDS} texts, and {FOLDS} texts without this label",
            remedy="Add labelled texts.",
        )
    if len(used) == 1:  # cleanlab needs at least two labels
        found = find_label_errors(featurize, targets[:, used[0]].astype(np.int64), 2, seed=seed, units=units)
        sets = targets[found["position"]]
        sets[:, used[0]] = found["suggested"]
        return found.assign(suggested=list(sets))
    features, given = featurize(), targets[:, used]
    classes = given.T.astype(np.int64)
    likely = np.stack([_cross_validated(features, truth, 2, seed, units)[:, 1] for truth in classes], axis=1)
    ranked = find_label_issues(
        [np.flatnonzero(row).tolist() for row in given], likely, return_indices_ranked_by="self_confidence", n_jobs=1
    )
    confidence = np.where(given, likely, 1 - likely)[ranked]
    suggested = likely[ranked] > 0.5
    same = (suggested == given[ranked]).all(axis=1)  # confident learning compares with typical probabilities, not 0.5
    suggested[same, confidence[same].argmin(axis=1)] ^= True
    sets = targets[ranked]
    sets[:, used] = suggested
    return pd.DataFrame(
        {
            "position": ranked,
            "suggested": list(sets),
            "given_probability": confidence.min(axis=1),
            "suggested_probability": np.where(suggested, likely[ranked], 1 - likely[ranked]).min(axis=1),
        }
    )


def _first(targets: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Return the targets of the first text of each unit, whose folds are stratified."""
    return targets[np.unique(units, return_index=True)[1]]


def _cross_validated(x: Any, y: np.ndarray, n_classes: int, seed: int, units: np.ndarray) -> np.ndarray:
    """Return probabilities of each text from a model that was not trained on it, shape (n, classes)."""
    from scipy.sparse import issparse
    from sklearn.linear_model import LogisticRegression, SGDClassifier

    if issparse(x):
        model = SGDClassifier(loss="log_loss", alpha=ALPHA, max_iter=20, tol=1e-3, random_state=seed)
    else:
        model = LogisticRegression(C=EMBEDDING_C, max_iter=1000)
    probabilities = np.zeros((len(y), n_classes))
    fold = stratified_folds(y, seed, FOLDS, units)
    for f in range(FOLDS):
        inside, outside = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        probabilities[outside] = model.fit(x[inside], y[inside]).predict_proba(x[outside])
    return probabilities
