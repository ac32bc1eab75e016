"""What makes a run citable: the paragraph on methods, `verify` and `pack`."""

import hashlib
import json
import re
import shutil
import zipfile
from dataclasses import asdict

import pandas as pd
import pytest
import torch

from bertsmith.config import Config
from bertsmith.data.clean import AVERAGED, UNITED
from bertsmith.data.findings import CHOSEN_VALIDATION, Finding
from bertsmith.data.read import read_table
from bertsmith.data.template import stored_groups
from bertsmith.errors import ConfigError
from bertsmith.folders.new_run import check_same_settings
from bertsmith.folders.run import Run
from bertsmith.inference.classifier import Classifier
from bertsmith.measuring.design import NOT_RANDOM
from bertsmith.measuring.result import run_identity
from bertsmith.report.card import card_text
from bertsmith.report.methods import _rule, write_methods
from bertsmith.report.references import REFERENCES
from bertsmith.testing import tiny_table
from bertsmith.workflows.cross_validation import choose_folds
from bertsmith.workflows.pack import pack_run
from bertsmith.workflows.verify import _check_metrics, _check_texts, _retrain, verify_run


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def _measurement():
    share = {"label_text": "a_b", "group": None, "share": 0.3, "interval": [0.2, 0.4], "naive": 0.5}
    return {"shares": [{**share, "estimator": "PPI++", "labelled": 200, "texts": 5000}]}


def test_every_number_of_the_methods_is_in_a_file_of_the_run(finished):
    assert "recipe.epochs" in _check_numbers(finished)[0]


def _check_numbers(path):
    """Check that every number of the methods comes from a file; return keys of the numbers, and citations."""
    methods = write_methods(Run(path))
    prose = re.sub(r"\[@\w+\]|95 %|F1|SHA-256", "", " ".join(methods.sentences))
    for value in sorted({value for value, _ in methods.sources}, key=len, reverse=True):
        prose = prose.replace(value, "")
    assert not re.search(r"\d", prose), prose
    for _, place in methods.sources:
        file, key = place.split(": ")
        value = json.loads((path / file).read_text())
        for part in key.split("."):
            value = value[int(part)] if isinstance(value, list) else value[part]
    return {place.split(": ")[1] for _, place in methods.sources}, set(methods.citations)


def _edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("recipe", "key", "citation"),
    [
        ({"consistency": 0.5}, "recipe.consistency", "wu2021rdrop"),
        ({"layer_decay": 0.9}, "recipe.layer_decay", "howard2018ulmfit"),
        ({"contrastive": "first"}, None, "tunstall2022setfit"),
        ({"imbalance": "effective-number"}, None, "cui2019effective"),
        ({"imbalance": "focal"}, None, "lin2017focal"),
        ({"imbalance": "logit-adjustment"}, None, "menon2021logit"),
        ({"label_smoothing_factor": 0.1}, "config.set.label_smoothing_factor", "szegedy2016inception"),
    ],
)
def test_the_methods_name_what_training_used(copy, recipe, key, citation):
    assert citation not in _check_numbers(copy)[1]
    place = (lambda run: run["config"]["set"]) if key and key.startswith("config") else (lambda run: run["recipe"])
    _edit(copy / "run.json", lambda run: place(run).update(recipe))
    keys, citations = _check_numbers(copy)
    assert citation in citations & set(REFERENCES)
    assert key is None or key in keys


def test_the_methods_say_that_a_project_chose_the_training_texts(copy):
    before = write_methods(Run(copy)).sentences[1]
    _edit(copy / "run.json", lambda run: run["data"]["findings"].update(findings=[{"kind": "not-random"}]))
    _check_numbers(copy)
    assert write_methods(Run(copy)).sentences[1] != before


def test_the_methods_name_the_search_for_label_errors(copy):
    _edit(copy / "run.json", lambda run: run.update(label_noise={"used": True, "suspects": 12}))
    keys, citations = _check_numbers(copy)
    assert "label_noise.suspects" in keys
    assert "northcutt2021confident" in citations & set(REFERENCES)


def test_the_methods_name_the_number_of_seeds_and_the_folds_that_calibrated(copy):
    assert not {"config.seeds", "data.folds"} & _check_numbers(copy)[0]
    _edit(copy / "run.json", lambda run: run.update(best_seed=43, config={**run["config"], "seeds": 3}))
    _edit(copy / "run.json", lambda run: run["data"].update(folds=4))
    assert {"best_seed", "config.seeds", "data.folds"} <= _check_numbers(copy)[0]


def test_the_methods_name_the_folds_that_scored_the_trials_of_a_study(finished, tmp_path):
    path = shutil.copytree(finished, tmp_path / "best")
    for cv, expected in ((None, set()), (7, {("7", "study.json: searched.cv")})):
        (tmp_path / "study.json").write_text(json.dumps({"trials": [{}, {}], "searched": {"cv": cv}}))
        found = write_methods(Run(path)).sources
        assert {source for source in found if source[1].startswith("study.json: s")} == expected
        assert ("2", "study.json: trials") in found


def test_methods_and_card_name_steps_and_accumulated_batches(copy):
    arguments = {"max_steps": 9, "gradient_accumulation_steps": 7}
    _edit(copy / "run.json", lambda run: run["config"].update(set=arguments))
    keys = _check_numbers(copy)[0]
    assert {f"config.set.{name}" for name in arguments} <= keys
    assert "recipe.epochs" not in keys
    assert f"texts per step: {7 * Run(copy).info['recipe']['batch_size']}\n" in card_text(Run(copy))


@pytest.mark.parametrize("change", ["weights", "balanced-sampling", "soft labels", "decision rule"])
def test_the_methods_say_what_has_no_citation(copy, change):
    _edit(copy / "metrics.json", lambda metrics: metrics["decision_rule"].update(used=False))
    before = write_methods(Run(copy)).sentences
    if change == "decision rule":
        _edit(copy / "metrics.json", lambda metrics: metrics["decision_rule"].update(used=True))
    elif change == "soft labels":
        _edit(copy / "run.json", lambda run: run.update(soft_labels={"used": True}))
    else:
        _edit(copy / "run.json", lambda run: run["recipe"].update(imbalance=change))
    _check_numbers(copy)
    assert len(write_methods(Run(copy)).sentences[0]) > len(before[0])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"template": {"text_column": ["title", "body"], "pair_column": None, "with_columns": []}}, ["title", "body"]),
        ({"template": {"text_column": ["body"], "pair_column": "claim", "with_columns": []}}, ["claim"]),
        ({"template": {"text_column": ["body"], "pair_column": None, "with_columns": ["x_y", "z"]}}, ["x_y", "z"]),
        ({"config": {"group_column": "author", "seed": 42}}, ["author"]),
    ],
)
def test_the_methods_name_further_columns_and_groups(copy, change, named):
    names = re.findall(r"`([^`]+)`", write_methods(Run(copy)).sentences[0])
    _edit(copy / "run.json", lambda run: run.update(change))
    assert re.findall(r"`([^`]+)`", write_methods(Run(copy)).sentences[0]) == names + named


def test_the_methods_say_how_ordered_classes_are_decided(copy):
    def as_levels(metrics):
        metrics["decision_rule"]["used"] = False
        for part in (metrics["splits"]["test"]["metrics"], metrics["baseline"]["bag_of_words"]["test"]):
            part.update(quadratic_kappa=part["macro_f1"], mae=part["macro_f1"])

    _edit(copy / "metrics.json", as_levels)
    before = write_methods(Run(copy)).sentences[0]
    _edit(copy / "run.json", lambda run: run.update(task="ordinal"))
    assert write_methods(Run(copy)).sentences[0].count(". ") == before.count(". ") + 1


def test_the_methods_say_when_a_text_has_one_of_several_labels(copy):
    _edit(copy / "metrics.json", lambda metrics: metrics["decision_rule"].update(used=False))
    assert not _rule(Run(copy))
    _edit(copy / "run.json", lambda run: run.update(task="multi-label"))
    assert _rule(Run(copy))


def test_the_methods_count_a_single_row_and_name_an_exact_interval(copy):
    def perfect(metrics):
        metrics["splits"]["test"]["metrics"]["macro_f1"] = {"value": 1.0, "interval": [0.7, 1.0]}

    _edit(copy / "metrics.json", perfect)
    _edit(copy / "run.json", lambda run: run["data"].update(left_out={"duplicate": 1, "empty": 2}))
    sentences = " ".join(write_methods(Run(copy)).sentences)
    assert "1 row (duplicate) and 2 rows (empty)" in sentences
    for reason in (AVERAGED, UNITED):
        _edit(copy / "run.json", lambda run, reason=reason: run["data"].update(left_out={reason: 3}))
        assert reason not in " ".join(write_methods(Run(copy)).sentences)
        assert f"data.left_out.{reason}" in _check_numbers(copy)[0]
    citations = _check_numbers(copy)[1]
    assert "clopper1934exact" in citations
    assert "efron1979bootstrap" not in citations


def test_the_methods_of_a_winner_name_the_search(finished, tmp_path):
    best = shutil.copytree(finished, tmp_path / "study" / "best")
    before = write_methods(Run(best)).sources
    study = {"trials": [{"number": i} for i in range(1234)], "result": {"told": 1}}
    (tmp_path / "study" / "study.json").write_text(json.dumps(study))
    added = [source for source in write_methods(Run(best)).sources if source not in before]
    assert added == [("1,234", "study.json: trials")]
    _edit(tmp_path / "study" / "study.json", lambda study: study["result"].update(told=3))
    added = [source for source in write_methods(Run(best)).sources if source not in before]
    assert added[1:] == [("3", "study.json: result.told")]


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


def test_the_methods_name_the_design_of_the_sample_and_what_was_left_out(finished):
    base, left_out = _measurement(), {"no label": 6, NOT_RANDOM: 50}
    before = write_methods(Run(finished), base).sources
    design = write_methods(Run(finished), {**base, "clusters": 12, "trained": 345, "left_out": left_out})
    added = {source for source in design.sources if source not in before}
    assert added == {
        ("12", "measurement: clusters"),
        ("345", "measurement: trained"),
        ("6", "measurement: left_out.no label"),
    }


def test_the_methods_describe_a_measured_mean(finished, cli, tmp_path):
    mean = {"group": None, "mean": 3.25, "interval": [3.1, 3.4], "naive": 3.75, "estimator": "PPI++"}
    measured = {"shares": [], "means": [{**mean, "labelled": 200, "texts": 5000}]}
    (tmp_path / "m.json").write_text(json.dumps(measured))
    assert cli("methods", finished, "--measurement", tmp_path / "m.json")[0] == 0
    sources = [source for source in write_methods(Run(finished), measured).sources if "means.0" in source[1]]
    assert {value for value, _ in sources} == {"200", "5,000", "3.25", "3.10", "3.40", "3.75"}


def test_methods_refuses_the_measurement_of_another_run(finished, cli, tmp_path):
    measured = {**_measurement(), "run": run_identity(Run(finished).info)}
    (tmp_path / "m.json").write_text(json.dumps(measured))
    assert cli("methods", finished, "--measurement", tmp_path / "m.json")[0] == 0
    measured["run"]["created"] = "2020-01-01"
    (tmp_path / "m.json").write_text(json.dumps(measured))
    assert cli("methods", finished, "--measurement", tmp_path / "m.json")[0] == 2
    assert cli("pack", finished, "-o", tmp_path / "run.zip", "--measurement", tmp_path / "m.json")[0] == 2
    assert not (tmp_path / "run.zip").exists()


def test_an_unchanged_run_is_identical(finished, cli):
    code, out, _ = cli("verify", finished, "--json", "--device", "cpu")
    assert code == 0
    assert json.loads(out)["identical"]
    assert len(json.loads(out)["checks"]) == 3


def _checks(path):
    return {check.name: check for check in verify_run(path, device="cpu")}


METRICS = "metrics of the saved predictions"


def test_a_changed_model_is_found(copy):
    file = copy / "model" / "config.json"
    file.write_text(file.read_text() + " ")
    checks = {name: check.identical for name, check in _checks(copy).items()}
    assert checks == {"model files": False, METRICS: True, "predictions": None}


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize(
    "key",
    [
        "metrics.accuracy.value",
        "metrics.log_loss.value",
        "metrics.mcc.interval.1",
        "per_class.1.f1",
        "confusion.0.2",
        "calibration.expected_calibration_error",
        "calibration.by_chance",
        "calibration.brier_score",
        "calibration.bins.0.confidence",
        "texts",
    ],
)
def test_every_changed_metric_is_found_and_named(copy, split, key):
    def change(metrics):
        *path, last = (int(part) if part.isdigit() else part for part in key.split("."))
        place = metrics["splits"][split]
        for part in path:
            place = place[part]
        place[last] += 0.01

    _edit(copy / "metrics.json", change)
    check = _check_metrics(Run(copy))
    assert not check.identical
    assert f"{split}: {key.removeprefix('metrics.').removesuffix('.value')} " in check.detail
    assert len(check.detail.split("; ")) == 1


def test_changed_thresholds_are_found(copy):
    _edit(copy / "metrics.json", lambda m: m["abstention"]["thresholds"][0].update(accuracy=0.123))
    assert not _check_metrics(Run(copy)).identical


@pytest.mark.parametrize(("change", "identical"), [("interval", True), ("added", True), ("value", False)])
def test_runs_of_other_versions_are_compared_without_what_versions_compute_differently(copy, change, identical):
    info = json.loads((copy / "run.json").read_text())
    info["versions"]["bertsmith"] = "0.1.0"
    (copy / "run.json").write_text(json.dumps(info))

    def edit(metrics):
        test = metrics["splits"]["test"]
        if change == "interval":
            test["metrics"]["mcc"]["interval"] = [0.0, 0.1]
            test["calibration"]["bins"].pop()
        elif change == "added":
            del test["metrics"]["mcc"], test["per_class"][0]["f1"], metrics["abstention"]
        else:
            test["metrics"]["mcc"]["value"] += 0.1

    _edit(copy / "metrics.json", edit)
    check = _check_metrics(Run(copy))
    assert check.identical is identical
    assert "interval" in check.detail


def test_predictions_by_the_models_of_folds_are_named_as_not_checked(copy, cli):
    _edit(copy / "metrics.json", lambda m: m["splits"]["test"].update(by="cross-validation", folds=3))
    checks = _checks(copy)
    assert checks["predictions"].identical is None
    assert checks[METRICS].identical
    code, out, _ = cli("verify", copy, "--device", "cpu")
    assert code == 0
    assert len(out.splitlines()) == 4


def test_a_run_that_predicts_in_bf16_is_compared_in_fp32(copy, monkeypatch):
    _edit(copy / "metrics.json", lambda metrics: metrics["inference"].update(precision="bf16"))
    monkeypatch.setattr("bertsmith.inference.classifier.choose_precision", lambda device: ("bf16", ""))
    dtypes = []
    predict_proba = Classifier.predict_proba

    def recorded(self, texts):
        dtypes.append(self.dtype)
        return predict_proba(self, texts)

    monkeypatch.setattr(Classifier, "predict_proba", recorded)
    assert _checks(copy)["predictions"].identical
    assert dtypes == [torch.float32]


@pytest.mark.parametrize(
    "sources",
    [
        {"sql": "select * from reviews"},
        {"sql": "select * from reviews", "db": "sqlite:///reviews.db"},  # as older versions wrote it
        {"validation": "a DataFrame in memory", "test": "a DataFrame in memory"},
    ],
)
def test_texts_are_compared_whatever_the_run_was_trained_on(copy, sources):
    table = tiny_table(150).assign(Label=lambda frame: (frame["Label"] + 1) * 10)
    _edit(copy / "run.json", lambda run: run["config"].update(sources))
    splits = pd.read_parquet(copy / "splits.parquet")
    if "test" in sources:
        table = table.iloc[splits["row"][splits["split"] == "train"] - 1]
    checks = {check.name: check.identical for check in verify_run(copy, table, device="cpu")}
    assert checks["texts of the table"]
    assert not _check_texts(Run(copy), table.iloc[20:]).identical
    if "test" in sources:
        with pytest.raises(ConfigError):
            verify_run(copy, table, retrain=True)


def test_pairs_without_a_second_text_are_compared(copy):
    table = tiny_table(150).assign(pair=[None, *["x"] * 149], Label=lambda frame: (frame["Label"] + 1) * 10)
    template = {"text_column": ["Text"], "pair_column": "pair", "with_columns": []}
    _edit(copy / "run.json", lambda run: run.update(template=template))
    assert not _check_texts(Run(copy), table).identical  # the run has single texts


def test_training_again_uses_the_given_device(copy, monkeypatch):
    used = []

    def run_seeds(table, config, *args, **settings):
        used.append(config.device)
        return Run(copy)

    monkeypatch.setattr("bertsmith.workflows.seeds.run_seeds", run_seeds)
    _edit(copy / "run.json", lambda run: run["config"].update(device="mps"))
    for device in ("cpu", "auto"):
        assert all(check.identical for check in _retrain(Run(copy), tiny_table(), device))
    assert used == ["cpu", "mps"]


@pytest.mark.parametrize(
    ("folds", "tested", "expected"), [(3, 0, (3, 0.0)), (3, 15, (3, 0.1)), (0, 15, (0, 0.1)), (None, 15, (0, 0.1))]
)
def test_training_again_splits_the_table_as_before(copy, monkeypatch, folds, tested, expected):
    configs = []
    monkeypatch.setattr(
        "bertsmith.workflows.seeds.run_seeds", lambda table, config, *_, **__: (configs.append(config), Run(copy))[1]
    )
    splits = {"train": 135, "validation": 0, "test": tested}
    _edit(copy / "run.json", lambda run: run["config"].update(cv=None))
    _edit(copy / "run.json", lambda run: run["data"].update(splits=splits))
    _edit(copy / "run.json", lambda run: run["data"].pop("folds", None))
    if folds is not None:
        _edit(copy / "run.json", lambda run: run["data"].update(folds=folds))
    _retrain(Run(copy), tiny_table(150), "cpu")
    assert choose_folds(configs[0], read_table(tiny_table(150), Config())) == expected


@pytest.mark.slow
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
    file, measurement = tmp_path / "run.zip", tmp_path / "shares.json"
    measurement.write_text(json.dumps(_measurement()))
    code, _, err = cli("pack", finished, "-o", file, "--measurement", measurement, *([] if texts else ["--no-texts"]))
    assert code == 0, err
    saved = Run(finished).predictions["text"].tolist()
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        for line in archive.read("SHA256SUMS").decode().splitlines():
            digest, name = line.split("  ")
            assert hashlib.sha256(archive.read(name)).hexdigest() == digest
        assert json.loads(archive.read("measurement.json")) == _measurement()
        assert b"angelopoulos2023ppi" in archive.read("references.bib")
        archive.extractall(tmp_path / "out")
    assert {"methods.md", "references.bib", "run/run.json", "run/metrics.json", "run/splits.parquet"} <= set(names)
    packed = pd.read_parquet(tmp_path / "out" / "run" / "predictions" / "test.parquet")["text"].tolist()
    assert (packed == saved) == texts
    if not texts:
        everything = b"".join(p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file())
        assert not any(text.encode() in everything for text in saved)
        checks = {name: check.identical for name, check in _checks(tmp_path / "out" / "run").items()}
        assert checks == {"model files": True, METRICS: True, "predictions": None}
    assert cli("pack", finished, "-o", file)[0] == 2


def test_an_archive_without_texts_has_no_other_cells(copy, tmp_path):
    for split in ("validation", "test"):
        file = copy / "predictions" / f"{split}.parquet"
        frame = pd.read_parquet(file)
        frame.assign(group=[f"Jane Doe {i % 20}" for i in range(len(frame))]).to_parquet(file)
    _edit(copy / "metrics.json", lambda metrics: metrics.update(slices=[{"column": "author", "value": "Jane Doe"}]))
    found = Finding(CHOSEN_VALIDATION, "warning", 1, "Jane Doe", "Jane Doe", (1,))
    _edit(copy / "run.json", lambda run: run["data"]["findings"].update(findings=[asdict(found)]))
    pack_run(copy, tmp_path / "run.zip", texts=False)
    with zipfile.ZipFile(tmp_path / "run.zip") as archive:
        archive.extractall(tmp_path / "out")
    assert Run(tmp_path / "out" / "run").has_chosen_validation  # the methods paragraph depends on it
    assert not any(b"Jane Doe" in file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file())
    packed = stored_groups(Run(tmp_path / "out" / "run").predictions)
    assert packed.tolist() == stored_groups(Run(copy).predictions).tolist()  # for the intervals


def test_no_record_has_the_database_url(copy, tmp_path):
    config = Config(sql="select 1", db="postgresql://me:secret@host/reviews")
    stored = json.loads((copy / "run.json").read_text())["config"]
    assert stored.keys() == config.dump().keys()
    assert "secret" not in str(config.dump())
    _edit(copy / "run.json", lambda run: run["config"].update(db=config.db))  # as older versions did
    check_same_settings(Run(copy), stored)
    pack_run(copy, tmp_path / "run.zip")
    with zipfile.ZipFile(tmp_path / "run.zip") as archive:
        assert json.loads(archive.read("run/run.json"))["config"] == stored
    Run(copy).update(status="finished")
    assert json.loads((copy / "run.json").read_text())["config"] == stored
