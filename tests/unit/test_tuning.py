"""Tune: the search space, trials without access to the test texts, studies that survive kills and failures."""

import dataclasses
import io
import json
import os
import shutil
import threading
import time
import tomllib
import types
from contextlib import nullcontext

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from optuna.trial import TrialState
from rich.console import Console
from sqlalchemy.exc import OperationalError

import bertsmith as bs
from bertsmith.config import Config
from bertsmith.data.template import texts_of
from bertsmith.errors import ConfigError, DeviceError, Interrupted, OutputError, RunFolderError
from bertsmith.events import (
    Evaluated,
    FinalStarted,
    RolledBack,
    StorageUnavailable,
    StudyStarted,
    TrialEnded,
    TrialScored,
    TrialStarted,
)
from bertsmith.folders.run import Run
from bertsmith.folders.study import begin_or_resume
from bertsmith.inference.classifier import Classifier
from bertsmith.progress.tuning import TuningProgress
from bertsmith.report.study import advice
from bertsmith.tasks.registry import get_task
from bertsmith.testing import tiny_table
from bertsmith.training.arguments import argument_problems
from bertsmith.training.recipe import Recipe
from bertsmith.tuning import store as stores
from bertsmith.tuning.config import StudyConfig
from bertsmith.tuning.space import Categorical, Range, apply_changes, default_space, read_space, with_values
from bertsmith.tuning.store import Store, is_done
from bertsmith.workflows import prepare, study_result, training_labels, trial_workers
from bertsmith.workflows import trials as trying
from bertsmith.workflows.cross_validation import FEW_LABELLED_TEXTS
from bertsmith.workflows.study_result import _difference, _toml
from bertsmith.workflows.trial_workers import _report_changes, rank_key
from bertsmith.workflows.trials import TrialData, evaluation_steps, with_evaluation_steps
from tests.conftest import same_weights, train, weights_of

QUICK = {
    "seed": 7,  # so that the winner of the study is not the default
    "consistency": 0,
    "epochs": 2,
    "precision": "fp32",
    "device": "cpu",
    "learning_rate": 1e-2,
    "head_rate": 1,
    "explanations": "off",
}
RECIPE = Recipe(4.0, 32, 1e-4, 10.0, 0.1, 0.01, "fp32", 3, "none")


def tune(tiny, output, **settings):
    table = settings.pop("table", tiny_table(150))
    return bs.tune(table, output=output, model=str(tiny), **{"trials": 3, **QUICK, **settings})


def _search(model, output, monkeypatch, **settings):
    """Return the search of a study that ends before its first trial."""
    seen = []

    def run_trials(store, search, *_):
        seen.append(search)
        raise Interrupted("stopped")

    monkeypatch.setattr("bertsmith.workflows.tune.run_trials", run_trials)
    with pytest.raises(Interrupted):
        tune(model, output, **settings)
    return seen[0]


@pytest.fixture(scope="module")
def study(tmp_path_factory, tiny):
    return tune(tiny, tmp_path_factory.mktemp("study") / "s", trials=5)


# -- the search space ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [1.0, 30.0])
@pytest.mark.parametrize("texts", [500, 50_000])
def test_the_space_contains_the_defaults_of_train(texts, ratio):
    recipe = dataclasses.replace(RECIPE, batch_size=16 if texts < 1000 else 32)
    space, usual = default_space(Config(), recipe, n_texts=texts, imbalance_ratio=ratio, max_length=256, dropout=0.1)
    assert usual.keys() == space.keys()
    assert all(dimension.nearest(usual[name]) == usual[name] for name, dimension in space.items())
    assert ("imbalance" in space) == (ratio > 2)
    assert space["max_length"] == Categorical((128, 256))


def test_different_dropout_rates_of_layers_are_kept(tmp_path, monkeypatch):
    from bertsmith.testing import tiny_model

    search = _search(tiny_model(tmp_path / "model", "distilbert"), tmp_path / "s", monkeypatch)
    assert "dropout" not in search.space


def test_settings_of_the_user_are_not_in_the_space():
    arguments = {"weight_decay": 0.1, "per_device_train_batch_size": 24}
    config = Config(epochs=3, imbalance="focal", max_length=64, set=arguments)
    space, _ = default_space(
        config, RECIPE, n_texts=500, imbalance_ratio=30, max_length=256, dropout=0.1, models=("a", "b")
    )
    assert not {"epochs", "imbalance", "max_length", "weight_decay", "batch_size"} & space.keys()
    assert space["model"] == Categorical(("a", "b"))
    assert "learning_rate" in space


def test_a_file_changes_the_space(tmp_path):
    (tmp_path / "s.toml").write_text(
        "learning-rate = {low = 1e-6, high = 1e-5, log = true}\nbatch_size = [4, 8]\ndropout = 0.2\n"
        "adam_beta2 = {low = 0.9, high = 0.999}\nepochs = {low = 1, high = 3}\n"
    )
    read = read_space(tmp_path / "s.toml", argument_problems)
    space, _ = default_space(Config(), RECIPE, n_texts=500, imbalance_ratio=1, max_length=64, dropout=0.1)
    space, config = apply_changes(space, Config(), read)
    assert space["learning_rate"] == Range(1e-6, 1e-5, log=True)
    assert space["batch_size"] == Categorical((4, 8))
    assert space["adam_beta2"] == Range(0.9, 0.999)
    assert space["epochs"] == Range(1, 3, whole=True)
    assert "dropout" not in space
    assert config.dropout == 0.2
    assert with_values(config, {"adam_beta2": 0.95, "epochs": 2}).set == {"adam_beta2": 0.95}


def test_the_settings_of_a_trial_keep_what_the_user_set():
    config = with_values(Config(test_size=0.1), {"epochs": 2, "adam_beta2": 0.95})
    assert config.model_fields_set == {"test_size", "epochs", "set"}  # others, such as validation_size, stay unset


def test_the_settings_of_the_winner_are_valid_toml():
    arguments = {"lr_scheduler_kwargs": {"min lr": 1e-6, "no": None}, "optim_args": None, "logging_dir": 'a\x7f"🙂\n'}
    config = Config(with_columns=("größe", "🙂"), epochs=2.5, set={**arguments, "max_grad_norm": float("inf")})
    expected = {"lr_scheduler_kwargs": {"min lr": 1e-6}, "logging_dir": arguments["logging_dir"]}
    assert tomllib.loads(_toml(config)) == {
        "with_columns": ["größe", "🙂"],
        "epochs": 2.5,
        "set": {**expected, "max_grad_norm": float("inf")},
    }


@pytest.mark.parametrize(
    ("texts", "given", "expected"),
    [
        (150, {}, {"test_size": 0.1}),
        (2 * FEW_LABELLED_TEXTS, {}, {}),
        (150, {"validation_size": 0.1}, {"validation_size": 0.1}),
        (150, {"test": tiny_table(30, seed=1)}, {}),
    ],
)
def test_the_settings_of_the_winner_have_the_sizes_that_change_the_split(
    texts, given, expected, tiny, tmp_path, monkeypatch
):
    monkeypatch.delenv("BERTSMITH_CV")
    search = _search(tiny, tmp_path / "s", monkeypatch, table=tiny_table(texts), **given)
    written = tomllib.loads(_toml(search.trial_config({})))
    assert {name: written[name] for name in ("validation_size", "test_size") if name in written} == expected


def test_a_size_in_a_flag_counts_as_set_even_if_it_is_the_default(cli, monkeypatch):
    given = []

    def run_tuning(table, config, *_, **__):
        given.append(config)
        raise Interrupted("stopped")

    monkeypatch.setattr("bertsmith.workflows.tune.run_tuning", run_tuning)
    cli("tune", "t.csv", "-o", "s", "--validation-size", "0.1")
    assert "validation_size" in given[0].model_fields_set


def test_runs_with_different_test_texts_are_not_compared(own_run, tmp_path):
    other = Run(shutil.copytree(own_run, tmp_path / "other"))
    file = other.layout.predictions / "test.parquet"
    pd.read_parquet(file).iloc[1:].to_parquet(file)
    with pytest.raises(RunFolderError):
        _difference(Run(own_run), other)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("learning_rat = 1", r"learning_rat: .*'learning_rate'"),
        ("learning_rate = {low = 1, high = 0.1}", "learning_rate: .*low.* 1 .*0.1"),
        ("learning_rate = {low = 0.1, high = 0.1}", "learning_rate: .*low"),
        ("learning_rate = {low = 0.1}", "learning_rate: .*high"),
        ("learning_rate = {low = 0.1, high = 0.2, step = 2}", "learning_rate: .*'step'"),
        ("learning_rate = {low = 'a', high = 'b'}", "learning_rate: .*numbers"),
        ("learning_rate = {low = 1e-5, high = inf}", "learning_rate: .*numbers"),
        ("learning_rate = {low = 1e-5, high = 1e-3, log = 'yes'}", "learning_rate: .*log"),
        ("weight_decay = {low = 0.0, high = 1.0, log = true}", "weight_decay: .*log.* 0"),
        ("learning_rate = {low = 1e-5, high = 2.0}", r"learning_rate: .* 1, not 2\.0"),
        ("batch_size = {low = 1.5, high = 4.5}", "batch_size: .*integer"),
        ("batch_size = {low = 8, high = 32.0}", "batch_size: .*integer"),
        ("max_length = {low = 16.0, high = 64.0}", "max_length: .*integer"),
        ("gradient_accumulation_steps = {low = 1, high = 3.0}", "gradient_accumulation_steps: .*integer"),
        ("batch_size = []", "batch_size: .*empty"),
        ("batch_size = [8, 8]", "batch_size: .*unique"),
        ("batch_size = [8, 'many']", "batch_size: .*'many'"),
        ("long = ['truncate', 'window']", "long: .*head-tail"),
        ("imbalance = ['none', 'some']", "imbalance: .*'some'"),
        ("weight_decay = 'much'", "weight_decay: .*'much'"),
        ("learning_rate = true", "learning_rate: .*true"),
        ("seed = [1, 2]", "seed: .*final_seeds"),
        ("num_train_epochs = [1, 2]", "num_train_epochs: .*epochs"),
        ("eval_steps = 3", "eval_steps: "),
        ("test = 'x.csv'", "test: "),
        ("learning_rate = ", "TOML"),
    ],
)
def test_every_invalid_search_space_is_an_error(line, expected, tmp_path):
    (tmp_path / "s.toml").write_text(line)
    with pytest.raises(ConfigError, match=expected) as caught:
        read_space(tmp_path / "s.toml", argument_problems)
    assert caught.value.where == str(tmp_path / "s.toml")


def test_a_setting_in_flags_and_file_is_an_error():
    read = read_space({"epochs": (1, 2), "weight_decay": 0.1, "dropout": 0.1}, argument_problems)
    with pytest.raises(ConfigError, match="'epochs', 'weight_decay'"):
        apply_changes({}, Config(epochs=3, set={"weight_decay": 0.2}), read)


def test_a_space_can_be_a_dict_in_python():
    read = read_space({"batch_size": (4, 8), "dropout": 0.2, "epochs": {"low": 1, "high": 3}}, argument_problems)
    assert read == {"batch_size": Categorical((4, 8)), "dropout": 0.2, "epochs": Range(1, 3, whole=True)}
    with pytest.raises(ConfigError, match=r"epoch: .*'epochs'") as caught:
        read_space({"epoch": 1}, argument_problems)
    assert caught.value.where == "space"


def test_all_problems_of_a_search_space_are_reported_together(tmp_path):
    (tmp_path / "s.toml").write_text("epoch = 1\nbatch_size = [0]\nseed = 1")
    with pytest.raises(ConfigError) as caught:
        read_space(tmp_path / "s.toml", argument_problems)
    assert str(caught.value).count("\n  - ") == 3
    with pytest.raises(ConfigError) as caught:
        read_space(tmp_path / "none.toml", argument_problems)
    assert caught.value.where == str(tmp_path / "none.toml")


def test_a_single_name_is_not_split_into_letters(tmp_path):
    for names in ({"objectives": "accuracy"}, {"models": "./none"}):
        with pytest.raises(bs.UserError, match=next(iter(names.values()))):
            bs.tune(tiny_table(30), output=tmp_path / "s", trials=1, **names)


def test_the_metric_of_another_task_is_no_objective():
    assert StudyConfig(objectives=("r2",)).for_metric("r2") == StudyConfig().for_metric("r2")
    for other in ("r2", "macro_f1"):
        with pytest.raises(ConfigError) as caught:
            StudyConfig(objectives=(other,)).for_metric("quadratic_kappa")
        assert "quadratic_kappa" in caught.value.remedy


@pytest.mark.parametrize("objectives", [("r2", "latency"), ("latency", "r2")])
def test_the_primary_metric_is_the_first_objective(objectives):
    config = StudyConfig(objectives=objectives)
    assert config.for_metric("r2").objectives == ("r2", "latency")
    ended = [
        optuna.trial.create_trial(params={}, distributions={}, values=values)
        for values in ([0.8, 9.0], [0.8, 5.0], [0.7, 1.0])
    ]
    assert max(ended, key=rank_key).values == [0.8, 5.0]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"trials": 0}, "trials: .* 1, not 0"),
        ({"trials": None}, "trials, minutes: "),
        ({"trials": "5"}, "trials: .* 1, not '5'"),
        ({"jobs": 1.5}, "jobs: .* 1, not 1.5"),
        ({"final_seeds": None}, "final_seeds: .* 1, not None"),
        ({"minutes": "5"}, "minutes: .* 0, not '5'"),
        ({"minutes": -1.0}, "minutes: .* 0, not -1"),
        ({"jobs": 0}, "jobs: .* 1, not 0"),
        ({"cv": 1}, "cv: .* 2, not 1"),
        ({"final_seeds": 0}, "final_seeds: .* 1, not 0"),
        ({"objectives": ("accuracy",)}, "objective: .*'accuracy'"),
        ({"objectives": ("latency",)}, "objective: .*macro_f1"),
        ({"objectives": ("macro_f1", "macro_f1")}, "objective: .*unique"),
        ({"objectives": ("macro_f1", "latency"), "jobs": 2}, "jobs: .*latency"),
        ({"models": ("a", "a")}, "models: .*unique"),
    ],
)
def test_an_invalid_study_configuration_is_an_error(settings, expected):
    with pytest.raises(ConfigError, match=rf"(?m)^  - {expected}"):
        StudyConfig(**settings)


# -- a study -------------------------------------------------------------------------------------------------------


def test_the_first_trial_uses_the_defaults_of_dimensions_that_a_file_adds(tiny, tmp_path):
    added = {"adam_beta2": {"low": 0.9, "high": 0.9999}, "optim": ["sgd", "adamw_torch_fused"]}
    added |= {"patience": {"low": 1, "high": 9}, "imbalance": ["weights", "none"]}
    added |= {"precision": ["bf16", "auto"]}
    study = tune(tiny, tmp_path / "s", trials=1, space=added, epochs=1, precision="auto")
    chosen = study.result["settings"]
    expected = {"adam_beta2": 0.999, "patience": 3, "imbalance": "none", "precision": "auto"}
    assert {name: chosen[name] for name in expected} == expected
    assert study.result["is_default"]


def test_the_first_trial_uses_the_defaults(study, tiny):
    first = study.trials.iloc[0]
    assert first["batch_size"] == 16
    assert first["layer_decay"] == 1
    assert first["label_smoothing_factor"] == 0
    assert first["dropout"] == 0.1
    assert study.info["searched"]["settings"]["epochs"] == 2  # given, and so not in the space
    assert "epochs" not in study.info["searched"]["space"]


def test_the_winner_is_the_best_trial_and_its_run_repeats_the_curve(study):
    trials = study.trials
    complete = trials[trials["state"] == "complete"]
    scores = complete["values"].str[0]
    assert study.result["score"] == scores.max()
    assert study.result["trial"] == complete["number"][scores.idxmax()]
    curve = next(t["curve"] for t in study.info["trials"] if t["number"] == study.result["trial"])
    assert not study.result["is_default"]
    assert [(e["epoch"], e["metrics"]["macro_f1"]) for e in study.best.history] == [tuple(point) for point in curve]
    assert study.best.info["status"] == "finished"
    assert study.best.metrics["splits"]["test"]["metrics"]["macro_f1"] == study.result["test"]


def test_the_defaults_run_equals_train(study, tiny, tmp_path):
    if study.result["is_default"]:
        assert study.result["verdict"] == "no trial was better on validation than the default settings"
        return
    plain = train(tiny, tmp_path / "run", table=tiny_table(150), **QUICK)
    assert same_weights(weights_of(plain), weights_of(study.defaults))
    compared = [not run.info["config"]["no_ablation"] for run in (study.best, study.defaults)]
    assert compared == [True, False]  # the columns, once
    ours, theirs = (run.metrics["splits"]["test"]["metrics"]["macro_f1"]["value"] for run in (study.best, plain))
    assert study.result["difference"]["value"] == pytest.approx(ours - theirs)


def test_best_toml_reproduces_the_winner(study, tiny, tmp_path):
    run = bs.train(tiny_table(150), output=tmp_path / "run", config=study.settings)
    assert same_weights(weights_of(run), weights_of(study.best))


def test_no_trial_sees_a_test_text(tiny, tmp_path, monkeypatch):
    seen = set()
    prepare = trying.prepare_model

    def prepare_model(found, config, task, labels, texts, *rest, **settings):
        seen.update(texts)
        return prepare(found, config, task, labels, texts, *rest, **settings)

    monkeypatch.setattr(trying, "prepare_model", prepare_model)
    study = tune(tiny, tmp_path / "s", trials=1, epochs=1)
    tested = set(study.best.predictions["text"])
    assert len(tested) >= 15
    assert len(seen) + len(tested) == 150
    assert not seen & tested


def test_the_report_contains_the_verdict(study):
    page = study.report.read_text()
    assert study.result["verdict"][1:] in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert "Which settings matter?" in page


def test_advice_depends_on_the_space_and_the_curve():
    info = {
        "searched": {
            "cv": None,
            "objectives": ["macro_f1", "latency"],
            "space": {
                "learning_rate": {"low": 1e-5, "high": 1e-3, "log": True, "whole": False},
                "layer_decay": {"low": 0.7, "high": 1.0, "log": False, "whole": False},
                "epochs": {"low": 1, "high": 3, "log": False, "whole": True},
            },
        },
        "trials": [
            {"number": n, "state": "complete", "values": [n / 100, 5.0 + n], "curve": [[1.0, 0.5], [2.0, 0.6]]}
            for n in range(12)
        ],
    }
    result = {
        "trial": 3,
        "is_default": False,
        "settings": {"learning_rate": 9.9e-4, "layer_decay": 1.0},
        "importance": {"learning_rate": 0.99, "dropout": 0.01},
        "difference": {"interval": [-0.1, 0.2]},
    }
    said = advice(info, result)
    assert any("learning_rate" in s and "above 0.001" in s for s in said)
    assert any("more epochs" in s for s in said)
    assert any("depends on dropout" in s for s in said)
    assert any("not distinguishable" in s for s in said)
    assert len(said) == 4  # nothing of layer_decay, which ends at 1
    result["difference"]["interval"] = None  # one group
    assert advice(info, result) == said
    result["difference"]["interval"] = [-0.3, -0.1]
    assert any("worse than the defaults" in s for s in advice(info, result))
    assert advice({**info, "trials": info["trials"][:9]}, result) == []  # too few to conclude anything
    result["settings"]["learning_rate"] = 1e-4
    info["trials"][3]["curve"] = [[1.0, 0.6], [2.0, 0.5]]
    result["difference"]["interval"] = [0.1, 0.2]
    result["importance"]["dropout"] = 0.5
    assert advice(info, result) == []
    for trial in info["trials"]:
        trial["values"][0] = 0.2
    assert any("learned nothing" in s for s in advice(info, result))
    info["trials"][3]["curve"] = [[1.0, 0.6], [2.0, 0.6]]
    assert len(advice(info, result)) == 1  # more epochs do not help
    for trial in info["trials"]:
        trial["values"][0] = 1.0
    info["trials"][3]["curve"] = [[1.0, 0.9], [2.0, 1.0]]
    assert advice(info, result) == []


# -- nothing is lost -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped_in_a_trial(tiny, tmp_path_factory):
    """The folder of a study that was stopped while it tried the third settings."""
    seen, folder = [], tmp_path_factory.mktemp("stopped") / "s"

    def stop():
        return sum(type(e).__name__ == "TrialEnded" for e in seen) == 2 and type(seen[-1]).__name__ == "TrialScored"

    with pytest.raises(Interrupted, match="stopped"):
        tune(tiny, folder, trials=5, on_event=seen.append, stop=stop)
    kept = bs.Study(folder)
    assert len(kept.trials) == 2
    assert kept.result is None
    return folder


@pytest.fixture(scope="module")
def stopped_in_the_end(stopped_in_a_trial, tiny):
    """The folder of that study, which went on and was stopped again while the winner was trained; and its events."""
    seen = []

    def stop():
        names = [type(event).__name__ for event in seen]
        return "FinalStarted" in names and "Saved" in names[names.index("FinalStarted") :]

    with pytest.raises(Interrupted, match="a checkpoint is saved"):
        tune(tiny, stopped_in_a_trial, trials=5, on_event=seen.append, stop=stop)
    return stopped_in_a_trial, seen


def test_an_interrupted_study_resumes_with_the_same_trials(study, stopped_in_the_end):
    folder, started = stopped_in_the_end
    again = bs.Study(folder)
    assert next(e for e in started if type(e).__name__ == "StudyStarted").done == 2
    columns = [n for n in study.trials.columns if n not in ("number", "seconds")]
    assert again.trials[columns].to_dict("records") == study.trials[columns].to_dict("records")


def test_a_study_stopped_while_training_the_winner_resumes_it(study, stopped_in_the_end, tiny):
    folder, _ = stopped_in_the_end
    kept = bs.Study(folder)
    assert len(kept.trials) == 5
    assert kept.best.info["status"] == "interrupted"
    events = []
    again = tune(tiny, folder, trials=5, on_event=events.append)
    assert again.result["score"] == study.result["score"]
    assert not [e for e in events if type(e).__name__ == "TrialStarted"]
    assert next(e for e in events if type(e).__name__ == "Started").step > 0
    assert same_weights(weights_of(again.best), weights_of(study.best))
    assert again.result["test"] == study.result["test"]


def test_a_better_trial_of_another_process_during_the_final_training_wins(tmp_path, monkeypatch):
    def train_final(name, *_):
        if not trained:
            store.tell(store.claim(SPACE, None), TrialState.COMPLETE, [0.9])
        trained.append(name)

    def tell_winner(winner, *_):
        return {"trial": winner.number, "defaults": {}, "settings": {}, "is_default": False}

    trained, study, store = [], bs.Study(tmp_path / "s"), _store(tmp_path / "s")
    store.tell(store.claim(SPACE, None), TrialState.COMPLETE, [0.5])
    begin_or_resume(study, {"space": {}, "cv": None}, fingerprints=(), overwrite=False)
    other = {"write_study_report": print, "_importance": lambda study: {}}
    for name, replaced in {"_train_final": train_final, "_result": tell_winner, **other}.items():
        monkeypatch.setattr(study_result, name, replaced)
    study_config = StudyConfig(objectives=("macro_f1",))
    search = types.SimpleNamespace(study_config=study_config, config=Config(), trial_config=lambda values: Config())
    study_result.finish_study(study, store, None, search, Config(), {}, lambda event: None, lambda: False)
    assert trained == ["the best settings", "the default settings"] * 2
    assert (study.result["trial"], study.info["told"], len(study.info["trials"])) == (1, [[0, 1], [1, 1]], 2)


def test_a_finished_study_runs_only_additional_trials(tiny, tmp_path):
    study = tune(tiny, tmp_path / "s", trials=2, epochs=1)
    before = study.best.info["finished"], study.trials
    events = []
    again = tune(tiny, tmp_path / "s", trials=2, epochs=1, on_event=events.append)
    assert not [e for e in events if type(e).__name__ in ("TrialStarted", "Started")]
    assert again.best.info["finished"] == before[0]
    more = tune(tiny, tmp_path / "s", trials=3, epochs=1)
    assert more.trials.iloc[:2].equals(before[1])
    assert len(more.trials) == 3


def test_a_study_of_other_settings_or_data_is_not_resumed(study, tiny, tmp_path):
    before = study.file.read_text()
    with pytest.raises(RunFolderError, match=r"epochs .*2\.0.*3\.0"):
        tune(tiny, study.path, trials=5, epochs=3)
    with pytest.raises(RunFolderError, match="splits"):
        tune(tiny, study.path, trials=5, table=tiny_table(151))
    assert study.file.read_text() == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="a folder with other files"):
        tune(tiny, tmp_path / "full")
    tune(tiny, tmp_path / "s", trials=1, epochs=1)
    (tmp_path / "s" / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=r"notes\.txt"):
        tune(tiny, tmp_path / "s", trials=1, overwrite=True)
    (tmp_path / "s" / "notes.txt").unlink()
    assert len(tune(tiny, tmp_path / "s", trials=2, epochs=1, overwrite=True).trials) == 2


def test_overwrite_deletes_nothing_before_the_inputs_are_checked(tiny, tmp_path):
    study = tune(tiny, tmp_path / "s", trials=1, epochs=1)
    before = study.file.read_text()
    bad = tiny_table(150).assign(Text="")
    for wrong in ({"table": bad}, {"table": tiny_table(150), "max_length": 4096}):
        with pytest.raises(bs.UserError):
            tune(tiny, study.path, trials=1, overwrite=True, **wrong)
        assert study.file.read_text() == before
        assert study.best.info["status"] == "finished"
    other = _store(study.path)
    with pytest.raises(RunFolderError, match="another process is working on this study"):
        tune(tiny, study.path, trials=1, overwrite=True)
    assert study.file.read_text() == before
    other.close()
    assert len(tune(tiny, study.path, trials=1, epochs=1, overwrite=True).trials) == 1


def test_a_study_in_a_database_is_not_overwritten(tiny, tmp_path):
    with pytest.raises(ConfigError):
        tune(tiny, tmp_path / "s", storage=f"sqlite:///{tmp_path / 'study.db'}", overwrite=True)
    assert not list(tmp_path.iterdir())


def _store(folder, **settings):
    folder.mkdir(exist_ok=True)
    pruner = optuna.pruners.NopPruner()
    return Store(folder, "s", **{"url": None, "directions": ["maximize"], "pruner": pruner, "seed": 0, **settings})


WITHOUT_SLEEP = types.SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: None)
"""Replaces `time` in the store only: other threads of this process must still sleep, or they would use a whole core."""
SPACE = {"learning_rate": Range(1e-5, 1e-3, log=True), "epochs": Range(1, 9, whole=True)}


def test_workers_claim_exactly_the_number_of_trials(tmp_path):
    done = []

    def work():
        store = _store(tmp_path)
        while (trial := store.claim(SPACE, 12)) is not None:
            store.study.tell(trial, 0.5)
            done.append(trial.params["learning_rate"])
        store.close()

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(done) == len(set(done)) == 12


@pytest.mark.parametrize("in_database", [False, True])
def test_the_trial_of_a_killed_worker_runs_at_most_three_times(in_database, tmp_path, monkeypatch):
    url, dead = f"sqlite:///{tmp_path / 'study.db'}" if in_database else None, []
    monkeypatch.setattr(stores.RDBStorage, "_get_stale_trial_ids", lambda *_: dead)  # without a heartbeat
    survivor = _store(tmp_path, url=url)
    settings = None
    for attempt in range(3):
        killed = survivor if in_database else _store(tmp_path)
        trial = killed.claim(SPACE, 1)
        assert settings in (None, trial.params)
        settings = trial.params
        assert survivor.claim(SPACE, 1) is None  # the other worker is alive
        killed.alive_lock.release()  # as at the end of a process
        dead.append(trial._trial_id)
        if attempt < 2:
            assert [t.state for t in survivor.trials].count(TrialState.RUNNING) == 1
    assert survivor.claim(SPACE, 1) is None
    assert [is_done(t) for t in survivor.trials] == [False, False, True]
    assert "killed" in survivor.trials[-1].user_attrs["error"]


def test_an_interrupted_trial_of_a_worker_does_not_stay_running(tmp_path):
    store, events, reported = _store(tmp_path), [], {}
    trial = store.claim(SPACE, 1)
    _report_changes(store, reported, events.append, cv=False)
    store.requeue(trial.number, killed=False)
    for _ in range(2):
        _report_changes(store, reported, events.append, cv=False)
    assert [type(event) for event in events] == [TrialStarted, TrialEnded]
    assert events[1].state == "cut short"


def test_the_file_of_a_killed_worker_may_stay(tmp_path, monkeypatch):
    store = _store(tmp_path)
    store._alive_file("killed").touch()

    def refuse(self, missing_ok=False):
        raise PermissionError("another process uses the file")  # as on Windows

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "unlink", refuse)
        assert not store._is_alive("killed")
        store.close()


def test_repeated_ctrl_c_loses_no_trials(tmp_path):
    store = _store(tmp_path)
    for _ in range(9):
        trial = store.claim(SPACE, 2)
        store.requeue(trial.number, killed=False)
    last = store.claim(SPACE, 2)
    assert last.params == trial.params
    assert [is_done(t) for t in store.trials] == [False] * 10


def test_a_trial_score_includes_the_gain_of_the_decision_rule(tiny, tmp_path, monkeypatch):
    from bertsmith.evaluation.decision import TunedOffsets

    plain = tune(tiny, tmp_path / "off", trials=1, epochs=1, decision_rule="off")
    rule = TunedOffsets(np.zeros(3), True, 0.25, 0.01)
    monkeypatch.setattr("bertsmith.evaluation.decision.tune_offsets", lambda *args, **settings: rule)
    ruled = tune(tiny, tmp_path / "auto", trials=1, epochs=1)
    assert ruled.result["score"] == pytest.approx(plain.result["score"] + 0.25)
    assert ruled.info["trials"][0]["curve"] == plain.info["trials"][0]["curve"]


def test_a_multi_label_trial_counts_the_gain_of_the_thresholds_once(tiny):
    rows = tiny_table(120)
    second = tiny_table(120, seed=1).sample(frac=1, random_state=0, ignore_index=True)
    texts = rows["Text"] + " " + second["Text"]
    names = [";".join(sorted({*pair})) for pair in zip(rows["Label Text"], second["Label Text"], strict=True)]
    table = bs.read_table(pd.DataFrame({"Text": texts, "Labels": names}), task="multi-label")
    data = TrialData(table.take(np.arange(60)), table.take(np.arange(60, 120)))
    config = Config(model=str(tiny), **{**QUICK, "epochs": 1})
    result = trying.run_trial(data, config, on_score=lambda epoch, score: None, stop=lambda: False)
    task, test = data.task, data.validation
    scores = Classifier(result.loaded, test.labels, task).predict_proba(texts_of(test.frame))
    rule, _ = task.fit_rule(test.targets, scores, seed=config.seed)
    assert rule.used
    assert result.score == pytest.approx(task.scalar_metrics(test.targets, scores)["macro_f1"] + rule.gain)


def test_a_stopped_search_does_not_wait_for_an_unavailable_storage(tmp_path):
    def unavailable():
        raise OperationalError("SELECT 1", {}, Exception("server closed the connection"))

    store = _store(tmp_path, stop=lambda: True)
    assert store.retry(lambda: 3) == 3
    with pytest.raises(Interrupted):
        store.retry(unavailable)


def test_the_end_of_a_search_does_not_wait_again_for_an_unavailable_storage(tmp_path, monkeypatch):
    def unavailable():
        raise OperationalError("SELECT 1", {}, Exception("server closed the connection"))

    def time_of_failure():
        start = sum(slept)
        with pytest.raises(OutputError):
            store.retry(unavailable)
        return sum(slept) - start

    store, slept = _store(tmp_path), []
    monkeypatch.setattr(stores, "time", types.SimpleNamespace(monotonic=lambda: sum(slept), sleep=slept.append))
    assert time_of_failure() > stores.RETRY_SECONDS
    assert time_of_failure() == 0
    assert store.trials == []
    assert time_of_failure() > stores.RETRY_SECONDS


@pytest.mark.parametrize("terminates", [False, True])  # at once, as on Windows
def test_workers_that_do_not_end_are_killed(terminates, tmp_path, monkeypatch):
    class Busy:
        exitcode, pid = None, os.getpid()

        def __init__(self, **_):
            self.calls = []
            workers.append(self)

        def __getattr__(self, name):
            return lambda *given: self.calls.append(name)

        def is_alive(self):
            return not (terminates and "terminate" in self.calls)

    workers, emptied = [], []
    monkeypatch.setattr("multiprocessing.get_context", lambda method: types.SimpleNamespace(Process=Busy))
    monkeypatch.setattr(trial_workers, "POLL_SECONDS", 0)
    monkeypatch.setattr(trial_workers, "empty_device_cache", lambda: emptied.extend(w.calls.copy() for w in workers))
    search = types.SimpleNamespace(study_config=types.SimpleNamespace(jobs=2, cv=None))
    store = _store(tmp_path)
    store.claim(SPACE, 1)
    with pytest.raises(Interrupted):
        trial_workers.run_workers(store, search, lambda event: None, lambda: True)
    assert [t.state for t in store.trials] == [TrialState.FAIL, TrialState.WAITING]
    assert store.trials[1].user_attrs["retry"] == 0  # the worker did not crash
    killed = [] if terminates else ["kill", "join"]
    assert [worker.calls for worker in workers] == [["start", "terminate", "join", *killed]] * 2
    assert emptied == [[], []]  # before the workers start


def test_a_finished_trial_does_not_wait_for_other_workers(tmp_path, monkeypatch):
    """Without heartbeats, another machine would repeat it."""
    result = trying.TrialResult(0.5, [(1.0, 0.5)], None, None)
    monkeypatch.setattr(trial_workers, "run_trial", lambda *_, **__: result)
    store = _store(tmp_path)
    trial, store.lock = store.claim(SPACE, None), None  # another worker has the lock
    study_config = types.SimpleNamespace(objectives=("macro_f1",), cv=None)
    search = types.SimpleNamespace(data=None, study_config=study_config, trial_config=lambda values: None)
    found = trial_workers._run_claimed(store, trial, search, lambda event: None, lambda: False)
    assert found == ("complete", (0.5,), "")
    assert [(t.value, t.user_attrs["curve"]) for t in store.trials] == [(0.5, [[1.0, 0.5]])]


def test_scores_before_a_rollback_do_not_prune_the_repeated_attempt(tmp_path, monkeypatch):
    class Pruner(optuna.pruners.BasePruner):
        def prune(self, study, trial):
            asked.append(trial.intermediate_values.copy())
            return False

    def roll_back(*_, on_score, **__):
        for at, score in ((0.5, 0.7), (1.0, 0.9), (0.5, 0.1), (1.0, 0.2)):
            on_score(at, score)
        return trying.TrialResult(0.5, [], None, None)

    asked = []
    monkeypatch.setattr(trial_workers, "run_trial", roll_back)
    store = _store(tmp_path, pruner=Pruner())
    study_config = types.SimpleNamespace(objectives=("macro_f1",), cv=None)
    search = types.SimpleNamespace(data=None, study_config=study_config, trial_config=lambda values: None)
    trial_workers._run_claimed(store, store.claim(SPACE, None), search, lambda event: None, lambda: False)
    assert asked == [{6: 0.7}, {6: 0.7, 12: 0.9}, {6: 0.1}, {6: 0.1, 12: 0.2}]
    assert [trial.intermediate_values for trial in store.trials] == [asked[-1]]


@pytest.mark.parametrize("content", [b"no JSON\n{}\n", b"{}\n", b"\xff\n{}\n"])
def test_a_damaged_journal_is_reported(content, tmp_path):
    (tmp_path / "journal.log").write_bytes(content)
    study_config = types.SimpleNamespace(objectives=("macro_f1",), cv=None, storage=None)
    search = types.SimpleNamespace(folder=tmp_path, name="s", study_config=study_config, config=Config())
    with pytest.raises(RunFolderError) as caught:
        trial_workers.open_store(search, lambda event: None, lambda: False)
    assert caught.value.where == str(tmp_path / "journal.log")


def test_a_study_of_an_older_version_can_be_overwritten(tmp_path):
    study = bs.Study(str(tmp_path))
    study.file.write_text('{"searched": {"settings": {"db": "mysql://me:secret@host/db", "seed": 1}}}')
    assert study.info == {"searched": {"settings": {"seed": 1}}}
    (tmp_path / "best_trial").mkdir()
    (tmp_path / "journal.log.lock").touch()
    for name in ("best/evaluations", "defaults/evaluations", "notes"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        study.check(overwrite=True)
        (tmp_path / name).mkdir()
        with pytest.raises(RunFolderError):
            study.check(overwrite=True)
        (tmp_path / name).rmdir()


def test_a_study_that_another_process_opened_meanwhile_is_not_overwritten(tmp_path):
    study = bs.Study(tmp_path)
    begin_or_resume(study, {}, fingerprints=(), overwrite=False)
    study.check(overwrite=True)
    other = _store(tmp_path)
    with pytest.raises(RunFolderError):
        begin_or_resume(study, {}, fingerprints=(), overwrite=True)
    assert (tmp_path / "journal.log").is_file()
    other.close()
    begin_or_resume(study, {}, fingerprints=(), overwrite=True)
    assert not (tmp_path / "journal.log").exists()


@pytest.mark.parametrize(
    ("result", "expected"), [({"is_default": True}, "best"), ({"is_default": False}, "defaults"), (None, "defaults")]
)
def test_the_defaults_are_the_best_run_if_they_win(result, expected, tmp_path):
    study = bs.Study(tmp_path)
    study.file.write_text(json.dumps({"result": result}))
    assert study.defaults.path == tmp_path / expected


def test_a_study_is_resumed_with_a_fingerprint_of_its_table(tmp_path):
    study, settings = bs.Study(tmp_path), Config().dump()
    searched = {"settings": settings, "objectives": [], "cv": None, "space": {}, "data": "older"}
    begin_or_resume(study, searched, fingerprints=("older",), overwrite=False)
    begin_or_resume(study, {**searched, "data": "new"}, fingerprints=("new", "older"), overwrite=False)
    with pytest.raises(RunFolderError):
        begin_or_resume(study, {**searched, "data": "new"}, fingerprints=("new", "other"), overwrite=False)


def test_a_study_whose_settings_file_older_versions_ignored_says_how_to_resume(tmp_path):
    study, settings = bs.Study(tmp_path), Config().dump()
    searched = {"settings": settings, "objectives": [], "cv": None, "space": {}, "data": "x"}
    begin_or_resume(study, searched, fingerprints=("x",), overwrite=False)
    for changes, advised in (({"cv": 3, "effort": "quick"}, True), ({"epochs": 3}, False)):
        with pytest.raises(RunFolderError) as caught:
            changed = {**searched, "settings": {**settings, **changes}}
            begin_or_resume(study, changed, fingerprints=("x",), overwrite=False)
        assert ("cv, effort" in caught.value.remedy) == advised


def test_an_interrupted_overwrite_leaves_a_study(tmp_path, monkeypatch):
    def interrupt(folder):
        raise KeyboardInterrupt

    (tmp_path / "best").mkdir()
    study = bs.Study(tmp_path)
    begin_or_resume(study, {}, fingerprints=(), overwrite=False)
    monkeypatch.setattr(shutil, "rmtree", interrupt)
    with pytest.raises(KeyboardInterrupt):
        begin_or_resume(study, {}, fingerprints=(), overwrite=True)
    assert study.file.is_file()


def test_the_curve_of_a_trial_leaves_out_the_attempt_before_a_rollback(monkeypatch):
    def diverge_once(training, *_, **__):
        for epoch, score in ((1, 0.1), (2, 0.2), (None, 0), (1, 0.3), (2, 0.4)):
            training.on_scores(np.eye(3))
            evaluated = {"epoch": epoch, "metrics": {"macro_f1": score}, "best": True}
            training.emit(
                Evaluated(**dict.fromkeys(field.name for field in dataclasses.fields(Evaluated)) | evaluated)
                if epoch
                else RolledBack(3, 0, "", 1e-5)
            )

    monkeypatch.setattr(trying, "fine_tune", diverge_once)
    texts = types.SimpleNamespace(labels=np.arange(3))
    parts = types.SimpleNamespace(device=torch.device("cpu")), texts, texts
    data = types.SimpleNamespace(folds=None, task=get_task("single-label"), prepare=lambda config, fold: parts)
    data.labels_for = lambda config: training_labels.TrainingLabels()
    config = Config(decision_rule="off")
    result = trying.run_trial(data, config, on_score=lambda at, score: None, stop=lambda: False, recipe=RECIPE)
    assert result.curve == [(1, 0.3), (2, 0.4)]


def test_a_journal_needs_no_symbolic_links(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("symbolic links need administrator rights")

    monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.setattr(stores, "RETRY_SECONDS", 0.0)
    store = _store(tmp_path)
    store.study.tell(store.claim(SPACE, None), 0.5)
    assert [trial.value for trial in store.study.trials] == [0.5]
    store.close()


def test_a_truncated_journal_loses_only_its_last_line(tmp_path):
    store = _store(tmp_path)
    for value in (0.1, 0.2):
        store.study.tell(store.claim(SPACE, None), value)
    store.close()
    journal = tmp_path / "journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "wor')
    again = _store(tmp_path)
    assert journal.read_bytes().startswith(whole)
    assert [t.value for t in again.trials] == [0.1, 0.2]
    again.study.tell(again.claim(SPACE, None), 0.3)
    assert [t.value for t in _store(tmp_path).trials] == [0.1, 0.2, 0.3]


def test_a_temporarily_unavailable_storage_loses_no_trials(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "time", WITHOUT_SLEEP)
    away, events = {"tell": 2, "report": 3, "ask": 1, "importance": 1, "best": 1}, []

    def failing(name, action):
        def attempt(*arguments, **named):
            if away[name]:
                away[name] -= 1
                raise OperationalError("SELECT 1", {}, Exception("server closed the connection"))
            return action(*arguments, **named)

        return attempt

    monkeypatch.setattr(optuna.Study, "tell", failing("tell", optuna.Study.tell))
    monkeypatch.setattr(optuna.Study, "ask", failing("ask", optuna.Study.ask))
    monkeypatch.setattr(optuna.Trial, "report", failing("report", optuna.Trial.report))
    # The study reads this after training the winner, when a database may have been unavailable for hours.
    importances = optuna.importance.get_param_importances
    monkeypatch.setattr(optuna.importance, "get_param_importances", failing("importance", importances))
    monkeypatch.setattr(optuna.Study, "best_trials", property(failing("best", optuna.Study.best_trials.fget)))
    study = tune(tiny, tmp_path / "s", trials=2, storage=f"sqlite:///{tmp_path / 'study.db'}", on_event=events.append)
    assert away == {"tell": 0, "report": 0, "ask": 0, "importance": 0, "best": 1}
    assert sum(type(e).__name__ == "StorageUnavailable" for e in events) == 7
    assert "server closed the connection" in next(e.why for e in events if type(e).__name__ == "StorageUnavailable")
    assert list(study.trials["state"]) == ["complete", "complete"]

    study = tune(
        tiny,
        tmp_path / "front",
        trials=1,
        objectives=("macro_f1", "latency"),
        storage=f"sqlite:///{tmp_path / 'front.db'}",
    )
    assert not away["best"]
    assert study.info["result"]["front"] == [0]


def test_a_storage_that_fails_after_the_commit(tmp_path, monkeypatch):
    def failing_once(action):
        left = [1]

        def unanswered(*arguments, **named):
            action(*arguments, **named)
            if left:
                left.pop()
                raise OperationalError("COMMIT", {}, Exception("server closed the connection"))

        return unanswered

    monkeypatch.setattr(stores, "time", WITHOUT_SLEEP)
    store = _store(tmp_path, url=f"sqlite:///{tmp_path / 'study.db'}")
    trial = store.claim(SPACE, None)
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "tell", failing_once(optuna.Study.tell))
        store.tell(trial, TrialState.COMPLETE, [0.5])
    stopped = store.claim(SPACE, None)
    with monkeypatch.context() as patch:
        patch.setattr(store.storage, "set_trial_state_values", failing_once(store.storage.set_trial_state_values))
        store.requeue(stopped.number, killed=False)
    store.requeue(stopped.number, killed=False)  # as another worker would
    assert [t.value for t in store.trials] == [0.5, None, None]
    assert [t.state for t in store.trials] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.WAITING]
    assert store.claim(SPACE, None).params == stopped.params


def test_a_trial_that_another_worker_ended_is_not_reported(tmp_path, monkeypatch):
    store = _store(tmp_path, url=f"sqlite:///{tmp_path / 'study.db'}")
    trial = store.claim(SPACE, None)
    store.study.tell(trial.number, state=TrialState.FAIL)  # by another worker, after a long silence
    with pytest.raises(stores.TakenOverError):
        store.tell(trial, TrialState.COMPLETE, [0.5])
    with pytest.raises(stores.TakenOverError):
        store.fail(trial.number, "it went wrong")
    set_attributes = stores.Store.set_attributes
    left = [1]

    def silent(self, trial, **attributes):
        if left:
            left.pop()
            self.study.tell(trial.number, state=TrialState.FAIL)
        set_attributes(self, trial, **attributes)

    monkeypatch.setattr(stores.Store, "set_attributes", silent)
    assert store.claim(SPACE, None).number == 2
    assert left == []


def test_an_unavailable_database_is_reported_without_its_password(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "RETRY_SECONDS", 0.0)
    with pytest.raises(ConfigError) as caught:
        _store(tmp_path, url="postgresql+psycopg://me:secret@127.0.0.1:1/none")
    assert "me:***@127.0.0.1:1/none" in caught.value.where
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="storage"):
        _store(tmp_path, url="nonsense")


def test_a_failed_trial_is_reported_and_the_study_continues(tiny, tmp_path, monkeypatch):
    run_trial, seen = trying.run_trial, []

    def sometimes(data, config, **rest):
        seen.append(config)
        if len(seen) == 2:
            raise DeviceError("memory is too small even for one text")
        return run_trial(data, config, **rest)

    monkeypatch.setattr("bertsmith.workflows.trial_workers.run_trial", sometimes)
    study = tune(tiny, tmp_path / "s", trials=3, epochs=1)
    assert list(study.trials["state"]) == ["complete", "failed", "complete"]
    assert study.trials["why"][1] == "memory is too small even for one text"
    assert study.result["trials"] == {"complete": 2, "pruned": 0, "failed": 1}


@pytest.mark.parametrize(("error", "attempts"), [(torch.OutOfMemoryError, 1), (ZeroDivisionError, 3)])
def test_a_trial_that_crashes_ends_as_failed(error, attempts, tmp_path, monkeypatch):
    def crash(*_, **__):
        raise error("for example in a driver")

    monkeypatch.setattr(trial_workers, "run_trial", crash)
    store = _store(tmp_path)
    study_config = types.SimpleNamespace(objectives=("macro_f1",), cv=None, trials=1)
    made_up = {"data": None, "study_config": study_config, "trial_config": lambda values: None, "is_over": False}
    search = types.SimpleNamespace(space=SPACE, **made_up)
    for _ in range(attempts):
        expected = nullcontext() if attempts == 1 else pytest.raises(error)
        with expected:
            trial_workers.run_trials(store, search, lambda event: None, lambda: False)
    assert [is_done(t) for t in store.trials] == [False] * (attempts - 1) + [True]
    assert len({t.params["learning_rate"] for t in store.trials}) == 1
    assert store.claim(SPACE, 1) is None


def test_a_study_whose_trials_all_fail_reports_the_reason(tiny, tmp_path, monkeypatch):
    def never(*_, **__):
        raise DeviceError("memory is too small even for one text")

    monkeypatch.setattr("bertsmith.workflows.trial_workers.run_trial", never)
    with pytest.raises(DeviceError, match="memory is too small"):
        tune(tiny, tmp_path / "s", trials=9)
    assert len(bs.Study(tmp_path / "s").trials) == 3


def test_a_poor_trial_is_pruned(tiny, tmp_path, monkeypatch):
    number = iter(range(100))

    def made_up(data, config, *, on_score, stop, measure_latency):
        good = next(number) < 5
        for epoch in (0.5, 1.0, 1.5, 2.0):
            on_score(epoch, (0.5 if good else 0.1) + epoch / 100)
        return trying.TrialResult(0.5, [(2.0, 0.5)], None, None)

    monkeypatch.setattr("bertsmith.workflows.trial_workers.run_trial", made_up)
    study = tune(tiny, tmp_path / "s", trials=7)
    assert list(study.trials["state"]) == ["complete"] * 5 + ["pruned"] * 2
    assert all(len(curve) == 1 for curve in [t["curve"] for t in study.info["trials"]][5:])


def test_the_time_ends_a_search(tiny, tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("bertsmith.workflows.trial_workers.time.time", lambda: now[0])

    def tick(event):
        if type(event).__name__ == "TrialEnded":
            now[0] += 40

    study = tune(tiny, tmp_path / "s", trials=None, minutes=1, epochs=1, on_event=tick)
    assert len(study.trials) == 2


def test_a_trial_interrupted_by_the_time_limit_is_repeated(tiny, tmp_path, monkeypatch):
    now, events = [1000.0], []
    monkeypatch.setattr("bertsmith.workflows.trial_workers.time.time", lambda: now[0])

    def tick(event):
        events.append(event)
        if type(event).__name__ == "TrialScored" and event.number == cut:
            now[0] += 120

    cut = 0
    with pytest.raises(ConfigError, match="complete"):
        tune(tiny, tmp_path / "s", trials=2, minutes=1, on_event=tick)
    cut = 2
    study = tune(tiny, tmp_path / "s", trials=2, minutes=1, on_event=tick)
    assert list(study.trials["number"]) == [1]
    study = tune(tiny, tmp_path / "s", trials=2, minutes=1, on_event=events.append)
    assert list(study.trials["number"]) == [1, 3]
    settings = {e.number: e.settings for e in events if type(e).__name__ == "TrialStarted"}
    assert settings[0] == settings[1]  # the defaults
    assert settings[2] == settings[3]
    ends = {e.number: e.state for e in events if type(e).__name__ == "TrialEnded"}
    assert ends == {0: "cut short", 1: "complete", 2: "cut short", 3: "complete"}


def test_final_seeds_are_reported_and_compared(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("bertsmith.workflows.study_result.rank_key", lambda trial: trial.number)  # not the defaults
    assert "seeds" not in tune(tiny, tmp_path / "s", trials=2, epochs=1).result
    study = tune(tiny, tmp_path / "s", trials=2, epochs=1, final_seeds=2)  # asked for when the search is over
    result = study.result
    means = []
    for run, found in ((study.best, result), (study.defaults, result["defaults"])):
        scores = [m.metrics["splits"]["test"]["metrics"]["macro_f1"]["value"] for m in run.members]
        assert found["seeds"]["n"] == len(scores) == 2
        assert found["seeds"]["mean"] == pytest.approx(np.mean(scores))
        means.append(np.mean(scores))
    assert result["difference"]["value"] == pytest.approx(means[0] - means[1])
    low, high = result["difference"]["interval"] or [result["difference"]["value"]] * 2  # none without variation
    assert low <= result["difference"]["value"] <= high
    assert "2 seeds" in result["verdict"]
    is_folded = "by" in study.best.metrics["splits"]["validation"]
    assert result["seeds"]["held_out"] == ("cross-validated texts" if is_folded else "validation texts")
    assert result["told"] == 2
    assert "2 test results" in study.report.read_text()
    assert "Over 2 seeds" in study.report.read_text()


# -- other ways to score -------------------------------------------------------------------------------------------


def test_cross_validation_uses_every_text_once_and_keeps_groups_together(tiny, tmp_path, monkeypatch):
    table = tiny_table(150)
    table["Author"] = np.arange(150) // 3
    seen = []
    run_trial = trying.run_trial
    monkeypatch.setattr(
        "bertsmith.workflows.trial_workers.run_trial",
        lambda data, *a, **k: (seen.append(data), run_trial(data, *a, **k))[1],
    )
    study = tune(tiny, tmp_path / "s", trials=1, cv=3, table=table, group_column="Author", epochs=1)
    folds = seen[0].folds
    assert len(folds) == len(seen[0].train) + len(seen[0].validation)
    assert set(folds) == {0, 1, 2}
    authors = np.concatenate([p.frame["group"] for p in (seen[0].train, seen[0].validation)])
    assert all(len(set(folds[authors == a])) == 1 for a in set(authors))
    curve = study.info["trials"][0]["curve"]
    assert [at for at, _ in curve] == [1, 2, 3]
    assert study.result["score"] == pytest.approx(np.mean([value for _, value in curve]))
    assert study.result["is_default"]
    assert "cross-validation" in study.result["verdict"]


@pytest.fixture
def trial_data():
    table = bs.read_table(tiny_table(30).assign(Text=lambda table: 20 * (table["Text"] + " ")))
    return TrialData(table.take(np.arange(20)), table.take(np.arange(20, 30)))


def test_trials_train_on_the_labels_of_the_final_runs(tiny, tmp_path, monkeypatch):
    found = training_labels.LabelNoise(True, 2, (0.5, 0.6), (0.5, 0.6), 0.01, 0.1, 0.01)
    monkeypatch.setattr(training_labels, "MIN_TEXTS", 50)
    monkeypatch.setattr(training_labels, "find_suspects", lambda *_: pd.DataFrame({"position": [0, 5]}))
    for compare in (lambda *_: found, None):  # the study keeps its choice
        monkeypatch.setattr(training_labels, "compare_without_suspects", compare)
        kept = _search(tiny, tmp_path / "s", monkeypatch).data.labels.kept
        assert np.flatnonzero(~kept).tolist() == [0, 5]
        assert bs.Study(tmp_path / "s").info["label_noise"]["suspects"] == 2
    assert _search(tiny, tmp_path / "cv", monkeypatch, cv=3).data.labels == (None, None)


def test_too_little_memory_for_the_choice_of_labels_is_an_error(tiny, tmp_path, monkeypatch):
    def embed(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("bertsmith.workflows.tune.choose_training_labels", embed)
    with pytest.raises(DeviceError):
        tune(tiny, tmp_path / "s")


@pytest.mark.parametrize("label_noise", ["auto", "off"])
def test_a_trial_leaves_texts_out(label_noise, tiny, trial_data, monkeypatch):
    def with_labels(*given):
        trained.append(prepare.with_labels(*given))
        raise Interrupted("stopped")

    trained, kept, soft = [], np.arange(20) % 4 > 0, np.eye(3)[np.zeros(15, dtype=int)]
    expected = kept if label_noise == "auto" else kept >= 0
    monkeypatch.setattr(trying, "with_labels", with_labels)
    trial_data.labels = training_labels.TrainingLabels(soft, kept)
    config = Config(model=str(tiny), device="cpu", label_noise=label_noise)
    with pytest.raises(Interrupted):
        trying.run_trial(trial_data, config, on_score=lambda at, score: None, stop=lambda: False)
    assert np.array_equal(trained[0].labels, trial_data.train.targets[expected])
    assert trained[0].soft_labels is soft
    data = TrialData(range(80), range(20), labels=training_labels.TrainingLabels(kept=np.arange(80) < 64))
    assert with_evaluation_steps(config, data, 8).set["eval_steps"] == {"auto": 4, "off": 5}[label_noise]


def test_a_trial_gets_the_tokens_that_an_earlier_one_truncates(tiny, trial_data):
    settings = {"model": str(tiny), "device": "cpu"}
    trial_data.prepare(Config(long="truncate", **settings))
    _, found, _ = trial_data.prepare(Config(long="head-tail", **settings))
    _, expected, _ = dataclasses.replace(trial_data, _tokens={}).prepare(Config(long="head-tail", **settings))
    assert np.array_equal(found.tokens.columns["input_ids"], expected.tokens.columns["input_ids"])


def test_the_labels_of_trials_depend_on_the_beginnings_of_texts(tiny, trial_data):
    features = []
    for long in ("truncate", "head-tail"):
        config = Config(model=str(tiny), device="cpu", max_length=8, long=long)
        loaded, train, _ = trial_data.prepare(config)
        assert max(train.lengths) == 8
        features.append(trial_data.embed(config, loaded).features["train"])
    assert len(features[0]) == len(trial_data.train)
    assert np.array_equal(*features)


def test_the_latency_of_a_trial_is_that_of_predictions(tiny, trial_data, monkeypatch):
    loaded, _, validation = trial_data.prepare(Config(model=str(tiny), device="cpu", long="truncate"))
    monkeypatch.setattr(loaded.model.base_model, "forward", None)  # predictions use another forward pass
    tokens = validation.tokens.truncate(32)
    assert trying._measure_latency(loaded, tokens, trial_data.train.labels, trial_data.task) > 0


def test_two_objectives_give_a_front(tiny, tmp_path):
    study = tune(tiny, tmp_path / "s", trials=3, epochs=1, objectives=("macro_f1", "latency"))
    values = {t["number"]: t["values"] for t in study.info["trials"]}
    assert all(ms > 0 for _, ms in values.values())
    for number in values:
        beaten = any(
            o[0] >= values[number][0] and o[1] <= values[number][1] and o != values[number] for o in values.values()
        )
        assert beaten != (number in study.result["front"])
    assert study.result["score"] == max(f1 for f1, _ in values.values())
    assert "What does speed cost?" in study.report.read_text()


def test_a_checkpoint_can_be_a_choice(tiny, tmp_path):
    from bertsmith.testing import tiny_model

    other = tiny_model(tmp_path / "other", "distilbert")
    settings = {**QUICK, "epochs": 1, "models": (str(tiny), str(other))}
    study = bs.tune(tiny_table(150), output=tmp_path / "s", trials=6, **settings)
    assert set(study.trials["model"]) == {str(tiny), str(other)}
    assert study.trials["model"][0] == str(tiny)


@pytest.mark.parametrize("by_space", [False, True])
def test_a_checkpoint_that_takes_fewer_tokens_has_its_own_maximum_length(by_space, tiny, tmp_path, monkeypatch):
    from bertsmith.testing import tiny_model

    monkeypatch.setattr("bertsmith.tuning.space.LONG_TEXTS", 8)
    names = [str(tiny), str(tiny_model(tmp_path / "short", max_position_embeddings=8))]
    assert "max_length" in _search(tiny, tmp_path / "one", monkeypatch).space
    given = {"space": {"model": names}} if by_space else {"models": names}
    space = _search(tiny, tmp_path / "s", monkeypatch, **given).space
    assert "max_length" not in space
    assert space["model"] == Categorical(tuple(names))


@pytest.mark.parametrize("steps", range(1, 200))
def test_evaluation_steps_divide_the_epoch(steps):
    between = evaluation_steps(steps)
    if between is None:
        assert all(steps % parts for parts in (2, 3, 4))
    else:
        assert steps % between == 0
        assert 2 <= steps // between <= 4


@pytest.mark.parametrize(("validation", "expected"), [(20, {"eval_strategy": "steps", "eval_steps": 5}), (21, {})])
def test_many_validation_texts_are_evaluated_once_per_epoch(validation, expected):
    data = TrialData(range(80), range(validation))
    assert with_evaluation_steps(Config(model="m"), data, 8).set == expected
    accumulated = {"gradient_accumulation_steps": 2}
    assert with_evaluation_steps(Config(set=accumulated), data, 4).set == {**accumulated, **expected}


# -- the command ---------------------------------------------------------------------------------------------------


def test_progress_shows_the_start_of_a_study():
    console = Console(file=io.StringIO(), width=200)
    with TuningProgress(console) as progress:
        progress(StudyStarted(9, 4, 0.5, {}, (300, 250, 80, 0), unseen=("rare",), shared=("bertsmith-1f", 2)))
        progress(StorageUnavailable("sqlite: connection refused"))
        progress(StorageUnavailable("the same"))
        progress(TrialStarted(4, {"epochs": 1.0}))
    lines = console.file.getvalue().splitlines()
    expected = (["300", "250", "80"], ["'rare'"], ["bertsmith-1f", "2"], ["4 of 9", "0.500"], ["sqlite"], [])
    for line, values in zip(lines, expected, strict=True):  # one line for both events of the storage
        assert all(value in line for value in values)


def test_cross_validated_trials_get_no_advice_about_validation_texts():
    console = Console(file=io.StringIO(), width=200)
    with TuningProgress(console) as progress:
        progress(StudyStarted(9, 0, None, {}, (300, 40, 80, 0), unseen=("rare",), folds=7))
    (line,) = console.file.getvalue().splitlines()
    assert all(value in line for value in ("340", "7", "80"))


@pytest.mark.parametrize("score", [-1.4, -0.2, 0.0, 0.5, 1.0, float("nan"), float("-inf")])
def test_progress_shows_any_score(score):
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    with TuningProgress(console) as progress:
        progress(StudyStarted(3, 0, None, {}, (300, 250, 80, 0)))
        for number, state in enumerate(("complete", "cut short")):
            progress(TrialStarted(number, {"epochs": 1.0}))
            progress(TrialScored(number, 1.0, score))
            progress(TrialEnded(number, state, (score,) if state == "complete" else (), 1.0))
        progress(FinalStarted("the best settings"))
    assert "1 of 3" in console.file.getvalue()


def test_the_command_prints_the_result(cli, tiny, tmp_path):
    tiny_table(150).to_csv(tmp_path / "t.csv", index=False)
    flags = ("--model", tiny, "--trials", "2", "--epochs", "1", "--device", "cpu")
    code, out, err = cli("tune", tmp_path / "t.csv", "-o", tmp_path / "s", *flags)
    assert code == 0, err
    assert "trial 0 complete" in err
    assert "winner: trial" in out
    code, out, err = cli("tune", tmp_path / "t.csv", "-o", tmp_path / "s", *flags, "--json")
    assert code == 0
    assert "2 trials" in err
    assert "trial 0 " not in err
    assert json.loads(out)["trials"] == {"complete": 2, "pruned": 0, "failed": 0}
    code, _, err = cli("tune", tmp_path / "t.csv", "-o", tmp_path / "s", *flags, "--models", "a, a,")
    assert code == 2
    assert "models: " in err
    code, _, err = cli("tune", tmp_path / "t.csv", "-o", tmp_path / "s", *flags, "--models", ",")
    assert code == 2
    assert "--models" in err
    code, _, err = cli("tune", tmp_path / "none.csv", "-o", tmp_path / "n", *flags)
    assert code == 2
    assert "none.csv" in err
    assert not (tmp_path / "n").exists() or not any((tmp_path / "n").iterdir())


def test_creating_the_tables_is_retried(tmp_path, monkeypatch):
    url, real, tries = f"sqlite:///{tmp_path / 's.db'}", stores.RDBStorage, []

    def refused_once(*given, **how):
        tries.append(given)
        if len(tries) == 1:
            raise OperationalError("CREATE TABLE", {}, Exception("table alembic_version already exists"))
        return real(*given, **how)

    monkeypatch.setattr(stores, "RDBStorage", refused_once)
    monkeypatch.setattr(stores, "time", WITHOUT_SLEEP)
    stores._open_database(url).remove_session()
    assert len(tries) == 2
