"""Several columns: how a row becomes a text or a pair, which items a model takes, and what cleaning does with pairs."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bertsmith as bs
from bertsmith.config import DataConfig
from bertsmith.data.clean import CONFLICT, DUPLICATE, EMPTY, IN_TEST, clean
from bertsmith.data.columns import find_columns, find_text_columns
from bertsmith.data.read import read_table
from bertsmith.data.split import split_cleaned
from bertsmith.data.stream import open_stream
from bertsmith.data.template import Template, Texts, flat, flat_texts, is_empty, texts_of
from bertsmith.errors import ConfigError, DataError, RowError
from bertsmith.evaluation.baseline import bag_of_words, combine_pairs
from bertsmith.load_config import resolve

PLAIN = Template(("Text",))
PAIR = Template(("premise",), "hypothesis")
JOINED = Template(("title", "body"), None, ("price",))
ALL = Template(("title", "body"), "question", ("price", "kind"))
CELLS = st.one_of(st.none(), st.text(st.sampled_from("ab \n\r:é"), max_size=8))


# -- rendering ------------------------------------------------------------------------------------------------------


def test_columns_are_lines_with_the_names_of_further_columns():
    assert JOINED.texts([["Tea"], ["hot\ndrink"], ["12"]]) == ["Tea\nhot drink\nprice: 12"]
    assert ALL.texts([["Tea"], ["hot"], ["why?"], ["12"], ["x"]]) == [("Tea\nhot\nprice: 12\nkind: x", "why?")]


@pytest.mark.parametrize("missing", [None, "", "  ", "\n"])
def test_missing_cells_are_left_out(missing):
    assert JOINED.texts([["Tea"], [missing], [missing]]) == ["Tea"]
    assert JOINED.texts([[missing], ["hot"], ["1"]]) == ["hot\nprice: 1"]
    assert JOINED.texts([[missing], [missing], ["1"]]) == [""]  # further columns alone are not a text


@given(st.lists(st.tuples(CELLS, CELLS, CELLS, CELLS, CELLS), min_size=1, max_size=4))
def test_every_row_has_as_many_lines_as_filled_cells(rows):
    for row, (first, second) in zip(rows, ALL.texts(list(zip(*rows, strict=True))), strict=True):
        title, body, question, *further = (bool(cell and cell.strip()) for cell in row)
        assert second == (row[2] or "")
        assert is_empty((first, second)) == (not (title or body) or not question)
        assert (first.count("\n") + 1 if first else 0) == ((title + body + sum(further)) if title or body else 0)


@given(st.lists(CELLS, min_size=1, max_size=4))
def test_a_single_text_column_is_used_as_it_is(cells):
    assert PLAIN.texts([cells]) == [cell or "" for cell in cells]
    assert PAIR.texts([cells, cells]) == [(cell or "", cell or "") for cell in cells]


@pytest.mark.parametrize("template", [PLAIN, PAIR, JOINED, ALL])
def test_a_template_survives_json(template):
    assert Template.from_dict(json.loads(json.dumps(template.to_dict()))) == template


@pytest.mark.parametrize("change", [{"text_column": []}, {"text_column": [1]}, {"pair_column": 5}])
def test_a_damaged_template_is_an_error(change):
    with pytest.raises(ValueError, match="columns"):
        Template.from_dict({**ALL.to_dict(), **change})


def test_versions_without_templates_had_a_single_text_column():
    assert Template.from_dict(None).is_plain


# -- items ----------------------------------------------------------------------------------------------------------


def test_a_pair_and_a_list_of_two_are_told_apart():
    assert PLAIN.read(["a", "b"]) == ["a", "b"]
    assert PAIR.read(("a", "b")) == [("a", "b")]
    assert PAIR.read([("a", "b"), {"premise": "c", "hypothesis": None}, {"text": "d", "text_pair": "e"}]) == [
        ("a", "b"),
        ("c", ""),
        ("d", "e"),
    ]
    assert PLAIN.read("a") == PLAIN.read({"text": "a"}) == PLAIN.read([{"Text": "a", "other": 1}]) == ["a"]
    assert JOINED.read({"title": "a", "body": None, "price": 2.0}) == ["a\nprice: 2"]


@pytest.mark.parametrize(
    ("template", "items"),
    [
        (PLAIN, ("a", "b")),
        (PLAIN, [("a", "b")]),
        (PLAIN, {"text": "a", "text_pair": "b"}),
        (PLAIN, [["a", "b"]]),
        (PLAIN, {"body": "a"}),
        (PLAIN, [None]),
        (PLAIN, 5),
        (PLAIN, ["\ud800"]),
        (PAIR, "a"),
        (PAIR, ["a", "b"]),
        (PAIR, [["a", "b"]]),
        (PAIR, [("a", "b", "c")]),
        (PAIR, [("a", None)]),
        (PAIR, {"premise": "a"}),
        (PAIR, {"premise": ["a"], "hypothesis": "b"}),
        (PAIR, [("a", "\ud800")]),
        (JOINED, "a"),
        (JOINED, ("a", "b")),
        (JOINED, {"text": "a", "price": 1}),
        (ALL, ("a", "b")),
        (ALL, {"title": "a", "body": "b", "question": "c", "price": 1}),
    ],
)
def test_items_that_do_not_fit_are_refused(template, items):
    with pytest.raises(DataError) as caught:
        template.read(items)
    assert caught.value.remedy


@pytest.mark.parametrize("items", [np.array("good"), np.array([["good"]]), pd.DataFrame({"text": ["good"]})])
def test_arrays_need_one_dimension(items):
    with pytest.raises(DataError) as caught:
        PLAIN.read(items)
    assert caught.value.remedy


def test_arrays_of_arrow_are_lists_of_texts():
    for array in (pa.array(["a", "b"]), pa.chunked_array([["a"], ["b"]]), np.array(["a", "b"])):
        assert PLAIN.read(array) == ["a", "b"]


def test_missing_columns_are_named():
    with pytest.raises(DataError, match="'body', 'price'"):
        JOINED.read({"title": "a"})
    with pytest.raises(DataError, match="'body'"):
        find_text_columns(["title", "other"], "t.csv", DataConfig(), JOINED)
    with pytest.raises(DataError, match="'hypothesis'"):
        find_text_columns(["premise", "other"], "t.csv", DataConfig(), PAIR)


def test_rendered_texts_are_read_as_they_are():
    texts = Texts(["a\nprice: 1"])
    assert JOINED.read(texts) is texts


# -- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("label", "further"), [(None, "Label Text"), ("Label", "label_text"), (None, "Label")])
def test_a_further_column_with_the_labels_is_refused(label, further):
    config = DataConfig(with_columns=further, label_column=label)
    with pytest.raises(DataError):
        find_columns(["Text", "Label", "Label Text"], "t", config)
    assert find_columns(["Text", "Label", "kind"], "t", DataConfig(with_columns="kind")).template.columns == (
        "Text",
        "kind",
    )


def test_settings_map_columns_to_other_names():
    names = ["Head Line", "article", "cost", "price"]
    config = DataConfig(text_column=["headline", "article"], with_columns="cost")
    assert find_text_columns(names, "t", config, JOINED) == ("Head Line", "article", "cost")
    assert find_text_columns(["BODY", "title", "price"], "t", DataConfig(), JOINED) == ("title", "BODY", "price")


@pytest.mark.parametrize(
    ("names", "settings", "expected"),
    [
        (["id", "Bewertung"], {}, "Bewertung"),
        (["Text", "Bewertung"], {}, "Bewertung"),
        (["Text", "bewertung "], {}, "bewertung "),
        (["Bewertung", "bewertung"], {}, "Bewertung"),
        (["Bewertung", "Text"], {"text_column": "Text"}, "Text"),
        (["id", "Review"], {}, "Review"),
        (["anything"], {}, "anything"),
    ],
)
def test_a_single_text_column_is_found_by_the_name_of_the_training(names, settings, expected):
    assert find_text_columns(names, "t", DataConfig(**settings), Template(("Bewertung",))) == (expected,)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, "Bewertung"), ({"label_column": "Bewertung"}, "Text"), ({"text_column": "Text"}, "Text")],
)
def test_labelled_tables_have_the_text_column_of_the_training_too(settings, expected):
    frame = pd.DataFrame({"Text": ["a", "b", "c", "d"], "Bewertung": ["e", "f"] * 2, "Label": [0, 1] * 2})
    read = read_table(frame, DataConfig(**settings), template=Template(("Bewertung",)))
    assert read.frame["text"].tolist() == frame[expected].tolist()


def test_a_column_with_neither_a_usual_name_nor_the_one_of_the_training_is_refused():
    with pytest.raises(DataError):
        find_text_columns(["id", "Kommentar"], "t", DataConfig(), Template(("Bewertung",)))


@pytest.mark.parametrize(
    ("template", "settings"),
    [
        (PLAIN, {"pair_column": "a"}),
        (PLAIN, {"with_columns": "a"}),
        (PLAIN, {"text_column": ["a", "b"]}),
        (PAIR, {"text_column": ["a", "b"]}),
        (JOINED, {"text_column": "a"}),
        (JOINED, {"with_columns": "a,b"}),
    ],
)
def test_settings_with_another_number_of_columns_are_refused(template, settings):
    with pytest.raises(ConfigError):
        template.settings(DataConfig(**settings))


def test_columns_are_settings_of_the_file_the_environment_and_the_flags(tmp_path):
    (tmp_path / "c.toml").write_text('text-column = ["title", "body"]\nwith_columns = "price, kind"\n')
    config = resolve({}, tmp_path / "c.toml", environ={"BERTSMITH_PAIR_COLUMN": "q"})
    assert (config.text_column, config.with_columns, config.pair_column) == (("title", "body"), ("price", "kind"), "q")
    config = resolve({"text_column": ["a"]}, environ={"BERTSMITH_WITH_COLUMNS": '["x, y", "z"]'})
    assert (config.text_column, config.with_columns) == ("a", ("x, y", "z"))
    assert resolve({"text_column": []}, environ={"BERTSMITH_TEXT_COLUMN": '["a", "b"]'}).text_column is None
    for wrong in (["a", "a"], [""], [5], {"a": 1}, 5):
        with pytest.raises(ConfigError):
            resolve({"text_column": wrong}, environ={})
        with pytest.raises(ConfigError):
            resolve({"with_columns": wrong}, environ={})


# -- tables ---------------------------------------------------------------------------------------------------------


def _pairs(*rows, columns=("premise", "hypothesis", "Label")):
    return pd.DataFrame(rows, columns=columns)


def _read(frame, **settings):
    return bs.read_table(frame, text_column="premise", pair_column="hypothesis", **settings)


def test_a_table_of_pairs_has_both_segments_and_their_fingerprint():
    frame = _pairs(("a", "x", 0), ("b", "y", 1), ("c", None, 0), (None, "z", 1))
    table = _read(frame)
    usable = clean(table).table.frame
    assert texts_of(usable) == [("a", "x"), ("b", "y")]
    assert flat_texts(usable) == [flat(("a", "x")), flat(("b", "y"))]
    assert table.columns.template == PAIR
    assert clean(table).counts == {EMPTY: 2}
    assert _read(frame.assign(hypothesis=["x", "Y", None, "z"])).fingerprint != table.fingerprint
    assert "pair" not in bs.read_table(frame, text_column="premise").frame.columns


def test_duplicates_conflicts_and_leaks_concern_both_segments():
    frame = _pairs(
        *(("a", "x", 0, "train"), ("a", "y", 1, "train"), ("a", "x", 0, "train")),
        *(("b", "x", 0, "train"), ("b", "x", 1, "train"), ("c", "x", 1, "train"), ("c", "z", 1, "train")),
        *(("c", "x", 1, "test"), ("d", "x", 0, "test")),
        columns=("premise", "hypothesis", "Label", "split"),
    )
    cleaned = clean(_read(frame, split_column="split"))
    assert cleaned.counts == {CONFLICT: 2, DUPLICATE: 1, IN_TEST: 1}
    kept = [("a", "x"), ("a", "y"), ("c", "z"), ("c", "x"), ("d", "x")]
    assert texts_of(cleaned.table.frame) == kept


def test_near_duplicates_of_pairs_have_two_similar_segments():
    long, other = "the quick brown fox jumps over the lazy dog today", "an entirely different sentence about the sea"
    frame = _pairs((long, other, 0), (f"{long}!", f"{other}.", 0), (long, "nothing of the kind", 1), (long, long, 1))
    assert clean(_read(frame)).near_duplicates.tolist() == [0, 0, 2, 3]


def test_swapped_pairs_stay_in_one_split():
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefghij "), 30)) for _ in range(80)]
    pairs = [(a, b, i % 2) for i, (a, b) in enumerate(zip(texts[::2], texts[1::2], strict=True))]
    swapped = [(b, a, label) for a, b, label in pairs]
    splits = split_cleaned(clean(_read(_pairs(*pairs, *swapped))), DataConfig(), 0).frame["split"].to_numpy()
    assert (splits[:40] == splits[40:]).all()
    assert set(splits) == {"train", "validation", "test"}
    frame = _pairs(*pairs, *swapped[:5]).assign(part=["train"] * 40 + ["test"] * 5)
    (leak,) = [f for f in bs.inspect(_read(frame, split_column="part")).findings if f.kind == "near-leak"]
    assert leak.count == 5


def test_rows_that_differ_only_in_further_columns_stay_in_one_split():
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), 7)) for _ in range(300)]
    texts = [" ".join(rng.choice(words, 4)) for _ in range(20)]
    meta = [" ".join(rng.choice(words, 9)) for _ in range(40)]
    frame = pd.DataFrame({"text": texts * 2, "meta": meta, "label": [0, 1] * 20, "pair": meta[::-1]})
    for settings, together in (
        ({"text_column": "text", "with_columns": "meta"}, True),
        ({"text_column": ("text", "meta")}, False),  # many rows can have the same title
        ({"text_column": "text", "with_columns": "meta", "pair_column": "pair"}, False),
    ):
        groups = clean(bs.read_table(frame, **settings)).near_duplicates
        assert groups.tolist() == [*range(20), *(range(20) if together else range(20, 40))]
    settings = {"text_column": "text", "with_columns": "meta", "split_column": "part"}
    found = bs.inspect(bs.read_table(frame.assign(part=["train"] * 20 + ["test"] * 20), **settings))
    assert [f.count for f in found.findings if f.kind == "near-leak"] == [20]


def test_rows_without_a_segment_are_dropped_and_the_others_split():
    frame = _pairs(*((f"premise {i}", f"hypothesis {i}" if i % 10 else None, i % 2) for i in range(100)))
    data = split_cleaned(clean(_read(frame)), DataConfig(near_duplicates="ignore"), 0)
    assert len(data) == 90
    assert set(data.frame["split"]) == {"train", "validation", "test"}


def test_inspect_names_the_columns_and_searches_both_segments():
    frame = _pairs(*((f"p {i}", "<b>bold</b>" if i == 7 else f"h {i}", i % 2) for i in range(40)))
    found = bs.inspect(_read(frame.assign(price=5), with_columns="price"))
    assert (found.columns["text"], found.columns["pair"], found.columns["with"]) == ("premise", "hypothesis", "price")
    assert any(finding.kind == "html" and finding.rows == (8,) for finding in found.findings)


def test_further_columns_stay_facts_about_the_row():
    table = _read(_pairs(("a", "x", 0), ("b", "y", 1)).assign(price=[1, 2], kind="k"), with_columns="price")
    assert list(table.extra.columns) == ["price", "kind"]
    assert table.frame["text"].tolist() == ["a\nprice: 1", "b\nprice: 2"]


def test_a_column_has_one_role():
    frame = _pairs(("a", "x", 0), ("b", "y", 1)).assign(category="k")
    for settings in ({"pair_column": "premise"}, {"with_columns": "premise"}, {"with_columns": "Label"}):
        with pytest.raises(DataError):
            bs.read_table(frame, **{"text_column": "premise", "label_column": "Label", **settings})
    # A further column is not taken for the label, though its name suggests one.
    frame = frame.rename(columns={"Label": "intent"})
    assert bs.read_table(frame, text_column="premise", with_columns="category").columns.label == "intent"


def test_the_columns_of_a_run_keep_their_names(tmp_path):
    frame = pd.DataFrame({"headline": ["a", "b"], "body": ["x", "y"], "cost": [1, 2], "Label": [0, 1]})
    config = DataConfig(text_column=["headline", "body"], with_columns="cost")
    table = read_table(frame, config, template=JOINED)
    assert table.frame["text"].tolist() == ["a\nx\nprice: 1", "b\ny\nprice: 2"]
    assert table.columns.template == JOINED


# -- streams --------------------------------------------------------------------------------------------------------


def test_a_stream_renders_rows_and_skips_bad_cells(tmp_path, monkeypatch):
    monkeypatch.setattr("bertsmith.data.stream.CHUNK_ROWS", 2)
    rows = [{"premise": "a", "hypothesis": h, "x": 1} for h in ("b", ["c"], None, "d", {"e": 1})]
    file = tmp_path / "t.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    with open_stream(file, DataConfig(), skip=True, template=PAIR) as stream:
        assert [text for _, texts in stream.chunks() for text in texts] == [("a", "b"), ("a", ""), ("a", "d")]
        assert [place for place, _ in stream.skipped] == ["row 2", "row 5"]
    with pytest.raises(RowError) as caught, open_stream(file, DataConfig(), template=PAIR):
        pass
    assert "--pair-column" in caught.value.remedy


def test_lines_of_text_are_refused_by_models_of_several_columns(tmp_path):
    (tmp_path / "t.txt").write_text("a\nb\n")
    with pytest.raises(DataError), open_stream(tmp_path / "t.txt", DataConfig(), template=PAIR):
        pass


# -- baselines ------------------------------------------------------------------------------------------------------


def test_a_bag_of_words_reads_both_segments_and_what_they_share():
    rng = np.random.default_rng(0)
    words = [f"{a}{b}" for a in "bcdfgh" for b in "aeiou"]
    first, other = rng.choice(words, (2, 400))
    targets = rng.integers(0, 2, 400)
    pairs = [(str(a), str(a if t else b)) for a, b, t in zip(first, other, targets, strict=True)]
    alone = [a for a, _ in pairs]
    scores = [
        (bag_of_words(x[:300], targets[:300], x[300:], n_classes=2, seed=0).scores.argmax(1) == targets[300:])
        for x in (pairs, alone)
    ]
    assert scores[0].mean() > 0.9 > 0.65 > scores[1].mean()


def test_combined_features_are_the_same_for_dense_and_sparse():
    from scipy.sparse import csr_matrix

    a, b = np.random.default_rng(0).normal(size=(2, 3, 4))
    assert combine_pairs(a, b) == pytest.approx(combine_pairs(csr_matrix(a), csr_matrix(b)).toarray())
    assert combine_pairs(a, b).shape == (3, 16)


def test_a_template_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAIR.pair_column = None
