"""Exports: the same answers as the original, for every architecture, without torch."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import bertsmith as bs
from bertsmith.compute.machine import cores
from bertsmith.compute.system import control_group_cores
from bertsmith.data.table import Labels
from bertsmith.data.template import Template
from bertsmith.errors import ConfigError, DataError, DeviceError, MissingPackageError, ModelError, RunFolderError
from bertsmith.evaluation.rule import Rule
from bertsmith.folders.claim import lock
from bertsmith.folders.files import ExportFolder
from bertsmith.folders.run import open_run
from bertsmith.inference import export as exporting
from bertsmith.inference import export_formats
from bertsmith.inference.abstain import held_out_predictions
from bertsmith.inference.classifier import Classifier
from bertsmith.inference.exported import Exported, ExportInfo, round_up_widths
from bertsmith.inference.runtime import RUNTIMES
from bertsmith.model import checkpoint
from bertsmith.model.load import LoadedModel, load_model, load_tokenizer
from bertsmith.model.tokens import Tokens
from bertsmith.tasks.registry import get_task
from bertsmith.testing import ARCHITECTURES, tiny_model, tiny_table
from tests.processes import Command

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnxruntime", "onnxscript"))), reason="the extra export is not installed"
)

TEXTS = ["cat", "the red dog is here", "apple " * 90, "", "hammer and nail near my plum", "?!", "grüße 猫"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, finished):
    """A separate finished run, so that its exports do not disturb other tests."""
    folder = tmp_path_factory.mktemp("exports") / "run"
    shutil.copytree(finished, folder)
    return bs.Run(folder)


@pytest.fixture(scope="module")
def exported(run):
    return bs.export(run, overwrite=True)


@pytest.fixture
def copy(exported, tmp_path):
    """A copy of the export, to be changed."""
    return Path(shutil.copytree(exported.path, tmp_path / "copy"))


@pytest.fixture
def written(exported, tmp_path, monkeypatch):
    """Make exports of the run copy the files of the first export, which is fast."""
    kept = Path(shutil.copytree(exported.path, tmp_path / "kept", ignore=shutil.ignore_patterns("[!m]*")))

    def write(original, folder, precision, texts, conservative):
        shutil.copytree(kept, folder, dirs_exist_ok=True)

    monkeypatch.setitem(export_formats.WRITERS, "onnx", write)


def _close(a, b):
    assert a == pytest.approx(b, abs=1e-5)


MAX_DIFFERENCE = {"fp32": 1e-5, "int8": 0.02}
"""How far a probability of a tiny model may be from the original's, by precision."""


def _needs(format, precision="fp32"):
    if format == "openvino":
        pytest.importorskip("openvino", reason="the extra openvino is not installed")
        if precision == "int8":
            pytest.importorskip("nncf", reason="the extra export is not installed")


def _both(folder, architecture, format, precision, **settings):
    """Return a random tiny classifier, and what was exported of it."""
    import torch

    found = checkpoint.resolve(str(tiny_model(folder / "m", architecture, **settings)))
    model, tokenizer = load_model(found, Labels((0, 1, 2), ("a", "b", "c"))), load_tokenizer(found)
    original = Classifier(
        LoadedModel(model, tokenizer, torch.device("cpu"), 48), Labels((0, 1, 2), ("a", "b", "c")), get_task()
    )
    place = folder / "e"
    place.mkdir()
    export_formats.write_model(original, place, format, precision, tiny_table(20)["Text"].tolist())
    tokenizer.backend_tokenizer.save(str(place / "tokenizer.json"))
    about = ExportInfo(
        format,
        precision,
        original.labels,
        original.task.name,
        original.loaded.input_names,
        48,
        (tokenizer.pad_token_id, tokenizer.padding_side),
        original.rule,
        {},
        {},
        {},
    )
    (place / "export.json").write_text(json.dumps(about.to_dict()))
    return original, Exported.load(place)


# OpenVINO converts our forward pass (BERT, ModernBERT) and that of transformers (DeBERTa).
@pytest.mark.parametrize(
    ("architecture", "format", "precision"),
    [
        # `exported` is a BERT, and the code of XLM-RoBERTa is that of RoBERTa.
        *((name, "onnx", "fp32") for name in ARCHITECTURES if name not in ("bert", "xlm-roberta")),
        *((name, "openvino", "fp32") for name in ("bert", "deberta-v2", "modernbert")),
        *((name, "openvino", "int8") for name in ("bert", "modernbert")),
    ],
)
def test_exports_of_all_architectures_match_the_original(architecture, format, precision, tmp_path):
    _needs(format, precision)
    # One layer is exported in less time; those of ModernBERT differ.
    one = {} if architecture == "modernbert" else {"num_hidden_layers": 1}
    original, exported = _both(tmp_path, architecture, format, precision, **one)
    ExportFolder(tmp_path / "e").check(overwrite=True)  # it has no other files
    found = exported.predict_proba(TEXTS)
    assert found == pytest.approx(original.predict_proba(TEXTS), abs=MAX_DIFFERENCE[precision])
    if precision == "int8":
        assert abs(found - original.predict_proba(TEXTS)).max() > 1e-7


@pytest.mark.parametrize("head", [16, 32])
def test_int8_predictions_do_not_depend_on_padding(head, tmp_path):
    """With AMX, OpenVINO was wrong if the number of tokens equals the head size."""
    _needs("openvino", "int8")
    sizes = {"hidden_size": 4 * head, "num_attention_heads": 4, "intermediate_size": 8 * head, "num_hidden_layers": 1}
    original, exported = _both(tmp_path, "bert", "openvino", "int8", initializer_range=0.2, **sizes)
    words = ["the", "red", "dog", "is", "here", "and", "hammer", "near", "my", "plum", "apple", "cat", "nail"]
    texts = [" ".join((words * 4)[: n - 2]) for n in range(3, 49)]
    assert original.count_tokens(texts).tolist() == list(range(3, 49))
    alone = np.concatenate([exported.predict_proba([text]) for text in texts])
    beside = np.concatenate([exported.predict_proba([text, texts[-1]])[:1] for text in texts[:-1]])
    assert alone[:-1] == pytest.approx(beside, abs=0.005)


def test_micro_batches_have_one_of_few_widths():
    lengths = np.arange(1, 1025)
    widths = round_up_widths(lengths)
    assert (widths >= lengths).all()
    assert (widths <= lengths * 1.125).all()
    assert len(set(widths[256:512])) == 8
    assert len(set(widths[:16])) == 16


def test_openvino_compiles_few_shapes(in_openvino):
    exported, widths = bs.load(in_openvino.path), set()
    ids = [[2, *[7] * (n - 2), 3] for n in range(2, 65)]
    run = exported.session

    def seen(batches, n):
        batches = list(batches)
        widths.update(batch["input_ids"].shape[1] for batch in batches)
        return run(batches, n)

    exported.session, exported.about = seen, replace(exported.about, max_length=64)
    exported.logits_of(Tokens.from_lists({"input_ids": ids}))
    assert widths <= set(round_up_widths(np.arange(1, 65)).tolist())
    exported.about = replace(exported.about, max_length=61)
    exported.logits_of(Tokens.from_lists({"input_ids": [row[:61] for row in ids]}))
    assert 61 in widths  # no wider than what the model takes


def test_all_interfaces_predict_the_same(run, exported, tmp_path, cli):
    from transformers import pipeline

    texts = tiny_table(30, seed=4)["Text"].tolist()
    expected = bs.load(run, runtime="torch", device="cpu").predict_proba(texts)
    alone = bs.load(exported.path)
    _close(alone.predict_proba(texts), expected)
    assert alone.classes_.tolist() == list(run.labels.texts)
    frame = alone.predict_frame(pd.DataFrame({"Text": texts}))
    _close(np.stack(frame["probabilities"].to_list()), expected)
    _close(bs.load(run, runtime="onnx").predict_proba(texts), expected)
    piped = pipeline("text-classification", str(run.layout.model), top_k=None, truncation=True, device="cpu")(texts)
    by_label = [{entry["label"]: entry["score"] for entry in answers} for answers in piped]
    _close(np.array([[answer[label] for label in run.labels.texts] for answer in by_label]), expected)
    (tmp_path / "t.txt").write_text("\n".join(texts))
    for place in (run.path, exported.path):
        code, out, _ = cli("predict", place, tmp_path / "t.txt", "--json", "--probabilities")
        assert code == 0
        said = [json.loads(line) for line in out.splitlines()]
        _close(np.array([[row[f"probability of {label}"] for label in run.labels.texts] for row in said]), expected)
        assert [row["predicted_text"] for row in said] == [run.labels.texts[i] for i in expected.argmax(axis=1)]


def test_an_export_reports_its_parity(exported, run):
    found = exported.about.parity
    assert found["agreement"] == 1
    assert found["others_at_most"] == pytest.approx(1 - 0.05 ** (1 / found["texts"]))  # none of them differs
    assert found["largest_difference"] < 1e-5
    assert found["texts"] == len(run.validation_predictions) + len(run.predictions)
    assert found["neighbours"] < 1e-5
    assert exported.path == run.path / "export" / "onnx"
    assert {p.name for p in exported.path.iterdir()} == {
        "README.md",
        "export.json",
        "model.onnx",
        "model.onnx.data",
        "tokenizer.json",
        "validation.npz",
    }
    assert "bertsmith predict ." in (exported.path / "README.md").read_text()
    assert ExportInfo.read(exported.path) == exported.about
    assert exported.about.template == run.template


def test_an_export_of_a_run_with_an_undefined_metric_has_a_readme(exported):
    about = exported.about
    test = {**about.run["test"], "macro_f1": {"value": None, "interval": None}}
    text = exporting._readme(replace(about, run={**about.run, "test": test}), about.parity, "test texts")
    assert "bertsmith predict ." in text


def test_weights_are_in_a_file_of_their_own(exported):
    """The file is memory-mapped, so a model of BERT-Base's shape loads in half the time."""
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(str(exported.path / "model.onnx"), load_external_data=False).graph
    largest = max(graph.initializer, key=lambda tensor: np.prod(tensor.dims))
    assert largest.data_location == onnx.TensorProto.EXTERNAL
    assert {entry.key: entry.value for entry in largest.external_data}["location"] == "model.onnx.data"


@pytest.fixture(scope="module")
def in_openvino(run, tmp_path_factory):
    _needs("openvino")
    return bs.export(run, format="openvino", output=tmp_path_factory.mktemp("openvino") / "e")


@pytest.fixture(params=["exported", "in_openvino"])
def cut_small(request, monkeypatch):
    """An export on two threads, with a token budget that splits a few texts into many micro-batches."""
    for name, runtime in RUNTIMES.items():
        monkeypatch.setitem(RUNTIMES, name, replace(runtime, token_budget=64))
    return Exported.load(request.getfixturevalue(request.param).path, threads=2)


def test_batched_predictions_equal_single_predictions(cut_small):
    texts = tiny_table(40, seed=8)["Text"].tolist() + TEXTS
    classifier = cut_small
    together = classifier.predict_proba(texts)
    _close(together, np.concatenate([classifier.predict_proba([text]) for text in texts]))
    order = np.random.default_rng(0).permutation(len(texts))
    _close(classifier.predict_proba([texts[i] for i in order]), together[order])
    assert classifier.predict_proba([]).shape == (0, 3)
    assert together.sum(axis=1) == pytest.approx(1)
    with pytest.raises(DataError, match="item 1"):
        classifier.predict_proba(["a", None])


def test_concurrent_calls_are_safe(cut_small):
    texts = tiny_table(60, seed=9)["Text"].tolist()
    alone = [cut_small.predict_proba(texts[i:]) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        at_once = list(pool.map(lambda i: cut_small.predict_proba(texts[i:]), range(8)))
    assert np.concatenate(at_once) == pytest.approx(np.concatenate(alone), abs=1e-5)


def test_an_interrupted_prediction_leaves_the_export_usable(cut_small):
    texts = tiny_table(60, seed=9)["Text"].tolist()
    expected = cut_small.predict_proba(texts)

    def stop(n: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as _kept:  # with all that its traceback refers to
        cut_small.predict_proba(texts, stop)
    _close(cut_small.predict_proba(texts), expected)


def test_an_unfolded_rule_is_exported(run, copy):
    about = replace(ExportInfo.read(copy), rule=Rule(2.0, (0.0, 3.0, 0.0), folded=False))
    (copy / "export.json").write_text(json.dumps(about.to_dict()))
    plain, ruled = bs.load(run, runtime="torch", device="cpu").predict_proba(TEXTS), bs.load(copy)
    logits = (np.log(plain) + np.array([0, 3, 0])) / 2
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert ruled.predict_proba(TEXTS) == pytest.approx(expected, abs=1e-4)


def test_an_export_truncates_the_side_that_its_tokenizer_truncates(own_run, written, tmp_path, monkeypatch):
    monkeypatch.setattr(bs.Run, "check_model", lambda run: None)  # the run was trained with the other side
    file = own_run / "model" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"truncation_side": "left"}))
    original = bs.load(own_run, runtime="torch", device="cpu")
    exported = bs.load(bs.export(own_run, output=tmp_path / "left").path)
    texts = ["cat dog horse " * 200 + "red green blue " * 200]
    found = exported.predict_proba(texts)
    assert found == pytest.approx(original.predict_proba(texts), abs=1e-4)
    assert found == pytest.approx(exported.predict_proba(["red green blue " * 200]), abs=1e-4)


def test_thresholds_come_from_the_export_as_from_the_run(run, exported, tmp_path, cli):
    (tmp_path / "t.txt").write_text("cat\nred plum\nsaw")
    flags = ("--target-accuracy", "0.5", "--coverage", "0.8", "--json")
    said = [cli("predict", place, tmp_path / "t.txt", *flags)[1] for place in (exported.path, run.path)]
    a, b = ([json.loads(line) for line in out.splitlines()] for out in said)
    assert [row["label_set"] for row in a] == [row["label_set"] for row in b]
    assert [row["abstained"] for row in a] == [row["abstained"] for row in b]


WITHOUT_EXTRAS = """
import json, sys
for name in "torch transformers pyarrow pandas datasets sklearn scipy datasketch".split():
    sys.modules[name] = None
from bertsmith.cli.app import main
export, codes = sys.argv[1], []
for flags in json.load(sys.stdin):
    try: main(["predict", export, "t.csv", *flags])
    except SystemExit as end: codes.append(end.code)
import bertsmith as bs
print(json.dumps([codes, bs.load(export).predict(["red cat"])]))
"""


def test_neither_torch_nor_transformers_nor_pyarrow_is_needed(exported, tmp_path):
    (tmp_path / "t.csv").write_text("Text,More\nred cat,1\n,2\nbig plum,3\n")
    flags = [[], ["--json", "--coverage", "0.8", "--target-accuracy", "0.4"]]
    flags += [["-o", name] for name in ("o.jsonl", "o.parquet", "o.xlsx")]
    command = [sys.executable, "-c", WITHOUT_EXTRAS, str(exported.path)]
    out = subprocess.run(command, input=json.dumps(flags), cwd=tmp_path, capture_output=True, text=True, check=True)
    codes, labels = json.loads(out.stdout.splitlines()[-1])
    assert codes == [0, 0, 0, 2, 2], out.stderr
    assert [extra for extra in ("tables", "excel") if f"bertsmith[{extra}]" in out.stderr] == ["tables", "excel"]
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 3
    assert isinstance(labels[0], str)


def test_an_export_that_predicts_differently_is_refused(run, written, tmp_path, monkeypatch):
    write = export_formats.WRITERS["onnx"]

    def wrong(original, *rest):
        write(original, *rest)
        head = original.loaded.model.classifier
        head.weight.data *= -1  # the least likely label becomes the likeliest
        head.bias.data *= -1

    monkeypatch.setitem(export_formats.WRITERS, "onnx", wrong)
    with pytest.raises(ModelError) as error:
        bs.export(run, output=tmp_path / "e")
    assert f"{exporting.MIN_AGREEMENT['fp32']:.1%}" in error.value.what
    assert error.value.where == str(tmp_path / "e")
    assert not (tmp_path / "e").exists()
    made = bs.export(run, output=tmp_path / "e", accept=True)
    assert made.about.parity["agreement"] < 1
    assert not made.about.parity["held"]
    there = run.path / "export" / "accepted"  # as if it had been written into the run
    shutil.move(made.path, there)
    try:
        said = bs.load(run)
        assert not isinstance(said, Exported) or said.folder != there
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bertsmith.inference.load.is_export", lambda folder: folder == there)
            assert isinstance(bs.load(run), Classifier)
    finally:
        shutil.rmtree(there)


@pytest.fixture
def rounded(copy):
    """An ONNX export in int8, as bertsmith 0.1 wrote it."""
    onnx = pytest.importorskip("onnx")
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    file = copy / "model.onnx"
    quantizer = MatMulNBitsQuantizer(onnx.load(str(file)), bits=8, block_size=16, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    file.unlink()
    (copy / "model.onnx.data").unlink()
    quantizer.model.save_model_to_file(str(file), use_external_data_format=True)
    about = ExportInfo.read(copy)
    files = {name: exporting.file_digest(copy / name) for name in about.files}
    (copy / "export.json").write_text(json.dumps(replace(about, precision="int8", files=files).to_dict()))
    return copy


def test_an_int8_export_for_onnx_of_an_older_version_still_runs(run, exported, rounded, tmp_path):
    found, original = (bs.load(folder).predict_proba(TEXTS) for folder in (rounded, exported.path))
    assert 1e-7 < abs(found - original).max() < 0.2
    exported.path.rename(tmp_path / "aside")
    rounded.rename(exported.path)
    try:
        with pytest.raises(RunFolderError, match="no fp32 export"):  # never a silent default
            bs.load(run, runtime="onnx")
        assert isinstance(bs.load(run), Classifier)
    finally:
        exported.path.rename(rounded)
        (tmp_path / "aside").rename(exported.path)


@pytest.fixture
def attempts(monkeypatch):
    """For each call of the OpenVINO writer: calibration texts, whether it is conservative, and bytes of the weights."""
    _needs("openvino", "int8")
    monkeypatch.setitem(export_formats.CALIBRATION_TEXTS, ("openvino", "int8"), 5)
    calls, write = [], export_formats.WRITERS["openvino"]

    def record(original, folder, precision, texts, conservative):
        write(original, folder, precision, texts, conservative)
        calls.append((texts, conservative, (folder / "model.bin").stat().st_size))

    monkeypatch.setitem(export_formats.WRITERS, "openvino", record)
    return calls


def test_openvino_int8_is_not_compared_on_its_calibration_texts(run, in_openvino, attempts, tmp_path):
    made = bs.export(run, format="openvino", precision="int8", output=tmp_path / "e")
    ((calibration, conservative, _),) = attempts
    assert len(calibration) == 5
    assert set(calibration) <= set(run.validation_predictions["text"])
    assert not conservative
    found = made.about.parity
    assert found["texts"] == len(run.validation_predictions) - 5 + len(run.predictions)
    assert 1e-7 < found["largest_difference"] < 0.2
    assert found["neighbours"] < 0.005
    assert (made.path / "model.bin").stat().st_size < (in_openvino.path / "model.bin").stat().st_size / 2


def test_an_export_of_a_run_without_test_texts_is_compared_once_with_each_text(own_run, attempts, tmp_path):
    metrics = json.loads((own_run / "metrics.json").read_text())
    metrics["splits"]["test"]["by"] = "cross-validation"
    (own_run / "metrics.json").write_text(json.dumps(metrics))
    shutil.copy(own_run / "predictions" / "validation.parquet", own_run / "predictions" / "test.parquet")
    run = open_run(own_run)
    made = bs.export(run, format="openvino", precision="int8", output=tmp_path / "e", accept=True)
    ((calibration, _, _), *_) = attempts
    assert made.about.parity["texts"] == len(run.validation_predictions) - len(calibration) > 0


@pytest.mark.parametrize(
    ("precision", "error", "accepted"), [("fp32", 0.01, False), ("bf16", 0.09, True), ("bf16", 0.11, False)]
)
def test_the_largest_difference_decides_whether_numbers_are_the_same(precision, error, accepted):
    task, scores = get_task("regression"), np.random.default_rng(0).normal(5, 2, (500, 1))
    moved = scores + error * task.unit(scores)
    parity = {"texts": 500, "agreement": task.is_same(scores, moved).mean(), "neighbours": 0.0}
    parity["largest_difference"] = abs(moved - scores).max() / task.unit(scores)
    assert (not exporting._failed_check(parity, precision, task)) == accepted


def test_openvino_int8_falls_back_to_conservative_quantization(run, attempts, tmp_path, monkeypatch):
    monkeypatch.setitem(exporting.MAX_DIFFERENCE, "int8", 1e-9)
    near = bs.export(run, format="openvino", precision="int8", output=tmp_path / "e", accept=True)
    assert [conservative for _, conservative, _ in attempts] == [False, True]
    assert not near.about.parity["held"]
    assert attempts[1][2] > attempts[0][2]


@pytest.mark.parametrize(
    ("format", "precision", "extra", "package"),
    [
        ("openvino", "int8", "export", "nncf"),
        ("openvino", "fp32", "openvino", "openvino"),
        ("onnx", "fp32", "export", "onnxruntime"),
    ],
)
def test_a_missing_checkpoint_package_is_named(format, precision, extra, package, run, tmp_path, monkeypatch):
    _needs(format)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError) as caught:
        bs.export(run, format=format, precision=precision, output=tmp_path / "e")
    assert (caught.value.package, caught.value.extra) == (package, extra)
    assert ".part" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_openvino_telemetry_is_off(run, in_openvino, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "t.txt").write_text("red cat\n")
    process = Command(
        *("predict", in_openvino.path, tmp_path / "t.txt"),
        environment={"HOME": str(home), "CI": ""},
        before=partial(bs.export, run.path, format="openvino", precision="int8", output=tmp_path / "e", accept=True),
    )
    printed = process.finish()
    assert process.returncode == 0, printed
    assert (tmp_path / "e").is_dir()
    assert not (home / "intel").exists()


def test_auto_uses_only_exports_of_the_same_model(run, exported):
    assert isinstance(bs.load(run), Exported)
    assert isinstance(bs.load(run, runtime="torch"), Classifier)
    info = json.loads(run.layout.run.read_text())
    changed = {**info, "model_files": {**info["model_files"], "model.safetensors": "0" * 64}}
    try:
        run.layout.run.write_text(json.dumps(changed))
        with pytest.raises(RunFolderError, match="no fp32 export"):
            bs.load(run, runtime="onnx")
    finally:
        run.layout.run.write_text(json.dumps(info))
    with pytest.raises(ConfigError) as error:
        bs.load(run, runtime="tensorrt")
    assert "runtime tensorrt" in error.value.what
    for path, refused in ((exported.path, bs.export), (exported.path / "README.md", bs.load)):
        with pytest.raises(RunFolderError) as error:
            refused(path)
        assert error.value.where == str(path)
    with pytest.raises(ConfigError) as error:
        bs.load(exported.path, device="cuda")
    assert error.value.where == str(exported.path)
    with pytest.raises(DeviceError, match="device gpu"):
        bs.load(run, device="gpu")
    with pytest.raises(ConfigError, match="long='all'"):
        bs.load(run, long="all")


def test_a_tokenizer_in_python_is_not_exported(own_run, monkeypatch):
    monkeypatch.setattr(type(Classifier.load(own_run, device="cpu").loaded.tokenizer), "is_fast", False)
    with pytest.raises(ModelError) as error:
        bs.export(own_run)
    assert error.value.where == str(own_run)
    assert not (own_run / "export").exists()


def test_an_export_of_several_columns_refuses_what_its_run_refuses(old_export):
    about = ExportInfo.read(old_export)
    for template, long in ((Template(("Title", "Text")), "head-tail"), (Template(pair_column="Other"), "window")):
        (old_export / "export.json").write_text(json.dumps(replace(about, template=template).to_dict()))
        with pytest.raises(ConfigError):
            bs.load(old_export, long=long)
        assert bs.load(old_export).long == "truncate"


def test_an_export_keeps_the_exact_held_out_probabilities(run, exported):
    """Rounded to fp32, a confidence close to 1 would be 1, and so would be a threshold."""
    (stored,), (expected,) = (x.scores for x in (Exported.load(exported.path).held_out(), held_out_predictions(run)))
    assert stored.tolist() == expected.tolist() != expected.astype(np.float32).tolist()


def test_the_held_out_predictions_of_an_export_read_texts_as_the_export_does(own_run, written, tmp_path):
    file = bs.Run(own_run).layout.predictions / "validation.parquet"
    long = "cat dog " * 40 + "red blue " * 200
    pd.read_parquet(file).assign(text=lambda f: [long, *f["text"][1:]]).to_parquet(file)
    folder = bs.export(own_run, output=tmp_path / "whole", long="window").path
    whole = bs.load(folder)
    _close(whole.held_out().scores[0][:1], whole.predict_proba([long]))
    with pytest.raises(ConfigError) as error:
        bs.load(folder, long="truncate").held_out()
    assert error.value.where == str(folder)


def test_an_export_keeps_the_way_in_which_the_held_out_predictions_read_texts(own_run, written, tmp_path):
    """The models of folds cannot read their texts in another way."""
    run, long = bs.Run(own_run), "cat dog " * 40 + "red blue " * 200
    for name in ("validation", "test"):
        file = run.layout.predictions / f"{name}.parquet"
        pd.read_parquet(file).assign(text=lambda f: [long, *f["text"][1:]]).to_parquet(file)
    run.layout.metrics.write_text(run.layout.metrics.read_text().replace('"texts"', '"by": "folds", "texts"'))
    folder = bs.export(own_run, output=tmp_path / "whole", long="window").path
    assert bs.load(folder).long == "window"
    with pytest.raises(ConfigError) as error:
        bs.load(folder).held_out()
    assert error.value.where == str(folder)
    (saved,), (expected,) = bs.load(folder, long="truncate").held_out().scores, held_out_predictions(run).scores
    assert saved.tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json", "validation.npz"])
def test_changed_and_missing_files_of_an_export_are_reported(name, copy):
    file = copy / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    for damage in (lambda: None, file.unlink):
        damage()
        with pytest.raises(RunFolderError) as error:
            bs.load(copy)
        assert error.value.where == str(file)


def test_the_description_of_an_export_has_a_checksum(copy):
    file = copy / "export.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content))  # other formatting, same content
    bs.load(copy)
    first, second = content["labels"][:2]
    content["labels"][:2] = [second, first]
    file.write_text(json.dumps(content))
    with pytest.raises(RunFolderError) as error:
        bs.load(copy)
    assert error.value.where == str(file)


def test_an_export_whose_predictions_depend_on_the_batch_is_refused(run, written, tmp_path, monkeypatch):
    """A single wrong text of a rare length is enough."""
    predict = Exported.predict_proba
    lengths = bs.load(run).count_tokens(texts := [*run.validation_predictions["text"], *run.predictions["text"]])
    rare = texts[list(lengths).index(min(lengths, key=list(lengths).count))]
    monkeypatch.setattr(
        Exported, "predict_proba", lambda self, texts, p=None: predict(self, texts, p) * (0.9 if texts == [rare] else 1)
    )
    with pytest.raises(ModelError) as error:
        bs.export(run, output=tmp_path / "e")
    assert f"{exporting.MAX_BATCH_DIFFERENCE:g}" in error.value.what


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"format": "onnx"}', "\0"])
def test_a_damaged_description_is_an_error(content, copy):
    (copy / "export.json").write_text(content)
    with pytest.raises(RunFolderError) as error:
        bs.load(copy)
    assert error.value.where == str(copy / "export.json")


def test_an_export_does_not_replace_other_files(run, exported, copy, written, cli, tmp_path):
    with pytest.raises(RunFolderError) as error:
        bs.export(run)
    assert "overwrite" in error.value.remedy
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError) as error:
        bs.export(run, output=tmp_path / "full", overwrite=True)
    assert error.value.where == str(tmp_path / "full")
    with pytest.raises(ConfigError, match=re.escape(str(run.path))):
        bs.export(run, output=run.path / "model" / "onnx")
    with lock(exported.path, "exporting"), pytest.raises(RunFolderError):
        bs.export(run, overwrite=True)
    for flags, said in (
        (("--format", "tflite"), "onnx, openvino"),
        (("--precision", "int8"), "--format openvino"),
        (("--precision", "bf16"), "--format openvino"),
        (("--format", "openvino", "--precision", "fp16"), "fp32 or bf16 or int8"),
    ):
        code, _, err = cli("export", run.path, *flags)
        assert code == 2
        assert said in err
    code, out, _ = cli("export", run.path, "--overwrite", "--json")
    assert code == 0
    assert json.loads(out)["agreement"] == 1
    (copy / "Dockerfile").write_text("mine")
    with pytest.raises(RunFolderError) as error:
        bs.export(run, output=copy, overwrite=True)
    assert "Dockerfile" in error.value.what
    assert "model.onnx" not in error.value.what
    assert (copy / "Dockerfile").is_file()


def test_cpu_limits_of_containers_are_respected(tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert control_group_cores(tmp_path) == 2
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert control_group_cores(tmp_path) > 1000
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("300000")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert control_group_cores(tmp_path) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cores() == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert 1 <= cores() <= (os.cpu_count() or 1)
