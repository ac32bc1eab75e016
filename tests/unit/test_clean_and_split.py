from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertsmith.config import DataConfig
from bertsmith.data import near_duplicates
from bertsmith.data.clean import (
    AVERAGED,
    CONFLICT,
    DUPLICATE,
    EMPTY,
    IN_TEST,
    IN_VALIDATION,
    NO_LABEL,
    clean,
    group_near_duplicates,
)
from bertsmith.data.inspect import inspect
from bertsmith.data.read import read_table
from bertsmith.data.split import split
from bertsmith.data.texts import normalise
from bertsmith.errors import DataError
from bertsmith.testing import WORDS, tiny_table


def _read(rows, **columns):
    return read_table(pd.DataFrame(rows, columns=["Label Text", "Text"]).assign(**columns))


def _drops(cleaned):
    return {int(r.row): (r.reason, int(r.duplicate_of)) for r in cleaned.dropped.itertuples()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Keep THIS, please!  ", "Keep THIS, please!"),
        ("cafe\u0301", "café"),
        ("a\x00b\x07c", "abc"),
        ("a\x0bb", "a b"),
        ("don\x92t", "don’t"),
        ("\ufefftext", "text"),
        ("line\nbreak\ttab", "line\nbreak\ttab"),
    ],
)
def test_normalise_changes_only_form_and_control_characters(text, expected):
    assert normalise(text) == expected


@given(st.text())
def test_normalise_is_idempotent(text):
    assert normalise(normalise(text)) == normalise(text)


def test_every_dropped_row_has_a_reason():
    cleaned = clean(
        _read(
            [("a", "one"), ("a", " one "), ("b", "two"), ("a", "two"), ("a", "  "), (None, "x"), ("b", "y"), ("b", "z")]
        )
    )
    assert _drops(cleaned) == {
        2: (DUPLICATE, 1),
        3: (CONFLICT, 3),
        4: (CONFLICT, 3),
        5: (EMPTY, 0),
        6: (NO_LABEL, 0),
    }
    assert cleaned.table.frame["row"].tolist() == [1, 7, 8]
    assert cleaned.counts == {CONFLICT: 2, DUPLICATE: 1, EMPTY: 1, NO_LABEL: 1}


def test_numbers_of_the_same_text_are_averaged_in_train_only():
    rows = [(3, "one"), (1.5, "two"), (3, " one "), (6, "one"), (1.5, "two"), (2, "three"), (9, "four"), (7, "four")]
    splits = ["train"] * 6 + ["test"] * 2
    table = read_table(
        pd.DataFrame(rows, columns=["Label", "Text"]).assign(part=splits),
        DataConfig(task="regression", split_column="part"),
    )
    cleaned = clean(table)
    assert _drops(cleaned) == {3: (AVERAGED, 1), 4: (AVERAGED, 1), 5: (DUPLICATE, 2)}
    found = cleaned.table
    assert dict(zip(found.frame["row"], found.targets.tolist(), strict=True)) == {1: 4, 2: 1.5, 6: 2, 7: 9, 8: 7}
    (finding,) = [f for f in inspect(table).findings if f.kind == "averaged"]
    assert (finding.count, finding.rows) == (2, (3, 4))
    assert clean(found).table.targets.tolist() == found.targets.tolist()


def test_leaks_are_dropped_from_train_and_not_from_test():
    table = read_table(
        pd.DataFrame(
            [
                ("a", "one", "train"),
                ("a", "two", "train"),
                ("a", "three", "train"),
                ("b", "four", "train"),
                ("a", "two", "validation"),
                ("b", "five", "validation"),
                ("a", "one", "test"),
                ("b", "one", "test"),
                ("b", "five", "test"),
            ],
            columns=["label text", "text", "part"],
        ),
        DataConfig(split_column="part"),
    )
    cleaned = clean(table)
    assert _drops(cleaned) == {1: (IN_TEST, 7), 2: (IN_VALIDATION, 5), 6: (IN_TEST, 9)}
    assert (cleaned.table.frame["split"] == "test").sum() == 3


def _balanced(counts):
    rows = [(f"class {c}", f"text {c} {i}") for c, n in enumerate(counts) for i in range(n)]
    return clean(_read(rows)).table


def _sizes(table):
    return pd.crosstab(table.frame["target"], table.frame["split"]).reindex(
        columns=["train", "validation", "test"], fill_value=0
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(3, 60), min_size=2, max_size=8), st.integers(0, 2**32 - 1))
def test_split_is_stratified_complete_and_seeded(counts, seed):
    table = _balanced(counts)
    result = split(table, validation_size=0.1, test_size=0.1, seed=seed)
    sizes = _sizes(result).to_numpy()
    assert sizes.sum(axis=1).tolist() == counts
    assert (sizes >= 1).all()
    # Within one text of the exact share, except for the first text of a class.
    assert (abs(sizes[:, 1:] - np.array(counts)[:, None] * 0.1) < 1 + 1e-9).all()
    again = split(table, validation_size=0.1, test_size=0.1, seed=seed)
    assert again.frame["split"].tolist() == result.frame["split"].tolist()


def test_another_seed_gives_another_split():
    table = _balanced([50, 50])
    a, b = (split(table, validation_size=0.1, test_size=0.1, seed=s).frame["split"].tolist() for s in (1, 2))
    assert a != b


def test_small_classes_follow_the_rule():
    sizes = _sizes(split(_balanced([20, 2, 3, 3]), validation_size=0.1, test_size=0.1, seed=0)).to_numpy().tolist()
    assert sizes == [[16, 2, 2], [1, 0, 1], [1, 1, 1], [1, 1, 1]]


def test_groups_stay_together():
    frame = pd.DataFrame({"label": ["a", "b"] * 100, "text": [f"t{i}" for i in range(200)], "who": np.arange(200) // 8})

    table = split(
        clean(read_table(frame, DataConfig(group_column="who"))).table, validation_size=0.1, test_size=0.2, seed=3
    )
    assert (table.frame.groupby("group")["split"].nunique() == 1).all()
    shares = table.frame["split"].value_counts(normalize=True)
    assert shares["test"] == pytest.approx(0.2, abs=0.05)
    assert shares["validation"] == pytest.approx(0.1, abs=0.05)


def test_too_few_groups_are_refused():
    frame = pd.DataFrame({"label": ["a", "b"] * 5, "text": [f"t{i}" for i in range(10)], "who": [1, 2] * 5})
    with pytest.raises(DataError, match="2 groups"):
        split(
            clean(read_table(frame, DataConfig(group_column="who"))).table, validation_size=0.1, test_size=0.1, seed=0
        )


def test_given_splits_do_not_change_and_the_other_is_held_out(tmp_path):
    tiny_table(100).to_csv(tmp_path / "train.csv", index=False)
    tiny_table(30, seed=9).to_csv(tmp_path / "test.csv", index=False)
    table = clean(read_table(tmp_path / "train.csv", DataConfig(test=tmp_path / "test.csv"))).table
    result = split(table, validation_size=0.1, test_size=0.1, seed=0).frame
    assert result[result["split"] == "test"]["source"].unique().tolist() == ["test.csv"]
    assert (result["split"] == "test").sum() == 30
    assert (result["split"] == "validation").sum() == pytest.approx(10, abs=1)


def test_one_class_is_refused():
    with pytest.raises(DataError, match=r"train split .*'a'"):
        split(clean(_read([("a", f"t{i}") for i in range(30)])).table, validation_size=0.1, test_size=0.1, seed=0)


def test_too_small_a_table_is_refused():
    with pytest.raises(DataError, match="validation split"):
        split(
            clean(_read([("a", "1"), ("a", "2"), ("b", "3"), ("b", "4")])).table,
            validation_size=0.1,
            test_size=0.1,
            seed=0,
        )


def test_near_duplicates_are_grouped():
    texts = [
        "Where is my new card? It should have come last week.",
        "where is my new card -  it should have come last week!!",
        "What is the exchange rate for euros today?",
        "Where is my new card? It should have come last weeks.",
        "completely different words stand here",
        "",
        "!?",
        "!?",
        "com\u00adpletely dif\u00adferent words stand here",
        "".join(chr(ord(c) + 0xFEE0) if c > " " else c for c in "Completely different words stand here"),  # full width
    ]
    assert group_near_duplicates(texts).tolist() == [0, 0, 2, 0, 4, 5, 6, 6, 4, 4]
    assert group_near_duplicates([]).tolist() == []


def test_most_near_duplicates_just_above_the_threshold_are_found():
    rng = np.random.default_rng(0)
    texts = []
    for _ in range(150):
        words = ["".join(rng.choice(list("abcdefghij"), n)) for n in rng.integers(2, 8, 16)]
        texts += [" ".join(words), " ".join([*words[:-2], words[0]])]
    similar = np.array([near_duplicates._is_similar(a, b) for a, b in zip(texts[::2], texts[1::2], strict=True)])
    groups = group_near_duplicates(texts)
    assert similar.sum() > 100
    assert (groups[::2] == groups[1::2])[similar].mean() > 0.9


def test_the_work_per_text_does_not_grow_with_the_number_of_near_duplicates(monkeypatch):
    found, root = [], near_duplicates._root
    monkeypatch.setattr(near_duplicates, "_root", lambda group, i: found.append(i) or root(group, i))
    texts = [f"Your order number {i} has been shipped and will arrive at your home in three days." for i in range(600)]
    assert len(set(group_near_duplicates(texts))) < 20
    assert len(found) < 150 * len(texts)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.text(max_size=40), max_size=12), st.integers(0, 10**6))
def test_equal_texts_form_one_group(texts, seed):
    texts = [*texts, *texts[:3]]
    group = group_near_duplicates(texts)
    for i, text in enumerate(texts):
        assert group[i] <= i
        assert group[group[i]] == group[i]
        assert group[i] == group[texts.index(text)]


def _near(rows=200):
    table = tiny_table(rows)
    rng = np.random.default_rng(0)
    blocks = ["".join(rng.choice(list("abcdefghij "), 60)) for _ in range(rows // 4)]
    table["Text"] = [f"{blocks[i // 4]} {'wxyz'[i % 4]}" for i in range(rows)]
    table["Label Text"] = [list(WORDS)[i // 4 % 3] for i in range(rows)]
    return read_table(table.drop(columns="Label"))


@pytest.mark.parametrize("grouped", [False, True])
def test_near_duplicates_stay_in_one_split(grouped):
    table = _near()
    if grouped:  # authors of eight texts each, which link groups of near-duplicates
        authors = pd.Series([f"author {i // 8}" for i in range(len(table))], dtype="str")
        table = replace(table, frame=table.frame.assign(group=authors))
    cleaned = clean(table)
    groups = cleaned.near_duplicates
    assert len(np.unique(groups)) < len(groups) / 2
    done = split(cleaned.table, validation_size=0.2, test_size=0.2, seed=0, near_duplicates=groups)
    n_splits = done.frame.assign(near=groups).groupby("near")["split"].nunique()
    assert (n_splits == 1).all()
    if grouped:
        assert (done.frame.groupby("group")["split"].nunique() == 1).all()
    assert set(done.frame["split"]) == {"train", "validation", "test"}
    apart = split(cleaned.table, validation_size=0.2, test_size=0.2, seed=0)
    if not grouped:
        assert (apart.frame.assign(near=groups).groupby("near")["split"].nunique() > 1).any()


def test_a_large_group_of_near_duplicates_is_trained_on():
    table, is_large = clean(_read([("ab"[i % 2], f"text {i}") for i in range(400)])).table, np.arange(400) < 300
    groups = np.where(is_large, 0, np.arange(400))
    for seed in range(10):
        splits = split(table, validation_size=0.1, test_size=0.1, seed=seed, near_duplicates=groups).frame["split"]
        assert set(splits[is_large]) == {"train"}
        assert splits.value_counts().to_dict() == {"train": 320, "validation": 40, "test": 40}


def test_groups_in_several_given_splits_are_reported():
    frame = tiny_table(60).assign(author=[f"author {i % 10}" for i in range(60)], part=["train"] * 50 + ["test"] * 10)
    frame.loc[55:, "author"] = ["new", "new", None, "", "newer"]
    config = DataConfig(group_column="author", split_column="part")
    found = {f.kind: f for f in inspect(read_table(frame, config)).findings}
    assert (found["group-leak"].severity, found["group-leak"].count) == ("warning", 5)
    assert found["group-leak"].rows == (51, 52, 53, 54, 55)
    kinds = {f.kind for f in inspect(read_table(frame, DataConfig(group_column="author"))).findings}
    assert not kinds & {"group-leak", "single-groups"}


@pytest.mark.parametrize(("n_tested", "found"), [(5, 1), (45, 9), (50, 10)])
def test_few_groups_in_the_test_split_are_reported(n_tested, found):
    frame = tiny_table(60).assign(author=np.arange(60) // 5)
    table = read_table(frame, DataConfig(group_column="author"))
    findings = inspect(table, test=clean(table).table.take(np.arange(n_tested))).findings
    counts = [(f.severity, f.count) for f in findings if f.kind == "few-groups"]
    assert counts == ([("warning", found)] if found < 10 else [])


def test_white_space_unicode_form_and_number_format_do_not_divide_groups():
    groups = ["a  b", " a b ", "caf\u00e9", "cafe\u0301", 7, "7.0", "007", " "]
    frame = pd.DataFrame({"text": list("abcdefgh"), "label": [0, 1] * 4, "who": groups})
    frame.attrs["name"] = "d.csv"
    table = read_table(frame, DataConfig(group_column="who", test=frame))
    assert table.frame["group"].factorize()[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 4, 0, 0, 1, 1, 2, 2, 3, 5]


def test_a_fingerprint_has_the_groups_and_older_ones_do_not():
    frame = pd.DataFrame({"text": list("abcd"), "label": [0, 1] * 2, "who": [1, 1, 2, 2], "other": [1, 2, 1, 2]})
    who, other = (read_table(frame, DataConfig(group_column=name)).fingerprints for name in ("who", "other"))
    ungrouped = read_table(frame).fingerprint
    assert len({who[0], other[0], ungrouped}) == 3
    assert who[1] == other[1] == ungrouped


@pytest.mark.parametrize("authors", [[""] * 60, [None] * 60, range(60)])
def test_a_column_without_common_groups_is_reported(authors):
    table = read_table(tiny_table(60).assign(author=authors), DataConfig(group_column="author"))
    (found,) = [f for f in inspect(table).findings if f.kind == "single-groups"]
    assert (found.severity, found.count) == ("warning", 60)


@pytest.mark.parametrize("truth", [(False, True), ("FALSCH", "WAHR"), (0.0, 1.0)])
@pytest.mark.parametrize(
    ("drawn", "validation", "found"),
    [([40], False, True), ([40], True, False), ([0, 40], False, False), ([], False, False)],
)
def test_validation_texts_that_were_not_drawn_at_random_are_reported(drawn, validation, found, truth):
    parts = ["train"] * 30 + ["validation" if validation else "train"] * 10 + ["test"] * 20
    frame = tiny_table(60).assign(part=parts, random=[truth[i in drawn] for i in range(60)])
    findings = {f.kind: f for f in inspect(read_table(frame, DataConfig(split_column="part"))).findings}
    assert ("not-random" in findings) == found
    assert not found or findings["not-random"].count == 40


def test_near_duplicates_with_other_labels_or_splits_are_reported():
    table = _near()
    frame = table.frame.copy()
    frame.loc[1, "target"] = (frame["target"][1] + 1) % 3
    frame["split"] = ["test" if i in (9, 150) else "train" for i in range(len(frame))]
    found = {f.kind: f for f in inspect(replace(table, frame=frame)).findings}
    assert found["near-duplicate"].count >= 190  # MinHash misses a few
    assert found["near-conflict"].severity == "warning"
    assert "1 ≈ 2" in found["near-conflict"].rows
    assert found["near-leak"].rows == ("10 ≈ 9", "151 ≈ 149")


def test_examples_of_near_duplicates_differ_as_the_finding_says():
    text = "the quick brown fox jumps over the lazy dog and runs away from the big bad wolf number one"
    texts = [text, f"{text}.", f"{text}!", f"{text}?", "other words about cheese", "another sentence on cars"]
    frame = pd.DataFrame({"text": texts, "label": list("aabaab"), "part": ["test"] * 3 + ["train"] * 3})
    found = {f.kind: f.rows for f in inspect(read_table(frame, DataConfig(split_column="part"))).findings}
    assert found["near-conflict"] == ("1 ≈ 3", "2 ≈ 3", "4 ≈ 3")
    assert found["near-leak"] == ("1 ≈ 4", "2 ≈ 4", "3 ≈ 4")
