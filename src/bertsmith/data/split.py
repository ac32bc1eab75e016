"""Split into train, validation and test: stratified, seeded, groups kept together, given splits respected."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from bertsmith.config import DataConfig
from bertsmith.data.clean import Cleaned
from bertsmith.data.table import Table
from bertsmith.errors import ConfigError, DataError, listing

RULE = (
    "every class gives at least one text to each held-out split and one to train, as far as its texts go: "
    "with two texts one goes to train and one to test, a single one to train (the class then cannot be scored)"
)


def split(
    table: Table, *, validation_size: float, test_size: float, seed: int, alike: np.ndarray | None = None
) -> Table:
    """Give every row a split; rows that have one keep it.

    Where validation or test is given, only the other is held out. Every class is held out in proportion (largest
    remainder), and by `RULE` where it is small. Rows of one group stay together.

    Args:
        table: cleaned, so that no text stands in it twice to be split apart.
        validation_size, test_size: share of the rows to hold out; 0 for no such split.
        seed: the same seed gives the same split.
        alike: groups of rows that nearly repeat one another, shape (rows,), which stay together as well: then a class
            counts by its groups.

    Returns:
        The table with ``split`` filled in.

    Raises:
        DataError: if a split would be empty, or fewer than two classes are left to train on.
    """
    given = table.frame["split"]
    shares = {
        name: share
        for name, share in (("test", test_size), ("validation", validation_size))
        if share and not (given == name).any()
    }
    free = np.flatnonzero((given.isna() | (given == "train")).to_numpy())
    result = given.fillna("train").to_numpy(dtype=object)
    rng = np.random.default_rng(seed)
    targets = table.targets[free]
    if shares and len(free):
        groups = table.frame["group"].iloc[free]
        similar = np.arange(len(free)) if alike is None else np.unique(alike[free], return_inverse=True)[1]
        if groups.notna().any():
            result[free] = _by_group(targets, _joined(pd.factorize(groups)[0], similar), shares, rng)
        else:
            first, of = np.unique(similar, return_index=True, return_inverse=True)[1:]
            result[free] = _by_class(targets[first], len(table.labels), shares, rng)[of]
    wanted = [name for name, size in (("validation", validation_size), ("test", test_size)) if size]
    _check(table, result, ["train", *wanted])
    return Table(
        table.frame.assign(split=pd.Series(result, dtype="str")),
        table.labels,
        table.columns,
        table.extra,
        table.name,
        table.notes,
    )


def split_cleaned(
    cleaned: Cleaned,
    config: DataConfig,
    seed: int,
    *,
    validation_size: float | None = None,
    test_size: float | None = None,
) -> Table:
    """Split what cleaning left as the settings say, but for the shares that are given.

    Raises:
        DataError: if too little is left, naming what cleaning took out.
    """
    try:
        return split(
            cleaned.table,
            validation_size=config.validation_size if validation_size is None else validation_size,
            test_size=config.test_size if test_size is None else test_size,
            seed=seed,
            alike=cleaned.alike if config.near_duplicates == "together" else None,
        )
    except DataError as error:
        if not cleaned.counts:
            raise
        left_out = ", ".join(f"{n:,} {reason}" for reason, n in cleaned.counts.items())
        raise DataError(f"{error.what} (rows left out: {left_out})", where=error.where, remedy=error.remedy) from error


def fold_of(cleaned: Cleaned, data: Table, rows: np.ndarray, k: int, config: DataConfig, seed: int) -> np.ndarray:
    """Return the fold of some rows, 0 to k − 1, shape (rows,): stratified, and what belongs together in one.

    Args:
        cleaned, data: the table cleaned, and split.
        rows: positions in both, shape (rows,).
        k: number of folds.
        config: whether texts that nearly repeat one another belong together.
        seed: of the spreading.

    Raises:
        ConfigError: if there are too few texts, or groups of them.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    groups = cleaned.alike[rows] if config.near_duplicates == "together" else np.arange(len(rows))
    given = data.frame["group"]
    if given.notna().any():
        groups = _joined(pd.factorize(given.iloc[rows])[0], np.unique(groups, return_inverse=True)[1])
    folds = np.full(len(rows), -1)
    try:
        with warnings.catch_warnings():  # of a class with fewer texts than folds
            warnings.simplefilter("ignore", UserWarning)
            splitter = StratifiedGroupKFold(k, shuffle=True, random_state=seed)
            for fold, (_, held_out) in enumerate(splitter.split(rows, data.targets[rows], groups)):
                folds[held_out] = fold
    except ValueError:  # there is not even one class with a text for each fold
        folds[:] = -1
    if len(np.unique(folds)) < k or (folds < 0).any():
        largest, n_groups = int(np.bincount(data.targets[rows]).max()), len(np.unique(groups))
        raise ConfigError(
            f"--cv {k}: too few texts for so many folds: the largest class has {largest:,} texts, and there are "
            f"{n_groups:,} groups of texts that belong together",
            where=data.name,
            remedy=f"Take at most {min(largest, n_groups)} folds.",
        )
    return folds


def _by_class(targets: np.ndarray, n_classes: int, shares: Mapping[str, float], rng: np.random.Generator) -> np.ndarray:
    counts = np.bincount(targets, minlength=n_classes)
    order = [rng.permutation(np.flatnonzero(targets == c)) for c in range(n_classes)]
    result = np.full(len(targets), "train", dtype=object)
    left = counts.copy()
    for name, share in shares.items():  # test first: where texts are scarce, the honest figure comes first
        take = np.minimum(np.maximum(_largest_remainder(counts * share), 1), np.maximum(left - 1, 0))
        for c, n in enumerate(take):
            result[order[c][:n]] = name
            order[c] = order[c][n:]
        left -= take
    return result


def _joined(groups: np.ndarray, similar: np.ndarray) -> np.ndarray:
    """Return the groups of rows that share either of two groups, directly or by way of others, shape (rows,)."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    # A graph with rows, groups of the one kind and groups of the other as its nodes; a row is tied to its two groups.
    n = len(groups)
    ends = np.concatenate([n + groups, n + groups.max() + 1 + similar])
    size = int(ends.max()) + 1
    graph = csr_array((np.ones(2 * n), (np.tile(np.arange(n), 2), ends)), shape=(size, size))
    result: np.ndarray = np.unique(connected_components(graph, directed=False)[1][:n], return_inverse=True)[1]
    return result


def _largest_remainder(ideal: np.ndarray) -> np.ndarray:
    whole = np.floor(ideal).astype(np.int64)
    missing = round(float(ideal.sum())) - int(whole.sum())
    whole[np.argsort(-(ideal - whole), kind="stable")[: max(missing, 0)]] += 1
    result: np.ndarray = whole
    return result


def _by_group(
    targets: np.ndarray, groups: np.ndarray, shares: Mapping[str, float], rng: np.random.Generator
) -> np.ndarray:
    n_groups = int(groups.max()) + 1
    if n_groups <= len(shares):
        raise DataError(
            f"there are only {n_groups} groups: too few for {' and '.join(shares)} beside train",
            remedy="Leave out --group-column, give --validation and --test tables, or, where texts nearly repeat one "
            "another, pass --near-duplicates ignore.",
        )
    # Class counts of every group, shape (groups, classes): groups go, large ones first, to the split that lacks most.
    table = np.zeros((n_groups, int(targets.max()) + 1))
    np.add.at(table, (groups, targets), 1)
    names = ["train", *shares]
    portions = np.array([1 - sum(shares.values()), *shares.values()])
    wanted = np.outer(portions, table.sum(axis=0))
    have = np.zeros_like(wanted)
    chosen = np.zeros(n_groups, dtype=np.int64)
    weight = 1 / np.maximum(table.sum(axis=0), 1)
    order = rng.permutation(n_groups)
    order = order[np.argsort(-table[order].sum(axis=1), kind="stable")]
    for position, group in enumerate(order):
        empty = [s for s in range(len(names)) if not have[s].any()]
        if empty and n_groups - position <= len(empty):
            best = empty[0]
        else:
            gain = ((have + table[group] - wanted) ** 2 - (have - wanted) ** 2) @ weight
            best = int(np.argmin(gain))
        have[best] += table[group]
        chosen[group] = best
    result: np.ndarray = np.array(names, dtype=object)[chosen[groups]]
    return result


def _check(table: Table, result: np.ndarray, wanted: Sequence[str]) -> None:
    for name in wanted:
        if not (result == name).any():
            raise DataError(
                f"no text is left for the {name} split",
                where=table.name,
                remedy="Give more labelled texts, or --validation and --test tables; or, where texts nearly repeat one "
                "another, pass --near-duplicates ignore.",
            )
    trained = np.unique(table.targets[result == "train"])
    if len(trained) < 2:
        raise DataError(
            f"there is only one class to train on: {listing([table.labels.texts[int(c)] for c in trained])}",
            where=table.name,
            remedy="A classifier needs texts of at least two classes.",
        )
