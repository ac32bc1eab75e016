"""Regressions on pseudo-outcomes: design-based supervised learning (Egami et al. 2023, arXiv:2306.04746)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from bertsmith.bootstrap import LEVEL
from bertsmith.config import DataConfig
from bertsmith.data.columns import check_columns
from bertsmith.data.formats.files import open_binary
from bertsmith.data.formats.registry import to_data_frame
from bertsmith.errors import ConfigError, DataError, counted, did_you_mean, listing, quoted, to_path
from bertsmith.measuring.pseudo_outcomes import INCLUSION, LEVEL_NAME, NUMBER_NAME, OUTCOME

if TYPE_CHECKING:
    import pandas as pd

INTERCEPT = "(intercept)"
_REMEDY = "Pass the file that bertsmith measure --for-regression wrote."
MAX_STEPS = 100
TOLERANCE = 1e-10
FEWEST, FEW = 2, 5
"""With fewer labelled texts (or clusters) of a value, an error and a note."""


@dataclass(frozen=True)
class Regression:
    """The coefficients of a regression.

    Attributes:
        names: of the coefficients.
        coefficients: shape (coefficients,); of a logistic regression in log odds.
        covariance: of the coefficients, robust against unequal variances, shape (coefficients, coefficients).
        texts: number of texts.
        freedom: degrees of freedom of the t distribution: labelled texts, or clusters with a labelled text, minus 1.
        notes: sentences about unreliable intervals.
    """

    names: tuple[str, ...]
    coefficients: np.ndarray
    covariance: np.ndarray
    texts: int
    freedom: int
    notes: tuple[str, ...] = ()

    @property
    def errors(self) -> np.ndarray:
        """Standard errors, shape (coefficients,)."""
        return np.sqrt(np.diag(self.covariance))

    def to_frame(self) -> pd.DataFrame:
        """Return one row per coefficient: ``coefficient``, ``standard_error``, ``low``, ``high``, ``p_value``."""
        import pandas as pd

        half = stats.t.ppf(0.5 + LEVEL / 2, self.freedom) * self.errors
        return pd.DataFrame(
            {
                "coefficient": self.coefficients,
                "standard_error": self.errors,
                "low": self.coefficients - half,
                "high": self.coefficients + half,
                "p_value": 2 * stats.t.sf(abs(self.coefficients) / self.errors, self.freedom),
            },
            index=list(self.names),
        )

    def __repr__(self) -> str:
        table = self.to_frame().to_string(float_format="{:.4g}".format)
        return "\n".join([table, counted(self.texts, "text"), *(f"note: {note}" for note in self.notes)])


def fit_regression(
    table: Any, label_text: str, on: str | Sequence[str], *, model: str = "linear", clusters: str | None = None
) -> Regression:
    """Regress a pseudo-outcome on columns; see `bertsmith.regress`."""
    import pandas as pd

    if model not in ("linear", "logistic"):
        raise ConfigError(f"model={model!r} is not a valid value", remedy="Pass linear or logistic.")
    if model == "logistic" and label_text in (LEVEL_NAME, NUMBER_NAME):
        raise ConfigError("a logistic regression needs a class, not a mean", remedy="Use a linear regression.")
    on = list(on) if isinstance(on, Iterable) and not isinstance(on, str) else [on]
    if not on:
        raise ConfigError("on does not name a column", remedy="Name a column with an explanatory variable.")
    table = to_data_frame(table)
    where = "the data frame" if isinstance(table, pd.DataFrame) else str(table)
    frame = table if isinstance(table, pd.DataFrame) else _read(to_path(table, "table"))
    check_columns(list(map(str, frame.columns)), len(frame), where, DataConfig())
    outcome, known_names = f"{OUTCOME}{label_text}", list(frame.columns)
    for name in (outcome, *on, *([] if clusters is None else [clusters])):
        if name not in known_names:
            raise DataError(
                f"the table has no column {quoted(name)}.{did_you_mean(str(name), map(str, known_names))}",
                where=where,
                remedy=f"Name one of {listing(known_names)}."
                if any(str(known).startswith(OUTCOME) for known in known_names)
                else _REMEDY,
            )
    if missing := [name for name in on if (frame[name].isna() | frame[name].isin([np.inf, -np.inf])).any()]:
        raise DataError(
            f"columns with missing or infinite values: {listing(missing)}",
            where=where,
            remedy="Remove the rows without a value, or fill in the values.",
        )
    groups = np.arange(len(frame)) if clusters is None else np.asarray(pd.factorize(frame[clusters])[0])
    alone = groups < 0  # a row without a cluster is one of its own
    groups[alone] = groups.max() + 1 + np.arange(alone.sum())
    weights, units = np.ones(len(frame)), "texts" if clusters is None else "clusters"
    if INCLUSION in frame.columns:
        inclusion = _numbers(frame, INCLUSION, where)
        if ((inclusion <= 0) | (inclusion > 1)).any():
            what = f"column {quoted(INCLUSION)} has values that are not probabilities above 0 and at most 1"
            raise DataError(what, where=where, remedy=_REMEDY)
        weights = np.where(np.isnan(inclusion), 0.0, 1 / inclusion)  # 0 without a label
        units = "labelled texts" if clusters is None else "clusters with a labelled text"
    known = weights > 0
    notes = _few(frame[list(on)], np.where(known, groups, -1), units, where)
    columns = pd.get_dummies(frame[list(on)], drop_first=True, dtype=float)
    values = columns.to_numpy(dtype=np.float64)
    # Of standardised columns, so that large numbers, such as times in seconds, lose no precision.
    center, spread = values.mean(axis=0), values.std(axis=0)
    spread[spread == 0] = 1
    x = np.column_stack([np.ones(len(frame)), (values - center) / spread])
    y = _numbers(frame, outcome, where)
    if not np.isfinite(y).all():
        raise DataError(f"column {quoted(outcome)} has missing or infinite values", where=where, remedy=_REMEDY)
    for rows, among in ((slice(None), ""), (known, "among the labelled texts, ")):
        if np.linalg.matrix_rank(x[rows]) < x.shape[1]:
            what = f"{among}the columns {listing(on)} are constant or linearly dependent"
            raise DataError(what, where=where, remedy="Leave out one of them.")
    coefficients = np.linalg.lstsq(x, y, rcond=None)[0] if model == "linear" else _logistic(x, y)
    # A mistake about a class is one step. A mistake about a number has no such size.
    steps = np.zeros(len(frame)) if label_text == NUMBER_NAME else weights
    names = (INTERCEPT, *map(str, columns.columns))
    covariance = _covariance(x, y, coefficients, steps, groups, names, logistic=model == "logistic")
    original = np.diag([1, *1 / spread])
    original[0, 1:] = -center / spread
    freedom = len(np.unique(groups[known])) - 1
    return Regression(names, original @ coefficients, original @ covariance @ original.T, len(frame), freedom, notes)


def _few(columns: pd.DataFrame, known: np.ndarray, units: str, where: str) -> tuple[str, ...]:
    """Count the labelled texts (or clusters) with each value of each column of words, or of two numbers.

    Without labelled texts of a value, its predictions are not corrected. One text or cluster gives no variance.

    Args:
        columns: the explanatory variables.
        known: the labelled text or cluster of each row, -1 for rows without a label, shape (n,).
        units: name of what is counted.
        where: names the table in an error.

    Returns:
        Notes about values with fewer than `FEW`.

    Raises:
        DataError: if a value has fewer than `FEWEST`.
    """
    import pandas as pd

    notes, labelled = [], known >= 0
    if (n := len(np.unique(known[labelled]))) < FEWEST:
        what = f"a regression needs at least {FEWEST} {units}, but the table has {n}"
        raise DataError(what, where=where, remedy="Label more texts.")
    for name, column in columns.items():
        codes, values = pd.factorize(column)
        if len(values) > 2 and pd.api.types.is_numeric_dtype(column):
            continue
        pairs = np.unique(codes[labelled] * len(known) + known[labelled])
        counts = np.bincount(pairs // len(known), minlength=len(values))
        for limit in (FEWEST, FEW):
            if few := [f"{quoted(value)} ({n})" for value, n in zip(values, counts, strict=True) if n < limit]:
                shown = f"fewer than {limit} {units}: {', '.join(few[:10])}{', …' if len(few) > 10 else ''}"
                if limit == FEWEST:
                    raise DataError(
                        f"column {quoted(name)} has values with {shown}",
                        where=where,
                        remedy="Merge them with others, label more texts that have them, or leave out the column.",
                    )
                notes.append(f"column {quoted(name)}: the intervals are unreliable for values with {shown}")
    return tuple(notes)


def _numbers(frame: pd.DataFrame, name: str, where: str) -> np.ndarray:
    """Return a column as numbers, NaN if missing, shape (n,)."""
    try:
        return frame[name].to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise DataError(f"column {quoted(name)} does not hold numbers", where=where, remedy=_REMEDY) from error


def _read(path: Path) -> pd.DataFrame:
    """Read a CSV file. In columns of texts, only an empty cell is missing: ``NA`` or ``None`` can be a name."""
    import pandas as pd

    with open_binary(path, DataConfig().max_unpacked) as file:
        try:
            frame = pd.read_csv(file, low_memory=False)
            texts = [name for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name])]
            file.seek(0)
            if texts:
                frame[texts] = pd.read_csv(file, dtype=str, keep_default_na=False, na_values=[""])[texts]
        except ValueError as error:
            raise DataError(f"the file is not CSV: {str(error).strip()}", where=str(path), remedy=_REMEDY) from error
    return frame


def _logistic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Solve the estimating equation of logistic regression by Newton steps.

    Pseudo-outcomes can be outside 0 to 1, and other libraries refuse such values. The equation is valid for them.
    """
    b: np.ndarray = np.zeros(x.shape[1])
    for _ in range(MAX_STEPS):
        p = 1 / (1 + np.exp(-x @ b))
        step = np.linalg.lstsq((x * (p * (1 - p))[:, None]).T @ x, x.T @ (y - p), rcond=None)[0]
        b = b + step
        if abs(step).max() < TOLERANCE:
            return b
        if not np.isfinite(b).all() or abs(b).max() > 1e3:
            break
    raise DataError(
        "the logistic regression has no solution: a group has a corrected share of at most 0, or at least 1",
        remedy="Use a linear regression, leave out small groups, or label more texts.",
    )


def _covariance(
    x: np.ndarray,
    y: np.ndarray,
    b: np.ndarray,
    weights: np.ndarray,
    groups: np.ndarray,
    names: Sequence[str],
    *,
    logistic: bool,
) -> np.ndarray:
    """Return the robust covariance (HC1; with clusters the jackknife), shape (coefficients, coefficients).

    The jackknife leaves out one cluster at a time, with one step of Newton from all clusters. With few clusters, its
    intervals cover better than those of the clustered sandwich (MacKinnon, Nielsen and Webb 2023, arXiv:2205.03288).

    Even if the sample shows no mistake of the model, the corpus can contain some. So the covariance also has the part
    that one mistake in the sample causes, on average over the labelled texts.

    Args:
        x, y, b: inputs, outcomes and coefficients.
        weights: inverse inclusion probability of texts whose label can show a mistake, 0 for others, shape (n,).
        groups: cluster of each text, from 0, shape (n,).
        names: of the coefficients.
        logistic: whether the regression is logistic.

    Raises:
        DataError: if some coefficients cannot be estimated without one of the clusters.
    """
    fitted = 1 / (1 + np.exp(-x @ b)) if logistic else x @ b
    scores, n, n_groups = x * (y - fitted)[:, None], len(y), int(groups.max()) + 1
    q, r = np.linalg.qr(x * np.sqrt(fitted * (1 - fitted))[:, None] if logistic else x)
    root = np.linalg.inv(r)  # the Hessian is r.T @ r
    bread = root @ root.T
    mistake = (x * (weights * np.maximum(weights - 1, 0))[:, None]).T @ x / max(np.count_nonzero(weights), 1)
    if n_groups == n:
        meat = n / max(n - x.shape[1], 1) * scores.T @ scores
        return bread @ (meat + mistake) @ bread
    covariance = bread @ mistake @ bread
    order = np.argsort(groups, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        left = np.eye(x.shape[1]) - q[rows].T @ q[rows]
        sizes, directions = np.linalg.eigh(left)
        if sizes[0] < TOLERANCE:
            change = abs(root @ directions[:, sizes < TOLERANCE]).max(axis=1)[1:]
            unknown = compress(names[1:], change > 1e-6 * change.max())
            raise DataError(
                f"without one of the clusters, these coefficients are unknown: {listing(unknown)}",
                remedy="Leave out their columns, or add texts of other clusters with other values in these columns.",
            )
        change = root @ np.linalg.solve(left, root.T @ scores[rows].sum(axis=0))
        covariance += (n_groups - 1) / n_groups * np.outer(change, change)
    return covariance
