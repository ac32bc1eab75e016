"""Slices with significantly lower accuracy."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bertsmith.evaluation.slices import MIN_TEXTS, _p_value, compare_slices


def test_only_the_worse_slice_is_marked():
    rng = np.random.default_rng(0)
    source = pd.Series(rng.choice(["phone", "web", "mail"], 900))
    length = pd.Series(rng.integers(3, 400, 900))
    right = rng.random(900) < np.where(source == "mail", 0.7, 0.9)
    found = compare_slices(right, {"source": source, "length": length})
    assert [(e["by"], e["value"]) for e in found if e["worse"]] == [("source", "mail")]
    mail = found[0]
    inside = (source == "mail").to_numpy()
    assert mail["texts"] == inside.sum()
    assert mail["accuracy"] == pytest.approx(right[inside].mean())
    assert mail["rest"] == pytest.approx(right[~inside].mean())
    assert mail["interval"][0] < mail["accuracy"] < mail["interval"][1]
    table = [[right[inside].sum(), (~right[inside]).sum()], [right[~inside].sum(), (~right[~inside]).sum()]]
    assert mail["p"] == pytest.approx(stats.fisher_exact(table, alternative="less").pvalue)
    assert len([e for e in found if e["by"] == "length"]) == 4  # quarters
    assert json.loads(json.dumps(found)) == found


def test_the_interval_of_a_slice_resamples_whole_groups():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 10)
    right = np.repeat(rng.random(60) < 0.7, 10)  # all texts of a group are right, or none is
    half = pd.Series(np.where(groups < 30, "a", "b"))
    (one, two), (wide, wider) = (compare_slices(right, {"half": half}, g) for g in (None, groups))
    assert wide["accuracy"] == one["accuracy"]
    for narrow, entry in ((one, wide), (two, wider)):
        low, high = entry["interval"]
        assert low < entry["accuracy"] < high
        assert high - low > 2 * (narrow["interval"][1] - narrow["interval"][0])
    alone = compare_slices(np.arange(20) % 2 == 0, {"half": half[290:310]}, groups[290:310])
    assert [entry["interval"] for entry in alone] == [[0, 1], [0, 1]]


@pytest.mark.parametrize("crossing", [False, True])
def test_the_test_of_slices_counts_groups(crossing):
    """Without groups, about half of the tests would be significant: all texts of a group are right, or none is."""
    found, groups = [], np.repeat(np.arange(40), 25)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        right = np.repeat(rng.random(40) < 0.7, 25)
        inside = rng.random(1000) < 0.4 if crossing else groups < 16
        found += [_p_value(right, part, groups) for part in (inside, ~inside)]
    assert (np.array(found) < 0.05).sum() <= 8  # of 80
    inside = groups % 2 == 0
    worse = rng.random(1000) < np.where(inside, 0.6, 0.8)
    assert [entry["worse"] for entry in compare_slices(worse, {"a": pd.Series(inside)}, groups)] == [True, False]


@pytest.mark.slow
def test_false_discoveries_are_rare():
    called = 0
    for seed in range(50):
        rng = np.random.default_rng(seed)
        columns = {str(i): pd.Series(rng.integers(0, 5, 300)) for i in range(3)}
        called += any(entry["worse"] for entry in compare_slices(rng.random(300) < 0.8, columns))
    assert called <= 5  # two or three of fifty at most, and some luck


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(0, 80))
def test_any_column_can_be_sliced_by(seed, n):
    rng = np.random.default_rng(seed)
    odd = [None, "", "a", "a", 1, 1.5, float("nan"), [1], {"a": 1}, True]
    columns = {
        "odd": pd.Series([odd[i] for i in rng.integers(0, len(odd), n)], dtype=object),
        "words": pd.Series(rng.choice(["x", "y", None], n), dtype=object),
        "numbers": pd.Series(rng.normal(size=n)),
        "constant": pd.Series(np.ones(n)),
        "texts": pd.Series([f"text {i}" for i in range(n)], dtype=object),
    }
    for entry in compare_slices(rng.random(n) < 0.5, columns):
        assert entry["texts"] >= MIN_TEXTS
        assert n - entry["texts"] >= MIN_TEXTS
        assert entry["by"] not in ("constant", "texts")


def test_classes_that_are_always_wrong_are_reported():
    label = pd.Series(["optimism"] * 9 + ["anger"] * 62 + ["joy"] * 49).astype("category")
    right = np.array([False] * 9 + [True] * 62 + [False] * 20 + [True] * 29)
    assert next(e for e in compare_slices(right, {"label": label}) if e["value"] == "optimism")["worse"]


def test_the_bounds_of_quarters_are_values_of_the_column():
    values = pd.Series([*range(1, 41)]).sample(frac=1, random_state=0)
    right = np.arange(44) % 3 > 0
    with_gaps = pd.concat([values, pd.Series([None] * 4)])
    found = {e["value"]: e["texts"] for e in compare_slices(right, {"score": with_gaps})}
    assert found == {"1 to 10": 10, "11 to 20": 10, "21 to 30": 10, "31 to 40": 10}
    fractions = {e["value"] for e in compare_slices(right[:40], {"score": values / 100})}
    assert fractions == {"0.01 to 0.1", "0.11 to 0.2", "0.21 to 0.3", "0.31 to 0.4"}


def test_infinities_are_in_no_quarter():
    values = pd.Series([-np.inf] * 12 + list(np.arange(40) / 4) + [np.inf] * 12)
    found = compare_slices(np.arange(64) % 3 > 0, {"score": values})
    assert {e["value"]: e["texts"] for e in found} == {
        "0 to 2.25": 10,
        "2.5 to 4.75": 10,
        "5 to 7.25": 10,
        "7.5 to 9.75": 10,
    }


@pytest.mark.parametrize("values", [[{i % 3} for i in range(40)], [10**310 + i for i in range(40)]])
def test_columns_of_sets_and_of_huge_integers_are_skipped(values):
    assert compare_slices(np.arange(40) % 3 > 0, {"odd": pd.Series(values)}) == []


@pytest.mark.parametrize("zone", [None, "UTC"])
def test_dates_are_binned_into_quarters(zone):
    dates = pd.Series(pd.date_range("2024-01-01", periods=40, tz=zone)).sample(frac=1, random_state=0)
    dates.iloc[[0, 1, 2, 3]] = pd.NaT
    found = compare_slices(np.arange(40) % 2 == 0, {"day": dates})
    bounds = sorted(entry["value"].split(" to ") for entry in found)
    assert len(bounds) == 4
    known = {str(day.date()) for day in dates.dropna()}
    assert {day for pair in bounds for day in pair} <= known
    assert [len(found), sum(entry["texts"] for entry in found)] == [4, 36]


def test_row_numbers_are_no_slices():
    right = np.arange(40) % 3 > 0
    rows = pd.Series(np.sort(np.random.default_rng(0).choice(500, 40, replace=False)))
    assert compare_slices(right, {"row": rows, "as text": rows.map(str)}) == []
    for column in (rows[::-1], rows + 0.5, rows // 2 * 2, rows.where(rows.index != 3)):
        assert compare_slices(right, {"column": column})
