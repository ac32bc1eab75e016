"""A run folder contains the files of the contract and is never damaged."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import bertsmith as bs
from bertsmith.config import Config
from bertsmith.errors import ConfigError, Interrupted, RunFolderError, UserError
from bertsmith.folders import atomic
from bertsmith.folders.atomic import replaced_file, replaced_folder, write_json
from bertsmith.folders.files import ExportFolder, OutputFolder
from bertsmith.folders.layout import FINISHED, MEASURED
from bertsmith.folders.new_run import RunFolder, check_same, check_same_settings
from bertsmith.folders.run import Run, open_run
from bertsmith.folders.study import Study
from bertsmith.inference.chunks import _CHUNK_FILE, PredictionFile
from bertsmith.inference.classifier import Classifier
from bertsmith.model.load import LoadedModel
from bertsmith.report.report import write_report
from bertsmith.testing import tiny_table
from tests.conftest import train

CONTRACT = {
    "run.json",
    "labels.json",
    "splits.parquet",
    "model",
    "history.jsonl",
    "metrics.json",
    "predictions",
    "report.html",
}
PREDICTION_COLUMNS = [
    "row",
    "text",
    "label",
    "label_text",
    "predicted",
    "predicted_text",
    "confidence",
    "probabilities",
]


def check_contract(folder):
    """Check the files of a finished run folder."""
    assert {p.name for p in folder.iterdir()} >= CONTRACT
    assert not (folder / "checkpoints").exists()
    info = json.loads((folder / "run.json").read_text())
    assert {"config", "versions", "hardware", "data", "status", "seconds"} <= set(info)
    assert info["status"] == "finished"
    classes = json.loads((folder / "labels.json").read_text())["classes"]
    assert all({"id", "label", "label_text", "counts"} <= set(c) for c in classes)
    splits = pd.read_parquet(folder / "splits.parquet")
    assert set(splits["split"].dropna()) == {"train", "validation", "test"}
    assert (splits["split"].isna() == splits["reason"].notna()).all()
    assert not splits.duplicated(["source", "row"]).any()
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    keys = {"step", "epoch", "train_loss", "validation_loss", "metrics", "learning_rate", "seconds"}
    keys |= {"texts_per_second"}
    assert history
    assert all(keys <= set(entry) for entry in history)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["splits"]) == {"train", "validation", "test"}
    for split in metrics["splits"].values():
        for entry in split["metrics"].values():
            assert set(entry) == {"value", "interval"}
    assert {"per_class", "confusion", "calibration"} <= set(metrics["splits"]["test"])
    assert set(metrics["baseline"]) == {"majority_class", "bag_of_words", "frozen_embeddings"}
    for baseline in ("bag_of_words", "frozen_embeddings"):
        assert {"classifier", "test", "difference", "verdict"} <= set(metrics["baseline"][baseline])
    for predictions in (
        pd.read_parquet(folder / "predictions" / "test.parquet"),
        pd.read_csv(folder / "predictions" / "test.csv", keep_default_na=False),
    ):
        assert list(predictions.columns) == PREDICTION_COLUMNS
        assert len(predictions) == metrics["splits"]["test"]["texts"]
    card = (folder / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers")
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {
        p.name for p in (folder / "model").iterdir()
    }
    config = json.loads((folder / "model" / "config.json").read_text())
    assert config["id2label"] == {str(c["id"]): c["label_text"] for c in classes}


def test_label_numbers_of_a_run_are_those_of_its_table_or_positions(own_run):
    assert open_run(own_run).labels.numbered
    labels = json.loads((own_run / "labels.json").read_text())
    for i, entry in enumerate(labels["classes"]):
        entry["label"] = i
    (own_run / "labels.json").write_text(json.dumps(labels))
    assert open_run(own_run).labels.numbered
    run = open_run(own_run)
    run.update(data={**run.info["data"], "findings": {"columns": {"text": "Text", "label_text": "Label Text"}}})
    assert not open_run(own_run).labels.numbered


def test_a_run_folder_contains_the_files_of_the_contract(finished):
    check_contract(finished)


def test_the_baseline_of_an_older_run_is_read(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "old")
    run = open_run(tmp_path / "old")
    metrics = json.loads(run.layout.metrics.read_text())
    entry = {**metrics["baseline"].pop("bag_of_words"), "c": 10.0}
    del entry["classifier"], metrics["baseline"]["frozen_embeddings"]
    metrics["baseline"]["tfidf_logistic_regression"] = entry
    write_json(run.layout.metrics, metrics)
    assert run.metrics["baseline"]["bag_of_words"] == {"classifier": "logistic regression", **entry}
    write_report(run)
    assert "logistic regression" in run.layout.report.read_text(encoding="utf-8")


def test_outputs_show_the_original_label_numbers(finished):
    run = open_run(finished)
    assert run.labels.numbers == (10, 20, 30)
    assert set(run.predictions["label"]) == {10, 20, 30}
    assert set(run.predictions["predicted"]) <= {10, 20, 30}
    assert [e["label"] for e in run.metrics["splits"]["test"]["per_class"]] == [10, 20, 30]


def test_predictions_and_metrics_agree(finished):
    run = open_run(finished)
    frame = run.predictions
    test = run.metrics["splits"]["test"]
    assert (frame["label"] == frame["predicted"]).mean() == pytest.approx(test["metrics"]["accuracy"]["value"])
    assert test["metrics"]["macro_f1"]["value"] > 0.9  # the tiny table can be learned
    assert np.stack(frame["probabilities"].to_list()).sum(axis=1) == pytest.approx(1)
    splits = pd.read_parquet(run.layout.splits)
    source = tiny_table(150)["Text"]
    rows = splits[splits["split"] == "test"]["row"]
    assert source.iloc[rows - 1].tolist() == frame["text"].tolist()


def test_scoring_predicts_each_text_once_and_samples_train(tiny, tmp_path, monkeypatch):
    predicted = []
    plain = Classifier.logits_of

    def logits_of(self, tokens, progress=None):
        predicted.append(len(tokens))
        return plain(self, tokens, progress)

    monkeypatch.setattr(Classifier, "logits_of", logits_of)
    run = train(tiny, tmp_path / "run", table=tiny_table(300), epochs=1, explanations="off")
    splits = run.metrics["splits"]
    assert sum(predicted) == sum(s["texts"] for s in splits.values())
    assert splits["train"]["texts"] == 200 < splits["train"]["sample_of"]
    assert run.explanations == []
    # The saved model returns the probabilities that were predicted before calibration and scaled afterwards.
    saved = run.validation_predictions
    again = bs.load(run.path, runtime="torch").predict_proba(saved["text"].tolist())
    assert again == pytest.approx(np.stack(saved["probabilities"].to_list()), abs=1e-5)


def test_training_tokenizes_each_text_once(tiny, tmp_path, tokenized):
    run = train(tiny, tmp_path / "run", table=tiny_table(300), epochs=1, explanations="off")
    assert sorted(tokenized) == sorted(tiny_table(300)["Text"])
    assert "tokens" in run.info["data"]["findings"]


def test_scoring_uses_the_saved_tokenizer(tiny, tmp_path, tokenized, monkeypatch):
    save = LoadedModel.save

    def save_another(self, folder):  # whose vocabulary lacks "cat"
        save(self, folder)
        file = folder / "tokenizer.json"
        file.write_text(file.read_text().replace('"cat"', '"catt"'))

    monkeypatch.setattr(LoadedModel, "save", save_another)
    run = train(tiny, tmp_path / "run", table=tiny_table(150), epochs=1, explanations="off")
    assert sorted(tokenized) == sorted(2 * tiny_table(150)["Text"].tolist())
    saved = run.predictions
    again = bs.load(run.path, runtime="torch", device="cpu").predict_proba(saved["text"].tolist())
    assert again == pytest.approx(np.stack(saved["probabilities"].to_list()), abs=1e-5)


def test_a_finished_run_is_not_overwritten(finished, tiny, table):
    before = (finished / "metrics.json").read_bytes()
    with pytest.raises(RunFolderError, match="overwrite"):
        bs.train(table, output=finished, model=str(tiny))
    with pytest.raises(RunFolderError, match="resume"):
        bs.train(table, output=finished, model=str(tiny), resume=True)
    assert (finished / "metrics.json").read_bytes() == before


def test_overwrite_keeps_the_old_run_if_the_table_or_model_is_invalid(finished, tiny, table):
    before = (finished / "metrics.json").read_bytes()
    for bad in ({"table": table.drop(columns="Text")}, {"model": "./nowhere"}, {"set": {"no_such": 1}}):
        arguments = {"table": table, "model": str(tiny), "output": finished, "overwrite": True, **bad}
        with pytest.raises(bs.UserError):
            bs.train(arguments.pop("table"), **arguments)
    assert (finished / "metrics.json").read_bytes() == before


def test_folders_with_other_files_are_refused(tmp_path, tiny, table):
    (tmp_path / "thesis.docx").write_text("years of work")
    for overwrite in (False, True):
        for path in (tmp_path, tmp_path / "thesis.docx"):
            with pytest.raises(RunFolderError) as error:
                bs.train(table, output=path, model=str(tiny), overwrite=overwrite)
            assert error.value.where == str(path)
    assert (tmp_path / "thesis.docx").read_text() == "years of work"


def test_a_run_begins_if_there_is_nothing_to_resume(tmp_path):
    RunFolder(tmp_path / "new").check(resume=True)
    (tmp_path / ".new.lock").touch()
    RunFolder(tmp_path).check(resume=True)
    (tmp_path / "thesis.docx").touch()
    with pytest.raises(RunFolderError):
        RunFolder(tmp_path).check(resume=True)


def test_an_overwritten_run_is_new(tmp_path, tiny, table):
    settings = {"model": str(tiny), "epochs": 1, "device": "cpu", "precision": "fp32"}
    (tmp_path / "run").mkdir()
    bs.train(table, output=tmp_path / "run", resume=True, **settings)  # nothing was saved yet
    run = bs.train(table, output=tmp_path / "run", overwrite=True, keep_checkpoints=True, seed=1, **settings)
    assert run.info["config"]["seed"] == 1
    assert run.layout.checkpoints.is_dir()


def test_folders_without_a_finished_run_are_refused(tmp_path):
    def refused(path):
        with pytest.raises(RunFolderError) as error:
            open_run(path)
        return error.value

    assert refused(tmp_path / "none").where == str(tmp_path / "none")
    assert refused(tmp_path).where == str(tmp_path)
    (tmp_path / "export" / "onnx").mkdir(parents=True)
    (tmp_path / "export" / "onnx" / "export.json").touch()
    assert str(tmp_path / "export" / "onnx") in refused(tmp_path / "export").remedy
    write_json(tmp_path / "run.json", {"status": "running"})
    assert "running" in refused(tmp_path).what
    assert "--resume" in refused(tmp_path).remedy
    (tmp_path / "run.json").write_text("{")
    assert refused(tmp_path).where == str(tmp_path / "run.json")


def test_files_and_folders_are_written_atomically(tmp_path):
    (tmp_path / "f.txt").write_text("old")
    with pytest.raises(ZeroDivisionError), replaced_file(tmp_path / "f.txt") as file:
        file.write_text("half")
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), replaced_folder(tmp_path / "d") as folder:
        (folder / "x").write_text("half")
        raise ZeroDivisionError
    assert (tmp_path / "f.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f.txt"]


def test_threads_that_write_one_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "f.txt"
    with replaced_file(path) as first, replaced_file(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["f.txt"]
    assert _CHUNK_FILE.fullmatch(first.name.replace("f.txt", "about.json"))


@pytest.mark.parametrize("name", ["v1", "v[1]"])
def test_only_the_temporary_folders_of_a_name_are_removed(name, tmp_path):
    others = [f".{name}.onnx.abcd.part", f".{name}.abcd.parts", ".v1x.abcd.part", ".notes"]
    for folder in (f".{name}.abcd.part", f".{name}.abcd.part.before", f".{name}.0.part", *others):
        (tmp_path / folder).mkdir()
    atomic.remove_temporary_folders(tmp_path, name)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(others)


@pytest.mark.parametrize(
    ("output", "file"), [(RunFolder, "run.json"), (Study, "study.json"), (ExportFolder, "export.json")]
)
def test_hidden_files_of_the_user_are_not_overwritten(output, file, tmp_path):
    for name in (file, f".12.{file}", f".0a1b2c3d.{file}", ".model.x_1.part", ".report.html.lock", ".DS_Store"):
        (tmp_path / name).write_text("{}")
    output(tmp_path).check(overwrite=True)
    for hidden in (".git", ".env", ".dvc"):
        (tmp_path / hidden).write_text("mine")
        with pytest.raises(RunFolderError) as error:
            output(tmp_path).check(overwrite=True)
        assert hidden in error.value.what
        (tmp_path / hidden).unlink()


def test_an_output_folder_does_not_replace_its_input_under_another_name(tmp_path, monkeypatch):
    """On macOS and Windows, `Data` and `data` are the same folder."""
    monkeypatch.setattr(Path, "samefile", lambda a, b: str(a).casefold() == str(b).casefold())
    for name in ("Data", "data", "other"):
        (tmp_path / name).mkdir(exist_ok=True)
    for source in ("Data", "Data/t.parquet"):
        with pytest.raises(ConfigError):
            OutputFolder(tmp_path / "data", tmp_path / source, ".parquet").check(overwrite=True)
        OutputFolder(tmp_path / "other", tmp_path / source, ".parquet").check(overwrite=True)


def test_json_never_contains_nan(tmp_path):
    write_json(tmp_path / "x.json", {"a": float("nan"), "b": [float("inf"), 1.5], 3: (1,)})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [None, 1.5], "3": [1]}
    run = Run(tmp_path)
    run.log({"step": 1, "epoch": 0.5, "validation_loss": float("inf"), "metrics": {"r2": float("nan")}})
    run.truncate_history(1)
    assert run.history == [{"step": 1, "epoch": 0.5, "validation_loss": None, "metrics": {"r2": None}}]


def test_a_seal_is_broken_by_any_change(tmp_path):
    def sealed(name):
        folder = tmp_path / name
        (folder / "inner").mkdir(parents=True)
        (folder / "a.bin").write_bytes(b"abc")
        (folder / "inner" / "b.json").write_text("{}")
        assert not atomic.is_intact(folder)
        atomic.seal(folder)
        assert atomic.is_intact(folder)
        return folder

    changes = {
        "another byte": lambda f: (f / "a.bin").write_bytes(b"abd"),
        "a byte more": lambda f: (f / "inner" / "b.json").write_text("{} "),
        "a file less": lambda f: (f / "inner" / "b.json").unlink(),
        "a file more": lambda f: (f / "inner" / "c.json").write_text(""),
        "no manifest": lambda f: (f / atomic.MANIFEST).unlink(),
        "half a manifest": lambda f: (f / atomic.MANIFEST).write_text((f / atomic.MANIFEST).read_text()[:50]),
        "a list": lambda f: (f / atomic.MANIFEST).write_text('["a.bin"]'),
        "an empty manifest": lambda f: (f / atomic.MANIFEST).write_text("{}"),
    }
    for name, change in changes.items():
        folder = sealed(name)
        change(folder)
        assert not atomic.is_intact(folder), name


def test_the_files_of_finder_neither_damage_nor_block_a_folder(tmp_path):
    checkpoint, model, part, export, chunks = (
        tmp_path / name for name in ("checkpoint", "model", "parts", "export", "out.csv.unfinished")
    )
    for folder in (checkpoint, model, part, export, chunks):
        folder.mkdir()
        (folder / ".DS_Store").write_text("1")
    (checkpoint / "model.safetensors").touch()
    atomic.seal(checkpoint)
    (checkpoint / ".DS_Store").write_text("2")
    assert atomic.is_intact(checkpoint)
    manifest = json.loads((checkpoint / atomic.MANIFEST).read_text())
    write_json(checkpoint / atomic.MANIFEST, manifest | {".DS_Store": "0"})  # as an older version would have written it
    assert atomic.is_intact(checkpoint)

    run = Run(tmp_path)
    (model / "model.safetensors").touch()
    run.update(status="running")
    run.finish(keep_checkpoints=False)
    files = run.info["model_files"]
    assert [*files] == ["model.safetensors"]
    run.update(model_files=files | {".DS_Store": "0"})
    run.check_model()
    (tmp_path / "run.json").unlink()

    OutputFolder(part, tmp_path / "tables", ".parquet").check()
    ExportFolder(export).check()
    (chunks / "about.json").touch()
    PredictionFile(tmp_path / "out.csv").check(overwrite=True)
    for folder, output in ((part, OutputFolder(part, tmp_path / "tables", ".parquet")), (export, ExportFolder(export))):
        (folder / ".git").mkdir()
        with pytest.raises(UserError):
            output.check(overwrite=True)


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"classes": 3}', "{", None])
@pytest.mark.parametrize("file", ["run.json", "labels.json", "predictions/test.parquet", "model/model.safetensors"])
def test_errors_name_the_damaged_file_of_a_run(file, content, finished, cli, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / file).unlink()
    if content is not None:
        (run / file).write_text(content)
    (tmp_path / "t.txt").write_text("cat\n")
    needs = ["compare", run, finished] if "predictions" in file else ["predict", run, tmp_path / "t.txt"]
    code, _, err = cli(*needs)
    assert code == 2
    assert str(run) in err.replace("\n", "")
    assert "what to do" in err


def test_errors_name_the_key_that_a_finished_run_lacks(tmp_path):
    values = {str: "x", int: 1, dict: {}, list: []}
    reads = {"run.json": (FINISHED, Run.check_finished), "metrics.json": (MEASURED, lambda run: run.metrics)}
    for file, (keys, read) in reads.items():
        for wrong, value in itertools.product(keys, (None, 0.5)):
            content = {"status": "finished"}
            for key, kind in keys.items():
                *outer, name = key.split(".")
                inner = content
                for part in outer:
                    inner = inner.setdefault(part, {})
                inner[name] = value if key == wrong else values[kind]
            (tmp_path / file).write_text(json.dumps(content))
            with pytest.raises(RunFolderError) as error:
                read(Run(tmp_path))
            assert error.value.where == str(tmp_path / file)
            assert repr(wrong) in error.value.what


def test_a_run_without_settings_is_not_resumed(tmp_path):
    for settings in ({}, {"config": []}):
        write_json(tmp_path / "run.json", {"status": "interrupted", **settings})
        with pytest.raises(RunFolderError) as error:
            check_same_settings(Run(tmp_path), Config().dump())
        assert error.value.where == str(tmp_path / "run.json")


def test_checkpoints_are_found_beside_copies_and_after_a_move_from_windows(tmp_path):
    run = Run(tmp_path)
    for step in (4, 12):
        folder = run.layout.checkpoints / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        write_json(folder / "trainer_state.json", {"best_model_checkpoint": r"C:\runs\a\checkpoints\checkpoint-4"})
        atomic.seal(folder)
    (run.layout.checkpoints / "checkpoint-12.bak").mkdir()
    last = run.last_checkpoint()
    assert last.name == "checkpoint-12"
    assert run.remove_checkpoints_after(last) == []


@pytest.fixture(scope="module")
def unfinished(tiny, tmp_path_factory):
    """The folder of a run that was interrupted after step 4 of 6, for tests to copy."""
    steps = []

    def stop():
        return len(steps) >= 4

    def listen(event):
        if type(event).__name__ == "StepDone":
            steps.append(event)

    folder = tmp_path_factory.mktemp("unfinished") / "run"
    with pytest.raises(Interrupted):
        train(tiny, folder, epochs=1, on_event=listen, stop=stop)
    return folder


@pytest.mark.parametrize("name", ["metrics", "predictions", "validation_predictions"])
def test_a_run_that_is_training_is_not_damaged(unfinished, name):
    with pytest.raises(RunFolderError) as error:
        getattr(Run(unfinished), name)
    assert "--overwrite" not in error.value.remedy
    assert error.value.where == str(unfinished)


@pytest.mark.parametrize("file", ["run.json", "labels.json", "history.jsonl", "splits.parquet"])
@pytest.mark.parametrize("content", ["", "{}", "[]", '{"step"', None])
def test_an_unfinished_run_with_a_damaged_file_resumes_or_names_it(file, content, unfinished, tiny, tmp_path):
    shutil.copytree(unfinished, tmp_path / "run")
    (tmp_path / "run" / file).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / "run" / file).write_text(content)
    if file == "run.json" or (file == "history.jsonl" and content):
        with pytest.raises(RunFolderError, match=file) as error:
            train(tiny, tmp_path / "run", epochs=1, resume=True)
        assert error.value.remedy
    else:
        run = train(tiny, tmp_path / "run", epochs=1, resume=True)
        assert run.info["status"] == "finished"
        assert len(run.labels) == 3


def test_a_changed_setting_is_named_once(tmp_path):
    run = bs.Run(tmp_path)
    model = {"files": "digest", "max_length": 32}
    config = Config(max_length=32).dump()
    run.update(config=config, data={"fingerprint": "table"}, model=model)
    check_same(run, config=config, fingerprints=("new", "table"), model=model)
    longer = {**model, "max_length": 48}
    for changed in ({"config": Config(max_length=48).dump(), "model": longer}, {"config": config, "model": longer}):
        with pytest.raises(RunFolderError) as error:
            check_same(run, fingerprints=("table",), **changed)
        assert error.value.what.count("max_length") == 1
    other_files = {**model, "files": "other"}
    for changed in ({"fingerprints": ("other",), "model": model}, {"fingerprints": ("table",), "model": other_files}):
        with pytest.raises(RunFolderError):
            check_same(run, config=config, **changed)
