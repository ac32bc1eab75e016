from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertsmith.config import Config, DataConfig
from bertsmith.data.joined_labels import find_joined
from bertsmith.data.labels import check_classes, link_labels, parse_label_numbers, parse_label_texts
from bertsmith.data.outcomes import CLASSES
from bertsmith.data.read import read_table
from bertsmith.data.table import Labels
from bertsmith.data.template import Template
from bertsmith.errors import DataError
from bertsmith.inference.table_writers import DIALECTS, open_writer
from bertsmith.workflows.evaluate import read_labelled


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "5", "3"], [1, 5, 3]),
        ([10.0, 20.0, float("nan")], [10, 20, None]),
        (["-1", "+1", ""], [-1, 1, None]),
        (["1.0", "2.00", "NA"], [1, 2, None]),
        (["spam", "ham"], None),
        (["007", "012"], None),  # codes, not numbers
        ([True, False], None),
    ],
)
def test_a_label_column_is_numbers_or_words(values, expected):
    assert parse_label_numbers(values, "t") == expected


def _frame(labels):
    return pd.DataFrame({"Label": labels, "Text": [f"text {i}" for i in range(len(labels))]})


@pytest.mark.parametrize("word", ["None", "none", "NA", "null", "nan"])
def test_whether_a_word_is_a_class_does_not_depend_on_the_other_rows(word):
    train = _frame([word, "love"] * 5)
    classes = read_table(train).labels
    for rows in ([word] * 3, [word, "love"], [word, None]):
        expected = [classes.texts.index(label) if label else -1 for label in rows]
        assert read_table(_frame(rows), known=classes).codes.tolist() == expected
        given = read_table(train, DataConfig(validation=_frame(rows)))
        assert given.codes[len(train) :].tolist() == expected


@pytest.mark.parametrize("rows", [["null"], ["null", "love"]])
def test_a_word_that_is_not_a_class_of_the_run_is_an_error(rows):
    with pytest.raises(DataError, match="unknown label"):
        read_table(_frame(rows), known=Labels((0, 1), ("hate", "love")))


def test_missing_label_numbers_stay_missing_with_known_classes():
    for known in (Labels((1, 2), ("1", "2")), Labels((1, 2), ("hate", "love"))):
        assert read_table(_frame([1, "NA", 2]), known=known).codes.tolist() == [0, -1, 1]
    given = read_table(_frame([1, 2, "NA"] * 3), DataConfig(validation=_frame(["NA", "NA"])))
    assert given.codes[9:].tolist() == [-1, -1]


def test_scores_are_refused_with_an_example():
    with pytest.raises(DataError, match=r"0.75 in row 2"):
        parse_label_numbers(["1", "0.75"], "t")


def test_a_score_counts_all_its_values_and_names_infinite_ones():
    with pytest.raises(DataError) as caught:
        parse_label_numbers([0.5, 1.0, 2.0, 0.5, float("inf")], "t")
    assert "4 different values" in caught.value.what
    assert "inf" in caught.value.remedy


@pytest.mark.parametrize(("n", "ordered"), [(9, True), (90, False)])
def test_few_fractions_may_be_ordered_classes(n, ordered):
    values = [1 + i / 2 for i in range(n)] * 2
    frame = pd.DataFrame({"Label": values, "Text": [f"text {i}" for i in range(2 * n)]})
    with pytest.raises(DataError) as caught:
        read_table(frame, DataConfig(task="ordinal"))
    assert ("--task ordinal" in caught.value.remedy) == ordered
    numbered = frame.assign(**{"Label": [int(2 * v) for v in values], "Label Text": [f"{v:g}" for v in values]})
    labels = read_table(numbered, DataConfig(task="ordinal")).labels
    assert labels.texts[:3] == ("1", "1.5", "2")


@pytest.mark.parametrize(
    ("values", "example"),
    [
        (["1,0", "0,5", "0,25"], "0,5"),
        (["1", "0", "0,5"], "0,5"),
        (["0,5", "0.5", "1,5e-3"], "0,5"),
        (["1,234", "2,345", "3"], "1,234"),
    ],
)
def test_scores_with_a_decimal_comma_are_refused(values, example):
    frame = pd.DataFrame({"Label": values * 4, "Text": [f"text {i}" for i in range(12)]})
    with pytest.raises(DataError) as caught:
        read_table(frame)
    assert example in caught.value.what
    assert "--label-column" in caught.value.remedy


CLEAR = {
    "one decimal": ["4,0", "2,5", "1"],
    "own output": ["-0,771559", "1,5e-07", "12,0"],
    "three decimals next to others": ["1,234", "0,5", "3", None],
    "a zero before three decimals": ["0,234", "-0,500", "1,000"],
    "cells of Excel": [4, 2.5, "3,5"],
    "missing numbers": ["2,5", "NA", "1", "n/a", "4"],
}


@pytest.mark.parametrize("values", CLEAR.values(), ids=CLEAR)
def test_decimal_commas_are_read_as_numbers_where_they_are_certain(values):
    frame = pd.DataFrame({"Label": values * 4, "Text": [f"text {i}" for i in range(4 * len(values))]}, dtype=object)
    table = read_table(frame, DataConfig(task="regression"))
    expected = [float(str(v).replace(",", ".")) for v in values if v not in (None, "NA", "n/a")]
    present = table.frame["target"].to_numpy() >= 0
    assert table.take(present).targets.tolist() == expected * 4


UNCLEAR = {
    "thousands or decimals": ["1,234", "2,345", "3"],
    "points and commas": ["0,5", "0.5", "1"],
    "points that separate thousands": ["1.234,5", "2,5", "3"],
    "two commas": ["1,234,567", "2,5", "3"],
    "a word": ["2,5", "1", "many"],
}


@pytest.mark.parametrize("values", UNCLEAR.values(), ids=UNCLEAR)
def test_uncertain_commas_are_refused_with_the_row(values):
    frame = pd.DataFrame({"Label": values * 4, "Text": [f"text {i}" for i in range(12)]}, dtype=object)
    with pytest.raises(DataError) as caught:
        read_table(frame, DataConfig(task="regression"))
    assert "row" in caught.value.where
    with pytest.raises(DataError):
        parse_label_numbers(values, "t")


def test_cells_that_are_not_numbers_are_counted_and_the_first_rows_named():
    labels = [1, 2, "good", 3, *["bad"] * 6]
    frame = pd.DataFrame({"Label": labels, "Text": [f"text {i}" for i in range(10)]}, dtype=object)
    with pytest.raises(DataError) as caught:
        read_table(frame, DataConfig(task="regression"))
    assert caught.value.what.startswith("7 ")
    assert caught.value.where.endswith("rows 3, 5, 6, 7, 8 and 2 more")


def test_label_numbers_with_decimal_commas_are_label_numbers():
    assert parse_label_numbers(["1,0", "2,00", "3", None], "t") == [1, 2, 3, None]
    with pytest.raises(DataError):
        parse_label_numbers(["1,000", "2,000", "3"], "t")


@pytest.mark.parametrize("task", ["regression", "single-label"])
def test_numeric_labels_of_semicolon_output_are_read_back(task, tmp_path):
    labels = [1.0, 2.5 if task == "regression" else 2.0, 3.0, None] * 4
    cells = {"Text": [f"text {i}" for i in range(16)], "Label": labels}
    with open_writer("csv", tmp_path / "t.csv", style=DIALECTS["excel-semicolon"]) as writer:
        writer.write(cells)
    table = read_table(tmp_path / "t.csv", DataConfig(task=task))
    present = table.frame["target"].to_numpy() >= 0
    targets = table.take(present).targets.tolist()
    assert (targets if task == "regression" else [table.labels.numbers[t] for t in targets]) == [
        v for v in labels if v is not None
    ]


@pytest.mark.parametrize("value", ["inf", "-Infinity", "1e-3"])
def test_numbers_that_cannot_be_labels_are_refused(value):
    with pytest.raises(DataError):
        parse_label_numbers(["1", "2", value], "t")


def test_numbers_and_words_mixed_are_refused():
    with pytest.raises(DataError, match="row 3 has 'spam'"):
        parse_label_numbers(["1", "2", "spam"], "t")


def test_label_texts_are_stripped_and_empty_ones_are_missing():
    assert parse_label_texts(["  a  b ", "", None, float("nan"), 3.0, "\x1b[31mred\x07"], "t") == [
        "a b",
        None,
        None,
        None,
        "3",
        "[31mred",
    ]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["love", "sadness", "joy", "love;sadness", "joy; love"], ["love;sadness", "joy; love"]),
        (["Action|Drama", "Comedy|Action", "Drama|Comedy"], ["Action|Drama", "Comedy|Action", "Drama|Comedy"]),
        (["['love']", "['joy']", "['joy', 'love']"], ["['joy', 'love']"]),
        (["[1]", "[2]", "[1, 2]"], ["[1, 2]"]),
        (["Health, Safety", "Health", "Travel"], []),
        (["Doors, Windows", "Windows, Roofs", "Walls"], []),
        (["hotel;price", "hotel;staff", "food;price", "food;staff"], []),  # a level and a sublevel
        (["anger;fear", "anger;joy", "fear;joy", "joy;love"], ["anger;fear", "anger;joy", "fear;joy"]),
        (["a;b", "a;c", "b;c"], ["a;b", "a;c", "b;c"]),
        (["love;", "joy;", "love;joy;"], ["love;joy;"]),
        (["['love']", "['joy']", "['love' 'joy']"], ["['love' 'joy']"]),
        (["[1]", "[2]", "[1 2]"], ["[1 2]"]),
        (["A;1", "B;1", "A;2", "B;2"], []),
        (["Paris, France", "Lyon, France", "Berlin, Germany"], []),
        (
            ["Paris, Texas", "Dallas, Texas", "Dallas, Ohio", "Lima, Ohio", "Lima, Peru", "Cusco, Peru", "Peru, Ohio"],
            [],
        ),
        (["Smith, John", "Smith, Jane", "Doe, John", "Doe, Jane"], []),
        (
            ["C", "C++", "C+", "R&D", "Research & Development", "Research", "18+", "Yes, but", "Yes", "Sport|Ball"],
            [],
        ),
        (["yes", "no", "yes/no", "yes no", "yes-no", "1-2", "1", "2"], []),
        (["Sports", "News", "Sports/News", "TCP/IP", "a;", ";"], []),
    ],
)
def test_joined_labels_are_distinguished_from_names_with_separators(texts, expected):
    assert find_joined(texts) == expected


@pytest.mark.parametrize("cells", [["love", "joy", "fear"], ["3", "10", "7"]])
def test_several_labels_in_a_cell_are_refused(cells):
    a, b, c = cells
    frame = pd.DataFrame({"Label": [*cells * 5, f"{a};{b}", f"{b};{c}", f"{a};{b};{c}", f"{a};{b}"]})
    frame["Text"] = [f"text {i}" for i in range(len(frame))]
    with pytest.raises(DataError) as caught:
        read_table(frame)
    assert "4 of 19 rows" in caught.value.what
    assert f"{a};{b}" in caught.value.what
    assert "column 'Label'" in caught.value.where


@pytest.mark.parametrize("mark", ["+", " & ", "\n", "\r\n", "\t", "、", "，", "；", " · ", "•"])
@pytest.mark.parametrize("cells", [["love", "joy", "fear"], ["3", "10", "7"]])
def test_all_usual_separators_of_labels_are_recognised(mark, cells):
    joins = [mark.join(cells), mark.join(cells[:2]), mark.join(cells[1:])]
    assert find_joined([*cells, *joins]) == joins
    frame = pd.DataFrame({"Label": [*cells * 4, *joins * 2], "Text": [f"text {i}" for i in range(18)]})
    with pytest.raises(DataError) as caught:
        read_table(frame)
    assert "6 of 18 rows" in caught.value.what


def test_label_texts_with_a_line_break_are_single_labels():
    assert parse_label_texts(["very\ngood", "very\tbad", "good"], "t") == ["very good", "very bad", "good"]


def test_the_emotions_of_goemotions_are_refused(shared):
    for name in ("train", "val", "test"):
        with pytest.raises(DataError) as caught:
            read_table(shared / "goemotions" / f"{name}.csv", DataConfig(label_column="Labels"))
        assert "column 'Labels'" in caught.value.where
        assert "separator" in caught.value.remedy


@pytest.mark.parametrize("names", [("Health, Safety", "Health", "Safety"), ("a/b", "a", "b"), ("x;y", "y;z", "x")])
def test_a_few_names_with_separators_are_accepted(names):
    frame = pd.DataFrame({"Label": names * 5, "Text": [f"text {i}" for i in range(15)]})
    assert read_table(frame).labels.texts == tuple(sorted(names))


def test_numbers_that_do_not_start_at_zero_keep_their_value():
    labels, targets = link_labels([30, 10, 20, 10], ["c", "a", "b", "a"], "t")
    assert labels == Labels((10, 20, 30), ("a", "b", "c"))
    assert targets.tolist() == [2, 0, 1, 0]
    assert labels.id2label == {0: "a", 1: "b", 2: "c"}
    assert labels.label2id == {"a": 0, "b": 1, "c": 2}


def test_a_missing_label_column_is_derived_from_the_other():
    assert link_labels([1, -1, 1], None, "t")[0] == Labels((-1, 1), ("-1", "1"))
    assert link_labels(None, ["b", "a", None], "t")[0] == Labels((0, 1), ("a", "b"))


def test_a_missing_number_or_text_is_taken_from_the_other_rows():
    labels, targets = link_labels([1, None, 2, 2], ["a", "a", None, "b"], "t")
    assert labels == Labels((1, 2), ("a", "b"))
    assert targets.tolist() == [0, 0, 1, 1]


def test_all_inconsistent_pairs_are_listed():
    with pytest.raises(DataError) as caught:
        link_labels([1, 1, 2, 3], ["a", "b", "c", "c"], "t")
    _, number, text = caught.value.what.splitlines()
    assert "1" in number
    assert "'a' (1 row), 'b' (1 row)" in number
    assert "'c'" in text
    assert "2 (1 row), 3 (1 row)" in text


def test_labels_that_no_row_pairs_are_refused():
    with pytest.raises(DataError, match=": 2"):
        link_labels([1, 2], ["a", None], "t")
    with pytest.raises(DataError, match="both"):
        link_labels([1, None], [None, "a"], "t")


def test_known_classes_are_used_and_unknown_labels_refused():
    known = Labels((1, 2), ("a", "b"))
    assert link_labels(None, ["b", "a"], "t", known=known)[1].tolist() == [1, 0]
    assert link_labels([2, None], None, "t", known=known)[1].tolist() == [1, -1]
    with pytest.raises(DataError, match=r"'z' \(first in row 2\)"):
        link_labels(None, ["a", "z"], "t", known=known)
    with pytest.raises(DataError, match="1 = 'b'"):
        link_labels([1], ["b"], "t", known=known)


def test_numbers_are_no_positions_of_label_texts():
    known = link_labels(None, ["anger", "joy", "sadness"], "t")[0]
    with pytest.raises(DataError):
        link_labels([1, 0, 2], None, "t", known=known)
    assert link_labels([0, 1, 0, None], ["joy", "anger", None, "joy"], "t", known=known)[1].tolist() == [1, 0, 1, 1]
    years = link_labels(None, ["2020", "2021"], "t")[0]
    assert link_labels([2021, None, 2020], None, "t", known=years)[1].tolist() == [1, -1, 0]
    with pytest.raises(ValueError, match="not a label"):
        CLASSES.find("1", known)


def test_one_class_per_row_is_refused():
    with pytest.raises(DataError, match="5 different labels in 5 rows"):
        check_classes(Labels(tuple(range(5)), tuple("abcde")), np.arange(5), "t")
    check_classes(Labels((0, 1), ("a", "b")), np.array([0, 0, 1]), "t")


@given(st.lists(st.sampled_from([(5, "five"), (-2, "minus two"), (0, "nought")]), min_size=1, max_size=40))
def test_linked_labels_return_the_pairs(pairs):
    labels, targets = link_labels([n for n, _ in pairs], [t for _, t in pairs], "t")
    assert [(labels.numbers[i], labels.texts[i]) for i in targets] == pairs
    assert sorted(labels.numbers) == list(labels.numbers)


# -- labels of a finished run ------------------------------------------------------------------------------------------


def _later(table, labels, *, settings=None, **trained):
    """Read a later table for a run with these labels and settings."""
    run = SimpleNamespace(
        info={"config": trained}, labels=Labels((0, 1), labels), template=Template(), task=trained.get("task")
    )
    config = Config(**(settings or {}), task=trained.get("task", "single-label"))
    return read_labelled(pd.DataFrame({"text": [f"text {i}" for i in range(4)], **table}), config, run)


@pytest.mark.parametrize(
    ("trained", "settings", "column"),
    [
        ({}, {}, "label"),
        ({"label_column": "gold"}, {}, "Gold"),
        ({"label_text_column": "gold"}, {}, "Gold"),
        ({"label_column": "gold"}, {"label_column": "label"}, "label"),
        ({"label_column": "absent"}, {}, "label"),
        ({"label_column": None, "label_text_column": "absent"}, {}, "label"),
    ],
)
def test_a_later_table_is_read_with_the_label_column_of_the_training(trained, settings, column):
    table = {"label": ["a", "b", "a", "b"], "Gold": ["b", "b", "b", "a"]}
    assert _later(table, ("a", "b"), settings=settings, **trained).columns.label_names == (column,)


@pytest.mark.parametrize(("name", "both"), [("stars", False), ("Label", True), ("label_id", True), ("Class", False)])
def test_label_texts_belong_only_to_a_label_column_of_their_name(name, both):
    frame = pd.DataFrame({"text": list("abcdef"), name: [1, 2] * 3, "Label Text": ["food", "staff"] * 3})
    table = read_table(frame, DataConfig(label_column=name))
    assert table.columns.label_names == ((name, "Label Text") if both else (name,))
    assert ["--label-text-column 'Label Text'" in note.message for note in table.notes] == ([] if both else [True])


def test_an_error_in_the_label_column_of_the_training_is_not_hidden_by_another_column():
    with pytest.raises(DataError) as caught:
        _later({"label": ["a", "b", "a", "b"], "gold": ["b", "b", "b", "c"]}, ("a", "b"), label_column="gold")
    assert "'gold'" in caught.value.where


def test_a_later_regression_table_has_the_number_of_the_training():
    table = {"label": [0, 1, 1, 0], "score": [2.5, 3.5, 1, 0]}
    found = _later(table, ("score", ""), task="regression", label_column="score")
    assert found.targets.tolist() == [2.5, 3.5, 1, 0]


@pytest.mark.parametrize(
    ("cells", "trained", "expected"),
    [
        (["b & c", "a;b & c", "a", ""], ";", ["b & c", "a;b & c", "a", ""]),
        (["b & c", "b & c", "a", ""], ";", ["b & c", "b & c", "a", ""]),
        (["b & c", "a/b & c", "a", ""], "/", ["b & c", "a;b & c", "a", ""]),
        (["b c", "a|b c", "a", ""], ";", ["b c", "a;b c", "a", ""]),
    ],
)
def test_the_separator_of_the_training_comes_before_a_detected_one(cells, trained, expected):
    table = _later({"labels": cells}, ("a", cells[0]), task="multi-label", label_separator=trained)
    names = np.array(table.labels.texts)
    assert [";".join(names[row == 1]) for row in table.targets] == expected
