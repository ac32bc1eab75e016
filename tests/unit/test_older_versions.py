"""Files of bertsmith 0.1.0, written on 28 November 2026, still load, predict the same and resume."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

import bertsmith as bs
from bertsmith.workflows.verify import verify_run

pytestmark = pytest.mark.slow
WRITTEN = Path(__file__).parents[1] / "data" / "written-by-0.1.tar.xz"
SETTINGS = {"model": "tiny", "epochs": 12, "batch_size": 16, "learning_rate": 3e-2, "max_length": 32}


@pytest.fixture
def older(tmp_path, monkeypatch):
    """Extract a run, an interrupted run, a study and an export; return the probabilities of 0.1.0 for 20 texts."""
    with tarfile.open(WRITTEN) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return json.loads(Path("expected.json").read_text())


def test_the_archive_is_small():
    assert WRITTEN.stat().st_size < 500_000


def test_a_run_and_its_export_predict_the_same(older):
    for source, runtime in (("run", "torch"), ("study/best", "torch"), ("export", "onnx")):
        classifier = bs.load(source, runtime=runtime, device="cpu")
        assert classifier.labels.texts == ("animals", "colours", "fruits")
        assert classifier.long == "truncate"
        assert classifier.template.is_plain
        if source != "study/best":
            assert classifier.predict_proba(older["texts"]) == pytest.approx(np.array(older["probabilities"]), abs=1e-5)


def test_evaluations_of_older_runs_are_unchanged(older):
    before = bs.Run(Path("run")).metrics["splits"]["test"]["metrics"]["macro_f1"]["value"]
    test = bs.Run(Path("run")).predictions
    table = test[["text", "label", "label_text"]].set_axis(["Text", "Label", "Label Text"], axis=1)
    assert bs.evaluate("run", table)["metrics"]["macro_f1"]["value"] == pytest.approx(before)


def test_an_older_run_is_verified(older):
    checks = verify_run(Path("run"), device="cpu")
    assert [check for check in checks if not check.identical] == []


def test_an_interrupted_run_is_resumed(older, monkeypatch):
    monkeypatch.delenv("BERTSMITH_CV")
    run = bs.train("table.csv", output="interrupted", resume=True, **SETTINGS)
    assert run.info["status"] == "finished"
    assert [line["epoch"] for line in map(json.loads, run.layout.history.read_text().splitlines())][:1] == [1]


def test_a_study_is_resumed(older, monkeypatch):
    monkeypatch.delenv("BERTSMITH_CV")
    before = bs.Study(Path("study")).trials
    study = bs.tune("table.csv", output="study", trials=3, model="tiny", epochs=2, batch_size=16, max_length=32)
    assert len(study.trials) == 3
    assert study.trials["values"].tolist()[:2] == before["values"].tolist()
