"""Commands: exit codes, what goes to stdout and what to stderr, and that no mistake shows a traceback."""

import contextlib
import errno
import io
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import warnings
import zipfile
from csv import DictReader
from csv import reader as csv_reader
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

import bertsmith as bs
from bertsmith.cli.app import COMMANDS, app, main
from bertsmith.cli.terminal import stderr_console, stdout_console
from bertsmith.config import Config, DataConfig
from bertsmith.data.stream import open_stream
from bertsmith.data.texts import guarded_cell, unguarded_cell
from bertsmith.errors import ConfigError, DataError
from bertsmith.inference.chunks import Chunks
from bertsmith.inference.spreadsheet import check_fits
from bertsmith.inference.table_writers import write_csv
from bertsmith.progress.display import PlainConsole
from bertsmith.testing import tiny_table
from tests.conftest import train


def _command_that(monkeypatch, action):
    """Replace all commands by one."""
    made = typer.Typer()
    made.command()(action)
    monkeypatch.setattr("bertsmith.cli.app.app", lambda name="": made)


def _exit_code():
    with pytest.raises(SystemExit) as caught:
        main([])
    return caught.value.code


@pytest.mark.parametrize("write", [lambda: sys.stdout.write("a" * 100_000), lambda: stdout_console().print("a")])
def test_a_reader_that_ends_early_is_no_error(write, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr("sys.stdout", closed)
        _command_that(monkeypatch, lambda: write() and None)
        assert _exit_code() == 0


def test_a_command_continues_if_the_reader_of_its_messages_ends(monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)

    def action():
        stderr_console().print("a message")
        stderr_console().print("another message")
        sys.stderr.write("a message of a library")
        sys.stderr.flush()
        sys.stdout.write("the result")

    with os.fdopen(writer, "w") as closed:
        monkeypatch.setattr("sys.stderr", closed)
        _command_that(monkeypatch, action)
        assert _exit_code() == 0
    assert capsys.readouterr().out == "the result"


@pytest.mark.parametrize("arguments", [["doctor", "--help"], ["--version"]], ids=" ".join)
def test_the_reader_of_the_help_may_end_early(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed:
        command = [sys.executable, "-m", "bertsmith", *arguments]
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_broken_pipe_is_an_internal_error(monkeypatch, tmp_path, capsys):
    def lose_a_child():
        raise BrokenPipeError

    with (tmp_path / "out").open("w") as file:
        monkeypatch.setattr("sys.stdout", file)
        _command_that(monkeypatch, lose_a_child)
        assert _exit_code() == 1
    assert "BrokenPipeError" in capsys.readouterr().err


def test_paths_with_brackets_are_shown_as_they_are(monkeypatch, tmp_path, capsys):
    def fill_the_disk():
        raise OSError(errno.ENOSPC, "full", "runs[1]/[/bold].csv")

    with (tmp_path / "out").open("w") as file:
        monkeypatch.setattr("sys.stdout", file)
        _command_that(monkeypatch, fill_the_disk)
        assert _exit_code() == 2
    assert str(Path("runs[1]/[/bold].csv")) in capsys.readouterr().err


def test_only_the_beginning_of_a_message_has_a_style():
    console = PlainConsole(file=io.StringIO(), force_terminal=True, color_system="standard", no_color=False)
    console.print("note: [red] :cat:")
    assert console.file.getvalue() == "\x1b[33mnote:\x1b[0m [red] :cat:\n"


def test_a_path_without_permission_is_an_error_of_the_user(monkeypatch, capsys):
    def look():
        raise PermissionError(errno.EACCES, "denied", "run.json")

    _command_that(monkeypatch, look)
    assert _exit_code() == 2
    assert "run.json" in capsys.readouterr().err


@pytest.fixture
def csv(tmp_path):
    tiny_table().to_csv(tmp_path / "t.csv", index=False)
    return tmp_path / "t.csv"


def test_the_readme_and_the_reference_have_the_commands():
    root = Path(__file__).parents[2]
    readme = (root / "README.md").read_text(encoding="utf-8")
    used = set(re.findall(r"^\$ bertsmith (\w+)", readme, flags=re.M))
    assert {"inspect", "train", "predict"} <= used <= set(COMMANDS)
    reference = (root / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## (\w+)", reference, flags=re.M)) == set(COMMANDS)


@pytest.mark.parametrize("flag", [(), ("--debug",)], ids=["usual", "debug"])
def test_warnings_of_libraries_do_not_reach_the_terminal(flag, cli, csv, monkeypatch):
    monkeypatch.setattr("bertsmith.cli.inspect.print_json", lambda values: warnings.warn("of a library", stacklevel=1))
    monkeypatch.setenv("PYTHONWARNINGS", "")
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        code = cli("inspect", csv, "--json", *flag)[0]
    assert code == 0
    assert [str(w.message) for w in shown] == ["of a library"] * len(flag)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command, cli):
    code, out, _ = cli(command, "--help")
    assert code == 0
    assert f"Example: bertsmith {command}" in " ".join(out.split())


def test_every_setting_is_a_flag_of_train(cli):
    out = cli("train", "--help")[1]
    assert all(f"--{name.replace('_', '-')}" in out for name in Config.model_fields)


def test_inspect_prints_json_and_writes_a_page(cli, csv, tmp_path):
    page = tmp_path / "f [draft].html"
    code, out, err = cli("inspect", csv, "--json", "--html", page)
    assert code == 0
    assert json.loads(out)["rows"] == 120
    assert page.name in err
    assert "Class balance" in page.read_text()


def test_texts_seen_in_training_are_reported(cli, csv, own_run, tmp_path):
    splits = pd.read_parquet(own_run / "splits.parquet")
    used = splits["split"].isin(["train", "validation"]).sum()
    table = tiny_table(150)  # of which the run was made
    table["Label"] = (table["Label"] + 1) * 10
    new = tiny_table(30, seed=9)
    new["Label"] = (new["Label"] + 1) * 10
    for frame, seen in (
        (table, used),
        (new, 0),
        (pd.concat([new, table.head(3)]), splits["split"][:3].ne("test").sum()),
    ):
        frame.to_csv(tmp_path / "again.csv", index=False)
        code, out, err = cli("evaluate", own_run, tmp_path / "again.csv", "--device", "cpu", "--json", "--overwrite")
        assert code == 0
        assert json.loads(out)["seen_in_training"] == seen
        assert ("of these texts" in err) == (seen > 0)


def test_train_and_evaluate_take_tables_in_memory(tiny, own_run, tmp_path):
    tables = {"test": tiny_table(20, seed=5), "validation": tiny_table(25, seed=6)}
    run = train(tiny, tmp_path / "run", epochs=1, **tables)
    assert run.metrics["splits"]["test"]["texts"] == 20
    assert run.info["data"]["splits"] == {"train": 120, "validation": 25, "test": 20}
    assert run.info["config"]["test"] == "a DataFrame in memory"
    new = tables["test"].assign(Label=(tables["test"]["Label"] + 1) * 10)
    assert bs.evaluate(own_run, new, name="in-memory", device="cpu")["texts"] == 20
    with pytest.raises(ConfigError, match="test"):
        bs.evaluate(own_run, new, test=new)


def test_train_evaluate_predict(cli, csv, tiny, tmp_path, monkeypatch):
    run = tmp_path / "run"
    settings = ("--model", tiny, "--epochs", 1, "--device", "cpu", "--precision", "fp32", "--set", "weight_decay=0.02")
    code, out, err = cli("train", csv, "-o", run, *settings)
    assert code == 0
    assert re.search(r"test macro-F1  0\.\d{3}  \(95 % interval", out)
    assert "epoch 1, train loss" in err
    assert json.loads((run / "run.json").read_text())["config"]["set"] == {"weight_decay": 0.02}

    code, out, _ = cli("evaluate", run, csv, "--json")
    assert code == 0
    assert json.loads(out)["texts"] == 120

    code, out, err = cli("predict", run, csv)
    assert code == 0
    frame = pd.read_csv(io.StringIO(out))
    assert list(frame.columns) == ["Label", "Label Text", "Text", "predicted", "predicted_text", "confidence"]
    assert len(frame) == 120

    (tmp_path / "lines.txt").write_text("my cat\n\nred\n")
    code, out, _ = cli("predict", run, tmp_path / "lines.txt", "--json", "--probabilities")
    records = [json.loads(line) for line in out.splitlines()]
    assert [r["text"] for r in records] == ["my cat", "", "red"]
    assert sum(v for k, v in records[0].items() if k.startswith("probability of")) == pytest.approx(1)

    monkeypatch.setattr(
        sys, "stdin", type("In", (), {"buffer": io.BytesIO("café\n".encode()), "isatty": lambda _: False})()
    )
    assert json.loads(cli("predict", run, "-", "--json")[1])["text"] == "café"

    target = tmp_path / "out.parquet"
    code, out, err = cli("predict", run, csv, "-o", target)
    assert (code, out) == (0, "")
    assert "120 rows written" in err
    assert len(pd.read_parquet(target)) == 120
    assert cli("predict", run, csv, "-o", target)[0] == 2
    assert cli("predict", run, csv, "-o", target, "--overwrite")[0] == 0
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]

    code, _, err = cli("train", csv, "-o", run, *settings)
    assert code == 2
    assert "--overwrite" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("train", "no-such.csv", "-o", "r"), "no-such.csv"),
        (("train", "T", "-o", "r", "--epochs", "many", "--patience", "0"), "2 settings"),
        (("train", "T", "-o", "r", "--model", "./nowhere"), "checkpoint folder does not exist"),
        (("train", "T", "-o", "r", "--model", "packaged:maxi"), "packaged:maxi"),
        (("train", "T", "-o", "r", "--set", "weight_decy=1"), "Did you mean 'weight_decay'"),
        (("train", "T", "-o", "r", "--set", "weight_decay"), "NAME=VALUE"),
        (("train", "T", "-o", "r", "--set", "eval_strategy=no"), "must be epoch or steps"),
        (("train", "T", "-o", "r", "--set", "optim=nonsense", "--model", "M"), "refuses these training arguments"),
        (("train", "T", "-o", "r", "--max-length", "100", "--model", "M"), "takes at most 64 tokens"),
        (
            ("train", "T", "-o", "r", "--test", "T", "--model", "M"),
            "dropped: 120 rows (also in test)",
        ),
        (("train", "T", "-o", "T"), "the path is a file"),
        (("train", "T", "-o", "r", "--text-column", "txet"), "no column 'txet'. Did you mean 'Text'?"),
        (("train", "T", "-o", "r", "--config", "none.toml"), "configuration file cannot be read"),
        (("train", "T", "-o", "r", "--epoch", "1"), "No such option"),
        (("train", "T"), "Missing option"),
        (("train", "-o", "r"), "the table is missing"),
        (("train", "-o", "r", "--sql", "select 1"), "--sql needs --db"),
        (("inspect", "no-such.csv"), "no-such.csv"),
        (("inspect", "T", "--html", "T/x.html"), "cannot be written"),
        (("inspect", "T", "--html", "T"), "never replaces"),
        (("inspect", "T", "--html", "T", "--overwrite"), "never replaces"),
        pytest.param(
            ("inspect", "T", "--html", os.devnull, "--overwrite"),
            "not a plain file",
            marks=pytest.mark.skipif(sys.platform == "win32", reason="Windows has no device files"),
        ),
        (("inspect", "T", "--html", ".", "--overwrite"), "the path is a folder"),
        (("inspect", "T", "--sheet", "x"), "Omit --sheet"),
        (("train", "T", "-o", "r", "--epochs", "0"), "--epochs:"),
        (("inspect", "T", "--label-column", "Text"), "no column name suggests texts"),
        (("train", "T", "-o", "T/run"), "cannot be written"),
        (("train", "T", "-o", "r", "--test", "T", "--test-size", "0.2"), "--test and --test-size"),
        (("evaluate", "no-run", "T"), "where: no-run"),
        (("predict", "no-run", "T"), "where: no-run"),
        (("conquer",), "No such command"),
    ],
)
def test_user_errors_exit_with_2(arguments, expected, cli, csv, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(*(str(tiny) if a == "M" else re.sub(r"^T\b", csv.name, a) for a in arguments))
    assert code == 2
    assert expected in " ".join(err.split()), err
    assert out == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.csv"]


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_is_given_twice_unless_it_repeats(name):
    command = typer.main.get_command(app(name))
    command = getattr(command, "commands", {name: command})[name]
    options = [p for p in command.params if p.param_type_name == "option"]
    assert {o.name for o in options if o.multiple} <= {"set", "objective", "text", "text_column", "dataset", "language"}
    for option in options:
        long = max(option.opts, key=len)
        if option.is_flag:
            twice = [[first, second] for first in option.opts for second in (long, *option.secondary_opts)]
        else:
            first, second = ["x"] * option.nargs, ["y"] * option.nargs
            twice = [[long, *first, flag, *second] for flag in option.opts]
        for arguments in twice:
            if option.multiple:
                command.make_context(name, [*arguments], resilient_parsing=True)
                continue
            with pytest.raises(ConfigError, match=long):
                command.make_context(name, [*arguments])


def test_an_option_given_twice_ends_with_exit_code_2_before_anything_is_read(cli, csv):
    for twice in (("--text-column", "Text", "--text-column=Text"), ("--json", "--json")):
        code, out, err = cli("inspect", csv, *twice)
        assert (code, out) == (2, "")
        assert twice[0] in err


def test_an_internal_error_prints_a_short_message_and_writes_a_log(cli, csv, monkeypatch):
    monkeypatch.setattr("bertsmith.data.read.find_columns", lambda *_, **__: 1 / 0)
    code, _, err = cli("inspect", csv)
    assert code == 1
    log = Path(re.search(r"\S+\.log", err)[0])
    assert "ZeroDivisionError" in log.read_text()
    log.unlink()
    with pytest.raises(ZeroDivisionError):
        main(["inspect", str(csv), "--debug"])


@pytest.mark.parametrize("module", ["bertsmith.cli.app", "typer", "bertsmith.cli.inspect"])
def test_ctrl_c_during_imports_exits_with_130(module):
    code = (
        "import sys\nclass Interrupt:\n"
        f"    def find_spec(self, name, *_):\n        if name == {module!r}: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\nfrom bertsmith.__main__ import main\n"
        "sys.argv = ['bertsmith', 'inspect', 't.csv']\nmain()"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (out.returncode, out.stdout) == (130, "")
    assert "Traceback" not in out.stderr


def test_version(cli):
    assert cli("--version")[1].startswith("bertsmith 0.")


def test_cells_that_would_be_formulas_are_guarded_in_csv_unless_told_otherwise(cli, finished, tmp_path):
    source = tmp_path / "new.csv"
    texts = ["=1+1", "+cmd", "-2 stars", "@home", "\tindented", "plain", "-3.5", "+1e5"]
    pd.DataFrame({"Text": texts, "=HYPERLINK()": texts, "n": range(-4, 4)}).to_csv(source, index=False)
    guarded, plain = tmp_path / "guarded.csv", tmp_path / "plain.csv"
    assert cli("predict", finished, source, "-o", guarded)[0] == 0
    assert cli("predict", finished, source, "-o", plain, "--no-formula-guard")[0] == 0
    frame = pd.read_csv(guarded, dtype=str)
    expected = ["'=1+1", "'+cmd", "'-2 stars", "'@home", "'\tindented", "plain", "-3.5", "+1e5"]
    assert frame.iloc[:, 0].tolist() == frame["'=HYPERLINK()"].tolist() == expected
    assert frame["n"].tolist() == [str(n) for n in range(-4, 4)]
    assert pd.read_csv(plain, dtype=str).iloc[:, 0].tolist() == texts


@pytest.mark.parametrize(
    "number",
    ["-3,20", "+4,5", "-,5", "-3,", "-1,5e-3", "-1.234,50", "-1,234.50", "+1 234 567,5", "-1'234.5", "-1\u202f234"],
)
def test_numbers_with_decimal_commas_and_thousands_are_not_guarded(number):
    assert guarded_cell(number) == number
    assert unguarded_cell(f"'{number}") == f"'{number}"


@pytest.mark.parametrize(
    "formula",
    [
        "-3,2+1",
        "-3,20\n",
        "+1,2,3",
        "-1.23.456",
        "-1 234 5",
        "-A1",
        "=-3,20",
        "+49 30",
        "-",
        "-,",
        "-1,234!A1",
        "-٣",
        "-5%",
    ],
)
def test_everything_else_that_begins_like_a_formula_is_guarded(formula):
    assert guarded_cell(formula) == f"'{formula}"
    assert unguarded_cell(f"'{formula}") == formula
    assert unguarded_cell(formula) == formula


AWKWARD = ["=1+1", "#N/A", " two  spaces ", "a\r\nb\x07", "_x0041_", "naïve; café, 😀", "007", "-3.5"]


def test_excel_files_are_read_back_unchanged(cli, finished, tmp_path):
    days = [datetime(2026, 1, 2, 3, 4, 5), *[None] * 7]
    large = [10**15 + 1, 7, *[0] * 6]
    odd = [" \n ", "a\uffff", "😀" * 16_000, *[None] * 5]
    frame = pd.DataFrame(
        {"Text": AWKWARD, "odd": odd, "day": days, "n": large, "yes": [True, False] * 4, "f": [0.5, None] * 4}
    )
    frame.to_parquet(tmp_path / "t.parquet", index=False)
    code, _, err = cli("predict", finished, tmp_path / "t.parquet", "-o", tmp_path / "out.xlsx")
    assert (code, "Traceback" in err) == (0, False)
    with zipfile.ZipFile(tmp_path / "out.xlsx") as packed:
        assert not any(b"<f>" in packed.read(name) for name in packed.namelist())
    with open_stream(tmp_path / "out.xlsx", DataConfig()) as stream:
        (cells, texts), *_ = stream.chunks()
        assert stream.notes == ()
    assert texts == cells["Text"] == AWKWARD
    assert cells["odd"] == [" \n ", "a\ufffd", "😀" * 16_000, *[None] * 5]
    assert cells["day"] == [datetime(2026, 1, 2, 3, 4, 5), *[None] * 7]
    assert cells["n"] == [str(10**15 + 1), 7, *[0] * 6]
    assert cells["yes"] == frame["yes"].tolist()
    assert cells["f"] == [0.5, None] * 4
    expected = bs.load(finished, device="cpu", runtime="torch").predict_frame(AWKWARD)
    assert cells["predicted_text"] == expected["predicted_text"].tolist()
    assert cells["predicted"] == expected["predicted"].tolist()
    assert cells["confidence"] == pytest.approx(expected["confidence"].tolist(), abs=1e-5)


def test_the_limits_of_excel_are_checked_before_predicting(cli, finished, tmp_path, monkeypatch):
    def label(*_, **__):
        raise AssertionError("not before it is known to fit")

    monkeypatch.setattr("bertsmith.inference.predict._prepare", label)
    source, target = tmp_path / "t.csv", tmp_path / "out.xlsx"
    pd.DataFrame({"Text": ["a cat", "a cat"], "note": ["x", "😀" * 16_384]}).to_csv(source, index=False)
    code, _, err = cli("predict", finished, source, "-o", target)
    assert (code, target.exists()) == (2, False)
    assert "row 2, column 'note'" in err
    monkeypatch.setattr("bertsmith.inference.spreadsheet.ROWS", 3)
    pd.DataFrame({"Text": ["a cat"] * 3}).to_csv(source, index=False)
    code, _, err = cli("predict", finished, source, "-o", target)
    assert (code, target.exists()) == (2, False)
    assert " 2 rows" in err
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    pd.DataFrame({"Text": ["a cat"] * 2}).to_csv(source, index=False)
    code, _, err = cli("predict", finished, source, "-o", target)
    assert (code, "bertsmith[excel]" in err) == (2, True)


@pytest.mark.parametrize(("dialect", "delimiter", "decimal"), [("excel", ",", "."), ("excel-semicolon", ";", ",")])
def test_csv_for_excel_is_resumed_and_read_back(dialect, delimiter, decimal, cli, finished, tmp_path, monkeypatch):
    monkeypatch.setattr("bertsmith.data.stream.CHUNK_ROWS", 3)
    monkeypatch.setattr("bertsmith.inference.chunks.CHUNK_ROWS", 3)
    frame = pd.DataFrame({"Text": AWKWARD, "f": [-0.5, 1.25] * 4})
    frame.to_parquet(tmp_path / "t.parquet", index=False)
    command = ("predict", finished, tmp_path / "t.parquet", "--no-formula-guard")
    whole, parts = tmp_path / "whole.csv", tmp_path / "parts.csv"
    assert cli(*command, "-o", whole, "--csv-dialect", dialect)[0] == 0
    content = whole.read_bytes()
    assert content.startswith(b"\xef\xbb\xbfText" + delimiter.encode())
    assert content.count(b"\xef\xbb\xbf") == 1
    back = pd.read_csv(io.BytesIO(content), sep=delimiter, decimal=decimal, encoding="utf-8-sig", keep_default_na=False)
    assert back["f"].tolist() == frame["f"].tolist()
    assert back["confidence"].between(0.3, 1).all()
    with open_stream(whole, DataConfig()) as stream:
        assert [text for _, texts in stream.chunks() for text in texts] == AWKWARD
    assert cli(*command, "--csv-dialect", dialect)[1].encode() == content

    add, added = Chunks.add, []

    def once(pieces, *given):
        if added:
            raise KeyboardInterrupt
        added.append(add(pieces, *given))

    monkeypatch.setattr(Chunks, "add", once)
    assert cli(*command, "-o", parts, "--csv-dialect", dialect)[0] == 130
    monkeypatch.setattr(Chunks, "add", add)
    code, _, err = cli(*command, "-o", parts, "--resume")
    assert (code, "csv_dialect" in err) == (2, True)
    assert cli(*command, "-o", parts, "--csv-dialect", dialect, "--resume")[0] == 0
    assert parts.read_bytes() == content


def test_the_header_counts_in_an_excel_sheet_before_any_prediction(monkeypatch):
    chunks = [{"Text": ["a", "b"]}, {"Text": ["c"]}]
    monkeypatch.setattr("bertsmith.inference.spreadsheet.ROWS", 4)
    check_fits(chunks)
    monkeypatch.setattr("bertsmith.inference.spreadsheet.ROWS", 3)
    with pytest.raises(DataError):
        check_fits(chunks)


def test_a_csv_dialect_is_for_csv(cli, finished, csv, tmp_path):
    for more in (("-o", tmp_path / "out.jsonl"), ("--json",)):
        assert cli("predict", finished, csv, "--csv-dialect", "excel", *more)[0] == 2
    assert not (tmp_path / "out.jsonl").exists()


def test_predict_ends_with_counts_by_label(cli, finished, tmp_path):
    source = tmp_path / "t.csv"
    texts = ["my cat", "a dog", "red and blue", "apple plum", "my bird", None]
    pd.DataFrame({"Text": texts}).to_csv(source, index=False)
    for more in ((), ("-o", tmp_path / "out.jsonl")):
        err = cli("predict", finished, source, *more)[2]
        counts = re.findall(r"^ +(\d+) +([\d.]+)% +(\w+)$", err, re.M)
        assert counts == [("3", "60.0", "animals"), ("1", "20.0", "colours"), ("1", "20.0", "fruits")]


def test_existing_files_are_replaced_only_with_overwrite(cli, finished, csv, tmp_path):
    page, predictions = tmp_path / "page.html", tmp_path / "predictions.csv"
    for command in (("inspect", csv, "--html", page), ("predict", finished, csv, "-o", predictions)):
        file = command[-1]
        file.write_text("precious")
        code, _, err = cli(*command)
        assert (code, file.read_text()) == (2, "precious")
        assert "--overwrite" in err
        assert cli(*command, "--overwrite")[0] == 0
        assert file.read_text() != "precious"
    before = csv.read_bytes()
    code, _, err = cli("predict", finished, csv, "-o", csv, "--overwrite")
    assert (code, csv.read_bytes()) == (2, before)
    assert f"where: {csv}" in err


def test_numbers_of_the_input_are_unchanged(cli, finished, tmp_path):
    values = {"small": [1.23e-07, 0.1], "whole": [2, 3], "large": [1e300, 12345678.9]}
    frame = pd.DataFrame({"Text": ["a cat", "a dog"], **values})
    frame.to_excel(tmp_path / "t.xlsx", index=False)
    frame.to_parquet(tmp_path / "t.parquet", index=False)
    frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True, double_precision=15)
    for source in ("t.xlsx", "t.parquet", "t.jsonl"):
        code, out, _ = cli("predict", finished, tmp_path / source)
        assert code == 0
        rows = pd.read_csv(io.StringIO(out), dtype=str)
        assert rows["small"].tolist() == ["1.23e-07", "0.1"]
        assert rows["whole"].tolist() == ["2", "3"]
        assert rows["large"].map(float).tolist() == values["large"]
        assert rows["confidence"].str.fullmatch(r"0\.\d{6}").all()


def test_types_of_the_input_are_kept_in_parquet(cli, finished, tmp_path, monkeypatch):
    monkeypatch.setattr("bertsmith.data.stream.CHUNK_ROWS", 2)  # the first chunk alone would have other types
    days = pd.to_datetime(["2026-01-02", "2026-01-03", None])
    frame = pd.DataFrame({"Text": ["a cat", "a dog", "red"], "n": [1, 2, 3], "f": [None, None, 0.5], "day": days})
    frame = frame.assign(right=[True, False, True], words=[["a"], [], ["b", "c"]], mixed=["1", "2", "x"])
    frame.to_parquet(tmp_path / "t.parquet", index=False)
    assert cli("predict", finished, tmp_path / "t.parquet", "-o", tmp_path / "out.parquet")[0] == 0
    back = pd.read_parquet(tmp_path / "out.parquet")[frame.columns]
    before = pd.read_parquet(tmp_path / "t.parquet")
    assert back.dtypes.to_dict() == before.dtypes.to_dict()
    assert back.drop(columns="words").equals(before.drop(columns="words"))
    assert [list(words) for words in back["words"]] == [["a"], [], ["b", "c"]]


def test_parquet_to_parquet_keeps_every_type(cli, finished, tmp_path):
    columns = {
        "Text": pa.array(["a cat", "a dog", "red"]),
        "id": pa.array([2**53 + 1, None, -1], pa.int64()),
        "tiny": pa.array([1, 2, None], pa.uint8()),
        "half": pa.array([0.1, float("nan"), None], pa.float32()),
        "kind": pa.array(["a", None, "a"]).dictionary_encode(),
        "day": pa.array([date(2026, 1, 2), None, date(1969, 1, 1)]),
        "price": pa.array([Decimal("1.10"), None, Decimal("-3.00")], pa.decimal128(5, 2)),
        "when": pa.array([1, None, 2**60 + 1], pa.timestamp("ns", "UTC")),
        "much": pa.array([[1], None, []], pa.large_list(pa.int16())),
    }
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "t.parquet")
    assert cli("predict", finished, tmp_path / "t.parquet", "-o", tmp_path / "out.parquet")[0] == 0
    back = pq.read_table(tmp_path / "out.parquet").select(table.column_names)
    assert back.schema.types == pq.read_table(tmp_path / "t.parquet").schema.types
    assert str(back.to_pydict()) == str(table.to_pydict())  # as texts, since NaN is not itself


def test_integers_beside_missing_values_stay_integers(cli, finished, tmp_path):
    text, large = ["a cat", "a dog", "red"], [2**53 + 1, None, 1]
    pq.write_table(pa.table({"Text": text, "id": large}), tmp_path / "t.parquet")
    lines = [json.dumps({"Text": t, "id": n}) for t, n in zip(text, large, strict=True)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    pd.DataFrame({"Text": text, "id": [7, None, 1]}).to_excel(tmp_path / "t.xlsx", index=False)
    for source, ids in (("t.parquet", large), ("t.jsonl", large), ("t.xlsx", [7, None, 1])):
        written = ["" if n is None else str(n) for n in ids]
        out = cli("predict", finished, tmp_path / source)[1]
        assert pd.read_csv(io.StringIO(out), dtype=str, keep_default_na=False)["id"].tolist() == written
        out = cli("predict", finished, tmp_path / source, "--json")[1]
        assert [json.loads(line)["id"] for line in out.splitlines()] == ids
        target = tmp_path / f"{source}.out.parquet"
        assert cli("predict", finished, tmp_path / source, "-o", target)[0] == 0
        assert pq.read_table(target)["id"].to_pylist() == ids


def test_json_lines_hold_json_alone(cli, finished, tmp_path):
    odd = {"f": [float("inf"), float("nan"), 0.5], "deep": [[1.0, float("-inf")], None, []]}
    pq.write_table(pa.table({"Text": ["a cat", "a dog", "red"], **odd}), tmp_path / "t.parquet")
    out = cli("predict", finished, tmp_path / "t.parquet", "--json")[1]
    records = [json.loads(line, parse_constant=lambda name: pytest.fail(name)) for line in out.splitlines()]
    assert [r["f"] for r in records] == [None, None, 0.5]
    assert [r["deep"] for r in records] == [[1.0, None], None, []]


def test_inputs_are_never_replaced(cli, finished, csv, tmp_path):
    frame = pd.read_csv(csv)
    frame.iloc[:12].to_csv(tmp_path / "held.csv", index=False)
    (tmp_path / "settings.toml").write_text('text-column = "Text"\n')
    with contextlib.closing(sqlite3.connect(tmp_path / "d.html")) as connection, connection:
        frame.to_sql("t", connection, index=False)
    database = ("--sql", "select * from t", "--db", f"sqlite:///{tmp_path / 'd.html'}")
    for target, arguments in (
        ("held.csv", (csv, "--test", tmp_path / "held.csv")),
        ("held.csv", (csv, "--validation", tmp_path / "held.csv")),
        ("settings.toml", (csv, "--config", tmp_path / "settings.toml")),
        ("d.html", database),
    ):
        before = (tmp_path / target).read_bytes()
        code, _, err = cli("inspect", *arguments, "--html", tmp_path / target, "--overwrite")
        assert (code, (tmp_path / target).read_bytes()) == (2, before)
        assert f"where: {tmp_path / target}" in err
    (tmp_path / "d.html").rename(tmp_path / "d.csv")
    database = ("--sql", "select Text from t", "--db", f"sqlite:///{tmp_path / 'd.csv'}")
    before = (tmp_path / "d.csv").read_bytes()
    code, _, err = cli("predict", finished, *database, "-o", tmp_path / "d.csv", "--overwrite")
    assert (code, (tmp_path / "d.csv").read_bytes()) == (2, before)
    for name in ("splits.parquet", "model/config.json", "model/model.safetensors", "predictions/test.csv"):
        before = (finished / name).read_bytes()
        for command in (("predict", finished, csv, "-o"), ("inspect", csv, "--html")):
            code, _, err = cli(*command, finished / name, "--overwrite")
            assert (code, (finished / name).read_bytes()) == (2, before)
            assert "--overwrite to replace" not in err


def test_a_url_is_not_a_path(cli, finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in (("pack", finished, "-o"), ("compare", finished), ("inspect", "--config"), ("methods",)):
        code, _, err = cli(*command, "s3://bucket/x.zip")
        assert code == 2
        assert "s3:/bucket/x.zip" in err.replace("\\", "/")
    assert not any(tmp_path.iterdir())


def test_output_pages_need_the_suffix_html(cli, csv, tmp_path):
    for name in ("-", "page", "page.csv"):
        code, _, err = cli("inspect", csv, "--html", tmp_path / name)
        assert code == 2
        assert "ends in .html" in err
        assert not (tmp_path / name).exists()


def test_a_damaged_model_of_a_run_is_reported(cli, own_run, csv, tmp_path):
    weights = own_run / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for damage in (lambda: None, weights.unlink):
        damage()
        code, _, err = cli("predict", own_run, csv)
        assert code == 2
        assert str(weights) in err.replace("\n", "")
        assert "--overwrite" in err


def test_a_changed_byte_of_a_model_is_reported(cli, own_run, csv):
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        file = own_run / "model" / name
        before = file.read_bytes()
        middle = len(before) // 2
        file.write_bytes(before[:middle] + bytes([before[middle] ^ 1]) + before[middle + 1 :])
        for command in (("predict", own_run, csv), ("evaluate", own_run, csv)):
            code, out, err = cli(*command)
            assert (code, out) == (2, "")
            assert str(file) in err.replace("\n", "")
            assert "--overwrite" in err
        file.write_bytes(before)
    (own_run / "model" / "notes.txt").write_text("mine")
    (own_run / "model" / "README.md").write_text("my card")
    assert cli("predict", own_run, csv)[0] == 0


def test_overwrite_refuses_folders_with_other_files(cli, finished, csv, tiny, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    command = ("train", csv, "-o", run, "--model", tiny, "--epochs", 1, "--device", "cpu", "--overwrite")
    for name in ("notes.txt", "evaluations/later/metrics.json"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("{}")
        code, _, err = cli(*command)
        assert code == 2
        assert f"'{Path(name).parts[0]}'" in err
        assert (run / name).is_file()
        shutil.rmtree(run / "evaluations", ignore_errors=True)
        (run / "notes.txt").unlink(missing_ok=True)
    assert cli(*command)[0] == 0


def test_outputs_inside_a_run_folder_are_refused(cli, finished, csv):
    for command in (
        ("predict", finished, csv, "-o", finished / "new.csv"),
        ("inspect", csv, "--html", finished / "x/n.html"),
    ):
        code, _, err = cli(*command)
        assert code == 2
        assert str(finished) in err.replace("\n", "")
        assert not (finished / "x").exists()
        assert not (finished / "new.csv").exists()


def test_files_of_a_run_can_be_read_by_others(finished):
    mode = (finished / "run.json").stat().st_mode
    assert {p.stat().st_mode for p in finished.rglob("*") if p.is_file()} == {mode}


def test_bytes_are_written_as_base64_to_text_formats(cli, finished, tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "d.sqlite")) as connection, connection:
        connection.execute("create table t (Text text, b blob, n integer)")
        connection.execute("insert into t values ('a cat', x'00ff', 7), ('red', null, null)")
    database = ("--sql", "select * from t", "--db", f"sqlite:///{tmp_path / 'd.sqlite'}")
    out = cli("predict", finished, *database, "--json")[1]
    assert [(r["b"], r["n"]) for r in map(json.loads, out.splitlines())] == [("AP8=", 7), (None, None)]
    out = cli("predict", finished, *database)[1]
    assert pd.read_csv(io.StringIO(out), dtype=str)[["b", "n"]].iloc[0].tolist() == ["AP8=", "7"]


def test_an_evaluation_of_a_changed_table_needs_overwrite(cli, own_run, csv):
    table = pd.read_csv(csv).drop(columns="Label")
    table.to_csv(csv, index=False)
    command = ("evaluate", own_run, csv, "--device", "cpu", "--name", "changed")
    assert cli(*command)[0] == 0
    assert cli(*command)[0] == 0  # the same again
    table.iloc[:60].to_csv(csv, index=False)
    code, _, err = cli(*command)
    assert code == 2
    assert str(own_run / "evaluations" / "changed") in err.replace("\n", "")
    assert "--overwrite" in err
    assert cli(*command, "--overwrite")[0] == 0
    assert json.loads((own_run / "evaluations" / "changed" / "metrics.json").read_text())["texts"] == 60


def test_tables_with_the_same_name_in_two_folders_are_distinguished(cli, own_run, csv, tmp_path):
    (tmp_path / "b").mkdir()
    table = pd.read_csv(csv).drop(columns="Label")
    table.to_csv(tmp_path / "same.csv", index=False)
    table.to_csv(tmp_path / "b" / "same.csv", index=False)
    assert cli("evaluate", own_run, tmp_path / "same.csv", "--device", "cpu")[0] == 0
    code, _, err = cli("evaluate", own_run, tmp_path / "b" / "same.csv", "--device", "cpu")
    assert code == 2
    assert str(tmp_path / "same.csv") in err.replace("\n", "")
    assert "--name" in err


def test_a_new_table_does_not_replace_the_evaluation_of_another(cli, own_run, csv):
    table = pd.read_csv(csv).drop(columns="Label")
    table.to_csv(csv, index=False)
    table.to_json(csv.with_suffix(".json"), orient="records")
    assert cli("evaluate", own_run, csv, "--device", "cpu")[0] == 0
    assert cli("evaluate", own_run, csv, "--device", "cpu")[0] == 0
    code, _, err = cli("evaluate", own_run, csv.with_suffix(".json"), "--device", "cpu")
    assert code == 2
    assert f"'{csv.resolve()}'" in err
    assert cli("evaluate", own_run, csv.with_suffix(".json"), "--device", "cpu", "--name", "t_2.x")[0] == 0
    assert json.loads((own_run / "evaluations" / "t_2.x" / "metrics.json").read_text())["table"] == "t.json"
    for name in ("", "../x", "a b", ".x", "x" * 300):
        code, _, err = cli("evaluate", own_run, csv, "--name", name)
        assert code == 2
        assert "cannot be the name of a folder" in err


def test_without_a_command_the_help_is_all_that_is_printed(cli):
    code, out, err = cli()
    assert (code, err) == (2, "")
    assert "inspect" in out


def test_an_evaluation_counts_the_dropped_rows(own_run):
    frame = tiny_table(20)
    frame["Label"] = (frame["Label"] + 1) * 10
    frame.loc[:4, "Text"] = None
    found = bs.evaluate(own_run, frame, label_column="Label", device="cpu")
    assert (found["texts"], sum(found["left_out"].values())) == (15, 5)


def test_the_name_of_an_evaluation_is_checked_and_that_of_a_long_table_shortened(own_run, csv):
    with pytest.raises(ConfigError):
        bs.evaluate(own_run, csv, name=5)
    long = csv.rename(csv.with_name(f"{'x' * 240}.csv"))
    bs.evaluate(own_run, long, label_column="Label", device="cpu")
    assert [path.name for path in (own_run / "evaluations").iterdir()] == ["x" * 200]


@pytest.mark.parametrize("dialect", ["plain", "excel", "excel-semicolon"])
def test_a_lone_carriage_return_stays_within_its_cell(cli, finished, tmp_path, dialect):
    texts = ["hello\r=1+cmd|A0", "a cat", "two\r\nlines"]
    source, output = tmp_path / "in.jsonl", tmp_path / "out.csv"
    source.write_text("\n".join(json.dumps({"Text": text, "id": i}) for i, text in enumerate(texts)))
    assert cli("predict", finished, source, "-o", output, "--csv-dialect", dialect, "--device", "cpu")[0] == 0
    with output.open(encoding="utf-8-sig", newline="") as file:
        rows = list(DictReader(file, delimiter=";" if dialect == "excel-semicolon" else ","))
    assert [row["Text"] for row in rows] == texts
    assert [row["id"] for row in rows] == ["0", "1", "2"]


def test_the_csv_of_a_frame_keeps_a_carriage_return_within_its_cell(tmp_path):
    frame = pd.DataFrame({"Text": ["a\rb", "=1"], "n": [1, 2]})
    write_csv(frame, tmp_path / "f.csv")
    with (tmp_path / "f.csv").open(newline="") as file:
        assert list(csv_reader(file)) == [["Text", "n"], ["a\rb", "1"], ["'=1", "2"]]
