"""Cross-validation scores each text with a model that was not trained on it."""

import numpy as np
import pandas as pd
import pytest

import bertsmith as bs
from bertsmith.config import Config
from bertsmith.data.clean import clean
from bertsmith.data.read import read_table
from bertsmith.data.split import split_cleaned
from bertsmith.errors import ConfigError, Interrupted
from bertsmith.events import Finished, FoldDone, FoldStarted, StepDone
from bertsmith.folders.run import Run
from bertsmith.inference.abstain import held_out_predictions
from bertsmith.tasks.registry import get_task
from bertsmith.testing import tiny_table
from bertsmith.workflows import baselines
from bertsmith.workflows.cross_validation import (
    DEFAULT_FOLDS,
    FEW_LABELLED_TEXTS,
    FEW_TEXT_FOLDS,
    choose_folds,
    score_folds,
    split_into_folds,
    split_or_fold,
)
from tests.conftest import same_weights, weights_of
from tests.conftest import train as _train

pytestmark = pytest.mark.usefixtures("one_contrastive_epoch")


@pytest.fixture(scope="module")
def run(tmp_path_factory, pooled):
    """Cross-validated with three folds, with test texts."""
    return _train(pooled, tmp_path_factory.mktemp("runs") / "run", table=tiny_table(90), cv=3, test_size=0.1)


@pytest.fixture(scope="module")
def untested(tmp_path_factory, pooled):
    """Cross-validated without test texts."""
    with pytest.MonkeyPatch.context() as patch:
        masks = []

        def recorded(method):
            return lambda self, mask=None, *args: (masks.append(mask), method(self, mask, *args))[1]

        for name in ("initial_head", "baseline_scores"):
            patch.setattr(baselines.FrozenEmbeddings, name, recorded(getattr(baselines.FrozenEmbeddings, name)))
        folder = tmp_path_factory.mktemp("runs") / "untested"
        settings = {"test_size": 0, "cv": DEFAULT_FOLDS, "explanations": "auto"}
        return _train(pooled, folder, table=tiny_table(90), **settings), masks


def _table(**columns):
    frame = tiny_table(len(next(iter(columns.values()))) if columns else 90).assign(**columns)
    return read_table(frame, Config())


def test_every_training_text_is_scored_by_a_model_that_was_not_trained_on_it(run):
    splits = pd.read_parquet(run.layout.splits)
    assert set(splits["split"].dropna()) == {"train", "test"}
    trained = set(splits["row"][splits["split"] == "train"])
    assert set(run.validation_predictions["row"]) == trained
    figures = run.metrics["splits"]["validation"]
    assert (figures["texts"], figures["by"], figures["folds"]) == (len(trained), "cross-validation", 3)
    assert "by" not in run.metrics["splits"]["test"]
    assert run.info["data"]["folds"] == 3
    assert run.info["data"]["splits"]["validation"] == 0
    assert run.history == []
    assert not run.layout.folds.exists()
    page = run.layout.report.read_text(encoding="utf-8")
    assert "3-fold cross-validation" in page
    classifier = bs.load(run.path, device="cpu", runtime="torch")  # whose rule comes from these predictions
    frame = run.predictions
    assert np.stack(frame["probabilities"]) == pytest.approx(classifier.predict_proba(frame["text"].tolist()), abs=1e-5)


def test_without_test_texts_the_test_metrics_come_from_cross_validation(untested):
    run, masks = untested
    test = run.metrics["splits"]["test"]
    assert (test["texts"], test["by"], test["folds"]) == (90, "cross-validation", DEFAULT_FOLDS)
    assert sorted(run.predictions["row"]) == list(range(1, 91))
    assert run.explanations == []
    for file in (run.layout.report, run.layout.model / "README.md"):
        content = file.read_text(encoding="utf-8")
        assert "cross-validated texts" in content
        assert "test texts" not in content.replace("not set aside any test texts", "")
        assert "validation texts" not in content
    for baseline in ("bag_of_words", "frozen_embeddings"):
        assert 0 < run.metrics["baseline"][baseline]["test"]["macro_f1"] <= 1
    # Neither the initial head of a fold nor the baseline is fitted to the texts of the fold.
    left_out = [~mask for mask in masks if mask is not None]
    assert len(left_out) == 2 * DEFAULT_FOLDS
    for head, baseline in zip(left_out[:DEFAULT_FOLDS], left_out[DEFAULT_FOLDS:], strict=True):
        assert head.tolist() == baseline.tolist()
    assert np.sum(left_out[:DEFAULT_FOLDS], axis=0).tolist() == [1] * 90
    abstention = run.metrics["abstention"]
    assert 0 < abstention["texts"] < 90  # thresholds are checked on texts that they do not come from
    assert abstention["accuracy_coverage"][-1]["accuracy"] == test["metrics"]["accuracy"]["value"]


def test_thresholds_come_from_the_cross_validation(run):
    assert len(held_out_predictions(run).targets) == run.info["data"]["splits"]["train"]


def test_a_resumed_run_trains_only_the_remaining_folds(tmp_path, pooled):
    settings = {"table": tiny_table(60), "cv": 3, "epochs": 1}
    events = []
    whole = _train(pooled, tmp_path / "whole", **settings, on_event=events.append)
    assert [type(e) for e in events if isinstance(e, FoldStarted | FoldDone)] == [FoldStarted, FoldDone] * 3
    started = []

    def stop():
        return len(started) == 2

    with pytest.raises(Interrupted, match="fold 2 of 3"):
        _train(
            pooled,
            tmp_path / "run",
            **settings,
            on_event=lambda e: started.append(e) if isinstance(e, FoldStarted) else None,
            stop=stop,
        )
    assert Run(tmp_path / "run").info["status"] == "interrupted"
    assert len(list((tmp_path / "run" / "folds").iterdir())) == 1
    events.clear()
    resumed = _train(pooled, tmp_path / "run", **settings, resume=True, on_event=events.append)
    assert [e.number for e in events if isinstance(e, FoldStarted)] == [2, 3]
    assert [e.number for e in events if isinstance(e, FoldDone)] == [1, 2, 3]
    assert same_weights(weights_of(whole), weights_of(resumed))
    assert whole.metrics["splits"] == resumed.metrics["splits"]


@pytest.mark.parametrize("saved", ["whole", "damaged", "of other texts", "without texts"])
def test_a_saved_fold_is_trained_again_only_if_it_is_damaged_or_has_other_texts(saved, tmp_path, monkeypatch):
    def prepare_model(*args, **settings):
        raise Interrupted("training begins")

    def emit(event):
        if isinstance(event, FoldDone):
            raise ValueError

    monkeypatch.setattr("bertsmith.workflows.cross_validation.prepare_model", prepare_model)
    table = _table()
    file = tmp_path / "0.npy"
    with file.open("wb") as stream:
        if saved != "without texts":  # as older versions saved it
            np.save(stream, np.arange(saved == "of other texts", 90, 2))
        np.save(stream, np.full((1, 45, 3), 1 / 3))
    if saved == "damaged":
        file.write_bytes(b"")
    with pytest.raises(ValueError if saved == "whole" else Interrupted):
        score_folds(
            None,
            get_task(table.task),
            Config(),
            None,
            table,
            None,
            np.arange(90) % 2,
            None,
            tmp_path,
            readings=("truncate",),
            emit=emit,
            stop=lambda: False,
        )


def test_training_on_all_texts_is_resumed_from_its_checkpoint(tmp_path, pooled):
    settings = {"table": tiny_table(60), "cv": 2}
    whole = _train(pooled, tmp_path / "whole", **settings)
    seen = []
    with pytest.raises(Interrupted):
        _train(
            pooled, tmp_path / "run", **settings, on_event=seen.append, stop=lambda: _steps_on_labels(seen, of=2) >= 5
        )
    assert list((tmp_path / "run" / "checkpoints").iterdir())
    resumed = _train(pooled, tmp_path / "run", **settings, resume=True)
    assert same_weights(weights_of(whole), weights_of(resumed))


def _steps_on_labels(events, of):
    """Return the number of steps after the folds and after the training on pairs."""
    done = [i for i, e in enumerate(events) if isinstance(e, FoldDone) and e.number == of]
    pairs = [i for i, e in enumerate(events) if isinstance(e, Finished) and done and i > done[0]]
    return sum(isinstance(e, StepDone) for e in events[pairs[0] :]) if pairs else 0


def test_few_texts_are_cross_validated_unless_validation_texts_are_given(monkeypatch):
    monkeypatch.delenv("BERTSMITH_CV")
    few, many = _table(), read_table(tiny_table(2 * FEW_LABELLED_TEXTS), Config())
    given = read_table(tiny_table(90).assign(split=["validation", "test", "train"] * 30), Config(split_column="split"))
    assert choose_folds(Config(), few) == (FEW_TEXT_FOLDS, 0)
    assert choose_folds(Config(test_size=0.2), few) == (FEW_TEXT_FOLDS, 0.2)
    assert choose_folds(Config(), many) == (0, 0.1)
    assert choose_folds(Config(), given) == (0, 0.1)
    assert choose_folds(Config(cv=0), few) == (0, 0.1)
    assert choose_folds(Config(validation_size=0.2), few) == (0, 0.1)
    assert choose_folds(Config(test_size=0), few) == (FEW_TEXT_FOLDS, 0)
    assert choose_folds(Config(cv=7), many) == (7, 0.1)
    assert choose_folds(Config(cv=7), few) == (7, 0)
    assert choose_folds(Config(test_size=0), many) == (DEFAULT_FOLDS, 0)
    with pytest.raises(ConfigError):
        choose_folds(Config(cv=5), given)


def test_a_table_too_small_for_folds_has_a_validation_split(tmp_path, pooled, monkeypatch):
    monkeypatch.delenv("BERTSMITH_CV")
    texts = [f"{word} {i}" for i, word in enumerate(["red", "blue"] * 3)]
    table = pd.DataFrame({"Text": texts, "Label": [0, 1] * 3})
    run = _train(pooled, tmp_path / "run", table=table, near_duplicates="ignore")
    assert run.info["data"]["folds"] in (0, FEW_TEXT_FOLDS)
    with pytest.raises(ConfigError):
        _train(pooled, tmp_path / "refused", table=table, cv=50)
    assert not (tmp_path / "refused" / "run.json").exists()


def test_groups_are_not_divided_between_folds():
    table = read_table(tiny_table(90).assign(author=np.arange(90) // 6), Config(group_column="author"))
    cleaned, config = clean(table), Config(group_column="author")
    data, fold = split_into_folds(cleaned, 3, 0.1, config, 0)
    trained = data.frame[data.frame["split"] == "train"]
    assert set(data.frame["split"]) == {"train", "test"}
    assert sorted(set(fold)) == [0, 1, 2]
    assert (pd.Series(fold).groupby(trained["group"].to_numpy()).nunique() == 1).all()


@pytest.mark.parametrize("settings", [{}, {"group_column": "author"}, {"task": "multi-label"}])
def test_the_test_texts_are_those_of_a_validation_split(settings):
    frame = tiny_table(200).assign(author=np.arange(200) % 40)
    frame["Label Text"] += np.where(np.arange(200) % 3, "", ";others") if "task" in settings else ""
    config = Config(**settings, label_column="Label Text")
    cleaned = clean(read_table(frame.drop(columns="Label"), config))
    folded, _ = split_into_folds(cleaned, 3, 0.1, config, 42)
    validated = split_cleaned(cleaned, config, 42)
    assert set(folded.frame["split"]) == {"train", "test"}
    assert ((folded.frame["split"] == "test") == (validated.frame["split"] == "test")).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"cv": 1},
        {"cv": 0, "test_size": 0},
        {"cv": 5, "validation": tiny_table(9)},
        {"cv": 5, "validation_size": 0.2},
        {"cv": None, "test_size": 0, "validation_size": 0.2},
        {"cv": 90},
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, tmp_path, pooled):
    with pytest.raises(ConfigError):
        _train(pooled, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_several_processes_train_without_folds(monkeypatch):
    cleaned = clean(_table())
    data, fold = split_or_fold(cleaned, Config(), 0, single_process=False)
    assert fold is None
    assert (data.frame["split"] == "validation").any()
    with pytest.raises(ConfigError):
        split_or_fold(cleaned, Config(cv=3), 0, single_process=False)
