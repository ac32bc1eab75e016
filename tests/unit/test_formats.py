"""All formats give the same rows; every damaged table gives an error that names the file and a remedy."""

import contextlib
import gzip
import io
import json
import os
import re
import sqlite3
import zipfile
from datetime import UTC, date, datetime

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import bertsmith as bs
from bertsmith.config import DataConfig
from bertsmith.data.clean import EMPTY, clean
from bertsmith.data.formats.encodings import decode
from bertsmith.data.formats.registry import to_data_frame
from bertsmith.data.read import read_table
from bertsmith.data.sources import read_raw
from bertsmith.data.stream import open_stream
from bertsmith.data.table import to_frame
from bertsmith.errors import DataError, RowError
from tests.conftest import ArrowTable

ROWS = [
    (10, "good", "great, really; good"),
    (20, "bad", 'awful "thing"\nin two lines'),
    (10, "good", "naïve café – 100 %"),
    (20, "bad", "NA"),
]
FRAME = pd.DataFrame(ROWS, columns=["Label", "Label Text", "Text"])


def _excel(path):
    FRAME.to_excel(path, index=False)


def _jsonl(path):
    path.write_text("\n".join(json.dumps(r) for r in FRAME.to_dict("records")), encoding="utf-8")


def _gzip(path):
    path.write_bytes(gzip.compress(FRAME.to_csv(index=False).encode()))


WRITERS = {
    "comma.csv": lambda p: FRAME.to_csv(p, index=False),
    "semicolon.csv": lambda p: FRAME.to_csv(p, index=False, sep=";"),
    "pipe.txt": lambda p: FRAME.to_csv(p, index=False, sep="|"),
    "tab.tsv": lambda p: FRAME.to_csv(p, index=False, sep="\t"),
    "bom.csv": lambda p: FRAME.to_csv(p, index=False, encoding="utf-8-sig"),
    "utf16.csv": lambda p: FRAME.to_csv(p, index=False, encoding="utf-16"),
    "utf16-no-mark.csv": lambda p: FRAME.to_csv(p, index=False, encoding="utf-16-le"),
    "cp1252.csv": lambda p: FRAME.to_csv(p, index=False, encoding="cp1252"),
    "escaped.csv": lambda p: FRAME.to_csv(p, index=False, doublequote=False, escapechar="\\"),
    "crlf.csv": lambda p: FRAME.to_csv(p, index=False, lineterminator="\r\n"),
    "packed.csv.gz": _gzip,
    "lines.jsonl": _jsonl,
    "array.json": lambda p: FRAME.to_json(p, orient="records"),
    "table.parquet": lambda p: FRAME.to_parquet(p),
    "table.feather": lambda p: FRAME.to_feather(p),
    "book.xlsx": _excel,
}


def _check(table):
    assert table.labels.numbers == (10, 20)
    assert table.labels.texts == ("good", "bad")
    assert table.frame["target"].tolist() == [0, 1, 0, 1]
    assert table.frame["text"].tolist() == [text for _, _, text in ROWS]
    assert table.frame["row"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("name", WRITERS)
def test_every_file_kind_gives_the_same_rows(name, tmp_path):
    WRITERS[name](tmp_path / name)
    _check(read_table(tmp_path / name))


def test_values_in_memory_give_the_same_rows():
    _check(read_table(FRAME))
    _check(read_table(FRAME.set_index(pd.Index([7, 7, 1, 0]))))
    _check(read_table(datasets.Dataset.from_pandas(FRAME)))


def test_arrow_tables_of_other_libraries_give_the_same_rows():
    _check(read_table(ArrowTable(FRAME)))
    table = bs.read_table(FRAME, validation=ArrowTable(FRAME.head(2)), test=pa.table(FRAME.tail(2)))
    assert table.frame["split"].fillna("-").tolist() == ["-"] * 4 + ["validation"] * 2 + ["test"] * 2
    assert bs.inspect(ArrowTable(FRAME)).usable == 4
    codes = {"Label Text": pa.array(["good", "bad", "good", "bad"]).dictionary_encode(), "Text": FRAME["Text"].tolist()}
    assert bs.read_table(pa.table(codes)).labels.texts == ("bad", "good")


def test_values_that_python_cannot_hold_change_only_their_cells():
    zone = pa.timestamp("us", "Europe/Berlin")
    last, day = 253_402_300_799_000_000, pa.array([20_000, 10**8], pa.date32())
    lists = pa.ListArray.from_arrays([0, 1, 2], pa.array([b"a", b"\xff"]).view(pa.string()))
    source = pa.table({"Text": ["a", "b"], "until": pa.array([0, last], zone), "day": day, "lists": lists})
    raw = read_raw(source, DataConfig())
    until = [datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)]
    assert raw.frame["until"].tolist() == until
    assert raw.frame["day"].tolist() == [date(2024, 10, 4), None]
    assert raw.frame["lists"].tolist() == [["a"], None]
    assert [(note.severity, note.count) for note in raw.notes] == [("warning", 2)]


def test_large_integers_are_not_rounded_beside_missing_ones():
    frame = to_data_frame(pa.table({"n": [2**60 + 1, None], "more": pa.array([2**63 + 1, None], pa.uint64())}))
    assert frame["n"].dtype == "Int64"
    assert (frame["n"][0], frame["more"][0]) == (2**60 + 1, 2**63 + 1)
    assert to_frame({"n": [1, 2], "x": [1, 0.5]}).dtypes.tolist() == ["int64", "float64"]


@pytest.mark.parametrize("column", ["Text", "Label"])
def test_arrays_are_neither_texts_nor_classes(column):
    frame = FRAME.drop(columns="Label Text")
    frame[column] = [np.array([1, 2])] * 4
    with pytest.raises(RowError):
        read_table(frame, DataConfig(task="single-label"))
    with pytest.raises(RowError), open_stream(frame, DataConfig(text_column=column)):
        pass


def test_an_array_without_dimensions_is_its_value():
    labels = [np.array(name) for name in FRAME["Label Text"]]
    assert read_table(pd.DataFrame({"Text": FRAME["Text"], "Label": labels})).labels.texts == ("bad", "good")


@pytest.mark.parametrize("source", [pa.chunked_array([["a"]]), ArrowTable({"Text": ["a"]}), ArrowTable({"a": [[1]]})])
def test_arrow_streams_that_hold_no_labelled_table_are_refused(source):
    with pytest.raises(DataError):
        read_table(source)


def test_arrow_tables_are_predicted_as_data_frames(finished, tmp_path):
    rows = pd.DataFrame({"Text": ["my cat", "red", None], "n": [1, 2, 3], "day": pd.to_datetime(["2025-01-01"] * 3)})
    rows["id"] = pd.array([2**60 + 1, 2**60 + 3, None], dtype="Int64")
    arrow = ArrowTable(rows)
    expected, found = (bs.predict(finished, source).frame for source in (rows, arrow))
    assert found["predicted_text"].tolist() == expected["predicted_text"].tolist()
    assert found["id"].equals(rows["id"])
    bs.predict(finished, arrow, output=tmp_path / "out.parquet")
    written = pq.read_table(tmp_path / "out.parquet")
    assert written.schema.field("Text").type == pa.string()
    assert pa.types.is_timestamp(written.schema.field("day").type)
    assert written["n"].to_pylist() == [1, 2, 3]
    frame = bs.load(finished).predict_frame(arrow)
    assert frame["predicted_text"].tolist()[:2] == expected["predicted_text"].tolist()[:2]
    with pytest.raises(DataError, match="nothing"):
        bs.predict(finished, arrow, text_column="nothing")


def test_other_splits_of_a_dataset_are_not_used_in_training():
    part = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    other = datasets.Dataset.from_dict({"text": ["c", "d", "e"], "label": [-1, -1, -1]})
    source = datasets.DatasetDict({"train": part, "unsupervised": other, "test": part})
    table = read_table(source)
    assert table.frame["split"].tolist() == ["train"] * 2 + ["test"] * 2
    assert table.frame["row"].tolist() == [1, 2, 6, 7]
    assert table.labels.numbers == (0, 1)
    assert [(note.severity, note.count) for note in table.notes] == [("warning", 3)]
    assert len(read_raw(source, DataConfig()).frame) == 7
    for names in (["unsupervised"], ["test"], ["first", "second"]):
        with pytest.raises(DataError):
            read_table(datasets.DatasetDict(dict.fromkeys(names, part)))
    assert read_table(datasets.DatasetDict({"full": part})).frame["split"].isna().all()


def test_a_test_table_is_the_test_split_of_a_dataset_with_several():
    frame = FRAME.drop(columns="Label")
    part = datasets.Dataset.from_pandas(frame.head(1))
    source = datasets.DatasetDict({"train": part, "Test": datasets.Dataset.from_pandas(frame.tail(2)), "extra": part})
    table = read_table(frame, DataConfig(test=source))
    assert table.frame["split"].tolist()[4:] == ["test"] * 2
    assert table.frame["row"].tolist()[4:] == [2, 3]
    assert [(note.severity, note.count) for note in table.notes] == [("info", 2)]
    with pytest.raises(DataError) as caught:
        read_table(frame, DataConfig(validation=source))
    assert "--validation" in caught.value.remedy
    with pytest.raises(DataError):
        read_table(frame, DataConfig(test=datasets.DatasetDict({"train": part, "test": part.select([])})))
    one = datasets.DatasetDict({"corpus": datasets.Dataset.from_pandas(frame), "test": part.select([])})
    assert "split" not in read_table(one).frame or read_table(one).frame["split"].isna().all()


def test_a_dataset_is_read_without_its_format_and_without_decoding():
    rows = {"text": ["a", "b"], "label": [0, 1], "sound": [{"bytes": b"x", "path": None}] * 2}
    source = datasets.Dataset.from_dict(rows).cast_column("sound", datasets.Audio())
    assert read_table(source.with_format("numpy", columns=["label"]).select([1, 0])).frame["text"].tolist() == [
        "b",
        "a",
    ]
    lazy = datasets.Dataset.from_dict({"text": ["A", "B"], "label": [0, 1]}).with_transform(lambda batch: batch)
    for other in (
        lazy,
        source["text"],
        datasets.IterableDatasetDict({"train": source["text"]}),
        datasets.DatasetDict(),
    ):
        with pytest.raises(DataError):
            read_table(other)


def test_sql_gives_the_same_rows(tmp_path, monkeypatch):
    with contextlib.closing(sqlite3.connect(tmp_path / "d.db")) as db, db:
        FRAME.to_sql("reviews", db, index=False)
    url = f"sqlite:///{tmp_path / 'd.db'}"
    _check(read_table(None, DataConfig(sql="select * from reviews", db=url)))
    _check(read_table(None, DataConfig(sql="select * from reviews where text not like '% :D%'", db=url)))
    with pytest.raises(DataError, match="no such table: reviewz"):
        read_table(None, DataConfig(sql="select * from reviewz", db=url))
    with pytest.raises(DataError, match="does not exist"):
        read_table(None, DataConfig(sql="select 1", db=f"sqlite:///{tmp_path / 'none.db'}"))
    monkeypatch.chdir(tmp_path)
    for query in ("uri=true", "mode=ro&uri=true"):
        _check(read_table(None, DataConfig(sql="select * from reviews", db=f"sqlite:///file:d.db?{query}")))
    for name in ("file:none.db?uri=true", "none.db?uri=true", "none.db?uri=false"):
        with pytest.raises(DataError):
            read_table(None, DataConfig(sql="select 1 as text", db=f"sqlite:///{name}"))
    assert not list(tmp_path.glob("*none.db*"))


@pytest.mark.parametrize("db", ["postgresql://me:my@word:secret@host/db", "me:secret@host/db", "x://me:secret@host/db"])
def test_an_error_about_a_database_names_no_password(db):
    with pytest.raises(DataError) as caught:
        read_table(None, DataConfig(sql="select 1", db=db))
    assert "secret" not in str(caught.value)


def test_a_dataset_dict_defines_splits_and_class_names():
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    part = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 1]}, features=features)
    table = read_table(datasets.DatasetDict({"train": part, "test": part}))
    assert table.labels.texts == ("neg", "pos")
    assert table.frame["split"].tolist() == ["train"] * 3 + ["test"] * 3


@pytest.mark.parametrize("many", [False, True])
def test_splits_with_different_class_names_keep_their_own(many):
    def part(names, rows):
        kind = datasets.ClassLabel(names=names)
        features = datasets.Features({"text": datasets.Value("string"), "label": datasets.List(kind) if many else kind})
        labels = [rows[:2], [], *([n] for n in rows)] if many else rows
        return datasets.Dataset.from_dict({"text": [*map(str, range(len(labels)))], "label": labels}, features=features)

    source = datasets.DatasetDict(
        {"train": part(["anger", "joy", "sad"], [0, 1, 2, 1, -1]), "test": part(["anger", "sad"], [1, 0, -1])}
    )
    table = read_table(source, DataConfig(task="multi-label" if many else "auto"))
    found = [
        np.array(table.labels.texts)[np.atleast_1d(target)].tolist() for target in table.outcomes.targets(table.codes)
    ]
    present = [names for names, code in zip(found, table.codes, strict=True) if code >= 0]
    train, test = [["anger"], ["joy"], ["sad"], ["joy"]], [["sad"], ["anger"]]
    assert present == ([["anger", "joy"], [], *train, ["anger", "sad"], [], *test] if many else [*train, *test])
    assert (table.codes < 0).sum() == 2


def test_files_become_splits_with_common_labels(tmp_path):
    FRAME.to_csv(tmp_path / "train.csv", index=False)
    FRAME[["Label Text", "Text"]].head(2).to_csv(tmp_path / "test.csv", index=False)
    table = read_table(tmp_path / "train.csv", DataConfig(test=tmp_path / "test.csv"))
    assert table.frame["source"].tolist() == ["train.csv"] * 4 + ["test.csv"] * 2
    assert table.frame["split"].fillna("-").tolist() == ["-"] * 4 + ["test"] * 2
    assert table.frame["target"].tolist() == [0, 1, 0, 1, 0, 1]


def test_tables_in_memory_become_splits(tmp_path):
    FRAME.to_csv(tmp_path / "file.csv", index=False)
    dataset = datasets.Dataset.from_pandas(FRAME.tail(2), preserve_index=False)
    table = bs.read_table(FRAME, validation=FRAME.head(2), test=dataset)
    assert table.frame["split"].fillna("-").tolist() == ["-"] * 4 + ["validation"] * 2 + ["test"] * 2
    assert table.frame["text"].tolist()[4:] == [text for _, _, text in ROWS]
    assert len(set(table.frame["source"])) == 3
    assert bs.inspect(tmp_path / "file.csv", test=FRAME.head(3)).splits == {"train": 1, "test": 3}
    both = datasets.DatasetDict({"train": dataset})
    assert bs.read_table(FRAME, test=both).frame["split"].tolist()[4:] == ["test"] * 2


def _damaged_workbook():
    """Return a ZIP file whose central directory is damaged, but not the end of the file, which marks it as ZIP."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        packed.writestr("xl/workbook.xml", "<workbook/>")
    return content.getvalue().replace(b"PK\x01\x02", b"XX\x01\x02")


DAMAGED = {
    "no-such.csv": (None, "does not exist"),
    "empty.csv": (b"", "empty"),
    "blank.csv": (b" \n\n", "empty"),
    "header.csv": (b"Text,Label\n", "no rows"),
    "ragged.csv": (b"Text,Label\na,1\nb,c,2\n", r"1 of 2 rows .* line 3 has 3"),
    "short.csv": (b"Text,Label\na,1\nb\n", "line 3 has 1"),
    "open-quote.csv": (b'Text,Label\na,1\n"b,2\nc,3\n', "line 3"),
    "late-quote.csv": (b'Text,Label\n"a"b,1\nc,2\n', "line 2"),
    "picture.csv": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20, "text file"),
    "twice.csv": (b"Text,Text,Label\na,b,1\n", "same name"),
    "cut.csv.gz": (gzip.compress(b"Text,Label\n" + b"a,1\n" * 1000)[:30], "gzip"),
    "cut.parquet": (b"PAR1 and nothing more", "Parquet"),
    "not.parquet": (b"Text,Label\na,1\n", "Parquet"),
    "cut.xlsx": (_damaged_workbook(), "Excel"),
    "not.xlsx": (b"PK\x03\x04 nothing", "Excel"),
    "bad.jsonl": (b'{"Text": "a", "Label": 1}\n{"Text": \n', "line 2"),
    "scalar.jsonl": (b'{"Text": "a", "Label": 1}\n3\n', "found int"),
    "bad.json": (b'[{"Text": "a"', "JSON"),
    "no-text.csv": (b"Foo,Label\na,1\n", "--text-column"),
    "no-label.csv": (b"Text,Foo\na,1\n", "--label-column"),
    "two-texts.csv": (b"review,body,label\na,b,1\n", "'review', 'body'.*\\n.*\\n.*--text-column"),
    "two-labels.csv": (b"text,category,class\na,b,1\n", "'category', 'class'.*\\n.*\\n.*--label-column"),
    "score.csv": (b"text,label\na,0.5\nb,0.25\n", "0.5 in row 1"),
    "ids.csv": (b"text,label\n" + b"".join(b"t%d,%d\n" % (i, i) for i in range(20)), "20 different labels"),
    "list.jsonl": (b'{"text": ["a"], "label": 1}\n', "row 1 holds a list"),
    "no-labels.csv": (b"text,label\na,\nb,\n", "--label-column"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_table_is_refused_with_its_file_and_a_remedy(name, tmp_path):
    content, expected = DAMAGED[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / name)
    message = str(caught.value)
    assert re.search(expected, message), message
    assert name in caught.value.where
    assert caught.value.remedy


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
def test_a_file_without_read_permission_is_refused(tmp_path):
    path = tmp_path / "t.csv"
    FRAME.to_csv(path, index=False)
    _check(read_table(path))
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root can read everything
    try:
        with pytest.raises(DataError, match="Permission denied"):
            read_table(path)
    finally:
        os.seteuid(user)


def test_a_folder_is_not_a_table(tmp_path):
    with pytest.raises(DataError) as caught:
        read_table(tmp_path)
    assert caught.value.where == str(tmp_path)


def test_the_words_na_and_null_are_texts_and_not_missing(tmp_path):
    (tmp_path / "t.csv").write_text("text,label\nNA,a\nnull,a\nnan,b\n,b\n")
    frame = read_table(tmp_path / "t.csv").frame
    assert frame["text"].tolist()[:3] == ["NA", "null", "nan"]
    assert frame["text"].tolist()[3] == ""


def test_a_guessed_encoding_is_reported_and_can_be_overridden(tmp_path):
    FRAME.to_csv(tmp_path / "t.csv", index=False, encoding="cp1252")
    assert "cp1252" in read_table(tmp_path / "t.csv").notes[0].message
    assert not read_table(tmp_path / "t.csv", DataConfig(encoding="cp1252")).notes
    with pytest.raises(DataError, match="no-such-encoding") as caught:
        read_table(tmp_path / "t.csv", DataConfig(encoding="no-such-encoding"))
    assert "--encoding" in caught.value.remedy
    assert "cp1252" in caught.value.remedy
    for wrong in ("undefined", "utf\0"):
        with pytest.raises(DataError):
            read_table(tmp_path / "t.csv", DataConfig(encoding=wrong))


def test_a_few_nul_bytes_do_not_make_utf_16():
    assert decode(b"x\0y\n", "t")[0] == "x\0y\n"
    assert decode("Text\ncat\n".encode("utf-16-be"), "t")[0] == "Text\ncat\n"


def test_lone_surrogates_are_replaced(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "a\\ud800b", "label": "x"}\n{"text": "c", "label": "x"}\n' * 2)
    assert read_table(tmp_path / "t.jsonl").frame["text"].tolist()[0] == "a\ufffdb"


def test_surrogates_in_other_columns_can_be_predicted_and_written(tmp_path, finished, cli):
    (tmp_path / "t.jsonl").write_text('{"text": "cat\\ud800", "more\\ud800": "x\\ud800", "tags": ["\\ud800"]}\n' * 2)
    for name in ("o.csv", "o.jsonl", "o.parquet"):
        code, _, err = cli("predict", finished, tmp_path / "t.jsonl", "-o", tmp_path / name)
        assert code == 0, err
    assert "x\ufffd" in (tmp_path / "o.csv").read_text()
    frame = FRAME.assign(more=pd.Series(["x\ud800"] * 4, dtype=object))
    assert read_table(frame).extra["more"].tolist() == ["x\ufffd"] * 4


def test_an_excel_sheet_is_selected_by_name(tmp_path):
    with pd.ExcelWriter(tmp_path / "t.xlsx") as book:
        pd.DataFrame({"nothing": [1]}).to_excel(book, sheet_name="notes", index=False)
        FRAME.to_excel(book, sheet_name="data", index=False)
    _check(read_table(tmp_path / "t.xlsx", DataConfig(sheet="data")))
    with pytest.raises(DataError, match="'notes', 'data'"):
        read_table(tmp_path / "t.xlsx", DataConfig(sheet="Data"))


def test_whole_numbers_in_the_header_of_a_workbook_are_integers(tmp_path):
    pd.DataFrame({"Text": ["a"], 2020: [1], 0.5: [2]}).to_excel(tmp_path / "t.xlsx", index=False)
    assert read_raw(tmp_path / "t.xlsx", DataConfig()).frame.columns.tolist() == ["Text", "2020", "0.5"]


def test_blank_rows_of_a_workbook_keep_the_numbers_of_the_others(tmp_path):
    rows = [("a", 0, "train"), (None,) * 3, ("b", 1, "train"), ("c", 1, "test")]
    pd.DataFrame(rows, columns=["Text", "Label", "Split"]).to_excel(tmp_path / "t.xlsx", index=False, startrow=2)
    cleaned = clean(read_table(tmp_path / "t.xlsx", DataConfig(split_column="Split")))
    assert cleaned.table.frame["row"].tolist() == [1, 3, 4]
    assert cleaned.counts == {EMPTY: 1}


def test_a_column_of_lists_is_no_split_column():
    assert read_table(FRAME.assign(split=[["a"]] * 4)).notes == ()


def test_split_columns(tmp_path):
    frame = FRAME.assign(part=["train", "TRAIN", "dev", "test"])
    table = read_table(frame, DataConfig(split_column="part"))
    assert table.frame["split"].tolist() == ["train", "train", "validation", "test"]
    with pytest.raises(DataError, match="'holdout'"):
        read_table(frame.assign(part="holdout"), DataConfig(split_column="part"))
    assert any("--split-column" in note.message for note in read_table(frame.rename(columns={"part": "split"})).notes)


def test_formulas_without_a_stored_value_are_reported(tmp_path):
    frame = pd.DataFrame({"Text": ["a", "=1+1", "c"], "Label": [0, 1, 0]})
    frame.to_excel(tmp_path / "t.xlsx", index=False)
    raw = read_raw(tmp_path / "t.xlsx", DataConfig())
    assert raw.frame["Text"].tolist() == ["a", None, "c"]
    assert [(note.severity, note.count) for note in raw.notes] == [("warning", 1)]
    for value, n in ((b"<v/>", 0), (b"<v></v>", 0), (b"", 1)):  # the first two: a stored empty string
        with zipfile.ZipFile(tmp_path / "t.xlsx") as book, zipfile.ZipFile(tmp_path / "saved.xlsx", "w") as saved:
            for name in book.namelist():
                formula, typed = rb'<c r="A3">(<f>.*?</f>)<v ?/?>(</v>)?', rb'<c r="A3" t="str">\1'
                saved.writestr(name, re.sub(formula, typed + value, book.read(name)))
        assert len(read_raw(tmp_path / "saved.xlsx", DataConfig()).notes) == n
    with pd.ExcelWriter(tmp_path / "t.xlsx") as book:
        frame.head(1).to_excel(book, sheet_name="Texts & labels", index=False)
        frame.to_excel(book, sheet_name="draft", index=False)
    for sheet, n in (("Texts & labels", 0), ("draft", 1)):
        assert len(read_raw(tmp_path / "t.xlsx", DataConfig(sheet=sheet)).notes) == n


def test_a_repeated_json_key_is_refused(tmp_path):
    for content, where, key in (
        ('{"Text": "a", "Label": 0, "Label": 1}', "line 1", "'Label'"),
        ('[{"Text": "a", "Text": "b"}]', "t.json", "'Text'"),
    ):
        (tmp_path / "t.json").write_text(content)
        with pytest.raises(DataError, match=key) as caught:
            read_raw(tmp_path / "t.json", DataConfig())
        assert where in caught.value.where


def test_an_unreachable_hub_is_reported(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(DataError, match="hf://owner/name") as caught:
        read_table("hf://owner/name")
    assert caught.value.where == "http://127.0.0.1:1"
    assert "HF_ENDPOINT" in caught.value.remedy
    with pytest.raises(DataError, match="hf://name") as caught:
        read_table("hf://name")
    assert "hf://owner/name" in caught.value.remedy


def test_json_with_an_object_for_each_column_is_refused(tmp_path):
    FRAME.reset_index(drop=True).to_json(tmp_path / "t.json")
    with pytest.raises(DataError) as error:
        bs.read_table(tmp_path / "t.json")
    assert "orient" in error.value.remedy
