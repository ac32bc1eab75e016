"""Findings about the labels of each task."""

import json

import numpy as np
import pandas as pd
import pytest

import bertsmith as bs
from bertsmith.data.label_checks import differing_labels, far_numbers
from bertsmith.data.split import SMALL_CLASS_RULE
from bertsmith.report.report import findings_page


def _inspect(labels, **settings):
    frame = pd.DataFrame({"Text": [f"a text of {i} and {i * 7919}" for i in range(len(labels))], "Label": labels})
    return bs.inspect(frame.assign(**settings.pop("columns", {})), **settings)


def _kinds(findings):
    return {finding.kind for finding in findings.findings}


@pytest.mark.parametrize(
    ("numbers", "names", "ordered"),
    [
        ([1, 2, 3, 4, 5], None, True),
        (range(11), None, True),
        ([0, 1], None, False),
        ([1, 2, 4], None, False),
        (range(12), None, False),
        ([0, 1, 2], ["low", "medium", "high"], True),
        ([1, 2, 3], ["1 star", "2 stars", "3 stars"], True),
        ([0, 1, 2, 3], ["very bad", "bad", "good", "very good"], True),
        ([0, 1, 2], ["sport", "politics", "high society"], False),
    ],
)
def test_an_order_is_offered(numbers, names, ordered):
    labels = list(numbers) * 15
    columns = {} if names is None else {"columns": {"Label Text": [names[numbers.index(n)] for n in labels]}}
    findings = _inspect(labels, **columns)
    assert ("ordered-labels" in _kinds(findings)) == ordered
    assert "ordered-labels" not in _kinds(_inspect(labels, task="ordinal", **columns))


def test_words_in_the_order_of_the_alphabet_have_no_order():
    assert "ordered-labels" not in _kinds(_inspect(["bad", "good", "neutral"] * 15))


def test_label_sets_are_counted_by_label_and_row():
    findings = _inspect([["a", "b"], ["b"], [], ["a"]] * 15)
    assert findings.task == "multi-label"
    assert [c.rows for c in findings.classes] == [30, 30]
    (found,) = [f for f in findings.findings if f.kind == "label-sets"]
    assert found.count == 60
    assert "several labels: 15" in found.message
    assert "2 labels" in str(findings)
    assert "50.0%" in str(findings)  # of the rows, not of the labels
    assert findings_page(findings).count(">50.0\u00a0%<") == 2
    assert json.loads(json.dumps(findings.to_dict()))["task"] == "multi-label"


@pytest.mark.parametrize(
    ("codes", "far"),
    [
        ([-999] * 4, [-999]),
        ([98] * 3 + [99] * 5, [98, 99]),
        ([-99] * 3 + [999] * 3, [999]),
        ([-999] * 2, [-999]),
        ([-999], []),  # too few to be a code
        ([40] * 2, []),
        ([999] * 30, []),  # too many
        ([6, 7, 8, 9, 9, 9], []),  # too near
        ([40] + [99] * 3, [99]),
    ],
)
def test_codes_for_missing_numbers_are_found(codes, far):
    labels = [1, 2, 3, 4, 5, 2.5] * 10 + codes
    found = [f for f in _inspect(labels, task="regression").findings if f.kind == "far-numbers"]
    rows = [row for row, label in enumerate(labels, start=1) if label in far]
    assert [(f.severity, f.count, f.rows) for f in found] == [("warning", len(rows), tuple(rows[:5]))] * bool(far)


@pytest.mark.parametrize("rare", [[1] * 4 + [2] * 3 + [3] * 3, [1] * 20])
def test_numbers_with_a_long_tail_are_no_codes(rare):
    assert not far_numbers(np.array([0.0] * 190 + rare)).any()


@pytest.mark.parametrize(
    ("task", "differ"), [("single-label", [1, 1, 1]), ("ordinal", [0, 1, 1]), ("regression", [0, 0, 1])]
)
def test_small_differences_of_numbers_and_levels_are_no_conflict(task, differ):
    labels = [1, 2, 3, 5, 1, 9, 4, 4] * 4
    frame = pd.DataFrame({"Text": [f"text {i}" for i in range(32)], "Label": labels})
    table = bs.read_table(frame, task=task)
    found = differing_labels(table, np.arange(32) // 2)[0]
    assert found.tolist() == [bool(value) for value in [*np.repeat(differ, 2), 0, 0]] * 4


def test_small_classes_have_no_rule_for_several_labels_and_groups():
    labels, groups = ["a"] * 30 + ["b"] * 30 + ["c"] * 2, {"columns": {"Who": [f"w{i % 20}" for i in range(62)]}}
    for settings, ruled in (({}, True), ({"task": "multi-label"}, False), ({"group_column": "Who", **groups}, False)):
        found = {finding.kind: finding for finding in _inspect(labels, **settings).findings}
        assert (found["class-too-small"].action == SMALL_CLASS_RULE) == ruled


def test_numbers_are_described(cli, tmp_path):
    findings = _inspect(np.arange(60) / 4, task="regression")
    assert findings.numbers["mean"] == pytest.approx(7.375)
    assert (findings.numbers["minimum"], findings.numbers["maximum"]) == (0, 14.75)
    assert "█" not in str(findings)
    assert not {"imbalance", "small-class", "near-unique-labels"} & _kinds(findings)
    frame = pd.DataFrame({"Text": [f"text {i} {i * 31}" for i in range(60)], "Label": np.arange(60) / 4})
    frame.to_csv(tmp_path / "t.csv", index=False)
    code, out, _ = cli("inspect", tmp_path / "t.csv", "--task", "regression", "--html", tmp_path / "f.html", "--json")
    assert code == 0
    assert json.loads(out)["numbers"]["median"] == pytest.approx(7.375)
    assert "7.375" in (tmp_path / "f.html").read_text()


@pytest.mark.parametrize(("a", "b"), [("Sport", "sport"), ("\u00e9", "e\u0301"), ("a", "a\u200b"), ("A", "\uff21")])
def test_label_texts_that_look_alike_are_reported(a, b):
    (found,) = [f for f in _inspect([a, b, "x"] * 10).findings if f.kind == "labels-alike"]
    assert (found.severity, found.count) == ("warning", 2)
