"""Probable label errors, by confident learning with cross-validated predictions of a bag of words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bertsmith.errors import DataError, MissingPackageError
from bertsmith.evaluation.baseline import tfidf_features
from bertsmith.evaluation.decision import stratified_folds

FOLDS = 5
ALPHA = 1e-4
"""Strength of the L2 penalty: the best of 1e-5, 3e-5 and 1e-4 on banking77 with a fifth of its labels flipped."""


def find_label_errors(texts: Sequence[str], targets: np.ndarray, n_classes: int, *, seed: int) -> pd.DataFrame:
    """Find labels that are probably wrong (confident learning, Northcutt et al. 2021, arXiv:1911.00068).

    Classes with fewer than `FOLDS` texts are left out.

    Args:
        texts: n texts.
        targets: class indices, shape (n,).
        n_classes: number of classes.
        seed: of the folds.

    Returns:
        One row per suspected label, least plausible first: ``position`` in ``texts``, ``suggested`` (class index),
        ``given_probability`` and ``suggested_probability``.

    Raises:
        MissingPackageError: if the package cleanlab is missing.
        DataError: if fewer than two classes have `FOLDS` texts.
    """
    try:
        from cleanlab.filter import find_label_issues
    except ImportError as error:
        raise MissingPackageError("cleanlab", "finding label errors") from error
    from sklearn.linear_model import SGDClassifier

    enough = np.flatnonzero(np.bincount(targets, minlength=n_classes) >= FOLDS)
    used = np.flatnonzero(np.isin(targets, enough))
    if len(enough) < 2:
        raise DataError(
            f"finding label errors needs at least two classes with {FOLDS} or more texts",
            remedy="Give more labelled texts.",
        )
    y = np.searchsorted(enough, targets[used])
    x = tfidf_features().fit_transform([texts[int(i)] for i in used])
    probabilities = np.zeros((len(used), len(enough)))
    fold = stratified_folds(y, seed, FOLDS)
    for f in range(FOLDS):
        inside, outside = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        model = SGDClassifier(loss="log_loss", alpha=ALPHA, max_iter=20, tol=1e-3, random_state=seed)
        probabilities[outside] = model.fit(x[inside], y[inside]).predict_proba(x[outside])
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
