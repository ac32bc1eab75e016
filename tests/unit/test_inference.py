import copy
import io
import json
import pickle
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import bertsmith as bs
from bertsmith.cli.predict import _print_summary
from bertsmith.config import DataConfig
from bertsmith.data.stream import open_stream
from bertsmith.data.template import Template
from bertsmith.errors import ConfigError, DataError, RunFolderError
from bertsmith.folders.run import open_run
from bertsmith.inference.abstain import HeldOutPredictions, held_out_predictions
from bertsmith.inference.chunks import write_stream
from bertsmith.inference.classifier import Classifier
from bertsmith.inference.ensemble import Ensemble
from bertsmith.inference.predict import CONFIDENCE, LABELLED, LENGTH, predict_chunks, predict_rows
from bertsmith.inference.table_writers import open_writer, output_format, to_arrow
from bertsmith.testing import WORDS, tiny_table
from bertsmith.workflows.evaluate import _design_notes
from bertsmith.workflows.predict import Predictions, _expected_accuracy
from tests.conftest import train


def whole_texts(classifier):
    """The classifier, reading long texts window by window."""
    other = copy.copy(classifier)
    other.long = "window"
    return other


def test_texts_are_labelled(classifier):
    texts = ["my cat and my dog", "red and blue", "apple plum pear"]
    assert classifier.predict(texts) == ["animals", "colours", "fruits"]
    probabilities = classifier.predict_proba(texts)
    assert probabilities.shape == (3, 3)
    assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-12)
    assert classifier.predict_proba("a single cat").shape == (1, 3)
    assert classifier.predict_proba([]).shape == (0, 3)


def test_predictions_do_not_depend_on_the_batch(classifier):
    texts = [*tiny_table(64, seed=3)["Text"], "cat " * 200, ""]
    together = classifier.predict_proba(texts)
    alone = np.concatenate([classifier.predict_proba([text]) for text in texts])
    assert together == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("threads", [2, 8])
def test_threads_that_share_a_classifier_get_the_same_probabilities(threads, classifier):
    texts = [*tiny_table(64, seed=3)["Text"], "cat " * 200]
    expected = classifier.predict_proba(texts)
    with ThreadPoolExecutor(threads) as pool:
        for found in pool.map(classifier.predict_proba, [texts] * 2 * threads):
            assert found == pytest.approx(expected, abs=1e-6)


def test_the_model_folder_alone_is_enough(finished, classifier):
    alone = bs.load(finished / "model", device="cpu")
    assert alone.labels.numbers == (0, 1, 2)
    texts = tiny_table(9)["Text"].tolist()
    assert alone.predict(texts) == classifier.predict(texts)
    assert alone.loaded.max_length == classifier.loaded.max_length == open_run(finished).info["model"]["max_length"]


@pytest.mark.parametrize("wrong", [None, float("nan"), 1.5, ["a"]])
def test_items_that_are_not_strings_are_errors(wrong, classifier):
    with pytest.raises(DataError, match="item 1 "):
        classifier.predict(["a", wrong])


@pytest.mark.parametrize("wrong", [None, 5, pd.DataFrame({"Text": ["a"]})])
def test_texts_must_be_a_list(wrong, classifier):
    """Iterating over a data frame would predict its column names."""
    with pytest.raises(DataError, match=type(wrong).__name__):
        classifier.predict(wrong)


def test_a_lone_surrogate_is_an_error(classifier):
    with pytest.raises(DataError, match="item 1 "):
        classifier.predict(["a", "b \ud800"])


def _rows():
    return pd.DataFrame({"id": [7, 8, 9, 10], "text": ["cat dog", "  ", "red, blue", 'a "pear"']})


def test_input_columns_are_kept_and_empty_texts_get_no_prediction(classifier):
    rows = _rows()
    cells = predict_rows(classifier, rows.to_dict("list"), rows["text"].tolist(), probabilities=True)
    frame = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in cells.items()})
    assert list(frame.columns) == [
        "id",
        "text",
        "predicted",
        "predicted_text",
        "confidence",
        *(f"probability of {name}" for name in list(WORDS)[:3]),
    ]
    assert frame["id"].tolist() == [7, 8, 9, 10]
    assert frame["predicted"].isna().tolist() == [False, True, False, False]
    assert frame["predicted_text"].tolist()[2:] == ["colours", "fruits"]
    assert frame["predicted"].tolist()[2:] == [20, 30]
    assert frame.filter(like="probability").dropna().sum(axis=1).tolist() == pytest.approx([1, 1, 1])


def test_texts_are_normalised_before_they_are_empty_and_have_a_length(classifier):
    """A table of fixed width pads its cells; the texts of the training have no outer white space."""
    texts = ["cat", "\x01", "\ufeff ", "red"]
    given = [({"x": [1, 2, 3, 4]}, some) for some in (texts, [text.ljust(200) for text in texts])]
    (cells, counts, read), padded = predict_chunks(classifier, given)
    assert (cells, counts, read) == padded
    assert cells["predicted_text"] == ["animals", None, None, "colours"]
    assert read == ["cat", "", "", "red"]
    frame = classifier.predict_frame(pd.DataFrame({"text": texts}))
    assert frame["predicted_text"].isna().tolist() == [False, True, True, False]


def test_a_data_frame_keeps_its_columns_and_its_index(classifier):
    frame = pd.DataFrame(
        {"Review": ["my cat", None, "apple plum", " "], "stars": [5, 4, 3, 2]}, index=["d", "b", "b", "a"]
    )
    found = classifier.predict_frame(frame)
    assert list(frame.columns) == ["Review", "stars"]  # it is not changed itself
    pd.testing.assert_frame_equal(found[["Review", "stars"]], frame)
    assert found["predicted_text"].fillna("").tolist() == ["animals", "", "fruits", ""]
    assert found["predicted"].tolist() == [10, pd.NA, 30, pd.NA]
    of_texts = classifier.predict_frame(["my cat", "apple plum"])
    pd.testing.assert_frame_equal(
        found.iloc[[0, 2]][list(of_texts.columns)].astype({"predicted": "int64"}).reset_index(drop=True), of_texts
    )
    whole = classifier.predict_frame(frame.iloc[[0, 2]])
    assert whole["predicted"].dtype == "int64"
    assert classifier.predict_frame(frame.iloc[:0]).shape == (0, 6)
    assert classifier.predict_frame(pd.DataFrame({"words": ["my cat"]}))["predicted_text"].tolist() == ["animals"]
    pd.testing.assert_frame_equal(classifier.predict_frame(pa.chunked_array([["my cat"], ["apple plum"]])), of_texts)
    named = classifier.predict_frame(frame.assign(words="apple plum"), text_column="words")
    assert set(named["predicted_text"]) == {"fruits"}


@pytest.mark.parametrize(
    ("frame", "column", "error"),
    [
        (pd.DataFrame({"TEXT": ["a"], "text": ["b"]}), None, DataError),
        (pd.DataFrame({"a": ["a"], "b": ["b"]}), None, DataError),
        (pd.DataFrame({"a": ["a"]}), "c", DataError),
        (pd.DataFrame({"text": [["a"]]}), None, DataError),
        (pd.DataFrame({"text": ["a"], "confidence": [1]}), None, DataError),
        (["a"], "text", ConfigError),
    ],
)
def test_an_invalid_data_frame_is_an_error(frame, column, error, classifier):
    with pytest.raises(error) as caught:
        classifier.predict_frame(frame, text_column=column)
    assert "--" not in str(caught.value)  # no flags: this is Python


def test_classes_follow_the_columns_of_predict_proba(classifier):
    expected = np.array(["animals", "colours", "fruits"])
    for one in (classifier, Ensemble([classifier, classifier]), whole_texts(classifier)):
        assert one.classes_.dtype == expected.dtype
        assert one.classes_.tolist() == expected.tolist()
    assert classifier.classes_[classifier.predict_proba(["my cat"]).argmax(axis=1)].tolist() == ["animals"]


def test_held_out_predictions_come_from_the_run_of_a_model(finished, classifier):
    expected = held_out_predictions(finished).targets.tolist()
    for one in (classifier, Classifier.load(finished, device="cpu"), Ensemble([classifier])):
        assert one.held_out().targets.tolist() == expected
    with pytest.raises(RunFolderError):
        Classifier.load(finished / "model", device="cpu").held_out()


def test_chosen_validation_texts_give_no_expected_accuracy(own_run, classifier, monkeypatch):
    targets = np.arange(150) % 3
    counts = Counter({"rows": 200, f"{CONFIDENCE}99": 200, f"{LENGTH}30": 200, f"{LABELLED}animals": 200})
    run, expected = open_run(own_run), partial(_expected_accuracy, classifier, own_run, counts)

    def held_out(self, *, test=False, again=True):
        assert not again  # an estimate is not worth predicting all held-out texts
        return held_out_predictions(run, test=True) if test else HeldOutPredictions(targets, [np.eye(3)[targets]])

    monkeypatch.setattr(Classifier, "held_out", held_out)
    assert not run.has_chosen_validation
    assert expected().held_out == 150
    run.update(data={**run.info["data"], "findings": {"findings": [{"kind": "not-random"}]}})
    assert run.has_chosen_validation
    assert expected() is None
    with monkeypatch.context() as patch:
        patch.setattr("bertsmith.workflows.predict.is_export", lambda folder: True)
        for facts, found in ({}, 150), ({"has_chosen_validation": True}, None):
            about = SimpleNamespace(run=facts)
            patch.setattr("bertsmith.workflows.predict.ExportInfo.read", lambda folder, about=about: about)
            assert getattr(expected(), "held_out", None) == found
    monkeypatch.setattr("bertsmith.measuring.expected_accuracy.FEWEST", 5)  # enough test texts
    assert expected().held_out == len(run.predictions)


def test_an_ensemble_counts_truncated_texts_and_can_resume_predictions(classifier):
    texts = ["my cat", "cat " * 200]
    predict, cut = Ensemble([classifier, classifier]).prepare(texts)
    assert cut == 1
    assert predict(None) == pytest.approx(classifier.predict_proba(texts))
    assert repr(Ensemble([classifier])) == repr(Ensemble([copy.copy(classifier)]))  # as in the interrupted command


def test_input_with_only_empty_texts_is_predicted(classifier):
    cells = predict_rows(classifier, {"text": [""]}, [""], probabilities=True)
    assert {tuple(values) for name, values in cells.items() if name != "text"} == {(None,)}


def test_input_columns_are_never_overwritten(classifier):
    with pytest.raises(DataError, match="'predicted'"):
        predict_rows(classifier, {"text": ["a"], "predicted": [1]}, ["a"])


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".xlsx"])
def test_all_output_formats_have_the_same_content(suffix, classifier, tmp_path, monkeypatch):
    monkeypatch.setattr("bertsmith.data.stream.CHUNK_ROWS", 3)
    rows = _rows().assign(mixed=[1, "two", None, 4.5])
    path = tmp_path / f"out{suffix}"
    with open_stream(rows, DataConfig()) as stream:
        write_stream(lambda pieces: predict_chunks(classifier, pieces), stream, path, {})
    if suffix == ".csv":
        back = pd.read_csv(path)
    elif suffix == ".jsonl":
        back = pd.DataFrame([json.loads(line) for line in path.read_text().splitlines()])
    else:
        back = (
            pd.read_parquet(path)
            if suffix == ".parquet"
            else pd.read_excel(path, engine="calamine").fillna({"text": ""})
        )
    assert back["text"].tolist() == rows["text"].tolist()
    assert back["predicted"].dropna().tolist() == [10, 20, 30]
    assert back["confidence"].isna().tolist() == [False, True, False, False]
    assert back["mixed"].iloc[1] == "two"


def test_input_columns_with_other_names_of_predictions_do_not_change_the_types():
    """A regression predicts a number, also if the input has the columns of a classifier."""
    cells = {"predicted_text": ["x"], "predicted_texts": [["y"]], "predicted": [1.5]}
    given = {"predicted_text": pa.string(), "predicted_texts": pa.list_(pa.string())}
    assert to_arrow(cells, given, as_read=False).schema.types == [*given.values(), pa.float64()]


@pytest.mark.parametrize("kind", ["csv", "xlsx"])
def test_files_keep_the_digits_of_numbers(kind, tmp_path):
    numbers = {"predicted": [3.2e-7, 48213.118], "lower": [-4.12e-5, 0.1], "upper": [4.12e-5, 1e6]}
    path = tmp_path / f"t.{kind}"
    with open_writer(kind, path) as writer:
        writer.write({"text": ["a", "b"], **numbers})
    frame = pd.read_csv(path) if kind == "csv" else pd.read_excel(path, engine="calamine")
    assert frame[list(numbers)].to_dict("list") == numbers


def test_unknown_output_formats_are_errors(tmp_path):
    with pytest.raises(ConfigError, match=r"'\.xls'"):
        output_format(tmp_path / "x.xls")


def test_a_run_is_scored_on_another_table(own_run, tmp_path):
    table = tiny_table(30, seed=8)
    table["Label"] = (table["Label"] + 1) * 10
    table.loc[3, "Text"] = " "
    table.to_csv(tmp_path / "new data.v2.csv", index=False)
    metrics = bs.evaluate(own_run, tmp_path / "new data.v2.csv", device="cpu")
    assert metrics["texts"] == 29
    assert metrics["metrics"]["macro_f1"]["value"] > 0.8
    kept = json.loads((own_run / "evaluations" / "new-data" / "metrics.json").read_text())
    assert kept["left_out"] == {"empty text": 1}
    assert kept["notes"] == []
    some = table[table["Label"] != 30].drop(index=3)
    twice = some.assign(Label=30 - some["Label"]).drop(columns="Label Text").head(2)
    absent, contradictory = bs.evaluate(own_run, pd.concat([some, twice]), name="two", device="cpu")["notes"]
    assert "'fruits'" in absent
    assert contradictory.startswith("2 texts")
    with pytest.raises(DataError, match="'dragons'"):
        bs.evaluate(own_run, table.assign(**{"Label Text": "dragons"}).drop(columns="Label"))
    with pytest.raises(DataError, match="10 = 'colours'"):
        bs.evaluate(own_run, table.assign(Label=table["Label"].replace({10: 20, 20: 10})))


@pytest.mark.parametrize(
    ("columns", "notes"),
    [
        ({}, 0),
        ({"random": [True, False, True]}, 1),
        ({"random": [False] * 3}, 1),
        ({"random": [True] * 3, "inclusion_probability": [0.1, 0.1, 0.2]}, 1),
        ({"random": [True] * 3, "inclusion_probability": [0.1] * 3}, 0),
        ({"random": [0.3, 0.4, 0.7]}, 0),
    ],
)
def test_metrics_of_rows_that_are_no_simple_random_sample_have_a_note(columns, notes):
    table = bs.read_table(pd.DataFrame({"Text": ["a", "b", "c"], "Label Text": ["x", "y", "x"], **columns}))
    assert len(_design_notes(table)) == notes


def test_a_missing_model_is_not_searched_on_the_hub(own_run, tmp_path):
    shutil.rmtree(own_run / "model")
    with pytest.raises(bs.UserError) as error:
        bs.load(own_run)
    assert error.value.where == str(own_run / "model")


def test_runs_are_compared_on_the_same_rows_only(finished, tiny, tmp_path):
    table = tiny_table(150)
    table["Label"] = (table["Label"] + 1) * 10
    settings = {"model": str(tiny), "epochs": 1, "precision": "fp32", "device": "cpu"}
    weak = bs.train(table, output=tmp_path / "weak", **settings)
    first, second = bs.compare(finished, weak)
    assert first["difference"] is None
    assert first["texts"] == len(weak.predictions)
    difference = second["difference"]
    gap = second["metrics"]["macro_f1"]["value"] - first["metrics"]["macro_f1"]["value"]
    assert difference["value"] == pytest.approx(gap)
    assert difference["distinguishable"]
    assert difference["interval"][1] < 0
    other = bs.train(table, output=tmp_path / "other", seed=1, **settings)
    renamed = bs.train(table.replace("animals", "beasts"), output=tmp_path / "renamed", **settings)
    for run in (other, renamed):
        with pytest.raises(RunFolderError) as error:
            bs.compare(finished, run)
        assert error.value.where == f"{finished} and {run.path}"
    for runs in ((finished,), (finished, finished)):
        with pytest.raises(ConfigError):
            bs.compare(*runs)


def test_long_texts_can_be_read_whole(classifier, cli, finished, tmp_path):
    long = " ".join(["cat dog"] * 40 + ["red blue"] * 400)
    windowed = whole_texts(classifier)
    beginning, whole = classifier.predict([long]), windowed.predict([long])
    assert (beginning, whole) == (["animals"], ["colours"])
    assert bs.load(finished, device="cpu", long="window").predict([long]) == whole
    texts = ["my cat", "red and blue", "apple"]
    assert np.array_equal(windowed.predict_proba(texts), classifier.predict_proba(texts))
    windows, counts = classifier.encode([long], truncate=False).windows(classifier.max_length)
    kept = classifier.max_length - 2  # of 880 words, a quarter of which is in the next window too
    assert counts.tolist() == [len(windows)] == [-(-(880 - kept) // (kept - kept // 4)) + 1]
    logits = np.mean([classifier.logits_of(windows.take([i]))[0] for i in range(len(windows))], axis=0)
    expected = classifier.scores_of(logits[None])
    assert windowed.predict_proba([long]) == pytest.approx(expected, abs=1e-5)
    assert windowed.predict_proba([]).shape == (0, 3)
    pd.DataFrame({"Text": [long, "my cat"]}).to_csv(tmp_path / "t.csv", index=False)
    code, out, err = cli("predict", finished, tmp_path / "t.csv")
    assert (code, pd.read_csv(io.StringIO(out))["predicted_text"].tolist()) == (0, ["animals", "animals"])
    assert "--long window" in err
    code, out, err = cli("predict", finished, tmp_path / "t.csv", "--long", "window")
    assert (code, pd.read_csv(io.StringIO(out))["predicted_text"].tolist()) == (0, ["colours", "animals"])
    assert "longer" not in err


def test_predict_in_python_does_what_the_command_does(finished, cli, tmp_path):
    frame = pd.DataFrame({"id": [7, 8, 9], "Review": ["my cat", None, "red and blue"]})
    events = []
    found = bs.predict(finished, frame, device="cpu", probabilities=True, on_event=events.append)
    assert (found.path, found.rows, found.empty) == (None, 3, 1)
    assert found.label_counts == {"animals": 1, "colours": 1}
    assert found.frame["predicted"].tolist() == [10, pd.NA, 20]
    assert found.frame["id"].tolist() == [7, 8, 9]
    assert [type(event).__name__ for event in events[:2]] == ["InputOpened", "ModelOpened"]
    assert sum(event.rows for event in events[2:]) == 3
    frame.to_csv(tmp_path / "t.csv", index=False)
    written = bs.predict(
        finished, tmp_path / "t.csv", output=tmp_path / "python.csv", device="cpu", min_confidence=0.99
    )
    assert (written.path, written.frame, written.threshold) == (tmp_path / "python.csv", None, 0.99)
    command = ("predict", finished, tmp_path / "t.csv", "-o", tmp_path / "command.csv", "--device", "cpu")
    assert cli(*command, "--min-confidence", 0.99)[0] == 0
    assert (tmp_path / "python.csv").read_bytes() == (tmp_path / "command.csv").read_bytes()
    with pytest.raises(ConfigError, match="overwrite"):
        bs.predict(finished, tmp_path / "t.csv", output=tmp_path / "python.csv")
    with pytest.raises(ConfigError, match="never replaces"):
        bs.predict(finished, tmp_path / "t.csv", output=tmp_path / "t.csv", overwrite=True)
    with pytest.raises(ConfigError, match="confidnce"):
        bs.predict(finished, frame, confidnce=1)


def test_predictions_in_memory_keep_the_index_and_the_types(finished, classifier):
    frame = pd.DataFrame(
        {
            "Text": pd.Series(["my cat", "a dog", "red and blue", None], dtype="string"),
            "kind": pd.Categorical(["a", "b", "a", None]),
            "n": pd.array([1, None, 3, 4], dtype="Int8"),
            "day": pd.to_datetime(["2026-01-01"] * 4, utc=True),
            5: [1, 2, 3, 4],
        },
    ).set_axis(["w", "x", "x", "z"])
    found = bs.predict(finished, frame, device="cpu").frame
    pd.testing.assert_frame_equal(found[["Text", "kind", "n", "day", "5"]], frame.rename(columns=str))
    assert found["predicted_text"].tolist()[:3] == ["animals", "animals", "colours"]
    lists = frame.astype({"Text": object}).assign(Text=["my cat", ["a"], "red and blue", "apple"])
    predictions = bs.predict(finished, lists, device="cpu", on_error="skip")
    (position, _), kept = predictions.skipped[0], predictions.frame
    assert len(predictions.skipped) == 1
    for same in (position, pickle.loads(pickle.dumps(position))):
        assert (same, same.unit, same.number) == ("row 2", "row", 2)
    assert kept.index.tolist() == ["w", "x", "z"]
    assert kept["n"].tolist() == [1, 3, 4]
    assert kept["predicted_text"].tolist() == ["animals", "colours", "fruits"]
    series = frame["Text"].iloc[:3]
    assert classifier.predict_frame(series).index.tolist() == ["w", "x", "x"]
    assert classifier.predict_frame(series.tolist()).index.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("min_confidence", [1.5, -1, "a", True, float("nan")]),
        ("target_accuracy", [7, -0.1, "a"]),
        ("coverage", [7, 0, 1, "a"]),
        ("csv_dialect", ["tabs", None]),
        ("on_error", ["ignore"]),
    ],
)
def test_values_out_of_range_are_refused_in_python_too(name, values, finished, cli, tmp_path):
    frame = pd.DataFrame({"Text": ["a cat"]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    for value in values:
        with pytest.raises(ConfigError) as error:
            bs.predict(finished, frame, device="cpu", **{name: value})
        assert error.value.what.startswith(f"{name} ")
        assert (
            cli("predict", finished, tmp_path / "t.csv", f"--{name.replace('_', '-')}", value)[0] == 2 or value is True
        )


def test_the_text_column_of_the_training_is_read_again(own_run, cli, tmp_path):
    run = own_run
    info = json.loads((run / "run.json").read_text())
    template = {**info["template"], "text_column": ["Bewertung"]}
    (run / "run.json").write_text(json.dumps({**info, "template": template}))
    labels = bs.Run(run).labels.numbers[:2]
    frame = pd.DataFrame({"id": [1, 2], "Bewertung": ["my cat", "red and blue"], "Label": labels})
    frame.to_csv(tmp_path / "t.csv", index=False)
    assert cli("predict", run, tmp_path / "t.csv", "-o", tmp_path / "out.csv", "--device", "cpu")[0] == 0
    expected = ["animals", "colours"]
    assert pd.read_csv(tmp_path / "out.csv")["predicted_text"].tolist() == expected
    loaded = bs.load(run, device="cpu", runtime="torch")
    assert loaded.predict_frame(frame)["predicted_text"].tolist() == expected
    assert loaded.predict_frame(frame.rename(columns={"Bewertung": "Text"}))["predicted_text"].tolist() == expected
    assert cli("evaluate", run, tmp_path / "t.csv", "--device", "cpu")[0] == 0


@pytest.mark.parametrize("long", ["truncate", "window"])
def test_predicting_tokenizes_each_text_once(long, cli, finished, tmp_path, tokenized):
    texts = ["my cat", " ".join(["red blue"] * 400), "apple"]
    pd.DataFrame({"Text": texts}).to_csv(tmp_path / "t.csv", index=False)
    assert cli("predict", finished, tmp_path / "t.csv", "--runtime", "torch", "--long", long)[0] == 0
    assert tokenized == texts


@pytest.mark.parametrize("agrees", [True, False])
def test_predictions_are_in_bf16_where_that_is_fast_and_changes_no_label(agrees, tiny, tmp_path, monkeypatch):
    """The test declares bf16 fast on this device; the validation texts decide whether labels change."""
    monkeypatch.setattr("bertsmith.workflows.score.choose_precision", lambda device: ("bf16", "for this test"))
    monkeypatch.setattr("bertsmith.inference.classifier.choose_precision", lambda device: ("bf16", "for this test"))
    if not agrees:
        usual = Classifier.logits_of

        def other(self, *given):
            return usual(self, *given) * (-1 if self.dtype == torch.bfloat16 else 1)

        monkeypatch.setattr(Classifier, "logits_of", other)
    run = train(tiny, tmp_path / "run", table=tiny_table(300), epochs=2)
    found = run.metrics["inference"]
    assert (found["precision"], found["agreement"] == 1, found["texts"] >= 20) == (
        "bf16" if agrees else "fp32",
        agrees,
        True,
    )
    classifier = Classifier.load(run.path, device="cpu")
    assert classifier.dtype == (torch.bfloat16 if agrees else torch.float32)
    texts = tiny_table(40, seed=1)["Text"].tolist()
    said = classifier.predict_proba(texts)
    exact = classifier.set_dtype(torch.float32).predict_proba(texts)
    assert said == pytest.approx(exact, abs=0.02)
    assert (said == exact).all() == (not agrees)
    monkeypatch.setattr("bertsmith.inference.classifier.choose_precision", lambda device: ("fp32", "another machine"))
    assert Classifier.load(run.path, device="cpu").dtype == torch.float32
    run.layout.metrics.write_text("{")
    assert Classifier.load(run.path, device="cpu").dtype == torch.float32


def test_a_device_that_is_not_fast_in_bf16_predicts_in_fp32(finished, monkeypatch):
    assert bs.Run(finished).metrics["inference"]["precision"] in ("fp32", "bf16")
    monkeypatch.setattr("bertsmith.inference.classifier.choose_precision", lambda device: ("fp16", "an older GPU"))
    assert Classifier.load(finished, device="cpu").dtype == torch.float32


def test_predictions_of_empty_texts_have_the_usual_types(finished):
    full = bs.predict(finished, pd.DataFrame({"Text": ["a cat", ""]}), device="cpu").frame
    empty = bs.predict(finished, pd.DataFrame({"Text": ["", ""]}), device="cpu").frame
    columns = ["predicted", "predicted_text", "confidence"]
    assert empty[columns].dtypes.tolist() == full[columns].dtypes.tolist()
    assert empty[columns].isna().all(axis=None)


@pytest.mark.parametrize("name", ["Label", "label text"])
def test_a_single_column_of_labels_is_not_read_as_texts(finished, name):
    for source in (pd.DataFrame({name: [1, 2]}), pd.DataFrame({name: ["a", "b"]})):
        with pytest.raises(DataError):
            bs.predict(finished, source, device="cpu")
    assert bs.predict(finished, pd.DataFrame({"anything": ["a cat"]}), device="cpu").rows == 1


def test_a_column_named_like_a_prediction_is_refused_with_the_table(finished, tmp_path):
    (tmp_path / "t.csv").write_text("Text,confidence\na cat,1\n")
    with pytest.raises(DataError) as error:
        bs.predict(finished, tmp_path / "t.csv", device="cpu")
    assert error.value.where == "t.csv"


@pytest.mark.parametrize("columns", [("text",), ("title", "body")])
def test_the_summary_names_windows_only_to_models_that_can_read_them(columns, capsys):
    _print_summary(Predictions(None, None, 3, {"a": 3}, cut=2), Template(columns))
    assert ("--long" in capsys.readouterr().err) == (len(columns) == 1)
