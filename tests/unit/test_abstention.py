"""Thresholds and label sets keep what they promise."""

import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score

import bertsmith as bs
from bertsmith.errors import ConfigError
from bertsmith.evaluation.abstention import (
    accuracy_coverage_curve,
    confidence_threshold,
    conformal_threshold,
    coverage_interval,
    label_shift,
)
from bertsmith.inference.abstain import fit_abstention
from bertsmith.inference.ensemble import Ensemble
from bertsmith.serving.drift import DriftWatch
from bertsmith.tasks.registry import get_task

SINGLE = get_task()

seeds = st.integers(0, 10**6)


def _world(rng, n, k=5):
    """Probabilities that are somewhat right, and truths drawn from a sharper version of them."""
    logits = rng.normal(size=(n, k)) * 2
    said = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    sharper = np.exp(1.5 * logits)
    sharper /= sharper.sum(axis=1, keepdims=True)
    return (rng.random((n, 1)) > sharper.cumsum(axis=1)).sum(axis=1).clip(0, k - 1), said


@given(seeds, st.integers(1, 60))
def test_the_accuracy_coverage_curve_agrees_with_scikit_learn(seed, n):
    rng = np.random.default_rng(seed)
    targets, said = _world(rng, n)
    confidence = said.max(axis=1).round(1)  # with ties
    predicted = said.argmax(axis=1)
    for entry in accuracy_coverage_curve(confidence, predicted == targets):
        kept = confidence >= entry["threshold"]
        assert entry["coverage"] == pytest.approx(kept.mean())
        assert entry["accuracy"] == pytest.approx(accuracy_score(targets[kept], predicted[kept]))
    assert entry["coverage"] == 1


@given(seeds, st.integers(1, 60), st.floats(0.05, 0.99))
def test_the_threshold_is_the_lowest_that_reaches_the_accuracy_on_enough_texts(seed, n, accuracy):
    rng = np.random.default_rng(seed)
    targets, said = _world(rng, n)
    confidence, right = said.max(axis=1).round(1), said.argmax(axis=1) == targets
    found = confidence_threshold(confidence, right, accuracy)
    sure = {t: right[confidence >= t] for t in np.unique(confidence)}
    # With fewer texts not even one mistake would be allowed.
    good = [t for t, kept in sure.items() if kept.mean() >= accuracy - 1e-9 and len(kept) * (1 - accuracy) >= 1 - 1e-6]
    assert found == (min(good) if good else None)


@given(seeds, st.integers(1, 200), st.sampled_from([0.5, 0.8, 0.9, 0.95]))
def test_label_sets_reach_the_coverage_on_the_held_out_texts(seed, n, coverage):
    targets, said = _world(np.random.default_rng(seed), n)
    sets = SINGLE.label_sets(said, conformal_threshold(SINGLE.conformity(targets, said), coverage))
    assert sets[np.arange(n), targets].mean() >= coverage - 1e-9
    assert sets[np.arange(n), said.argmax(axis=1)].all()


def test_label_sets_reach_the_coverage_on_new_texts_on_average():
    rng = np.random.default_rng(0)
    held, texts, coverage = 200, 500, 0.9
    covered, inside = [], 0
    for _ in range(300):
        targets, said = _world(rng, held + texts)
        threshold = conformal_threshold(SINGLE.conformity(targets[:held], said[:held]), coverage)
        sets = SINGLE.label_sets(said[held:], threshold)
        covered.append(sets[np.arange(texts), targets[held:]].mean())
        low, high = coverage_interval(coverage, held, texts)
        inside += low <= covered[-1] <= high
    assert np.mean(covered) == pytest.approx(coverage, abs=0.006)
    assert inside / 300 == pytest.approx(0.95, abs=0.03)


def test_the_expected_coverage_is_the_binomial_one_where_the_held_out_texts_are_many():
    low, high = coverage_interval(0.9, 10**7, 400)
    assert [low, high] == pytest.approx((stats.binom(400, 0.9).ppf([0.025, 0.975]) / 400).tolist(), abs=0.003)


def test_too_few_texts_for_a_coverage_put_every_label_into_the_set():
    targets, said = _world(np.random.default_rng(0), 8)
    assert SINGLE.label_sets(said, conformal_threshold(SINGLE.conformity(targets, said), 0.9)).all()
    assert coverage_interval(0.9, 8, 100) == (1.0, 1.0)


def test_coverage_by_threshold_stays_in_its_interval_for_an_accurate_model():
    rng = np.random.default_rng(0)
    inside, more = 0, []
    for _ in range(200):
        targets, said = _world(rng, 700)
        said[np.arange(700), targets] += 1.5 * rng.random(700)  # right far more often than nine times in ten
        said /= said.sum(axis=1, keepdims=True)
        entry = SINGLE.abstention(targets[:500], said[:500], (targets[500:], said[500:]))["conformal"][1]
        low, high = entry["expected"]
        inside += low <= entry["by_threshold"] <= high
        more.append(entry["empirical_coverage"])
    assert inside / 200 == pytest.approx(0.95, abs=0.04)
    assert np.mean(more) > 0.94


def test_the_evaluation_is_json_ready():
    rng = np.random.default_rng(0)
    result = SINGLE.abstention(*_world(rng, 300), _world(rng, 200))
    assert json.loads(json.dumps(result)) == result
    assert [e["coverage"] for e in result["conformal"]] == [0.8, 0.9, 0.95, 0.99]
    assert all(e["by_threshold"] <= e["empirical_coverage"] for e in result["conformal"])
    labels = [e["mean_labels"] for e in result["conformal"]]
    assert labels == sorted(labels)


def test_predict_abstains_below_the_confidence(cli, finished, tmp_path):
    source = tmp_path / "new.csv"
    pd.DataFrame({"Text": ["a cat and a dog", "here there", "red blue green", ""]}).to_csv(source, index=False)
    plain = pd.read_csv(io.StringIO(cli("predict", finished, source)[1]))
    threshold = sorted(plain["confidence"].dropna())[1]
    code, out, err = cli("predict", finished, source, "--min-confidence", threshold - 1e-6)
    frame = pd.read_csv(io.StringIO(out))
    assert code == 0
    assert frame["abstained"].map({"True": True, "False": False, True: True, False: False}).sum() == 1
    assert frame["predicted_text"].isna().sum() == 2  # the unsure one and the empty one
    assert frame["confidence"].equals(plain["confidence"])
    assert "1 of 4 rows left unlabelled" in err


def test_predict_turns_an_accuracy_and_a_coverage_into_thresholds(cli, finished, tmp_path):
    source = tmp_path / "new.csv"
    pd.DataFrame({"Text": ["a cat and a dog", "here there", "red blue green"]}).to_csv(source, index=False)
    code, _, err = cli("predict", finished, source, "--target-accuracy", 0.9)
    assert code == 0
    assert "confidence below" in err
    for target in ("out.jsonl", "out.parquet", "out.csv"):
        assert cli("predict", finished, source, "--coverage", 0.8, "-o", tmp_path / target)[0] == 0
    sets = [json.loads(line)["label_set"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [list(s) for s in pd.read_parquet(tmp_path / "out.parquet")["label_set"]] == sets
    frame = pd.read_csv(tmp_path / "out.csv")
    assert [json.loads(s) for s in frame["label_set"]] == sets
    assert [s[0] for s in sets] == frame["predicted_text"].tolist()  # the likeliest first


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--min-confidence", "0.5", "--target-accuracy", "0.9"), "--min-confidence"),
        (("--coverage", "0.99"), "--coverage 0.99"),
        (("--min-confidence", "2"), "less than or equal to 1"),
        (("--coverage", "1"), "less than or equal to 0.999"),
        (("--target-accuracy", "1"), "--target-accuracy 1"),
        (("--target-accuracy", "0.999"), "needs 1,000"),
    ],
)
def test_unreachable_targets_are_errors(flags, expected, cli, finished, tmp_path):
    (tmp_path / "new.txt").write_text("a cat\n")
    code, out, err = cli("predict", finished, tmp_path / "new.txt", *flags)
    assert (code, out) == (2, "")
    assert expected in err


def test_the_suggested_coverage_works(cli, finished, tmp_path):
    (tmp_path / "new.txt").write_text("a cat\n")
    _, _, err = cli("predict", finished, tmp_path / "new.txt", "--coverage", "0.99")
    advised = re.search(r"at most ([\d.]+\d)", err)[1]
    assert cli("predict", finished, tmp_path / "new.txt", "--coverage", advised)[0] == 0


def test_thresholds_come_from_held_out_texts_that_are_read_as_the_new_texts_are(own_run, monkeypatch):
    """A run has predictions for one way to read long texts only. The models of folds cannot read them again."""
    run, text = bs.Run(own_run), "cat dog " * 40 + "red blue " * 200
    for name in ("validation", "test"):
        file = run.layout.predictions / f"{name}.parquet"
        pd.read_parquet(file).assign(text=lambda f: [text, *f["text"][1:]]).to_parquet(file)
    plain, whole = (bs.load(run, device="cpu", runtime="torch", long=long) for long in ("truncate", "window"))
    for test, frame in ((False, run.validation_predictions), (True, run.predictions)):
        (saved,), (again,) = plain.held_out(test=test).scores, whole.held_out(test=test).scores
        assert saved.tolist() == np.stack(frame["probabilities"]).tolist()
        assert again[1:].tolist() == saved[1:].tolist()
        assert again[:1] == pytest.approx(whole.predict_proba([text]))
        assert again[0].tolist() != saved[0].tolist()
        assert Ensemble([plain, whole]).held_out(test=test).scores[1].tolist() == again.tolist()
        with monkeypatch.context() as patch, pytest.raises(ConfigError):
            patch.setattr(type(whole), "logits_of", None)  # estimates and servers predict no text again
            patch.setattr("bertsmith.serving.drift.FEWEST", 1)
            assert DriftWatch.of(whole) is not None
            assert Ensemble([plain]).held_out(test=test, again=False).scores[0].tolist() == saved.tolist()
            Ensemble([whole]).held_out(test=test, again=False)
    run.layout.metrics.write_text(run.layout.metrics.read_text().replace('"texts"', '"by": "folds", "texts"'))
    with pytest.raises(ConfigError) as error:
        fit_abstention(whole, coverage=0.8)
    assert error.value.where == str(own_run)
    assert fit_abstention(plain, coverage=0.8).in_set is not None


def test_label_shift_is_detected():
    alike = label_shift(np.array([50, 50, 50]), np.array([200, 200, 200]))
    assert (alike["distance"], alike["shifted"]) == (0, False)
    assert alike["p"] == pytest.approx(1)
    other = label_shift(np.array([80, 10, 10, 0]), np.array([100, 100, 200, 0]))
    assert other["distance"] == pytest.approx(0.8 - 0.25)
    assert other["shifted"]
    # Three texts are too few for a significant shift.
    assert not label_shift(np.array([2, 1]), np.array([0, 3]))["shifted"]
    assert label_shift(np.array([3, 0]), np.array([9, 0]))["p"] == 1
    # With several labels per text, all labels can become rarer.
    rarer = label_shift(np.array([500, 500, 0]), np.array([50, 50, 0]), (1000, 1000))
    assert (rarer["distance"], rarer["shifted"]) == (pytest.approx(0.45), True)
    assert not label_shift(np.array([500, 9, 0]), np.array([50, 0, 0]), (1000, 100))["shifted"]


def test_a_rare_class_by_chance_is_not_a_shift():
    """With 20 such classes, a chi-squared test of all of them calls one random sample in 100 a shift."""
    rare = np.full(20, 5)
    drawn = np.array([88, 4, 4, 4, *[0] * 17])
    assert stats.chi2_contingency([[900, *rare], drawn]).pvalue < 0.001
    assert not label_shift(np.array([900, *rare]), drawn)["shifted"]
    assert label_shift(np.array([900, *rare]), np.array([60, *[2] * 20]))["shifted"]  # together, they are frequent
    one = label_shift(np.array([500, 3]), np.array([50, 3]), (1000, 100))
    assert one["p"] == pytest.approx(2 * stats.fisher_exact([[3, 997], [3, 97]]).pvalue)


@pytest.mark.parametrize("seed", range(20))
def test_a_random_split_is_not_shifted(seed):
    rng = np.random.default_rng(seed)
    labels = rng.choice(40, 4000, p=np.arange(1, 41) / 820)
    assert not label_shift(*(np.bincount(part, minlength=40) for part in np.split(labels, [400])))["shifted"]
