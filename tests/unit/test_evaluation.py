"""Metrics, intervals and calibration, checked against scikit-learn, scipy or explicit sums."""

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from bertsmith.bootstrap import draw_resamples, warn_of_few_groups
from bertsmith.data.table import Labels
from bertsmith.evaluation import evaluate as evaluation
from bertsmith.evaluation.baseline import bag_of_words, verdict
from bertsmith.evaluation.calibration import calibration_metrics, fit_temperature, reliability, softmax, to_logits
from bertsmith.evaluation.evaluate import compare_classifiers, evaluate, paired_difference
from bertsmith.evaluation.intervals import resampled_average_precision, resampled_label_metrics
from bertsmith.tasks.registry import get_task
from bertsmith.testing import tiny_table

SINGLE = get_task()
ABC = Labels((5, 6, 7), ("a", "b", "c"))

TARGETS = np.array([0, 0, 1, 1, 2])
PROBABILITIES = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.1, 0.8, 0.1], [0.2, 0.7, 0.1], [0.6, 0.2, 0.2]])


def _random(seed, n, k, sharp=1.0):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, k, n)
    logits = rng.normal(size=(n, k)) + sharp * np.eye(k)[targets]
    p = np.exp(logits)
    return targets, p / p.sum(axis=1, keepdims=True)


def _intervals(targets, probabilities, **options):
    """Return the interval of each metric."""
    labels = Labels(tuple(range(probabilities.shape[1])), tuple("abcdef"[: probabilities.shape[1]]))
    found = evaluate(SINGLE, targets, probabilities, labels, detail=False, **options)
    return {name: entry["interval"] for name, entry in found["metrics"].items()}


def test_metrics_match_explicit_sums():
    values = SINGLE.scalar_metrics(TARGETS, PROBABILITIES)
    assert values.keys() == SINGLE.metric_names.keys()
    assert values["accuracy"] == pytest.approx(3 / 5)
    # F1: class 0 has 1 hit, 2 texts, 2 predictions; class 1 has 2, 2, 3; class 2 has none.
    assert values["macro_f1"] == pytest.approx((0.5 + 0.8 + 0) / 3)
    assert values["balanced_accuracy"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert values["log_loss"] == pytest.approx(-np.log([0.8, 0.3, 0.8, 0.7, 0.2]).mean())


def test_undefined_metrics_are_none():
    classes = SINGLE.details(TARGETS, PROBABILITIES, ABC)["per_class"]
    assert classes[2]["precision"] is None  # never predicted
    assert classes[2]["recall"] == 0
    absent = SINGLE.details(np.array([0, 0]), np.array([[0.9, 0.1, 0], [0.2, 0.8, 0]]), ABC)["per_class"]
    assert absent[1]["recall"] is None  # no such text
    assert absent[1]["precision"] == 0
    assert absent[2]["f1"] is None
    assert absent[2]["average_precision"] is None
    one = SINGLE.scalar_metrics(np.array([0, 0]), np.array([[0.9, 0.1], [0.9, 0.1]]))
    assert one["mcc"] is None
    assert one["macro_average_precision"] is None


def _expected(targets, probabilities):
    """Return the metrics by scikit-learn."""
    predicted, present = probabilities.argmax(axis=1), np.unique(targets)
    recalls = sk.recall_score(targets, predicted, labels=present, average=None, zero_division=0)
    found = {"accuracy": sk.accuracy_score(targets, predicted), "balanced_accuracy": recalls.mean()}
    for average in ("macro", "weighted"):
        values = sk.precision_recall_fscore_support(targets, predicted, average=average, zero_division=0)
        found |= {f"{average}_{name}": v for name, v in zip(("precision", "recall", "f1"), values[:3], strict=True)}
    precisions = [sk.average_precision_score(targets == c, probabilities[:, c]) for c in present]
    several = len(present) > 1
    return {
        **found,
        "mcc": sk.matthews_corrcoef(targets, predicted) if several else None,
        "log_loss": sk.log_loss(targets, probabilities, labels=np.arange(probabilities.shape[1])),
        "macro_average_precision": np.mean(precisions) if several else None,
    }


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(2, 6), st.sampled_from([0.0, 8.0]))
def test_metrics_agree_with_scikit_learn(seed, n, k, sharp):
    """With few texts, there are tables of a single class; sharp scores give predictions that are all correct."""
    targets, probabilities = _random(seed, n, k, sharp)
    values, expected = SINGLE.scalar_metrics(targets, probabilities), _expected(targets, probabilities)
    assert values.keys() == expected.keys()
    for name, value in values.items():
        assert value == pytest.approx(expected[name], abs=1e-12), name
    epoch = SINGLE.validation_metrics(targets, probabilities)
    assert epoch == {name: values[name] for name in ("accuracy", "macro_f1")}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(2, 6))
def test_metrics_per_class_and_the_confusion_matrix_agree_with_scikit_learn(seed, n, k):
    targets, probabilities = _random(seed, n, k)
    predicted, classes = probabilities.argmax(axis=1), np.arange(k)
    details = SINGLE.details(targets, probabilities, Labels(tuple(range(k)), tuple("abcdef"[:k])))
    theirs = sk.precision_recall_fscore_support(targets, predicted, labels=classes, average=None, zero_division=np.nan)
    for name, expected in zip(("precision", "recall", "f1", "texts"), theirs, strict=True):
        found = [np.nan if entry[name] is None else entry[name] for entry in details["per_class"]]
        assert found == pytest.approx(expected.tolist(), nan_ok=True), name
    for c, entry in enumerate(details["per_class"]):
        truth = targets == c
        expected = sk.average_precision_score(truth, probabilities[:, c]) if truth.any() else None
        assert entry["average_precision"] == pytest.approx(expected)
        assert (entry["predicted"], entry["label_text"]) == ((predicted == c).sum(), "abcdef"[c])
    assert details["confusion"] == sk.confusion_matrix(targets, predicted, labels=classes).tolist()


def test_resampled_metrics_equal_metrics_of_the_drawn_texts():
    targets, probabilities = _random(3, 30, 4)
    predicted = probabilities.argmax(axis=1)
    (drawn,) = draw_resamples(30, None, np.random.default_rng(0), 20)
    assert (drawn.sum(axis=1) == 30).all()
    found = resampled_label_metrics(drawn, targets, predicted, 4)
    for i, times in enumerate(drawn):
        alone = resampled_label_metrics(np.ones((1, 30)), np.repeat(targets, times), np.repeat(predicted, times), 4)
        assert {name: values[i] for name, values in found.items()} == pytest.approx({k: v[0] for k, v in alone.items()})


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(5, 80), st.integers(2, 5), st.sampled_from([1, 15]))
def test_average_precision_agrees_with_scikit_learn(seed, n, k, decimals):
    targets, probabilities = _random(seed, n, k)
    probabilities = probabilities.round(decimals)
    present = np.unique(targets)
    expected = np.mean([sk.average_precision_score(targets == c, probabilities[:, c]) for c in present])
    once = resampled_average_precision(
        np.eye(probabilities.shape[1], dtype=bool)[targets], probabilities, np.ones((1, n))
    )
    assert once[0] == pytest.approx(expected, abs=1e-12)


def test_the_accuracy_interval_is_binomial():
    targets, probabilities = _random(1, 400, 3)
    low, high = _intervals(targets, probabilities, seed=0)["accuracy"]
    hits = (probabilities.argmax(axis=1) == targets).sum()
    expected = stats.binom(400, hits / 400).ppf([0.025, 0.975]) / 400
    assert [low, high] == pytest.approx(expected.tolist(), abs=0.008)


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("n_groups", [None, 3])
def test_the_accuracy_interval_is_exact_where_all_or_no_texts_are_right(right, n_groups):
    targets = np.arange(6) % 2
    probabilities = np.eye(2)[targets if right else 1 - targets]
    groups = None if n_groups is None else np.arange(6) % n_groups
    intervals = _intervals(targets, probabilities, seed=0, groups=groups)
    far = 0.025 ** (1 / (n_groups or 6))  # of no mistakes in n trials, the closed form
    assert intervals["accuracy"] == pytest.approx((far, 1) if right else (0, 1 - far))
    assert intervals["weighted_recall"] == intervals["accuracy"]
    ordinal = get_task("ordinal")
    levels = evaluate(ordinal, targets, probabilities, Labels((0, 1), ("a", "b")), seed=0, groups=groups)["metrics"]
    assert levels["accuracy"] == {"value": right, "interval": intervals["accuracy"]}


def test_intervals_have_about_nominal_coverage(monkeypatch):
    monkeypatch.setattr(evaluation, "RESAMPLES", 300)
    truth = np.mean([SINGLE.validation_metrics(*_random(s, 4000, 3))["macro_f1"] for s in range(5)])
    inside = 0
    for seed in range(60):
        low, high = _intervals(*_random(100 + seed, 150, 3), seed=seed)["macro_f1"]
        inside += low <= truth <= high
    assert inside >= 51  # 95 % of 60 is 57; fewer than 51 has a chance below 1 in 100


def test_bootstrap_is_seeded_and_covers_every_metric():
    targets, probabilities = _random(0, 50, 3)
    first = _intervals(targets, probabilities, seed=7)
    assert first == _intervals(targets, probabilities, seed=7)
    assert first.keys() == SINGLE.metric_names.keys()
    assert all(low <= high for low, high in first.values())


def test_calibration_matches_explicit_sums():
    values = {
        **calibration_metrics(TARGETS, PROBABILITIES),
        **reliability(PROBABILITIES.max(axis=1), PROBABILITIES.argmax(axis=1) == TARGETS, bins=2),
    }
    # One bin holds everything above one half: accuracy 3/5, mean confidence 0.7.
    assert values["expected_calibration_error"] == pytest.approx(abs(0.7 - 0.6))
    assert values["bins"] == [{"texts": 5, "confidence": pytest.approx(0.7), "accuracy": pytest.approx(0.6)}]
    truth = np.eye(3)[TARGETS]
    assert values["brier_score"] == pytest.approx(((PROBABILITIES - truth) ** 2).sum() / 5)


def test_a_calibrated_model_stays_below_the_chance_level_19_times_in_20():
    below = above = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        honest = rng.dirichlet(np.full(3, 0.5), 200)
        targets = (honest.cumsum(axis=1) < rng.random((200, 1))).sum(axis=1)  # drawn as the probabilities say
        said = calibration_metrics(targets, honest)
        below += said["expected_calibration_error"] <= said["by_chance"]
        too_sure = honest**3 / (honest**3).sum(axis=1, keepdims=True)
        said = calibration_metrics(targets, too_sure)
        above += said["expected_calibration_error"] > said["by_chance"]
    assert 87 <= below <= 100  # fewer has a chance below 1 in 1,000
    assert above >= 95


def test_perfect_confidence_has_no_calibration_error():
    values = calibration_metrics(np.array([0, 1]), np.eye(2))
    assert values["expected_calibration_error"] == values["by_chance"] == 0
    assert values["brier_score"] == 0


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 1.0, 3.0]))
def test_the_temperature_of_a_distorted_model_is_found(seed, distortion):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(4000, 4)) * 2
    honest = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    targets = (honest.cumsum(axis=1) < rng.random((4000, 1))).sum(axis=1)  # drawn as the probabilities say
    distorted = softmax(to_logits(honest) * distortion)
    assert fit_temperature(targets, distorted) == pytest.approx(distortion, rel=0.15)


@pytest.mark.parametrize("n", [6, 25])
def test_a_temperature_fitted_on_few_texts_hardly_raises_the_loss(n):
    """The maximum-likelihood temperature raises the log loss by 0.4 with six texts and by 0.1 with 25."""
    rng = np.random.default_rng(0)
    worse = []
    for _ in range(100):
        targets = rng.integers(0, 2, n + 500)
        logits = 1.5 * (rng.normal(size=(n + 500, 2)) + np.eye(2)[targets])
        honest = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        targets = (honest[:, 0] < rng.random(n + 500)).astype(int)
        found = softmax(to_logits(honest) / fit_temperature(targets[:n], honest[:n]))
        loss = [-np.log(p[np.arange(n, n + 500), targets[n:]]).mean() for p in (found, honest)]
        worse.append(loss[0] - loss[1])
    assert np.mean(worse) < 0.02
    assert max(worse) < 0.2


def test_texts_that_are_all_predicted_correctly_leave_the_temperature_at_one():
    assert fit_temperature(np.array([0, 1, 1]), np.array([[0.6, 0.4], [0.2, 0.8], [0.4, 0.6]])) == pytest.approx(
        1, abs=0.1
    )


def test_the_majority_baseline_predicts_training_shares():
    name, probabilities = SINGLE.naive_baseline(np.repeat([0, 1], [30, 10]), 3, Labels((1, 2), ("a", "b")))
    assert name == "a"
    assert probabilities.tolist() == [[0.75, 0.25]] * 3
    assert SINGLE.scalar_metrics(np.array([0, 1, 0]), probabilities)["macro_f1"] == pytest.approx((2 * 2 / 5) / 2)


def test_a_paired_difference_has_a_narrower_interval():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 400)
    one = np.where(rng.random(400) < 0.85, targets, rng.integers(0, 3, 400))
    two = np.where(rng.random(400) < 0.9, one, (one + 1) % 3)  # wrong where `one` is, and in some more places
    found = paired_difference(SINGLE, targets, np.eye(3)[one], np.eye(3)[two], seed=0)
    value, (low, high) = found["value"], found["interval"]
    assert found["metric"] == "macro_f1"
    assert value == pytest.approx(
        sk.f1_score(targets, one, average="macro") - sk.f1_score(targets, two, average="macro")
    )
    assert 0 < low < value < high
    intervals = [_intervals(targets, np.eye(3)[p], seed=0)["macro_f1"] for p in (one, two)]
    assert high - low < sum(b - a for a, b in intervals) / 2
    same = paired_difference(SINGLE, targets, np.eye(3)[one], np.eye(3)[one], seed=0)
    assert same == {"metric": "macro_f1", "value": 0, "interval": None}


def test_a_difference_without_variation_decides_no_comparison():
    scores = {"first": np.array([[1.0, 0, 0]]), "second": np.array([[0, 1.0, 0]])}
    _, second = compare_classifiers(SINGLE, np.array([0]), scores, seeds=[0, 0])
    assert second["difference"] == {"metric": "macro_f1", "value": -1, "interval": None, "distinguishable": False}


def test_one_group_has_no_intervals_and_decides_no_comparison():
    targets, probabilities = _random(1, 60, 3)
    others = np.roll(probabilities, 1, axis=1)
    groups = np.zeros(60, dtype=np.int64)
    found = evaluate(SINGLE, targets, probabilities, ABC, seed=0, groups=groups)
    assert found["interval"]["groups"] == 1
    assert {entry["interval"] for entry in found["metrics"].values()} == {None}
    scores = {"first": np.eye(3)[targets], "second": others}
    _, second = compare_classifiers(SINGLE, targets, scores, seeds=[0, 0], groups=groups)
    assert second["difference"]["value"] < -0.1
    assert (second["difference"]["interval"], second["difference"]["distinguishable"]) == (None, False)
    assert verdict(second["difference"], 60).startswith("not distinguishable")
    assert paired_difference(SINGLE, targets, probabilities, others, seed=0, groups=np.arange(60) % 2)["interval"]


@pytest.mark.parametrize(("n_groups", "warned"), [(1, True), (9, True), (10, False)])
def test_few_groups_are_named(n_groups, warned):
    assert (warn_of_few_groups(np.arange(20) % n_groups, "texts") is not None) == warned
    assert warn_of_few_groups(None, "texts") is None


def test_the_baseline_learns_words_and_accepts_odd_texts():
    train, test = tiny_table(90), tiny_table(30, seed=4)
    found = bag_of_words(train["Text"].tolist(), train["Label"].to_numpy(), test["Text"].tolist(), n_classes=4, seed=0)
    assert (found.scores.argmax(axis=1) == test["Label"]).mean() > 0.9
    assert found.scores.sum(axis=1) == pytest.approx(1, abs=1e-6)
    assert (found.scores[:, 3] == 0).all()  # a class without a training text
    odd = bag_of_words(["🙂", "!", "🙂 x", "?"], np.array([0, 1, 0, 1]), ["🙂", ""], n_classes=2, seed=0)
    assert odd.scores.shape == (2, 2)


def test_the_baseline_is_quick_with_many_classes_and_finds_the_rare_ones():
    """Cross-validated logistic regression takes 20 times as long here and reaches a macro-F1 of 0.14."""
    rng = np.random.default_rng(0)
    filler = [f"w{i}" for i in range(400)]

    def drawn(counts):
        targets = np.repeat(np.arange(52), counts)
        return [" ".join([*rng.choice(filler, 60), *[f"topic{c}"] * (1 + c % 2)]) for c in targets], targets

    texts, targets = drawn([40] * 12 + [3] * 40)
    others, truth = drawn([2] * 52)
    began = time.process_time()
    found = bag_of_words(texts, targets, others, n_classes=52, seed=0)
    assert time.process_time() - began < 6
    predicted = found.scores.argmax(axis=1)
    assert sk.f1_score(truth, predicted, average="macro") > 0.8
    assert found.classifier.startswith("linear SVM")


def test_the_margins_of_the_baseline_are_calibrated():
    """Half of the labels are random, so confidence stays near 5/8."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 1200)
    texts = [f"topic{c} {' '.join(rng.choice(['a', 'b', 'c', 'd'], 5))}" for c in truth]
    labels = np.where(rng.random(1200) < 0.5, truth, rng.integers(0, 4, 1200))
    found = bag_of_words(texts[:800], labels[:800], texts[800:], n_classes=4, seed=0)
    assert calibration_metrics(labels[800:], found.scores)["expected_calibration_error"] < 0.07


@pytest.mark.parametrize(
    ("interval", "expected"),
    [([0.05, 0.2], "better than"), ([-0.2, -0.05], "worse than"), ([-0.1, 0.2], "not distinguishable")],
)
def test_the_verdict_follows_the_interval(interval, expected):
    assert verdict({"value": np.mean(interval), "interval": interval}, 100).startswith(expected)


def test_the_bootstrap_resamples_whole_groups():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 10)
    targets = np.repeat(rng.integers(0, 2, 40), 10)
    right = np.repeat(rng.random(40) < 0.8, 10)  # all texts of a group are right, or none
    probabilities = np.eye(2)[np.where(right, targets, 1 - targets)]
    by_text = _intervals(targets, probabilities, seed=0)["accuracy"]
    by_group = _intervals(targets, probabilities, seed=0, groups=groups)["accuracy"]
    expected = np.sqrt(right.mean() * (1 - right.mean()) / 40) * 2 * 1.96
    assert by_group[1] - by_group[0] == pytest.approx(expected, rel=0.2)
    assert by_group[1] - by_group[0] > 2.5 * (by_text[1] - by_text[0])
    alone = _intervals(targets, probabilities, seed=0, groups=np.arange(400))["accuracy"]
    assert alone[1] - alone[0] == pytest.approx(by_text[1] - by_text[0], rel=0.15)
    (drawn,) = draw_resamples(6, np.array([5, 5, 7, 7, 7, 9]), np.random.default_rng(1), 50)
    assert drawn.shape == (50, 6)
    assert all((drawn[:, i] == drawn[:, j]).all() for i, j in ((0, 1), (2, 3), (3, 4)))
    assert (drawn[:, [0, 2, 5]].sum(axis=1) == 3).all()


def test_an_evaluation_is_json_ready():
    result = evaluate(SINGLE, TARGETS, PROBABILITIES, ABC, seed=0)
    assert json.loads(json.dumps(result)) == result
    assert result["texts"] == 5
    assert result["confusion"] == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
    assert [e["label"] for e in result["per_class"]] == [5, 6, 7]
    assert all(entry["interval"] is not None for entry in result["metrics"].values())


def test_a_bag_of_words_accepts_few_texts_per_class():
    texts = [f"text number {i} word{i % 77}" for i in range(154)]
    found = bag_of_words(texts, np.arange(154) % 77, texts[:5], n_classes=77, seed=0)  # a warning would be an error
    assert found.scores.shape == (5, 77)
