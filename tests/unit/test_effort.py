"""``effort="quick"`` fits the head alone."""

import shutil

import numpy as np
import pytest

import bertsmith as bs
from bertsmith.errors import ConfigError, RunFolderError
from bertsmith.evaluation.baseline import fit_regression
from bertsmith.events import Evaluated, Finished, Started, TrainingEstimated
from bertsmith.inference.classifier import Classifier
from bertsmith.model.tokenizer import encode
from bertsmith.report.methods import write_methods
from bertsmith.tasks.registry import get_task
from bertsmith.tasks.single_label import SingleLabel
from bertsmith.testing import tiny_table
from bertsmith.workflows import baselines
from bertsmith.workflows import train as training
from bertsmith.workflows.prepare import embed
from tests.conftest import train as _train
from tests.conftest import weights_of


def _quick(model, folder, **more):
    of_training = dict.fromkeys(("epochs", "learning_rate", "head_rate", "consistency"))
    return _train(model, folder, **{**of_training, "effort": "quick", **more})


@pytest.fixture(scope="module")
def events():
    return []


@pytest.fixture(scope="module")
def run(pooled, tmp_path_factory, events):
    folder = tmp_path_factory.mktemp("runs") / "quick"
    return _quick(pooled, folder, table=tiny_table(120), cv=0, test_size=0.2, on_event=events.append)


def test_the_head_is_a_regression_on_all_training_texts(run):
    assert run.info["recipe"]["epochs"] == 0
    classifier = Classifier.load(run.layout.model, device="cpu")
    loaded, table = classifier.loaded, tiny_table(120)
    held_out = set(run.validation_predictions["text"]) | set(run.predictions["text"])
    table = table[~table["Text"].isin(held_out)].drop_duplicates("Text")
    features = embed(loaded, encode(table["Text"].tolist(), loaded, truncate=True))
    targets = np.searchsorted(run.labels.numbers, table["Label"])
    expected = fit_regression(features, targets, n_classes=len(run.labels)).weight
    weight = loaded.model.classifier.weight.detach().numpy()  # divided by the temperature
    assert np.corrcoef(weight.ravel(), expected.ravel())[0, 1] == pytest.approx(1, abs=1e-3)


def test_no_step_is_taken_and_no_time_is_estimated(run, events):
    assert [e.step for e in events if isinstance(e, Finished)] == [0]
    assert not [e for e in events if isinstance(e, Started | Evaluated | TrainingEstimated)]


def test_the_model_is_compared_with_the_bag_of_words_alone(run):
    assert set(run.metrics["baseline"]) == {"majority_class", "bag_of_words"}
    assert run.layout.report.is_file()


def test_the_methods_paragraph_has_no_epochs(run):
    sources = [key for _, key in write_methods(run).sources]
    assert sources
    assert not any("recipe" in key for key in sources)


def test_few_texts_are_cross_validated(pooled, tmp_path, run):
    few = _quick(pooled, tmp_path / "few", table=tiny_table(24), cv=2, test_size=0)
    assert few.metrics["splits"]["test"]["folds"] == 2
    body = {name: weight for name, weight in weights_of(run).items() if "classifier" not in name}
    assert all(weights_of(few)[name].equal(weight) for name, weight in body.items() if "embeddings" not in name)


def test_a_disk_with_room_for_the_model_alone_is_enough(pooled, tmp_path, monkeypatch, run):
    def leave(copies):
        free = int(4 * copies * run.info["model"]["parameters"])
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 10**12, free))

    leave(2.1)
    settings = {"table": tiny_table(60), "cv": 0, "test_size": 0.2}
    assert _quick(pooled, tmp_path / "run", **settings).info["status"] == "finished"
    with pytest.raises(RunFolderError):
        _train(pooled, tmp_path / "trained", **settings)
    leave(0.9)
    with pytest.raises(RunFolderError):
        _quick(pooled, tmp_path / "full", **settings)


def test_the_bag_of_words_counts_a_limited_number_of_texts(pooled, tmp_path, monkeypatch):
    counted, bag_of_words = [], SingleLabel.bag_of_words
    monkeypatch.setattr(baselines, "MAX_COUNTED_TEXTS", 20)
    monkeypatch.setattr(
        SingleLabel, "bag_of_words", lambda *args: counted.append((len(args[1]), len(args[2]))) or bag_of_words(*args)
    )
    run = _quick(pooled, tmp_path / "run", table=tiny_table(60), cv=0, test_size=0.2)
    assert counted == [(20, 20)]
    assert run.metrics["baseline"]["bag_of_words"]["texts"] == {"train": 20, "test": 12}
    assert "only 20 of the texts" in run.layout.report.read_text(encoding="utf-8")


def test_columns_are_not_compared(pooled, tmp_path, monkeypatch):
    given, compare = [], training.compare_columns
    monkeypatch.setattr(training, "compare_columns", lambda *args, **kw: given.append(args[2]) or compare(*args, **kw))
    table = tiny_table(60)
    table["Title"] = table["Text"].str.slice(0, 9)
    two = _quick(pooled, tmp_path / "run", table=table, text_column=["Title", "Text"], cv=0, test_size=0.2)
    assert "columns" not in two.metrics
    calibration, task = two.metrics["splits"]["test"]["calibration"], get_task(two.task)
    assert calibration["temperature"] != pytest.approx(1)
    targets = task.stored_targets(two.predictions, two.labels)  # the other model has no temperature
    brier = task.calibration(targets, given[0])["brier_score"]
    assert brier == pytest.approx(calibration["before"]["brier_score"], abs=1e-5)


@pytest.mark.parametrize("setting", [{"epochs": 2}, {"seeds": 2}, {"set": {"max_steps": 3}}])
def test_settings_of_training_are_refused_before_table_and_model_are_read(tmp_path, setting):
    with pytest.raises(ConfigError):
        _quick(tmp_path / "no model", tmp_path / "run", table=tmp_path / "absent.csv", **setting)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_without_mean_pooling_is_refused(tiny, tmp_path):
    with pytest.raises(ConfigError):
        _quick(tiny, tmp_path / "run")


def test_tune_has_nothing_to_search(pooled, tmp_path):
    with pytest.raises(ConfigError):
        bs.tune(tiny_table(), output=tmp_path / "study", model=str(pooled), effort="quick", trials=2)
