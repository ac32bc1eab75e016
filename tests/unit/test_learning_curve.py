"""The gain of more labels: the power law, its interval, the rule to stop."""

import numpy as np
import pytest

from bertsmith.config import Config
from bertsmith.evaluation.learning_curve import Curve, ExpectedGain, learning_curve, stopping_rule
from bertsmith.labelling.pool import PoolFile
from bertsmith.labelling.project import SETTLER, Decision, Project, Queued
from bertsmith.tasks.registry import get_task
from bertsmith.workflows import labelling_gain
from bertsmith.workflows.labelling_gain import estimate_gain, estimate_project


@pytest.mark.parametrize(("limit", "slope", "exponent"), [(0.9, 1.5, 0.5), (0.7, 0.8, 0.3), (0.95, 4.0, 0.9)])
def test_a_power_law_is_continued(limit, slope, exponent):
    sizes = np.array([40, 80, 160, 320])
    scores = np.tile(limit - slope * sizes**-exponent, (5, 1))
    gain, low, high, most = Curve(sizes, scores).gain(400, 400)
    expected = slope * (400**-exponent - 800**-exponent)
    assert gain == pytest.approx(expected, rel=0.02)
    assert low <= gain <= high <= most + 1e-9
    noisy = Curve(sizes, scores, noise=0.02).gain(400, 400)
    assert noisy.high - noisy.low == pytest.approx(2 * 1.96 * 0.02, rel=0.3)
    assert noisy.most == most


def test_a_flat_or_falling_curve_gains_nothing():
    sizes = np.array([50, 100, 200])
    assert Curve(sizes, np.tile([0.8, 0.8, 0.8], (3, 1))).gain(300, 300) == pytest.approx((0, 0, 0, 0))
    assert Curve(sizes, np.tile([0.8, 0.7, 0.6], (3, 1))).gain(300, 300)[0] == 0


def test_too_few_texts_have_no_curve():
    assert learning_curve(20, None, None, seed=0) is None


def test_a_curve_of_many_texts_uses_some_of_them(monkeypatch):
    monkeypatch.setattr("bertsmith.evaluation.learning_curve.MOST", 100)
    trained, predicted = set(), set()

    def predict(inside, outside):
        trained.update(inside.tolist())
        predicted.update(outside.tolist())
        return np.zeros((len(outside), 2))

    curve = learning_curve(400, predict, lambda drawn, scores: drawn.sum(axis=1) / 100, seed=0)
    assert len(trained | predicted) == 100
    assert curve.sizes.tolist() == [9, 19, 38, 56, 75]
    assert curve.scores == pytest.approx(1)


def separable(n, noise, seed):
    """Return embeddings of unit length and classes, of which a regression learns more with more texts."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, n)
    centres = np.random.default_rng(99).normal(size=(3, 64))
    x = centres[targets] + noise * rng.normal(size=(n, 64))
    return x / np.linalg.norm(x, axis=1, keepdims=True), targets


def test_the_expected_gain_is_close_to_the_true_one():
    task, found = get_task(), []
    test_x, test_y = separable(2000, 6, 10**6)
    from bertsmith.workflows.embeddings import head_features

    def true_score(x, y):
        head = task.fit_head(head_features(x), y, 3)
        return task.scalar_metrics(test_y, task.scores(head.logits(head_features(test_x))))["macro_f1"]

    for seed in range(3):
        x, y = separable(400, 6, seed)
        estimate = estimate_gain(x[:100], y[:100], np.arange(100) < 40, task, 3, 300, seed=seed)
        gain = true_score(x, y) - true_score(x[:100], y[:100])
        found.append((estimate.gain, gain, estimate.low <= gain <= estimate.high))
        assert estimate.gain > 0
        assert estimate.accuracy_low <= estimate.accuracy <= estimate.accuracy_high
    expected, true, inside = np.mean(found, axis=0)
    assert abs(expected - true) < 0.06
    assert inside > 0.5


def test_rare_labels_get_a_threshold_as_the_model_has(monkeypatch):
    rng, task, curves = np.random.default_rng(0), get_task("multi-label"), []
    x = rng.normal(size=(600, 30))
    targets = x @ rng.normal(size=(30, 4)) + rng.normal(size=(600, 4)) > 7
    monkeypatch.setattr(
        labelling_gain, "learning_curve", lambda n, *curve, seed, adjust: curves.append((*curve, adjust))
    )
    estimate_gain(x, targets, np.zeros(600, dtype=bool), task, 4, 300, seed=0)
    ((predict, score, adjust),) = curves
    fold, drawn, scores = np.arange(600) % 3 - 1, np.zeros((1, 600)), np.zeros((600, 4))
    outside = fold >= 0
    drawn[:, outside], scores[outside] = 1, predict(np.flatnonzero(~outside), np.flatnonzero(outside))
    without = score(drawn, scores)[0]
    assert score(drawn, adjust(scores.copy(), fold))[0] > without + 0.1


@pytest.mark.parametrize(
    ("estimate", "enough"),
    [
        (ExpectedGain(50, 300), False),
        (ExpectedGain(500, 300, gain=0.05, low=0.0, high=0.1, most=0.08), False),
        (ExpectedGain(500, 300, gain=0.002, low=-0.02, high=0.03, most=0.008), True),
        (
            ExpectedGain(500, 300, most=0.08, accuracy=0.8, accuracy_low=0.76, accuracy_high=0.84, ceiling=(0.7, 0.75)),
            True,
        ),
        (
            ExpectedGain(500, 300, most=0.08, accuracy=0.8, accuracy_low=0.76, accuracy_high=0.84, ceiling=(0.8, 0.81)),
            False,
        ),
        (
            ExpectedGain(500, 300, most=0.08, accuracy=0.8, accuracy_low=0.76, accuracy_high=0.84, ceiling=(0.7, 0.8)),
            False,
        ),
    ],
)
def test_the_rule_to_stop(estimate, enough):
    found, reason = stopping_rule(estimate)
    assert found is enough
    assert reason


@pytest.mark.parametrize("task", ["single-label", "multi-label", "ordinal"])
def test_the_estimate_of_a_project_is_saved(tmp_path, monkeypatch, task):
    for name, value in (("REPEATS", 2), ("FRACTIONS", (0.5, 0.75, 1.0))):
        monkeypatch.setattr(f"bertsmith.evaluation.learning_curve.{name}", value)
    project = Project(tmp_path / "p", {"labels": ["a", "b", "c"], "task": task, "pool_rows": 100})
    x, targets = separable(350, 0.5, 1)
    texts = [f"text {i}" for i in range(350)]
    PoolFile(project.path, "model", 64).update(texts, 0, lambda some: x, "pool")
    project.add_texts([Queued(i + 1, texts[i], "x", i < 40) for i in range(100)])
    for i in range(100):
        project.decide(Decision(i + 1, "ann", "labelled", ("abc"[targets[i]],), seconds=6.0))
    estimate = estimate_project(project, Config(), 300)
    assert estimate.more == 250  # the pool has no more
    assert estimate.hours == pytest.approx(250 * 6 / 3600)
    assert estimate.accuracy > 0.8
    assert estimate.high < 0.2
    assert project.setting("estimate")["sentence"] == estimate.sentence


def test_the_ceiling_is_the_agreement_on_random_texts_without_a_tie(tmp_path):
    project = Project(tmp_path / "p", {"labels": ["a", "b", "c"], "pool_rows": 50})
    x, targets = separable(50, 0.5, 1)
    texts = [f"text {i}" for i in range(50)]
    PoolFile(project.path, "model", 64).update(texts, 0, lambda some: x, "pool")
    project.add_texts([Queued(i + 1, texts[i], "x", i < 40) for i in range(50)])
    for i in range(50):
        for coder in ("ann", "ben"):  # they differ on four random texts, and on every other chosen one
            other = coder == "ben" and (i % 10 == 0 if i < 40 else i % 2 == 0)
            project.decide(Decision(i + 1, coder, "labelled", ("abc"[(targets[i] + other) % 3],)))
    assert estimate_project(project, Config()).ceiling is None
    for i in [*range(0, 40, 10), *range(40, 50, 2)]:
        project.decide(Decision(i + 1, SETTLER, "labelled", ("abc"[targets[i]],)))
    estimate = estimate_project(project, Config())
    assert estimate.enough  # every text has a label
    share, high = estimate.ceiling
    assert share == pytest.approx(0.9)
    assert 0.9 < high <= 1
