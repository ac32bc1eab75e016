"""Where a classifier is worse than elsewhere: by length, by label, by every other column, with chance accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

FEWEST_TEXTS = 5
"""Slices (and what is left beside them) with fewer texts are not looked at: nothing could be said of them."""
MOST_VALUES = 30
"""A column with more different values is left alone."""
MOST_NUMBERS = 8
"""A column with more different numbers is cut into quarters."""
FALSE_DISCOVERIES = 0.05
"""Share of the slices called worse that are not, on average (Benjamini and Hochberg 1995)."""


def slices(right: np.ndarray, columns: Mapping[str, pd.Series]) -> list[dict[str, Any]]:
    """Compare the texts of every slice with all others.

    Args:
        right: whether each text is labelled right, shape (n,).
        columns: what to slice by, by name, n values each; a missing value is in no slice. Categories are taken as they
            are, whatever their number.

    Returns:
        The slices, those that are worse first and then by accuracy: ``by``, ``value``, ``texts``, ``accuracy``, its
        exact 95 % ``interval``, the accuracy of the ``rest``, and whether it is ``worse``: by Fisher's exact test,
        one-sided, with the false discovery rate held at `FALSE_DISCOVERIES` over all slices.
    """
    n, hits = len(right), int(right.sum())
    found = []
    for by, values in columns.items():
        grouped = _grouped(values)
        for value in grouped.dropna().unique():
            inside = (grouped == value).fillna(False).to_numpy(dtype=bool)
            size = int(inside.sum())
            if min(size, n - size) < FEWEST_TEXTS:
                continue
            good = int(right[inside].sum())
            interval = stats.binomtest(good, size).proportion_ci()
            found.append(
                {
                    "by": by,
                    "value": str(value),
                    "texts": size,
                    "accuracy": good / size,
                    "interval": [float(interval.low), float(interval.high)],
                    "rest": (hits - good) / (n - size),
                    "p": float(stats.hypergeom.cdf(good, n, hits, size)),
                }
            )
    if found:
        adjusted = stats.false_discovery_control([entry["p"] for entry in found])
        for entry, p in zip(found, adjusted, strict=True):
            entry["worse"] = bool(p <= FALSE_DISCOVERIES)
    return sorted(found, key=lambda entry: (not entry["worse"], entry["accuracy"]))


def _grouped(values: pd.Series) -> pd.Series:
    """Return a column with few enough values, shape as given; all missing where there is no way."""
    values = values.reset_index(drop=True)
    if isinstance(values.dtype, pd.CategoricalDtype):
        return values.astype(object)
    if values.map(lambda v: isinstance(v, list | dict | np.ndarray)).any():
        return pd.Series([None] * len(values), dtype=object)
    numbers = pd.to_numeric(values, errors="coerce")
    numeric = numbers.isna().sum() == values.isna().sum()
    if values.nunique() <= (MOST_NUMBERS if numeric else MOST_VALUES):
        return values.astype(object).where(values.notna(), None).map(str, na_action="ignore")
    if not numeric:
        return pd.Series([None] * len(values), dtype=object)
    quarters = pd.qcut(numbers, 4, duplicates="drop")
    return quarters.map(lambda i: f"{_bound(i.left)} to {_bound(i.right)}", na_action="ignore").astype(object)


def _bound(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.3g}"
