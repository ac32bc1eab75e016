"""What makes a run citable: the paragraph on methods, `verify` and `pack`."""

import hashlib
import json
import re
import shutil
import zipfile

import pandas as pd
import pytest

from bertsmith.folders.run import Run
from bertsmith.report.methods import REFERENCES, write_methods
from bertsmith.testing import tiny_table
from bertsmith.workflows.verify import verify_run


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def _measurement():
    share = {"label_text": "a_b", "group": None, "share": 0.3, "interval": [0.2, 0.4], "naive": 0.5}
    return {"shares": [{**share, "estimator": "PPI++", "labelled": 200, "texts": 5000}]}


def test_every_number_of_the_methods_is_in_a_file_of_the_run(finished):
    methods = write_methods(Run(finished))
    prose = re.sub(r"\[@\w+\]|95 %|F1|SHA-256", "", " ".join(methods.sentences))
    for value in sorted({value for value, _ in methods.sources}, key=len, reverse=True):
        prose = prose.replace(value, "")
    assert not re.search(r"\d", prose), prose
    for _, place in methods.sources:
        file, key = place.split(": ")
        value = json.loads((finished / file).read_text())
        for part in key.split("."):
            value = value[int(part)] if isinstance(value, list) else value[part]


def test_the_forms_of_the_methods_cite_the_same_works(finished):
    methods = write_methods(Run(finished), _measurement())
    assert "angelopoulos2023ppi" in methods.citations
    assert set(methods.citations) <= set(REFERENCES)
    assert set(re.findall(r"\\cite\{(\w+)\}", methods.latex())) == set(methods.citations)
    assert set(re.findall(r"@\w+\{(\w+),", methods.bibtex())) == set(methods.citations)
    prose = methods.latex().split("\n% ")[0]
    assert not re.search(r"(?<!\\)[%_&#]", re.sub(r"\\cite\{\w+\}", "", prose))
    assert "a\\_b: 30.0\\%" in prose


@pytest.mark.parametrize("form", ["markdown", "latex", "bibtex"])
def test_methods_prints_each_form(finished, cli, form, tmp_path):
    (tmp_path / "m.json").write_text(json.dumps(_measurement()))
    code, out, err = cli("methods", finished, "--format", form, "--measurement", tmp_path / "m.json")
    assert (code, err) == (0, "")
    assert "angelopoulos2023ppi" in out


def test_methods_refuses_another_file(finished, cli, tmp_path):
    (tmp_path / "m.json").write_text("[]")
    assert cli("methods", finished, "--measurement", tmp_path / "m.json")[0] == 2


def test_an_unchanged_run_is_identical(finished, cli):
    code, out, _ = cli("verify", finished, "--json", "--device", "cpu")
    assert code == 0
    assert json.loads(out)["identical"]
    assert len(json.loads(out)["checks"]) == 3


def test_a_changed_model_and_a_changed_score_are_found(copy, cli):
    metrics = json.loads((copy / "metrics.json").read_text())
    metrics["splits"]["test"]["metrics"]["accuracy"]["value"] -= 0.1
    (copy / "metrics.json").write_text(json.dumps(metrics))
    file = copy / "model" / "config.json"
    file.write_text(file.read_text() + " ")
    run = json.loads((copy / "run.json").read_text())
    checks = {check.name: check.identical for check in _checks_without_scoring(copy)}
    assert run["model_files"]
    assert checks == {"model files": False, "metrics of the saved predictions": False}


def _checks_without_scoring(path):
    from bertsmith.workflows import verify

    run = Run(path)
    metrics = run.metrics
    metrics["splits"]["test"]["by"] = "cross-validation"
    (path / "metrics.json").write_text(json.dumps(metrics))
    return [verify._check_seals(run), *verify._check_scores(run, "cpu")]


def test_training_again_gives_the_same_weights(copy, tmp_path):
    table = tiny_table(150)
    table["Label"] = (table["Label"] + 1) * 10
    table.to_csv(tmp_path / "t.csv", index=False)
    checks = verify_run(copy, tmp_path / "t.csv", retrain=True, device="cpu")
    assert [check for check in checks if not check.identical] == []
    other = tiny_table(150, seed=9)
    other["Label"] = (other["Label"] + 1) * 10
    other.to_csv(tmp_path / "o.csv", index=False)
    found = {check.name: check.identical for check in verify_run(copy, tmp_path / "o.csv", device="cpu")}
    assert not found["texts of the table"]


def test_retrain_needs_the_table(finished, cli):
    assert cli("verify", finished, "--retrain")[0] == 2


@pytest.mark.parametrize("texts", [True, False])
def test_an_archive_has_the_run_and_its_checksums(finished, cli, tmp_path, texts):
    file = tmp_path / "run.zip"
    code, _, err = cli("pack", finished, "-o", file, *([] if texts else ["--no-texts"]))
    assert code == 0, err
    saved = Run(finished).predictions["text"].tolist()
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        for line in archive.read("SHA256SUMS").decode().splitlines():
            digest, name = line.split("  ")
            assert hashlib.sha256(archive.read(name)).hexdigest() == digest
        archive.extractall(tmp_path / "out")
    assert {"methods.md", "references.bib", "run/run.json", "run/metrics.json", "run/splits.parquet"} <= set(names)
    packed = pd.read_parquet(tmp_path / "out" / "run" / "predictions" / "test.parquet")["text"].tolist()
    assert (packed == saved) == texts
    if not texts:
        everything = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
        assert not any(text.encode() in everything for text in saved)
    assert cli("pack", finished, "-o", file)[0] == 2
