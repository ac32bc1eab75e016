"""Metrics, losses and rules of label sets, ordered classes and numbers, against scikit-learn, scipy and torch."""

import json
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk
from torch.nn import functional as F  # noqa: N812

from bertsmith.data.table import Labels
from bertsmith.errors import DataError
from bertsmith.evaluation.abstention import conformal_threshold
from bertsmith.evaluation.evaluate import evaluate, paired_difference
from bertsmith.evaluation.linear_models import (
    bag_of_words_for_numbers,
    bag_of_words_for_sets,
    fit_ridge,
    fit_set_regression,
)
from bertsmith.evaluation.multi_label import (
    average_precisions,
    best_thresholds,
    cooccurrence,
    fit_temperatures,
    per_label_metrics,
    tune_thresholds,
)
from bertsmith.evaluation.ordinal import least_cost
from bertsmith.evaluation.regression import evaluate_intervals, interval_half_width
from bertsmith.evaluation.rule import Rule
from bertsmith.model.load import fold_calibration
from bertsmith.model.tokens import Tokens
from bertsmith.tasks.ordinal import _prefer_likely
from bertsmith.tasks.registry import TASKS
from bertsmith.tasks.regression import RegressionTask
from bertsmith.training.data import TokenDataset
from bertsmith.training.losses import BinaryCrossEntropy, SquaredError
from bertsmith.workflows.baselines import FrozenEmbeddings
from bertsmith.workflows.embeddings import regression_scores
from bertsmith.workflows.prepare import sample_texts

MULTI, ORDINAL, REGRESSION = (TASKS[name] for name in ("multi-label", "ordinal", "regression"))
seeds = st.integers(0, 10**6)
few = settings(max_examples=25)


def _sets(seed, n, k):
    """Return targets with rare, common and empty labels, and probabilities that are partly right."""
    rng = np.random.default_rng(seed)
    targets = rng.random((n, k)) < rng.choice([0.0, 0.1, 0.5], k)
    return targets, np.clip(0.3 * targets + 0.7 * rng.random((n, k)), 1e-6, 1 - 1e-6)


def _levels(seed, n, k):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, k, n)
    scores = rng.dirichlet(np.ones(k), n) + 0.5 * np.eye(k)[targets]
    return targets, scores / scores.sum(axis=1, keepdims=True)


def _numbers(seed, n):
    rng = np.random.default_rng(seed)
    targets = np.round(rng.normal(3, 2, n), 1)
    return targets, (targets + rng.normal(0, 1, n))[:, None]


def _sample(task, seed, n, k):
    if task.name == "regression":
        return _numbers(seed, n)
    return (_sets if task.name == "multi-label" else _levels)(seed, n, k)


def _expected_of_sets(targets, scores):
    predicted = scores > 0.5
    seen = targets.any(axis=0) | predicted.any(axis=0)
    found = {}
    for average in ("micro", "weighted", "samples"):
        found[f"{average}_f1"] = sk.f1_score(targets, predicted, average=average, zero_division=0)
    empty = ~targets.any(axis=1) & ~predicted.any(axis=1)
    found["samples_f1"] += empty.mean()  # nothing to find and nothing found is correct
    for average, labels in (("macro", np.flatnonzero(seen)), ("micro", None)):
        for name, metric in (("f1", sk.f1_score), ("precision", sk.precision_score), ("recall", sk.recall_score)):
            if labels is None or len(labels):
                found[f"{average}_{name}"] = metric(targets, predicted, average=average, labels=labels, zero_division=0)
            else:
                found[f"{average}_{name}"] = 0.0
    found["subset_accuracy"] = sk.accuracy_score(targets, predicted)
    found["hamming_loss"] = sk.hamming_loss(targets, predicted)
    found["ranking_precision"] = sk.label_ranking_average_precision_score(targets, scores)
    found["log_loss"] = F.binary_cross_entropy(torch.from_numpy(scores), torch.from_numpy(targets).double()).item()
    return found


@few
@given(seeds, st.integers(1, 40), st.integers(2, 6))
def test_metrics_of_label_sets_agree_with_scikit_learn(seed, n, k):
    targets, scores = _sets(seed, n, k)
    values = MULTI.scalar_metrics(targets, scores)
    assert values.keys() == MULTI.metric_names.keys()
    for name, expected in _expected_of_sets(targets, scores).items():
        assert values[name] == pytest.approx(expected, abs=1e-9), name
    present = targets.any(axis=0)
    if present.any():
        expected = sk.average_precision_score(targets[:, present], scores[:, present], average="macro")
        assert values["macro_average_precision"] == pytest.approx(expected)
    else:
        assert values["macro_average_precision"] is None
    for c, entry in enumerate(per_label_metrics(targets, scores, scores > 0.5)):
        assert entry["texts"] == targets[:, c].sum()
        expected = sk.f1_score(targets[:, c], scores[:, c] > 0.5, zero_division=0)
        assert (entry["f1"] or 0) == pytest.approx(expected)
    counts = cooccurrence(targets)
    assert np.diag(counts).tolist() == targets.sum(axis=0).tolist()
    assert counts[0, 1] == (targets[:, 0] & targets[:, 1]).sum()


def _expected_of_levels(targets, scores):
    predicted, k = least_cost(scores), scores.shape[1]
    constant = len(np.unique(targets)) < 2 or len(np.unique(predicted)) < 2
    by_chance = len(np.unique(np.concatenate([targets, predicted]))) > 1
    return {
        "quadratic_kappa": sk.cohen_kappa_score(targets, predicted, weights="quadratic", labels=np.arange(k))
        if by_chance
        else None,
        "mae": sk.mean_absolute_error(targets, predicted),
        "spearman": None if constant else stats.spearmanr(targets, predicted).statistic,
        "macro_f1": sk.f1_score(targets, predicted, average="macro"),
        "accuracy": sk.accuracy_score(targets, predicted),
        "within_one": (abs(targets - predicted) <= 1).mean(),
        "log_loss": sk.log_loss(targets, scores, labels=np.arange(k)),
    }


@few
@given(seeds, st.integers(1, 40), st.integers(2, 6))
def test_metrics_of_ordered_classes_agree_with_scikit_learn(seed, n, k):
    targets, scores = _levels(seed, n, k)
    values = ORDINAL.scalar_metrics(targets, scores)
    assert values.keys() == ORDINAL.metric_names.keys()
    for name, expected in _expected_of_levels(targets, scores).items():
        assert values[name] == pytest.approx(expected, abs=1e-9), name
    assert ORDINAL.validation_metrics(targets, scores) == pytest.approx(
        {name: values[name] or 0.0 for name in ("macro_f1", "quadratic_kappa")}
    )


def test_agreement_on_a_single_level_is_undefined():
    targets, labels = np.ones(8, dtype=np.int64), Labels((0, 1, 2), tuple("abc"))
    metrics = evaluate(ORDINAL, targets, np.eye(3)[targets], labels, seed=0)["metrics"]
    assert metrics["quadratic_kappa"] == metrics["spearman"] == {"value": None, "interval": None}
    assert ORDINAL.scalar_metrics(targets, np.eye(3)[1 - targets])["quadratic_kappa"] == 0


def test_the_set_of_ordered_labels_contains_the_predicted_one():
    scores = np.array([[0.45, 0.1, 0.45]])
    sets = ORDINAL.set_columns(scores, 0.3, Labels((1, 2, 3), ("a", "b", "c")))["label_set"]
    assert sets == [["a", "c", "b"]]
    assert [part.tolist() for part in ORDINAL.evaluate_sets(np.array([1]), scores, 0.3)] == [[True], [3]]


def test_many_levels_need_little_memory():
    targets, scores = _levels(0, 3000, 101)
    tracemalloc.start()
    ORDINAL.scalar_metrics(targets, scores)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6  # one fp32 number per text and pair of levels has 122 MB


def test_the_light_base_predicts_every_task():
    code = """
import sys
for name in "torch transformers pandas sklearn scipy".split():
    sys.modules[name] = None
import numpy as np
from bertsmith.tasks.registry import TASKS
print(*(name for name, task in TASKS.items() if len(task.predicted(np.array([[0.6, 0.4]]))) == 1))
"""
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.split() == [*TASKS]


@few
@given(seeds, st.integers(3, 40))
def test_metrics_of_numbers_agree_with_scikit_learn(seed, n):
    targets, scores = _numbers(seed, n)
    values = REGRESSION.scalar_metrics(targets, scores)
    assert values.keys() == REGRESSION.metric_names.keys()
    assert values["mae"] == pytest.approx(sk.mean_absolute_error(targets, scores))
    assert values["rmse"] == pytest.approx(sk.root_mean_squared_error(targets, scores))
    if len(np.unique(targets)) > 1:
        assert values["r2"] == pytest.approx(sk.r2_score(targets, scores))
        assert values["spearman"] == pytest.approx(stats.spearmanr(targets, scores[:, 0]).statistic)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_epoch_logs_the_named_metrics(task):
    assert tuple(task.validation_metrics(*_sample(task, 0, 9, 3))) == task.epoch_metrics
    assert task.epoch_metrics[-1] == task.primary


@few
@given(seeds, st.integers(2, 30), st.integers(2, 5), st.sampled_from([*TASKS]))
def test_a_resample_gives_the_metrics_of_its_rows(seed, n, k, name):
    """A draw of ones is the texts themselves; other draws repeat rows or leave them out."""
    task = TASKS[name]
    targets, scores = _sample(task, seed, n, k)
    rng = np.random.default_rng(seed)
    drawn = np.stack([np.ones(n, dtype=np.int64), *(rng.multinomial(n, np.ones(n) / n) for _ in range(2))])
    found, ranks = task.resampled(drawn, targets, scores), task.resampled_ranks(drawn, targets, scores)
    assert found.keys() | ranks.keys() == task.metric_names.keys()
    for i, times in enumerate(drawn):
        rows = np.repeat(np.arange(n), times)
        expected = task.scalar_metrics(targets[rows], scores[rows])
        for metric, values in found.items():
            assert values.shape == (3,)
            assert values[i] == pytest.approx(expected[metric] if expected[metric] is not None else 0.0, abs=1e-6)
        for metric, values in ranks.items():
            if expected[metric] is not None:
                assert values[i] == pytest.approx(expected[metric])
            elif metric == "spearman":
                assert np.isnan(values[i])


@pytest.mark.parametrize("name", TASKS)
def test_every_metric_has_an_interval_around_its_value(name):
    task = TASKS[name]
    targets, scores = _sample(task, 1, 200, 4)
    labels = Labels(tuple(range(4)), tuple("abcd")) if name != "regression" else Labels((0,), ("score",))
    result = evaluate(task, targets, scores, labels, seed=0)
    assert json.loads(json.dumps(result)) == result
    assert result["metrics"].keys() == task.metric_names.keys()
    for metric, entry in result["metrics"].items():
        low, high = entry["interval"]
        assert low < entry["value"] < high, metric
        assert high - low < 0.6 * max(abs(entry["value"]), 0.5), metric
    assert task.primary == next(iter(result["metrics"]))
    halves = np.arange(200) // 2
    grouped = evaluate(task, targets, scores, labels, seed=0, groups=halves)["metrics"][task.primary]
    assert grouped["value"] == result["metrics"][task.primary]["value"]
    assert grouped["interval"] != result["metrics"][task.primary]["interval"]
    found = paired_difference(task, targets, scores, scores, seed=0)
    assert found == {"metric": task.primary, "value": 0, "interval": None}


@pytest.mark.parametrize(
    ("name", "metric", "expected"),
    [
        ("single-label", "macro_average_precision", [0.8118325, 0.9481558]),
        ("multi-label", "macro_average_precision", [0.4310949, 0.9471265]),
        ("regression", "spearman", [0.7473806, 0.9430723]),
    ],
)
def test_the_resamples_stay_the_same_so_that_verify_finds_no_difference(name, metric, expected):
    labels = Labels((0,), ("score",)) if name == "regression" else Labels((0, 1, 2), tuple("abc"))
    metrics = evaluate(TASKS[name], *_sample(TASKS[name], 1, 50, 3), labels, seed=3)["metrics"]
    assert metrics[metric]["interval"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["single-label", "multi-label", "ordinal"])
@pytest.mark.parametrize("n_groups", [None, 4])
def test_without_a_mistake_metrics_of_1_have_the_exact_interval_of_accuracy(name, n_groups):
    levels = np.arange(12) % 3
    targets = np.eye(3, dtype=bool)[levels] if name == "multi-label" else levels
    labels = Labels((0, 1, 2), tuple("abc"))
    groups = None if n_groups is None else np.arange(12) % n_groups
    scores = 0.02 + 0.94 * np.eye(3)[levels]
    metrics = evaluate(TASKS[name], targets, scores, labels, seed=0, groups=groups)["metrics"]
    perfect = {metric for metric, entry in metrics.items() if entry["value"] == 1}
    assert "macro_f1" in perfect
    assert len(perfect) >= 5
    low = 0.025 ** (1 / (n_groups or 12))  # of no mistakes in n trials, the closed form
    for metric in perfect:
        assert metrics[metric]["interval"] == pytest.approx([low, 1]), metric
    for metric, largest in (("mae", 2), ("hamming_loss", 1)):
        assert metric not in metrics or metrics[metric]["interval"] == pytest.approx([0, largest * (1 - low)])
    wrong = scores.copy()
    wrong[0] = scores[1]
    metrics = evaluate(TASKS[name], targets, wrong, labels, seed=0, groups=groups)["metrics"]
    assert metrics["macro_f1"]["interval"][0] != pytest.approx(low)


def test_exact_numbers_have_no_interval_of_accuracy():
    targets = np.arange(12.0)
    metrics = evaluate(TASKS["regression"], targets, targets[:, None], Labels((0,), ("score",)), seed=0)["metrics"]
    assert metrics["r2"] == {"value": 1, "interval": None}
    assert metrics["mae"] == {"value": 0, "interval": None}


@pytest.mark.parametrize("n_groups", [None, 4])
def test_a_metric_at_the_end_of_its_scale_has_an_exact_interval_in_spite_of_mistakes(n_groups):
    levels, groups = np.arange(12) % 3, None if n_groups is None else np.arange(12) % n_groups
    near = np.where(np.arange(12) < 4, np.abs(levels - 1), levels)  # four predictions, at most one step off
    scores = 0.02 + 0.94 * np.eye(3)[near]
    metrics = evaluate(TASKS["ordinal"], levels, scores, Labels((0, 1, 2), tuple("abc")), seed=0, groups=groups)[
        "metrics"
    ]
    assert metrics["accuracy"]["value"] < 1
    assert metrics["within_one"]["interval"] == pytest.approx([0.025 ** (1 / (n_groups or 12)), 1])
    truth = np.eye(3, dtype=bool)[levels]
    scores = np.where(truth, 0.9, 0.1)
    scores[:5] = 0.1  # misses, and seven texts with a prediction
    metrics = evaluate(MULTI, truth, scores, Labels((0, 1, 2), tuple("abc")), seed=0, groups=groups)["metrics"]
    for metric in ("macro_precision", "micro_precision"):
        assert metrics[metric]["interval"] == pytest.approx([0.025 ** (1 / (n_groups or 7)), 1])
    assert metrics["micro_recall"]["interval"][1] < 1
    scores = 1 - np.where(truth, 0.9, 0.1)  # all wrong
    metrics = evaluate(MULTI, truth, scores, Labels((0, 1, 2), tuple("abc")), seed=0, groups=groups)["metrics"]
    assert metrics["subset_accuracy"]["interval"] == pytest.approx([0, 1 - 0.025 ** (1 / (n_groups or 12))])
    assert metrics["macro_f1"] == {"value": 0, "interval": None}


def test_texts_and_labels_without_positives_are_defined():
    targets = np.zeros((4, 3), dtype=bool)
    scores = np.full((4, 3), 0.1)
    values = MULTI.scalar_metrics(targets, scores)
    assert values["subset_accuracy"] == values["samples_f1"] == 1
    assert values["hamming_loss"] == values["micro_f1"] == values["macro_f1"] == 0
    assert values["macro_average_precision"] is None
    assert np.isnan(average_precisions(targets, scores)).all()
    assert MULTI.confidence(scores) == pytest.approx(0.9**3)
    assert json.loads(json.dumps(evaluate(MULTI, targets, scores, Labels((0, 1, 2), tuple("abc")), seed=0)))


@few
@given(seeds, st.integers(2, 7), st.integers(1, 20))
def test_the_decision_on_levels_has_the_least_expected_squared_distance(seed, k, n):
    scores = np.random.default_rng(seed).dirichlet(np.ones(k), n)
    levels = np.arange(k)
    costs = scores @ (levels[:, None] - levels[None]) ** 2
    assert costs[np.arange(n), least_cost(scores)] == pytest.approx(costs.min(axis=1))


def test_the_only_level_is_that_of_the_decision():
    names = {0: "low", 1: "middle", 2: "high"}
    assert ORDINAL.only_label(np.array([[0.4, 0.25, 0.35]] * 2), names) == "middle"
    assert TASKS["single-label"].only_label(np.array([[0.4, 0.25, 0.35]] * 2), names) == "low"


def test_numbers_that_hardly_vary_are_compared_by_their_size():
    assert REGRESSION.unit(np.array([[0.0], [2.0]])) == 1
    assert REGRESSION.unit(np.full((3, 1), 500.0)) == pytest.approx(0.5)
    assert REGRESSION.unit(np.zeros((2, 1))) == REGRESSION.unit(np.empty((0, 1))) == 1


# -- thresholds, temperatures and intervals ----------------------------------------------------------------------------


@few
@given(seeds, st.integers(2, 6), st.booleans(), st.sampled_from([1.0, 0.4, 1.7]))
def test_a_rule_folded_into_the_weights_equals_the_unfolded_rule(seed, k, per_label, stretch):
    rng = np.random.default_rng(seed)
    temperature = tuple(rng.uniform(0.3, 3, k)) if per_label else float(rng.uniform(0.3, 3))
    rule = Rule(temperature, tuple(rng.normal(size=k)), folded=False, stretch=stretch)
    torch.manual_seed(seed)
    model = torch.nn.Module()
    model.classifier, model.base_model_prefix = torch.nn.Linear(5, k), "bert"
    model.config = SimpleNamespace(num_labels=k)
    x = torch.randn(4, 5)
    before = model.classifier(x).detach().numpy()
    assert fold_calibration(model, *rule.folding)
    assert model.classifier(x).detach().numpy() == pytest.approx(rule.adjust(before), abs=1e-5)
    assert Rule.from_dict(json.loads(json.dumps(rule.to_dict())), k) == rule
    scores = MULTI.scores(before)
    assert MULTI.undo(rule, MULTI.apply(rule, scores)) == pytest.approx(scores, abs=1e-6)
    without = replace(rule, offsets=()).adjust(before)
    assert rule.adjust(before, decide=False) == pytest.approx(without)
    assert replace(rule, folded=True).adjust(rule.adjust(before), decide=False) == pytest.approx(without)


@pytest.mark.parametrize("stretch", [0, -1.0, "2", float("nan")])
def test_a_damaged_stretch_is_refused(stretch):
    with pytest.raises(ValueError, match="stretch"):
        Rule.from_dict({"temperature": 1.5, "offsets": [], "stretch": stretch}, 3)


def _overconfident(n, noise, factor, *, seed=0):
    """Return levels 0 to 4 of a latent number, and the probabilities of an overconfident model that sees it noisily."""
    rng = np.random.default_rng(seed)
    hidden, cuts = rng.normal(size=n), stats.norm.ppf([0.2, 0.4, 0.6, 0.8])
    mean, spread = (hidden + noise * rng.normal(size=n)) / (1 + noise**2), noise / np.sqrt(1 + noise**2)
    below = stats.norm.cdf((cuts - mean[:, None]) / spread)
    exact = np.diff(below, axis=1, prepend=0, append=1)
    return np.searchsorted(cuts, hidden), ORDINAL.scores(factor * ORDINAL.logits(exact))


@pytest.mark.parametrize(("noise", "factor"), [(0.2, 2.5), (0.8, 1.5), (0.8, 2.5), (1.5, 1.5), (1.5, 2.5)])
def test_calibration_keeps_the_quadratic_kappa_of_ordered_classes(noise, factor):
    targets, scores = _overconfident(3000, noise, factor)
    _, rule = ORDINAL.fit_rule(targets[:300], scores[:300], seed=0)
    assert rule.temperature > 1.2
    before, after = (
        ORDINAL.scalar_metrics(targets[300:], s) for s in (scores[300:], ORDINAL.apply(rule, scores[300:]))
    )
    assert after["quadratic_kappa"] >= before["quadratic_kappa"] - 0.005
    assert after["log_loss"] < before["log_loss"]


def test_a_temperature_that_raises_quadratic_kappa_stays_alone():
    targets, scores = _overconfident(300, 0.8, 0.5)
    rule = ORDINAL.fit_rule(targets, scores, seed=0)[1]
    assert (rule.temperature < 0.8, rule.stretch) == (True, 1)


def _embeddings(task, targets, x, n_train, n_labels, **more):
    """Return embeddings of which the first ones are training texts, and the others test texts."""
    parts = {"train": x[:n_train], "test": x[n_train:]}
    rows = {name: np.arange(len(part)) for name, part in parts.items()}
    settings = {"mean_pooling": True, "tokens_per_second": 1.0, **more}
    return FrozenEmbeddings(rows, parts, parts, task, targets[:n_train], n_labels, **settings)


def _baseline_scores(frozen):
    train, test = (np.ones(len(frozen.rows[name]), dtype=bool) for name in ("train", "test"))
    return frozen.baseline_scores(train, test, seed=0)


def test_the_baseline_on_frozen_embeddings_gets_thresholds_as_the_model_does():
    rng = np.random.default_rng(0)
    x = np.tanh(rng.normal(size=(900, 30)))
    targets = x @ rng.normal(size=(30, 6)) + rng.normal(size=(900, 6)) > 6
    frozen = _embeddings(MULTI, targets, x, 600, 6)
    plain = MULTI.scores(frozen.initial_head().logits(x[600:]))
    found, before = (MULTI.scalar_metrics(targets[600:], s)["macro_f1"] for s in (_baseline_scores(frozen), plain))
    assert found > before + 0.1


def test_the_rule_of_the_baseline_keeps_groups_together():
    """All texts of a group are the same: with some of them in training, the others would be easy."""
    groups = np.repeat(np.arange(40), 5)
    x, targets = np.eye(40)[groups], groups % 2
    right = []

    def fit_rule(y, held_out):
        right.append((held_out.argmax(axis=1) == y).mean())
        return Rule()

    for some in (None, groups):
        regression_scores(ORDINAL, x, targets, x, 2, seed=0, fit_rule=fit_rule, groups=some)
    assert right[0] > 0.9
    assert right[1] < 0.7


@pytest.mark.parametrize("n", [2, 4, 60])
def test_few_texts_of_two_ordered_classes_have_a_baseline(n):
    targets = np.r_[1, np.zeros(n - 1, dtype=np.int64), 0, 1]
    x = np.random.default_rng(n).normal(size=(n + 2, 3))
    assert _baseline_scores(_embeddings(ORDINAL, targets, x, n, 2)).shape == (2, 2)


def test_no_head_is_fitted_for_a_model_whose_head_begins_at_random():
    targets, x = np.array([0, 1, 0, 1]), np.eye(4)
    frozen = _embeddings(TASKS["single-label"], targets, x, 3, 2, mean_pooling=False)
    assert frozen.initial_head() is None
    assert _baseline_scores(frozen).shape == (1, 2)


@few
@given(seeds, st.integers(1, 60), st.integers(1, 5))
def test_thresholds_and_temperatures_stay_in_bounds_and_help(seed, n, k):
    targets, scores = _sets(seed, n, k)
    logits = MULTI.logits(scores)
    offsets = best_thresholds(targets, logits)
    assert np.isfinite(offsets).all()
    assert (offsets[~targets.any(axis=0)] == 0).all()
    temperatures = fit_temperatures(targets, scores)
    assert temperatures.shape == (k,)
    assert (temperatures > 0).all()


def test_thresholds_find_labels_that_a_half_misses():
    rng = np.random.default_rng(0)
    targets = rng.random((600, 3)) < 0.1
    logits = 1.5 * targets - 3 + rng.normal(0, 0.5, targets.shape)  # well separated, but below 0.5
    decision = tune_thresholds(targets, logits, seed=0)
    assert decision.used
    assert decision.gain > 0.5
    assert sk.f1_score(targets, logits + decision.offsets > 0, average="macro") > 0.7
    assert not tune_thresholds(targets, 8.0 * targets - 4, seed=0).used  # nothing to gain
    assert not tune_thresholds(targets[:5], logits[:5], seed=0).used  # too few texts


def test_a_temperature_per_label_corrects_each_label():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4000, 2))
    targets = rng.random(logits.shape) < MULTI.scores(logits)
    found = fit_temperatures(targets, MULTI.scores(logits * [3, 0.5]))
    assert found == pytest.approx([3, 0.5], rel=0.15)


@few
@given(seeds, st.integers(1, 200), st.sampled_from([0.5, 0.8, 0.9]))
def test_intervals_of_numbers_cover_the_held_out_texts(seed, n, coverage):
    residuals = np.abs(np.random.default_rng(seed).normal(size=n))
    width = interval_half_width(residuals, coverage)
    assert (residuals <= width).mean() >= coverage
    if np.isfinite(width):
        assert (residuals < width).sum() < np.ceil((n + 1) * coverage)


def test_intervals_of_numbers_reach_their_coverage_on_new_texts():
    rng = np.random.default_rng(0)
    covered = [
        (abs(rng.normal(size=50)) <= interval_half_width(abs(rng.normal(size=99)), 0.9)).mean() for _ in range(200)
    ]
    assert np.mean(covered) == pytest.approx(0.9, abs=0.01)
    assert evaluate_intervals(np.ones(5), np.ones(2))[0]["half_width"] is None  # too few for 80 %


def test_the_sets_of_multi_label_predictions_contain_all_labels_as_often_as_claimed():
    covered = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        scores = rng.random((300, 4))
        targets = rng.random(scores.shape) < scores
        threshold = conformal_threshold(MULTI.conformity(targets[:200], scores[:200]), 0.9)
        covered.append(MULTI.evaluate_sets(targets[200:], scores[200:], threshold)[0].mean())
    assert np.mean(covered) == pytest.approx(0.9, abs=0.02)


def test_texts_without_labels_do_not_empty_the_sets_of_the_others():
    rng = np.random.default_rng(0)
    scores = np.where(rng.random((400, 1)) < 0.1, rng.uniform(0.3, 1, (400, 2)), 0.1 * rng.random((400, 2)))
    targets = rng.random(scores.shape) < scores * (scores > 0.2)
    found = MULTI.abstention(targets[:200], scores[:200], (targets[200:], scores[200:]))
    assert all(e["threshold"] < 0.9 and e["mean_labels"] > 0.1 for e in found["conformal"])
    assert json.loads(json.dumps(found)) == found
    sets = MULTI.set_columns(np.array([[0.6, 0.8], [0.1, 0.2]]), 0.9, Labels((0, 1), ("a", "b")))
    assert sets == {"label_set": [["b", "a"], []]}
    nothing = np.zeros_like(targets)
    for entry in MULTI.abstention(nothing, scores, (nothing, scores))["conformal"]:
        assert entry["empirical_coverage"] is entry["by_threshold"] is entry["expected"] is None


# -- losses ------------------------------------------------------------------------------------------------------------


def _loss_batch(name, n=11, k=3):
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, n, 1 if name == "numbers" else k, generator=generator)
    labels = torch.randn(n, generator=generator) if name == "numbers" else torch.rand(n, k, generator=generator) < 0.4
    return first, second, labels


LOSSES = {
    "plain": BinaryCrossEntropy(0.0),
    "smoothed": BinaryCrossEntropy(0.1),
    "weighted": BinaryCrossEntropy(0.1, positive_weights=np.array([1.0, 2.0, 5.0])),
    "focal": BinaryCrossEntropy(0.0, focal=True),
    "numbers": SquaredError(1.5, 2.0),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("consistency", [0.0, 1.5])
def test_the_gradient_of_a_step_does_not_depend_on_how_it_is_cut(name, consistency):
    first, second, labels = _loss_batch(name)
    n = len(labels)

    def gradient(*cuts):
        logits = torch.stack([first, second]).requires_grad_()
        total = torch.zeros(())
        for i, j in zip((0, *cuts), (*cuts, n), strict=True):
            part, truth = logits[0, i:j], labels[i:j]
            if consistency:
                part, truth = torch.cat([part, logits[1, i:j]]), torch.cat([truth, truth])
            loss = LOSSES[name].of_step(part, truth, n, consistency)
            loss.backward()
            total = total + loss.detach()
        return total, logits.grad

    whole, expected = gradient()
    for cuts in ((5,), (1, 2, 9), tuple(range(1, n))):
        value, found = gradient(*cuts)
        assert value == pytest.approx(whole.item(), rel=1e-5)
        assert torch.allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_one_per_text_and_divergences_are_symmetric(name):
    first, second, labels = _loss_batch(name)
    loss = LOSSES[name]
    each = loss(first, labels)
    assert each.shape == (11,)
    assert (each >= 0).all()
    apart = loss.divergence(first, second)
    assert apart.shape == (11,)
    assert (apart > 0).all()
    assert torch.allclose(apart, loss.divergence(second, first), atol=1e-6)
    assert (loss.divergence(first, first) == 0).all()


def test_losses_without_treatment_of_imbalance_have_no_weights():
    """Evaluations use them."""
    first, _, labels = _loss_batch("plain")
    plain = MULTI.loss("none", labels.sum(dim=0).numpy(), len(labels), smoothing=0.0)(first, labels).mean()
    assert plain == pytest.approx(F.binary_cross_entropy_with_logits(first, labels.float()).item(), rel=1e-5)
    first, _, numbers = _loss_batch("numbers")
    squared = LOSSES["numbers"](first, LOSSES["numbers"].targets(numbers)).mean()
    assert squared == pytest.approx((((first[:, 0] * 2 + 1.5 - numbers) ** 2).mean() / 4).item(), rel=1e-5)


def test_large_numbers_are_standardised_exactly():
    dates = 20240101.0 + np.arange(8)
    texts = TokenDataset(Tokens.from_lists({"input_ids": [[5]] * len(dates)}), dates)
    loss = RegressionTask(dates.mean(), dates.std()).loss("none", np.zeros(0), len(dates), 0.0)
    standardised = loss.targets(texts.targets)
    assert standardised.dtype == torch.float32
    assert standardised.numpy() == pytest.approx((dates - dates.mean()) / dates.std(), abs=1e-6)


@pytest.mark.parametrize(
    ("numbers", "constant"),
    [
        (2e5 + np.arange(9), "200,000"),
        (1.7e9 + 3600 * np.arange(24), "1,700,000,000"),
        (-7e4 - np.arange(9), "-70,000"),
        (20240101.0 + np.arange(31), "20,240,000"),
    ],
)
def test_numbers_that_the_finished_model_would_round_are_refused(numbers, constant):
    with pytest.raises(DataError) as caught:
        REGRESSION.fitted(numbers)
    assert constant in caught.value.remedy
    fitted = REGRESSION.fitted(numbers - float(constant.replace(",", "")))
    assert fitted.scale == pytest.approx(numbers.std())


@pytest.mark.parametrize(
    "numbers",
    [
        np.array([2023.0, 2024.0, 2024.0]),  # years
        np.array([99.1, 99.2, 99.4]),  # percentages
        np.array([249_000.0, 250_000.0, 251_500.0]),  # prices
        np.full(3, 2e5),
        np.array([0.1, 0.1, 0.1]),
        np.zeros(2),
    ],
    ids=str,
)
def test_ordinary_numbers_are_far_from_the_limit(numbers):
    fitted = REGRESSION.fitted(numbers)
    assert fitted.mean == pytest.approx(numbers.mean())
    assert len(np.unique(numbers)) == 1 or abs(fitted.mean) < 5000 * fitted.scale


def test_the_divergence_of_label_sets_is_the_mean_of_both_kullback_leibler_divergences():
    first, second, _ = _loss_batch("plain")
    p, q = (torch.distributions.Bernoulli(logits=x) for x in (first, second))
    expected = (torch.distributions.kl_divergence(p, q) + torch.distributions.kl_divergence(q, p)) / 2
    assert torch.allclose(BinaryCrossEntropy().divergence(first, second), expected.mean(dim=1), atol=1e-6)


def test_weights_give_rare_labels_more_weight_and_extreme_logits_stay_finite():
    loss = MULTI.loss("weights", np.array([1, 50, 99]), 100, 0.0)
    assert loss.positive_weights.tolist() == pytest.approx([99**0.5, 1, 1])
    extreme = torch.tensor([[1e4, -1e4, 0.0]])
    for each in (loss, *LOSSES.values()):
        truth = torch.tensor([1.0]) if isinstance(each, SquaredError) else torch.tensor([[False, True, True]])
        assert torch.isfinite(each(extreme, truth)).all()
        assert torch.isfinite(each.divergence(extreme, -extreme)).all()


# -- baselines ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TASKS))
def test_only_a_sample_for_a_single_label_is_balanced(name):
    codes = np.repeat([0, 1], [900, 100])
    rows = sample_texts(codes, 200, task=TASKS[name], seed=0)
    assert rows.tolist() == sorted({*rows.tolist()})
    assert codes[rows].sum() == (100 if name == "single-label" else pytest.approx(20, abs=10))


def test_the_penalty_does_not_depend_on_the_order_of_the_numbers():
    rng = np.random.default_rng(2)
    numbers = np.repeat([0.0, 1.0, 2.0], 40)
    texts = [" ".join([f"level{n:.0f}", *(f"w{i}" for i in rng.integers(200, size=4))]) for n in numbers]
    spreads = []
    for rows in (np.arange(120), rng.permutation(120)):
        found = bag_of_words_for_numbers([texts[i] for i in rows], numbers[rows], ["level0", "level2"])
        spreads.append(np.ptp(found.scores))
    assert spreads[0] == pytest.approx(spreads[1], rel=0.01)


def test_linear_models_learn_label_sets_and_numbers():
    rng = np.random.default_rng(0)
    words = np.array(["cat", "dog", "red", "blue", "house", "tree"])
    has = rng.random((240, 6)) < 0.4
    texts = [" ".join(words[row]) or "none" for row in has]
    targets = np.column_stack([has[:, :2], np.zeros(240, bool), np.ones(240, bool)])
    sets = bag_of_words_for_sets(texts[:160], targets[:160], texts[160:], seed=0).scores
    assert ((sets > 0.5) == targets[160:]).all(axis=1).mean() > 0.9
    numbers = 10 + 3 * has[:, 0] - 2 * has[:, 1]
    found = bag_of_words_for_numbers(texts[:160], numbers[:160], texts[160:]).scores[:, 0]
    assert sk.r2_score(numbers[160:], found) > 0.7
    x = np.tanh(has + rng.normal(0, 0.1, has.shape))
    head = fit_set_regression(x, targets)
    assert ((x @ head.weight.T + head.bias > 0) == targets).mean() > 0.95
    ridge = fit_ridge(x, numbers.astype(float))
    assert sk.r2_score(numbers, (x @ ridge.weight.T + ridge.bias)[:, 0]) > 0.9


@pytest.mark.parametrize("noise", [0, 40])
def test_the_bag_of_words_of_ordered_classes_uses_the_better_decision(noise):
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 5, 400)
    texts = [" ".join([f"w{v}", *(f"x{i}" for i in rng.integers(0, 60, noise))]) for v in levels]
    found = ORDINAL.bag_of_words(texts[:300], levels[:300], texts[300:], 5, 0).scores
    assert found.sum(axis=1) == pytest.approx(1, abs=1e-6)
    kappa = ORDINAL.scalar_metrics(levels[300:], found)["quadratic_kappa"]
    plain = TASKS["single-label"].bag_of_words(texts[:300], levels[:300], texts[300:], 5, 0).scores
    assert kappa >= ORDINAL.scalar_metrics(levels[300:], plain)["quadratic_kappa"] - 0.02


@few
@given(seeds, st.integers(2, 11), st.integers(1, 20))
def test_preferring_the_most_likely_class_decides_for_it(seed, k, n):
    scores = np.random.default_rng(seed).dirichlet(np.ones(k), n)
    assert (least_cost(_prefer_likely(scores)) == scores.argmax(axis=1)).all()
