from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from benchmarks import quality

SHARES = {3: 300, 5: 60, 9: 12}


def table_of(start: int) -> pd.DataFrame:
    labels = [label for label, n in SHARES.items() for _ in range(n)]
    return pd.DataFrame({"Label": labels, "Text": [f"text {start + i}" for i in range(len(labels))]})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    train, test = table_of(0), table_of(10_000)
    twice = train.iloc[[0, -1]].assign(Text=lambda t: " " + t["Text"].str.replace(" ", "  "))
    pd.concat([train, twice, test.head(5)]).to_csv(tmp_path / "train.csv", index=False)
    table_of(20_000).to_csv(tmp_path / "val.csv", index=False)
    test.to_csv(tmp_path / "test.csv", index=False)
    return tmp_path


def to_texts(table: pd.DataFrame) -> list[str]:
    return [" ".join(text.split()) for text in table["Text"]]


@pytest.mark.parametrize("on", ["folds", "test"])
@pytest.mark.parametrize("size", ["8", "64", "250", "all"])
def test_draws_are_repeatable_and_disjoint_from_the_scored_texts(folder: Path, on: str, size: str) -> None:
    labelled, scored = quality.draw(folder, size, 1, on)
    again, _ = quality.draw(folder, size, 1, on)
    pd.testing.assert_frame_equal(labelled, again)
    assert not set(to_texts(labelled)) & set(to_texts(scored))
    assert len(set(to_texts(labelled))) == len(labelled)
    assert not labelled.index.equals(quality.draw(folder, size, 2, on)[0].index)


def test_sizes_are_texts_per_class_or_in_total(folder: Path) -> None:
    def counts(size: str, on: str) -> list[int]:
        return quality.draw(folder, size, 0, on)[0]["Label"].value_counts().sort_index().tolist()

    assert counts("8", "folds") == [8, 8, 8]
    assert counts("64", "folds") == [64, 40, 8]  # a third of a small class is scored
    assert counts("64", "test") == [64, 64, 24]
    assert sum(counts("210", "folds")) == 210
    assert counts("210", "test") == pytest.approx([210 * n / 372 for n in SHARES.values()], abs=1)


def test_on_test_scores_all_test_texts(folder: Path) -> None:
    _, scored = quality.draw(folder, "8", 0, "test")
    assert to_texts(scored) == to_texts(table_of(10_000))
    labelled, _ = quality.draw(folder, "all", 0, "test")
    assert len(labelled) == 2 * sum(SHARES.values())


def test_sizes_of_a_seed_are_nested_and_score_the_same_texts(folder: Path) -> None:
    small, scored = quality.draw(folder, "8", 3, "folds")
    large, same = quality.draw(folder, "16", 3, "folds")
    assert scored.index.equals(same.index)
    assert set(small.index) < set(large.index)


def test_a_tenth_of_each_class_is_held_out_but_at_least_one_text() -> None:
    targets = np.repeat([0, 1, 2, 3], [100, 8, 2, 1])
    assert np.bincount(targets[quality.tenth(targets, 0)], minlength=4).tolist() == [10, 1, 1, 0]


def scores(predicted: np.ndarray, targets: np.ndarray, table: str) -> quality.Score:
    predictions = {"predicted": predicted.tolist(), "confidence": np.full(len(targets), 0.75).tolist()}
    return quality.score(targets, quality.resamples(table, np.arange(len(targets))), predictions)


def test_the_pooled_difference_is_paired_and_weights_tables_equally() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 400)
    right, half = targets, np.where(rng.random(400) < 0.5, targets, (targets + 1) % 3)
    ours = {("a", 0): scores(right, targets, "a"), ("a", 1): scores(right, targets, "a")}
    ours["b", 0] = scores(half, targets, "b")
    assert quality.ahead(ours, ours) == (0.0, 0.0, 0.0)

    other = {("a", 0): scores(half, targets, "a"), ("a", 1): scores(half, targets, "a")}
    gap = ours["a", 0].macro_f1 - other["a", 0].macro_f1
    value, low, high = quality.ahead(ours, other)
    assert value == pytest.approx(gap)
    error = 0.5 / np.sqrt(400)  # standard error of the accuracy, which is close to macro-F1 in this test
    assert low == pytest.approx(value - 1.96 * error, abs=0.01)
    assert high == pytest.approx(value + 1.96 * error, abs=0.01)

    value, low, high = quality.ahead(ours, other | {("b", 0): ours["b", 0], ("c", 0): ours["b", 0]})
    assert value == pytest.approx(gap / 2)
    assert high - low < 1.96 * error + 0.02


def test_missing_predictions_are_wrong_and_confidence_is_compared_with_accuracy() -> None:
    targets = np.repeat([0, 1], 20)
    predicted = np.where(np.arange(40) < 30, targets, -1)
    found = scores(predicted, targets, "a")
    assert found.ece == pytest.approx(0.0)
    assert found.macro_f1 == pytest.approx((1 + 2 / 3 + 0) / 3)
