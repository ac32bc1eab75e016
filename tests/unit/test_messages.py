"""Messages quote only a short part of a wrong value, and name the argument or table."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import bertsmith as bs
from bertsmith.errors import ConfigError, DataError, UserError, counted, listing, shorten, to_path
from bertsmith.evaluation.learning_curve import ExpectedGain
from bertsmith.testing import tiny_table

CONTENT = tiny_table(300).to_csv(index=False)
LONG = "x" * 3000


def _rows(**columns):
    return pd.DataFrame({"Text": [f"text {i}" for i in range(6)], **columns})


@pytest.mark.parametrize(
    "call",
    [
        lambda table, folder: bs.read_table(CONTENT),
        lambda table, folder: bs.read_table(CONTENT[:200]),
        lambda table, folder: bs.read_table(table, test=CONTENT),
        lambda table, folder: bs.read_table(table, corrections=CONTENT),
        lambda table, folder: bs.inspect(table, model=CONTENT),
        lambda table, folder: bs.load(CONTENT),
        lambda table, folder: bs.load("a/" * 3000),
        lambda table, folder: bs.compare(CONTENT, LONG),
        lambda table, folder: bs.evaluate(CONTENT, table),
        lambda table, folder: bs.export(CONTENT),
        lambda table, folder: bs.train(table, output=CONTENT),
        lambda table, folder: bs.train(table, output=LONG),
        lambda table, folder: bs.train(table, output=folder, model=LONG),
        lambda table, folder: bs.train(table, output=folder, config=CONTENT),
        lambda table, folder: bs.tune(table, output=folder, space=CONTENT),
        lambda table, folder: bs.read_table("hf://" + LONG),
        lambda table, folder: bs.read_table(table, **{LONG: 3}),
        lambda table, folder: bs.read_table(table, text_column=LONG),
        lambda table, folder: bs.read_table(table.rename(columns={"Text": LONG})),
        lambda table, folder: bs.read_table(table.assign(Split=LONG), split_column="Split"),
        lambda table, folder: bs.read_table(
            _rows(**{"Label": [1, 1, 2, 2, None, None], "Label Text": [*"aabb", LONG, LONG]})
        ),
        lambda table, folder: bs.read_table(
            _rows(**{"Label": [1, 1, 2, 2, 3, 3], "Label Text": [*"aabb", LONG, LONG + "y"]})
        ),
        lambda table, folder: bs.read_table(_rows(Label=["1", "1", "2", "2", "3", LONG])),
        lambda table, folder: bs.read_table(_rows(Label=["0." + "1" * 3000] * 6)),
    ],
)
def test_messages_shorten_wrong_values(call, tmp_path):
    with pytest.raises(UserError) as caught:
        call(tiny_table(30), tmp_path / "run")
    assert len(str(caught.value)) < 600
    assert not (tmp_path / "run").exists()


def test_long_values_are_shortened():
    assert shorten("x" * 80) == "x" * 80
    assert shorten("x" * 81) == "x" * 79 + "…"
    assert listing(["a", 3, LONG]) == f"'a', 3, '{'x' * 79}…'"


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("output", lambda table: bs.train(table, output=table)),
        ("output", lambda table: bs.tune(table, output=table)),
        ("space", lambda table: bs.tune(table, output="run", space=table)),
        ("config", lambda table: bs.train(table, output="run", config=table)),
        ("corrections", lambda table: bs.train(table, output="run", corrections=table)),
        ("run", lambda table: bs.load(table)),
        ("run", lambda table: bs.evaluate(table, table)),
        ("run", lambda table: bs.compare(table, table)),
        ("run", lambda table: bs.export(table)),
    ],
)
def test_arguments_that_are_not_paths_are_reported_with_their_type(name, call):
    with pytest.raises(ConfigError, match=rf"\b{name}\b.*should be a path, not a DataFrame") as caught:
        call(tiny_table(30))
    assert "valid path" not in caught.value.what


def test_valid_paths_need_not_exist(tmp_path):
    there = tmp_path / "a table.csv"
    there.touch()
    assert to_path(there, "x") == there
    assert to_path(str(tmp_path / "new" / "run"), "x") == tmp_path / "new" / "run"
    assert to_path("C:/run", "x") == Path("C:/run")
    assert to_path(bs.Run(there), "x") == there


@pytest.mark.parametrize("url", ["s3://bucket/run", "https://host/t.csv", "file:///run"])
@pytest.mark.parametrize("kind", [str, Path])
def test_urls_are_not_paths(url, kind):
    with pytest.raises(ConfigError) as caught:
        to_path(kind(url), "x")
    assert caught.value.where == str(kind(url))


@pytest.mark.parametrize("role", ["validation", "test"])
def test_the_table_that_is_wrong_is_named_by_its_role(role, cli, tmp_path):
    table = tiny_table(30)
    with pytest.raises(DataError) as caught:
        bs.read_table(table, **{role: table.drop(columns="Text")})
    assert caught.value.where.startswith(f"the data frame ({role})")
    with pytest.raises(DataError) as caught:
        bs.read_table(table, **{role: table.iloc[:0]})
    assert caught.value.where == f"the data frame ({role})"
    table.to_csv(tmp_path / "t.csv", index=False)
    read = bs.read_table(tmp_path / "t.csv", **{role: tmp_path / "t.csv"})
    assert set(read.frame["source"]) == {"t.csv", f"t.csv ({role})"}


def test_column_names_of_several_levels_become_one_name():
    table = tiny_table(30)
    table.columns = pd.MultiIndex.from_product([["a"], table.columns])
    with pytest.raises(DataError) as caught:
        bs.read_table(table)
    assert "('a', 'Text')" in caught.value.where
    assert len(bs.read_table(table, text_column="('a', 'Text')", label_column="('a', 'Label')")) == 30


def test_cells_of_bytes_are_refused():
    with pytest.raises(DataError, match=re.escape("row 1 holds bytes, not text")):
        bs.read_table(tiny_table(30).assign(Text=b"x"))


@pytest.mark.parametrize(
    "command",
    [
        ("train", "t.csv", "-o", LONG),
        ("predict", LONG, "t.csv", "-o", "p.csv"),
        ("predict", "run", "t.csv", "-o", f"{LONG}.csv"),
        ("inspect", LONG),
        ("inspect", "t.csv", "--config", LONG),
        ("inspect", "t.csv", "--label-errors", f"{LONG}.csv"),
        ("inspect", "t.csv", "--sheet", LONG),
        ("compare", LONG, "run"),
        ("export", LONG),
        ("export", "run", "-o", "s3://bucket/export"),
        ("train", "t.csv", "-o", "s3://bucket/run"),
        ("inspect", "https://host/t.csv"),
    ],
)
def test_commands_refuse_invalid_paths(command, cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_table(30).to_csv("t.csv", index=False)
    code, _, err = cli(*command)
    assert code == 2
    assert len(err) < 600
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_numbers_agree_with_their_nouns():
    assert [counted(n, "row") for n in (0, 1, 2000)] == ["0 rows", "1 row", "2,000 rows"]
    assert [counted(n, "row has", "rows have") for n in (1, 2)] == ["1 row has", "2 rows have"]
    assert [counted(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]


def _refusal(table, **settings):
    with pytest.raises(DataError) as caught:
        bs.read_table(table, **settings)
    return str(caught.value)


@pytest.mark.parametrize(
    "message",
    [
        lambda: _refusal(_rows(**{"Label": [1, 1, 1, 2, 2, 2], "Label Text": [*"aaabbc"]})),
        lambda: _refusal(_rows(**{"Label Text": ["a;b", "a,b", *"aabb"]}), task="multi-label"),
        lambda: repr(bs.read_table(_rows(Label=[*"aaabbb"])).take(np.arange(6) < 1)),
        lambda: ExpectedGain(1, 1, 0.1, 0.0, 0.2, 0.2, None, 0.9, 0.8, 1.0, random=1).sentence,
    ],
)
def test_messages_about_one_thing_have_no_plural(message):
    text = message()
    assert re.search(r"\b1 \w+", text)
    assert re.findall(r"\b1 (?!class\b)\w+s\b", text) == []
