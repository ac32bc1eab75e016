"""Training with labels of which some are wrong."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bertsmith.tasks.registry import get_task
from bertsmith.testing import tiny_table
from bertsmith.training.data import TokenDataset
from bertsmith.workflows import training_labels
from bertsmith.workflows.training_labels import compare_without_suspects, soften_suspects
from tests.conftest import train

TASK = get_task("single-label")


def texts(seed, wrong, n=400, classes=3):
    """Return embeddings in well-separated classes, their true labels, and labels of which a share is wrong."""
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % classes
    x = np.tanh(rng.normal(size=(classes, 16))[truth] + 0.7 * rng.normal(size=(n, 16)))
    others = (truth + rng.integers(1, classes, n)) % classes
    return x, truth, np.where(rng.random(n) < wrong, others, truth)


@pytest.mark.parametrize("seed", range(3))
def test_wrong_labels_are_softened(seed):
    x, truth, given = texts(seed, wrong=0.25)
    compared = compare_without_suspects(x, given, 3, TASK, 0)
    assert compared.used
    assert compared.accuracy[1] - compared.accuracy[0] > compared.gain_error
    soft, plausible = soften_suspects(x, given, 3, 0)
    assert compared.suspects == (~plausible).sum()
    assert (truth == given)[plausible].mean() > 0.95
    assert soft.sum(axis=1) == pytest.approx(1)
    assert (soft[plausible] == np.eye(3)[given[plausible]]).all()
    wrong = ~plausible & (truth != given)
    assert soft[wrong, truth[wrong]].mean() > 0.5


@pytest.mark.parametrize("seed", range(3))
def test_right_labels_stay(seed):
    x, _, given = texts(seed, wrong=0)
    assert not compare_without_suspects(x, given, 3, TASK, 0).used


def test_small_classes_are_not_compared():
    assert compare_without_suspects(np.eye(20), np.array([0] * 15 + [1] * 5), 2, TASK, 0) is None


@pytest.mark.parametrize("used", [True, False])
def test_a_run_records_whether_labels_are_softened(used, tmp_path, tiny, monkeypatch):
    table, seen, batch_of = tiny_table(120), [], TokenDataset.__getitems__
    table.loc[::7, ["Label", "Label Text"]] = (2, "fruits")

    def noted(self, positions):
        seen.append(batch_of(self, positions))
        return seen[-1]

    compare = training_labels.compare_without_suspects
    monkeypatch.setattr(training_labels, "MIN_TEXTS", 50)
    monkeypatch.setattr(training_labels, "compare_without_suspects", lambda *a: replace(compare(*a), used=used))
    monkeypatch.setattr(TokenDataset, "__getitems__", noted)
    run = train(tiny, tmp_path / "run", table=table, epochs=1)
    assert run.info["label_noise"]["used"] == used
    labels = [batch["labels"] for batch in seen if batch["labels"].is_floating_point()]
    assert bool(labels) == used
    assert all(one.sum(dim=1).allclose(torch.ones(len(one))) for one in labels)
    assert ("soft labels of these texts" in run.layout.report.read_text(encoding="utf-8")) == used
