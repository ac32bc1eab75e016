"""Contrastive training compares all pairs of the texts of a step."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertsmith.config import TrainConfig
from bertsmith.evaluation.baseline import fit_regression
from bertsmith.events import Started
from bertsmith.inference.classifier import Classifier
from bertsmith.model.tokenizer import encode
from bertsmith.model.tokens import Tokens
from bertsmith.testing import tiny_table
from bertsmith.training.data import TokenDataset
from bertsmith.training.losses import contrastive_loss, part_losses
from bertsmith.training.recipe import choose_hyperparameters, schedule_arguments
from bertsmith.training.trainer import Training
from bertsmith.workflows import fine_tune
from bertsmith.workflows.prepare import embed
from tests.conftest import train as _train
from tests.conftest import weights_of

labels_of_texts = st.lists(st.integers(0, 3), min_size=1, max_size=10)


def _features(n, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, 5))).float()


def _by_pair(features, labels):
    """Return the loss, pair by pair."""
    errors = {0: [], 1: []}
    for i, j in itertools.permutations(range(len(labels)), 2):
        similarity = float(torch.cosine_similarity(features[i], features[j], dim=0))
        same = int(labels[i] == labels[j])
        errors[same].append((similarity - same) ** 2)
    return sum(np.mean(some) for some in errors.values() if some) / 2


@settings(max_examples=30, deadline=None)
@given(labels_of_texts)
def test_pairs_of_one_class_and_of_two_weigh_alike(labels):
    features, labels = _features(len(labels)), torch.tensor(labels)
    assert float(contrastive_loss(features, labels)) == pytest.approx(_by_pair(features, labels), abs=1e-5)
    soft = torch.nn.functional.one_hot(labels, 4).float()
    assert float(contrastive_loss(features, soft)) == pytest.approx(_by_pair(features, labels), abs=1e-5)


def test_the_loss_is_zero_for_orthogonal_classes():
    labels = torch.tensor([0, 0, 1, 1, 2])
    assert float(contrastive_loss(torch.eye(5)[labels] * 3, labels)) == pytest.approx(0, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(labels_of_texts, st.integers(1, 4), st.booleans())
def test_gradients_do_not_depend_on_micro_batches(labels, size, parallel):
    x, labels = _features(len(labels)), torch.tensor(labels)
    encoder = torch.nn.Linear(5, 3)
    whole = contrastive_loss(encoder(x), labels)
    expected = torch.autograd.grad(whole, encoder.weight)[0]
    parts, targets = x.split(size), labels.split(size)
    losses_of = part_losses(lambda index: encoder(parts[index]), targets, parallel=parallel)
    losses = [loss_of(encoder(part)) for loss_of, part in zip(losses_of, parts, strict=True)]
    for loss in losses:
        loss.backward()
    assert sum(losses).item() == pytest.approx(whole.item(), abs=1e-5)
    assert encoder.weight.grad.numpy() == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory, pooled):
    """A run with so few texts that it has contrastive training only."""
    return _train_few(pooled, tmp_path_factory.mktemp("runs") / "run")


def _train_few(model, folder, **more):
    settings = {"cv": 2, "test_size": 0, "epochs": None, "learning_rate": 1e-3, "dropout": 0.0, **more}
    return _train(model, folder, table=tiny_table(24), **settings)


def test_with_very_few_texts_the_head_is_a_regression_on_the_trained_features(run):
    assert run.info["recipe"]["contrastive"] == "only"
    classifier = Classifier.load(run.layout.model, device="cpu")
    trained, loaded = run.validation_predictions, classifier.loaded
    features = embed(loaded, encode(trained["text"].tolist(), loaded, truncate=True))
    targets = np.searchsorted(run.labels.numbers, trained["label"])
    assert (
        contrastive_loss(torch.from_numpy(features), torch.from_numpy(targets)).item() < 0.4
    )  # 0.5 if all texts are similar
    expected = fit_regression(features, targets, n_classes=len(run.labels)).weight
    weight = loaded.model.classifier.weight.detach().numpy()  # divided by the temperature
    assert np.corrcoef(weight.ravel(), expected.ravel())[0, 1] == pytest.approx(1, abs=0.01)


def test_results_do_not_depend_on_the_number_of_threads(run, pooled, tmp_path):
    two = _train_few(pooled, tmp_path / "two", threads=2)
    for name, weight in weights_of(run).items():
        assert weights_of(two)[name].numpy() == pytest.approx(weight.numpy(), abs=2e-3), name


@pytest.mark.parametrize(
    ("counts", "given", "validates", "expected"),
    [
        ([8, 8], {}, False, "only"),
        ([8, 8], {}, True, "first"),
        ([24, 24], {}, False, "only"),
        ([25, 24], {}, False, "first"),
        ([8, 8], {"epochs": 2}, False, "first"),
        ([8, 8], {"set": {"max_steps": 9}}, False, "first"),
        ([8, 8], {"set": {"warmup_steps": 100}}, False, "first"),
        ([8, 8], {"set": {"warmup_steps": 0.2}}, False, "only"),
        ([8] * 17, {}, False, "none"),
        ([150, 150], {}, True, "none"),
    ],
)
def test_few_texts_of_few_classes_have_contrastive_training(counts, given, validates, expected):
    def recipe(**more):
        common = {"parameters": 2 * 10**7, "device": torch.device("cpu"), "validates": validates}
        return choose_hyperparameters(TrainConfig(**given), counts=np.array(counts), **common, **more)

    assert recipe(fitted=True, may_be_contrastive=True).contrastive == expected
    assert recipe(fitted=True).contrastive == recipe(may_be_contrastive=True).contrastive == "none"


def test_the_schedule_of_the_user_applies_to_labels_alone(pooled, tmp_path):
    events = []
    schedule = {"max_steps": 3, "gradient_accumulation_steps": 2, "lr_scheduler_type": "constant"}
    run = _train_few(pooled, tmp_path / "run", set=schedule, on_event=events.append, cv=0, test_size=0.2)
    assert run.info["recipe"]["contrastive"] == "first"
    started = [(e.contrastive, e.steps) for e in events if isinstance(e, Started)]
    assert started == [(True, 30), (False, 3)]


def test_a_share_of_warmup_steps_applies_to_every_stage():
    assert schedule_arguments({"warmup_steps": 100, "weight_decay": 0.1}) == {"warmup_steps"}
    assert schedule_arguments({"warmup_steps": 0.3}) == set()


@pytest.mark.parametrize("stage", ["first", "only", "none"])
def test_only_contrastive_training_reads_beginnings(stage, monkeypatch):
    read = []
    monkeypatch.setattr(fine_tune, "fit", lambda training, resume=None: read.append(training.train.lengths.tolist()))
    monkeypatch.setattr(fine_tune, "fit_head", lambda loaded, task, tokens, targets: read.append(tokens))
    monkeypatch.setattr(fine_tune, "training_arguments", lambda *_, **__: None)
    config = TrainConfig()
    recipe = choose_hyperparameters(config, counts=np.array([2, 1]), parameters=2 * 10**7, device=torch.device("cpu"))
    recipe = replace(recipe, contrastive=stage, consistency=0.0)
    rows = [[5] * 200, [5] * 128, [5] * 12]
    texts = TokenDataset(Tokens.from_lists({"input_ids": rows}), np.array([0, 0, 1]), np.eye(2)[[0, 0, 1]])
    loaded = SimpleNamespace(device=torch.device("cpu"))
    fine_tune.fine_tune(Training(loaded, texts, texts, None, recipe, None), config)
    short, full = [128, 128, 12], [200, 128, 12]
    expected = {"none": [full], "only": [short, texts.tokens], "first": [short, texts.tokens, full]}
    assert read == expected[stage]
    assert texts.truncate(128).soft_labels is texts.soft_labels
    epochs = recipe.contrastive_stage(3).epochs / recipe.epochs
    share = sum(short) / sum(full)
    passes = {"none": 1, "only": share, "first": 1 + share * epochs}
    assert fine_tune.passes_per_epoch(recipe, texts) == pytest.approx(passes[stage])


def test_the_loss_is_in_full_precision():
    features, labels = _features(6), torch.tensor([0, 0, 1, 1, 2, 2])
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive_loss(features, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(contrastive_loss(features, labels).item(), abs=1e-7)
