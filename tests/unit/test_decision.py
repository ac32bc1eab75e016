"""The decision rule: tuning, folding into the weights, and the same predictions in every interface."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

import bertsmith as bs
from bertsmith.errors import RunFolderError
from bertsmith.evaluation.calibration import scale, softmax, to_logits
from bertsmith.evaluation.decision import SHRINKAGE, best_offsets, stratified_folds, tune_offsets
from bertsmith.evaluation.rule import Rule
from bertsmith.model.load import fold_calibration
from bertsmith.testing import tiny_table
from tests.conftest import FAST


def _skewed(rng, n, prior, shift):
    """Texts whose model is right but for a shift against the rare classes; probabilities (n, classes)."""
    targets = rng.choice(len(prior), n, p=prior)
    logits = rng.normal(size=(n, len(prior)))
    logits[np.arange(n), targets] += 2
    return targets, scale(np.exp(logits + shift) / np.exp(logits + shift).sum(axis=1, keepdims=True), 1.0)


def test_offsets_correct_a_bias_against_rare_classes():
    rng = np.random.default_rng(0)
    prior, shift = np.array([0.9, 0.05, 0.05]), np.array([3.0, 0.0, 0.0])
    decision = tune_offsets(*_skewed(rng, 2000, prior, shift), seed=0)
    assert decision.used
    assert decision.gain > 2 * decision.standard_error > 0
    assert decision.offsets[0] < decision.offsets[1:].min()
    targets, said = _skewed(rng, 4000, prior, shift)
    before = f1_score(targets, said.argmax(axis=1), average="macro")
    after = f1_score(targets, (to_logits(said) + decision.offsets).argmax(axis=1), average="macro")
    assert after - before == pytest.approx(decision.gain, abs=0.1)
    assert after > before + 0.05


def test_the_rule_is_not_used_without_a_gain():
    used = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        used += tune_offsets(*_skewed(rng, 300, np.full(3, 1 / 3), np.zeros(3)), seed=0).used
    assert used <= 6  # one standard error: by chance one in six
    assert not tune_offsets(np.array([0, 1] * 10), np.full((20, 2), 0.5), seed=0).used  # too few to tell


def test_repeated_texts_of_a_group_count_once():
    rng = np.random.default_rng(0)
    targets, probabilities = _skewed(rng, 60, np.array([0.6, 0.2, 0.2]), np.array([1.0, 0.0, 0.0]))
    groups = np.repeat(np.arange(60), 5)
    targets, probabilities = targets[groups], probabilities[groups]
    errors = [tune_offsets(targets, probabilities, seed=0, groups=g).standard_error for g in (None, groups)]
    assert errors[1] > 1.5 * errors[0]
    assert not tune_offsets(targets, probabilities, seed=0, groups=np.zeros(300)).used  # a single group


def test_folds_by_model_remove_the_bias_of_single_models():
    """Two models have different biases. Random folds mix their texts; folds by model do not."""
    claimed = {"random folds": 0, "folds by model": 0}
    for seed in range(10):
        rng = np.random.default_rng(seed)
        targets = rng.integers(0, 3, 300)
        model = np.repeat([0, 1], 150)
        logits = rng.normal(size=(300, 3)) + 1.5 * np.eye(3)[targets]
        logits += np.where(model[:, None] == 0, [1.6, 0, 0], [1.6, 0.2, -1.8])
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        claimed["random folds"] += tune_offsets(targets, probabilities, seed=seed).gain
        claimed["folds by model"] += tune_offsets(targets, probabilities, seed=seed, model=model).gain
    assert claimed["folds by model"] < claimed["random folds"]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(5, 60), st.integers(2, 5))
def test_offsets_never_lower_the_score_before_they_are_shrunk(seed, n, k):
    rng = np.random.default_rng(seed)
    targets, logits = rng.integers(0, k, n), rng.normal(size=(n, k))
    targets[:k] = np.arange(k)  # every class has a text
    support = np.bincount(targets, minlength=k)
    whole = best_offsets(targets, logits) * (support + SHRINKAGE) / support
    before, after = (f1_score(targets, (logits + o).argmax(axis=1), average="macro") for o in (0, whole))
    assert after >= before - 1e-9


@given(st.integers(0, 10**6), st.integers(10, 100), st.integers(2, 5))
def test_folds_spread_every_class(seed, n, k):
    targets = np.random.default_rng(seed).integers(0, 3, n)
    fold = stratified_folds(targets, seed, k)
    for c in range(3):
        sizes = np.bincount(fold[targets == c], minlength=k)
        assert sizes.max() - sizes.min() <= 1


@given(st.integers(0, 10**6), st.booleans(), st.floats(0.3, 3))
def test_folded_and_unfolded_rules_agree(seed, decide, temperature):
    rng = np.random.default_rng(seed)
    raw = scale(rng.dirichlet(np.ones(4), size=6), 1.0)
    shift = tuple(rng.normal(size=4))
    unfolded = softmax(Rule(temperature, shift, folded=False).adjust(to_logits(raw), decide=decide))
    with_rule = scale(raw, temperature, np.array(shift))
    folded = softmax(Rule(temperature, shift).adjust(to_logits(with_rule), decide=decide))
    assert folded == pytest.approx(unfolded, abs=1e-9)
    assert Rule.from_dict(Rule(temperature, shift).to_dict(), 4) == Rule(temperature, shift)


@pytest.fixture
def ruled(finished, tmp_path):
    """The run with a rule that prefers the last class by far."""
    shutil.copytree(finished, tmp_path / "ruled")
    model = bs.load(finished, device="cpu").loaded
    rule = Rule(2.0, (0.0, 0.0, 9.0))
    assert fold_calibration(model.model, rule.temperature, rule.offsets)
    model.model.config.bertsmith = rule.to_dict()
    model.save(tmp_path / "ruled" / "model")
    bs.Run(tmp_path / "ruled").finish(keep_checkpoints=True)  # its checksums
    return tmp_path / "ruled"


def test_every_interface_applies_the_rule_and_can_leave_it_out(cli, finished, ruled, tmp_path):
    from transformers import pipeline

    texts = tiny_table(60, seed=9)["Text"].tolist()
    plain = bs.load(finished, device="cpu").predict_proba(texts)
    expected = scale(plain, 2.0, np.array([0.0, 0.0, 9.0]))
    assert (expected.argmax(axis=1) != plain.argmax(axis=1)).any()
    assert bs.load(ruled, device="cpu").predict_proba(texts) == pytest.approx(expected, abs=1e-5)
    assert bs.load(ruled / "model", device="cpu").predict_proba(texts) == pytest.approx(expected, abs=1e-5)
    without = bs.load(ruled, device="cpu", decide=False).predict_proba(texts)
    assert without == pytest.approx(scale(plain, 2.0), abs=1e-5)
    theirs = pipeline("text-classification", str(ruled / "model"), device="cpu", truncation=True)(texts)
    names = bs.load(ruled, device="cpu").labels.texts
    assert [entry["label"] for entry in theirs] == [names[i] for i in expected.argmax(axis=1)]
    assert [entry["score"] for entry in theirs] == pytest.approx(expected.max(axis=1).tolist(), abs=1e-5)
    pd.DataFrame({"Text": texts}).to_csv(tmp_path / "t.csv", index=False)
    for flags, probabilities in (((), expected), (("--no-decision-rule",), scale(plain, 2.0))):
        out = cli("predict", ruled, tmp_path / "t.csv", "--json", "--device", "cpu", *flags)[1]
        found = [json.loads(line)["predicted_text"] for line in out.splitlines()]
        assert found == [names[i] for i in probabilities.argmax(axis=1)]


@pytest.mark.parametrize(
    "damage",
    [5, {"temperature": 0}, {"temperature": "x"}, {"offsets": [1.0]}, {"offsets": [None] * 3}, {"temperature": 1e999}],
)
def test_a_damaged_rule_is_an_error(damage, own_run, tmp_path):
    file = own_run / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "bertsmith": damage}))
    bs.Run(own_run).finish(keep_checkpoints=True)  # its checksums
    with pytest.raises(RunFolderError) as error:
        bs.load(own_run, device="cpu")
    assert error.value.where == str(file)


def test_the_metrics_describe_the_rule(finished):
    rule = bs.Run(finished).metrics["decision_rule"]
    assert rule["metric"] == "macro_f1"
    assert rule["folded"]
    assert len(rule["offsets"]) == 3


@pytest.mark.slow
def test_further_training_drops_the_rule(ruled, tmp_path):
    settings = {**FAST, "epochs": 1, "model": str(ruled / "model")}
    for classes in (2, 3):
        run = bs.train(tiny_table(90, classes=classes), output=tmp_path / str(classes), **settings, decision_rule="off")
        assert bs.load(run, device="cpu").rule.offsets == ()
