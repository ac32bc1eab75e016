"""Regressions on pseudo-outcomes: design-based supervised learning (Egami et al. 2023, arXiv:2306.04746)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from bertsmith.bootstrap import LEVEL
from bertsmith.data.formats.registry import to_data_frame
from bertsmith.errors import ConfigError, DataError, counted, did_you_mean, listing
from bertsmith.measuring.pseudo_outcomes import INCLUSION, LEVEL_NAME, NUMBER_NAME, OUTCOME

if TYPE_CHECKING:
    import pandas as pd

INTERCEPT = "(intercept)"
MAX_STEPS = 100
TOLERANCE = 1e-10


@dataclass(frozen=True)
class Regression:
    """The coefficients of a regression.

    Attributes:
        names: of the coefficients.
        coefficients: shape (coefficients,); of a logistic regression in log odds.
        covariance: of the coefficients, robust against unequal variances, shape (coefficients, coefficients).
        texts: number of texts.
        freedom: degrees of freedom of the t distribution: labelled texts, or clusters with a labelled text, minus 1.
    """

    names: tuple[str, ...]
    coefficients: np.ndarray
    covariance: np.ndarray
    texts: int
    freedom: int

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
        return f"{self.to_frame().to_string(float_format='{:.4g}'.format)}\n{counted(self.texts, 'text')}"


def fit_regression(
    table: Any, label_text: str, on: str | Sequence[str], *, model: str = "linear", clusters: str | None = None
) -> Regression:
    """Regress a pseudo-outcome on columns; see `bertsmith.regress`."""
    import pandas as pd

    if model not in ("linear", "logistic"):
        raise ConfigError(f"model={model!r} is not a valid value", remedy="Pass linear or logistic.")
    if model == "logistic" and label_text in (LEVEL_NAME, NUMBER_NAME):
        raise ConfigError("a logistic regression needs a class, not a mean", remedy="Use a linear regression.")
    on = [on] if isinstance(on, str) else on
    table = to_data_frame(table)
    frame = table if isinstance(table, pd.DataFrame) else _read(Path(table))
    outcome = f"{OUTCOME}{label_text}"
    for name in (outcome, *on, *([clusters] if clusters else [])):
        if name not in frame.columns:
            raise DataError(
                f"the table has no column {name!r}.{did_you_mean(name, map(str, frame.columns))}",
                where=str(table) if isinstance(table, str | Path) else "the data frame",
                remedy=f"Name one of {listing(frame.columns)}."
                if any(str(known).startswith(OUTCOME) for known in frame.columns)
                else "Pass the file that bertsmith measure --for-regression wrote.",
            )
    if missing := [name for name in on if frame[name].isna().any()]:
        raise DataError(
            f"columns with missing values: {listing(missing)}",
            remedy="Remove the rows without a value, or fill in the values.",
        )
    columns = pd.get_dummies(frame[list(on)], drop_first=True, dtype=float)
    values = columns.to_numpy(dtype=np.float64)
    # Of standardised columns, so that large numbers, such as times in seconds, lose no precision.
    center, spread = values.mean(axis=0), values.std(axis=0)
    spread[spread == 0] = 1
    x = np.column_stack([np.ones(len(frame)), (values - center) / spread])
    y = frame[outcome].to_numpy(dtype=np.float64)
    if np.linalg.matrix_rank(x) < x.shape[1]:
        raise DataError(f"the columns {listing(on)} are linearly dependent", remedy="Leave out one of them.")
    coefficients = np.linalg.lstsq(x, y, rcond=None)[0] if model == "linear" else _logistic(x, y)
    groups = np.arange(len(frame)) if clusters is None else np.asarray(pd.factorize(frame[clusters])[0])
    alone = groups < 0  # a row without a cluster is one of its own
    groups[alone] = groups.max() + 1 + np.arange(alone.sum())
    weights = np.ones(len(frame))
    if INCLUSION in frame.columns:
        weights = 1 / frame[INCLUSION].fillna(np.inf).to_numpy(dtype=np.float64)  # 0 without a label
    # A mistake about a class is one step. A mistake about a number has no such size.
    steps = np.zeros(len(frame)) if label_text == NUMBER_NAME else weights
    covariance = _covariance(x, y, coefficients, steps, groups, logistic=model == "logistic")
    freedom = max(len(np.unique(groups[weights > 0])) - 1, 1)
    original = np.diag([1, *1 / spread])
    original[0, 1:] = -center / spread
    names = (INTERCEPT, *map(str, columns.columns))
    return Regression(names, original @ coefficients, original @ covariance @ original.T, len(frame), freedom)


def _read(path: Path) -> pd.DataFrame:
    """Read a CSV file. In columns of texts, only an empty cell is missing: ``NA`` or ``None`` can be a name."""
    import pandas as pd

    frame = pd.read_csv(path, low_memory=False)
    texts = [name for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name])]
    if texts:
        frame[texts] = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])[texts]
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
    x: np.ndarray, y: np.ndarray, b: np.ndarray, weights: np.ndarray, groups: np.ndarray, *, logistic: bool
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
        logistic: whether the regression is logistic.
    """
    fitted = 1 / (1 + np.exp(-x @ b)) if logistic else x @ b
    sloped = x * (fitted * (1 - fitted))[:, None] if logistic else x
    hessian, scores, n = sloped.T @ x, x * (y - fitted)[:, None], len(y)
    bread, n_groups = np.linalg.inv(hessian), int(groups.max()) + 1
    mistake = (x * (weights * np.maximum(weights - 1, 0))[:, None]).T @ x / max(np.count_nonzero(weights), 1)
    if n_groups == n:
        meat = n / max(n - x.shape[1], 1) * scores.T @ scores
        return bread @ (meat + mistake) @ bread
    covariance = bread @ mistake @ bread
    order = np.argsort(groups, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        # Without the only cluster with some value, its coefficient is unknown: the inverse leaves it as it is.
        change = np.linalg.pinv(hessian - sloped[rows].T @ x[rows], 1e-10, hermitian=True) @ scores[rows].sum(axis=0)
        covariance += (n_groups - 1) / n_groups * np.outer(change, change)
    return covariance
