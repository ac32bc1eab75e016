"""Push: what leaves the machine, the model card, and what the hub answers. The hub is a server in this process."""

import base64
import hashlib
import json
import re
import shutil
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import ModelCard

import bertsmith as bs
from bertsmith.errors import ConfigError, HubError, RunFolderError
from bertsmith.folders.run import open_run
from bertsmith.inference.exported import ExportInfo
from bertsmith.report.card import Details, card_text
from bertsmith.testing import tiny_table
from tests.conftest import train

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # in the client of the hub


class Hub:
    """A hub: its repositories, with their files, and the requests that it got."""

    def __init__(self):
        self.repositories = {}
        self.requests = []
        self.blobs = {}
        self.refuse = {}
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                hub.answer(self)

            def do_POST(self):
                hub.answer(self)

            def do_PUT(self):
                hub.answer(self)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request):
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        path = request.path.partition("?")[0]
        self.requests.append((request.command, path, body))
        status, answer = next(
            ((code, {"error": "refused"}) for part, code in self.refuse.items() if part in path), None
        ) or self.reply(request, path, body)
        content = json.dumps(answer).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(content)))
        if status == 404:
            request.send_header("X-Error-Code", "RepoNotFound")
        request.end_headers()
        request.wfile.write(content)

    def reply(self, request, path, body):
        if request.headers.get("Authorization") != "Bearer hf_right" and request.command != "PUT":
            return 401, {"error": "Invalid credentials"}
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": "me", "orgs": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            private = asked.get("private", asked.get("visibility") == "private")
            self.repositories[name] = {"private": private, "files": {}}
            return 200, {"url": f"{self.address}/{name}"}
        if path == "/api/validate-yaml":
            if "license: apache2" in json.loads(body)["content"]:
                return 400, {"errors": [{"message": "license must be one of apache-2.0, mit"}]}
            return 200, {"errors": [], "warnings": []}
        if path.startswith("/upload/"):
            self.blobs[path.rpartition("/")[2]] = body
            return 200, {}
        name = re.match(r"/(?:api/models/)?([^/]+/[^/.]+)", path)[1]
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}
        if path.endswith("/preupload/main"):
            mode = {True: "lfs", False: "regular"}
            files = [
                {"path": f["path"], "uploadMode": mode[f["path"].endswith(".safetensors")], "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return 200, {"files": files}
        if path.endswith("/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.address}/upload/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        if path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.repositories[name]["files"][value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.repositories[name]["files"][value["path"]] = self.blobs[value["oid"]]
            return 200, {"commitUrl": f"{self.address}/{name}/commit/1", "commitOid": "1", "success": True}
        found = self.repositories[name]
        return 200, {"id": name, "private": found["private"], "siblings": [], "tags": []}


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # another protocol, to another server
    hub = Hub()
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    for name in ("HTTPS_PROXY", "https_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def _texts(run):
    return [text for frame in (run.predictions, run.validation_predictions) for text in frame["text"]]


def test_a_push_sends_the_model_and_no_text(finished, hub, cli):
    code, out, err = cli("push", finished, "me/topics", "--language", "en", "--license", "mit", "--yes", "--json")
    assert code == 0, err
    assert json.loads(out) == {"repository": "me/topics", "address": f"{hub.address}/me/topics"}
    run, sent = open_run(finished), hub.repositories["me/topics"]
    assert sent["private"] is True
    assert sent["files"].keys() == {*run.info["model_files"], "README.md"}
    assert all(name in err for name in sent["files"])
    for name in run.info["model_files"]:
        digest = hashlib.sha256((run.layout.model / name).read_bytes()).hexdigest()
        assert hashlib.sha256(sent["files"][name]).hexdigest() == digest
    everything = b"\n".join(body for _, _, body in hub.requests)
    everything += b"\n".join(content for name, content in sent["files"].items() if not name.endswith(".safetensors"))
    assert not [text for text in _texts(run) if text.encode() in everything]
    data = ModelCard(sent["files"]["README.md"].decode()).data
    assert (data.language, data.license, data.model_name) == (["en"], "mit", "topics")
    assert '"me/topics"' in sent["files"]["README.md"].decode()


@pytest.mark.parametrize("harm", ["another file", "a changed file"])
def test_only_the_unchanged_files_of_an_export_are_sent(harm, own_run, old_export, hub):
    folder = own_run / "export" / "onnx"
    shutil.copytree(old_export, folder)
    (own_run / "key").write_text("secret")
    about = ExportInfo.read(folder)
    if harm == "another file":
        changed = replace(about, files={**about.files, "../../key": "0" * 32})
        (folder / "export.json").write_text(json.dumps(changed.to_dict()))
    else:
        (folder / next(iter(about.files))).write_text("secret")
    with pytest.raises(RunFolderError):
        bs.push(own_run, "me/topics", exports=True)
    assert hub.requests == []


def test_exports_are_sent_if_asked_for(own_run, old_export, hub):
    run = bs.Run(own_run)
    with pytest.raises(ConfigError):
        bs.push(run, "me/topics", exports=True)
    assert hub.requests == []
    folder = run.layout.exports / "onnx"
    shutil.copytree(old_export, folder)
    (folder / "notes.txt").write_text("mine")
    (run.layout.model / "notes.txt").write_text("mine")
    assert bs.push(run, "org/topics", exports=True, private=False) == f"{hub.address}/org/topics"
    sent = hub.repositories["org/topics"]
    assert sent["private"] is False
    assert {"export/onnx/export.json", "export/onnx/model.onnx"} <= sent["files"].keys()
    assert not [name for name in sent["files"] if "notes" in name]


def test_a_repository_that_exists_is_not_written_without_being_asked(finished, hub):
    hub.repositories = {"me/a": {"private": True, "files": {}}, "me/b": {"private": False, "files": {}}}
    for name, options in (("me/a", {}), ("me/b", {"overwrite": True})):
        with pytest.raises(HubError) as caught:
            bs.push(finished, name, **options)
        assert caught.value.where == name
        assert hub.repositories[name]["files"] == {}
    bs.push(finished, "me/a", overwrite=True)
    bs.push(finished, "me/b", overwrite=True, private=False)
    assert all("model.safetensors" in entry["files"] for entry in hub.repositories.values())


def test_nothing_is_sent_without_a_confirmation(finished, hub, cli, monkeypatch):
    assert cli("push", finished, "me/topics")[0] == 2
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("typer.confirm", lambda *args, **kwargs: False)
    assert cli("push", finished, "me/topics")[0] == 0
    assert hub.repositories == {}
    assert {method for method, _, _ in hub.requests} == {"GET"}


def test_what_the_hub_refuses_is_an_error_of_the_user(finished, hub, monkeypatch):
    hub.refuse = {"/repos/create": 403}
    with pytest.raises(HubError) as caught:
        bs.push(finished, "other/topics")
    assert "403" in caught.value.what
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(HubError) as caught:
        bs.push(finished, "me/topics")
    assert "401" in caught.value.what
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(HubError):
        bs.push(finished, "me/topics")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError):
        bs.push(finished, "me/topics")
    assert hub.repositories == {}


def test_the_hub_names_a_licence_that_it_does_not_know(finished, hub):
    with pytest.raises(HubError) as caught:
        bs.push(finished, "me/topics", license="apache2")
    assert "license must be one of apache-2.0" in caught.value.what
    assert hub.repositories == {}
    bs.push(finished, "me/topics", license="apache-2.0")
    assert "model.safetensors" in hub.repositories["me/topics"]["files"]


def test_what_cannot_be_pushed_is_refused_before_the_hub_is_asked(finished, hub, tmp_path):
    for wrong in (
        {"repository": "topics"},
        {"repository": "me/to pics"},
        {"repository": 5},
        {"repository": "me/topics", "language": ["English"]},
        {"repository": "me/topics", "datasets": "reviews.csv"},
    ):
        with pytest.raises(ConfigError):
            bs.push(finished, **wrong)
    run = bs.Run(shutil.copytree(finished, tmp_path / "run"))
    (run.layout.model / "config.json").write_text("{}")
    with pytest.raises(RunFolderError):
        bs.push(run, "me/topics")
    run.update(status="interrupted")
    with pytest.raises(RunFolderError):
        bs.push(run, "me/topics")
    assert hub.requests == []


def test_the_card_has_each_metric_with_its_interval(finished):
    run = open_run(finished)
    data = ModelCard(card_text(run, Details("me/topics", ("en", "de"), "cc-by-4.0", ("org/reviews",)))).data
    found = {result.metric_name.partition(" (")[0]: result for result in data.eval_results}
    for name, title in (("macro_f1", "Macro-F1"), ("accuracy", "Accuracy")):
        entry = run.metrics["splits"]["test"]["metrics"][name]
        assert found[title].metric_value == entry["value"]
        assert found[title].metric_args["interval"] == entry["interval"]
    types = {result.metric_type for result in data.eval_results}
    assert {"macro_f1", "accuracy", "balanced_accuracy", "macro_precision", "macro_average_precision"} <= types
    assert {result.dataset_type for result in data.eval_results} == {"org/reviews"}
    assert data.datasets == ["org/reviews"]
    assert data.pipeline_tag == "text-classification"
    assert data.widget == [{"text": "a new text"}]
    assert data.base_model is None  # a folder on this machine


@pytest.mark.parametrize(
    ("model", "expected"), [({"revision": "a1b2"}, "owner/base"), ({"revision": None}, None), ({}, "owner/base")]
)
def test_the_card_names_only_a_checkpoint_of_the_hub_as_base(model, expected, own_run):
    run = open_run(own_run)
    others = {key: value for key, value in run.info["model"].items() if key != "revision"}
    run.update(model={**others, "name": "owner/base", **model})
    assert ModelCard(card_text(open_run(own_run))).data.base_model == expected


@pytest.fixture(scope="module", params=["multi-label", "ordinal", "regression"])
def other(request, tmp_path_factory, tiny):
    table = tiny_table(120)
    if request.param == "multi-label":
        table = table.assign(Label=table["Label Text"] + ";" + table["Label Text"].to_numpy()[::-1])
        table = table[["Text", "Label"]]
    elif request.param == "regression":
        table = table[["Text", "Label"]].assign(Label=lambda t: t["Label"] + 0.5)
    else:
        table = table[["Text", "Label"]]
    return train(tiny, tmp_path_factory.mktemp("task") / "run", table=table, task=request.param, epochs=1)


def test_the_card_of_every_task_is_valid(other):
    data = ModelCard((other.layout.model / "README.md").read_text(encoding="utf-8")).data
    metrics = other.metrics["splits"]["test"]["metrics"]
    values = [entry["value"] for entry in metrics.values() if entry["value"] is not None]
    assert sorted(result.metric_value for result in data.eval_results) == sorted(values)
    assert len(data.metrics) >= 1
    assert other.task in data.eval_results[0].task_name
