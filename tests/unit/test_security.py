"""Malicious checkpoints, tables and names: bertsmith runs no code, follows no path, and shows names only as text."""

import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch

import bertsmith as bs
from bertsmith.data.table import Labels
from bertsmith.errors import ModelError
from bertsmith.folders.run import open_run
from bertsmith.model import checkpoint
from bertsmith.model.load import check_vocabulary, load_model, load_tokenizer
from bertsmith.testing import tiny_model, tiny_table

LABELS = Labels((0, 1), ("no", "yes"))


class _Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture
def folder(tiny, tmp_path):
    return Path(shutil.copytree(tiny, tmp_path / "checkpoint"))


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


def _set(file, **values):
    file.write_text(json.dumps({**(json.loads(file.read_text()) if file.is_file() else {}), **values}))


def _load(folder):
    found = checkpoint.resolve(str(folder))
    model, tokenizer = load_model(found, LABELS), load_tokenizer(found)
    check_vocabulary(model, tokenizer, found)
    return model, tokenizer


@pytest.mark.parametrize(
    "entry",
    [
        {"_attn_implementation_internal": "owner/kernel"},
        {"_attn_implementation": "owner/kernel"},
        {"attn_implementation": "owner/kernel"},
        {"attn_implementation": {"": "owner/kernel"}},
        {"_experts_implementation_internal": "owner/kernel"},
        {"experts_implementation": "owner/kernel"},
        {"kernel_config": {"RMSNorm": "owner/kernel:Layer"}},
        {"use_kernels": True},
        {"text_config": {"_attn_implementation_internal": "owner/kernel"}},
        {"_something_new": 1},
    ],
    ids=str,
)
def test_keys_that_may_fetch_code_are_refused_before_anything_is_loaded(entry, folder):
    _set(folder / "config.json", **entry)
    (folder / "model.safetensors").write_text("never opened")
    key = next(iter(entry.get("text_config", entry)))
    with pytest.raises(ModelError) as caught:
        checkpoint.resolve(str(folder))
    assert repr(key) in caught.value.what
    assert caught.value.where == str(folder / "config.json")


def test_harmless_keys_are_accepted(folder):
    _set(folder / "config.json", _name_or_path="a/b", _attn_implementation="sdpa", _attn_implementation_autoset=True)
    assert _load(folder)[0].num_labels == 2


def test_malicious_checkpoints_run_no_code(folder, canary, monkeypatch):
    """The folder has every kind of malicious file at once; the model and the tokenizer load without them."""
    evil = f"open({str(canary)!r}, 'w').close()\nclass Evil: pass\n"
    for name in (
        "evil.py",
        "modeling_evil.py",
        "tokenization_evil.py",
        "configuration_evil.py",
        "conftest.py",
        "setup.py",
    ):
        (folder / name).write_text(evil)
    auto = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForSequenceClassification"), "modeling_evil.Evil")
    _set(folder / "config.json", auto_map=auto, architectures=["Evil"], custom_pipelines={"x": {"impl": "evil.Evil"}})
    _set(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_evil.Evil", None]})
    _set(folder / "generation_config.json", custom_generate="evil.py")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth", "vocab.pkl"):
        (folder / name).write_bytes(pickle.dumps(_Canary(canary)))
        torch.save({"x": _Canary(canary)}, folder / f"zip-{name}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, tokenizer = _load(folder)
    assert type(model).__name__ == "BertForSequenceClassification"
    assert type(tokenizer).__module__.startswith("transformers.")
    assert not canary.exists()
    model.save_pretrained(folder / "saved")
    tokenizer.save_pretrained(folder / "saved")
    for name in ("config.json", "tokenizer_config.json"):  # saving does not keep the address of the code
        assert "evil" not in (folder / "saved" / name).read_text().replace(str(folder), "")


@pytest.mark.parametrize("weights", ["pickle", "zip"])
def test_allowed_pickle_weights_run_no_code(weights, folder, canary):
    (folder / "model.safetensors").unlink()
    if weights == "pickle":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Canary(canary)))
    else:
        torch.save({"x": _Canary(canary)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError) as caught:
        checkpoint.resolve(str(folder))
    assert "--allow-pickle" in caught.value.remedy
    with pytest.raises(ModelError):
        load_model(checkpoint.resolve(str(folder), allow_pickle=True), LABELS)
    assert not canary.exists()


@pytest.mark.parametrize("shard", ["../evil.safetensors", "/etc/passwd", "evil.bin", "a/b.safetensors", "..", ""])
def test_an_index_that_points_elsewhere_is_refused(shard, folder, canary):
    (folder / "model.safetensors").rename(folder.parent / "evil.safetensors")
    (folder / "evil.bin").write_bytes(pickle.dumps(_Canary(canary)))
    _set(folder / "model.safetensors.index.json", metadata={}, weight_map={"bert.embeddings": shard})
    with pytest.raises(ModelError) as caught:
        checkpoint.resolve(str(folder))
    assert repr(shard) in caught.value.what
    assert not canary.exists()


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("model.safetensors.index.json", {"weight_map": {"a": "model-1.safetensors"}}, "model-1.safetensors"),
        ("model.safetensors.index.json", {"weight_map": 3}, "index"),
        ("model.safetensors.index.json", [], "model.safetensors.index.json"),
        ("tokenizer_config.json", {"vocab_file": "../../secret"}, "'../../secret'"),
        ("tokenizer_config.json", {"merges_file": "/etc/passwd"}, "'/etc/passwd'"),
        ("tokenizer_config.json", [], "tokenizer_config.json"),
        ("adapter_config.json", {"base_model_name_or_path": "owner/evil"}, "adapter"),
        ("config.json", {"model_type": "bert", "quantization_config": {"quant_method": "gptq"}}, "quantized"),
        ("config.json", {"model_type": "vit"}, "'vit'"),
        ("config.json", {"model_type": "../bert"}, "'../bert'"),
        ("config.json", {"model_type": ["bert"]}, "['bert']"),
    ],
    ids=str,
)
def test_other_malformed_checkpoint_files_are_errors(file, content, expected, folder):
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ModelError) as caught:
        checkpoint.resolve(str(folder))
    assert expected in caught.value.what
    assert caught.value.where in (str(folder / file), str(folder))
    assert caught.value.remedy


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_links_out_of_a_checkpoint_run_no_code(name, folder, canary):
    secret = folder.parent / "secret"
    secret.write_bytes(pickle.dumps(_Canary(canary)))
    (folder / name).unlink()
    (folder / name).symlink_to(secret)
    with pytest.raises(ModelError):
        _load(folder)
    assert not canary.exists()


def test_a_tokenizer_of_another_checkpoint_is_refused(folder, tmp_path):
    _load(folder)
    other = tiny_model(tmp_path / "other", vocab_size=10)
    shutil.copy(other / "config.json", folder)
    shutil.copy(other / "model.safetensors", folder)
    with pytest.raises(ModelError) as caught:
        bs.train(tiny_table(), output=tmp_path / "run", model=str(folder), device="cpu")
    assert " 10 " in caught.value.what
    assert caught.value.where == str(folder)
    assert not (tmp_path / "run").exists()


def test_names_from_a_table_are_not_used_as_paths_or_code(tiny, tmp_path):
    """Label texts, column and file names with paths, script tags, links, formulas and Markdown in them."""
    evil = ("../../evil", "/tmp/evil", "[a](javascript:canary())", "=cmd|' /C calc'!A0", "javascript:canary()")
    table = tiny_table(150)
    table["Label Text"] = [f"{evil[n]} {n}" for n in table["Label"]]
    table["Text"] = [f"{evil[i % 5]} {text}" for i, text in enumerate(table["Text"])]
    for i, name in enumerate(evil):
        table[name + "<script>canary()</script>"] = i
    name = "[x](javascript:canary()) ;..%2f<img src=x onerror=canary()>.csv".replace("/", "")
    table.to_csv(tmp_path / name, index=False)
    settings = {"epochs": 1, "device": "cpu", "precision": "fp32", "model": str(tiny)}
    run = bs.train(tmp_path / name, output=tmp_path / "runs" / "evil", **settings)
    plain = bs.train(tiny_table(150), output=tmp_path / "runs" / "plain", **settings)
    files = [sorted(p.relative_to(r.path).as_posix() for p in r.path.rglob("*")) for r in (run, plain)]
    assert files[0] == files[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "runs"])
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["evil", "plain"]
    page = run.layout.report.read_text()
    assert not re.search(r"""<[^>]*\s(href|src|on\w+)\s*=\s*["']?(javascript|x|canary)""", page)
    assert "<script>canary" not in page
    card = (run.layout.model / "README.md").read_text()
    assert not re.search(r"(?<!\\)\]\(javascript", card)
    assert "<img" not in card
    cells = (run.layout.predictions / "test.csv").read_text()
    assert not re.search(r'(^|,)"?=cmd', cells, flags=re.MULTILINE)
    assert open_run(run.path).labels.texts[0] == "../../evil 0"


def test_the_source_never_unpickles_or_runs_code_by_name():
    """The source has no such call: pickle, eval, exec, a shell, `torch.load`, or trusted remote code."""
    forbidden = re.compile(
        r"\bpickle\.\w|(?<![.\w])(eval|exec)\(|os\.system|shell=True|torch\.load\(|trust_remote_code=True|yaml\.load\(|__import__"
    )
    sources = sorted((Path(__file__).parents[2] / "src").rglob("*.py"))
    assert len(sources) > 50
    found = [
        f"{p.name}:{i}"
        for p in sources
        for i, line in enumerate(p.read_text().splitlines(), 1)
        if forbidden.search(line)
    ]
    assert found == []


def test_a_terminal_is_not_obeyed(cli, tmp_path):
    table = tiny_table(60)
    table["Label Text"] = table["Label Text"] + "\x1b]0;owned\x07\x1b[2J"
    table.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    code, out, err = cli("inspect", tmp_path / "t.jsonl")
    assert code == 0
    assert "owned" in out
    assert "\x1b" not in out + err
