"""Trackers: each gets the values of the events with the real library, in a folder of this machine, and no text."""

import importlib.util
import sys
import time
import types
from typing import ClassVar

import pytest

from bertsmith.config import Config
from bertsmith.errors import ConfigError, MissingPackageError, first_line
from bertsmith.events import (
    Evaluated,
    FinalStarted,
    Prepared,
    RunFinished,
    SeedStarted,
    TrackingFailed,
    TrialEnded,
    TrialScored,
    TrialStarted,
)
from bertsmith.folders.run import open_run
from bertsmith.report.report import report_page
from bertsmith.tracking import trackers
from bertsmith.tracking.listener import Tracking, final_values
from bertsmith.training.recipe import Recipe

RECIPE = Recipe(2.0, 16, 1e-4, 10.0, 0.1, 0.01, "fp32", 3, "none", reasons={"epochs": "default"})
PREPARED = Prepared(
    types.SimpleNamespace(task="single-label"), None, {"train": 90, "test": 30}, "some/model", 10, "cpu", 64, RECIPE
)


def _evaluated(step, score):
    metrics = {"accuracy": score, "macro_f1": score}
    return Evaluated(step, step / 6, 0.5, 0.4, metrics, 1e-4, 9.0, 1.0, True)


def _needs(package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"the extra {package} is not installed")


def _follow(name, finished, folder):
    """Send a run of two evaluations and a trial, and return the final values."""
    seen = []
    with Tracking(name, folder / "reviews", Config(seed=7, sql="secret", db="sqlite:///secret"), seen.append) as track:
        for event in (PREPARED, _evaluated(6, 0.5), _evaluated(12, 0.75), RunFinished(finished)):
            track(event)
        for event in (TrialStarted(3, {"epochs": 2.0}), TrialScored(3, 1.0, 0.25), TrialEnded(3, "pruned", (), 4.0)):
            track(event)
    assert not [event for event in seen if isinstance(event, TrackingFailed)], seen[-1]
    assert len(seen) == 7
    return final_values(open_run(finished))


def test_final_values_have_intervals(finished):
    values, metrics = final_values(open_run(finished)), open_run(finished).metrics["splits"]["test"]["metrics"]
    entry = metrics["macro_f1"]
    found = [values[f"test/macro_f1{end}"] for end in ("", "_low", "_high")]
    assert found == [entry["value"], *entry["interval"]]


def test_a_report_for_others_quotes_no_text(finished):
    run = open_run(finished)
    texts = [text for frame in (run.predictions, run.validation_predictions) for text in frame["text"]]
    assert [text for text in texts if text in report_page(run)]
    assert not [text for text in texts if text in report_page(run, quotes=False)]


def test_tensorboard_files_are_read_back(finished, tmp_path):
    _needs("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    final = _follow("tensorboard", finished, tmp_path)
    found = EventAccumulator(str(tmp_path / "reviews" / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("validation/macro_f1")] == [(6, 0.5), (12, 0.75)]
    assert found.Scalars("test/macro_f1")[-1].value == pytest.approx(final["test/macro_f1"])
    assert any(tag.startswith("model_card") for tag in found.Tags()["tensors"])
    trial = EventAccumulator(str(tmp_path / "reviews" / "tensorboard" / "trial-3")).Reload()
    assert [e.value for e in trial.Scalars("validation/score")] == [0.25]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of SQLAlchemy, in MLflow
def test_mlflow_has_values_settings_and_files(finished, tmp_path, monkeypatch):
    _needs("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path.as_posix()}/mlflow.db")
    final = _follow("mlflow", finished, tmp_path)
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("bertsmith")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs.keys() == {"reviews", "reviews-trial-3"}
    run = runs["reviews"]
    assert [m.value for m in client.get_metric_history(run.info.run_id, "validation/macro_f1")] == [0.5, 0.75]
    assert run.data.metrics["test/macro_f1_low"] == pytest.approx(final["test/macro_f1_low"])
    assert (run.data.params["batch_size"], run.data.params["seed"]) == ("16", "7")
    assert "secret" not in str(run.data.params)
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"report.html", "model_card.md"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


@pytest.mark.slow
def test_wandb_writes_offline(finished, tmp_path, monkeypatch):
    _needs("wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    _follow("wandb", finished, tmp_path)
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    expected = (b"validation/macro_f1", b"test/macro_f1_low", b"report.html", b"validation/score", b"batch_size")
    deadline = time.monotonic() + 30  # another process writes the files
    while time.monotonic() < deadline:
        content = b"".join(file.read_bytes() for file in files)
        if all(written in content for written in expected):
            break
        time.sleep(0.2)
    assert [written for written in expected if written not in content] == []
    assert b"secret" not in content


@pytest.mark.slow
def test_trackio_writes_on_this_machine(finished, tmp_path, monkeypatch):
    _needs("trackio")
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    assert "trackio" not in sys.modules  # it reads its folder when it is imported
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    from trackio.sqlite_storage import SQLiteStorage

    final = _follow("trackio", finished, tmp_path)
    logs = SQLiteStorage.get_logs("bertsmith", "reviews")
    assert [entry["validation/macro_f1"] for entry in logs if "validation/macro_f1" in entry] == [0.5, 0.75]
    assert [e["test/macro_f1"] for e in logs if "test/macro_f1" in e] == [pytest.approx(final["test/macro_f1"])]
    assert [artifact["name"] for artifact in SQLiteStorage.get_artifacts("bertsmith")] == ["reviews"]
    assert list((tmp_path / "trackio").glob("bertsmith*.db"))


class Memory(trackers.Tracker):
    """A tracker that keeps what it gets."""

    package = "json"
    runs: ClassVar[list] = []

    def __init__(self, name, folder, settings):
        self.name, self.folder, self.settings, self.end = name, folder, settings, None
        self.values = []
        Memory.runs.append(self)

    def log(self, values, step):
        if values["validation/macro_f1"] == 0:
            raise OSError("http://me:secret@host does not answer")
        self.values.append(values)

    def finish(self, values, files, *, failed):
        self.end = (values, [file.name for file in files], failed)


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.setattr(Memory, "runs", [])
    monkeypatch.setitem(trackers.TRACKERS, "json", Memory)
    return Memory.runs


def test_seeds_and_final_runs_are_runs_of_their_own(finished, tmp_path, memory):
    with Tracking("json", tmp_path / "study", Config(), lambda event: None) as track:
        for event in (
            FinalStarted("the best settings"),
            SeedStarted(0, 1, 2),
            PREPARED,
            RunFinished(finished),
            SeedStarted(1, 2, 2),
            PREPARED,
            RunFinished(finished),
            RunFinished(finished),  # the best seed
            FinalStarted("the default settings"),
            PREPARED,
        ):
            track(event)
    names = ["study-winner-seed-0", "study-winner-seed-1", "study-winner", "study-defaults"]
    assert [run.name for run in memory] == names
    assert [run.end[2] for run in memory] == [False, False, False, True]  # the last one was interrupted
    assert all("test/macro_f1" in run.end[0] for run in memory[:3])
    assert memory[0].settings["model"] == "some/model"


def test_a_tracker_that_fails_does_not_end_training(tmp_path, memory):
    seen = []
    with Tracking("json", tmp_path / "run", Config(), seen.append) as track:
        for event in (PREPARED, _evaluated(6, 0.0), _evaluated(12, 0.5)):
            track(event)
    failed = [event for event in seen if isinstance(event, TrackingFailed)]
    assert [event.tracker for event in failed] == ["json"]
    assert not [event for event in failed if "secret" in str(event)]
    assert len(seen) == 4
    assert memory[0].values == []


def test_what_cannot_be_used_is_refused_before_training(tmp_path, monkeypatch, cli):
    with pytest.raises(ConfigError):
        Tracking("tensorbord", tmp_path, Config(), print)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in ("tensorboard", "mlflow", "wandb", "trackio"):
        with pytest.raises(MissingPackageError) as caught:
            Tracking(name, tmp_path, Config(), print)
        assert caught.value.extra == name
    assert list(tmp_path.iterdir()) == []


def _mlflow(monkeypatch, address, error):
    """Replace MLflow by one whose server or database raises an error; return its settings for databases."""

    def search_experiments(max_results):
        raise error

    client = types.SimpleNamespace(search_experiments=search_experiments)
    mlflow = types.SimpleNamespace(MlflowClient=lambda: client, get_tracking_uri=lambda: address)
    database = types.SimpleNamespace(utils=types.SimpleNamespace(MAX_RETRY_COUNT=10))
    for name, module in (("mlflow", mlflow), ("mlflow.store", mlflow), ("mlflow.store.db", database)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    return database.utils


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("API request to http://me:secret@host:5000/api failed"),
        RuntimeError("API request to http://me:it's-secret@host:5000/api failed"),
        RuntimeError("API request to http://host:5000/?token=secret failed"),
        ValueError("invalid literal for int() with base 10: 'secret@host'"),
        ValueError('invalid literal for int() with base 10: "secret\'s@host"'),
        OSError(),
    ],
)
def test_an_error_of_mlflow_names_no_password(error, monkeypatch):
    settings = _mlflow(monkeypatch, "postgresql://me:my@secret@host/db", error)
    with pytest.raises(ConfigError) as caught:
        trackers.find_tracker("mlflow")
    assert "secret" not in str(caught.value)
    assert caught.value.where == "MLFLOW_TRACKING_URI"
    assert settings.MAX_RETRY_COUNT < 10


@pytest.mark.parametrize("line", ["Access denied for user 'root'@'localhost'", "x" * 100_000, "//" * 50_000])
def test_a_message_without_a_password_stays(line):
    assert first_line(RuntimeError(f"{line}\nmore")) == line


def test_the_driver_of_the_database_of_mlflow_is_named(monkeypatch):
    _mlflow(monkeypatch, "mysql+pymysql://host/db", ModuleNotFoundError("No module named 'pymysql'", name="pymysql"))
    with pytest.raises(MissingPackageError) as caught:
        trackers.find_tracker("mlflow")
    assert (caught.value.package, caught.value.extra) == ("pymysql", None)
