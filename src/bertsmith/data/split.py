"""Split a table into train, validation and test, stratified by label; groups and given splits are respected."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from bertsmith.config import DataConfig
from bertsmith.data.clean import Cleaned
from bertsmith.data.near_duplicates import merge_groups
from bertsmith.data.outcomes import CLASSES
from bertsmith.data.table import REGRESSION, Table
from bertsmith.errors import ConfigError, DataError, counted

SMALL_CLASS_RULE = (
    "if a class has two texts, one is in train and one in test. If it has one text, the text is in train and the class "
    "has no score. Cross-validation without a test split scores every text"
)


def split(
    table: Table,
    *,
    validation_size: float,
    test_size: float,
    seed: int,
    near_duplicates: np.ndarray | None = None,
    folded: bool = False,
) -> Table:
    """Assign every row without a split to one.

    If a validation or test table is given, only the other one is held out. Classes are held out in proportion (largest
    remainder); `SMALL_CLASS_RULE` applies to small classes. Rows of one group stay in one split.

    Args:
        table: a cleaned table, so that no text is in two splits.
        validation_size, test_size: share of the rows to hold out; 0 for no such split.
        seed: seed of the random number generator.
        near_duplicates: groups of near-duplicates, shape (rows,), each of which stays in one split. Each group
            counts as one text of its class, unless some group has more texts than the smallest split.
        folded: put the texts of the validation split into train, for a cross-validation. The test texts are the same
            as with a validation split.

    Returns:
        The table with ``split`` filled in.

    Raises:
        DataError: if a split would be empty, or all training texts would have the same label.
    """
    given = table.frame["split"]
    shares = {
        name: share
        for name, share in (("test", test_size), ("validation", validation_size))
        if share and not (given == name).any()
    }
    if folded and "test" not in shares:
        shares = {}
    positions = np.flatnonzero((given.isna() | (given == "train")).to_numpy())
    result = given.fillna("train").to_numpy(dtype=object)
    rng = np.random.default_rng(seed)
    strata = table.strata[positions]
    if shares and len(positions):
        groups = table.frame["group"].iloc[positions]
        similar = np.arange(len(positions))
        if near_duplicates is not None:
            similar = np.unique(near_duplicates[positions], return_inverse=True)[1]
        merged = merge_groups(pd.factorize(groups)[0], similar) if groups.notna().any() else None
        if (largest := np.bincount(similar).max()) > 1 and largest > min(shares.values()) * len(positions):
            merged = similar if merged is None else merged  # otherwise it could nearly fill a small split
        if strata.ndim == 2:
            names = np.array(["train", *shares], dtype=object)
            portions = np.array([1 - sum(shares.values()), *shares.values()])
            result[positions] = names[stratify_sets(strata, similar if merged is None else merged, portions, rng)]
        elif merged is not None:
            result[positions] = _split_groups(strata, merged, shares, rng)
        else:
            first, inverse = np.unique(similar, return_index=True, return_inverse=True)[1:]
            result[positions] = _split_classes(strata[first], shares, rng)[inverse]
    if folded:
        result[result == "validation"], validation_size = "train", 0.0
    expected = [name for name, size in (("validation", validation_size), ("test", test_size)) if size]
    _check_splits(table, result, ["train", *expected])
    return replace(table, frame=table.frame.assign(split=pd.Series(result, dtype="str")))


def split_cleaned(
    cleaned: Cleaned,
    config: DataConfig,
    seed: int,
    *,
    validation_size: float | None = None,
    test_size: float | None = None,
    folded: bool = False,
) -> Table:
    """Split a cleaned table by the settings.

    Args:
        cleaned: the cleaned table.
        config: the settings.
        seed: seed of the random number generator.
        validation_size, test_size: shares that replace those of ``config``.
        folded: as for `split`.

    Raises:
        DataError: as for `split`, with the numbers of dropped rows.
    """
    try:
        return split(
            cleaned.table,
            validation_size=config.validation_size if validation_size is None else validation_size,
            test_size=config.test_size if test_size is None else test_size,
            seed=seed,
            near_duplicates=cleaned.near_duplicates if config.near_duplicates == "together" else None,
            folded=folded,
        )
    except DataError as error:
        if not cleaned.counts:
            raise
        dropped = ", ".join(f"{counted(n, 'row')} ({reason})" for reason, n in cleaned.counts.items())
        raise DataError(f"{error.what}; dropped: {dropped}", where=error.where, remedy=error.remedy) from error


def inseparable_groups(cleaned: Cleaned, config: DataConfig) -> np.ndarray:
    """Return the groups of near-duplicates that must stay together by the settings, shape (rows,)."""
    return cleaned.near_duplicates if config.near_duplicates == "together" else np.arange(len(cleaned.table))


def assign_folds(cleaned: Cleaned, data: Table, rows: np.ndarray, k: int, config: DataConfig, seed: int) -> np.ndarray:
    """Assign rows to the folds of a cross-validation, stratified by class, and with each group in one fold.

    Args:
        cleaned: the cleaned table.
        data: the split table, with the same rows.
        rows: positions of the rows to assign, shape (n,).
        k: number of folds.
        config: the settings, which say whether near-duplicates stay in one fold.
        seed: seed of the random number generator.

    Returns:
        The fold of every row, 0…k−1, shape (n,).

    Raises:
        ConfigError: if the rows have too few texts, or groups of texts, for k folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    groups = inseparable_groups(cleaned, config)[rows]
    group_column = data.frame["group"]
    if group_column.notna().any():
        groups = merge_groups(pd.factorize(group_column.iloc[rows])[0], np.unique(groups, return_inverse=True)[1])
    strata, n_groups = data.strata[rows], len(np.unique(groups))
    if strata.ndim == 2:
        folds = stratify_sets(strata, groups, np.full(k, 1 / k), np.random.default_rng(seed))
        n_largest = len(rows)
    else:
        folds, n_largest = np.full(len(rows), -1), int(np.bincount(strata).max())
        try:
            with warnings.catch_warnings():  # scikit-learn warns about classes with fewer texts than folds
                warnings.simplefilter("ignore", UserWarning)
                splitter = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
                for fold, (_, held_out) in enumerate(splitter.split(rows, strata, groups)):
                    folds[held_out] = fold
        except ValueError:  # every class has fewer texts than folds
            folds[:] = -1
    if len(np.unique(folds)) < k or (folds < 0).any():
        most = min(n_largest, n_groups)
        why = f"the texts form only {counted(n_groups, 'group')} that must not be divided"
        if strata.ndim == 1 and n_largest < k:
            kind = "quantile bin of the numbers" if data.task == REGRESSION else "class"
            why = f"the largest {kind} has only {counted(n_largest, 'text')}"
        raise ConfigError(
            f"--cv {k} has too many folds: {why}",
            where=data.name,
            remedy=f"Use at most {most} folds." if most > 1 else "Label more texts, or leave out --cv.",
        )
    return folds


def stratify_sets(sets: np.ndarray, groups: np.ndarray, portions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Assign groups of texts to splits so that each split has its share of each label.

    The groups with the rarest label are assigned first, each to the split that lacks the most texts of this label.
    This is iterative stratification (Sechidis et al. 2011, doi:10.1007/978-3-642-23808-6_10).

    Args:
        sets: whether each text has each label, bool, shape (n, labels).
        groups: group of each text, shape (n,).
        portions: share of each split; the sum is 1.
        rng: random number generator.

    Returns:
        The split of each text, shape (n,).
    """
    _, groups = np.unique(groups, return_inverse=True)
    counts = np.zeros((int(groups.max()) + 1, sets.shape[1] + 1))  # the last column counts texts
    np.add.at(counts, groups, np.column_stack([sets, np.ones(len(sets))]))
    lacking = np.outer(portions, counts.sum(axis=0))
    chosen = np.full(len(counts), -1)
    while (left := np.flatnonzero(chosen < 0)).size:
        totals = counts[left].sum(axis=0)
        label = int(np.where(totals[:-1] > 0, totals[:-1], np.inf).argmin()) if totals[:-1].any() else -1
        some = rng.permutation(left[counts[left, label] > 0])
        for group in some[np.argsort(-counts[some, label], kind="stable")]:
            best = np.flatnonzero(lacking[:, label] == lacking[:, label].max())
            best = best[lacking[best, -1] == lacking[best, -1].max()]
            chosen[group] = rng.choice(best)
            lacking[chosen[group]] -= counts[group]
    return chosen[groups]


def _split_classes(targets: np.ndarray, shares: Mapping[str, float], rng: np.random.Generator) -> np.ndarray:
    counts = np.bincount(targets)
    order = [rng.permutation(np.flatnonzero(targets == c)) for c in range(len(counts))]
    result = np.full(len(targets), "train", dtype=object)
    remaining = counts.copy()
    for name, share in shares.items():  # test first: it has priority where texts are scarce
        take = np.minimum(np.maximum(_largest_remainder(counts * share), 1), np.maximum(remaining - 1, 0))
        for c, n in enumerate(take):
            result[order[c][:n]] = name
            order[c] = order[c][n:]
        remaining -= take
    return result


def _largest_remainder(ideal: np.ndarray) -> np.ndarray:
    result: np.ndarray = np.floor(ideal).astype(np.int64)
    n_missing = round(float(ideal.sum())) - int(result.sum())
    result[np.argsort(-(ideal - result), kind="stable")[: max(n_missing, 0)]] += 1
    return result


def _split_groups(
    targets: np.ndarray, groups: np.ndarray, shares: Mapping[str, float], rng: np.random.Generator
) -> np.ndarray:
    n_groups = int(groups.max()) + 1
    if n_groups <= len(shares):
        raise DataError(
            f"the texts form only {counted(n_groups, 'group')}, too few for the splits train, {' and '.join(shares)}",
            remedy="Leave out --group-column, pass --validation and --test tables, or, if the texts are "
            "near-duplicates, pass --near-duplicates ignore.",
        )
    # Greedy assignment, large groups first: a group goes to the split whose class counts it brings closest to the goal.
    group_counts = np.zeros((n_groups, int(targets.max()) + 1))
    np.add.at(group_counts, (groups, targets), 1)
    names = ["train", *shares]
    portions = np.array([1 - sum(shares.values()), *shares.values()])
    goal = np.outer(portions, group_counts.sum(axis=0))
    counts = np.zeros_like(goal)
    chosen = np.zeros(n_groups, dtype=np.int64)
    weight = 1 / np.maximum(group_counts.sum(axis=0), 1)
    order = rng.permutation(n_groups)
    order = order[np.argsort(-group_counts[order].sum(axis=1), kind="stable")]
    for position, group in enumerate(order):
        empty = [s for s in range(len(names)) if not counts[s].any()]
        if empty and n_groups - position <= len(empty):
            best = empty[0]
        else:
            cost = ((counts + group_counts[group] - goal) ** 2 - (counts - goal) ** 2) @ weight
            best = int(np.argmin(cost))
        counts[best] += group_counts[group]
        chosen[group] = best
    return np.array(names, dtype=object)[chosen[groups]]


def _check_splits(table: Table, result: np.ndarray, expected: Sequence[str]) -> None:
    for name in expected:
        if not (result == name).any():
            raise DataError(
                f"no text is left for the {name} split",
                where=table.name,
                remedy="Add labelled texts, or pass --validation and --test tables; or, if the texts are "
                "near-duplicates, pass --near-duplicates ignore.",
            )
    codes = np.unique(table.codes[result == "train"])
    if len(codes) < 2:
        name = f" {table.labels.texts[codes[0]]!r}" if table.outcomes is CLASSES else ""
        raise DataError(
            f"all texts of the train split have the same label{name}",
            where=table.name,
            remedy="Add texts with another label.",
        )
