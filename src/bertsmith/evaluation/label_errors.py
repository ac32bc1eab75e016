"""Labels that are probably wrong: texts whose label a model that has not seen them finds hard to believe."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bertsmith.errors import DataError, MissingPackageError
from bertsmith.evaluation.baseline import features
from bertsmith.evaluation.decision import folds

FOLDS = 5
STRENGTH = 1e-4
"""Of the L2 penalty: of 1e-5, 3e-5 and 1e-4 it was the best on banking77 with a fifth of its labels flipped."""


def suspects(texts: Sequence[str], targets: np.ndarray, n_classes: int, *, seed: int) -> pd.DataFrame:
    """Find labels that are probably wrong, by confident learning (Northcutt et al. 2021, arXiv:1911.00068).

    Every fifth of the texts is labelled by a bag of words with logistic regression that was fitted on the other four;
    `cleanlab` says which labels that makes implausible. Classes with fewer texts than folds are left out.

    Args:
        texts: n texts.
        targets: class indices, shape (n,).
        n_classes: number of classes.
        seed: of the folds.

    Returns:
        The suspected labels, the least plausible first: ``position`` in ``texts``, ``suggested`` (class index), and the
        probabilities of the two, ``given_probability`` and ``suggested_probability``.

    Raises:
        MissingPackageError: if the package cleanlab is missing.
        DataError: if the texts are too few.
    """
    try:
        from cleanlab.filter import find_label_issues
    except ImportError as error:
        raise MissingPackageError("cleanlab", "finding label errors") from error
    from sklearn.linear_model import SGDClassifier

    enough = np.flatnonzero(np.bincount(targets, minlength=n_classes) >= FOLDS)
    kept = np.flatnonzero(np.isin(targets, enough))
    if len(enough) < 2:
        raise DataError(
            f"label errors cannot be told apart from rare classes: fewer than two classes have {FOLDS} texts or more",
            remedy="Give more labelled texts.",
        )
    y = np.searchsorted(enough, targets[kept])
    x = features().fit_transform([texts[int(i)] for i in kept])
    probabilities = np.zeros((len(kept), len(enough)))
    fold = folds(y, seed, FOLDS)
    for f in range(FOLDS):
        inside, outside = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        model = SGDClassifier(loss="log_loss", alpha=STRENGTH, max_iter=20, tol=1e-3, random_state=seed)
        probabilities[outside] = model.fit(x[inside], y[inside]).predict_proba(x[outside])
    ranked = find_label_issues(y, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    best = probabilities[ranked].argmax(axis=1)
    return pd.DataFrame(
        {
            "position": kept[ranked],
            "suggested": enough[best],
            "given_probability": probabilities[ranked, y[ranked]],
            "suggested_probability": probabilities[ranked, best],
        }
    )
