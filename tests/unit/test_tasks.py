"""Every kind of label from training to the server, with tiny models."""

import csv
import io
import json
import random
import shutil
import types
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import bertsmith as bs
from bertsmith.errors import ConfigError, DataError, Interrupted, ModelError, RunFolderError
from bertsmith.events import StepDone
from bertsmith.measuring.result import MeanLevel
from bertsmith.report.report import report_page
from bertsmith.report.shares import shares_csv, shares_page
from bertsmith.tasks.registry import get_task, task_of_config
from bertsmith.testing import WORDS
from tests.conftest import same_weights, train, weights_of

NAMES = list(WORDS)[:3]
TASKS = ("multi-label", "ordinal", "regression")
SETTINGS = {"epochs": 12, "validation_size": 0.15, "test_size": 0.2}


def make(task, rows=200, seed=0):
    """Return texts of random words, labelled by which groups of words are in them, or by how many."""
    rng = random.Random(seed)
    table = []
    for i in range(rows):
        counts = [rng.choice((0, 0, 1, 2)) for _ in NAMES]
        words = [w for name, n in zip(NAMES, counts, strict=True) for w in rng.choices(WORDS[name], k=n)]
        words += rng.choices(["the", "is", "my", "very"], k=3)
        rng.shuffle(words)
        label = {
            "multi-label": [name for name, n in zip(NAMES, counts, strict=True) if n],
            "ordinal": counts[0] + 1,
            "regression": 100 + 10 * counts[0] - 5 * counts[1],
        }[task]
        table.append((f"{' '.join(words)} {i}", label))
    frame = pd.DataFrame(table, columns=["Text", "Label"])
    if task == "ordinal":
        frame["Label Text"] = frame["Label"].map({1: "rarely", 2: "often", 3: "always"})
    return frame.rename(columns={"Label": "Labels"}) if task == "multi-label" else frame


def fit(tiny, folder, task, rows=200, **settings):
    settings = {name: value for name, value in {**SETTINGS, **settings}.items() if value is not None}
    return train(tiny, folder, table=make(task, rows), task=task, **settings)


@pytest.fixture(scope="module", params=TASKS)
def run(request, tiny, tmp_path_factory):
    """A finished run of each task, with an export and explanations."""
    run = fit(tiny, tmp_path_factory.mktemp("tasks") / request.param, request.param, explanations="auto")
    assert run.task == request.param
    return run


@pytest.fixture(scope="module")
def later(run):
    return make(run.task, 30, seed=1)


@pytest.fixture(scope="module")
def exported(run):
    pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    pytest.importorskip("onnxscript", reason="the extra export is not installed")
    return bs.export(run)


@pytest.fixture(scope="module")
def scores(run, later):
    return bs.load(run, device="cpu", runtime="torch").predict_proba(later["Text"].tolist())


def test_the_run_learns_and_records_its_task(run):
    task = get_task(run.task)
    test = run.metrics["splits"]["test"]
    assert test["metrics"].keys() == task.metric_names.keys()
    assert test["metrics"][task.primary]["value"] > 0.6
    assert run.metrics["primary"] == task.primary
    baselines = run.metrics["baseline"]
    assert set(baselines) == {"majority_class", "bag_of_words", "frozen_embeddings"}
    assert test["metrics"][task.primary]["value"] > baselines["majority_class"]["test"][task.primary]
    assert all(entry["metrics"].keys() >= {task.primary} for entry in run.history)
    config = json.loads((run.layout.model / "config.json").read_text())
    assert config["problem_type"] == task.problem_type
    assert task_of_config(types.SimpleNamespace(**config)).name == run.task
    saved = run.predictions
    assert task.scalar_metrics(task.stored_targets(saved, run.labels), task.stored_scores(saved))[
        task.primary
    ] == pytest.approx(test["metrics"][task.primary]["value"])


def test_the_report_shows_the_stretch(run, tmp_path):
    if run.task != "ordinal":
        return
    shutil.copytree(run.path, tmp_path / "copy")
    copy = bs.Run(tmp_path / "copy")
    metrics = json.loads(copy.layout.metrics.read_text())
    metrics["splits"]["test"]["calibration"]["stretch"] = 7.654321
    copy.layout.metrics.write_text(json.dumps(metrics))
    assert "7.65" in report_page(copy)


def test_the_report_shows_on_how_many_texts_a_check_rests(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "copy")
    copy = bs.Run(tmp_path / "copy")
    metrics = json.loads(copy.layout.metrics.read_text())
    for name in ("validation", "test"):
        metrics["splits"][name] |= {"by": "cross-validation", "folds": 3, "texts": 90_000}
    metrics["abstention"]["texts"] = 12_345
    metrics["baseline"]["frozen_embeddings"]["texts"]["test"] = 67_890
    copy.layout.metrics.write_text(json.dumps(metrics))
    page = report_page(copy)
    assert "12,345" in page
    assert "67,890" in page


def test_report_and_card_show_the_metrics_of_the_task(run):
    task = get_task(run.task)
    report = run.layout.report.read_text(encoding="utf-8")
    card = (run.layout.model / "README.md").read_text(encoding="utf-8")
    for name in task.headline:
        title = task.metric_names[name][0]
        assert title in report
        assert title in card
    for page in (report, card):
        assert "nan" not in page.lower().split()
        assert "{{" not in page
        assert "{%" not in page


def test_new_texts_are_compared_with_the_test_texts(run, later):
    found = {difference.name for difference in bs.drift(run, later, device="cpu").differences}
    predictions = {"predicted number"} if run.task == "regression" else {"predicted labels", "confidence"}
    assert found & {"predicted number", "predicted labels", "confidence"} == predictions


def check_the_mean_of_a_corpus(run, corpus, given, outcomes):
    with pytest.raises(ConfigError):
        bs.measure(run, corpus)
    found = bs.measure(run, corpus.drop(columns="Label"), **given, for_regression=outcomes)
    whole, *groups = found.means
    assert (found.shares, found.more_labels, found.groups) == ((), {}, ("june", "may"))
    assert whole.interval[0] <= corpus["Label"].mean() <= whole.interval[1]
    assert whole.interval[1] - whole.interval[0] < np.diff(whole.labelled_interval)
    assert whole.labelled_mean == pytest.approx(corpus["Label"][:120].mean())
    assert whole.naive == pytest.approx(bs.load(run).predict_proba(corpus["Text"].tolist()).mean(), abs=1e-3)
    table = pd.read_csv(outcomes)
    assert table["outcome (number)"].mean() == pytest.approx(whole.mean, rel=1e-6)
    assert bs.regress(table, "(number)", ["month"]).coefficients[0] == pytest.approx(groups[0].mean, abs=2)
    rows = list(csv.DictReader(io.StringIO(shares_csv(found))))
    assert [row["label_text"] for row in rows] == ["(number)"] * 3
    assert float(rows[0]["mean"]) == pytest.approx(whole.mean, rel=1e-6)
    assert shares_page(found, "run").count("<svg") == 1
    small = MeanLevel(None, 2.3e-5, (2e-5, 2.6e-5), 3e-5, "PPI++", 120, 300)
    assert "2.30e-05" in shares_page(replace(found, means=(small,)), "run")


def test_a_corpus_is_measured(run, tmp_path):
    corpus = make(run.task, 300, seed=2).assign(month=lambda t: ["may" if i % 2 else "june" for i in range(len(t))])
    given = {"labelled": corpus[:120].drop(columns="month"), "random_sample": True, "by": "month"}
    outcomes = tmp_path / "outcomes.csv"
    if run.task == "regression":
        check_the_mean_of_a_corpus(run, corpus, given, outcomes)
        return
    found = bs.measure(run, corpus.drop(columns="Labels" if "Labels" in corpus else "Label"), **given)
    names = {name for row in corpus["Labels"] for name in row} if run.task == "multi-label" else set(run.labels.texts)
    assert {share.label_text for share in found.whole} == names
    if run.task == "multi-label":
        assert found.means == ()
        return
    bs.measure(run, corpus, **given, for_regression=outcomes)
    whole, *groups = found.means
    assert [mean.group for mean in found.means] == [None, "june", "may"]
    assert whole.interval[0] <= corpus["Label"].mean() <= whole.interval[1]
    assert whole.mean == pytest.approx(
        sum(s.share * n for s, n in zip(found.whole, run.labels.numbers, strict=True)), abs=0.05
    )
    assert all(1 <= mean.interval[0] < mean.mean < mean.interval[1] <= 3 for mean in groups)
    predicted = [run.labels.numbers[run.labels.texts.index(t)] for t in bs.load(run).predict(corpus["Text"].tolist())]
    assert whole.naive == pytest.approx(np.mean(predicted))
    table = pd.read_csv(outcomes)
    assert table["outcome (level)"].mean() == pytest.approx(whole.mean, abs=1e-6)
    assert bs.regress(table, "(level)", ["month"]).coefficients[0] == pytest.approx(groups[0].mean, abs=0.2)
    with pytest.raises(ConfigError):
        bs.regress(table, "(level)", ["month"], model="logistic")
    row = next(row for row in csv.DictReader(io.StringIO(shares_csv(found))) if row["label_text"] == "(level)")
    assert float(row["mean"]) == pytest.approx(whole.mean, abs=1e-6)
    assert float(row["labelled_mean"]) == pytest.approx(corpus["Label"][:120].mean(), abs=1e-6)
    assert shares_page(found, "run").count("<svg") == 1 + 3 + 1


def test_transformers_pipeline_agrees(run, later, scores):
    from transformers import pipeline

    texts = later["Text"].tolist()
    function = {"function_to_apply": "none"} if run.task == "regression" else {}
    pipe = pipeline("text-classification", str(run.layout.model), device="cpu", truncation=True)
    theirs = pipe(texts, top_k=None, **function)
    found = np.array([[{a["label"]: a["score"] for a in answer}[t] for t in run.labels.texts] for answer in theirs])
    assert found == pytest.approx(scores, abs=1e-4)
    if run.task == "multi-label":
        ours = bs.load(run, device="cpu").predict(texts)
        assert [[t for t, p in zip(run.labels.texts, row, strict=True) if p > 0.5] for row in found] == ours


def test_an_evaluation_scores_the_same_texts_alike(run, later):
    task = get_task(run.task)
    found = bs.evaluate(run, later)
    assert found["metrics"].keys() == task.metric_names.keys()
    saved = run.predictions
    name = "label" if run.task != "multi-label" else "label_texts"
    columns = {"label": "Label", "label_texts": "Labels", "label_text": "Label Text"}
    again = saved[["text", name]].rename(columns={"text": "Text", **columns})
    value = bs.evaluate(run, again, name="again")["metrics"][task.primary]["value"]
    assert value == pytest.approx(run.metrics["splits"]["test"]["metrics"][task.primary]["value"])


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet", "xlsx"])
def test_files_of_predictions_hold_the_columns_of_the_task(cli, suffix, run, later, scores, tmp_path):
    texts = [*later["Text"], ""]
    pd.DataFrame({"Text": texts}).to_csv(tmp_path / "in.csv", index=False)
    out = tmp_path / f"out.{suffix}"
    code, _, err = cli("predict", run.path, tmp_path / "in.csv", "-o", out, "--coverage", 0.8, "--device", "cpu")
    assert code == 0, err
    read = {"csv": pd.read_csv, "jsonl": lambda f: pd.read_json(f, lines=True), "parquet": pd.read_parquet}
    found = read.get(suffix, lambda f: pd.read_excel(f, engine="openpyxl"))(out)
    assert len(found) == 31 or suffix == "xlsx"  # pandas drops the last row if it is empty
    task = get_task(run.task)
    expected = task.prediction_columns(scores, run.labels)
    head = found.head(30)
    for name, values in expected.items():
        cells = head[name].tolist()
        if run.task == "multi-label" and name != "confidence":
            if suffix in ("csv", "xlsx"):
                cells = ["" if pd.isna(cell) else str(cell).removesuffix(".0") for cell in cells]
                values = [";".join(map(str, row)) for row in values]
            else:
                cells = [list(cell) for cell in cells]
            assert cells == values
        elif isinstance(values[0], str):
            assert cells == values
        else:
            assert np.array(cells, dtype=float) == pytest.approx(np.array(values), abs=1e-4)
    if run.task == "regression":
        assert (head["lower"] < head["predicted"]).all()
        assert (head["predicted"] < head["upper"]).all()
        assert "confidence" not in found
    else:
        assert "label_set" in found
    if suffix in ("csv", "parquet"):
        assert pd.isna(found["predicted"].iloc[30])


def test_predictions_of_python_have_python_types(run, later):
    predictor = bs.load(run, device="cpu")
    first = predictor.predict(later["Text"].tolist())[0]
    assert isinstance(first, {"multi-label": list, "ordinal": str, "regression": float}[run.task])
    found = bs.predict(run, later[["Text"]], probabilities=run.task != "regression", device="cpu")
    assert len(found.frame) == 30
    if run.task == "multi-label":
        n_labels = sum(map(len, predictor.predict(later["Text"].tolist())))
        assert sum(found.label_counts.values()) == n_labels


def test_an_explanation_sums_to_the_change_of_the_output(cli, run, tmp_path):
    pytest.importorskip("captum", reason="the extra explain is not installed")
    code, out, err = cli("explain", run.path, "--text", "my cat is red", "--device", "cpu", "--json")
    assert code == 0, err
    (entry,) = json.loads(out)
    strongest = max(entry["words"], key=lambda word: abs(word["attribution"]))
    assert strongest["text"] in ("cat", "red")
    fields = {
        "multi-label": {"label_text", "predicted_texts", "probability"},
        "ordinal": {"label_text", "predicted_text", "probability"},
        "regression": {"predicted"},
    }[run.task]
    assert entry.keys() == fields | {"text", "words", "change", "gap", "steps", "unread"}
    predicted = bs.load(run, device="cpu", runtime="torch").predict("my cat is red")[0]
    assert entry[next(name for name in fields if name.startswith("predicted"))] == pytest.approx(predicted)
    page = tmp_path / "page.html"
    code, out, err = cli("explain", run.path, "--text", "my cat is red", "--device", "cpu", "--html", page)
    assert code == 0, err
    for shown in (out, page.read_text(encoding="utf-8")):
        assert ("probability" in shown) == (run.task != "regression")
        assert (f"{entry['predicted']:.4g}" if run.task == "regression" else f"{entry['probability']:.3f}") in shown
    code, _, err = cli("explain", run.path, "--text", "my cat is red", "--label", run.labels.texts[0])
    assert code == (2 if run.task == "regression" else 0), err


def test_numbers_have_no_probabilities(cli, run, later, tmp_path):
    later[["Text"]].to_csv(tmp_path / "in.csv", index=False)
    command = ("predict", run.path, tmp_path / "in.csv", "--device", "cpu", "-o", tmp_path / "out.csv")
    code, _, err = cli(*command, "--probabilities")
    assert code == (2 if run.task == "regression" else 0), err
    assert (tmp_path / "out.csv").exists() == (run.task != "regression")
    if run.task == "regression":
        for refused in ({"probabilities": True}, {"min_confidence": 0.5}):
            with pytest.raises(ConfigError) as error:
                bs.predict(run, later, device="cpu", **refused)
            _refused(error, "coverage")


def test_the_export_agrees(run, exported, later, scores):
    assert exported.about.parity["held"]
    loaded = bs.load(exported.path)
    assert loaded.task.name == run.task
    assert loaded.predict_proba(later["Text"].tolist()) == pytest.approx(scores, abs=1e-4)
    assert loaded.predict(later["Text"].tolist()) == bs.load(run, device="cpu", runtime="onnx").predict(
        later["Text"].tolist()
    )


def test_the_server_answers_with_the_scores(run, later, scores):
    pytest.importorskip("uvicorn", reason="uvicorn is not installed")
    from bertsmith.serving.loader import Loader, ServerConfig
    from bertsmith.serving.prometheus import ServerMetrics
    from tests.unit.test_serving import running

    loader = Loader(ServerConfig(str(run.path), device="cpu"), ServerMetrics())
    loader.load()
    text = later["Text"].iloc[0]
    best = int(scores[0].argmax())
    with running(lambda: loader.service) as ask:
        info = ask("/info")[1]
        assert info["task"] == run.task
        answer = ask("/predict", {"inputs": text})[1]
        assert len(answer) == len(run.labels)
        assert answer[0]["label"] == run.labels.texts[best]
        assert {a["label"]: a["score"] for a in answer} == pytest.approx(
            dict(zip(run.labels.texts, scores[0].tolist(), strict=True)), abs=1e-4
        )
        batch = ask("/predict", {"inputs": [[t] for t in later["Text"].iloc[:3]]})[1]
        assert [len(row) for row in batch] == [len(run.labels)] * 3
        whole = ask("/", {"inputs": text, "parameters": {"top_k": None}})[1]
        assert whole == answer
        assert ask("/", {"inputs": text})[1] == [answer[0]]
        assert (
            info["test"][info["primary"]]["value"] == run.metrics["splits"]["test"]["metrics"][info["primary"]]["value"]
        )
        softmax = ask("/", {"inputs": text, "parameters": {"function_to_apply": "softmax"}})
        assert softmax[0] == (422 if run.task == "regression" else 200)
    loader.service.batcher.close()


def test_runs_of_a_task_are_compared(cli, run, tiny, tmp_path):
    task = get_task(run.task)
    other = fit(tiny, tmp_path / "other", run.task, epochs=1)
    first, second = bs.compare(run, other)
    assert first["metrics"].keys() >= {task.primary}
    assert second["difference"]["value"] < 0
    code, out, err = cli("compare", run.path, tmp_path / "other")
    assert code == 0, err
    assert task.metric_names[task.primary][0] in out


def test_runs_with_another_order_of_labels_are_compared(run, tmp_path):
    shutil.copytree(run.path, tmp_path / "other")
    other = bs.Run(tmp_path / "other")
    content = json.loads(other.layout.labels.read_text())
    content["classes"].reverse()
    other.layout.labels.write_text(json.dumps(content))
    if run.task != "regression":
        frame = other.predictions
        frame["probabilities"] = [p[::-1] for p in frame["probabilities"]]
        if run.task == "multi-label":
            frame["label_texts"] = [texts[::-1] for texts in frame["label_texts"]]
        frame.to_parquet(other.layout.predictions / "test.parquet")
    if run.task == "ordinal":
        with pytest.raises(RunFolderError):
            bs.compare(run, other)
        return
    first, second = bs.compare(run, other)
    assert second["metrics"] == first["metrics"]
    assert second["difference"]["value"] == 0


def test_runs_of_different_tasks_are_not_compared(finished, run):
    with pytest.raises(RunFolderError):
        bs.compare(run, finished)


# -- studies, seeds, folds and resuming --------------------------------------------------------------------------------

SHORT = {"epochs": 2, "rows": 90}


@pytest.mark.parametrize("task", TASKS)
def test_an_interrupted_run_resumes_with_the_same_weights(task, tiny, tmp_path):
    whole = fit(tiny, tmp_path / "whole", task, **SHORT)
    steps = []
    with pytest.raises(Interrupted):
        fit(
            tiny,
            tmp_path / "run",
            task,
            on_event=lambda event: steps.append(event) if isinstance(event, StepDone) else None,
            stop=lambda: len(steps) > 2,
            **SHORT,
        )
    resumed = fit(tiny, tmp_path / "run", task, resume=True, **SHORT)
    assert same_weights(weights_of(whole), weights_of(resumed))
    assert whole.metrics["splits"] == resumed.metrics["splits"]


@pytest.mark.parametrize("task", TASKS)
def test_several_seeds_have_an_ensemble(task, tiny, tmp_path):
    run = fit(tiny, tmp_path / "run", task, seeds=2, **SHORT)
    primary = get_task(task).primary
    summary = run.metrics["seeds"]
    assert len(summary["each"]) == 2
    assert primary in summary["ensemble"]["metrics"]
    texts = make(task, 10, seed=2)["Text"].tolist()
    members = [bs.load(member, device="cpu").predict_proba(texts) for member in run.members]
    ensemble = bs.load(run, device="cpu", ensemble=True)
    assert ensemble.predict_proba(texts) == pytest.approx(np.mean(members, axis=0), abs=1e-4)
    assert run.layout.report.exists()


@pytest.mark.parametrize("task", TASKS)
def test_folds_score_every_training_text(task, tiny, tmp_path):
    run = fit(tiny, tmp_path / "run", task, cv=3, validation_size=None, **SHORT)
    splits = pd.read_parquet(run.layout.splits)
    assert set(run.validation_predictions["row"]) == set(splits["row"][splits["split"] == "train"])
    assert get_task(task).primary in run.metrics["splits"]["validation"]["metrics"]


@pytest.mark.parametrize("task", TASKS)
def test_a_study_tunes_the_primary_metric(task, tiny, tmp_path):
    study = bs.tune(
        make(task, 90),
        output=tmp_path / "study",
        model=str(tiny),
        trials=2,
        task=task,
        epochs=2,
        precision="fp32",
        device="cpu",
        explanations="off",
        validation_size=0.2,
    )
    assert len(study.trials) == 2
    assert study.best.task == task
    page = study.report.read_text(encoding="utf-8")
    primary = get_task(task).primary_name
    assert primary in page
    assert primary == "macro-F1" or "macro-f1" not in page.lower()


# -- what does not fit is refused --------------------------------------------------------------------------------------


def _refused(error, *parts):
    assert error.value.what
    assert error.value.remedy
    message = f"{error.value.what} {error.value.where} {error.value.remedy}"
    assert all(part in message for part in parts), message


@pytest.mark.parametrize("task", TASKS)
def test_an_imbalance_of_another_task_is_refused(task, tiny, tmp_path):
    with pytest.raises(ConfigError) as error:
        fit(tiny, tmp_path / "run", task, imbalance="balanced-sampling" if task != "ordinal" else "nonsense")
    _refused(error, "imbalance")


def test_labels_that_a_run_does_not_know_are_refused(run, later, tmp_path):
    other = {
        "multi-label": later[["Text"]].assign(Labels=[["plants"]] * len(later)),
        "ordinal": later[["Text"]].assign(Label=9),
        "regression": later.assign(Label="good"),
    }[run.task]
    with pytest.raises(DataError) as error:
        bs.evaluate(run, other)
    _refused(error, "row")


def test_columns_of_0_and_1_must_have_all_labels_of_the_run(tiny, run, later):
    if run.task != "multi-label":
        pytest.skip("only for label sets")
    frame = pd.DataFrame({"Text": later["Text"], **{n: [int(n in row) for row in later["Labels"]] for n in NAMES}})
    found = bs.evaluate(run, frame, label_columns=tuple(NAMES), name="columns")
    assert found["metrics"] == bs.evaluate(run, later, name="lists")["metrics"]
    with pytest.raises(DataError) as error:
        bs.evaluate(run, frame, label_columns=tuple(NAMES[:2]), name="fewer")
    _refused(error, NAMES[2])


def test_evaluate_takes_its_task_from_the_run(cli, run, later, tmp_path):
    later.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    assert cli("evaluate", run.path, tmp_path / "t.jsonl", "--task", run.task)[0] == 2
    code, out, err = cli("evaluate", run.path, tmp_path / "t.jsonl", "--json")
    assert code == 0, err
    assert get_task(run.task).primary in json.loads(out)["metrics"]


def test_a_task_of_a_newer_version_is_named():
    with pytest.raises(ModelError) as error:
        get_task("span")
    _refused(error, "span", "version")


def test_evaluate_finds_the_label_column_that_training_was_given(tiny, tmp_path):
    table = make("regression", 120).rename(columns={"Label": "score"})
    run = train(tiny, tmp_path / "run", table=table, task="regression", label_column="score", epochs=1)
    found = bs.evaluate(run, table[:40])
    assert found["texts"] == 40
    other = bs.evaluate(run, table[:40].assign(label=range(40)), name="other")  # a usual name
    assert other["metrics"] == found["metrics"]
    with pytest.raises(DataError) as error:  # the message of a table without any label column stays
        bs.evaluate(run, table[["Text"]])
    assert "no column name suggests labels" in error.value.what


def test_a_regression_starts_better_than_the_mean(tiny):
    from bertsmith.evaluation.linear_models import fit_ridge

    rng = np.random.default_rng(0)
    x = np.tanh(rng.normal(size=(300, 200)))
    y = x[:, 0] + rng.normal(size=300)
    others = np.tanh(rng.normal(size=(300, 200)))
    found = fit_ridge(x, y).logits(others)[:, 0]
    assert ((others[:, 0] - found) ** 2).mean() < others[:, 0].var()  # a penalty of 1 overfits, to more than twice that


def test_the_summary_counts_texts_without_labels(run, later):
    found = bs.predict(run, later, device="cpu")
    if run.task == "multi-label":
        assert found.without_labels == sum(not labels for labels in found.frame["predicted_texts"])
    else:
        assert found.without_labels == 0
