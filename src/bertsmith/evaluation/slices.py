"""Slices of the texts with significantly lower accuracy: by length, by label, and by every other column."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from bertsmith.bootstrap import TAILS, draw_resamples
from bertsmith.evaluation.intervals import exact_accuracy

MIN_TEXTS = 5
"""Slices, and their complements, with fewer texts are skipped."""
MAX_VALUES = 30
"""Columns with more distinct values are skipped, unless they are numeric."""
MAX_NUMBERS = 8
"""Numeric columns with more distinct values are binned into quarters."""
FALSE_DISCOVERY_RATE = 0.05


def compare_slices(
    right: np.ndarray, columns: Mapping[str, pd.Series], groups: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """Compare the accuracy of every slice with that of all other texts.

    Args:
        right: whether the prediction is correct, shape (n,).
        columns: columns to slice by, n values each; missing values are in no slice. Categorical columns are used
            whatever their number of categories.
        groups: group of each text (such as its author), shape (n,). The intervals then come from resampling whole
            groups, and a second test counts groups.

    Returns:
        One entry per slice, worse ones first, then by accuracy: ``by`` (column), ``value``, ``texts``, ``accuracy``,
        its 95 % ``interval``, the accuracy of the ``rest``, ``p`` as in `_p_value`, and ``worse``. A slice is worse if
        the difference is significant at `FALSE_DISCOVERY_RATE` over all slices (Benjamini and Hochberg 1995).
    """
    n, hits = len(right), int(right.sum())
    entries = []
    for by, values in columns.items():
        grouped = _group_values(values)
        for value in grouped.dropna().unique():
            inside = (grouped == value).fillna(False).to_numpy(dtype=bool)
            size = int(inside.sum())
            if min(size, n - size) < MIN_TEXTS:
                continue
            slice_hits = int(right[inside].sum())
            entries.append(
                {
                    "by": by,
                    "value": str(value),
                    "texts": size,
                    "accuracy": slice_hits / size,
                    "interval": _interval(right[inside], None if groups is None else groups[inside]),
                    "rest": (hits - slice_hits) / (n - size),
                    "p": _p_value(right, inside, groups),
                }
            )
    if entries:
        adjusted = stats.false_discovery_control([entry["p"] for entry in entries])
        for entry, p in zip(entries, adjusted, strict=True):
            entry["worse"] = bool(p <= FALSE_DISCOVERY_RATE)
    return sorted(entries, key=lambda entry: (not entry["worse"], entry["accuracy"]))


def _p_value(right: np.ndarray, inside: np.ndarray, groups: np.ndarray | None) -> float:
    """Return the p-value of a lower accuracy inside a slice than outside.

    Fisher's one-sided exact test counts texts. Texts of one group are not independent. So with groups, the p-value is
    the larger one of this test and a t test with the cluster-robust standard error of the difference.

    Args:
        right: whether the prediction is correct, shape (n,).
        inside: whether the text is in the slice, shape (n,).
        groups: group of each text, shape (n,).
    """
    parts = (inside, ~inside)
    exact = float(stats.hypergeom.cdf(right[inside].sum(), len(right), right.sum(), inside.sum()))
    if groups is None:
        return exact
    codes = np.unique(groups, return_inverse=True)[1]
    units = min(np.count_nonzero(np.bincount(codes[part])) for part in parts)
    if units < 2:
        return 1.0  # a single group says nothing about others
    shares = [float(right[part].mean()) for part in parts]
    scaled = [(right - share) * part / part.sum() for share, part in zip(shares, parts, strict=True)]
    by_group = np.bincount(codes, scaled[0] - scaled[1])
    error = np.sqrt(len(by_group) / (len(by_group) - 1) * (by_group**2).sum())
    return max(exact, float(stats.t.cdf((shares[0] - shares[1]) / max(error, 1e-12), units - 1)))


def _interval(right: np.ndarray, groups: np.ndarray | None) -> list[float]:
    """Return the 95 % interval of the accuracy of a slice: exact, or from resampling whole groups."""
    if groups is None:
        interval = stats.binomtest(int(right.sum()), len(right)).proportion_ci()
        return [float(interval.low), float(interval.high)]
    if exact := exact_accuracy(right, groups):
        return list(exact)
    codes = np.unique(groups, return_inverse=True)[1]
    hits, sizes = np.bincount(codes, right), np.bincount(codes)
    if len(sizes) < 2:
        return [0.0, 1.0]  # a single group says nothing about others
    resamples = draw_resamples(len(sizes), None, np.random.default_rng(0))
    drawn = np.concatenate([(times @ hits) / (times @ sizes) for times in resamples])
    return np.percentile(drawn, TAILS).tolist()


def _group_values(values: pd.Series) -> pd.Series:
    """Return the column with few distinct values, numbers binned if necessary.

    All values are missing if the column has too many of them, or if it numbers the rows.
    """
    values = values.reset_index(drop=True)
    if isinstance(values.dtype, pd.CategoricalDtype):
        return values.astype(object)
    skipped = pd.Series([None] * len(values), dtype=object)
    try:
        distinct = values.nunique()
        numbers = pd.to_numeric(values, errors="coerce").astype(np.float64).where(values.notna())  # of NaT, a number
    except (TypeError, OverflowError):  # such as lists, or integers above 1e308
        return skipped
    is_numeric = numbers.isna().sum() == values.isna().sum()
    if distinct <= (MAX_NUMBERS if is_numeric else MAX_VALUES):
        return values.astype(object).where(values.notna(), None).map(str, na_action="ignore")
    if not is_numeric:
        return skipped
    if numbers.is_monotonic_increasing and numbers.is_unique and (numbers % 1 == 0).all():
        return skipped  # row numbers
    numbers = numbers.where(np.isfinite(numbers))
    is_date = pd.api.types.is_datetime64_any_dtype(values.dtype)
    bounded = values if is_date else numbers
    quarters = bounded.groupby(pd.qcut(numbers, 4, labels=False, duplicates="drop"))
    bounds = [quarters.transform(name) for name in ("min", "max")]
    low, high = (bound.dt.date.map(str) if is_date else bound.map(_format_bound) for bound in bounds)
    return (low + " to " + high).astype(object).where(numbers.notna(), None)


def _format_bound(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.3g}"
