"""Every malformed table is refused with file and remedy, or repaired correctly: never a traceback."""

import re

import numpy as np
import pytest

from bertsmith.config import DataConfig
from bertsmith.data.read import read_table
from tests.malformed import corpus

CORPUS = corpus()


def test_the_corpus_is_large_and_its_names_are_distinct():
    assert len(CORPUS) >= 210
    assert len({case.name for case in CORPUS}) == len(CORPUS)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", [c for c in CORPUS if c.texts is None], ids=repr)
def test_a_malformed_table_is_refused_with_file_place_and_remedy(case, cli, tiny, tmp_path):
    path = tmp_path / case.name
    case.make(path)
    flags = [flag.replace("{path}", str(path)) for flag in case.flags]
    if case.command == "train":
        flags += ["-o", tmp_path / "run", "--model", tiny]
    before = sorted(p.name for p in tmp_path.iterdir())
    code, out, err = cli(case.command, *([] if "--sql" in flags else [path]), *flags)
    assert code == 2, (out, err)
    message = " ".join(err.split())
    assert re.search(case.says, message), message
    assert "what to do:" in message, message
    assert re.sub(r"\s", "", case.name if case.where is None else case.where) in re.sub(r"\s", "", err)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def _shown(table, code):
    target = table.outcomes.targets(np.array([code]))[0]
    if table.task == "regression":
        return target
    return ";".join(np.array(table.labels.texts)[np.atleast_1d(target)])


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", [c for c in CORPUS if c.texts is not None], ids=repr)
def test_a_malformed_table_is_repaired_as_stated(case, cli, tmp_path):
    path = tmp_path / case.name
    case.make(path)
    settings = {
        flag[2:].replace("-", "_"): tuple(value.split(",")) if flag == "--label-columns" else value
        for flag, value in zip(case.flags[::2], case.flags[1::2], strict=True)
    }
    table = read_table(path, DataConfig(**settings))
    assert table.frame["text"].fillna("").tolist() == case.texts
    assert [None if code < 0 else _shown(table, code) for code in table.codes] == case.labels
    code, out, err = cli("inspect", path, *case.flags)
    assert code == (2 if "train refuses this table" in err else 0), err  # most tables are too small to split
    assert re.search(case.says, " ".join((out + err).split())), out
