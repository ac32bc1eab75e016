"""The server: request formats, limits, dynamic batches, and invalid input."""

import asyncio
import base64
import http.client
import json
import random
import re
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

import bertsmith as bs
from bertsmith.data.table import Labels
from bertsmith.errors import ConfigError
from bertsmith.evaluation.rule import Rule
from bertsmith.inference.explain import OutOfTimeError
from bertsmith.inference.predictor import ModelPredictor
from bertsmith.model.tokenizer import Encoder
from bertsmith.tasks.registry import get_task
from tests.conftest import rows_of

uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from starlette.testclient import TestClient  # noqa: E402

from bertsmith.serving import batcher as batcher_module  # noqa: E402
from bertsmith.serving.access import names_this_machine, read_token  # noqa: E402
from bertsmith.serving.aliases import VertexRoutes  # noqa: E402
from bertsmith.serving.app import _rank, create_app  # noqa: E402
from bertsmith.serving.batcher import Batcher, BatchSeconds, QueueFullError  # noqa: E402
from bertsmith.serving.drift import WINDOW, DriftWatch  # noqa: E402
from bertsmith.serving.loader import Loader, ServerConfig, Service  # noqa: E402
from bertsmith.serving.middleware import Limits  # noqa: E402
from bertsmith.serving.prometheus import ServerMetrics  # noqa: E402
from bertsmith.serving.request_errors import RequestError  # noqa: E402
from bertsmith.serving.schemas import Parameters  # noqa: E402
from bertsmith.serving.server import _app, address_of, listen  # noqa: E402
from bertsmith.serving.signals import stop_accepting  # noqa: E402


@contextmanager
def running(get_service, metrics=None, limits=None, token=None, **more):
    """Run a server in a thread; give a function that sends a request."""
    app = create_app(get_service, metrics or ServerMetrics(), limits or Limits(), token, **more)
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
    thread.start()
    port = listening.getsockname()[1]

    def ask(path, body=None, headers=None, method=None):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        method = method or ("GET" if raw is None else "POST")
        connection.request(method, path, raw, {"Content-Type": "application/json", **(headers or {})})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        is_json = content and response.headers.get("content-type", "").startswith("application/json")
        return response.status, json.loads(content) if is_json else content.decode(errors="replace"), response.headers

    ask.port = port
    while not server.started:
        time.sleep(0.01)
    try:
        yield ask
    finally:
        server.should_exit = True
        thread.join()


class Characters(Encoder):
    """One token per character."""

    key, unknown_id, special_counts = "characters", None, (0, 0)

    def __init__(self):
        pass

    def tokenize(self, texts, names):
        return {"input_ids": [[ord(character) for character in text] for text in texts]}

    def unknown_words(self, text):
        return []


class Fake(ModelPredictor):
    """Return the number in the text as the first logit, after a delay."""

    labels = Labels((0, 1, 2), ("a", "b", "c"))
    task, rule, decide, max_length, encoder = get_task(), Rule(), True, 1000, Characters()

    def __init__(self, seconds=0.0):
        self.seconds, self.batches = seconds, []

    def logits_of(self, tokens, progress=None):
        texts = ["".join(map(chr, ids)) for ids in rows_of(tokens)]
        time.sleep(self.seconds)
        if "fail" in texts:
            raise RuntimeError("secret detail")
        self.batches.append(len(texts))
        return np.array([[float(text.strip("x") or 0), 0.0, -1.0] for text in texts])


@pytest.fixture(scope="module")
def ask(finished):
    loader = Loader(ServerConfig(str(finished), device="cpu", runtime="torch"), ServerMetrics())
    loader.load()
    with running(lambda: loader.service, loader.metrics) as ask:
        yield ask


TEXTS = ["my cat and my dog", "red and blue", "apple plum pear", "?"]


def _by_label(scores):
    return {entry["label"]: entry["score"] for entry in scores}


def _matches(scores, expected):
    assert [entry["label"] for entry in scores] == [entry["label"] for entry in expected]
    assert [entry["score"] for entry in scores] == pytest.approx([entry["score"] for entry in expected], abs=1e-5)


# -- platforms -----------------------------------------------------------------------------------------------------


def test_sagemaker_asks_for_ping_and_invocations(ask):
    assert ask("/ping")[:2] == (200, {"status": "ready"})
    for body in ({"inputs": TEXTS}, {"inputs": TEXTS[0], "parameters": {"top_k": None}}):
        assert ask("/invocations", body)[:2] == ask("/", body)[:2]
    blank, empty = (ask("/invocations", {"inputs": text})[:2] for text in (" ", ""))
    assert blank[0] == 422
    assert empty == blank
    with running(lambda: None, token="sesame") as starting:
        assert starting("/ping")[0] == 503  # the model is loading
        assert starting("/invocations", {"inputs": "a"})[0] == 401


def test_classify_follows_vllm(ask, classifier):
    expected = classifier.predict_proba(TEXTS)
    status, answer, _ = ask("/classify", {"model": "any", "input": TEXTS})
    assert status == 200
    assert answer["object"] == "list"
    assert answer["id"] != ask("/classify", {"input": TEXTS})[1]["id"]
    assert answer["model"] == ask("/info")[1]["model"]
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] == sum(classifier.count_tokens(TEXTS))
    assert [entry["index"] for entry in answer["data"]] == list(range(len(TEXTS)))
    for entry, row in zip(answer["data"], expected, strict=True):
        assert entry["probs"] == pytest.approx(row.tolist(), abs=1e-6)
        assert entry["label"] == classifier.labels.texts[row.argmax()]
        assert entry["num_classes"] == len(row)
    assert len(ask("/classify", {"input": TEXTS[0]})[1]["data"]) == 1
    status, answer, _ = ask("/classify", {"input": ["a", "cat " * 300]})
    assert (status, answer["error"][:9]) == (413, "input[1]:")
    assert ask("/classify", {"input": ["a", " "]})[1]["error"].startswith("input[1]: ")


@pytest.mark.parametrize("routes", [("/h/1", "/v1/endpoints/1:predict"), ("/health", "/predict")])
def test_vertex_names_its_routes(routes, ask, finished):
    health, predict = routes
    service = None
    with running(lambda: service, vertex=VertexRoutes(health, predict), token="sesame") as vertex:
        assert vertex(health)[0] == 503  # the model is loading
        loader = Loader(ServerConfig(str(finished), device="cpu", runtime="torch"), ServerMetrics())
        loader.load()
        service = loader.service
        assert vertex(health)[:2] == (200, {"status": "ready"})
        assert vertex(predict, {"instances": TEXTS})[0] == 401
        sesame = {"X-API-Key": "sesame"}
        status, answer, _ = vertex(predict, {"instances": TEXTS}, sesame)
        assert (status, answer) == (200, {"predictions": ask("/", {"inputs": TEXTS})[1]})
        parameters = {"top_k": 2}
        answer = vertex(predict, {"instances": TEXTS[:1], "parameters": parameters}, sesame)[1]
        assert answer["predictions"] == ask("/", {"inputs": TEXTS[:1], "parameters": parameters})[1]
        for instances in ([], ["a", " "], "a"):
            status, answer, _ = vertex(predict, {"instances": instances}, sesame)
            assert (status, answer["error"][:9]) == (422, "instances")


def test_the_compute_type_names_device_and_runtime(ask):
    assert ask("/predict", {"inputs": "a"})[2]["x-compute-type"] == "cpu+torch"


# -- formats -------------------------------------------------------------------------------------------------------


def test_a_sigmoid_applies_to_a_single_label_but_not_to_a_number():
    label = SimpleNamespace(task=get_task("multi-label"), labels=Labels((0,), ("toxic",)))
    parameters = Parameters(function_to_apply="sigmoid")
    assert _rank(np.zeros((1, 1)), label, parameters) == [{"label": "toxic", "score": 0.5}]
    label.task = get_task("regression")
    with pytest.raises(RequestError):
        _rank(np.zeros((1, 1)), label, parameters)


@pytest.mark.parametrize("function", [None, "softmax", "sigmoid", "none"])
@pytest.mark.parametrize("top_k", ["absent", None, 1, 2, 9])
def test_the_root_answers_as_pipeline_does(function, top_k, ask, finished):
    from transformers import pipeline

    piped = pipeline("text-classification", str(finished / "model"), device="cpu")
    given = {} if function is None else {"function_to_apply": function}
    given |= {} if top_k == "absent" else {"top_k": top_k}
    for inputs in (TEXTS[0], TEXTS, TEXTS[:1]):
        expected = piped(inputs, truncation=True, **given)
        status, answer, _ = ask("/", {"inputs": inputs, "parameters": given})
        assert status == 200
        flat = (
            [[e] if isinstance(e, dict) else e for e in expected] if top_k is None or inputs != TEXTS[0] else [expected]
        )
        ours = [[e] if isinstance(e, dict) else e for e in answer] if top_k is None or inputs != TEXTS[0] else [answer]
        assert np.shape(answer) == np.shape(expected)
        for a, b in zip(ours, flat, strict=True):
            _matches(a, b)


def test_predict_follows_text_embeddings_inference(ask, classifier):
    expected = classifier.predict_proba(TEXTS)
    status, answer, headers = ask("/predict", {"inputs": TEXTS[0]})
    assert status == 200
    assert _by_label(answer) == pytest.approx(dict(zip(classifier.labels.texts, expected[0], strict=True)), abs=1e-6)
    assert [e["score"] for e in answer] == sorted((e["score"] for e in answer), reverse=True)
    for name in ("compute-type", "compute-time", "compute-characters", "compute-tokens", "total-time", "queue-time"):
        assert f"x-{name}" in headers
    assert int(headers["x-compute-characters"]) == len(TEXTS[0])
    status, answer, _ = ask("/predict", {"inputs": [[text] for text in TEXTS]})
    assert status == 200
    for scores, row in zip(answer, expected, strict=True):
        assert _by_label(scores) == pytest.approx(dict(zip(classifier.labels.texts, row, strict=True)), abs=1e-6)
    status, raw, _ = ask("/predict", {"inputs": TEXTS[0], "raw_scores": True})
    logits = classifier.logits_of(classifier.encode(TEXTS[:1]))[0]
    assert _by_label(raw) == pytest.approx(dict(zip(classifier.labels.texts, logits, strict=True)), abs=1e-5)


@pytest.mark.parametrize("inputs", [["a", "b"], ["a"], ["a", "b", "c"], [["a", "b"]]])
def test_a_flat_list_is_refused_by_predict(inputs, ask):
    status, answer, _ = ask("/predict", {"inputs": inputs})
    assert status == 422
    assert answer["error_type"] == "Validation"
    assert answer["error"].startswith("inputs")
    if inputs[0] == "a":
        assert ask("/", {"inputs": inputs})[0] == 200


@pytest.mark.parametrize(
    ("inputs", "place"),
    [
        ([["a"], ["b"]], "inputs[0]: "),
        ([["a", 5]], "inputs[0]: "),
        (["a", 5], "inputs[1]: "),
        (["a", " "], "inputs[1]: "),
    ],
)
def test_an_invalid_text_is_named_by_its_position(inputs, place, ask):
    status, answer, _ = ask("/", {"inputs": inputs})
    assert status == 422
    assert answer["error"].startswith(place)


def test_truncated_texts_are_reported(ask, classifier):
    long = "cat " * 300 + "red blue green"
    status, answer, _ = ask("/predict", {"inputs": [["a"], [long]]})
    assert status == 413
    assert answer["error"].startswith("inputs[1]: ")
    assert str(classifier.max_length) in answer["error"]
    end = "cat " * (classifier.max_length - 5) + "red blue green"
    assert classifier.count_tokens([end])[0] == classifier.max_length
    for direction, kept in (("Right", long), ("left", end)):
        body = {"inputs": [["a"], [long]], "truncate": True, "truncation_direction": direction}
        status, answer, headers = ask("/predict", body)
        assert status == 200
        assert headers["x-truncated-texts"] == "1"
        expected = classifier.predict_proba([kept])[0]
        assert _by_label(answer[1]) == pytest.approx(
            dict(zip(classifier.labels.texts, expected, strict=True)), abs=1e-6
        )
    assert ask("/", {"inputs": long})[2]["x-truncated-texts"] == "0"
    assert "x-truncated-texts" not in ask("/", {"inputs": "cat"})[2]


@pytest.mark.parametrize("direction", ["left", "right"])
def test_a_request_is_tokenized_once(direction, ask, tokenized):
    texts = [*TEXTS, "cat " * 300]
    body = {"inputs": [[text] for text in texts], "truncate": True, "truncation_direction": direction}
    assert ask("/predict", body)[0] == 200
    assert ask("/", {"inputs": "red"})[0] == 200
    assert [text.strip() for text in tokenized] == [text.strip() for text in (*texts, "red")]


def test_explanations_depend_on_the_runtime(ask, finished):
    pytest.importorskip("captum", reason="the extra explain is not installed")
    status, answer, _ = ask("/explain", {"inputs": "my cat"})
    assert status == 200
    assert [word["text"] for word in answer["words"]] == ["my", "cat"]
    assert ask("/info")[1]["explains"]
    batcher = Batcher(Fake(), max_wait=1)
    facts = {"model": "x", "task": "single-label", "primary": "macro_f1", "labels": [], "runtime": "torch"}
    with running(lambda: Service(batcher, facts)) as other:
        assert other("/explain", {"inputs": "1"})[0] == 404
        assert not other("/info")[1]["explains"]
    batcher.close()


def test_an_explanation_has_a_deadline_and_its_cost_counts():
    batcher, deadlines, started, finish = Batcher(Fake(), max_wait=0.5), [], threading.Event(), threading.Event()

    def explain(classifier, texts, deadline):
        deadlines.append(deadline - time.perf_counter())
        started.set()
        finish.wait(20)
        raise OutOfTimeError

    limits = Limits(seconds=20)
    with running(lambda: Service(batcher, {}, explain), limits=limits) as ask, ThreadPoolExecutor(1) as pool:
        explained = pool.submit(ask, "/explain", {"inputs": "1" * 1000})
        assert started.wait(20)
        status, _, headers = ask("/predict", {"inputs": "1"})
        finish.set()
        assert (status, int(headers["Retry-After"]) > 1) == (429, True)
        assert explained.result()[0] == 503
        assert ask("/predict", {"inputs": "1"})[0] == 200
        assert 10 < deadlines[0] <= 20
    batcher.close()


def test_info_ready_and_health(ask, finished):
    status, info, _ = ask("/info")
    assert status == 200
    assert [entry["label"] for entry in info["labels"]] == [10, 20, 30]
    assert info["test"]["macro_f1"] == bs.Run(finished).metrics["splits"]["test"]["metrics"]["macro_f1"]
    assert ask("/health")[:2] == (200, {"status": "UP"})
    assert ask("/ready")[:2] == (200, {"status": "ready"})
    assert "Label" in ask("/ui")[1]
    with running(lambda: None) as loading:
        assert loading("/health")[0] == 200
        assert loading("/ready")[0] == 503
        assert loading("/predict", {"inputs": "a"})[0] == 503
    batcher = Batcher(Fake(), max_wait=1)
    with running(lambda: Service(batcher, {}, draining=True)) as ending:
        assert ending("/ready")[0] == 503
        assert ending("/predict", {"inputs": "1"})[0] == 200
    batcher.close()


def test_info_has_the_keys_of_its_description():
    model = {"model": "m", "task": "single-label", "primary": "macro_f1", "labels": [{"label": 0, "label_text": "a"}]}
    model |= {"runtime": "torch"}
    run = {"base_model": "b", "trained": None, "test": {"texts": 3, "macro_f1": {"value": 1.0, "interval": None}}}
    rest = {"version": bs.__version__, "drift": None, "explains": False, "max_length": 1000}
    rest |= {"columns": [*Fake.template.columns], "long": Fake.long}
    rest |= {"limits": {"body": Limits.body, "texts": Limits.texts, "characters": Limits.characters}}
    batcher = Batcher(Fake(), max_wait=1)
    service = Service(batcher, model)
    with running(lambda: service) as ask:
        assert json.dumps(ask("/info")[1]) == json.dumps(model | rest)  # a model folder: no key of a run
        service.info = model | run
        assert json.dumps(ask("/info")[1]) == json.dumps(model | run | rest)
        described = ask("/openapi.json")[1]["components"]["schemas"]["Info"]["properties"]
    assert [*described] == [*model, *run, *rest]
    assert all(key["description"] for key in described.values())
    batcher.close()


def test_metrics_count_requests_and_texts(ask):
    def value(name):
        lines = ask("/metrics")[1].splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    names = "bertsmith_labels_total", "bertsmith_confidence_count"
    counted = [value(name) for name in names]
    before = value('bertsmith_requests_total{path="/predict",status="200"}'), value("bertsmith_texts_total")
    ask("/predict", {"inputs": [["cat"], ["dog"]]})
    after = value('bertsmith_requests_total{path="/predict",status="200"}'), value("bertsmith_texts_total")
    assert (after[0] - before[0], after[1] - before[1]) == (1, 2)
    assert [value(name) - n for name, n in zip(names, counted, strict=True)] == [2, 2]
    ask("/made/up/path")
    assert 'path="/made' not in ask("/metrics")[1]


def _watch(shares, n=400, seed=0):
    rng = np.random.default_rng(seed)
    decided = rng.choice(3, n, p=shares)
    confidence = np.clip(0.9 - 0.15 * decided + rng.normal(0, 0.05, n), 0.4, 1)[:, None]
    return np.where(np.arange(3) == decided[:, None], confidence, (1 - confidence) / 2)


def test_texts_like_the_held_out_ones_do_not_differ():
    alarms = []
    for seed in range(20):
        watch = DriftWatch(get_task(), _watch([0.5, 0.3, 0.2], seed=seed))
        assert not watch.observe(_watch([0.5, 0.3, 0.2], WINDOW - 1, seed=seed + 100))
        assert watch.to_dict() is None
        assert watch.observe(_watch([0.5, 0.3, 0.2], 1, seed=seed + 200))
        alarms.append(watch.differs)
    assert np.mean(alarms) < 0.1


def test_other_labels_and_confidences_differ_until_they_are_as_before():
    watch = DriftWatch(get_task(), _watch([0.5, 0.3, 0.2]))
    watch.observe(_watch([0.2, 0.3, 0.5], WINDOW, seed=1))
    assert watch.differs
    assert {name: entry["differs"] for name, entry in watch.to_dict()["properties"].items()} == {
        "predicted labels": True,
        "confidence": True,
    }
    watch.observe(_watch([0.5, 0.3, 0.2], WINDOW, seed=2))
    assert not watch.differs


@pytest.mark.parametrize("name", ["multi-label", "regression"])
def test_several_labels_and_numbers_are_compared_too(name):
    def scores(seed, n, rate):
        rng = np.random.default_rng(seed)
        return rng.normal(5 * rate, 1, (n, 1)) if name == "regression" else rng.random((n, 3)) < rate

    watch = DriftWatch(get_task(name), scores(0, 400, 0.2))
    assert watch.observe(scores(1, WINDOW, 0.2))
    assert not watch.differs
    watch.observe(scores(2, WINDOW, 0.4))
    assert watch.differs
    assert set(watch.latest) == ({"predicted number"} if name == "regression" else {"predicted labels", "confidence"})


def test_the_server_warns_of_other_texts(finished, monkeypatch, caplog):
    monkeypatch.setattr("bertsmith.serving.drift.WINDOW", 40)
    monkeypatch.setattr("bertsmith.serving.drift.FEWEST", 10)
    loader = Loader(ServerConfig(str(finished), device="cpu", runtime="torch"), ServerMetrics())
    loader.load()
    with running(lambda: loader.service, loader.metrics) as ask, caplog.at_level("INFO", "bertsmith.serving"):
        assert ask("/info")[1]["drift"] is None
        ask("/predict", {"inputs": [[f"apple plum {i}"] for i in range(40)]})
        drift = ask("/info")[1]["drift"]
        lines = ask("/metrics")[1].splitlines()
        loader.reload()
        reloaded = ask("/metrics")[1].splitlines()
    assert 'bertsmith_drift_distance{property="predicted labels"} 0.0' in reloaded
    assert 'bertsmith_drift_threshold{property="predicted labels"} 0.0' in reloaded
    assert drift["differs"]
    entry = drift["properties"]["predicted labels"]
    assert entry["distance"] > entry["threshold"]
    assert f'bertsmith_drift_distance{{property="predicted labels"}} {entry["distance"]}' in lines
    logged = [json.loads(record.message) for record in caplog.records if '"drift"' in record.message]
    assert logged == [{"time": logged[0]["time"], "event": "drift", **drift}]


def test_another_content_type_is_refused(ask):
    for said in ("application/x-www-form-urlencoded", "text/plain"):
        status, answer, _ = ask("/predict", {"inputs": "cat"}, {"Content-Type": said})
        assert status == 415
        assert said in answer["error"]
        assert "Content-Type: application/json" in answer["error"]
    for said in ("application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.api+json"):
        assert ask("/predict", {"inputs": "cat"}, {"Content-Type": said})[0] == 200


def test_texts_that_normalise_to_nothing_are_refused():
    from pydantic import TypeAdapter, ValidationError

    from bertsmith.data.texts import normalise
    from bertsmith.serving.schemas import Text

    adapter = TypeAdapter(Text)
    for code in (*range(0x3100), *range(0xFE00, 0x10000)):
        try:
            adapter.validate_python(chr(code))
        except ValidationError:
            assert not normalise(chr(code)), hex(code)
        else:
            assert normalise(chr(code)), hex(code)


def test_invalid_json_is_reported_with_its_position(ask):
    status, answer, _ = ask("/", b"{'inputs': 'cat'}")
    assert (status, answer["error_type"]) == (400, "Validation")
    assert "character 1: " in answer["error"]
    assert ask("/", b'{"inputs": "\xff"}')[0] == 400
    for deep in (b"[" * 5000 + b"]" * 5000, b"[" * 5000):
        status, answer, _ = ask("/", deep)
        assert status in (400, 422)  # from Python 3.13 on, the first is valid JSON
        assert "UTF-8" not in answer["error"]
    status, answer, _ = ask("/", b'"cat"')
    assert status == 422
    assert '{"inputs": "a text"}' in answer["error"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/", b"{", 400),
        ("/", b"[1]", 422),
        ("/", b"{}", 422),
        ("/", b'{"inputs": "\xff"}', 400),
        *(("/", {"inputs": inputs}, 422) for inputs in (None, 5, [], {}, " ", [["a"]], {"body": "a"}, {"text": ["a"]})),
        ("/", {"inputs": {"text": "a", "text_pair": "b"}}, 422),
        ("/", {"inputs": ["a"] * 1001}, 422),
        ("/", {"inputs": "a" * 100_001}, 422),
        ("/", {"inputs": "a", "parameters": {"top_k": 0}}, 422),
        ("/", {"inputs": "a", "parameters": {"top_k": "2"}}, 422),
        ("/predict", {"inputs": "a", "truncate": "yes"}, 422),
        ("/predict", {"inputs": "a", "raw_scores": 1}, 422),
        ("/predict", {"inputs": ["a", "b"]}, 422),
        ("/predict", {"inputs": ["a"]}, 422),
        ("/predict", {"inputs": "cat " * 300}, 413),
        ("/predict", {"inputs": "a", "truncation_direction": "up"}, 422),
        ("/explain", {"inputs": [["a"], ["b"]]}, 422),
        ("/predict", None, 405),
        ("/nowhere", None, 404),
    ],
)
def test_a_refusal_says_what_is_wrong_and_what_to_do(path, body, status, ask):
    found, answer, _ = ask(path, body)
    assert found == status
    wrong, _, remedy = answer["error"].rpartition(". ")
    assert len(wrong) > 10
    assert remedy[0].isupper() or remedy.startswith("/docs")
    assert remedy.endswith(".")


def test_an_unknown_parameter_is_refused(ask):
    for path, body, place in (
        ("/", {"inputs": "cat", "top_k": 2}, "top_k"),
        ("/", {"inputs": "cat", "parameters": {"topk": 2}}, "parameters.topk"),
        ("/predict", {"inputs": "cat", "truncat": True}, "truncat"),
    ):
        status, answer, _ = ask(path, body)
        assert status == 422
        assert answer["error"].startswith(f"{place}: ")


def test_the_docs_page_loads_offline(ask):
    status, page, _ = ask("/docs")
    assert status == 200
    assert "://" not in page.replace(f"http://127.0.0.1:{ask.port}", "")
    parts = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert any(part.endswith(".js") for part in parts)
    for part in parts:
        assert ask(part)[0] == 200


# -- limits --------------------------------------------------------------------------------------------------------


def test_private_paths_need_the_token():
    batcher = Batcher(Fake(), max_wait=1)
    with running(lambda: Service(batcher, {}), token="sesame") as ask:
        for path in ("/info", "/metrics", "/nothing", "/static-offline-docs", "/redoc"):
            assert ask(path)[0] == 401
        assert ask("/predict", {"inputs": "1"})[0] == 401
        for headers in (
            {"Authorization": "Bearer sesame"},
            {"X-API-Key": "sesame"},
            {"Authorization": "bearer sesame"},
            {"Authorization": f"Basic {base64.b64encode(b'anyone:sesame').decode()}"},
        ):
            assert ask("/predict", {"inputs": "1"}, headers)[0] == 200
        for headers in ({"Authorization": "Bearer sesam"}, {"X-API-Key": ""}, {"Authorization": "Basic sesame!"}):
            status, answer, said = ask("/predict", {"inputs": "1"}, headers)
            assert status == 401
            assert said["WWW-Authenticate"] == "Bearer"
            assert "sesame" not in str(answer)
        for path in ("/health", "/ready", "/ui", "/docs", "/static-offline-docs/swagger-ui.css"):
            assert ask(path)[0] == 200
        described = ask("/openapi.json")[1]
        assert {"http", "apiKey"} == {scheme["type"] for scheme in described["components"]["securitySchemes"].values()}
        assert [
            path for path, ways in described["paths"].items() if any("security" in way for way in ways.values())
        ] == ["/predict", "/", "/invocations", "/explain", "/info", "/metrics", "/setup", "/versions", "/classify"]
    batcher.close()


@pytest.mark.parametrize(
    ("host", "token", "status"), [("127.0.0.1", None, 401), ("0.0.0.0", None, 200), ("127.0.0.1", "sesame", 200)]
)
def test_a_local_server_without_a_token_answers_only_its_own_names(host, token, status):
    """A page of another site can give its name the address 127.0.0.1, but sends its name."""
    app = _app(ServerConfig("run", host=host, token=token), lambda: None, ServerMetrics())
    client = TestClient(app, headers={"X-API-Key": "sesame"})
    assert client.get("/metrics", headers={"Host": "evil.example"}).status_code == status
    assert client.get("/metrics", headers={"Host": "localhost:8080"}).status_code == 200
    assert client.get("/health", headers={"Host": "evil.example"}).status_code == 200


def test_the_names_of_this_machine_in_the_header_host():
    assert all(map(names_this_machine, ("127.0.0.1", "127.0.0.1:80", "localhost:9", "LocalHost", "[::1]:80", "[::1]")))
    others = ("a.example", "a.example:80", "localhost.a.example", "127.0.0.1.a.example", "0.0.0.0", "localhost:x", "")
    assert not any(map(names_this_machine, others))


def test_a_path_without_token_takes_only_short_bodies(caplog):
    caplog.set_level("INFO", "bertsmith.serving")
    batcher = Batcher(Fake(), max_wait=1)
    with running(lambda: Service(batcher, {}), limits=Limits(body=9_000_000), token="sesame") as ask:
        event = {"action": "ANNOTATION_CREATED", "task": "x" * 900_000}
        assert ask("/webhook", event)[0] == 204
        assert ask("/webhook", {**event, "more": "x" * 4_000_000})[0] == 413
        assert ask("/predict", {"inputs": [["secret", 1]]}, {"X-API-Key": "sesame"})[0] == 422
    assert "secret" not in caplog.text  # the log has no texts
    batcher.close()


def test_requests_above_the_limits_are_refused():
    batcher = Batcher(Fake(), max_wait=1)
    with running(lambda: Service(batcher, {}), limits=Limits(body=10_000, texts=3, characters=100)) as ask:
        for _ in range(20):  # the client has sent the whole body, so the response always arrives
            status, answer, _ = ask("/predict", {"inputs": "1" * 90_000})
            assert status == 413
            assert "10,000 bytes" in answer["error"]
        status, answer, _ = ask("/", {"inputs": ["1"] * 4})
        assert status == 422
        assert re.match("inputs: 4 .* 3", answer["error"])
        status, answer, _ = ask("/", {"inputs": ["1", "2" * 101]})
        assert status == 422
        assert re.match(r"inputs\[1\]: 101 .* 100", answer["error"])
        connection = http.client.HTTPConnection("127.0.0.1", ask.port)  # chunked: the headers do not state its length
        connection.request("POST", "/", iter([b"x" * 4000] * 5), {"Transfer-Encoding": "chunked"}, encode_chunked=True)
        assert connection.getresponse().status == 413
        connection.close()
        assert ask("/predict", {"inputs": "1"})[0] == 200
    batcher.close()


def test_server_survives_1000_hostile_bodies(ask):
    rng = random.Random(0)
    pieces = [
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b"inputs",
        b":",
        b",",
        b"null",
        b"1e999",
        b"-",
        b"\\ud800",
        b"\x00",
        b"\xff",
    ]
    bodies = [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"inputs":' * 20_000,
        b'{"inputs": "\\ud800"}',
        b'{"inputs": ["\\udfff\\ud800"]}',
        b'{"inputs": "\\u0000"}',
        b'{"inputs": NaN}',
        b'{"inputs": 1' + b"0" * 10_000 + b"}",
        b'{"inputs": "a", "parameters": {"top_k": -1}}',
        b'{"inputs": "a", "parameters": {"top_k": 1e400}}',
        b'{"inputs": "a", "parameters": []}',
        b'{"inputs": {"a": "b"}}',
        b'{"inputs": [[[["a"]]]]}',
        b'{"inputs": []}',
        b'{"inputs": ""}',
        b'{"inputs": "  "}',
        b'{"inputs": [null]}',
        b'{"inputs": true}',
        "grüße".encode("utf-16"),
        b"\xef\xbb\xbf{}",
    ]
    meant = len(bodies)
    while len(bodies) < 1000:
        bodies.append(b"".join(rng.choices(pieces, k=rng.randint(1, 40))))
    for i, body in enumerate(bodies):
        status, answer, _ = ask("/predict" if i >= meant and i % 2 else "/", body)
        # A lone surrogate or NUL may get a label: it is a text once the surrogate is replaced.
        assert 400 <= status < 500 or (status == 200 and b"\\u" in body), (body[:80], status, answer)
        if status != 200:
            assert set(answer) == {"error", "error_type"}
    assert ask("/predict", {"inputs": "cat"})[0] == 200


def test_wrong_methods_paths_and_values_are_refused(ask):
    assert ask("/predict", method="GET")[0] == 405
    assert ask("/nothing")[0] == 404
    status, answer, _ = ask("/", {"parameters": {"top_k": 0}, "inputs": [1, "a"]})
    assert status == 422
    assert "inputs[0]: " in answer["error"]
    assert "parameters.top_k: " in answer["error"]
    for inputs, place in ((" ", "inputs: "), ([["a"], [" "]], "inputs[1][0]: "), ([], "inputs: ")):
        status, answer, _ = ask("/predict", {"inputs": inputs})
        assert status == 422
        assert answer["error"].startswith(place)
    assert ask("/health", method="HEAD")[0] == 200  # some monitors send HEAD


# -- batches -------------------------------------------------------------------------------------------------------


def test_waiting_requests_share_batches():
    fake = Fake(seconds=0.05)
    batcher = Batcher(fake, max_wait=60)
    with running(lambda: Service(batcher, {})) as ask, ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda i: ask("/predict", {"inputs": str(i % 7), "raw_scores": True}), range(120)))
    for i, (status, answer, _) in enumerate(answers):
        assert status == 200
        assert _by_label(answer)["a"] == i % 7
    assert sum(fake.batches) == 120
    assert len(fake.batches) < 40
    batcher.close()


def test_a_long_request_is_split_into_batches():
    fake = Fake(seconds=0.02)
    batcher = Batcher(fake, max_wait=60)
    text = "1" + "x" * 499
    with running(lambda: Service(batcher, {}), limits=Limits(texts=100)) as ask:
        status, answer, _ = ask("/predict", {"inputs": [[text]] * 50, "raw_scores": True})
    assert status == 200
    assert all(_by_label(scores)["a"] == 1 for scores in answer)
    assert len(fake.batches) > 5
    assert sum(fake.batches) == 50
    batcher.close()


def test_a_long_request_does_not_delay_other_requests():
    fake = Fake(seconds=0.05)
    batcher = Batcher(fake, max_wait=1.0)
    text = "1" + "x" * 499
    with running(lambda: Service(batcher, {}), limits=Limits(texts=100)) as ask, ThreadPoolExecutor(8) as pool:
        long = pool.submit(ask, "/predict", {"inputs": [[text]] * 60})
        time.sleep(0.3)
        began = time.perf_counter()
        assert [ask("/predict", {"inputs": "2"})[0] for _ in range(3)] == [200] * 3
        assert time.perf_counter() - began < 1.5
        assert not long.done()
        assert long.result()[0] == 200
    batcher.close()


def test_a_full_queue_refuses_requests_at_once_with_retry_after():
    fake = Fake(seconds=0.3)
    batcher = Batcher(fake, max_wait=0.01)
    began, slowest = time.perf_counter(), []
    with running(lambda: Service(batcher, {})) as ask, ThreadPoolExecutor(30) as pool:

        def one(_):
            start = time.perf_counter()
            found = ask("/predict", {"inputs": "1" + "x" * 900})
            if found[0] == 429:
                slowest.append(time.perf_counter() - start)
            return found

        answers = list(pool.map(one, range(30)))
        statuses = [status for status, *_ in answers]
        assert set(statuses) == {200, 429}
        refused = next(a for a in answers if a[0] == 429)
        assert int(refused[2]["Retry-After"]) >= 1
        assert refused[1]["error_type"] == "Overloaded"
        assert time.perf_counter() - began < 10
        time.sleep(0.7)
        assert ask("/predict", {"inputs": "1"})[0] == 200
        until = time.perf_counter() + 5
        while batcher.queued_tokens and time.perf_counter() < until:  # the response is sent before it is counted
            time.sleep(0.01)
        assert batcher.queued_tokens == 0
    batcher.close()


def test_a_failed_request_does_not_affect_other_requests():
    batcher = Batcher(Fake(), max_wait=10)
    with running(lambda: Service(batcher, {})) as ask:
        status, answer, _ = ask("/predict", {"inputs": "fail"})
        assert (status, answer["error_type"]) == (500, "Backend")
        assert "secret detail" not in answer["error"]
        assert ask("/predict", {"inputs": "1"})[0] == 200
    batcher.close()


def test_the_tokens_in_the_queue_are_measured_at_every_change():
    measured = []
    batcher = Batcher(Fake(0.2), max_wait=9, on_queue=measured.append)
    with running(lambda: Service(batcher, {}), limits=Limits(seconds=0.05)) as ask:
        assert ask("/predict", {"inputs": "123"})[0] == 503
        batcher.close()
    assert measured == [3, 0]


def test_a_cancelled_request_counts_no_tokens():
    class Paused(Fake):
        def logits_of(self, tokens, progress=None):
            resume.wait()
            return super().logits_of(tokens)

    batches, fake, resume = [], Paused(), threading.Event()
    batcher = Batcher(fake, max_wait=9, on_batch=lambda texts, tokens, seconds: batches.append((texts, tokens)))

    async def ask_three():
        tasks = []
        for text in ("1", "2" + "x" * 300, "3"):
            tokens = fake.read(fake.encode(fake.template.read([text]), truncate=False))
            tasks.append(asyncio.create_task(batcher.logits(fake, tokens)))
            await asyncio.sleep(0.01)
        tasks[1].cancel()
        await asyncio.sleep(0.01)
        resume.set()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(ask_three())
    batcher.close()
    assert batches == [(1, 1), (1, 1)]


def test_a_slow_request_times_out():
    batcher = Batcher(Fake(seconds=1.0), max_wait=10)
    with running(lambda: Service(batcher, {}), limits=Limits(seconds=0.2)) as ask:
        status, answer, _ = ask("/predict", {"inputs": "1"})
        assert (status, answer["error_type"]) == (503, "Unhealthy")
        assert "0.2 s" in answer["error"]
    batcher.close()


def test_the_classifier_can_be_replaced_under_load():
    class Other(Fake):
        labels = Labels((0, 1), ("new", "other"))

        def logits_of(self, tokens, progress=None):
            return super().logits_of(tokens)[:, :2]

    batcher = Batcher(Fake(seconds=0.01), max_wait=60)
    with running(lambda: Service(batcher, {})) as ask, ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(ask, "/predict", {"inputs": "5"}) for _ in range(60)]
        time.sleep(0.1)
        batcher.classifier = Other(seconds=0.01)
        answers = [future.result() for future in futures] + [ask("/predict", {"inputs": "5"})]
    seen = {tuple(sorted(_by_label(answer))) for status, answer, _ in answers if status == 200}
    assert all(status == 200 for status, *_ in answers)
    assert seen <= {("a", "b", "c"), ("new", "other")}
    assert _by_label(answers[-1][1]).keys() == {"new", "other"}
    batcher.close()


def test_the_batcher_refuses_by_the_measured_speed():
    async def main():
        fake = Fake(seconds=0.1)
        batcher = Batcher(fake, max_wait=0.2)
        tokens = fake.encode(["1" + "x" * 899])
        first = asyncio.create_task(batcher.logits(fake, tokens))
        await asyncio.sleep(0.02)
        with pytest.raises(QueueFullError) as caught:
            await batcher.logits(fake, tokens)
        assert caught.value.seconds >= 1
        logits, waited = await first
        assert logits.tolist() == [[1.0, 0.0, -1.0]]
        assert waited < 0.1
        batcher.close()

    asyncio.run(main())


class Clock(Fake):
    """A classifier on a clock of its own: 20 ms for a batch, and 0.1 ms for a token; it waits for `free`."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.now, self.free = 0.0, threading.Event()
        self.free.set()
        monkeypatch.setattr(batcher_module, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def logits_of(self, tokens, progress=None):
        assert self.free.wait(60)
        self.now += 0.02 + 1e-4 * float(tokens.truncated_lengths.sum())
        return super().logits_of(tokens)


@pytest.mark.parametrize("before", [0, 300])
def test_light_traffic_does_not_make_a_burst_look_too_long(monkeypatch, before):
    async def main():
        fake = Clock(monkeypatch)
        batcher = Batcher(fake, max_wait=0.5)
        one, many = fake.encode(["1" + "x" * 9]), fake.encode(["1" + "x" * 199])
        for _ in range(before):
            await batcher.logits(fake, one)

        async def burst(tokens, times):
            fake.free.clear()
            waiting = [asyncio.create_task(batcher.logits(fake, tokens)) for _ in range(times)]
            await asyncio.sleep(0.05)
            fake.free.set()
            found = await asyncio.gather(*waiting, return_exceptions=True)
            return sum(isinstance(result, QueueFullError) for result in found)

        assert await burst(one, 60) == 0  # 600 tokens in at most three batches: 0.12 s
        assert await burst(many, 60) > 0  # 12,000 tokens: at least 1.2 s
        for _ in range(before):
            await batcher.logits(fake, one)
        assert await burst(many, 16) == 0  # 3,200 tokens: 0.4 s
        assert await burst(many, 60) > 20
        batcher.close()

    asyncio.run(main())


def test_the_seconds_of_a_batch_have_a_fixed_part():
    learned = BatchSeconds()
    rng = np.random.default_rng(0)
    for tokens in rng.integers(5, 500, 200):
        learned.observe(int(tokens), 0.02 + 1e-4 * tokens)
    assert (learned.fixed, learned.per_token) == pytest.approx((0.02, 1e-4), rel=0.02)
    for tokens in rng.integers(8, 12, 500):  # tell both parts no longer apart
        learned.observe(int(tokens), 0.04 + 1e-4 * tokens + rng.normal(scale=1e-3))
    assert learned.fixed == pytest.approx(0.04, rel=0.05)
    assert learned.per_token == pytest.approx(1e-4, abs=5e-5)
    learned.observe(10, 60.0)  # a pause of the machine
    assert learned.fixed < 0.08
    for tokens in (1, 9000, 1):
        learned.observe(tokens, 0.001)
        assert learned.fixed >= 0
        assert learned.per_token >= 0


# -- the server ----------------------------------------------------------------------------------------------------


def test_the_log_contains_no_text(ask, caplog):
    secret = "sheep near zebra"
    logger = __import__("logging").getLogger("bertsmith.serving")
    logger.propagate = True
    with caplog.at_level("INFO", logger="bertsmith.serving"):
        ask("/predict", {"inputs": secret})
        ask("/predict", {"inputs": [secret, secret]})
        ask("/", {"inputs": secret * 9000})
        while len(caplog.records) < 3:  # the line is written after the answer
            time.sleep(0.01)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) >= 3
    assert not any("zebra" in line for line in lines)
    entry = json.loads(lines[0])
    assert (entry["path"], entry["status"], entry["texts"]) == ("/predict", 200, 1)


def test_responses_match_the_openapi_description(ask):
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    from hypothesis import HealthCheck, settings

    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{ask.port}/openapi.json")
    tried = 0
    for operation in schema.get_all_operations():
        case_of = operation.ok()

        @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
        @__import__("hypothesis").given(case=case_of.as_strategy())
        def check(case):
            response = case.call()
            # A schema cannot say how many tokens a text has, and which columns and choices fit the model.
            refused = "the model reads|is empty|^schema: it is not|^label_config: it is not"
            beyond = response.status_code == 422 and re.search(refused, response.json()["error"])
            if response.status_code != 413 and not beyond:
                case.validate_response(response)

        check()
        tried += 1
    assert tried >= 8


def test_an_address_in_use_is_an_error():
    taken = listen("127.0.0.1", 0)
    port = taken.getsockname()[1]
    with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}"):
        listen("127.0.0.1", port)
    taken.close()
    with pytest.raises(ConfigError, match=r"no\.such\.host\.invalid"):
        listen("no.such.host.invalid", 0)


@pytest.mark.parametrize(
    ("bound", "expected"),
    [(("127.0.0.1", 8080), "http://127.0.0.1:8080"), (("::1", 8080, 0, 0), "http://[::1]:8080")],
)
def test_the_address_of_the_log_can_be_opened(bound, expected):
    assert address_of(SimpleNamespace(getsockname=lambda: bound)) == expected


def test_responses_do_not_wait_for_more_data():
    """With Nagle's algorithm, the second packet of a response waits for an acknowledgement, which takes 40 ms."""
    options = []

    async def answer(reader, writer):
        options.append(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async def connect():
        with listen("127.0.0.1", 0) as listening:
            async with await asyncio.start_server(answer, sock=listening):
                reader, writer = await asyncio.open_connection(*listening.getsockname())
                await reader.read()
                writer.close()

    asyncio.run(connect())
    assert options == [1]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can keep connections out")
def test_a_stopping_server_resets_no_connections():
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()) as early:
        stop_accepting(listening)
        accepted, _ = listening.accept()
        with accepted:  # the server still answers earlier connections
            accepted.sendall(b"answer")
            assert early.recv(6) == b"answer"
        with pytest.raises(TimeoutError):
            socket.create_connection(listening.getsockname(), timeout=0.3)


@pytest.mark.parametrize("token", ["", " ", "schlüssel", "日", "sesame\n", " sesame", "sesame ", "\x7f"])
def test_a_token_that_a_client_cannot_send_is_refused(token):
    with pytest.raises(ConfigError, match="BERTSMITH_TOKEN"):
        read_token({"BERTSMITH_TOKEN": token})


@pytest.mark.parametrize("token", ["s", "Open: sesame!", "~" * 200, None])
def test_other_tokens_are_accepted(token):
    assert read_token({} if token is None else {"BERTSMITH_TOKEN": token}) == token


def test_serve_and_export_read_settings_from_the_environment(cli, tmp_path, monkeypatch):
    def export(run, *, long, **_):
        seen.append(long)
        raise ConfigError("the export would start here")

    seen = []
    monkeypatch.setattr("bertsmith.serving.server.serve", lambda config, _: seen.append((config.device, config.long)))
    monkeypatch.setattr("bertsmith.inference.export.export", export)
    monkeypatch.setenv("BERTSMITH_DEVICE", "mps")
    monkeypatch.setenv("BERTSMITH_LONG", "window")
    cli("serve", tmp_path)
    cli("serve", tmp_path, "--device", "cpu", "--long", "truncate")
    cli("export", tmp_path)
    assert seen == [("mps", "window"), ("cpu", "truncate"), "window"]


def test_serve_exits_with_2_on_wrong_arguments(cli, tmp_path, monkeypatch):
    code, _, err = cli("serve", tmp_path / "none")
    assert code == 2
    assert "none" in err
    monkeypatch.setenv("BERTSMITH_RUN", str(tmp_path / "elsewhere"))
    code, _, err = cli("serve")
    assert code == 2
    assert "elsewhere" in err
    for name, value in (("AIP_PREDICT_ROUTE", "predict"), ("AIP_HTTP_PORT", "99999")):
        monkeypatch.setenv(name, value)
        code, _, err = cli("serve")
        assert code == 2
        assert name in err
        monkeypatch.delenv(name)
    monkeypatch.setenv("BERTSMITH_TOKEN", "schlüssel")
    code, _, err = cli("serve", tmp_path)
    assert code == 2
    assert "BERTSMITH_TOKEN" in err
    monkeypatch.delenv("BERTSMITH_TOKEN")
    code, _, err = cli("serve", tmp_path, "--port", "99999")
    assert code == 2
    assert "--port" in err
