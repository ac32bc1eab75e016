"""The accuracy to expect on new texts without labels."""

import numpy as np
import pytest

from bertsmith.measuring.expected_accuracy import FEWEST, GRID, expect_accuracy, grid_of


def _world(rng, n, shares):
    """Return targets, confidence and decisions of a model that is right as often as its confidence says."""
    targets = rng.choice(len(shares), n, p=shares)
    skill = np.array([0.95, 0.7, 0.6])[: len(shares)]
    right = rng.random(n) < skill[targets]
    decided = np.where(right, targets, (targets + 1) % len(shares))
    confidence = np.clip(skill[decided] + rng.normal(0, 0.05, n), 0.34, 1)
    return targets, confidence, decided


def _expect(new, held_out, k=3):
    _, confidence, decided = new
    bins = np.bincount([grid_of(c) for c in confidence], minlength=GRID)
    targets, held_out_confidence, held_out_decided = held_out
    return expect_accuracy(bins, np.bincount(decided, minlength=k), targets, held_out_confidence, held_out_decided)


@pytest.mark.parametrize("shares", [(0.6, 0.3, 0.1), (0.1, 0.3, 0.6), (0.34, 0.33, 0.33)])
def test_the_interval_contains_the_accuracy_also_when_the_class_shares_change(shares):
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(40):
        new = _world(rng, 800, shares)
        found = _expect(new, _world(rng, 500, (0.6, 0.3, 0.1)))
        inside.append(found.low <= (new[0] == new[2]).mean() <= found.high)
        assert found.low <= found.high
    assert np.mean(inside) >= 0.9


def test_a_lower_confidence_lowers_the_expected_accuracy():
    rng = np.random.default_rng(1)
    held_out = _world(rng, 1000, (0.6, 0.3, 0.1))
    sure, unsure = _world(rng, 1000, (1.0, 0.0, 0.0)), _world(rng, 1000, (0.0, 0.0, 1.0))
    assert _expect(sure, held_out).value > _expect(unsure, held_out).value + 0.15


def test_few_texts_give_no_expectation():
    rng = np.random.default_rng(2)
    many, few = _world(rng, 500, (0.6, 0.3, 0.1)), _world(rng, FEWEST - 1, (0.6, 0.3, 0.1))
    assert _expect(few, many) is None
    assert _expect(many, few) is None


def test_the_bins_of_confidence_cover_0_to_1():
    assert [grid_of(c) for c in (0.0, 0.009, 0.5, 0.999, 1.0)] == [0, 0, 50, 99, 99]
