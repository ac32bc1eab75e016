"""Tables with one row per text and coder."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import bertsmith as bs
from bertsmith.data.clean import NO_LABEL, clean
from bertsmith.data.outcomes import majority
from bertsmith.errors import ConfigError, DataError
from bertsmith.evaluation.calibration import softmax
from bertsmith.tasks.registry import get_task
from bertsmith.testing import tiny_table
from bertsmith.training.data import TokenDataset
from bertsmith.workflows import training_labels
from bertsmith.workflows.training_labels import compare_labels
from tests.conftest import train


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


@pytest.mark.parametrize("no_coder", [None, "", " "])
def test_rows_without_a_coder_or_a_label_are_kept(no_coder):
    read = bs.read_table(
        coded(("x", "a", "ann"), ("x", None, "ben"), ("y", None, "ann"), ("z", "b", no_coder), ("z", "a", no_coder)),
        coder_column="Coder",
    )
    assert set(read.coded) == {(0, "ann")}
    assert list(zip(read.frame["text"], read.codes, strict=True)) == [("x", 0), ("y", -1), ("z", 1), ("z", 0)]


def test_a_later_label_of_a_coder_replaces_an_earlier_one():
    read = bs.read_table(coded(("x", "b", "ann"), ("x", "a", "ann"), ("y", "b", "ann")), coder_column="Coder")
    assert read.codes.tolist() == [0, 1]


def test_texts_are_compared_as_in_cleaning_and_rows_without_a_text_stay_apart():
    rows = [("x", "a", "ann"), ("x ", "b", "ben"), ("\x00x", "b", "eve"), (" ", "a", "ann"), (None, "b", "ben")]
    read = bs.read_table(coded(*rows), coder_column="Coder")
    assert read.codes.tolist() == [1, 0, 1]
    assert set(read.coded) == {(0, "ann"), (0, "ben"), (0, "eve")}


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
    rows = [("x", some, coder) for some, coder in zip((["a", "b"], ["a"], ["a", "c"]), "fgh", strict=True)]
    rows += [("y", ["b", "c"], coder) for coder in "fgh"]
    read = bs.read_table(coded(*rows), coder_column="Coder")
    assert read.targets.tolist() == [[True, False, False], [False, True, True]]
    assert read.extra["share_of_coders"].round(2).tolist() == [0.33, 1]
    split = coded(("x", "a", "ann"), ("y", "b", "ann"), ("x", "b", "ann"), part=["train", "train", "test"])
    assert len(bs.read_table(split, coder_column="Coder", split_column="part")) == 3


def test_a_coder_can_have_a_row_for_each_label_of_a_text():
    rows = [("x", "ann", "a"), ("x", "ann", "b"), ("x", "ben", "a"), ("x", "ben", "b"), ("y", "ann", "c")]
    rows += [(f"z{i}", "ann", "c") for i in range(5)]
    frame = pd.DataFrame(rows, columns=["Text", "Coder", "Label Text"])
    read = bs.read_table(frame, coder_column="Coder", task="multi-label")
    assert read.targets.tolist() == [[True, True, False], *[[False, False, True]] * 6]
    assert set(read.coded.values()) == {frozenset("ab"), frozenset("c")}
    assert not read.notes


def test_several_labels_of_a_coder_for_a_text_are_reported():
    rows = [("x", "ann", "a"), ("y", "ann", "b"), ("x", "ann", "b"), ("x", "ben", "b")]
    read = bs.read_table(pd.DataFrame(rows, columns=["Text", "Coder", "Label Text"]), coder_column="Coder")
    assert [(note.severity, note.count, note.rows) for note in read.notes] == [("warning", 1, (1,))]
    assert [read.labels.texts[code] for code in read.codes] == ["b", "b"]


@pytest.mark.parametrize(
    ("votes", "ordered", "expected"),
    [
        ([3, 3, 1], False, 3),
        ([3, 1], False, None),
        ([1, 1, 2, 3, 3], False, None),
        ([1, 1, 2, 3, 3], True, 2),
        ([1, 2, 3], True, 2),
        ([1, 1, 3, 4], True, 1),
        ([3, 4], True, None),
        ([0], True, 0),
        ([[1, 1, 0], [1, 0, 0], [1, 0, 1]], False, [1, 0, 0]),
        ([[1, 1, 0], [1, 0, 0]], False, None),
        ([[0, 0], [0, 0]], False, [0, 0]),
        ([[0, 0], [0, 0], [1, 0]], False, [0, 0]),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], False, None),  # nobody gave an empty set
    ],
)
def test_the_majority_of_several_coders(votes, ordered, expected):
    found = majority(np.array(votes), ordered=ordered)
    assert found is None if expected is None else np.array_equal(found, expected)


def test_the_votes_on_disputed_texts_are_kept_and_belong_to_the_data(table):
    read = bs.read_table(table, coder_column="coder")
    usable = clean(read).table
    shares = usable.vote_shares
    assert shares[:8].tolist() == [[1, 0]] * 4 + [[0, 1]] * 4
    assert shares[8] == pytest.approx([1 / 3, 2 / 3])
    other = table.copy()
    other.loc[24, "Coder"] = "ben"  # gives the text a second label, which replaces the first
    again = clean(bs.read_table(other, coder_column="coder")).table
    assert (again.codes == usable.codes).all()
    assert again.vote_shares is None
    assert again.fingerprint != usable.fingerprint


def test_a_corrected_label_replaces_the_votes(table, tmp_path):
    pd.DataFrame({"row": [25], "text": ["ninth"], "corrected": ["a"]}).to_csv(tmp_path / "c.csv", index=False)
    read = bs.read_table(table, coder_column="coder", corrections=tmp_path / "c.csv")
    assert read.codes[8] == 0
    assert read.vote_shares[8].tolist() == [1, 0]


# -- soft labels -------------------------------------------------------------------------------------------------------


def votes(kind, seed, n=600, coders=5):
    """Return embeddings, majority labels and shares of texts that are ambiguous, or that coders label by mistake."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 20)) / 3
    p = softmax(x @ rng.normal(size=(20, 3)) * 1.5)
    given = (rng.random((n, coders, 1)) > p.cumsum(axis=1)[:, None]).sum(axis=2)
    if kind == "mistakes":
        is_wrong = rng.random((n, coders)) < 0.1
        given = np.where(is_wrong, rng.integers(0, 3, (n, coders)), p.argmax(axis=1)[:, None])
    shares = np.stack([(given == c).mean(axis=1) for c in range(3)], axis=1)
    highest = np.sort(shares, axis=1)
    shares = shares[highest[:, 2] > highest[:, 1]]
    return x[highest[:, 2] > highest[:, 1]], shares.argmax(axis=1), shares, np.arange(len(shares))


@pytest.mark.parametrize("kind", ["ambiguous", "mistakes"])
def test_soft_labels_are_used_for_ambiguous_texts_only(kind):
    task = get_task("single-label")
    found = [compare_labels(*votes(kind, seed), task, seed) for seed in range(3)]
    assert [one.used for one in found] == [kind == "ambiguous"] * 3
    for one in found:
        assert one.gain == pytest.approx(one.log_loss[0] - one.log_loss[1])
        assert one.used == (one.gain > one.gain_error and one.macro_f1[1] - one.macro_f1[0] >= -one.macro_f1_error)
    assert compare_labels(np.eye(4), np.array([0, 0, 0, 1]), np.eye(2)[[0, 0, 0, 1]], np.arange(4), task, 0) is None


@pytest.mark.parametrize("used", [True, False])
def test_a_run_records_which_labels_it_is_trained_on(used, tmp_path, tiny, monkeypatch):
    table = tiny_table(60)
    rows = pd.concat([table.assign(coder=c) for c in "abc"])
    differs = (rows["coder"] == "c") & (rows["Label"] < 2) & (rows.index % 2 == 0)
    rows.loc[differs, ["Label", "Label Text"]] = (2, "fruits")
    seen, batch_of = [], TokenDataset.__getitems__

    def noted(self, positions):
        batch = batch_of(self, positions)
        seen.append(batch["texts"].targets)
        return batch

    compare = training_labels.compare_labels
    monkeypatch.setattr(training_labels, "compare_labels", lambda *a: replace(compare(*a), used=used))
    monkeypatch.setattr(TokenDataset, "__getitems__", noted)
    # With one more column, the run also trains a model on the text alone, for comparison.
    more = {"table": rows.assign(where="here"), "with_columns": ("where",), "cv": 3} if used else {"table": rows}
    run = train(tiny, tmp_path / "run", coder_column="coder", epochs=1, **more)
    recorded = run.info["soft_labels"]
    assert recorded["used"] == used
    assert recorded["disputed"] > 0
    soft = [labels for labels in seen if labels.is_floating_point()]
    assert len(soft) == (len(seen) if used else 0)
    assert all(labels.sum(dim=1).allclose(torch.ones(len(labels))) for labels in soft)
    assert any(((labels > 0) & (labels < 1)).any() for labels in soft) == used
    assert "soft labels" in run.layout.report.read_text(encoding="utf-8")
    assert (run.predictions["label"].isin([0, 1, 2])).all()


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
    with pytest.raises(ConfigError) as caught:
        bs.read_table(table.assign(**{"Label Text": range(len(table))}), coder_column="Coder", task="regression")
    assert caught.value.where
