"""Several seeds: spread of the scores, best model and ensemble."""

import json
import random
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score
from transformers import set_seed

import bertsmith as bs
from bertsmith.compute.device import kept_random_states
from bertsmith.config import Config
from bertsmith.errors import DataError, Interrupted, RunFolderError
from bertsmith.events import Prepared
from bertsmith.folders.run import Run
from bertsmith.report.methods import write_methods
from bertsmith.testing import tiny_table
from bertsmith.tuning.config import StudyConfig
from bertsmith.workflows import fit_in_memory, tune
from bertsmith.workflows import seeds as workflow
from bertsmith.workflows.seeds import _compare
from tests.conftest import FAST, same_weights, train, weights_of


@pytest.fixture(scope="module")
def seeds(tmp_path_factory, tiny):
    return train(tiny, tmp_path_factory.mktemp("seeds") / "run", seeds=3, seed=7, epochs=2)


def test_every_seed_is_a_run_on_the_same_split(seeds):
    assert [member.path.name for member in seeds.members] == ["7", "8", "9"]
    assert len({member.info["data"]["fingerprint"] for member in seeds.members}) == 1
    weights = [weights_of(member) for member in seeds.members]
    assert not same_weights(weights[0], weights[1])
    assert seeds.info["status"] == "finished"
    assert seeds.info["config"]["seeds"] == 3


def test_the_run_is_the_best_seed_on_validation(seeds):
    scores = [m.metrics["splits"]["validation"]["metrics"]["macro_f1"]["value"] for m in seeds.members]
    best = seeds.members[int(np.argmax(scores))]
    assert seeds.metrics["seeds"]["best"] == int(best.path.name) == seeds.info["best_seed"]
    assert same_weights(weights_of(seeds), weights_of(best))
    assert seeds.metrics["splits"] == best.metrics["splits"]
    assert seeds.predictions.equals(best.predictions)
    texts = tiny_table(20, seed=3)["Text"].tolist()
    assert bs.load(seeds, device="cpu").predict(texts) == bs.load(best, device="cpu").predict(texts)


def test_spread_and_ensemble_are_computed_from_the_members(seeds, tokenized):
    summary = seeds.metrics["seeds"]
    scores = [m.metrics["splits"]["test"]["metrics"]["macro_f1"]["value"] for m in seeds.members]
    assert [e["test"]["macro_f1"] for e in summary["each"]] == scores
    assert summary["test"]["macro_f1"]["mean"] == pytest.approx(np.mean(scores))
    assert summary["test"]["macro_f1"]["standard_deviation"] == pytest.approx(np.std(scores, ddof=1))
    frame = seeds.predictions
    mean = np.mean([np.stack(m.predictions["probabilities"].to_list()) for m in seeds.members], axis=0)
    targets = frame["label"].to_numpy()
    assert summary["ensemble"]["metrics"]["macro_f1"]["value"] == pytest.approx(
        f1_score(targets, mean.argmax(axis=1), average="macro")
    )
    ensemble = bs.load(seeds, device="cpu", ensemble=True).predict_proba(frame["text"].tolist())
    assert tokenized == frame["text"].tolist()  # tokenized once for all members
    assert ensemble == pytest.approx(mean, abs=1e-5)


def test_one_seed_with_a_defined_metric_has_no_deviation(seeds, tmp_path):
    members = Run(shutil.copytree(seeds.path, tmp_path / "run")).members
    for member in members[1:]:
        metrics = member.metrics
        metrics["splits"]["test"]["metrics"]["macro_f1"] = {"value": None, "interval": None}
        member.layout.metrics.write_text(json.dumps(metrics))
    spread = _compare(members, members[0], 0)["test"]
    assert spread["macro_f1"]["mean"] == members[0].metrics["splits"]["test"]["metrics"]["macro_f1"]["value"]
    assert spread["macro_f1"]["standard_deviation"] is None
    assert spread["accuracy"]["standard_deviation"] is not None


def test_comparison_and_card_agree_with_the_run(seeds):
    own = {name: m["interval"] for name, m in seeds.metrics["splits"]["test"]["metrics"].items()}
    other = next(m for m in seeds.members if int(m.path.name) != seeds.info["best_seed"])
    for entry in (bs.compare(seeds, other)[0], bs.compare(other, seeds)[1]):
        for name in ("macro_f1", "accuracy"):
            assert entry["metrics"][name]["interval"] == own[name]
    card = (seeds.path / "model" / "README.md").read_text()
    assert f"seed: {seeds.info['best_seed']}\n" in card
    assert (str(seeds.info["best_seed"]), "run.json: best_seed") in write_methods(seeds).sources
    assert f"{seeds.metrics['seeds']['test']['macro_f1']['mean']:.3f} on average" in card
    assert seeds.metrics["splits"]["test"]["interval"]["method"] in card


def test_predict_averages_the_models_of_all_seeds(cli, seeds, tmp_path):
    texts = tiny_table(12, seed=5)["Text"]
    pd.DataFrame({"Text": texts}).to_csv(tmp_path / "t.csv", index=False)
    flags = ("--ensemble", "--json", "--device", "cpu", "--min-confidence", "0")
    code, out, _ = cli("predict", seeds.path, tmp_path / "t.csv", *flags)
    assert code == 0
    expected = bs.load(seeds, device="cpu", ensemble=True).predict_proba(texts.tolist()).max(axis=1)
    assert [json.loads(line)["confidence"] for line in out.splitlines()] == pytest.approx(expected.tolist(), abs=1e-6)
    code, _, err = cli("predict", seeds.members[0].path, tmp_path / "t.csv", "--ensemble")
    assert code == 2
    assert "--seeds" in err


def test_seeds_with_different_splits_are_refused(tmp_path, monkeypatch):
    def train_into(output, table, config, *, observe, **arguments):
        output.mkdir(parents=True)
        run = Run(output)
        run.update(status="running")
        pd.DataFrame({"row": [1, 2], "split": ["train", f"test {config.seed}"]}).to_parquet(run.layout.splits)
        observe(object.__new__(Prepared))

    monkeypatch.setattr("bertsmith.workflows.seeds.train_into", train_into)
    with pytest.raises(RunFolderError, match="splits"):
        bs.train(tiny_table(40), output=tmp_path / "run", model="tiny", seeds=2)


def test_an_interrupted_run_resumes_to_the_same_result(seeds, tiny, tmp_path):
    settings = {"seeds": 3, "seed": 7, "epochs": 2}
    seen = []

    def stop():  # during the second seed
        names = [type(event).__name__ for event in seen]
        return names.count("SeedStarted") == 2 and names[-1] == "StepDone"

    with pytest.raises(Interrupted):
        train(tiny, tmp_path / "run", resume=True, on_event=seen.append, stop=stop, **settings)  # begins
    run = bs.Run(tmp_path / "run")
    assert run.info["status"] == "interrupted"
    assert next(m.info["status"] for m in run.members) == "finished"
    (run.layout.seeds / ".8.left.part").mkdir()  # left by a killed process
    with pytest.raises(RunFolderError, match="resume"):
        train(tiny, tmp_path / "run", **settings)
    with pytest.raises(RunFolderError, match=r"epochs .*2\.0.*3\.0"):
        train(tiny, tmp_path / "run", resume=True, **{**settings, "epochs": 3})
    again = train(tiny, tmp_path / "run", resume=True, **settings)
    assert same_weights(weights_of(again), weights_of(seeds))
    assert again.metrics == seeds.metrics


def test_an_invalid_table_replaces_no_files(seeds, tiny):
    with pytest.raises(DataError):
        train(tiny, seeds.path, table=tiny_table(2), seeds=2, overwrite=True)
    assert bs.Run(seeds.path).info["status"] == "finished"
    assert len(seeds.members) == 3


def test_overwrite_trains_every_seed_again(seeds, tmp_path, monkeypatch):
    folder, trained = tmp_path / "run", []
    shutil.copytree(seeds.path, folder)

    def train_into(path, *args, before_writing, **settings):
        before_writing()
        trained.append(path.name)

    monkeypatch.setattr("bertsmith.workflows.seeds.train_into", train_into)
    monkeypatch.setattr("bertsmith.workflows.seeds._finish", lambda run, config: None)
    bs.train(tiny_table(), output=folder, seeds=4, seed=7, overwrite=True)
    assert trained == ["7", "8", "9", "10"]
    assert bs.Run(folder).members == []  # those of the old run are gone


def test_r2_may_be_undefined(cli, tiny, tmp_path):
    table = tiny_table(60)[["Text"]].assign(
        number=np.arange(60) % 7, split=["train"] * 40 + ["validation", "test"] * 10
    )
    table.loc[40:, "number"] = 3
    table.to_csv(tmp_path / "t.csv", index=False)
    settings = {**FAST, "epochs": 1, "seeds": 2, "model": tiny, "task": "regression", "label_column": "number"}
    flags = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]
    code, _, err = cli("train", tmp_path / "t.csv", "-o", tmp_path / "run", "--split-column", "split", *flags)
    assert code == 0, err
    summary = bs.Run(tmp_path / "run").metrics["seeds"]
    assert summary["test"]["r2"] == {"mean": None, "standard_deviation": None}
    assert summary["test"]["mae"]["mean"] > 0
    assert [entry["validation"]["r2"] for entry in summary["each"]] == [None, None]
    members = [tmp_path / "run" / "seeds" / seed for seed in ("42", "43")]
    assert cli("compare", *members)[0] == 0
    assert {place for _, place in write_methods(bs.Run(members[0])).sources} >= {
        "metrics.json: splits.test.metrics.mae.value"
    }


HOW = {"overwrite": False, "observe": print, "stop": lambda: False}


@pytest.mark.parametrize(
    ("first_step", "train"),
    [
        ((fit_in_memory, "check_effort"), lambda: fit_in_memory.fit_in_memory(None, Config())),
        ((workflow, "check_effort"), lambda: workflow.run_seeds(None, Config(), Path("run"), resume=False, **HOW)),
        ((tune, "Study"), lambda: tune.run_tuning(None, Config(), Path("study"), StudyConfig(), **HOW)),
    ],
)
def test_training_keeps_the_random_states_of_the_caller(first_step, train, monkeypatch):
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    def reseed(_):
        set_seed(5)
        assert states() != before
        raise Interrupted

    monkeypatch.setattr(*first_step, reseed)
    before = states()
    with pytest.raises(Interrupted):
        train()
    assert states() == before


def test_training_keeps_the_random_states_of_gpus(monkeypatch):
    drawn = {"cuda": 0, "xpu": 0, "mps": 0}
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for name, all_devices in {"cuda": "_all", "xpu": "_all", "mps": ""}.items():
        module = getattr(torch, name)
        monkeypatch.setattr(module, "is_initialized", lambda: True, raising=False)
        monkeypatch.setattr(module, f"get_rng_state{all_devices}", partial(drawn.get, name))
        monkeypatch.setattr(module, f"set_rng_state{all_devices}", partial(drawn.__setitem__, name))
    with kept_random_states():
        drawn.update(cuda=1, xpu=2, mps=3)
    assert drawn == {"cuda": 0, "xpu": 0, "mps": 0}
