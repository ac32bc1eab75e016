"""Tables with one row per text and coder."""

import json

import pandas as pd
import pytest

import bertsmith as bs
from bertsmith.data.clean import NO_LABEL, clean
from bertsmith.errors import ConfigError, DataError


def coded(*rows, **columns):
    return pd.DataFrame(rows, columns=["Text", "Label Text", "Coder"]).assign(**columns)


@pytest.fixture
def table():
    """Ten texts: coders agree on eight, two of three agree on the ninth, and the tenth is a tie."""
    rows = [(f"text {i}", "a" if i < 4 else "b", coder) for i in range(8) for coder in ("ann", "ben", "eve")]
    rows += [
        ("ninth", "a", "ann"),
        ("ninth", "b", "ben"),
        ("ninth", "b", "eve"),
        ("tenth", "a", "ann"),
        ("tenth", "b", "ben"),
    ]
    return coded(*rows)


def test_the_label_of_the_majority_counts_and_ties_are_reported(table):
    read = bs.read_table(table, coder_column="coder")
    assert len(read) == 10
    labels = dict(zip(read.frame["text"], read.codes, strict=True))
    assert [labels[f"text {i}"] for i in range(8)] == [0] * 4 + [1] * 4
    assert labels["ninth"] == 1
    assert labels["tenth"] == -1
    assert read.extra["share_of_coders"].round(2).tolist() == [1] * 8 + [0.67, 0.5]
    assert {note.rows: note.severity for note in read.notes} == {(25,): "info", (28,): "warning"}
    assert clean(read).counts == {NO_LABEL: 1}


def test_rows_without_a_coder_or_a_label_are_kept():
    read = bs.read_table(
        coded(*[("x", "a", "ann"), ("x", None, "ben"), ("y", None, "ann"), ("z", "b", None), ("z", "a", None)] * 1),
        coder_column="Coder",
    )
    assert list(zip(read.frame["text"], read.codes, strict=True)) == [("x", 0), ("y", -1), ("z", 1), ("z", 0)]


def test_a_later_label_of_a_coder_replaces_an_earlier_one():
    read = bs.read_table(coded(("x", "b", "ann"), ("x", "a", "ann"), ("y", "b", "ann")), coder_column="Coder")
    assert read.codes.tolist() == [0, 1]


def test_sets_of_labels_and_splits_stay_apart():
    rows = [
        ("x", ["a", "b"], "ann"),
        ("x", ["a", "b"], "ben"),
        ("x", ["a"], "eve"),
        ("y", ["b"], "ann"),
        ("y", ["b"], "ben"),
    ]
    read = bs.read_table(coded(*rows), coder_column="Coder")
    assert read.targets.tolist() == [[True, True], [False, True]]
    assert read.coded[0, "eve"] == {"a"}
    split = coded(("x", "a", "ann"), ("y", "b", "ann"), ("x", "b", "ann"), part=["train", "train", "test"])
    assert len(bs.read_table(split, coder_column="Coder", split_column="part")) == 3


def test_inspect_reports_the_agreement(table, tmp_path, cli):
    table.to_csv(tmp_path / "t.csv", index=False)
    code, out, _ = cli("inspect", tmp_path / "t.csv", "--coder-column", "Coder")
    assert code == 0
    assert "Krippendorff" in out
    code, out, _ = cli("inspect", tmp_path / "t.csv", "--coder-column", "Coder", "--json")
    agreement = json.loads(out)["agreement"]
    assert agreement["disputed"] == 2
    assert 0.5 < agreement["alpha"]["value"] < 1
    assert [pair["coders"] for pair in agreement["pairs"]] == [["ann", "ben"], ["ann", "eve"], ["ben", "eve"]]


def test_wrong_coder_columns_are_reported(table):
    with pytest.raises(DataError):
        bs.read_table(table, coder_column="rater")
    with pytest.raises(ConfigError):
        bs.read_table(table.assign(**{"Label Text": range(len(table))}), coder_column="Coder", task="regression")
