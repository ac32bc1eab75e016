"""Shares of a corpus: the estimators, the design of the sample, and the command from end to end."""

import csv
import errno
import importlib.util
import io
import json
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import bertsmith as bs
from bertsmith.cli.measure import MAX_SHOWN
from bertsmith.cli.measure import _print as show_measurement
from bertsmith.config import Config
from bertsmith.data.table import Labels
from bertsmith.data.template import Texts
from bertsmith.errors import ConfigError, DataError, OutputError
from bertsmith.folders.run import Run, open_run
from bertsmith.measuring.design import read_design
from bertsmith.measuring.drift import compare_counts, compare_embeddings, compare_scalars
from bertsmith.measuring.estimate import (
    Estimates,
    Sample,
    Totals,
    corrected_means,
    correlations,
    labelled_means,
    labels_for_target,
    mean_z_score,
    order_z_score,
    share_interval,
)
from bertsmith.measuring.label_shift import adjusted_count, combined_p_value, label_shift_test
from bertsmith.measuring.pseudo_outcomes import OutcomeFile
from bertsmith.measuring.quantities import Quantities
from bertsmith.measuring.regression import fit_regression
from bertsmith.measuring.result import MeanLevel, Measurement, Share, run_identity
from bertsmith.measuring.text_features import fit_axes, fit_clusters
from bertsmith.report.shares import shares_csv
from bertsmith.tasks.registry import get_task
from bertsmith.testing import tiny_table
from bertsmith.workflows.corpus_sample import CorpusSample
from bertsmith.workflows.label_shift import HeldOut, features_of
from bertsmith.workflows.labelled_sample import SEEN, LabelledSample, read_sample
from bertsmith.workflows.measure import Tally
from bertsmith.workflows.score import hash_texts
from tests.conftest import ArrowTable


def _population(n=3000, share=0.3, seed=0, noise=0.25):
    rng = np.random.default_rng(seed)
    outcomes = (rng.random(n) < share).astype(float)[:, None]
    predictions = np.clip(outcomes * 0.5 + 0.2 + rng.normal(0, noise, (n, 1)), 0, 1)
    return outcomes, predictions


def _sample(outcomes, predictions, n, seed, **values):
    rows = np.random.default_rng(seed).choice(len(outcomes), n, replace=False)
    return Sample(outcomes[rows], predictions[rows], np.full(n, n / len(outcomes)), **values)


# -- estimators --------------------------------------------------------------------------------------------------------


def test_intervals_cover_the_share_where_counting_does_not():
    outcomes, predictions = _population()
    totals, truth = Totals.of(predictions, predictions > 0.4), outcomes.mean()
    found = [corrected_means(_sample(outcomes, predictions, 200, seed), totals) for seed in range(400)]
    covered = np.mean([e.low[0] <= truth <= e.high[0] for e in found])
    assert 0.925 < covered < 0.98
    assert abs(totals.naive[0] - truth) > 0.03
    alone = corrected_means(_sample(outcomes, predictions * 0, 200, 0), totals)
    assert found[0].high[0] - found[0].low[0] < 0.85 * (alone.high[0] - alone.low[0])


def test_useless_predictions_are_not_used():
    outcomes, _ = _population()
    noise = np.random.default_rng(5).random((3000, 1))
    totals = Totals.of(noise, noise > 0.5)
    widths = []
    for seed in range(50):
        sample = _sample(outcomes, noise, 200, seed)
        alone, estimate = labelled_means(sample, totals), corrected_means(sample, totals)
        widths.append((estimate.high[0] - estimate.low[0]) / (alone.high[0] - alone.low[0]))
    assert max(widths) <= 1
    assert min(widths) > 0.9


def test_unequal_chances_are_corrected_for():
    outcomes, predictions = _population()
    chances = np.where(outcomes[:, 0] == 1, 0.12, 0.04)  # texts of the class are labelled three times as often
    totals, truth = Totals.of(predictions, predictions > 0.5), outcomes.mean()
    covered = []
    for seed in range(300):
        rows = np.random.default_rng(seed).random(3000) < chances
        estimate = corrected_means(Sample(outcomes[rows], predictions[rows], chances[rows]), totals)
        covered.append(estimate.low[0] <= truth <= estimate.high[0])
    assert 0.92 < np.mean(covered) < 0.985


@pytest.mark.parametrize(
    ("texts", "labelled", "shares"),
    [((1000, 9000), (200, 100), (0.3, 0.01)), ((900, 100), (900, 10), (0.5, 0.1))],
    ids=["a few texts stand for most", "a part is labelled to the last text"],
)
def test_mistakes_where_few_texts_are_labelled_are_allowed_for(texts, labelled, shares):
    covered = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        outcomes = np.concatenate([rng.random(n) < share for n, share in zip(texts, shares, strict=True)])[:, None]
        first = np.arange(len(outcomes))[:, None] < texts[0]
        predictions = np.where(outcomes & first, 0.99, 0.01)  # right in the first part, never finds the second
        rows = np.r_[
            rng.choice(texts[0], labelled[0], replace=False), texts[0] + rng.permutation(texts[1])[: labelled[1]]
        ]
        sample = Sample(1.0 * outcomes[rows], predictions[rows], np.repeat(np.divide(labelled, texts), labelled))
        estimate = corrected_means(sample, Totals.of(predictions, predictions > 0.5))
        covered.append(estimate.low[0] <= outcomes.mean() <= estimate.high[0])
    assert np.mean(covered) > 0.93


def test_the_texts_that_stand_for_most_others_decide_about_an_interval():
    """All 200 texts with a keyword are labelled, and 50 of 9,800 others."""
    chances, predictions = np.repeat([1, 50 / 9800], [200, 50]), np.full((250, 1), 0.01)
    totals = Totals(10_000, np.array([100.0]), np.array([1.0]), np.array([0.0]))
    none = corrected_means(Sample(np.zeros((250, 1)), predictions, chances), totals)
    assert (none.low[0], none.high[0]) == (0, pytest.approx(0.07, abs=0.005))  # 7.0 % by Clopper and Pearson
    numbers = labelled_means(Sample(np.arange(250.0)[:, None], predictions, chances, bounded=False), totals)
    quantile = (numbers.high - numbers.value) / numbers.error
    assert quantile[0] == pytest.approx(stats.t.ppf(0.975, 49))
    all_of_them = labelled_means(Sample(np.eye(250)[:, :1], predictions, np.ones(250)), totals)
    assert (all_of_them.low[0], all_of_them.high[0]) == (pytest.approx(1 / 250, abs=1e-6),) * 2


@pytest.mark.parametrize("clusters", [None, np.arange(150) // 3], ids=["texts", "clusters"])
def test_equal_chances_have_as_many_units_as_the_sample(clusters):
    outcomes, predictions = _population()
    estimate = labelled_means(
        _sample(outcomes, predictions, 150, 0, clusters=clusters), Totals.of(predictions, outcomes)
    )
    n = 150 if clusters is None else 50
    low, high = share_interval(estimate.value, estimate.error**2, n, alone=0.95 / n, mistake=0.95 / n**2)
    assert (estimate.low[0], estimate.high[0]) == (pytest.approx(low[0]), pytest.approx(high[0]))


def test_a_rare_class_without_a_labelled_text_has_an_interval_with_a_width():
    outcomes = np.zeros((200, 1))
    predictions = np.full((200, 1), 0.01)
    totals = Totals(4000, np.array([40.0]), np.array([0.5]), np.array([0.0]))
    estimate = corrected_means(Sample(outcomes, predictions, np.full(200, 0.05)), totals)
    assert estimate.low[0] == 0
    assert 0.005 < estimate.high[0] < 0.03


@pytest.mark.parametrize("n", [40, 41, 97])
def test_labelled_texts_of_a_single_class_have_mirrored_intervals(n):
    rng = np.random.default_rng(n)
    outcomes, predictions = np.tile([0.0, 1.0], (n, 1)), rng.dirichlet([2, 3], n)
    everywhere = rng.dirichlet([2, 3], 400)
    sample = Sample(outcomes, predictions, np.full(n, n / 400))
    estimate = corrected_means(sample, Totals.of(everywhere, everywhere > 0.5))
    assert 0 < estimate.high[0] < 0.2
    assert estimate.low[1] == pytest.approx(1 - estimate.high[0], abs=1e-9)
    assert correlations(sample).tolist() == [0, 0]


def test_the_width_of_an_interval_follows_from_the_correlation():
    rng = np.random.default_rng(3)
    truth = (rng.random((20_000, 1)) < 0.4).astype(float)
    predictions = np.clip(0.5 * truth + rng.normal(0.25, 0.3, (20_000, 1)), 0, 1)
    sample, totals = _sample(truth, predictions, 2000, 0), Totals.of(predictions, predictions > 0.5)
    found, alone = corrected_means(sample, totals), labelled_means(sample, totals)
    correlation = correlations(sample)
    assert correlation[0] == pytest.approx(np.corrcoef(sample.outcomes[:, 0], sample.predictions[:, 0])[0, 1])
    ratio = (found.high - found.low)[0] / (alone.high - alone.low)[0]
    assert ratio == pytest.approx(np.sqrt(1 - correlation[0] ** 2), abs=0.02)
    opposite = Sample(sample.outcomes, 1 - sample.predictions, sample.inclusion)
    assert correlations(opposite)[0] == 0  # predictions with a negative correlation are not used


def test_an_estimate_below_zero_has_no_interval_wider_than_the_labelled_texts_alone():
    outcomes, predictions = np.zeros((200, 1)), np.full((200, 1), 0.02)
    outcomes[0], predictions[:2] = 1, 0.9  # the sample has more texts like this than the corpus
    sample = Sample(outcomes, predictions, np.full(200, 0.05))
    totals = Totals(4000, np.array([60.0]), np.array([5.0]), np.array([0.0]))
    alone, estimate = labelled_means(sample, totals), corrected_means(sample, totals)
    assert 0 < estimate.high[0] - estimate.low[0] <= alone.high[0] - alone.low[0]


def test_a_sample_without_a_mistake_does_not_make_the_model_perfect():
    rng = np.random.default_rng(0)
    covered = []
    for seed in range(300):
        outcomes = (rng.random((4000, 1)) < 0.3).astype(float)
        predictions = np.clip(np.where(rng.random((4000, 1)) < 0.007, 1, outcomes), 0.01, 0.99)
        estimate = corrected_means(_sample(outcomes, predictions, 200, seed), Totals.of(predictions, predictions > 0.5))
        covered.append(estimate.low[0] <= outcomes.mean() <= estimate.high[0])
    assert np.mean(covered) > 0.93


def test_the_interval_of_a_mean_of_numbers_contains_it_as_often_as_claimed():
    rng, inside, widths = np.random.default_rng(0), [], []
    for _ in range(200):
        truth = rng.gamma(2, 0.3, (3000, 1))  # skewed, and partly above 1
        predictions = truth + rng.normal(0.1, 0.2, truth.shape)
        sample = Sample(truth[:100], predictions[:100], np.full(100, 100 / 3000), bounded=False)
        found, alone = (f(sample, Totals.of(predictions, predictions)) for f in (corrected_means, labelled_means))
        inside.append(found.low[0] <= truth.mean() <= found.high[0])
        widths.append((found.high - found.low)[0] / (alone.high - alone.low)[0])
    assert np.mean(inside) == pytest.approx(0.95, abs=0.04)
    assert np.mean(widths) < 0.6


def test_ordered_levels_have_a_mean_with_an_interval():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, (4000, 1)) / 4
    predictions = truth + rng.normal(0.1, 0.2, truth.shape)
    totals = Totals.of(predictions, predictions)
    found = [corrected_means(_sample(truth, predictions, 150, seed), totals) for seed in range(200)]
    assert 0.91 < np.mean([e.low[0] <= truth.mean() <= e.high[0] for e in found]) < 0.99
    assert totals.naive[0] - truth.mean() > 0.08


def test_texts_of_one_author_count_as_one_draw():
    rng = np.random.default_rng(0)
    authors = np.repeat(np.arange(60), 10)
    outcomes = np.repeat(rng.random(60) < 0.4, 10).astype(float)[:, None]
    predictions = np.full((600, 1), 0.4)
    totals = Totals(6000, np.array([2400.0]), np.array([960.0]), np.array([0.0]))
    one = corrected_means(Sample(outcomes, predictions, np.full(600, 0.1)), totals)
    many = corrected_means(Sample(outcomes, predictions, np.full(600, 0.1), clusters=authors), totals)
    assert many.error[0] > 2.5 * one.error[0]


def test_totals_of_parts_are_the_totals_of_the_whole():
    _, predictions = _population(n=100)
    whole = Totals.of(predictions, predictions > 0.5)
    parts = Totals.of(predictions[:30], predictions[:30] > 0.5) + Totals.of(predictions[30:], predictions[30:] > 0.5)
    assert parts.texts == whole.texts
    for name in ("sums", "squares", "counts"):
        assert np.allclose(getattr(parts, name), getattr(whole, name))


# Of ppi-python 0.2.3: ppi_mean_pointestimate and ppi_mean_ci(alpha=0.05), for the data of `_oracle_data`.
REFERENCE = {"value": 0.34120818, "error": 0.01265876}


def _oracle_data():
    i = np.arange(300)
    outcomes = ((i * 7919) % 101 < 33).astype(float)
    predictions = 0.15 + 0.6 * outcomes + 0.2 * ((i * 104729) % 97) / 97
    unlabelled = 0.15 + 0.6 * (((np.arange(2700) * 6151) % 103) < 36) + 0.2 * ((np.arange(2700) * 3571) % 89) / 89
    return outcomes[:, None], predictions[:, None], unlabelled[:, None]


def test_the_estimate_is_that_of_ppi_python():
    outcomes, predictions, unlabelled = _oracle_data()
    apart = Sample(outcomes, predictions, np.ones(300), in_corpus=False)
    outside = corrected_means(apart, Totals.of(unlabelled, unlabelled > 0.5))
    together = np.concatenate([unlabelled, predictions])
    inside = corrected_means(Sample(outcomes, predictions, np.full(300, 0.1)), Totals.of(together, together > 0.5))
    assert outside.value[0] == pytest.approx(REFERENCE["value"], abs=1e-6)
    assert inside.value[0] == pytest.approx(REFERENCE["value"], abs=1e-6)
    assert outside.error[0] == pytest.approx(REFERENCE["error"], rel=0.01)  # ours is that of the jackknife
    if importlib.util.find_spec("ppi_py"):
        from ppi_py import ppi_mean_pointestimate

        theirs = ppi_mean_pointestimate(outcomes, predictions, unlabelled)
        assert outside.value[0] == pytest.approx(float(np.squeeze(theirs)), abs=1e-6)


def test_more_labels_give_the_width_that_was_planned():
    outcomes, predictions = _population(n=60_000)
    totals = Totals.of(predictions, predictions > 0.5)
    few = corrected_means(_sample(outcomes, predictions, 400, 1), totals)
    needed = int(labels_for_target(few, 400, 60_000)[0])
    estimate = corrected_means(_sample(outcomes, predictions, needed, 2), totals)
    assert (estimate.high[0] - estimate.low[0]) / 2 == pytest.approx(0.01, rel=0.15)


def test_labels_outside_of_the_corpus_have_no_finite_population_correction():
    spread, correlation, n_corpus = 0.21, 0.5, 2000

    def estimates(correlation, n):
        error = np.sqrt([spread * (1 - correlation * n_corpus / (n_corpus + n)) / n])
        return Estimates(error, error, error, error, error)

    needed = int(labels_for_target(estimates(correlation, 200), 200, n_corpus, estimates(0, 200))[0])
    assert needed > n_corpus
    assert 1.96 * estimates(correlation, needed).error[0] == pytest.approx(0.01, rel=1e-3)


def test_the_interval_of_a_share_is_that_of_wilson():
    low, high = share_interval(np.array([0.1]), np.array([0.1 * 0.9 / 100]), 10**6)
    assert (low[0], high[0]) == (pytest.approx(0.0552, abs=2e-4), pytest.approx(0.1744, abs=2e-4))


# -- label shift -------------------------------------------------------------------------------------------------------


def _texts(rng, shares, n, moved=0.0):
    targets = rng.choice(len(shares), n, p=shares)
    confused = rng.random(n) < 0.2
    predicted = np.where(confused, rng.integers(0, len(shares), n), targets)
    features = np.column_stack(
        [np.eye(len(shares))[predicted][:, :-1], rng.normal(targets[:, None] * 0.3 + moved, 1, (n, 4))]
    )
    return targets, predicted, features


def test_the_csv_file_of_shares_has_no_formulas():
    shares = (Share("=1+1", "@group", 0.5, (0.4, 0.6), 0.5, "PPI++", 10, 100),)
    (row,) = csv.DictReader(io.StringIO(shares_csv(Measurement("corpus", None, "by", shares))))
    assert (row["group"], row["label_text"]) == ("'@group", "'=1+1")


def test_the_adjusted_count_finds_the_shares_under_label_shift():
    rng = np.random.default_rng(0)
    covered, naive = [], []
    for _ in range(100):
        targets, predicted, _ = _texts(rng, [0.5, 0.3, 0.2], 600)
        truth, labelled, _ = _texts(rng, [0.1, 0.2, 0.7], 3000)
        counts, shares = np.bincount(labelled, minlength=3), np.bincount(truth, minlength=3) / 3000
        found = adjusted_count(targets, predicted, counts)
        covered.append((found.low <= shares) & (shares <= found.high))
        naive.append(abs(counts / 3000 - shares).max())
        assert found.value.sum() == pytest.approx(1)
    assert 0.92 < np.mean(covered) < 0.985
    assert np.mean(naive) > 0.05


def test_groups_that_differ_widen_the_interval_of_the_adjusted_count():
    targets = np.tile(np.repeat([0, 1], 10), 20)
    predicted = np.where(np.arange(400) < 100, 1, targets)  # all mistakes are in a quarter of the groups
    single, few = (
        adjusted_count(targets, predicted, np.array([500, 500]), groups=np.arange(400) // size) for size in (1, 20)
    )
    plain = adjusted_count(targets, predicted, np.array([500, 500]))
    width = plain.high - plain.low
    assert abs((single.high - single.low) / width - 1).max() < 0.2
    assert ((few.high - few.low) / width).min() > 1.5


def test_the_adjusted_count_inverts_the_confusion_matrix():
    targets = np.repeat([0, 1], [60, 40])
    predicted = np.concatenate([np.repeat([0, 1], [50, 10]), np.repeat([0, 1], [8, 32])])
    found = adjusted_count(targets, predicted, np.array([400, 600]))
    assert found.value[1] == pytest.approx((0.6 - 10 / 60) / (0.8 - 10 / 60), abs=1e-6)  # (count − fpr) / (tpr − fpr)


def test_a_class_that_is_absent_has_an_interval_with_a_width():
    targets, _, _ = _texts(np.random.default_rng(0), [0.5, 0.3, 0.2], 600)
    predicted = targets.copy()
    predicted[::4] = (predicted[::4] + 1) % 3
    found = adjusted_count(targets, predicted, np.array([700, 230, 5]))
    assert found.value[2] == found.low[2] == 0
    assert found.high[2] > 0.01


@pytest.mark.parametrize(("counts", "contradicts"), [([500, 500], False), ([130, 870], True), ([250, 750], False)])
def test_predictions_that_no_shares_explain_contradict_label_shift(counts, contradicts):
    targets = np.repeat([0, 1], [200, 200])
    predicted = np.concatenate([np.repeat([0, 1], [140, 60]), np.repeat([0, 1], [50, 150])])  # at most 75 % are class 1
    found = adjusted_count(targets, predicted, np.array(counts))
    assert found.contradicts == contradicts
    assert (found.low < found.high).all()


# Of QuaPy 0.2.3: `python benchmarks/quapy_oracle.py`.
QUAPY = {
    (300, 500, 200): [0.26167862, 0.59779027, 0.14053111],
    (450, 300, 250): [0.49762551, 0.27679783, 0.22557666],
    (600, 250, 150): [0.73618918, 0.20178329, 0.06202752],
}


@pytest.mark.parametrize("counts", QUAPY)
def test_the_adjusted_count_is_that_of_quapy(counts):
    targets, i = np.repeat([0, 1, 2], [90, 60, 50]), np.arange(200)
    predicted = np.where((i * 7919) % 101 < 76, targets, (targets + 1 + (i * 104729) % 2) % 3)
    found = adjusted_count(targets, predicted, np.array(counts))
    assert found.value.tolist() == pytest.approx(QUAPY[counts], abs=1e-6)
    assert (found.low < found.value).all()
    assert (found.value < found.high).all()


def test_the_adjusted_count_gives_the_mean_level():
    targets, _, _ = _texts(np.random.default_rng(0), [0.5, 0.3, 0.2], 600)
    predicted, levels = targets.copy(), np.array([0, 0.5, 1])
    predicted[::5] = (predicted[::5] + 1) % 3
    counts = np.array([400, 300, 300])
    shares = adjusted_count(targets, predicted, counts)
    both = adjusted_count(targets, predicted, counts, np.column_stack([np.eye(3), levels]))
    assert both.value[:3].tolist() == pytest.approx(shares.value.tolist())
    assert both.value[3] == pytest.approx(shares.value @ levels)
    assert both.low[3] < both.value[3] < both.high[3]


@pytest.mark.parametrize(
    ("moved", "shares", "least", "most"), [(0, (0.1, 0.2, 0.7), 0, 0.12), (0.25, (0.5, 0.3, 0.2), 0.9, 1)]
)
def test_the_test_rejects_texts_that_changed_and_not_shares_that_did(moved, shares, least, most):
    rng = np.random.default_rng(1)
    rejected = []
    for _ in range(100):
        targets, _, features = _texts(rng, [0.5, 0.3, 0.2], 500)
        _, _, corpus = _texts(rng, shares, 3000, moved)
        rejected.append(label_shift_test(targets, features, corpus, 3) < 0.05)
    assert least <= np.mean(rejected) <= most


# -- the design of a sample --------------------------------------------------------------------------------------------


def test_a_convenience_sample_is_refused_with_the_reason():
    with pytest.raises(DataError) as caught:
        read_design({"note": ["a", "b"]}, [1, 2], "sample.csv")
    assert "--random-sample" in caught.value.remedy
    assert read_design({"note": ["a", "b"]}, [1, 2], "sample.csv", declared_random=True).inclusion is None


def test_only_texts_with_a_known_chance_are_used():
    design = read_design({"random": [True, "false", "yes"]}, [1, 2, 3], "s")
    assert design.usable.tolist() == [True, False, True]
    assert not read_design({"random": ["no", "no"]}, [1, 2], "s").usable.any()
    design = read_design(
        {"Random": ["true", "false", "false"], "Inclusion Probability": [0.1, None, "0.5"]}, [1, 2, 3], "s"
    )
    assert design.usable.tolist() == [True, False, False]
    assert design.inclusion[0] == 0.1
    german = {"random": ["WAHR", "FALSCH", "WAHR"], "inclusion_probability": ["0,0733", None, "1"]}
    assert read_design(german, [1, 2, 3], "s").inclusion[[0, 2]].tolist() == [0.0733, 1]
    assert read_design({"random": ["yes", "", None]}, [1, 2, 3], "s", unlabelled={2, 3}).usable.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    "columns",
    [
        {"random": ["true", "perhaps"]},
        {"inclusion_probability": [0.5, 1.5]},
        {"inclusion_probability": [0, 0.5]},
        {"inclusion_probability": ["often", 0.5]},
        {"random": ["true", "true"], "inclusion_probability": [None, 0.5]},
        {"random": ["true", "false"], "inclusion_probability": [None, None]},
    ],
)
def test_a_design_that_is_not_valid_is_refused(columns):
    with pytest.raises(DataError) as caught:
        read_design(columns, [1, 2], "s")
    assert caught.value.remedy


def _labelled(groups):
    n = len(groups)
    return LabelledSample("s", list(range(1, n + 1)), ["ok"] * n, np.eye(n, 2), None, None, list(groups), {})


def test_equal_texts_stay_in_the_group_that_the_sample_states():
    sample = _labelled(["Feb", "Feb", "Jan"])
    corpus = ["Jan", "Jan", "Feb", "Feb", "Feb", "Mar"]
    for row, group in enumerate(corpus):
        sample.see("ok", row, group)
    assert sorted(corpus[row] for row in sample.match()) == ["Feb", "Feb", "Jan"]
    assert sample.groups == ["Feb", "Feb", "Jan"]
    elsewhere = _labelled(["2025-01"])  # written in another way in the corpus
    elsewhere.see("ok", 1, "2025-01-01")
    assert (elsewhere.match(), elsewhere.groups) == ({1: 0}, ["2025-01-01"])


def test_equal_texts_without_a_group_are_matched_at_random():
    groups = ["Jan"] * 50 + ["Feb"] * 50
    sample = _labelled([None] * 40)
    for row, group in enumerate(groups, 1):
        sample.see("ok", row, group)
    assert len(sample.match()) == 40
    assert sample.found.all()
    assert 10 < sample.groups.count("Feb") < 30


def test_texts_with_the_guard_of_predict_are_those_of_the_corpus(finished, corpus, monkeypatch):
    texts = Texts(["'@a", "'@b", "'=c", "'tis", "@d", "'-e", ("'@f", "g")])
    sample = LabelledSample("s", [*range(7)], texts, np.eye(7), None, None, [None] * 7, {})
    for row, text in enumerate(["@b", "'tis", "tis", "=c", "'=c", "@d", "'@d", "@f\ng", "'@b", "'@a", "@a"]):
        sample.see(text, row, None)
    assert sample.match() == {0: 1, 1: 3, 3: 2, 5: 4, 7: 6, 9: 0}
    assert sample.texts == ["'@a", "@b", "=c", "'tis", "@d", "'-e", ("@f", "g")]

    frame = pd.read_csv(corpus / "sample.csv")
    trained = hash_texts([f"@{text}" for text in frame["Text"][:3]])
    monkeypatch.setattr(Run, "training_hashes", {*trained})
    frame["Text"] = "'@" + frame["Text"]
    sample = read_sample(open_run(finished), frame, Config(), None, random_sample=True)
    assert sample.left_out == {SEEN: 3}
    assert sample.texts == frame["Text"][3:].tolist()


def test_the_labelled_share_of_the_corpus_follows_from_its_size():
    """Of a corpus ten times as large as the pool, a tenth of the share of the pool is labelled."""
    sample, quantities = _labelled([None] * 40), Quantities(Labels((0, 1), ("a", "b")), ordered=False)
    for inclusion, n_corpus, expected in (
        (None, 400, [0.1] * 40),
        (np.full(40, 0.5), 800, [0.05] * 40),
        (np.full(40, 0.5), 80, [0.5] * 40),
        (np.repeat([0.1, 0.2], 20), 600, np.repeat([0.05, 0.1], 20)),
    ):
        found = replace(sample, inclusion=inclusion).with_predictions(np.eye(40, 2), quantities, n_corpus)
        assert found.inclusion.tolist() == pytest.approx(list(expected))


# -- regressions -------------------------------------------------------------------------------------------------------


def _outcomes(seed, n=4000, labelled=400):
    """A corpus whose second half has the label more often, while the model errs more in the first."""
    rng = np.random.default_rng(seed)
    late = np.repeat([0.0, 1.0], n // 2)
    outcomes = (rng.random(n) < 0.2 + 0.2 * late).astype(float)
    predictions = np.clip(0.6 * outcomes + 0.3 - 0.25 * late + rng.normal(0, 0.1, n), 0, 1)
    drawn = rng.permutation(n) < labelled
    pseudo = predictions + np.where(drawn, (outcomes - predictions) * n / labelled, 0)
    return pd.DataFrame({"late": late, "outcome hate": pseudo, "predicted": predictions, "true": outcomes})


def test_a_regression_on_pseudo_outcomes_is_right_where_one_on_predictions_is_not():
    found, naive = [], []
    for seed in range(100):
        frame = _outcomes(seed)
        row = fit_regression(frame, "hate", ["late"]).to_frame().loc["late"]
        truth = frame["true"][frame["late"] == 1].mean() - frame["true"][frame["late"] == 0].mean()
        found.append(row["low"] <= truth <= row["high"])
        naive.append(frame["predicted"][frame["late"] == 1].mean() - frame["predicted"][frame["late"] == 0].mean())
    assert 0.9 <= np.mean(found) <= 1
    assert abs(np.mean(naive) - 0.2) > 0.1


def test_a_logistic_regression_gives_the_log_odds():
    frame = _outcomes(3, n=20_000, labelled=4000)
    found = fit_regression(frame, "hate", ["late"], model="logistic").to_frame().loc["late"]
    assert found["low"] < np.log(0.4 / 0.6) - np.log(0.2 / 0.8) < found["high"]


def test_outcomes_have_the_corrected_share_as_mean_if_rows_of_the_sample_are_left_out(tmp_path):
    outcomes, predictions = _population(n=1000)
    rows = np.random.default_rng(0).permutation(1000)[:90]  # of 100 drawn
    sample = Sample(outcomes[rows], predictions[rows], np.where(outcomes[rows, 0] == 1, 0.2, 0.1))
    file = OutcomeFile(tmp_path / "o.csv", ["hate"], np.zeros(1), np.ones(1))
    file.add({"x": [0] * 1000}, range(1000), range(1000), predictions)
    estimate = corrected_means(sample, Totals.of(predictions, predictions > 0.5))
    file.finish(sample, estimate.tuning, {int(row): i for i, row in enumerate(rows)})
    file.close()
    assert pd.read_csv(tmp_path / "o.csv")["outcome hate"].mean() == pytest.approx(estimate.value[0])


def test_outcomes_keep_every_cell_and_have_distinct_columns(tmp_path):
    outcomes, predictions = _population(n=50)
    cells = {
        "note": ["x" * 140_000, "a\rb", None, float("nan"), 0.1, '"q", 1'],
        "Row": [7] * 6,
        "labelled": [False] * 6,
    }
    file = OutcomeFile(tmp_path / "o.csv", ["hate"], np.zeros(1), np.ones(1))
    file.add(cells, range(6), range(1, 7), predictions[:6])
    file.finish(Sample(outcomes, predictions, np.full(50, 0.5)), np.ones(1), {})
    file.close()
    found = pd.read_csv(tmp_path / "o.csv", keep_default_na=False)
    assert list(found) == ["row", "note", "corpus Row", "corpus labelled", *found.columns[4:]]
    assert found["note"].tolist() == ["x" * 140_000, "a\rb", "", "", "0.1", '"q", 1']
    assert found["row"].tolist() == [1, 2, 3, 4, 5, 6]
    assert found["outcome hate"].tolist() == pytest.approx(predictions[:6, 0].tolist())


@pytest.mark.parametrize("model", ["linear", "logistic"])
def test_columns_of_large_numbers_have_coefficients(model):
    frame = _outcomes(0, n=20_000, labelled=2000)
    found = fit_regression(frame.assign(time=1.6e9 + 1e7 * frame["late"]), "hate", ["time"], model=model).to_frame()
    expected = fit_regression(frame, "hate", ["late"], model=model).to_frame()
    assert found.loc["time"].mul([1e7] * 4 + [1]).tolist() == pytest.approx(expected.loc["late"].tolist())
    intercept = expected["coefficient"] @ [1, -160]
    assert found.loc["(intercept)", "coefficient"] == pytest.approx(intercept)
    with pytest.raises(DataError):
        fit_regression(frame.assign(same=1.6e9), "hate", ["late", "same"], model=model)


def test_the_unit_of_a_number_does_not_change_the_p_values():
    frame = _outcomes(0, n=2000, labelled=200).rename(columns={"outcome hate": "outcome (number)"})
    frame["inclusion_probability"] = [0.1, *[None] * 9] * 200
    found = fit_regression(frame, "(number)", ["late"]).to_frame()
    scaled = fit_regression(frame.assign(**{"outcome (number)": frame["outcome (number)"] / 100}), "(number)", ["late"])
    assert scaled.to_frame()["p_value"].tolist() == pytest.approx(found["p_value"].tolist())


def test_names_that_look_like_missing_values_are_names(tmp_path):
    country = ["NA", "None", "DE"] * 100
    frame = _outcomes(0, n=300, labelled=60).assign(country=country, other="x")
    frame.rename(columns={"other": "country"}).to_csv(tmp_path / "o.csv", index=False)
    found = fit_regression(tmp_path / "o.csv", "hate", "country")
    assert found.names[1:] == ("country_NA", "country_None")
    _outcomes(0, n=300, labelled=60).assign(country=[*country[1:], ""]).to_csv(tmp_path / "o.csv", index=False)
    with pytest.raises(DataError):
        fit_regression(tmp_path / "o.csv", "hate", ["country"])


def test_rows_without_a_cluster_are_clusters_of_their_own():
    frame = _outcomes(0, n=300, labelled=60)
    author = pd.Series([f"a{i % 40}" for i in range(300)]).mask(np.arange(300) % 3 == 0)
    own = author.fillna(pd.Series([f"row {i}" for i in range(300)]))
    found, expected = (fit_regression(frame.assign(a=a), "hate", ["late"], clusters="a").errors for a in (author, own))
    assert found.tolist() == pytest.approx(expected.tolist())


def test_a_regression_considers_mistakes_that_the_sample_does_not_show():
    late, drawn = np.repeat([0.0, 1.0], 2000), np.arange(4000) % 10 == 0
    frame = pd.DataFrame({"late": late, "outcome hate": np.arange(4000) % 3 == 0})
    plain = fit_regression(frame, "hate", ["late"])
    found = fit_regression(frame.assign(inclusion_probability=np.where(drawn, 0.1, np.nan)), "hate", ["late"])
    assert (plain.freedom, found.freedom) == (3999, 399)
    # A mistake changes an outcome by 10, and the mean of its half by 10 / 2000. A tenth of the labels is known.
    assert found.covariance[1, 1] - plain.covariance[1, 1] == pytest.approx(0.9 * (10 / 2000) ** 2)


def test_clusters_have_the_standard_errors_of_the_jackknife():
    frame = _outcomes(0, n=400, labelled=40).assign(a=np.arange(400) // 2 % 7)
    found = fit_regression(frame, "hate", ["late"], clusters="a")
    left = [fit_regression(frame[frame["a"] != a], "hate", ["late"]).coefficients for a in range(7)]
    assert found.errors == pytest.approx(np.sqrt(6 / 7 * ((left - found.coefficients) ** 2).sum(axis=0)))
    drawn = np.where(frame["a"] < 3, 0.1, np.nan)
    few = fit_regression(frame.assign(inclusion_probability=drawn), "hate", ["late"], clusters="a")
    assert (found.freedom, few.freedom) == (6, 2)


@pytest.mark.parametrize(("n", "given"), [(0, None), (1, None), (2, 1), (4, 1), (5, 0)])
@pytest.mark.parametrize("on", ["month", "late"])
def test_values_with_few_labelled_texts_or_clusters_are_noted_or_refused(n, given, on):
    frame = _outcomes(0, n=400, labelled=40).assign(month=["m1"] * 200 + ["m2"] * 200)
    known = np.arange(400) % 10 == 0
    known[200:] = np.arange(200) < n
    labelled = frame.assign(inclusion_probability=np.where(known, 0.1, np.nan))
    author = [*range(20)] * 10 + [20 + i % n for i in range(200)] if n else None
    for some, clusters in ((labelled, None), *([(frame.assign(a=author), "a")] if n else [])):
        if given is None:
            with pytest.raises(DataError):
                fit_regression(some, "hate", [on], clusters=clusters)
        else:
            found = fit_regression(some, "hate", [on], clusters=clusters)
            assert len(found.notes) == given
            assert all(note in repr(found) for note in found.notes)


def test_numbers_that_vary_in_one_cluster_or_in_no_labelled_text_have_no_coefficient():
    frame = _outcomes(0, n=400, labelled=40).assign(a=np.arange(400) // 40, x=np.maximum(np.arange(400) - 360, 0))
    with pytest.raises(DataError):
        fit_regression(frame, "hate", ["late", "x"], clusters="a")
    known = np.where(np.arange(400) % 10 == 0, 0.1, np.nan)
    assert np.isfinite(fit_regression(frame.assign(inclusion_probability=known), "hate", ["x"]).errors).all()
    known[360:] = np.nan
    with pytest.raises(DataError):
        fit_regression(frame.assign(inclusion_probability=known), "hate", ["x"])


@pytest.mark.parametrize(
    ("label", "on", "model", "error"),
    [
        ("hte", ["late"], "linear", DataError),
        ("hate", ["x"], "linear", DataError),
        ("hate", ["late"], "p", ConfigError),
        ("hate", [], "linear", ConfigError),
        ("hate", 5, "linear", DataError),
        ("hate", "infinite", "linear", DataError),
        ("words", "late", "linear", DataError),
        ("missing", "late", "linear", DataError),
        ("infinite", "late", "linear", DataError),
    ],
)
def test_a_regression_that_cannot_be_is_refused(label, on, model, error):
    frame = _outcomes(0, n=40).assign(infinite=np.inf, **{"outcome infinite": [np.inf] + [0.0] * 39})
    frame[["outcome words", "outcome missing"]] = "word", np.nan
    with pytest.raises(error):
        fit_regression(frame, label, on, model=model)


@pytest.mark.parametrize("probability", [0, -0.5, 1.5])
def test_a_regression_refuses_values_that_are_not_inclusion_probabilities(probability):
    frame = _outcomes(0, n=40).assign(inclusion_probability=0.5)
    fit_regression(frame, "hate", ["late"])
    frame.loc[0, "inclusion_probability"] = probability
    with pytest.raises(DataError):
        fit_regression(frame, "hate", ["late"])


@pytest.mark.parametrize("name", ["none.csv", ".", "empty.csv", "rows.csv", "bytes.csv", "twice.csv", "words.csv"])
def test_a_file_that_is_not_that_of_a_regression_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    contents = {
        "empty": b"",
        "rows": b"a,b\n",
        "bytes": b"a\n\xff\n",
        "twice": b"a\n1\n1,2,3\n",
        "words": b"a,b\n1,2\n",
    }
    for stem, content in contents.items():
        Path(f"{stem}.csv").write_bytes(content)
    with pytest.raises(DataError) as error:
        fit_regression(name, "hate", "a")
    assert error.value.where == name


def test_clusters_that_are_not_a_column_are_refused():
    for clusters in (7, ""):
        with pytest.raises(DataError):
            fit_regression(_outcomes(0, n=40), "hate", "late", clusters=clusters)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A corpus of 600 texts with months, and a random sample of 120 of them."""
    folder = tmp_path_factory.mktemp("corpus")
    table = tiny_table(600, seed=3).sample(500, random_state=1).reset_index(drop=True)
    table["Label"] = (table["Label"] + 1) * 10
    table["month"] = [f"2025-0{1 + i % 3}" for i in range(500)]
    table[["Text", "month"]].to_csv(folder / "corpus.csv", index=False)
    table.sample(120, random_state=2)[["Text", "Label Text"]].to_csv(folder / "sample.csv", index=False)
    table.to_csv(folder / "truth.csv", index=False)
    return folder


def test_long_names_of_groups_take_little_memory():
    quantities = Quantities(Labels((0, 1), ("a", "b")), ordered=False)
    tally = Tally(get_task("single-label"), quantities, "x", None, None)
    names = ["y" * 100_000, *"abcd" * 50]
    n = len(names)
    cells = {"x": names, "probability of a": [0.2] * n, "probability of b": [0.8] * n}
    tracemalloc.start()
    tally.add(cells, [f"text {i}" for i in range(n)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2**20
    assert {name: totals.texts for name, totals in tally.totals.items()} == Counter(names)


def test_the_command_measures_a_corpus(finished, corpus, cli, tmp_path):
    files = {"-o": tmp_path / "o.csv", "--html": tmp_path / "p.html", "--for-regression": tmp_path / "r.csv"}
    arguments = ["measure", finished, corpus / "corpus.csv", "--labelled", corpus / "sample.csv", "--by", "month"]
    arguments += ["--random-sample", "--json", *(part for pair in files.items() for part in pair)]
    code, out, err = cli(*arguments)
    assert code == 0, err
    shares = json.loads(out)["shares"]
    keys = {"label_text", "group", "share", "interval", "naive", "estimator", "labelled", "texts"}
    assert all(set(share) == keys | {"labelled_share", "labelled_interval"} for share in shares)
    assert len(shares) == 3 * 4
    truth = pd.read_csv(corpus / "truth.csv")
    whole = [share for share in shares if share["group"] is None]
    for share in whole:
        true = (truth["Label Text"] == share["label_text"]).mean()
        assert share["interval"][0] <= true <= share["interval"][1]
        assert (share["estimator"], share["labelled"], share["texts"]) == ("PPI++", 120, 500)
        labels = pd.read_csv(corpus / "sample.csv")["Label Text"]
        assert share["labelled_share"] == pytest.approx((labels == share["label_text"]).mean())
        assert share["labelled_interval"][0] < share["labelled_share"] < share["labelled_interval"][1]
    assert sum(s["labelled"] for s in shares if s["group"] and s["label_text"] == "animals") == 120
    with (tmp_path / "o.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 12
    assert float(lines[0]["labelled_low"]) == pytest.approx(shares[0]["labelled_interval"][0], abs=1e-6)
    notes = json.loads(out)["notes"]
    assert all(note in err for note in notes)
    assert any(f"{max(json.loads(out)['more_labels'].values()):,}" in note for note in notes)
    assert all(0 < width < 1 for width in json.loads(out)["least_widths"].values())
    table = pd.read_csv(tmp_path / "r.csv")
    assert len(table) == 500
    assert table["labelled"].sum() == 120
    for share in whole:  # the pseudo-outcomes have the corrected share as their mean
        assert table[f"outcome {share['label_text']}"].mean() == pytest.approx(share["share"], abs=1e-6)
    for source in (tmp_path / "r.csv", ArrowTable(table)):
        assert bs.regress(source, "animals", ["month"]).names[1:] == ("month_2025-02", "month_2025-03")
    with pytest.raises(DataError):  # texts without a label have no labelled texts
        bs.regress(table, "animals", ["month", "labelled"])
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 4
    code, _, _ = cli(*arguments)
    assert code == 2  # the files exist


def test_the_command_counts_hidden_shares_and_means(capsys):
    groups = [None, *map(str, range(50))]
    counts = {"naive": 0.5, "estimator": "PPI++", "labelled": 9, "texts": 90}
    label = "[/red] [draft] :cat:"
    shares = tuple(Share(label, group, 0.5, (0.4, 0.6), **counts) for group in groups)
    means = tuple(MeanLevel(group, 0.5, (0.4, 0.6), **counts) for group in groups)
    show_measurement(Measurement("corpus", None, "group", shares, means=means))
    out = capsys.readouterr().out
    assert f"{50 + 51 - MAX_SHOWN} more" in out
    assert label in out  # rich would take parts of it for styles and an emoji


def test_outcomes_have_no_text_and_replace_no_file_without_permission(finished, corpus, tmp_path, monkeypatch):
    source = tmp_path / "corpus.csv"
    frame = pd.read_csv(corpus / "corpus.csv").assign(copy=lambda t: t["Text"])
    pd.concat([pd.DataFrame({"Text": [None], "month": ["x"], "copy": ["y"]}), frame]).to_csv(source, index=False)
    before = source.read_bytes()
    given = {"labelled": corpus / "sample.csv", "random_sample": True}
    for _ in range(2):
        bs.measure(finished, source, for_regression=tmp_path / "o.csv", overwrite=True, **given)
    assert list(pd.read_csv(tmp_path / "o.csv"))[:4] == ["row", "month", "copy", "labelled"]
    for file in (tmp_path / "o.csv", source, tmp_path / "o.xlsx"):
        with pytest.raises(ConfigError) as caught:
            bs.measure(finished, source, for_regression=file, overwrite=file == source, **given)
        assert caught.value.where == str(file)
    assert source.read_bytes() == before
    corrections = tmp_path / "corrections.csv"
    corrections.write_text("row,text,corrected\n")
    with pytest.raises(ConfigError) as caught:
        bs.measure(finished, source, for_regression=corrections, corrections=corrections, overwrite=True, **given)
    assert caught.value.where == str(corrections)
    corrections.unlink()

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(OutcomeFile, "add", fail)
    with pytest.raises(OutputError) as failed:
        bs.measure(finished, source, for_regression=tmp_path / "o.csv", overwrite=True, **given)
    assert failed.value.where == str(tmp_path / "o.csv")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["corpus.csv", "o.csv"]


def test_the_predictions_are_those_of_predict(finished, corpus):
    measurement = bs.measure(finished, corpus / "corpus.csv", labelled=corpus / "sample.csv", random_sample=True)
    predictions = bs.predict(finished, corpus / "corpus.csv")
    for share in measurement.shares:
        assert share.naive == pytest.approx(predictions.label_counts.get(share.label_text, 0) / 500)


def test_chunks_do_not_change_the_result(finished, corpus, monkeypatch):
    given = {"labelled": corpus / "sample.csv", "random_sample": True, "by": "month"}
    before = bs.measure(finished, corpus / "corpus.csv", **given)
    monkeypatch.setattr("bertsmith.data.stream.CHUNK_ROWS", 64)
    after = bs.measure(finished, corpus / "corpus.csv", **given)
    for one, two in zip(before.shares, after.shares, strict=True):
        assert one.share == pytest.approx(two.share, abs=1e-6)


def test_a_run_without_test_texts_measures_and_compares_no_others(finished, monkeypatch):
    monkeypatch.setattr("bertsmith.folders.run.Run.metrics", {"splits": {"test": {"by": "cross-validation"}}})
    with pytest.raises(DataError, match="trained on all"):
        HeldOut.of(open_run(finished))
    with pytest.raises(DataError) as error:
        bs.drift(finished, ["a text"])
    assert error.value.where == str(finished)


def test_without_labels_the_shares_are_counted_with_a_note(finished, corpus, monkeypatch):
    with pytest.raises(DataError):  # too few test texts
        bs.measure(finished, corpus / "corpus.csv")
    monkeypatch.setattr("bertsmith.workflows.label_shift.FEWEST", 3)
    monkeypatch.setattr("bertsmith.workflows.label_shift.FEWEST_IN_GROUP", 170)  # the months have 166 or 167 texts
    size = 1000
    monkeypatch.setattr("bertsmith.workflows.label_shift.stored_groups", lambda frame: np.arange(len(frame)) // size)
    with pytest.raises(DataError):  # one group of test texts
        bs.measure(finished, corpus / "corpus.csv")
    size = 1
    frames = {split: pd.read_parquet(finished / "predictions" / f"{split}.parquet") for split in ("test", "validation")}
    tested = []

    def accept(targets, features, texts, n_classes):
        same = features.shape[1] == texts.shape[1], len(features) == len(targets)
        tested.append((*same, len(texts), n_classes, len(targets)))
        return 0.5

    monkeypatch.setattr("bertsmith.workflows.label_shift.label_shift_test", accept)
    found = bs.measure(finished, corpus / "corpus.csv", by="month")
    assert {(share.estimator, share.labelled) for share in found.shares} == {("adjusted count", 0)}
    assert sum(share.share for share in found.whole) == pytest.approx(1)
    assert all(share.interval[0] < share.interval[1] for share in found.shares)
    assert len(found.notes) == 3  # the assumption, groups of test texts, and months without a test of their own
    assert found.shares[0].labelled_share is None
    assert tested == [(True, True, 500, 3, len(frames["test"]) + len(frames["validation"]))] * 2  # axes and clusters
    monkeypatch.setattr("bertsmith.folders.run.Run.has_chosen_validation", True)
    bs.measure(finished, corpus / "corpus.csv")
    assert tested[-1] == (True, True, 500, 3, len(frames["test"]))
    size = 2
    assert len(bs.measure(finished, corpus / "corpus.csv", by="month").notes) == 4  # few groups of test texts
    monkeypatch.setattr("bertsmith.workflows.label_shift.label_shift_test", lambda *arguments: 0.01)
    with pytest.raises(DataError) as caught:
        bs.measure(finished, corpus / "corpus.csv")
    assert "labelled" in caught.value.remedy


def test_the_encoding_of_the_corpus_is_not_that_of_the_sample(finished, corpus, tmp_path):
    sample = pd.read_csv(corpus / "sample.csv").head(20)
    sample["Text"] = "café " + sample["Text"]
    sample.to_csv(tmp_path / "s.csv", index=False)
    read = read_sample(open_run(finished), tmp_path / "s.csv", Config(encoding="cp1252"), None, random_sample=True)
    assert all(text.startswith("café ") for text in read.texts)


def test_a_sample_without_a_design_is_refused(finished, corpus, cli):
    code, _, err = cli("measure", finished, corpus / "corpus.csv", "--labelled", corpus / "sample.csv")
    assert code == 2
    assert "--random-sample" in err


def test_a_sample_is_read_with_the_label_column_of_the_training(own_run, corpus):
    run = open_run(own_run)
    run.update(config={**run.info["config"], "label_text_column": "gold"})
    sample = pd.read_csv(corpus / "sample.csv").rename(columns={"Label Text": "gold"})
    labels = sample["gold"].sample(frac=1, random_state=0).tolist()  # another coder, who guesses
    table = sample.assign(label=labels)
    found, expected = (
        bs.measure(run, corpus / "corpus.csv", labelled=some, random_sample=True) for some in (table, sample)
    )
    assert found.shares == expected.shares


def test_texts_of_the_training_are_left_out(finished, corpus, tmp_path):
    sample = pd.read_csv(corpus / "sample.csv")
    trained = pd.read_parquet(finished / "splits.parquet")
    known = finished / "predictions" / "validation.parquet"
    validation = pd.read_parquet(known)[["text", "label_text"]].set_axis(["Text", "Label Text"], axis=1)
    pd.concat([sample, validation]).to_csv(tmp_path / "s.csv", index=False)
    measurement = bs.measure(finished, corpus / "corpus.csv", labelled=tmp_path / "s.csv", random_sample=True)
    assert len(trained)
    assert measurement.shares[0].labelled == 120
    assert sum(measurement.left_out.values()) == len(validation)


def test_shares_are_for_the_texts_that_the_sample_represents(finished, corpus, tmp_path):
    """The corpus repeats validation texts. If some were drawn, the sample without them represents the other texts."""
    frame = pd.read_parquet(finished / "predictions" / "validation.parquet")
    known = frame[["text", "label_text"]].set_axis(["Text", "Label Text"], axis=1)
    table = pd.concat([pd.read_csv(corpus / "truth.csv")[["Text", "Label Text"]], *[known] * 5])
    table["Text"].to_csv(tmp_path / "corpus.csv", index=False)
    drawn = table.sample(150, random_state=0)
    seen = drawn["Text"].isin(known["Text"])
    assert seen.any()

    def measured(sample, **given):
        sample.to_csv(tmp_path / "s.csv", index=False)
        found = bs.measure(finished, tmp_path / "corpus.csv", labelled=tmp_path / "s.csv", **given)
        assert found.whole[0].texts + found.trained == len(table)
        assert found.run == run_identity(open_run(finished).info)
        return found.whole[0].texts, found.whole[0].labelled, found.clusters

    assert measured(drawn, random_sample=True) == (500, (~seen).sum(), None)
    # None of them was drawn: they may have been chosen after the draw.
    authors = drawn[~seen].assign(author=np.arange((~seen).sum()) % 30)
    assert measured(authors, random_sample=True, group_column="author") == (len(table), (~seen).sum(), 30)
    # The table says that they were not drawn, as that of a labelling project.
    listed = pd.concat([drawn[~seen].assign(random=True), known.assign(random=False)])
    assert measured(listed) == (len(table), (~seen).sum(), None)
    # Copies of a text that the table lists as not drawn were drawn, and no other validation text.
    copied = drawn["Text"][seen].iloc[0]
    some = drawn[~seen | (drawn["Text"] == copied)]
    listed = pd.concat([some.assign(random=True), known.assign(random=False)])
    assert measured(listed) == (len(table), len(some), None)


def test_drawn_texts_without_a_label_are_named_or_refused(finished, corpus, tmp_path):
    sample = pd.read_csv(corpus / "sample.csv")

    def measured(rows, **columns):
        labels = sample["Label Text"].mask(sample.index.isin(rows))
        sample.assign(**{"Label Text": labels}, **columns).to_csv(tmp_path / "s.csv", index=False)
        return bs.measure(finished, corpus / "corpus.csv", labelled=tmp_path / "s.csv", random_sample=True)

    few = measured([3, 9])
    assert few.left_out == {"missing label": 2}
    assert any("4, 10" in note for note in few.notes)  # row 1 is the first below the header
    rest = measured(range(80, 120))
    assert rest.shares[0].labelled == 80
    assert any("40 rows" in note for note in rest.notes)
    with pytest.raises(DataError) as error:
        measured(range(10, 50))
    assert error.value.where == "s.csv"
    assert "11, 12" in error.value.what
    not_drawn = measured(range(10, 50), random=~sample.index.isin(range(10, 50)))
    assert not_drawn.shares[0].labelled == 80
    sample = sample.sort_values("Label Text", ignore_index=True)
    with pytest.raises(DataError):  # sorted by label, and not labelled to the end
        measured(range(80, 120))
    with pytest.raises(DataError):  # 8 of 80 drawn rows, of 120 rows
        measured(range(8), random=sample.index < 80)


def test_texts_without_a_label_count_by_their_weight(finished, corpus, tmp_path):
    def read(chance):
        sample = pd.read_csv(corpus / "sample.csv").assign(inclusion_probability=0.5)
        sample.loc[[10, 20, 30, 40, 50], ["Label Text", "inclusion_probability"]] = None, chance
        sample.to_csv(tmp_path / "s.csv", index=False)
        return read_sample(open_run(finished), tmp_path / "s.csv", Config(), None)

    assert len(read(0.5).rows) == 115  # 4.2 %
    with pytest.raises(DataError) as error:
        read(0.01)  # they represent 500 of 730 texts
    assert "11, 21" in error.value.what
    assert "68.5" in error.value.what


@pytest.mark.parametrize("label", [None, "another"], ids=["copies", "contradictions"])
def test_copies_of_labelled_texts_are_refused(label, finished, corpus, tmp_path):
    sample = pd.read_csv(corpus / "sample.csv")
    copies = sample.head(3)
    if label:
        others = sample["Label Text"].unique()
        copies = copies.assign(**{"Label Text": [others[others != own][0] for own in copies["Label Text"]]})
    pd.concat([sample, copies]).to_csv(tmp_path / "s.csv", index=False)
    with pytest.raises(DataError) as error:
        bs.measure(finished, corpus / "corpus.csv", labelled=tmp_path / "s.csv", random_sample=True)
    assert error.value.where == "s.csv"
    assert ("121, 122, 123" in error.value.what) == (label is None)
    drawn = pd.concat([sample.assign(random=True), copies.assign(random=False)])
    assert len(read_sample(open_run(finished), drawn, Config(), None).rows) == 120


def test_a_sample_of_a_single_group_is_refused(finished, corpus, tmp_path):
    pd.read_csv(corpus / "sample.csv").assign(author="a").to_csv(tmp_path / "s.csv", index=False)
    with pytest.raises(DataError) as error:
        bs.measure(
            finished, corpus / "corpus.csv", labelled=tmp_path / "s.csv", random_sample=True, group_column="author"
        )
    assert error.value.where == "s.csv"


def test_a_trend_of_labels_is_measured_in_standard_errors():
    rng = np.random.default_rng(0)
    labels = np.eye(3)[rng.choice(3, 150, p=[0.02, 0.3, 0.68])]
    trends = [order_z_score(rng.permutation(labels)[:, [1]]) for _ in range(1000)]
    assert np.mean(np.array(trends) > 1.96) == pytest.approx(0.05, abs=0.025)
    assert max(order_z_score(rng.permutation(labels)) for _ in range(1000)) < 4
    assert order_z_score(labels[labels.argmax(axis=1).argsort()]) > 8
    assert order_z_score(np.ones((20, 2))) == 0


def test_a_sample_with_other_predictions_than_the_corpus_is_noticed():
    outcomes, predictions = _population()
    whole = Totals.of(predictions, predictions > 0.5)
    random = [mean_z_score(_sample(outcomes, predictions, 150, seed), whole) for seed in range(50)]
    assert max(random) < 4
    chosen = np.flatnonzero(predictions[:, 0] > 0.5)[:60]
    assert mean_z_score(Sample(outcomes[chosen], predictions[chosen], np.full(60, 0.02)), whole) > 4


def test_texts_that_are_not_in_the_corpus_give_another_interval(finished, corpus, tmp_path):
    rest = pd.read_csv(corpus / "corpus.csv")
    rest = rest[~rest["Text"].isin(pd.read_csv(corpus / "sample.csv")["Text"])]
    rest.to_csv(tmp_path / "rest.csv", index=False)
    given = {"labelled": corpus / "sample.csv", "random_sample": True}
    apart = bs.measure(finished, tmp_path / "rest.csv", **given)
    assert not apart.in_corpus
    together = bs.measure(finished, corpus / "corpus.csv", **given)
    width = [np.subtract(*m.shares[0].interval[::-1]) for m in (apart, together)]
    assert width[0] > width[1]
    assert max(together.more_labels.values()) <= 380 < min(apart.more_labels.values())
    with pytest.raises(DataError):
        bs.measure(finished, tmp_path / "rest.csv", **given, for_regression=tmp_path / "r.csv")


@pytest.mark.parametrize("flags", [["--by", "mnth"], ["--random-sample"], ["--for-regression", "r.csv"]])
def test_what_does_not_fit_is_refused(finished, corpus, cli, flags):
    labelled = ["--labelled", corpus / "sample.csv", "--random-sample"] if "--by" in flags else []
    code, _, err = cli("measure", finished, corpus / "corpus.csv", *labelled, *flags)
    assert code == 2
    assert "what to do" in err


def test_a_lone_carriage_return_in_a_group_stays_within_its_cell():
    share = Share("a", "x\ry", 0.5, (0.4, 0.6), 0.5, "PPI++", 20, 100)
    content = shares_csv(Measurement("c", "s", "by", (share, share)))
    assert [row["group"] for row in csv.DictReader(io.StringIO(content, newline=""))] == ["x\ry"] * 2


def test_no_cell_of_the_shares_is_a_formula():
    share = Share("=1+1", "@group", 0.5, (0.4, 0.6), 0.5, "PPI++", 20, 100)
    (row,) = csv.DictReader(shares_csv(Measurement("c", "s", "by", (share,))).splitlines())
    assert (row["label_text"], row["group"]) == ("'=1+1", "'@group")


# -- drift -------------------------------------------------------------------------------------------------------------


def test_without_a_change_few_comparisons_differ():
    rng, both = np.random.default_rng(0), (150, 2000)
    found = []
    for _ in range(200):
        reference, corpus = rng.normal(size=(150, 8)), rng.normal(size=(2000, 8))
        before, now = rng.multinomial(150, [0.5, 0.3, 0.2]), rng.multinomial(2000, [0.5, 0.3, 0.2])
        differences = [
            *compare_scalars("abc", reference[:, :3], corpus[:, :3], 0.99),
            compare_embeddings(reference[:, 3:], corpus[:, 3:], 0.99),
            compare_counts("labels", before, now, 0.99),
            compare_counts("several labels", *(rng.binomial(n, [0.5, 0.1]) for n in both), 0.99, texts=both),
        ]
        found.append(any(d.differs for d in differences))
    assert np.mean(found) < 0.1


def test_a_property_that_no_test_text_has_is_compared_too():
    reference = np.zeros((200, 1))
    few, many = (np.repeat([0.0, 1.0], [2000 - n, n])[:, None] for n in (20, 200))
    assert not compare_scalars("a", reference, few, 0.99)[0].differs
    assert compare_scalars("a", reference, many, 0.99)[0].differs


def test_too_few_texts_for_positions_are_not_compared():
    rng = np.random.default_rng(0)
    assert compare_embeddings(rng.normal(size=(3, 8)), rng.normal(size=(4, 8)), 0.99) is None
    assert label_shift_test(np.repeat([0, 1], 5), rng.normal(size=(10, 30)), rng.normal(size=(9, 30)), 2) == 1


def test_a_small_group_is_not_rejected_too_often():
    rng = np.random.default_rng(2)
    p_values = []
    for _ in range(60):
        targets, _, features = _texts(rng, [0.5, 0.3, 0.2], 500)
        _, _, group = _texts(rng, [0.2, 0.2, 0.6], 40)
        wide = [np.column_stack([f, rng.normal(size=(len(f), 15))]) for f in (features, group)]
        p_values.append(label_shift_test(targets, *wide, 3))
    assert np.mean(np.array(p_values) < 0.05) < 0.15


def test_axes_and_clusters_together_find_shares_of_topics_that_changed():
    rng = np.random.default_rng(6)
    topics = rng.normal(size=(6, 40))

    def texts(n, weights):
        targets = rng.choice(2, n, p=(0.5, 0.5))
        return targets, topics[rng.choice(6, n, p=weights)] + rng.normal(size=(n, 40)) + targets[:, None] * topics[0]

    rejected = {}
    for name, weights in (("same", np.ones(6)), ("other", np.array([2, 2, 2, 1, 1, 1]))):
        rejected[name] = []
        for _ in range(25):
            (_, fitted), (targets, known) = texts(300, np.ones(6) / 6), texts(300, np.ones(6) / 6)
            _, corpus = texts(400, weights / weights.sum())
            p_values = []
            for where in (fit_axes(fitted, 300), fit_clusters(fitted, 300)):
                features = [np.column_stack([e @ topics[0], where(e)]) for e in (known, corpus)]
                p_values.append(label_shift_test(targets, *features, 2))
            rejected[name].append(combined_p_value(p_values) < 0.05)
    assert np.mean(rejected["same"]) < 0.2
    assert np.mean(rejected["other"]) > 0.8


@pytest.mark.parametrize(("task", "features"), [("ordinal", [0.1, 0, 1]), ("single-label", [0.46, 1, 0])])
def test_features_have_the_label_that_the_task_predicts(task, features):
    sample = CorpusSample()
    sample.add(["a text"], np.array([[0.46, 0.1, 0.44]]), [""])
    found = features_of(get_task(task), sample, np.zeros((1, 0)))
    assert found[0, [0, 2, 3]].tolist() == features


def test_p_values_are_combined():
    assert combined_p_value([0.3, 0.4]) == pytest.approx(0.6)
    assert combined_p_value([0.01, 1]) == pytest.approx(0.02)  # a test that needs more texts returns 1
    assert combined_p_value([1, 1]) == 1


def test_few_texts_have_no_clusters():
    embeddings = np.random.default_rng(0).normal(size=(30, 5))
    assert fit_clusters(embeddings[:9], 200)(embeddings).shape == (30, 0)
    assert fit_clusters(embeddings, 200)(embeddings).shape == (30, 2)


def test_a_sample_of_a_corpus_is_random_and_does_not_depend_on_chunks(monkeypatch):
    monkeypatch.setattr("bertsmith.workflows.corpus_sample.SIZE", 300)
    texts, scores = [f"text {i}" for i in range(3000)], np.arange(6000).reshape(3000, 2) / 6000
    samples = []
    for size in (3000, 700):
        sample = CorpusSample()
        for start in range(0, 3000, size):
            rows = slice(start, start + size)
            sample.add(texts[rows], scores[rows], [str(i % 7) for i in range(3000)][rows])
        samples.append(sample)
    one, other = samples
    assert one.texts == other.texts
    assert one.groups == other.groups
    assert (one.scores == other.scores).all()
    positions = [int(text.split()[1]) for text in one.texts]
    assert one.scores[:, 0].tolist() == [scores[i, 0] for i in positions]
    assert len(set(positions)) == 300
    assert abs(np.mean(positions) - 1500) < 4 * 3000 / 12**0.5 / 300**0.5


def test_drift_finds_other_texts(finished, corpus, cli, tmp_path, monkeypatch):
    monkeypatch.setattr("bertsmith.measuring.text_features.TEXTS", 2)
    monkeypatch.setattr("bertsmith.measuring.text_features.FITTED_TEXTS", 2)
    table = tiny_table(200, seed=4)
    table["Text"] = "unheard of words in long texts that no run has seen before " + table["Text"]
    table.to_csv(tmp_path / "new.csv", index=False)
    code, out, err = cli("drift", finished, tmp_path / "new.csv", "--json", "--html", tmp_path / "d.html")
    assert code == 0, err
    found = {d["name"]: d["differs"] for d in json.loads(out)["differences"]}
    assert found["length (logarithm of characters)"]
    assert {"confidence", "share of texts with unknown tokens", "predicted labels", "embeddings"} < set(found)
    assert "unheard" not in (tmp_path / "d.html").read_text(encoding="utf-8")
    code, out, _ = cli("drift", finished, corpus / "corpus.csv")
    assert code == 0
    assert all(name in out for name in found)
