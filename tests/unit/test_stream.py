"""Reading in chunks gives the same texts as reading whole; resumed predictions give the same file."""

import errno
import gzip
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import feather
from pydantic import ValidationError

import bertsmith as bs
from bertsmith.config import DataConfig
from bertsmith.data.columns import find_text_columns
from bertsmith.data.read import read_table
from bertsmith.data.sources import read_raw
from bertsmith.data.stream import open_stream
from bertsmith.data.template import Template
from bertsmith.data.texts import to_texts
from bertsmith.errors import DataError, Interrupted, OutputError, RunFolderError, UserError
from bertsmith.folders.claim import claim
from bertsmith.inference.chunks import Chunks, PredictionFile, chunks_folder, write_stream
from bertsmith.inference.predict import CONFIDENCE, LABELLED, LENGTH, predict_chunks
from bertsmith.inference.table_writers import to_arrow
from bertsmith.testing import tiny_table
from bertsmith.workflows.evaluate import read_labelled
from bertsmith.workflows.predict import opened
from bertsmith.workflows.predict_options import PredictOptions
from tests.malformed import corpus

TABLES = [c for c in corpus() if "--sql" not in c.flags and c.where != ""]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr("bertsmith.data.stream.CHUNK_ROWS", 3)
    monkeypatch.setattr("bertsmith.inference.chunks.CHUNK_ROWS", 3)


def _whole(path, config):
    raw = read_raw(path, config)
    (column,) = find_text_columns(list(raw.frame.columns), raw.name, config)
    texts = [text or "" for text in to_texts(raw.frame[column], f"{raw.name}, column {column!r}")]
    return raw.frame.astype(object).to_dict("split")["data"], list(raw.frame.columns), texts, list(raw.notes)


def _streamed(path, config):
    with open_stream(path, config) as stream:
        chunks = list(stream.chunks())
        assert [len(texts) for _, texts in chunks[:-1]] == [3] * (len(chunks) - 1)
        assert stream.n_rows == sum(len(texts) for _, texts in chunks)
        rows = [list(row) for cells, _ in chunks for row in zip(*cells.values(), strict=True)]
        return rows, list(chunks[0][0]), [t for _, texts in chunks for t in texts], list(stream.notes)


@pytest.mark.parametrize(
    "read",
    [
        read_table,
        lambda table, config: read_labelled(table, config, None),
        lambda table, config: open_stream(table, config).__enter__(),
        lambda _, config: opened(lambda: "stdin", config, Template(), PredictOptions(), print).__enter__(),
    ],
    ids=["read_table", "read_labelled", "open_stream", "stdin"],
)
def test_a_query_together_with_a_table_is_an_error(read):
    with pytest.raises(DataError) as error:
        read(tiny_table(6), DataConfig(sql="select 1", db="sqlite:///nowhere.db"))
    assert error.value.where


def _outcome(read, path, config):
    try:
        return read(path, config)
    except UserError as error:
        return error.what, error.where, error.remedy


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", TABLES, ids=repr)
def test_a_stream_gives_the_same_rows_and_errors_as_reading_whole(case, tmp_path):
    path = tmp_path / case.name
    case.make(path)
    known = set(DataConfig.model_fields)
    flags = {f[2:].replace("-", "_"): v for f, v in zip(case.flags[::2], case.flags[1::2], strict=False)}
    try:
        config = DataConfig(**{name: value for name, value in flags.items() if name in known - {"validation", "test"}})
    except ValidationError:
        pytest.skip("the settings are refused before the table is read")
    if path.suffix == ".txt":
        pytest.skip("predict reads it as lines of text")
    whole, streamed = (_outcome(read, path, config) for read in (_whole, _streamed))
    assert repr(streamed) == repr(whole)  # repr, since NaN is not equal to itself


def test_every_line_of_a_text_file_is_a_text(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes("\ufeffone\r\n\ntwo\u2028three\nfour\n".encode())
    with open_stream(path, DataConfig()) as stream:
        assert [texts for _, texts in stream.chunks()] == [["one", "", "two\u2028three"], ["four"]]
        assert stream.n_rows == 4
    (tmp_path / "packed.txt.gz").write_bytes(gzip.compress(b"a\nb"))
    with open_stream(tmp_path / "packed.txt.gz", DataConfig()) as stream:
        assert [texts for _, texts in stream.chunks()] == [["a", "b"]]


def test_an_empty_line_of_a_table_with_one_column_is_an_empty_text(tmp_path):
    (tmp_path / "t.csv").write_text("\nText\none\n\n\ntwo\n\n")
    with open_stream(tmp_path / "t.csv", DataConfig()) as stream:
        assert [text for _, texts in stream.chunks() for text in texts] == ["one", "", "", "two"]
        assert stream.n_rows == 4
    pd.DataFrame({"Text": ["one", None, None, "two", None]}).to_excel(tmp_path / "t.xlsx", index=False)
    with open_stream(tmp_path / "t.xlsx", DataConfig()) as stream:
        assert [text for _, texts in stream.chunks() for text in texts] == ["one", "", "", "two"]


def test_a_stream_needs_no_label_column():
    with open_stream(pd.DataFrame({"id": [1, 2], "Review": ["a", None]}), DataConfig()) as stream:
        ((cells, texts),) = stream.chunks()
        assert (texts, list(cells), cells["id"]) == (["a", ""], ["id", "Review"], [1, 2])
    with open_stream(pd.DataFrame({"anything": ["a"]}), DataConfig()) as stream:
        assert next(stream.chunks())[1] == ["a"]


BAD = {
    "t.csv": ("Text,n\na,1\nb,2,3\nc,4\nd\ne,5\n", ["line 3", "line 5"], ["a", "c", "e"]),
    "t.jsonl": (
        '{"Text": "a"}\n{"Text": \n[1]\n\n{"Text": ["x"]}\n{"Text": "b", "n": 1}\n',
        ["line 2", "line 3", "row 2"],
        ["a", "b"],
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_are_skipped_and_reported_on_request(name, cli, finished, tmp_path):
    content, locations, texts = BAD[name]
    (tmp_path / name).write_text(content)
    with open_stream(tmp_path / name, DataConfig(), skip=True) as stream:
        assert [location for location, _ in stream.skipped] == locations
        assert [text for _, some in stream.chunks() for text in some] == texts
        assert stream.n_rows == len(texts)
    with pytest.raises(DataError), open_stream(tmp_path / name, DataConfig()):
        pass
    out = tmp_path / "out.jsonl"
    code, _, err = cli("predict", finished, tmp_path / name, "-o", out, "--on-error", "skip")
    assert code == 0, err
    assert f"cannot be read: {len(locations)}" in err
    assert all(location in err for location in locations)
    assert [json.loads(line)["Text"] for line in out.read_text().splitlines()] == texts
    code, _, err = cli("predict", finished, tmp_path / name, "-o", tmp_path / "no.csv")
    assert code == 2
    assert "--on-error skip" in err
    assert not (tmp_path / "no.csv").exists()


def test_no_row_is_skipped_because_of_a_quote_in_a_text(tmp_path):
    (tmp_path / "t.tsv").write_text('Text\tn\n" a\t1\nb\t2 "\nc\t3\n')
    with open_stream(tmp_path / "t.tsv", DataConfig(), skip=True) as stream:
        assert stream.skipped == ()
        assert [text for _, some in stream.chunks() for text in some] == ['" a', "b", "c"]


def test_a_table_without_a_readable_row_is_refused(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"Text": [1]}\n')
    with (
        pytest.raises(DataError, match=r"where: t\.jsonl"),
        open_stream(tmp_path / "t.jsonl", DataConfig(), skip=True),
    ):
        pass


def test_late_columns_and_wider_types_are_merged(classifier, tmp_path):
    records = [{"Text": f"cat {i}"} for i in range(5)] + [{"Text": "dog", "late": i / 2, "n": i} for i in range(4)]
    records[0]["n"] = "a word"
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    with open_stream(tmp_path / "t.jsonl", DataConfig()) as stream:
        write_stream(lambda p: predict_chunks(classifier, p), stream, tmp_path / "out.parquet", {})
    back = pq.read_table(tmp_path / "out.parquet")
    assert back.column("late").to_pylist() == [None] * 5 + [0.0, 0.5, 1.0, 1.5]
    assert back.column("n").to_pylist() == ["a word", *[None] * 4, "0", "1", "2", "3"]


def _table(path, rows=11):
    frame = pd.DataFrame({"id": range(rows), "Text": [f"cat {i}" if i % 4 else "" for i in range(rows)]})
    frame.to_csv(path, index=False)
    return path


def _predict(classifier, source, output, about, *, stop_after=None, **settings):
    def label(chunks):
        for i, result in enumerate(predict_chunks(classifier, chunks)):
            if i == stop_after:
                raise KeyboardInterrupt
            yield result

    with open_stream(source, DataConfig()) as stream:
        return write_stream(label, stream, output, about, **settings)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".xlsx"])
def test_interrupted_predictions_resume_to_the_same_file(suffix, classifier, tmp_path):
    source, about = _table(tmp_path / "t.csv"), {"input": "x", "min_confidence": np.float32(0.1)}
    whole, parts = tmp_path / f"whole{suffix}", tmp_path / f"parts{suffix}"
    counts = _predict(classifier, source, whole, about)
    kinds = (LABELLED, CONFIDENCE, LENGTH)
    assert {key: n for key, n in counts.items() if key != "none" and not key.startswith(kinds)} == {
        "rows": 11,
        "empty": 3,
        "abstained": 0,
        "cut": 0,
    }
    assert sum(n for key, n in counts.items() if key.startswith(LABELLED)) == 8
    with pytest.raises(Interrupted, match="6 rows"):
        _predict(classifier, source, parts, about, stop_after=2)
    assert not parts.exists()
    resumed_rows = []
    with pytest.raises(Interrupted, match="9 rows"):
        _predict(classifier, source, parts, about, stop_after=1, resume=True, on_resume=resumed_rows.append)
    assert _predict(classifier, source, parts, about, resume=True) == counts
    assert resumed_rows == [6]
    if suffix == ".parquet":
        assert pq.read_table(parts).equals(pq.read_table(whole))
    elif suffix == ".xlsx":  # contains the time of writing
        assert pd.read_excel(parts, engine="calamine").equals(pd.read_excel(whole, engine="calamine"))
        assert len(pd.read_excel(whole, engine="calamine")) == 11
    else:
        assert parts.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["t.csv", whole.name, parts.name])


def test_unfinished_predictions_are_neither_mixed_nor_removed(classifier, tmp_path):
    source, output = _table(tmp_path / "t.csv"), tmp_path / "out.csv"
    with pytest.raises(RunFolderError) as error:
        PredictionFile(output).check(resume=True, overwrite=False)
    assert error.value.where == str(output)
    with pytest.raises(KeyboardInterrupt):
        _predict(classifier, source, output, {"input": "x"}, stop_after=0)
    assert not chunks_folder(output).exists()  # no chunk was finished
    with pytest.raises(Interrupted):
        _predict(classifier, source, output, {"input": "x"}, stop_after=1)
    with pytest.raises(RunFolderError, match="--resume"):
        PredictionFile(output).check(resume=False, overwrite=False)
    with pytest.raises(RunFolderError, match="--resume and --overwrite"):
        PredictionFile(output).check(resume=True, overwrite=True)
    with pytest.raises(RunFolderError, match=r"input .*'x'.*'y'"):
        _predict(classifier, source, output, {"input": "y"}, resume=True)
    PredictionFile(output).check(resume=False, overwrite=True)
    _predict(classifier, source, output, {"input": "y"})
    assert len(pd.read_csv(output)) == 11
    assert not chunks_folder(output).exists()
    (tmp_path / "mine.csv.unfinished").mkdir()
    (tmp_path / "mine.csv.unfinished" / "diary").touch()
    with pytest.raises(RunFolderError) as error:
        PredictionFile(tmp_path / "mine.csv").check(resume=False, overwrite=True)
    assert error.value.where == str(tmp_path / "mine.csv.unfinished")


def test_a_full_disk_keeps_the_finished_chunks(classifier, tmp_path, monkeypatch):
    source, output, whole = _table(tmp_path / "t.csv"), tmp_path / "out.csv", tmp_path / "whole.csv"
    _predict(classifier, source, whole, {})
    add = Chunks.add

    def fill(chunks, *given):
        if chunks.done == n_chunks:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(chunks.folder / "00000001.csv"))
        add(chunks, *given)

    monkeypatch.setattr(Chunks, "add", fill)
    for n_chunks in (0, 2):
        with pytest.raises(OutputError) as error, claim(PredictionFile(output)):
            _predict(classifier, source, output, {})
        assert error.value.where == str(output)
        assert ("--resume" in error.value.remedy) == chunks_folder(output).exists() == (n_chunks > 0)
    monkeypatch.setattr(Chunks, "add", add)
    _predict(classifier, source, output, {}, resume=True)
    assert output.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("rows", [2, 11])
def test_predictions_interrupted_before_the_first_chunk_begin_again(rows, cli, finished, tmp_path, monkeypatch):
    source, output, whole = _table(tmp_path / "t.csv", rows), tmp_path / "out.csv", tmp_path / "whole.csv"
    assert cli("predict", finished, source, "-o", whole)[0] == 0

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    command = ("predict", finished, source, "-o", output)
    for where in ("workflows.predict.open_model", "inference.predict._prepare"):
        with monkeypatch.context() as patch:
            patch.setattr(f"bertsmith.{where}", interrupt)
            code, _, err = cli(*command)
        assert (code, len(err.strip().splitlines())) == (130, 2)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["t.csv", "whole.csv"]
    code, _, err = cli(*command, "--resume")
    assert (code, "first row" in err) == (0, True)
    assert output.read_bytes() == whole.read_bytes()
    assert cli(*command, "--resume")[0] == 2  # nothing is unfinished, and the output exists


def test_an_interrupted_start_of_resuming_keeps_the_chunks(cli, finished, tmp_path, monkeypatch):
    source, output = _table(tmp_path / "t.csv"), tmp_path / "out.csv"
    command = ("predict", finished, source, "-o", output, "--resume")
    add = Chunks.add

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Chunks, "add", lambda chunks, *given: interrupt() if chunks.done else add(chunks, *given))
        assert cli(*command)[0] == 130
    with monkeypatch.context() as patch:
        patch.setattr("bertsmith.workflows.predict.open_model", interrupt)
        code, _, err = cli(*command)
    assert (code, str(chunks_folder(output)) in err) == (130, True)
    assert cli(*command)[0] == 0
    assert len(pd.read_csv(output)) == 11


def test_predictions_of_another_sheet_are_not_resumed(cli, finished, tmp_path, monkeypatch):
    source, output = tmp_path / "t.xlsx", tmp_path / "out.csv"
    with pd.ExcelWriter(source) as book:
        for sheet in ("first", "second"):
            pd.DataFrame({"Text": [f"{sheet} cat {i}" for i in range(11)]}).to_excel(
                book, sheet_name=sheet, index=False
            )
    command, add = ("predict", finished, source, "-o", output), Chunks.add

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Chunks, "add", lambda chunks, *given: interrupt() if chunks.done else add(chunks, *given))
        assert cli(*command, "--sheet", "first")[0] == 130
    assert cli(*command, "--sheet", "second", "--resume")[0] == 2
    assert cli(*command, "--sheet", "first", "--resume")[0] == 0


def test_sources_that_are_not_files_are_not_resumed(cli, finished, tmp_path, monkeypatch):
    output = tmp_path / "out.csv"
    _stdin(monkeypatch, b"a cat\n")
    assert cli("predict", finished, "-", "-o", output, "--resume")[0] == 2
    with pytest.raises(RunFolderError) as error:
        bs.predict(finished, pd.DataFrame({"Text": ["a cat"]}), output=output, resume=True)
    assert error.value.where == str(output)
    assert not output.exists()


DAMAGE = {
    "killed between the two files": lambda folder: (folder / "00000001.json").unlink(),
    "cut": lambda folder: (folder / "00000001.jsonl").write_text('{"half'),
    "changed": lambda folder: (folder / "00000000.jsonl").write_text(
        (folder / "00000000.jsonl").read_text().replace("cat", "dog")
    ),
    "without its note's content": lambda folder: (folder / "00000000.json").write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_chunks_are_predicted_again(damage, classifier, tmp_path):
    source, output = _table(tmp_path / "t.csv"), tmp_path / "out.jsonl"
    with pytest.raises(Interrupted):
        _predict(classifier, source, output, {}, stop_after=2)
    damage(chunks_folder(output))
    _predict(classifier, source, output, {}, resume=True)
    assert [json.loads(line)["id"] for line in output.read_text().splitlines()] == [str(i) for i in range(11)]
    assert "dog" not in output.read_text()


def test_predictions_that_replace_a_file_can_be_resumed(classifier, cli, finished, tmp_path):
    source, output = _table(tmp_path / "t.csv"), tmp_path / "out.csv"
    for existed in (False, True):
        if existed:
            output.write_text("old")
        with pytest.raises(Interrupted):
            _predict(classifier, source, output, {}, stop_after=1)
        output.write_text("old")
        code, _, err = cli("predict", finished, source, "-o", output, "--resume")
        assert code == 2
        # The file may be replaced only if it existed at the beginning; then the changed predictions are refused.
        assert ("labelled by" in err) == existed
        shutil.rmtree(chunks_folder(output))
        output.unlink()


def test_unfinished_predictions_with_a_damaged_description_are_refused(classifier, tmp_path):
    source, output = _table(tmp_path / "t.csv"), tmp_path / "out.csv"
    with pytest.raises(Interrupted):
        _predict(classifier, source, output, {}, stop_after=1)
    (chunks_folder(output) / "about.json").write_text("{")
    with pytest.raises(RunFolderError) as error:
        PredictionFile(output).check(resume=True, overwrite=False)
    assert error.value.where == str(chunks_folder(output) / "about.json")
    assert "--overwrite" in error.value.remedy
    PredictionFile(output).check(resume=False, overwrite=True)


def _stdin(monkeypatch, content):
    given = io.TextIOWrapper(io.BytesIO(content))
    monkeypatch.setattr(sys, "stdin", given)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_lines_from_stdin_go_to_every_format(suffix, cli, old_export, tmp_path, monkeypatch):
    command = ["predict", old_export, "-", "-o", tmp_path / f"out{suffix}"]
    if suffix == ".csv":  # from a real pipe
        command = [sys.executable, "-m", "bertsmith", *map(str, command)]
        done = subprocess.run(command, input=b"caf\xe9\ncat\n", capture_output=True)
        code, messages = done.returncode, done.stderr.decode()
        command = command[3:]
    else:
        _stdin(monkeypatch, b"caf\xe9\ncat\n")
        code, _, messages = cli(*command)
    assert code == 0, messages
    assert "cp1252" in messages
    assert (tmp_path / f"out{suffix}").stat().st_size
    _stdin(monkeypatch, b"a")
    code, _, messages = cli(*command, "--text-column", "x")
    assert (code, "--text-column" in messages) == (2, True)


@pytest.mark.parametrize("suffix", [".csv", ".xlsx"])
def test_lists_arrays_and_objects_are_json_in_cells(suffix, classifier, tmp_path):
    many, file = np.arange(2000).reshape(2, 1000), tmp_path / f"out{suffix}"
    values = [{"a": [1, None]}, many, (1, "\ud800"), {2}, np.array(["\ud800"]), torch.tensor([3]), b"a"]
    table = pd.DataFrame({"Text": ["cat"], **{f"n{i}": [value] for i, value in enumerate(values)}})
    with open_stream(table, DataConfig()) as stream:
        write_stream(lambda p: predict_chunks(classifier, p), stream, file, {})
    frame = pd.read_csv(file) if suffix == ".csv" else pd.read_excel(file, engine="calamine")
    *read, text = (frame[f"n{i}"][0] for i in range(len(values)))
    assert list(map(json.loads, read)) == [{"a": [1, None]}, many.tolist(), [1, "\ufffd"], [2], ["\ufffd"], [3]]
    assert text == "YQ=="


def test_columns_of_only_texts_become_arrow_columns_as_they_are(monkeypatch):
    """Converting each of their cells takes much longer than the rest of writing a Parquet file."""
    monkeypatch.setattr("bertsmith.inference.table_writers._input_cell", None)
    for as_read in (True, False):
        assert to_arrow({"a": ["x", None]}, {"a": pa.string()}, as_read)["a"].to_pylist() == ["x", None]


@pytest.mark.parametrize("suffix", [".jsonl", ".feather"])
def test_objects_without_fields_are_json_in_parquet(suffix, classifier, tmp_path):
    table = pa.table({"Text": ["cat", "dog"], "a": [{}, None], "b": [[{}], []]})
    source = tmp_path / f"t{suffix}"
    if suffix == ".feather":
        feather.write_feather(table, source)
    else:
        source.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    _predict(classifier, source, tmp_path / "out.parquet", {})
    back = pq.read_table(tmp_path / "out.parquet")
    assert (back["a"].to_pylist(), back["b"].to_pylist()) == (["{}", None], ["[{}]", "[]"])


@pytest.mark.parametrize(
    ("numbers", "written"),
    [
        ([1, 2, 3, 4.5], [1.0, 2.0, 3.0, 4.5]),
        ([2**63 + 1, 2, 3, 4], [str(2**63 + 1), "2", "3", "4"]),
        ([2**60 + 1, 2, 3, 4.5], [str(2**60 + 1), "2", "3", "4.5"]),
        ([{"v": n} for n in (1, 2, 3, 4.5)], [{"v": n} for n in (1.0, 2.0, 3.0, 4.5)]),
        ([{"v": n} for n in (2**60 + 1, 2, 3, 4.5)], [f'{{"v": {n}}}' for n in (2**60 + 1, 2, 3, 4.5)]),
        ([{}, {}, {}, {"v": 1}], [{"v": None}] * 3 + [{"v": 1}]),
        ([{}, [], None], ["{}", "[]", None]),
    ],
)
def test_the_type_of_a_column_holds_the_values_of_all_chunks(numbers, written, tmp_path):
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": "a", "id": n}) + "\n" for n in numbers))
    with open_stream(tmp_path / "t.jsonl", DataConfig()) as stream:
        types = stream.types()
        assert [n for cells, _ in stream.chunks() for n in to_arrow(cells, *types)["id"].to_pylist()] == written
