"""Train on the shares of the coders' votes, or on the label of the majority: cross-validation chooses.

Coders who disagree show how ambiguous a text is, and a model can learn that from soft labels (Peterson et al. 2019,
arXiv:1908.07086). If they disagree by mistake, the label of the majority is better (Uma et al. 2021,
doi:10.1613/jair.1.12752).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from bertsmith.data.table import SINGLE_LABEL, Table
from bertsmith.evaluation.baseline import FOLDS, REGRESSION_C
from bertsmith.evaluation.calibration import fit_temperature, scale
from bertsmith.evaluation.decision import stratified_folds
from bertsmith.folders.run import Run
from bertsmith.tasks.base import Task
from bertsmith.workflows.baselines import FrozenEmbeddings

SMALLEST = 1e-4
"""Lowest probability in the comparison. Otherwise, a class without training texts in a fold would decide alone."""


@dataclass(frozen=True)
class SoftLabels:
    """Which labels a regression on frozen embeddings learns better from, by cross-validation on the training texts.

    Attributes:
        used: whether the model is trained on soft labels.
        log_loss, macro_f1: of a regression fitted to the labels of the majority, and of one fitted to soft labels. The
            label of the majority is the truth.
        gain, gain_error: reduction of the log loss by soft labels, and its standard error.
        macro_f1_error: standard error of the difference in macro-F1.
    """

    used: bool
    log_loss: tuple[float, float]
    macro_f1: tuple[float, float]
    gain: float
    gain_error: float
    macro_f1_error: float


def choose_soft_labels(run: Run, train: Table, frozen: FrozenEmbeddings, seed: int) -> np.ndarray | None:
    """Choose between the votes of coders and their majority, and record the choice in ``run.json``.

    A resumed run uses its first choice.

    Args:
        run: the run.
        train: the n training texts.
        frozen: embeddings before fine-tuning.
        seed: of folds and resamples.

    Returns:
        Soft labels to train on, shape (n, classes); ``None`` for the labels of the majority.
    """
    shares = train.vote_shares
    if shares is None or train.task != SINGLE_LABEL:
        return None
    found = run.info.get("soft_labels")
    if found is None:
        rows = frozen.rows["train"]
        compared = compare_labels(frozen.features["train"], train.codes[rows], shares[rows], frozen.task, seed)
        disputed = int((shares.max(axis=1) < 1).sum())  # training texts with different labels by coder
        found = None if compared is None else {**asdict(compared), "disputed": disputed}
        run.update(soft_labels=found)
    return shares if found and found["used"] else None


def compare_labels(x: np.ndarray, majority: np.ndarray, shares: np.ndarray, task: Task, seed: int) -> SoftLabels | None:
    """Compare regressions on both kinds of labels, each with a fitted temperature as the final model has.

    Soft labels are used if they reduce the log loss by more than a standard error, and do not reduce macro-F1 by more
    than one.

    Args:
        x: embeddings of n texts, shape (n, hidden size).
        majority: class index of the majority, shape (n,).
        shares: share of the coders who gave each class, shape (n, classes).
        task: one class per text.
        seed: of folds and resamples.

    Returns:
        The comparison; ``None`` if a fold has a single class.
    """
    fold = stratified_folds(majority, seed, FOLDS)
    if any(len(np.unique(majority[fold != f])) < 2 for f in range(FOLDS)):
        return None
    hard = np.eye(shares.shape[1])[majority]
    scores = [_held_out(x, targets, majority, fold) for targets in (hard, shares)]
    losses = [-np.log(p[np.arange(len(p)), majority]) for p in scores]
    macro_f1 = [float(task.scalar_metrics(majority, p)["macro_f1"] or 0.0) for p in scores]
    gains = losses[0] - losses[1]
    gain, error = float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(len(gains)))
    f1_error = float(task.differences(majority, scores[1], scores[0], seed=seed).std())
    used = gain > error and macro_f1[1] - macro_f1[0] >= -f1_error
    means = float(losses[0].mean()), float(losses[1].mean())
    return SoftLabels(used, means, (macro_f1[0], macro_f1[1]), gain, error, f1_error)


def _held_out(x: np.ndarray, targets: np.ndarray, majority: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Return the probabilities of each text under a regression on the other folds, shape (n, classes).

    A text counts once for each of its labels, with the share of the label as its weight.
    """
    from sklearn.linear_model import LogisticRegression

    p = np.zeros(targets.shape)
    for f in range(FOLDS):
        inside, outside = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        row, label = np.nonzero(targets[inside])
        model = LogisticRegression(C=REGRESSION_C, max_iter=1000)
        model.fit(x[inside][row], label, sample_weight=targets[inside][row, label])
        p[np.ix_(outside, model.classes_)] = model.predict_proba(x[outside])
    p = np.maximum(p, SMALLEST)
    return scale(p, fit_temperature(majority, p))
