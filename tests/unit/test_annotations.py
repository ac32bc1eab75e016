"""Exports of annotation tools, made from the examples of their documentation, and tasks for these tools."""

import json

import pytest

import bertsmith as bs
from bertsmith.data.formats.annotations import TOOLS, as_task, flatten

LABEL_STUDIO = [
    {
        "id": i,
        "annotations": [
            {
                "id": 1001 + i,
                "completed_by": {"id": 1, "email": "ann@example.com"},
                "was_cancelled": False,
                "result": [
                    {
                        "from_name": "sentiment",
                        "to_name": "text",
                        "type": "choices",
                        "value": {"choices": [label]},
                    }
                ],
            },
            {"id": 2000 + i, "completed_by": 2, "was_cancelled": True, "result": []},
        ],
        "data": {"text": f"To have faith is to trust yourself to the water {i}"},
        "predictions": [],
    }
    for i, label in enumerate(["Positive", "Negative"] * 4)
]
PRODIGY = [
    {
        "text": f"First look at the new MacBook Pro {i}",
        "_input_hash": -i,
        "_task_hash": i,
        "options": [{"id": "TECHNOLOGY", "text": "TECHNOLOGY"}, {"id": "POLITICS", "text": "POLITICS"}],
        "accept": [label],
        "answer": "accept" if i else "ignore",
        "_session_id": "news-ann",
        "meta": {"source": "The New York Times"},
    }
    for i, label in enumerate(["TECHNOLOGY", "POLITICS"] * 4)
]
DOCCANO = [{"id": i, "text": f"Terrible service {i}", "label": [label]} for i, label in enumerate(["pos", "neg"] * 4)]
ARGILLA = [
    {
        "id": str(i),
        "status": "completed",
        "fields": {"text": f"Hello World, how are you? {i}"},
        "metadata": {},
        "suggestions": {},
        "responses": {"label": [{"value": label, "user_id": "bbf3d3c2", "status": "submitted"}]},
        "vectors": {},
    }
    for i, label in enumerate(["positive", "negative"] * 4)
]
ARGILLA_1 = [
    {
        "fields": {"text": f"Hello {i}"},
        "responses": [{"user_id": "u", "status": "submitted", "values": {"label": {"value": label}}}],
    }
    for i, label in enumerate(["positive", "negative"] * 4)
]


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize(
    ("export", "labels", "missing"),
    [
        (LABEL_STUDIO, ("Negative", "Positive"), 0),
        (PRODIGY, ("POLITICS", "TECHNOLOGY"), 1),
        (DOCCANO, ("neg", "pos"), 0),
        (ARGILLA, ("negative", "positive"), 0),
        (ARGILLA_1, ("negative", "positive"), 0),
    ],
)
def test_an_export_is_a_table(export, labels, missing, lines, tmp_path):
    file = tmp_path / "export.json"
    file.write_text("\n".join(map(json.dumps, export)) if lines else json.dumps(export))
    table = bs.read_table(file)
    assert table.task == "single-label"
    assert table.labels.texts == labels
    assert (table.codes == -1).sum() == missing
    assert table.counts.sum() == 8 - missing
    assert table.frame["text"].str.contains(r"\d").all()


def test_several_labels_stay_several(tmp_path):
    export = [{**task, "accept": ["TECHNOLOGY", "POLITICS"][: 1 + i % 2]} for i, task in enumerate(PRODIGY)]
    file = tmp_path / "export.jsonl"
    file.write_text("\n".join(map(json.dumps, export)))
    table = bs.read_table(file)
    assert table.task == "multi-label"
    assert table.counts.tolist() == [4, 7]


def test_each_coder_has_a_row():
    record = {
        "fields": {"text": "a text"},
        "responses": {
            "label": [
                {"value": "x", "user_id": "ann", "status": "submitted"},
                {"value": "y", "user_id": "ben", "status": "submitted"},
                {"value": "z", "user_id": "eve", "status": "draft"},
            ]
        },
    }
    assert list(flatten([record])) == [
        {"text": "a text", "Label": ["x"], "coder": "ann"},
        {"text": "a text", "Label": ["y"], "coder": "ben"},
    ]


def test_other_records_stay_as_they_are():
    records = [{"text": "a", "answer": "accept"}, {"data": 1, "annotations": []}, {"fields": {}}]
    for record in records:
        assert list(flatten([record])) == [record]


@pytest.mark.parametrize("tool", TOOLS)
def test_tasks_have_the_text_and_its_facts(tool):
    task = as_task(tool, "a text", {"row": 3, "random": True})
    where = {"labelstudio": ("data", "data"), "argilla": ("fields", "metadata"), "prodigy": (None, "meta")}
    text, facts = where.get(tool, (None, None))
    assert (task[text] if text else task)["text"] == "a text"
    assert (task[facts] if facts else task)["row"] == 3
