"""The accuracy to expect on new texts without labels."""

import numpy as np
import pytest

from bertsmith.measuring.expected_accuracy import (
    FEWEST,
    GRID,
    LENGTHS,
    expect_accuracy,
    grid_of,
    length_bin,
)


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


def test_the_interval_contains_the_accuracy_if_classes_vanish_that_are_never_predicted():
    rng = np.random.default_rng(7)

    def world(n, shares):
        targets = rng.choice(3, n, p=shares)
        confidence = np.clip(np.where(targets == 2, 0.6, 0.9) + rng.normal(0, 0.15, n), 0.34, 1)
        return targets, confidence, np.where(targets == 2, 1, targets)  # the last class is predicted as the second

    inside = []
    for _ in range(20):
        new, held_out = world(800, (0.35, 0.65, 0)), world(500, (0.5, 0.35, 0.15))
        found = _expect(new, held_out)
        inside.append(found.low <= (new[0] == new[2]).mean() <= found.high)
    assert np.mean(inside) >= 0.9


def test_groups_that_differ_widen_the_interval():
    rng = np.random.default_rng(6)
    targets, confidence, decided = held_out = _world(rng, 500, (0.6, 0.3, 0.1))
    new = _world(rng, 800, (0.6, 0.3, 0.1))
    bins, predicted = np.bincount([grid_of(c) for c in new[1]], minlength=GRID), np.bincount(new[2], minlength=3)
    order = np.argsort(decided == targets, kind="stable")  # the mistakes are in the first groups
    held_out = targets[order], confidence[order], decided[order]
    alone = expect_accuracy(bins, predicted, *held_out)
    found = [expect_accuracy(bins, predicted, *held_out, groups=np.arange(500) // size) for size in (1, 25)]
    widths = [each.high - each.low for each in (alone, *found)]
    assert 0.8 * widths[0] < widths[1] < 1.25 * widths[0]
    assert widths[2] > 2 * widths[0]
    assert [each.groups for each in (alone, *found)] == [None, 500, 20]
    one = expect_accuracy(bins, predicted, *held_out, groups=np.zeros(500))
    assert (one.low, one.high, one.groups) == (0, 1, 1)


def test_a_lower_confidence_lowers_the_expected_accuracy():
    rng = np.random.default_rng(1)
    held_out = _world(rng, 1000, (0.6, 0.3, 0.1))
    sure, unsure = _world(rng, 1000, (1.0, 0.0, 0.0)), _world(rng, 1000, (0.0, 0.0, 1.0))
    assert _expect(sure, held_out).value > _expect(unsure, held_out).value + 0.15


def test_texts_of_another_length_widen_the_interval_down_to_0():
    rng = np.random.default_rng(3)
    (_, new_confidence, new_decided), held_out = _world(rng, 800, (0.6, 0.3, 0.1)), _world(rng, 500, (0.6, 0.3, 0.1))
    bins = np.bincount([grid_of(c) for c in new_confidence], minlength=GRID)
    found = {}
    for name, factor in (("same", 1), ("shorter", 0.4)):
        new, before = (np.round(rng.lognormal(4.5, 0.4, n) * f) for n, f in ((800, factor), (500, 1)))
        counts = [np.bincount([length_bin(int(n)) for n in some], minlength=LENGTHS) for some in (new, before)]
        targets, confidence, decided = held_out
        predicted = np.bincount(new_decided, minlength=3)
        found[name] = expect_accuracy(bins, predicted, targets, confidence, decided, tuple(counts))
    assert not found["same"].unlike
    assert found["shorter"].unlike
    assert found["shorter"].low == 0 < found["same"].low
    assert found["shorter"].high == found["same"].high


def test_labels_that_no_shares_explain_widen_the_interval():
    rng = np.random.default_rng(4)
    held_out, (_, confidence, _) = _world(rng, 500, (0.6, 0.3, 0.1)), _world(rng, 800, (0.6, 0.3, 0.1))
    for decided, unlike in (
        (rng.choice(3, 800, p=(0.0, 0.99, 0.01)), True),
        (_world(rng, 800, (0.0, 1.0, 0.0))[2], True),  # two classes vanish
        (_world(rng, 800, (0.2, 0.6, 0.2))[2], False),
    ):
        found = _expect((None, confidence, decided), held_out)
        assert found.unlike == unlike
        assert (found.low == 0) == unlike


def test_many_classes_with_few_texts_are_not_called_unlike():
    rng = np.random.default_rng(5)
    worlds = []
    for n in (400, 800):
        targets = rng.integers(0, 120, n)
        decided = np.where(rng.random(n) < 0.9, targets, rng.integers(0, 120, n))
        worlds.append((targets, np.full(n, 0.9), decided))
    assert not _expect(worlds[1], worlds[0], 120).unlike


def test_bins_of_length_grow_with_it():
    bins = [length_bin(n) for n in (0, 1, 10, 20, 100, 10**6, 10**9)]
    assert bins == sorted(bins)
    assert bins[0] == 0
    assert bins[-1] == LENGTHS - 1
    assert length_bin(200) - length_bin(100) == 8


def test_few_texts_give_no_expectation():
    rng = np.random.default_rng(2)
    many, few = _world(rng, 500, (0.6, 0.3, 0.1)), _world(rng, FEWEST - 1, (0.6, 0.3, 0.1))
    assert _expect(few, many) is None
    assert _expect(many, few) is None


def test_the_bins_of_confidence_cover_0_to_1():
    assert [grid_of(c) for c in (0.0, 0.009, 0.5, 0.999, 1.0)] == [0, 0, 50, 99, 99]
