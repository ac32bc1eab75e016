"""Suspected label errors are found, written to a CSV, and applied once corrected."""

import json

import numpy as np
import pandas as pd
import pytest

import bertsmith as bs
from bertsmith.errors import DataError, MissingPackageError
from bertsmith.evaluation.label_errors import FOLDS, find_label_errors
from bertsmith.testing import tiny_table


@pytest.fixture
def flipped():
    """A table of 300 rows with labels of another class in rows 3 and 40."""
    table = tiny_table(300).drop(columns="Label")
    for row in (3, 40):
        name = table.loc[row - 1, "Label Text"]
        table.loc[row - 1, "Label Text"] = "fruits" if name != "fruits" else "animals"
    return table


def test_flipped_labels_are_found_with_their_row(flipped):
    found = bs.label_errors(flipped)
    assert set(found["row"]) == {3, 40}
    truth = tiny_table(300)["Label Text"]
    assert found["suggested"].tolist() == [truth[row - 1] for row in found["row"]]
    assert (found["given_probability"] < found["suggested_probability"]).all()
    assert found["given_probability"].is_monotonic_increasing
    assert (found["corrected"] == "").all()


@pytest.mark.slow
def test_most_of_the_first_500_suspects_in_a_real_table_are_label_errors(shared):
    table = pd.read_csv(shared / "banking77" / "train.csv").sample(4000, random_state=0)
    rng = np.random.default_rng(0)
    n_classes = table["Label"].nunique()
    flips = rng.permutation(len(table))[: len(table) // 5]
    targets = table["Label"].to_numpy(copy=True)
    targets[flips] = (targets[flips] + rng.integers(1, n_classes, len(flips))) % n_classes
    found = find_label_errors(table["Text"].tolist(), targets, n_classes, seed=0)["position"]
    assert len(found) >= 500
    assert np.isin(found[:500], flips).mean() >= 0.7


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
    assert "corrections in done.csv: 1 corrected, 1 dropped, 1 already so" in [note.message for note in table.notes]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"corrected": "fruts"}, "'fruits'"),
        ({"row": 900}, "row 900"),
        ({"row": "x"}, "row x"),
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
    assert "rows 50)" in warning.message


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


def test_rare_classes_are_excluded_and_too_few_texts_are_an_error():
    texts, targets = tiny_table(40)["Text"].tolist(), np.array([0, 1] * 18 + [2] * 4)
    assert not np.isin(find_label_errors(texts, targets, 3, seed=0)["position"], range(36, 40)).any()
    with pytest.raises(DataError) as error:
        find_label_errors(texts[:6], targets[:6], 3, seed=0)
    assert str(FOLDS) in error.value.what


def test_a_missing_package_is_named(flipped, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cleanlab.filter", None)
    with pytest.raises(MissingPackageError) as caught:
        bs.label_errors(flipped)
    assert (caught.value.package, caught.value.extra) == ("cleanlab", "label-errors")
