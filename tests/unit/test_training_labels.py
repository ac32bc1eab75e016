"""Training with labels of which some are wrong."""

import json
import re
from dataclasses import replace
from math import ceil

import numpy as np
import pytest

import bertsmith as bs
from bertsmith.config import Config
from bertsmith.data.clean import clean
from bertsmith.data.split import split_cleaned
from bertsmith.events import Started
from bertsmith.tasks.registry import get_task
from bertsmith.testing import tiny_table
from bertsmith.workflows import training_labels
from bertsmith.workflows.prepare import Splits
from bertsmith.workflows.training_labels import choose_training_labels, compare_without_suspects, find_suspects

TASK = get_task("single-label")


def texts(seed, wrong, n=400, classes=3, size=128, distance=0.5):
    """Return embeddings, their true labels, and labels of which a share is wrong."""
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % classes
    x = np.tanh(distance * rng.normal(size=(classes, size))[truth] + rng.normal(size=(n, size)))
    others = (truth + rng.integers(1, classes, n)) % classes
    return x, truth, np.where(rng.random(n) < wrong, others, truth)


@pytest.mark.parametrize("seed", range(3))
def test_texts_with_wrong_labels_are_left_out(seed):
    x, truth, given = texts(seed, wrong=0.25)
    compared = compare_without_suspects(x, given, np.arange(len(x)), 3, TASK, 0)
    assert compared.used
    assert compared.accuracy[1] - compared.accuracy[0] > compared.gain_error
    suspects = find_suspects(x, given, np.arange(len(x)), 3, 0)["position"]
    assert compared.suspects == len(suspects)
    assert (truth == given)[suspects].mean() < 0.2
    assert (truth == given)[np.delete(np.arange(len(x)), suspects)].mean() > 0.95


@pytest.mark.parametrize("distance", [0.1, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_right_labels_stay_even_if_they_are_hard(seed, distance):
    x, _, given = texts(seed, wrong=0, distance=distance)
    compared = compare_without_suspects(x, given, np.arange(len(x)), 3, TASK, 0)
    assert not compared.used
    assert (compared.suspects > 0) == (distance == 0.1)


def test_small_classes_are_not_compared():
    few = np.array([0] * 15 + [1] * 5)
    assert compare_without_suspects(np.eye(20), few, np.arange(20), 2, TASK, 0) is None
    copies = np.tile(np.arange(20), 3)
    assert compare_without_suspects(np.tile(np.eye(20), (3, 1)), np.tile(few, 3), copies, 2, TASK, 0) is None


@pytest.mark.parametrize("effort", ["normal", "quick"])
@pytest.mark.parametrize("used", [True, False])
def test_a_run_records_whether_texts_are_left_out(used, effort, tmp_path, pooled, monkeypatch):
    table, sizes, fit_head = tiny_table(120), [], type(TASK).fit_head
    table.loc[::7, ["Label", "Label Text"]] = (2, "fruits")
    compare, fixed = training_labels.compare_without_suspects, {"used": used, "rigid_gain": 0.4567}
    monkeypatch.setattr(training_labels, "MIN_TEXTS", 50)
    monkeypatch.setattr(training_labels, "compare_without_suspects", lambda *a: replace(compare(*a), **fixed))
    monkeypatch.setattr(type(TASK), "fit_head", lambda *a: sizes.append(len(a[1])) or fit_head(*a))
    settings = {"effort": effort} if effort == "quick" else {"epochs": 1}
    seen = []
    settings |= {"model": str(pooled), "device": "cpu", "explanations": "off", "on_event": seen.append}
    run = bs.train(table, output=tmp_path / "run", **settings)
    noise, n = run.info["label_noise"], run.info["data"]["splits"]["train"]
    assert noise["used"] == used
    assert noise["suspects"] > 0
    kept = n - noise["suspects"] if used else n
    assert sizes[6] == kept  # after six fits of the comparison
    steps = [event.steps for event in seen if isinstance(event, Started)]
    assert steps[-1:] == ([] if effort == "quick" else [ceil(kept / run.info["recipe"]["batch_size"])])
    page = run.layout.report.read_text(encoding="utf-8")
    assert bool(re.search(r">[^<]*\b45\.7\b", page)) == used


def test_label_noise_off_cross_validation_and_few_or_many_texts_keep_all_texts(tmp_path, pooled, monkeypatch):
    monkeypatch.setattr(training_labels, "MIN_TEXTS", 50)
    monkeypatch.setattr(training_labels, "compare_without_suspects", None)  # not called
    for name, settings in {"off": {"label_noise": "off"}, "folds": {"cv": 2}, "few": {}, "many": {}}.items():
        monkeypatch.setattr(training_labels, "MIN_TEXTS_PER_CLASS", 40 if name == "few" else 20)
        if name == "many":
            monkeypatch.setattr(training_labels, "MAX_EMBEDDED_TEXTS", 60)
        settings |= {"model": str(pooled), "device": "cpu", "effort": "quick"}
        assert "label_noise" not in bs.train(tiny_table(120), output=tmp_path / name, **settings).info


@pytest.mark.parametrize(
    ("saved", "file"),
    [
        ({"label_noise": None}, "journal.log"),
        ({"label_noise": {"used": False}}, "journal.log"),
        ({}, "journal.log"),  # of an older version
        ({"trials": []}, "best.toml"),  # likewise, with a database
        ({}, ".workers"),  # likewise, killed
    ],
)
def test_a_resumed_study_keeps_all_texts_without_embeddings(saved, file, tmp_path, monkeypatch):
    monkeypatch.setattr(training_labels, "MIN_TEXTS", 50)
    config, study, cleaned = Config(), bs.Study(tmp_path), clean(bs.read_table(tiny_table(120)))
    study.file.write_text(json.dumps({"searched": {"settings": config.dump()}, **saved}), encoding="utf-8")
    started = tmp_path / file
    started.mkdir() if file == ".workers" else started.touch()
    splits, not_called = Splits(cleaned, split_cleaned(cleaned, config, 0), None), None
    assert choose_training_labels(study, splits, not_called, config) == (None, None)
    study.file.write_text(json.dumps({"searched": {"settings": config.dump()}}), encoding="utf-8")
    started.rmdir() if file == ".workers" else started.unlink()
    with pytest.raises(TypeError):  # a new study needs embeddings
        choose_training_labels(study, splits, not_called, config)
