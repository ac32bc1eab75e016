"""Losses against closed forms, and one contract that every one of them keeps."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bertsmith.config import TrainConfig
from bertsmith.report.methods import _IMBALANCE, _loss
from bertsmith.tasks.registry import get_task
from bertsmith.training.losses import (
    IMBALANCE_LOSSES,
    CrossEntropy,
    effective_number_weights,
    inverse_weights,
    log_prior,
)
from bertsmith.tuning.space import IMBALANCES
from tests.conftest import train

COUNTS = np.array([90, 9, 1])


def test_every_loss_is_a_setting_of_a_task():
    assert set(get_args(TrainConfig.model_fields["imbalance"].annotation)) == {"auto", *IMBALANCE_LOSSES}
    assert set(get_task("single-label").imbalances) == set(IMBALANCE_LOSSES)
    assert set(IMBALANCES) < set(IMBALANCE_LOSSES)  # a search tries only some


def test_the_methods_have_a_sentence_for_every_treatment_of_imbalance():
    assert set(_IMBALANCE) == set(IMBALANCE_LOSSES)
    with pytest.raises(KeyError):
        _loss({"recipe": {"imbalance": "new"}}, lambda *key: "")


def _batch(seed=0, n=12):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=generator), torch.randint(0, 3, (n,), generator=generator)


@pytest.mark.parametrize("name", IMBALANCE_LOSSES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_per_text_sum_to_the_loss_of_the_step(name, smoothing):
    loss = IMBALANCE_LOSSES[name](COUNTS, smoothing)
    logits, labels = _batch()
    each = loss(logits, labels)
    assert each.shape == (12,)
    assert (each >= 0).all()
    whole = loss.of_step(logits, labels, 12)
    parts = sum(loss.of_step(logits[i : i + 5], labels[i : i + 5], 12) for i in (0, 5, 10))
    assert parts == pytest.approx(whole.item(), rel=1e-6)
    assert whole == pytest.approx(each.mean().item(), rel=1e-6)


@pytest.mark.parametrize("name", IMBALANCE_LOSSES)
def test_soft_labels_of_one_class_give_the_loss_of_this_class(name):
    loss = IMBALANCE_LOSSES[name](COUNTS, 0.1)
    logits, labels = _batch()
    certain = torch.nn.functional.one_hot(labels, 3).float()
    assert loss(logits, certain).allclose(loss(logits, labels), rtol=1e-5)


def test_the_loss_of_soft_labels_is_the_mean_over_their_classes():
    logits, labels = _batch()
    certain = torch.nn.functional.one_hot(labels, 3).float()
    other = certain.roll(1, dims=1)
    loss = CrossEntropy(weights=inverse_weights(COUNTS))
    expected = (certain + 3 * other) / 4 * -torch.log_softmax(logits, dim=1)
    mean_weight = (certain + 3 * other) / 4 @ torch.from_numpy(inverse_weights(COUNTS)).float()
    assert loss(logits, (certain + 3 * other) / 4).allclose(expected.sum(dim=1) * mean_weight, rtol=1e-5)


@pytest.mark.parametrize("name", IMBALANCE_LOSSES)
def test_rdrop_adds_the_divergence_to_the_loss(name):
    (first, labels), (second, _) = _batch(seed=1), _batch(seed=2)
    loss = IMBALANCE_LOSSES[name](COUNTS, 0.1)

    def step(i, j):
        twice = torch.cat([first[i:j], second[i:j]])
        return loss.of_step(twice, labels[i:j].repeat(2), 12, 1.5).item()

    p, q = (torch.distributions.Categorical(logits=logits) for logits in (first, second))
    apart = (torch.distributions.kl_divergence(p, q) + torch.distributions.kl_divergence(q, p)) / 2
    expected = ((loss(first, labels) + loss(second, labels)) / 2 + 1.5 * apart).mean().item()
    assert step(0, 12) == pytest.approx(expected, rel=1e-5)
    assert step(0, 5) + step(5, 12) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", IMBALANCE_LOSSES)
def test_every_loss_learns(name, tiny, tmp_path):
    run = train(tiny, tmp_path / "run", imbalance=name)
    assert run.info["recipe"]["imbalance"] == name
    assert run.history[-1]["train_loss"] < run.history[0]["train_loss"]


@given(st.lists(st.integers(0, 500), min_size=2, max_size=8).filter(any))
def test_weights_are_1_on_average_over_the_texts(counts):
    counts = np.array(counts)
    for weights in (inverse_weights(counts), effective_number_weights(counts)):
        assert weights @ counts == pytest.approx(counts.sum())
        assert (weights[counts == 0] == 0).all()
    present = counts > 0
    assert inverse_weights(counts)[present] * counts[present] == pytest.approx(counts.sum() / present.sum())
    order = np.argsort(counts[present])
    assert (np.diff(effective_number_weights(counts)[present][order]) <= 1e-9).all()


def test_losses_match_manual_values():
    logits, labels = torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([2])
    plain = np.log(3)
    found = {name: build(COUNTS, 0.0)(logits, labels).item() for name, build in IMBALANCE_LOSSES.items()}
    assert found["none"] == pytest.approx(plain)
    assert found["weights"] == pytest.approx(plain * 100 / 3)
    assert found["focal"] == pytest.approx((2 / 3) ** 2 * plain, rel=1e-5)
    # With equal logits, the adjusted model predicts the class shares of the training texts.
    assert found["logit-adjustment"] == pytest.approx(-np.log(0.01), rel=1e-5)
    assert np.exp(log_prior(COUNTS)) == pytest.approx(COUNTS / 100)
    assert np.isfinite(log_prior(np.array([5, 0]))).all()
    beta = 1 - 3 / 100
    number = (1 - beta**COUNTS) / (1 - beta)
    weights = effective_number_weights(COUNTS)
    assert weights / weights[0] == pytest.approx(number[0] / number)


def test_logit_adjustment_balances_an_uninformative_model():
    """A model that has only one bias per class does not learn the class shares with it."""
    labels = torch.from_numpy(np.repeat([0, 1, 2], COUNTS))
    for name, expected in (("none", COUNTS / 100), ("logit-adjustment", np.full(3, 1 / 3))):
        bias = torch.zeros(3, requires_grad=True)
        loss = IMBALANCE_LOSSES[name](COUNTS, 0.0)
        optimizer = torch.optim.LBFGS([bias], max_iter=200, line_search_fn="strong_wolfe")

        def closure(bias=bias, loss=loss, optimizer=optimizer):
            optimizer.zero_grad()
            value = loss(bias.expand(100, 3), labels).mean()
            value.backward()
            return value

        optimizer.step(closure)
        assert torch.softmax(bias, 0).detach().numpy() == pytest.approx(expected, abs=1e-3)


def test_balanced_sampling_draws_every_class_alike_and_resumes(tiny, tmp_path):
    from bertsmith.errors import Interrupted
    from tests.conftest import same_weights, weights_of

    whole = train(tiny, tmp_path / "whole", imbalance="balanced-sampling")
    stops = iter([False] * 8 + [True] * 99)
    with pytest.raises(Interrupted):
        train(tiny, tmp_path / "run", imbalance="balanced-sampling", stop=lambda: next(stops))
    again = train(tiny, tmp_path / "run", imbalance="balanced-sampling", resume=True)
    assert same_weights(weights_of(whole), weights_of(again))
