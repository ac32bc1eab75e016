"""The server as a machine learning backend of Label Studio."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from bertsmith.data.table import Labels
from bertsmith.data.template import Template
from bertsmith.tasks.registry import get_task

pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from bertsmith.serving.aliases import VertexRoutes
from bertsmith.serving.batcher import Batcher
from bertsmith.serving.label_studio import read_interface
from bertsmith.serving.loader import Service
from bertsmith.serving.middleware import Limits
from tests.unit.test_serving import Fake, running

INFO = {"model": "reviews", "trained": "2026-11-28T12:00:00"}
INTERFACE = """
<View> <!-- the interface of a project -->
  <Header value="Which one?"/>
  <Choices name="other" toName="review"><Choice value="yes"/><Choice value="no"/></Choices>
  <Text name="review" value="$body"/>
  <Choices name="sentiment" toName="review" choice="single">
    <Choice value="a"/><Choice value="Second" alias="b"/><Choice value="c" alias="third"/><Choice value="unsure"/>
  </Choices>
</View>"""


class Sets(Fake):
    task = get_task("multi-label")

    def logits_of(self, tokens, progress=None):
        return super().logits_of(tokens) + np.array([0.0, 2.0, 0.0])


class Pairs(Fake):
    template = Template(("question",), "answer")


@pytest.fixture
def serve():
    """Serve a classifier; return a function that sends a request."""
    opened = []

    def start(classifier, **settings):
        batcher = Batcher(classifier, max_wait=5)
        server = running(lambda: Service(batcher, INFO), **settings)
        opened.append((server, batcher))
        return server.__enter__()

    yield start
    for server, batcher in opened:
        server.__exit__(None, None, None)
        batcher.close()


def _tasks(*texts, field="body"):
    return [{"id": i, "data": {field: text, "row": i}, "annotations": []} for i, text in enumerate(texts)]


def _body(tasks, interface=INTERFACE):
    more = {"model_version": "any", "project": "1.1700000000", "params": {"login": None, "password": None}}
    return {"tasks": tasks, "label_config": interface, **more}


def _chosen(answer):
    assert {tuple(part) for entry in answer["results"] for part in entry["result"]} <= {
        ("from_name", "to_name", "type", "value")
    }
    return [[part["value"]["choices"] for part in entry["result"]] for entry in answer["results"]]


def test_tasks_get_the_choices_of_their_interface(serve):
    ask = serve(Fake())
    status, answer, _ = ask("/predict", _body(_tasks("5", "-1", " ", "-9")))
    assert status == 200
    assert _chosen(answer) == [[["a"]], [["b"]], [], [["b"]]]
    best = answer["results"][0]
    assert best["result"][0] == {
        "from_name": "sentiment",
        "to_name": "review",
        "type": "choices",
        "value": {"choices": ["a"]},
    }
    assert best["score"] == pytest.approx(ask("/predict", {"inputs": "5"})[1][0]["score"])
    assert answer["results"][2] == {"result": [], "score": None, "model_version": "reviews 2026-11-28T12:00:00"}
    assert ask("/predict", _body(_tasks("")))[1]["results"][0]["result"] == []


def test_the_answer_has_the_alias_of_a_choice(serve):
    interface = INTERFACE.replace('"a"', '"a" alias="first"')
    status, answer, _ = serve(Fake())("/predict", _body(_tasks("5"), interface))
    assert (status, _chosen(answer)) == (200, [[["first"]]])


def test_one_model_answers_a_request_even_if_another_one_replaces_it(monkeypatch):
    class Reversed(Fake):
        labels = Labels((0, 1, 2), ("c", "b", "a"))

    def replaced(*arguments):
        interface = read_interface(*arguments)
        batcher.classifier, service.info = Reversed(), {"model": "new"}
        return interface

    batcher = Batcher(Fake(), max_wait=5)
    service = Service(batcher, INFO)
    monkeypatch.setattr("bertsmith.serving.label_studio.read_interface", replaced)
    with running(lambda: service) as ask:
        answer = ask("/predict", _body(_tasks("5")))[1]
    batcher.close()
    assert _chosen(answer) == [[["a"]]]
    assert answer["results"][0]["model_version"] == "reviews 2026-11-28T12:00:00"


def test_several_labels_need_choices_that_accept_several(serve):
    ask = serve(Sets())
    status, answer, _ = ask("/setup", {"schema": INTERFACE, "project": "1.17", "hostname": "", "access_token": "x"})
    assert status == 422
    assert "sentiment" in answer["error"]
    status, answer, _ = ask("/predict", _body(_tasks("5", "-5"), INTERFACE.replace("single", "multiple")))
    assert (status, _chosen(answer)) == (200, [[["a", "b"]], [["b"]]])


def test_a_model_of_pairs_reads_its_columns(serve):
    ask = serve(Pairs())
    ask_pairs = [{"data": {"question": "5", "answer": "x", "body": "?"}}, {"data": {"text": "5", "text_pair": " "}}]
    status, answer, _ = ask("/predict", _body(ask_pairs))
    assert (status, [len(entry["result"]) for entry in answer["results"]]) == (200, [1, 0])
    status, answer, _ = ask("/predict", _body(_tasks("5")))
    assert (status, answer["error"][:9]) == (422, "tasks[0]:")


def test_setup_answers_the_version_and_health_is_public(serve):
    ask = serve(Fake(), token="sesame")
    assert ask("/setup", {"schema": INTERFACE})[0] == 401
    sesame = {"X-API-Key": "sesame"}
    request = {"project": "1.1700000000", "schema": INTERFACE, "hostname": "http://localhost:8080", "access_token": ""}
    assert ask("/setup", request, sesame)[:2] == (200, {"model_version": "reviews 2026-11-28T12:00:00"})
    assert ask("/health")[:2] == (200, {"status": "UP"})


def test_the_description_of_a_request_without_a_body_has_no_errors_of_bodies(serve):
    described = serve(Fake())("/openapi.json")[1]["paths"]
    assert set(described["/versions"]["get"]["responses"]) == {"200", "401", "503"}
    assert {"413", "422"} < set(described["/setup"]["post"]["responses"])


REQUESTS = Path(__file__).parents[1] / "data" / "annotations" / "label_studio_requests.json"


def test_recorded_requests_of_label_studio_get_the_answers_that_it_accepted(serve):
    """Label Studio 1.23.2: connect, predict one task and all tasks, versions, a new annotation, start of a training."""
    ask = serve(Fake(), token="sesame")
    for recorded in json.loads(REQUESTS.read_text(encoding="utf-8")):
        status, answer, _ = ask(recorded["path"], recorded["body"], recorded["headers"], recorded["method"])
        assert status == recorded["status"]
        if recorded["path"] == "/predict":
            for found, accepted in zip(answer["results"], recorded["answer"]["results"], strict=True):
                assert found == {**accepted, "score": accepted["score"] and pytest.approx(accepted["score"])}
        else:
            assert answer == recorded["answer"]


def test_the_log_gives_the_reason_which_label_studio_does_not_show(serve, caplog):
    with caplog.at_level("INFO", "bertsmith.serving"):
        serve(Fake())("/setup", {"schema": "<View/>"})
        while not caplog.records:  # the line is written after the answer
            time.sleep(0.01)
    assert json.loads(caplog.records[0].message)["error"].startswith("schema: ")


@pytest.mark.parametrize(
    "interface",
    [
        "",
        "<View>",
        "\ud800",
        "<View/>",
        '<!DOCTYPE v [<!ENTITY e "e">]>' + INTERFACE.strip(),
        INTERFACE.replace('"$body"', '"a fixed text"'),
        INTERFACE.replace('toName="review"', 'toName="image"'),
        INTERFACE.replace('value="a"', 'value="A"'),
        INTERFACE.replace('choice="single"', 'perRegion="true"'),
    ],
)
def test_an_interface_without_the_labels_is_refused(serve, interface):
    ask = serve(Fake())
    for path, body, field in (
        ("/setup", {"schema": interface}, "schema: "),
        ("/predict", _body(_tasks("5"), interface), "label_config: "),
    ):
        status, answer, _ = ask(path, body)
        assert (status, answer["error_type"]) == (422, "Validation")
        assert answer["error"].startswith(field)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"tasks": []}, "tasks: "),
        ({"tasks": _tasks("5")}, "label_config: "),
        ({"tasks": {"a": 1}, "label_config": INTERFACE}, "tasks: "),
        (_body([{"id": 1}]), "tasks[0].data: "),
        (_body(_tasks("5") + _tasks("5", field="text")), "tasks[1].data: "),
        (_body(_tasks("5", ["a"])), "tasks[1].data: "),
        (_body(_tasks("5", "1" * 200)), "tasks[1]: "),
        (_body(_tasks(*"12345")), "tasks: "),
    ],
)
def test_bad_tasks_are_refused_with_their_place(serve, body, field):
    status, answer, _ = serve(Fake(), limits=Limits(texts=4, characters=100))("/predict", body)
    assert (status, answer["error"][: len(field)]) == (422, field)


def test_a_route_of_vertex_ai_replaces_predict(serve):
    ask = serve(Fake(), vertex=VertexRoutes("/health", "/predict"))
    status, answer, _ = ask("/predict", _body(_tasks("5")))
    assert (status, answer["error"][:9]) == (422, "instances")
