"""The labels to train on: those that a regression on frozen embeddings learns best from, by cross-validation.

Coders who disagree show how ambiguous a text is, and a model can learn that from soft labels (Peterson et al. 2019,
arXiv:1908.07086). If they disagree by mistake, the label of the majority is better (Uma et al. 2021,
doi:10.1613/jair.1.12752).

Without votes of coders, some labels may be wrong. Confident learning finds suspects (Northcutt et al. 2021,
arXiv:1911.00068). Training leaves them out if regressions without the suspects agree better with the given labels of
held-out texts. Some of these are wrong too, but the better model agrees with more of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from bertsmith.config import Config
from bertsmith.data.split import inseparable_groups
from bertsmith.data.table import SINGLE_LABEL, Table
from bertsmith.evaluation.baseline import FOLDS, REGRESSION_C
from bertsmith.evaluation.calibration import fit_temperature, softmax, to_logits
from bertsmith.evaluation.decision import stratified_folds
from bertsmith.evaluation.evaluate import paired_differences
from bertsmith.evaluation.label_errors import FOLDS as SEARCH_FOLDS
from bertsmith.evaluation.label_errors import find_label_errors
from bertsmith.folders.run import Run
from bertsmith.folders.study import Study
from bertsmith.tasks.base import Task
from bertsmith.workflows.baselines import FrozenEmbeddings
from bertsmith.workflows.prepare import MAX_EMBEDDED_TEXTS, Splits

SMALLEST = 1e-4
"""Lowest probability in the comparison. Otherwise, a class without training texts in a fold would decide alone."""
MIN_TEXTS = 300
"""With fewer training texts, the search for label errors is off."""
MIN_TEXTS_PER_CLASS = 20
"""Likewise with fewer texts per class on average: on banking77, leaving suspects out did harm in all trials."""
RIGID_C = 3.0
"""Inverse penalty of the rigid regression, for embeddings of length 1."""


class TrainingLabels(NamedTuple):
    """The labels to train on.

    Attributes:
        soft: soft labels, shape (texts, classes); ``None`` to train on the given labels.
        kept: mask of the texts to train on, shape (texts,); ``None`` for all.
    """

    soft: np.ndarray | None = None
    kept: np.ndarray | None = None


def choose_training_labels(
    run: Run | Study, splits: Splits, embed: Callable[[], FrozenEmbeddings], config: Config
) -> TrainingLabels:
    """Choose the labels to train on, and record the choice in ``run.json`` or ``study.json``.

    A resumed run or study uses its first choice. In a study that an older version began without a choice, trials
    continue with the given labels. With cross-validation, bertsmith does not search for suspects, because the labels of
    a held-out fold would have an influence on the others.

    Args:
        run: the run or study.
        splits: the texts; those of the train split have one label each.
        embed: returns embeddings before fine-tuning; called if the choice depends on them.
        config: the settings.
    """
    train = splits.scored_tables["train"]
    if train.task != SINGLE_LABEL:
        return TrainingLabels()
    is_begun = isinstance(run, Study) and run.is_begun  # first: another process may choose and begin meanwhile
    info, n_classes = run.info, len(train.labels)
    if is_begun and not {"soft_labels", "label_noise"} & info.keys():
        return TrainingLabels()
    units = inseparable_groups(splits.cleaned, config)[splits.rows["train"]]
    if train.vote_shares is not None:
        if config.effort == "quick":
            return TrainingLabels()
        return TrainingLabels(_choose_soft_labels(run, train, train.vote_shares, units, embed, config.seed))
    settings = info["config"] if isinstance(run, Run) else info["searched"]["settings"]
    is_off = settings.get("label_noise", "off") == "off"  # also for a resumed run of an older version
    if is_off or splits.n_folds or not MIN_TEXTS <= len(train) <= MAX_EMBEDDED_TEXTS:
        return TrainingLabels()
    found, is_chosen = info.get("label_noise"), "label_noise" in info
    if not ((found and found["used"]) if is_chosen else len(train) >= MIN_TEXTS_PER_CLASS * n_classes):
        return TrainingLabels()
    frozen = embed()
    x, y = frozen.features["train"], train.codes
    if not is_chosen:
        compared = compare_without_suspects(x, y, units, n_classes, frozen.task, config.seed)
        found = None if compared is None else asdict(compared)
        run.update(label_noise=found)
    if not (found and found["used"]):
        return TrainingLabels()
    suspects = find_suspects(x, y, units, n_classes, config.seed)["position"]
    return TrainingLabels(kept=~np.isin(np.arange(len(y)), suspects))


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


@dataclass(frozen=True)
class LabelNoise:
    """Whether training leaves out texts with a label that is probably wrong, by cross-validation.

    Attributes:
        used: whether they are left out.
        suspects: number of these texts.
        accuracy, macro_f1: agreement with the given labels of held-out texts: of a regression fitted to all labels, and
            of one fitted without the suspects.
        gain_error: standard error of the gain in accuracy.
        rigid_gain, rigid_error: gain in accuracy of regressions with a strong penalty, and its standard error.
    """

    used: bool
    suspects: int
    accuracy: tuple[float, float]
    macro_f1: tuple[float, float]
    gain_error: float
    rigid_gain: float
    rigid_error: float


def _choose_soft_labels(
    run: Run | Study,
    train: Table,
    shares: np.ndarray,
    units: np.ndarray,
    embed: Callable[[], FrozenEmbeddings],
    seed: int,
) -> np.ndarray | None:
    """Choose between the votes of coders and their majority; ``None`` for the labels of the majority."""
    found = run.info.get("soft_labels")
    if "soft_labels" not in run.info:
        frozen = embed()
        rows = frozen.rows["train"]
        compared = compare_labels(
            frozen.features["train"], train.codes[rows], shares[rows], units[rows], frozen.task, seed
        )
        disputed = int((shares.max(axis=1) < 1).sum())  # training texts with different labels by coder
        found = None if compared is None else {**asdict(compared), "disputed": disputed}
        run.update(soft_labels=found)
    return shares if found and found["used"] else None


def compare_labels(
    x: np.ndarray, majority: np.ndarray, shares: np.ndarray, units: np.ndarray, task: Task, seed: int
) -> SoftLabels | None:
    """Compare regressions on both kinds of labels, each with a fitted temperature as the final model has.

    Soft labels are used if they reduce the log loss by more than a standard error, and do not reduce macro-F1 by more
    than one.

    Args:
        x: embeddings of n texts, shape (n, hidden size).
        majority: class index of the majority, shape (n,).
        shares: share of the coders who gave each class, shape (n, classes).
        units: near-duplicates, as for `stratified_folds`, shape (n,).
        task: one class per text.
        seed: of folds and resamples.

    Returns:
        The comparison; ``None`` if a fold has a single class.
    """
    fold = stratified_folds(majority, seed, FOLDS, units)
    if any(len(np.unique(majority[fold != f])) < 2 for f in range(FOLDS)):
        return None
    hard = np.eye(shares.shape[1])[majority]
    scores = [_held_out(x, targets, majority, fold) for targets in (hard, shares)]
    losses = [-np.log(p[np.arange(len(p)), majority]) for p in scores]
    macro_f1 = [float(task.scalar_metrics(majority, p)["macro_f1"] or 0.0) for p in scores]
    gains = losses[0] - losses[1]
    gain, error = float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(len(gains)))
    f1_error = float(paired_differences(task, majority, scores[1], scores[0], seed=seed)[1].std())
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
    return softmax(to_logits(p) / fit_temperature(majority, p))


def compare_without_suspects(
    x: np.ndarray, y: np.ndarray, units: np.ndarray, n_classes: int, task: Task, seed: int
) -> LabelNoise | None:
    """Compare regressions on all labels and on the plausible ones.

    Training leaves the suspects out if accuracy grows by more than a standard error, and macro-F1 does not fall. A
    flexible model can gain without suspects that are right but hard, and a rigid model then does not. So the accuracy
    of a regression with a strong penalty must grow by more than a standard error, too.

    Args:
        x: embeddings of n texts, shape (n, hidden size).
        y: their given class indices, shape (n,).
        units: near-duplicates, as for `stratified_folds`, shape (n,).
        n_classes: number of classes.
        task: one class per text.
        seed: of the folds.

    Returns:
        The comparison; ``None`` if fewer than two classes have enough texts to search for label errors.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.preprocessing import normalize

    first = np.unique(units, return_index=True)[1]
    if (np.bincount(y[first]) >= 2 * SEARCH_FOLDS).sum() < 2:  # so that enough of them are outside of each fold
        return None
    unit, fold = normalize(x), stratified_folds(y, seed, FOLDS, units)
    predicted = np.zeros((2, 2, len(y)), dtype=np.int64)  # flexible or rigid, all or plausible labels
    for f in range(FOLDS):
        inside, outside = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        suspects = find_suspects(x[inside], y[inside], units[inside], n_classes, seed)["position"]
        plausible = np.delete(inside, suspects)
        for i, rows in enumerate((inside, plausible)):
            predicted[0, i, outside] = task.fit_head(x[rows], y[rows], n_classes).logits(x[outside]).argmax(axis=1)
            rigid = LogisticRegression(C=RIGID_C, max_iter=1000).fit(unit[rows], y[rows])
            predicted[1, i, outside] = rigid.predict(unit[outside])
    right = predicted == y
    gains = right[:, 1].astype(np.float64) - right[:, 0]
    gain, error = gains.mean(axis=1), gains.std(axis=1, ddof=1) / np.sqrt(len(y))
    f1 = [float(f1_score(y, some, average="macro")) for some in predicted[0]]
    used = bool((gain > error).all() and f1[1] >= f1[0])
    accuracy = float(right[0, 0].mean()), float(right[0, 1].mean())
    n_suspects = len(find_suspects(x, y, units, n_classes, seed))
    return LabelNoise(used, n_suspects, accuracy, (f1[0], f1[1]), float(error[0]), float(gain[1]), float(error[1]))


def find_suspects(x: np.ndarray, y: np.ndarray, units: np.ndarray, n_classes: int, seed: int) -> pd.DataFrame:
    """Find labels that may be wrong; see `find_label_errors`, and `compare_without_suspects` for the arguments."""
    from sklearn.preprocessing import normalize

    return find_label_errors(lambda: normalize(x), y, n_classes, seed=seed, units=units)
