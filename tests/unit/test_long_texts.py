"""Texts above the maximum length: what training and prediction read of them, and the choice."""

import json
import random
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import bertsmith as bs
from bertsmith.config import Config
from bertsmith.data.read import read_table
from bertsmith.data.template import Template
from bertsmith.errors import RunFolderError
from bertsmith.inference.classifier import Classifier
from bertsmith.inference.explain import explain
from bertsmith.inference.export import MAX_DIFFERENCE
from bertsmith.inference.exported import ExportInfo
from bertsmith.model.tokens import Tokens
from bertsmith.tasks.registry import get_task
from bertsmith.testing import WORDS, tiny_model, tiny_table
from bertsmith.training.data import TokenDataset
from bertsmith.training.recipe import Recipe
from bertsmith.workflows import trials
from bertsmith.workflows.long_texts import BY_COST, candidates, choose_reading
from tests.conftest import train

NAMES = list(WORDS)[:3]
LONGS = ["truncate", "head-tail", "window"]
SETTINGS = {"max_length": 32, "near_duplicates": "ignore"}


def long_table(rows: int, *, words: int = 120, own: float = 0.2, other: float = 0.08, seed: int = 0) -> pd.DataFrame:
    """Texts whose label is the topic of most of their words; the beginning alone is often wrong."""
    rng, records = random.Random(seed), []
    for i in range(rows):
        label = i % 3
        shares = [own if topic == label else other for topic in range(3)]
        text = []
        for _ in range(rng.randint(words // 2, words)):
            (topic,) = rng.choices(range(4), weights=[*shares, 1 - sum(shares)])
            text.append(rng.choice(WORDS[NAMES[topic]] if topic < 3 else ["the", "a", "is", "was", "my", "very"]))
        records.append((label, NAMES[label], " ".join(text)))
    return pd.DataFrame(records, columns=["Label", "Label Text", "Text"])


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """A run for each way to read long texts."""
    folder = tmp_path_factory.mktemp("long")
    return {long: train(tiny, folder / long, table=long_table(150), long=long, **SETTINGS) for long in LONGS}


@pytest.fixture(scope="module")
def chosen(tiny, tmp_path_factory):
    """A run with the default setting, on texts for which windows gain much."""
    table = long_table(900, own=0.25)
    return train(tiny, tmp_path_factory.mktemp("auto") / "run", table=table, epochs=6, validation_size=0.3, **SETTINGS)


TEXTS = [*long_table(12, seed=9)["Text"], "my cat", "red and blue"]


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("long", ["auto", *LONGS])
def test_training_reads_beginnings_unless_told_to_read_the_ends(long):
    ids = [list(range(100, 200)), list(range(300, 320))]
    tokens = Tokens.from_lists({"input_ids": ids})
    dataset = TokenDataset.reading(tokens, np.array([1, 0]), 32, long)
    assert dataset.lengths.tolist() == [32, 20]
    batch = dataset.__getitems__([1, 0])["texts"]
    assert batch.labels.tolist() == [0, 1]
    assert batch.lengths.tolist() == [20, 32]
    read = tokens.head_tail(32) if long == "head-tail" else tokens.truncate(32)
    assert batch.tokens.columns["input_ids"].tolist() == [*ids[1], *read.columns["input_ids"][:32]]


@pytest.mark.slow
def test_validation_in_training_scores_what_prediction_does(runs):
    """Temperature and offsets scale and shift logits, so they do not change the order of thresholds: compare losses."""
    run = runs["head-tail"]
    classifier, table = bs.load(run.path, device="cpu"), run.validation_predictions
    rule = classifier.rule
    logits = classifier.text_logits(classifier.encode(table["text"].tolist()))
    raw = logits * rule.temperature - np.array(rule.offsets or 0.0)
    targets = torch.tensor([run.labels.numbers.index(label) for label in table["label"]])
    best = next(e for e in run.history if e["step"] == run.info["training"]["best_step"])
    assert float(torch.nn.functional.cross_entropy(torch.from_numpy(raw), targets)) == pytest.approx(
        best["validation_loss"], rel=1e-4
    )


# -- one setting in all commands ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("long", LONGS)
def test_every_command_reads_as_the_run_does(long, runs, cli, tmp_path):
    run = runs[long]
    saved = json.loads((run.layout.model / "config.json").read_text()).get("bertsmith", {}).get("long", "truncate")
    assert (run.info["long"], saved, run.metrics["long_texts"]["setting"]) == (long, long, long)
    classifier = bs.load(run.path, device="cpu")
    assert classifier.long == bs.load(run.layout.model, device="cpu").long == long
    expected = classifier.predict_proba(TEXTS)
    others = {name: bs.load(run.path, device="cpu", long=name).predict_proba(TEXTS) for name in LONGS}
    assert np.array_equal(others[long], expected)
    assert all(not np.allclose(others[name], expected, atol=1e-4) for name in LONGS if name != long)
    assert all(others[name][-2:] == pytest.approx(expected[-2:], abs=1e-5) for name in LONGS)  # they fit
    frame = pd.DataFrame({"Text": TEXTS})
    found = bs.predict(run.path, frame, device="cpu", probabilities=True)
    columns = [f"probability of {name}" for name in run.labels.texts]
    assert found.frame[columns].to_numpy() == pytest.approx(expected, abs=1e-5)
    assert found.cut == (0 if long == "window" else 12)
    other = next(name for name in LONGS if name != long)
    frame.to_csv(tmp_path / "t.csv", index=False)
    command = ("predict", run.path, tmp_path / "t.csv", "-o", tmp_path / "p.csv", "--probabilities", "--device", "cpu")
    assert cli(*command, "--long", other)[0] == 0
    assert pd.read_csv(tmp_path / "p.csv")[columns].to_numpy() == pytest.approx(others[other], abs=1e-5)
    stored = np.stack(run.predictions["probabilities"].to_list())
    assert classifier.predict_proba(run.predictions["text"].tolist()) == pytest.approx(stored, abs=1e-5)


@pytest.mark.slow
def test_a_damaged_choice_is_reported(runs, tmp_path):
    folder = shutil.copytree(runs["window"].layout.model, tmp_path / "model")
    file = folder / "config.json"
    content = json.loads(file.read_text())
    content["bertsmith"]["long"] = "sideways"
    file.write_text(json.dumps(content))
    with pytest.raises(RunFolderError) as caught:
        Classifier.load(folder, device="cpu")
    assert caught.value.where == str(file)


@pytest.mark.slow
def test_an_evaluation_reads_as_the_run_or_as_told(runs, cli, tmp_path):
    table = long_table(40, seed=5)
    run = runs["window"]
    for long, expected in (("auto", "window"), ("truncate", "truncate")):
        metrics = bs.evaluate(run.path, table, device="cpu", long=long, name=long)
        classifier = bs.load(run.path, device="cpu", long=expected)
        assert metrics["metrics"]["accuracy"]["value"] == pytest.approx(
            np.mean(np.array(classifier.predict(table["Text"].tolist())) == table["Label Text"])
        )
        assert json.loads((run.layout.evaluations / long / "metrics.json").read_text())["long"] == expected


EXPORTS = [("head-tail", "openvino"), ("window", "onnx")]


def _needs(format):
    for package in ("onnxruntime", "onnxscript", *(["openvino"] if format == "openvino" else [])):
        pytest.importorskip(package, reason="the packages for this export are not installed")


@pytest.mark.slow
@pytest.mark.parametrize(("long", "format"), EXPORTS)
def test_an_export_reads_as_the_run_does(long, format, runs, tmp_path):
    _needs(format)
    run = runs[long]
    export = bs.export(run, format=format, output=tmp_path / "export")
    assert (ExportInfo.read(export.path).long, export.about.parity["agreement"]) == (long, 1)
    for reading in ("auto", *LONGS):
        expected = bs.load(run.path, device="cpu", runtime="torch", long=reading).predict_proba(TEXTS)
        found = bs.load(export.path, long=reading).predict_proba(TEXTS)
        assert found == pytest.approx(expected, abs=MAX_DIFFERENCE["fp32"])
    assert bs.load(export.path).predict_proba([]).shape == (0, 3)


@pytest.mark.slow
def test_an_export_inside_of_a_run_is_read_as_the_run_says(runs, tmp_path):
    _needs("onnx")
    run = bs.Run(shutil.copytree(runs["window"].path, tmp_path / "run"))
    assert bs.export(run, long="truncate").about.long == "truncate"
    for reading, expected in (("auto", "window"), ("head-tail", "head-tail")):
        assert bs.load(run.path, runtime="onnx", long=reading).long == expected


@pytest.mark.slow
@pytest.mark.parametrize("long", LONGS)
def test_the_pipeline_of_transformers_agrees_on_texts_that_fit(long, runs):
    from transformers import pipeline

    run = runs[long]
    texts = ["my cat", "red and blue", "apple plum pear and a dog", "the"]
    classify = pipeline("text-classification", str(run.layout.model), top_k=None, device="cpu")
    found = [{entry["label"]: entry["score"] for entry in scores} for scores in classify(texts)]
    expected = bs.load(run.path, device="cpu").predict_proba(texts)
    assert [[scores[name] for name in run.labels.texts] for scores in found] == [
        pytest.approx(row, abs=1e-5) for row in expected.tolist()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("long", LONGS)
def test_calibration_is_exact_however_long_texts_are_read(long, runs):
    """A temperature and offsets in the last layer are those applied to the mean of the logits."""
    from bertsmith.evaluation.rule import Rule
    from bertsmith.model.load import fold_calibration

    plain, folded = (Classifier.load(runs[long].path, device="cpu") for _ in range(2))
    rule = Rule(1.7, (0.5, -0.25, 0.0), folded=False)
    plain.rule = rule
    assert fold_calibration(folded.loaded.model, rule.temperature, rule.offsets)
    folded.rule = replace(rule, folded=True)
    for decide in (True, False):
        plain.decide = folded.decide = decide
        assert folded.predict_proba(TEXTS) == pytest.approx(plain.predict_proba(TEXTS), abs=1e-5)


@pytest.mark.slow
def test_a_server_reads_as_the_run_or_as_told(runs):
    pytest.importorskip("fastapi")
    from bertsmith.serving.loader import ServerConfig, open_model

    for long, expected in (("auto", "window"), ("head-tail", "head-tail")):
        config = ServerConfig(str(runs["window"].path), device="cpu", runtime="torch", long=long)
        assert open_model(config).long == expected


@pytest.mark.slow
def test_explanations_cover_what_the_model_reads(runs):
    pytest.importorskip("captum")
    text = TEXTS[0]
    for long in LONGS:
        classifier = bs.load(runs["window"].path, device="cpu", long=long)
        found = explain(classifier, text)
        assert found.probability == pytest.approx(float(classifier.predict_proba([text]).max()), abs=1e-6)
        assert sum(w.attribution for w in found.words) == pytest.approx(found.change + found.gap, abs=1e-4)
        assert [text[w.start : w.end] for w in found.words] == [w.text for w in found.words]
        read = "".join(w.text + w.after for w in found.words)
        if long == "window":
            assert (found.unread, read) == (0, text)
        elif long == "truncate":
            assert text.startswith(read)
            assert found.unread == len(text) - len(read)
        else:
            head, tail = read.split(" … ")
            assert text.startswith(head)
            assert text.endswith(tail)
            assert found.unread == len(text) - len(head) - len(tail)
            assert len(tail) > 2 * len(head)


# -- the choice --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_validation_chooses_and_the_test_says_what_that_is_worth(chosen):
    found = chosen.metrics["long_texts"]
    assert (found["setting"], found["long"], chosen.info["long"]) == ("auto", "window", "window")
    assert set(found["validation"]) == set(BY_COST)
    best = found["validation"]["window"]
    assert best["gain"] > best["standard_error"] > 0
    worth, macro = found["test"], chosen.metrics["splits"]["test"]["metrics"]["macro_f1"]["value"]
    assert worth["interval"][0] < worth["value"] < worth["interval"][1]
    assert worth["value"] == pytest.approx(macro - worth["truncate"])
    table = chosen.predictions
    truncated = bs.load(chosen.path, device="cpu", long="truncate").predict(table["text"].tolist())
    from sklearn.metrics import f1_score

    assert worth["truncate"] == pytest.approx(f1_score(table["label_text"], truncated, average="macro"))
    assert worth["longer"] == worth["texts"] == len(table)
    page = chosen.layout.report.read_text()
    assert "Long texts" in page
    assert "in windows" in (chosen.layout.model / "README.md").read_text()
    stored = np.stack(chosen.validation_predictions["probabilities"].to_list())
    again = bs.load(chosen.path, device="cpu").predict_proba(chosen.validation_predictions["text"].tolist())
    assert again == pytest.approx(stored, abs=1e-5)


@pytest.mark.slow
def test_a_cross_validated_run_chooses_too(tiny, tmp_path):
    values = {"table": long_table(150, own=0.3), "cv": 2, "test_size": 0, "epochs": 6, **SETTINGS}
    run = train(tiny, tmp_path / "auto", **values)
    found = run.metrics["long_texts"]
    assert set(found["validation"]) == set(BY_COST)
    assert (found["long"] == "truncate") == (found["test"] is None)
    requested = train(tiny, tmp_path / "requested", long="head-tail", **{**values, "epochs": 1})
    assert requested.metrics["long_texts"]["test"]["texts"] == 150
    assert bs.load(requested.path, device="cpu").long == "head-tail"


def _candidates(lengths, n_validation=100, long="auto", epochs=4.0):
    lengths = np.array(lengths)
    tokens = {
        name: Tokens({"input_ids": np.empty(0, np.int32)}, values, values, np.zeros(len(values), bool))
        for name, values in {"train": lengths, "validation": lengths[:n_validation], "test": lengths[:100]}.items()
    }
    recipe = Recipe(**{**dict.fromkeys(Recipe.__dataclass_fields__), "epochs": epochs, "consistency": 0.0})
    return candidates(Config(long=long), tokens, 128, recipe, template=Template())


def test_candidates_are_those_that_are_needed_and_fit_the_time():
    assert _candidates([100] * 1000) == ("truncate",)
    assert _candidates([100] * 950 + [300] * 50) == ("truncate",)  # not more than 5 %
    assert _candidates([300] * 60 + [100] * 940) == BY_COST
    assert _candidates([300] * 60 + [100] * 940, n_validation=49) == ("truncate",)
    assert _candidates([9000] * 1000) == ("truncate", "head-tail")
    assert _candidates([100] * 1000, long="window") == ("truncate", "window")
    assert _candidates([9000] * 1000, long="truncate") == ("truncate",)


@pytest.mark.parametrize(("n_authors", "long"), [(1, "truncate"), (20, "window")])
def test_validation_texts_of_one_group_choose_no_reading(n_authors, long):
    frame = tiny_table(60).assign(author=np.arange(60) % n_authors)
    table = read_table(frame, Config(group_column="author"))
    task, right = get_task("single-label"), np.eye(3)[table.targets]
    readings = {"truncate": np.roll(right, 1, axis=1), "window": right}
    classifier = SimpleNamespace(task=task, long="truncate", max_length=8)
    tokens = {"train": SimpleNamespace(full_lengths=np.full(60, 9)), "validation": None}
    found = choose_reading(
        classifier, ("truncate", "window"), table, tokens, Config(), SimpleNamespace(readings=readings)
    )
    assert found.long == classifier.long == long
    assert found.compared["window"]["gain"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("long", ["auto", *LONGS])
def test_a_trial_reads_as_told(long, tiny):
    table = bs.read_table(long_table(60))
    data = trials.TrialData(table.take(np.arange(40)), table.take(np.arange(40, 60)))
    settings = {"model": str(tiny), "long": long, "max_length": 32, "epochs": 1, "device": "cpu"}
    _, training, validation = data.prepare(Config(**settings))
    assert training.lengths.max() == validation.lengths.max() == 32
    result = trials.run_trial(
        data, Config(**settings), on_score=lambda at, score: None, stop=lambda: False, measure_latency=True
    )
    assert result.latency > 0


@pytest.mark.slow
def test_a_checkpoint_for_8192_tokens_reads_long_texts_whole(tmp_path):
    sizes = {"num_attention_heads": 1, "num_hidden_layers": 2, "global_attn_every_n_layers": 2}
    folder = tiny_model(tmp_path / "m", "modernbert", max_position_embeddings=8192, **sizes)
    settings_file = folder / "tokenizer_config.json"
    settings_file.write_text(json.dumps({**json.loads(settings_file.read_text()), "model_max_length": 8192}))
    table = long_table(60, words=40)
    table.loc[0, "Text"] = " ".join(["cat"] * 5000)
    run = train(folder, tmp_path / "run", table=table, epochs=1, max_length=8192, consistency=0)
    assert run.info["model"]["max_length"] == 8192
    classifier = bs.load(run.path, device="cpu")
    whole, longer = " ".join(["red"] * 8190), " ".join(["red"] * 9000)
    tokens = classifier.encode([whole, longer])
    assert tokens.truncated_lengths.tolist() == [8192, 8192]
    assert tokens.is_truncated.tolist() == [False, True]
    for long in LONGS:
        found = bs.load(run.path, device="cpu", long=long).predict_proba([whole, longer])
        assert np.isfinite(found).all()
        assert found[0] == pytest.approx(found[1], abs=1e-4)  # all words are the same
