"""Tables whose rows have several labels, ordered labels or numbers are read, split and folded correctly."""

import json

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertsmith.config import DataConfig
from bertsmith.data.clean import clean
from bertsmith.data.inspect import inspect
from bertsmith.data.read import read_table
from bertsmith.data.split import assign_folds, split, stratify_sets
from bertsmith.data.table import Labels
from bertsmith.errors import ConfigError, DataError
from bertsmith.tasks.registry import get_task

SETS = [["love", "joy"], ["joy"], [], ["anger", "love"], ["joy", "anger"], ["love"], ["anger"], []]
TEXTS = [f"text {word}" for word in ["one", "two", "three", "four", "five", "six", "seven", "eight"]]


def _named(table):
    targets = table.outcomes.targets(table.codes)
    return [sorted(t for t, yes in zip(table.labels.texts, row, strict=True) if yes) for row in targets]


def _read(labels, name="Labels", **settings):
    return read_table(pd.DataFrame({"Text": TEXTS, name: labels}), DataConfig(**settings))


def _check(table):
    assert table.task == "multi-label"
    assert table.labels.texts == ("anger", "joy", "love")
    assert _named(table) == [sorted(row) for row in SETS]


@pytest.mark.parametrize("separator", [";", "|", ",", "+", " & ", "\n", "; "])
def test_joined_labels_are_separated(separator):
    _check(_read([separator.join(row) for row in SETS], task="multi-label"))


def test_a_separator_of_the_user_is_used():
    _check(_read([" / ".join(row) for row in SETS], task="multi-label", label_separator="/"))


@pytest.mark.parametrize("name", ["12345678901234567890", "①", "²", "+-5", "02"])
def test_labels_that_are_not_integers_of_64_bits_are_label_texts(name):
    table = _read([[name, "2"], ["2"], [], ["2"]] * 2)
    assert (sorted(table.labels.texts), table.labels.numbered) == (sorted([name, "2"]), False)


@pytest.mark.parametrize("kind", [list, tuple, set, np.array])
def test_lists_are_found_without_a_setting(kind):
    _check(_read([kind(row) for row in SETS]))


def test_printed_lists_are_read():
    _check(_read([str(row) for row in SETS], task="multi-label"))


@pytest.mark.parametrize("show", [str, json.dumps, lambda row: str(np.array(row)), lambda row: str(tuple(row))])
def test_printed_lists_keep_separators_in_labels(show):
    rows = [["food, drinks", "it's 'ok'; fine"], ["food, drinks"], [], ["refund (partial)"]] * 2
    table = _read([show(row) for row in rows], task="multi-label")
    assert table.labels.texts == ("food, drinks", "it's 'ok'; fine", "refund (partial)")
    assert _named(table) == rows


@pytest.mark.parametrize("show", [lambda n: str(np.array(n)), lambda n: f"[{', '.join(map(str, n))}]"])
def test_printed_lists_of_numbers_are_read(show):
    assert _read([show([1, 2]), show([12]), *["[]"] * 6], task="multi-label").labels.numbers == (1, 2, 12)


def test_brackets_around_all_cells_are_removed():
    _check(_read(["{" + ",".join(row) + "}" for row in SETS], task="multi-label"))


def test_brackets_in_labels_are_kept():
    rows = [["billing", "refund (partial)"], ["refund (partial)"], ["[urgent]"], ["(other)"]] * 2
    table = _read([";".join(row) for row in rows], task="multi-label")
    assert table.labels.texts == ("(other)", "[urgent]", "billing", "refund (partial)")
    assert _named(table) == rows


def test_files_keep_lists(tmp_path):
    frame = pd.DataFrame({"Text": TEXTS, "Labels": SETS})
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    frame.to_json(tmp_path / "t.json", orient="records")
    for file in tmp_path.iterdir():
        _check(read_table(file))


@pytest.mark.parametrize(("no", "yes"), [(0, 1), (0.0, 1.0), (False, True), ("0", "1"), ("False", "TRUE")])
def test_columns_of_0_and_1_are_labels(no, yes):
    names = ("anger", "joy", "love")
    frame = pd.DataFrame({"Text": TEXTS, **{name: [yes if name in row else no for row in SETS] for name in names}})
    table = read_table(frame, DataConfig(label_columns=names))
    _check(table)
    assert table.columns.labels == names


def test_numbers_and_texts_of_labels_are_paired():
    numbers = {"anger": 30, "joy": 10, "love": 20}
    frame = pd.DataFrame(
        {
            "Text": TEXTS,
            "Label": [";".join(str(numbers[t]) for t in row) for row in SETS],
            "Label Text": [";".join(row) for row in SETS],
        }
    )
    table = read_table(frame, DataConfig(task="multi-label"))
    assert dict(zip(table.labels.texts, table.labels.numbers, strict=True)) == numbers
    assert _named(table) == [sorted(row) for row in SETS]


def test_a_second_table_may_write_the_columns_differently():
    frame = pd.DataFrame({"Text": TEXTS, "toxic": [1, 0] * 4, "rude": [0, 1] * 4})
    test = pd.DataFrame({"Text": ["a", "b"], "Toxic": [1, 0], "rude": [1, 0]})
    columns = ("toxic", "rude")
    table = read_table(frame, DataConfig(label_columns=columns, test=test))
    assert table.labels.texts == columns
    assert _named(table)[-2:] == [["rude", "toxic"], []]
    with pytest.raises(DataError) as caught:
        read_table(frame.assign(new=0), DataConfig(label_columns=(*columns, "new")), known=table.labels)
    assert "new" in caught.value.what


def test_a_second_table_may_lack_the_label_texts():
    frame = pd.DataFrame({"Text": TEXTS, "Label": [[1], [1, 2]] * 4, "Label Text": [["a"], ["a", "b"]] * 4})
    test = pd.DataFrame({"Text": ["x", "y"], "Label": [[2], [2, 1]]})
    for config, tables in ((DataConfig(test=test), frame), (DataConfig(test=frame), test)):
        table = read_table(tables, config)
        assert table.labels.texts == ("a", "b")
        named = dict(zip(table.frame["text"], _named(table), strict=True))
        assert (named["x"], named["y"], named["text two"]) == (["b"], ["a", "b"], ["a", "b"])


def test_class_names_of_datasets_are_used_and_differ_between_tables():
    def dataset(names, rows, many):
        kind = datasets.ClassLabel(names=names)
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.List(kind) if many else kind})
        texts = [f"{names} {i}" for i in range(len(rows))]
        return datasets.Dataset.from_dict({"text": texts, "label": rows}, features=features)

    train = dataset(["joy", "love", "fear"], [[0], [0, 1], [], [2]] * 2, many=True)
    table = read_table(train)
    assert table.labels == Labels((0, 1, 2), ("joy", "love", "fear"))
    assert _named(table)[:3] == [["joy"], ["joy", "love"], []]
    single = dataset(["joy", "love"], [0, 1, -1, 0, 1, 1], many=False)
    table = read_table(single, DataConfig(task="multi-label"))
    assert table.codes[2] == -1
    assert _named(table.take(table.codes >= 0)) == [["joy"], ["love"], ["joy"], ["love"], ["love"]]
    other = dataset(["love", "joy"], [0, 1], many=False)
    with pytest.raises(DataError):  # 0 is joy in one table and love in the other
        read_table(single, DataConfig(task="multi-label", test=other))


def test_a_missing_list_is_not_an_empty_one():
    table = _read([None, *SETS[1:]])
    assert table.codes[0] == -1
    assert clean(table).counts == {"missing label": 1}
    assert _read(["", *map(str, SETS[1:])], task="multi-label").codes[0] == -1
    assert (_read(["", *map(";".join, SETS[1:])], task="multi-label").codes >= 0).all()


def test_labels_are_not_repeated_and_white_space_is_normalised():
    table = _read(["love; love ;joy", " joy", "", "anger;love", "joy;anger", "love", "anger;", ";"], task="multi-label")
    _check(table)


def test_a_run_reads_labels_by_its_classes():
    known = _read(SETS).labels
    later = read_table(pd.DataFrame({"Text": ["x"], "Labels": [["joy"]]}), DataConfig(), known=known)
    assert later.targets.tolist() == [[False, True, False]]
    with pytest.raises(DataError) as caught:
        read_table(pd.DataFrame({"Text": ["x", "y"], "Labels": [["joy"], ["joy", "envy"]]}), DataConfig(), known=known)
    assert "envy" in caught.value.what
    assert "row 2" in caught.value.what


@pytest.mark.parametrize(
    "cells", [[1.5, 2, 3, 4.25] * 2, ["1.5", "2", " 3 ", "4.25"] * 2, ["1e1", "-2", "+3", ".5"] * 2]
)
def test_numbers_are_read(cells):
    table = _read(cells, "Label", task="regression")
    assert table.targets.tolist() == [float(cell) for cell in cells]
    assert table.labels.texts == ("Label",)


def test_ordered_labels_follow_their_numbers():
    names = ["low", "middle", "high", "low", "middle", "high", "low", "high"]
    frame = pd.DataFrame({"Text": TEXTS, "Label": [names.index(n) + 1 for n in names], "Label Text": names})
    table = read_table(frame, DataConfig(task="ordinal"))
    assert table.labels.texts == ("low", "middle", "high")
    with pytest.raises(DataError) as caught:
        read_table(frame.drop(columns="Label"), DataConfig(task="ordinal"))
    assert "--label-column" in caught.value.remedy
    ordered = pd.Series(pd.Categorical([*names[:7], None], ["low", "middle", "high"], ordered=True))
    codes = ordered.cat.codes.where(ordered.notna())  # as the remedy says
    table = read_table(frame[["Text"]].assign(Label=codes), DataConfig(task="ordinal"))
    assert table.codes.tolist() == [0, 1, 2, 0, 1, 2, 0, -1]


def test_equal_texts_are_duplicates_conflicts_or_averaged():
    frame = pd.DataFrame({"Text": ["a", "a", "b", "b", "c"], "Labels": [["x", "y"], ["y", "x"], ["x"], ["y"], []]})
    assert clean(read_table(frame)).counts == {"duplicate": 1, "conflicting labels": 2}
    numbers = pd.DataFrame({"Text": ["a", "a", "b", "b", "c"], "Label": [1.0, 1.0, 2.0, 2.5, 3.0]})
    cleaned = clean(read_table(numbers, DataConfig(task="regression")))
    assert cleaned.counts == {"duplicate": 1, "averaged with another row": 1}


def test_rows_with_one_label_each_become_label_sets_in_every_split():
    rows = [("a", "x"), ("b", "y"), ("a", "y"), ("a", "y"), ("c", ""), ("t", "x"), ("t", "y"), ("u", "y"), ("u", "y")]
    frame = pd.DataFrame(rows, columns=["Text", "Labels"]).assign(Split=["train"] * 5 + ["test"] * 4)
    table = read_table(frame, DataConfig(task="multi-label", split_column="Split"))
    cleaned = clean(table)
    assert cleaned.table.frame["text"].tolist() == ["a", "b", "c", "t", "u", "u"]
    assert cleaned.table.targets.astype(int).tolist() == [[1, 1], [0, 1], [0, 0], [1, 1], [0, 1], [0, 1]]
    assert cleaned.counts == {"labels added to another row": 3}
    assert "united" in {finding.kind for finding in inspect(table).findings}


# -- splits ------------------------------------------------------------------------------------------------------------


def _random_sets(rng, n, k):
    return rng.random((n, k)) < rng.choice([0.02, 0.1, 0.3, 0.6], k)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 150), st.integers(1, 8), st.integers(2, 5), st.booleans())
def test_every_text_is_in_one_split_and_groups_stay_whole(seed, n, k, splits, grouped):
    rng = np.random.default_rng(seed)
    sets = _random_sets(rng, n, k)
    groups = rng.integers(0, max(n // 3, 1), n) if grouped else np.arange(n)
    portions = rng.dirichlet(np.full(splits, 5.0))
    chosen = stratify_sets(sets, groups, portions, np.random.default_rng(seed))
    assert chosen.shape == (n,)
    assert ((chosen >= 0) & (chosen < splits)).all()
    assert all(len(np.unique(chosen[groups == group])) == 1 for group in np.unique(groups))
    again = stratify_sets(sets, groups, portions, np.random.default_rng(seed))
    assert (again == chosen).all()


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(100, 400), st.integers(2, 8))
def test_each_split_has_its_share_of_every_label(seed, n, k):
    rng = np.random.default_rng(seed)
    sets = _random_sets(rng, n, k)
    portions = np.array([0.8, 0.1, 0.1])
    chosen = stratify_sets(sets, np.arange(n), portions, rng)
    sizes = np.bincount(chosen, minlength=3)
    assert abs(sizes - n * portions).max() <= 1 + 0.04 * n
    for c in range(k):
        found = np.bincount(chosen[sets[:, c]], minlength=3)
        assert abs(found - sets[:, c].sum() * portions).max() <= 2 + 0.05 * sets[:, c].sum()


def test_rare_labels_reach_the_held_out_splits_more_often_than_by_chance():
    rng = np.random.default_rng(0)
    sets = rng.random((1000, 10)) < 0.02
    chosen = stratify_sets(sets, np.arange(1000), np.array([0.8, 0.1, 0.1]), rng)
    assert all(set(chosen[sets[:, c]]) == {0, 1, 2} for c in range(10))


def test_a_table_of_label_sets_is_split_with_its_near_duplicates_and_folded():
    rng = np.random.default_rng(0)
    words = np.array(["cat", "dog", "red", "blue", "house", "tree", "car", "moon", "sun", "sea"])
    texts = [" ".join(rng.permutation(words)[:8]) + f" {i // 2}" for i in range(120)]
    texts[1::2] = [f"{text}!" for text in texts[::2]]  # near-duplicates
    labels = [[w for w in ("cat", "dog", "red") if w in text] for text in texts]
    cleaned = clean(read_table(pd.DataFrame({"Text": texts, "Labels": labels})))
    data = split(cleaned.table, validation_size=0.15, test_size=0.15, seed=0, near_duplicates=cleaned.near_duplicates)
    splits = data.frame["split"].to_numpy()
    assert set(splits) == {"train", "validation", "test"}
    assert (splits[::2] == splits[1::2]).all()
    rows = np.arange(len(data))
    folds = assign_folds(cleaned, data, rows, 4, DataConfig(), seed=0)
    assert (folds[::2] == folds[1::2]).all()
    counts = np.array([data.targets[folds == f].sum(axis=0) for f in range(4)])
    assert (abs(counts - counts.mean(axis=0)) <= 0.25 * counts.mean(axis=0) + 2).all()
    with pytest.raises(ConfigError):
        assign_folds(cleaned, data, rows[:6], 5, DataConfig(), seed=0)


def test_numbers_are_split_by_quantiles():
    values = np.random.default_rng(0).exponential(size=400).round(2)
    frame = pd.DataFrame({"Text": [f"text number {i} of {i * 7919}" for i in range(400)], "Label": values})
    table = clean(read_table(frame, DataConfig(task="regression"))).table
    data = split(table, validation_size=0.1, test_size=0.1, seed=0)
    means = [data.targets[(data.frame["split"] == name).to_numpy()].mean() for name in ("train", "validation", "test")]
    assert np.ptp(means) < 0.15


# -- tables of predictions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["multi-label", "ordinal", "regression"])
def test_saved_predictions_give_back_targets_and_scores(name, tmp_path):
    task = get_task(name)
    rng = np.random.default_rng(0)
    table = {
        "multi-label": lambda: _read(SETS),
        "ordinal": lambda: _read([1, 2, 3, 1, 2, 3, 1, 2], "Label", task="ordinal"),
        "regression": lambda: _read(rng.normal(size=8), "Label", task="regression"),
    }[name]()
    scores = rng.normal(size=(8, 1)) if name == "regression" else rng.dirichlet(np.ones(3), 8)
    frame = pd.DataFrame({**task.truth_columns(table.targets, table.labels)})
    frame = frame.assign(**task.prediction_columns(scores, table.labels), probabilities=list(scores))
    frame.to_parquet(tmp_path / "p.parquet")
    stored = pd.read_parquet(tmp_path / "p.parquet")
    assert (task.stored_targets(stored, table.labels) == table.targets).all()
    assert task.stored_scores(stored) == pytest.approx(scores)
    assert json.loads(stored.drop(columns="probabilities").to_json(orient="records"))
    wrong = task.mistakes(frame, table.labels)
    assert name == "regression" or len(wrong) == (~task.is_right(table.targets, scores)).sum()


def test_a_text_without_labels_and_predictions_is_no_mistake(tmp_path):
    frame = pd.DataFrame({"labels": [[], [1], []], "predicted": [[], [], []], "confidence": [0.9, 0.8, 0.7]})
    frame.to_parquet(tmp_path / "p.parquet")
    stored = pd.read_parquet(tmp_path / "p.parquet")
    assert get_task("multi-label").mistakes(stored, Labels((1,), ("a",))).index.tolist() == [1]


def test_mistakes_on_ordered_labels_are_sorted_by_distance_then_by_confidence():
    frame = pd.DataFrame({"label": [10, 1, 10, 2, 1], "predicted": [2, 10, 10, 1, 10]})
    frame = frame.assign(confidence=[0.9, 0.5, 0.99, 0.95, 0.6])
    labels = Labels((1, 2, 10), ("a", "b", "c"))
    assert get_task("ordinal").mistakes(frame, labels).index.tolist() == [4, 1, 3, 0]


def test_steps_count_classes_that_no_text_has():
    frame = pd.DataFrame({"label": [1, 2], "predicted": [2, 4], "confidence": [0.9, 0.5]})
    labels = Labels((1, 2, 3, 4), ("a", "b", "c", "d"))
    assert get_task("ordinal").mistakes(frame, labels).index.tolist() == [1, 0]
