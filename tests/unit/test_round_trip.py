"""Every format returns the table that was written, for any texts and labels that it supports."""

import contextlib
import gzip
import json
import sqlite3
from pathlib import Path

import datasets
import openpyxl
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertsmith.config import DataConfig
from bertsmith.data.read import read_table

# A file with many control characters is refused as binary.
CONTROL = "".join(map(chr, range(32))).translate({9: None, 10: None, 13: None})
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=CONTROL), min_size=1, max_size=60)
WORD = st.text(st.characters(categories=["L", "M", "P", "S"]), min_size=1, max_size=12)
TABLES = st.lists(st.tuples(TEXT, st.integers(0, 3)), min_size=2, max_size=12)
NAMES = st.lists(WORD, min_size=4, max_size=4, unique=True)
# The XML of Excel has no control characters.
EXCEL = st.text(st.characters(exclude_categories=["Cs", "Cc", "Co", "Cn"]), min_size=1, max_size=60)


def _csv(frame: pd.DataFrame, path: Path, **options: str) -> None:
    frame.to_csv(path, index=False, quoting=1, lineterminator="\n", **options)


def _sql(frame: pd.DataFrame, path: Path) -> None:
    path.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        frame.to_sql("t", db, index=False)
    db.close()


WRITERS = {
    "t.csv": _csv,
    "semicolon.csv": lambda f, p: _csv(f, p, sep=";"),
    "utf16.csv": lambda f, p: _csv(f, p, encoding="utf-16"),
    "mark.csv": lambda f, p: _csv(f, p, encoding="utf-8-sig"),
    "t.tsv": lambda f, p: _csv(f, p, sep="\t"),
    "t.csv.gz": lambda f, p: p.write_bytes(
        gzip.compress(f.to_csv(index=False, quoting=1, lineterminator="\n").encode())
    ),
    "t.jsonl": lambda f, p: p.write_text("\n".join(map(json.dumps, f.to_dict("records"))), encoding="utf-8"),
    "plain.jsonl": lambda f, p: p.write_bytes(
        "\n".join(json.dumps(r, ensure_ascii=False) for r in f.to_dict("records")).encode()
    ),
    "t.json": lambda f, p: f.to_json(p, orient="records"),
    "t.parquet": lambda f, p: f.to_parquet(p),
    "t.feather": lambda f, p: f.to_feather(p),
}


def _check(source, frame, config=None):
    table = read_table(source, config)
    assert table.frame["text"].tolist() == frame["Text"].tolist()
    assert [table.labels.texts[i] for i in table.frame["target"]] == frame["Label Text"].tolist()
    assert [table.labels.numbers[i] for i in table.frame["target"]] == frame["Label"].tolist()


def _frame(rows, names):
    # At least two classes, and fewer classes than rows.
    rows = [*rows, *[("one", 0), ("two", 1)] * 4]
    return pd.DataFrame([(n, names[n], text) for text, n in rows], columns=["Label", "Label Text", "Text"])


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=TABLES, names=NAMES)
def test_a_file_returns_the_table(name, tmp_path, rows, names):
    frame = _frame(rows, names)
    WRITERS[name](frame, tmp_path / name)
    _check(tmp_path / name, frame)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=TABLES, names=NAMES)
def test_memory_and_databases_return_the_table(tmp_path, rows, names):
    frame = _frame(rows, names)
    _check(frame, frame)
    _check(datasets.Dataset.from_pandas(frame), frame)
    _sql(frame, tmp_path / "t.db")
    _check(None, frame, DataConfig(sql="select * from t", db=f"sqlite:///{tmp_path / 't.db'}"))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(EXCEL, st.integers(0, 3)), min_size=2, max_size=12), names=NAMES)
def test_excel_returns_the_table(tmp_path, rows, names):
    frame = _frame(rows, names)
    book = openpyxl.Workbook()
    for i, row in enumerate([frame.columns, *frame.itertuples(index=False)], start=1):
        for j, value in enumerate(row, start=1):
            cell = book.active.cell(i, j, value)
            cell.data_type = "s" if isinstance(value, str) else "n"  # "=1" is not a formula, "#N/A" not an error
    book.save(tmp_path / "t.xlsx")
    _check(tmp_path / "t.xlsx", frame)
