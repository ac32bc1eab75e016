"""Exports of annotation tools, and tasks for these tools.

The files come from Label Studio 1.23.2, doccano 1.8.4 and the client of Argilla 2.8. Exports of Prodigy and Argilla 1
are made from the examples of their documentation.
"""

import json
from pathlib import Path

import pytest

import bertsmith as bs
from bertsmith.data.formats.annotations import as_task, flatten, write_tasks
from bertsmith.errors import DataError

FILES = Path(__file__).parents[1] / "data" / "annotations"
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
TOOLS = ("labelstudio", "doccano", "prodigy", "argilla")
ARGILLA_1 = [
    {
        "fields": {"text": f"Hello {i}"},
        "responses": [{"user_id": "u", "status": "submitted", "values": {"label": {"value": label}}}],
    }
    for i, label in enumerate(["positive", "negative"] * 4)
]


@pytest.mark.parametrize("kind", ["json", "min.json", "csv"])
def test_label_studio_with_one_choice(kind):
    """Text 0 has two annotations, text 5 an empty one, text 6 a skipped one, and text 7 none."""
    table = bs.read_table(FILES / f"label_studio_single.{kind}")
    assert (table.task, table.labels.texts) == ("single-label", ("a", "b"))
    rows = table.frame[table.codes != -1]
    texts = {f"text number {i}" for i in range(5)}
    assert (set(rows["text"]), len(rows), table.counts.tolist()) == (texts, 6, [3, 3])
    coder = "coder" if kind == "json" else "annotator"
    assert set(table.extra[coder].dropna().astype(str)) - {""} == {"1"}


@pytest.mark.parametrize("kind", ["json", "min.json", "csv"])
def test_label_studio_with_several_choices(kind):
    """Text 5 has an empty annotation, and text 6 none; only the JSON export tells them apart."""
    table = bs.read_table(FILES / f"label_studio_multi.{kind}", task="multi-label")
    assert table.labels.texts == ("a", "b, or c")
    assert (table.codes == -1).tolist() == [False] * 5 + [kind != "json", True]
    assert table.counts.tolist() == [4, 3]
    assert bs.read_table(FILES / f"label_studio_multi.{kind}").task == "multi-label"


@pytest.mark.parametrize("kind", ["json", "min.json", "csv"])
@pytest.mark.parametrize(
    ("column", "task", "labels", "counts"),
    [
        ("emotion", "multi-label", ("anger", "joy, or fun", "sadness"), [3, 3, 6]),
        ("topic", "single-label", ("politics", "sport"), [4, 2]),
        ("strength", "single-label", ("1", "2", "3"), [3, 3, 3]),
        ("place", "multi-label", ("Asia", "Europe", "France"), [5, 5, 4]),
    ],
)
def test_each_question_of_label_studio_is_a_column(kind, column, task, labels, counts):
    table = bs.read_table(FILES / f"label_studio_several.{kind}", label_column=column)
    assert (table.task, table.labels.texts, table.counts.tolist()) == (task, labels, counts)


@pytest.mark.parametrize("kind", ["json", "min.json", "csv"])
def test_numbers_of_label_studio_and_no_guess_among_questions(kind):
    file = FILES / f"label_studio_several.{kind}"
    table = bs.read_table(file, label_column="price", task="regression")
    assert table.targets.tolist() == [i + 0.5 for i in range(9)]
    with pytest.raises(DataError):
        bs.read_table(file)


def test_doccano():
    """Three of ten texts have no label."""
    single = bs.read_table(FILES / "doccano_single.jsonl")
    assert (single.task, single.labels.texts) == ("single-label", ("neg", "pos"))
    assert (single.counts.tolist(), (single.codes == -1).sum()) == ([3, 4], 3)
    multi = bs.read_table(FILES / "doccano_multi.jsonl")
    assert (multi.task, multi.counts.tolist(), (multi.codes == -1).sum()) == ("multi-label", [5, 5], 0)


def test_argilla():
    """Two coders differ about some texts; the text without an answer has no label."""
    single = bs.read_table(FILES / "argilla_single.json")
    assert (single.task, single.labels.texts) == ("single-label", ("negative", "positive"))
    assert (len(single), (single.codes == -1).sum(), single.extra["coder"].nunique()) == (10, 1, 2)
    assert single.extra["row"].tolist() == [0, 1, 1, 2, 3, 4, 5, 5, 6, 7]
    several = bs.read_table(FILES / "argilla_several.json", label_column="topics")
    assert (several.task, several.labels.texts) == ("multi-label", ("politics", "sport"))


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize(
    ("export", "labels", "missing"),
    [
        (PRODIGY, ("POLITICS", "TECHNOLOGY"), 1),
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
    assert list(flatten([record], "f.json")) == [
        {"text": "a text", "Label": ["x"], "coder": "ann"},
        {"text": "a text", "Label": ["y"], "coder": "ben"},
    ]


def test_other_records_stay_as_they_are():
    records = [{"text": "a", "answer": "accept"}, {"data": 1, "annotations": []}, {"fields": {}}]
    for record in records:
        assert list(flatten([record], "f.json")) == [record]


def test_the_answer_of_prodigy_is_not_replaced_by_its_metadata():
    meta = {"text": "of the pool", "Label": "x", "coder": "y", "row": 3}
    (row,) = flatten([{**PRODIGY[1], "meta": meta}], "f.jsonl")
    assert row == {"text": PRODIGY[1]["text"], "Label": ["POLITICS"], "coder": "news-ann", "row": 3}


LABEL_STUDIO = {"data": {"text": "a"}, "annotations": [{"result": []}]}


@pytest.mark.parametrize(
    ("record", "damaged"),
    [
        (LABEL_STUDIO, {"data": "a"}),
        (LABEL_STUDIO, {"annotations": [3, 4]}),
        (LABEL_STUDIO, {"annotations": [{"result": ["x"]}]}),
        (PRODIGY[1], {"meta": "a"}),
        (ARGILLA_1[0], {"responses": ["u"]}),
    ],
)
def test_a_damaged_record_is_refused_with_its_number(record, damaged):
    with pytest.raises(DataError) as caught:
        list(flatten([record, {**record, **damaged}, record], "f.json"))
    assert caught.value.where == "f.json, record 2"


@pytest.mark.parametrize("tool", TOOLS)
def test_tasks_have_the_text_and_its_facts(tool):
    task = as_task(tool, "a text", {"row": 3, "random": True, "text": "of the pool", "label": "x"})
    where = {"labelstudio": ("data", "data"), "argilla": ("fields", "metadata"), "prodigy": (None, "meta")}
    text, facts = where.get(tool, (None, None))
    assert (task[text] if text else task)["text"] == "a text"
    assert (task[facts] if facts else task)["row"] == 3


def test_files_of_tasks_are_those_that_the_tools_import():
    facts = [{"inclusion_probability": 0.5, "scores": [float("inf")]}, {"inclusion_probability": float("nan")}]
    files = {tool: write_tasks(tool, ["a", "b"], facts) for tool in TOOLS}
    assert not any(number in file for number in ("NaN", "Infinity") for file in files.values())
    assert len(json.loads(files["labelstudio"])) == len(json.loads(files["argilla"])) == 2
    lines = [json.loads(line) for line in files["doccano"].splitlines()]
    assert [line["inclusion_probability"] for line in lines] == [0.5, ""]  # its import fails at null
    assert all(line["label"] == [] for line in lines)
