"""Labelling: the project file, the agreement of coders, the exported table."""

import asyncio
import contextlib
import io
import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from bertsmith.cli import label as command
from bertsmith.cli.label import _train_flags
from bertsmith.config import Config, DataConfig
from bertsmith.data.columns import canonical, with_own_names
from bertsmith.data.read import read_table
from bertsmith.data.template import Template
from bertsmith.errors import ConfigError, DataError, RunFolderError, UserError
from bertsmith.evaluation.agreement import alpha, kappa, measure_agreement
from bertsmith.labelling.app import MAX_BODY, create_app
from bertsmith.labelling.pool import EmptyPoolError, PoolFile
from bertsmith.labelling.project import FILE, SETTLER, Decision, Project, Queued
from bertsmith.labelling.table import OWN_COLUMNS, Snapshot, export
from bertsmith.load_config import resolve
from bertsmith.measuring.design import read_design
from bertsmith.serving import signals
from bertsmith.serving.server import listen, run_app
from bertsmith.workflows.background_work import BackgroundWork
from bertsmith.workflows.choose_texts import ChosenTexts, choose_texts
from bertsmith.workflows.labelled_sample import _named_as_in_sample

LABELS = ["bad", "good", "so so"]


def queue(n=6, random=2):
    return [
        Queued(
            i + 1, f"text {i}", "random" if i < random else "diverse", i < random, columns={"date": f"2024-0{i + 1}"}
        )
        for i in range(n)
    ]


@pytest.fixture
def project(tmp_path):
    made = Project(tmp_path / "project", {"labels": LABELS, "pool_rows": 40})
    made.add_texts(queue())
    return made


def decide(project, coder, *labels, status="labelled"):
    text = project.next_text(coder)
    project.decide(Decision(text.id, coder, status, tuple(labels), seconds=2.0))
    return text


# -- the file ----------------------------------------------------------------------------------------------------------


def test_each_coder_gets_every_text_once_and_sees_no_decision_of_others(project):
    seen = {coder: [] for coder in ("ann", "ben")}
    for coder in ("ann", "ben", "ann"):
        seen[coder].append(decide(project, coder, "good").row)
    while project.next_text("ann"):
        seen["ann"].append(decide(project, "ann", status="skipped").row)
    assert seen == {"ann": [1, 2, 3, 4, 5, 6], "ben": [1]}
    assert project.progress("ben") == {"decided": 1, "texts": 6, "seconds": 2.0}
    assert project.next_text("ben").row == 2
    project.decide(Decision(2, "ben", "skipped", seconds=3.0))
    assert project.progress("ben")["seconds"] == 2.5


def test_undo_brings_the_last_text_back_and_keeps_the_history(project):
    first, second = decide(project, "ann", "good"), decide(project, "ann", "bad")
    decide(project, "ben", "good")
    assert project.undo("ann").id == second.id
    assert project.next_text("ann").id == second.id
    assert project.undo("ann").id == first.id
    assert project.undo("ann") is None
    assert [d.coder for d in project.decisions] == ["ben"]
    with contextlib.closing(sqlite3.connect(project.file)) as database:
        assert database.execute("SELECT COUNT(*) FROM decisions").fetchone() == (3,)


def test_undo_of_a_decision_that_was_sent_twice(project):
    text = decide(project, "ann", "good")
    project.decide(Decision(text.id, "ann", "labelled", ("good",)))
    assert project.undo("ann").id == text.id
    assert project.next_text("ann").id == text.id
    assert project.decisions == []


def test_a_coder_can_be_renamed_in_the_file(project):
    decide(project, "Anna", "good")
    decide(project, "Ana", "bad")
    decide(project, "Anna", "good")
    guide = (Path(__file__).parents[2] / "docs" / "how-to" / "label-texts.md").read_text(encoding="utf-8")
    [statement] = re.findall(r'execute\("(.+)"\)', guide)
    with contextlib.closing(sqlite3.connect(project.file, isolation_level=None)) as database:
        database.execute(statement)
    assert [(d.text, d.coder, d.labels) for d in project.decisions] == [(1, "Ana", ("bad",)), (2, "Ana", ("good",))]


def test_a_later_decision_replaces_an_earlier_one(project):
    text = decide(project, "ann", "good")
    project.decide(Decision(text.id, "ann", "labelled", ("bad",)))
    assert [d.labels for d in project.decisions] == [("bad",)]


def test_a_settlement_is_not_replaced_by_another_one(project):
    for _ in range(2):  # the page sends a decision again after a lost answer
        project.decide(Decision(1, SETTLER, "labelled", ("good",)))
    with pytest.raises(DataError):
        project.decide(Decision(1, SETTLER, "labelled", ("bad",)))
    project.decide(Decision(2, SETTLER, "labelled", ("bad",)))
    assert [d.labels for d in project.decisions] == [("good",), ("bad",)]


def test_a_project_whose_creation_was_killed_is_created_again(tmp_path):
    path = tmp_path / "p"
    path.mkdir()
    (path / FILE).touch()
    assert not Project.exists(path)
    with pytest.raises(RunFolderError):
        Project(path)
    assert Project(path, {"labels": LABELS}).labels == LABELS
    with contextlib.closing(sqlite3.connect(path / FILE)) as database:
        database.execute("DROP TABLE facts")
    with pytest.raises(RunFolderError):
        Project(path)


def test_a_snapshot_is_consistent_while_coders_write(project, monkeypatch):
    connect, written = sqlite3.connect, []

    def write():
        """Queue one more text and label it, unless a reader holds the file."""
        with (
            contextlib.closing(connect(project.file, timeout=0, isolation_level=None)) as other,
            contextlib.suppress(sqlite3.OperationalError),
        ):
            other.execute("BEGIN IMMEDIATE")
            insert = "INSERT INTO texts (row, text, columns, reason, random) VALUES (?, 'new', '{}', 'diverse', 0)"
            number = other.execute(insert, (100 + len(written),)).lastrowid
            insert = "INSERT INTO decisions (text, coder, status, labels, note, seconds, time)"
            other.execute(f"{insert} VALUES (?, 'ann', 'unsure', '[]', '', 1, 1)", (number,))
            other.execute("COMMIT")
            written.append(number)

    class Interrupted(sqlite3.Connection):
        """A coder decides before every statement of this connection."""

        def execute(self, *arguments):
            write()
            return super().execute(*arguments)

    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: connect(*a, **k, factory=Interrupted))
    found = Snapshot.of(project)
    assert written
    assert {decision.text for decision in found.decisions} == {text.id for text in found.texts if text.text == "new"}


def test_rows_are_queued_once_and_labels_added_once(project):
    project.add_texts(queue(8))
    assert project.rows == list(range(1, 9))
    project.add_labels(["good", " so   so ", "new"])
    assert project.labels == [*LABELS, "new"]
    for add in (lambda: project.add_labels(["GOOD"]), lambda: project.define("Bad", "", "")):
        with pytest.raises(ConfigError):
            add()
    with pytest.raises(ConfigError):
        project.add_labels(["more", "More"])
    assert project.labels == [*LABELS, "new"]


def test_ordinal_labels_keep_an_order(tmp_path):
    project = Project(tmp_path / "p", {"labels": ["bad", "fair", "good"], "task": "ordinal"})
    for add in (lambda: project.add_labels(["poor", "good"]), lambda: project.define("poor", "", "")):
        with pytest.raises(ConfigError):
            add()
    project.add_labels(["bad", "good"])
    project.define("bad", "not good", "")
    assert project.labels == ["bad", "fair", "good"]
    assert project.add_labels(["bad", "poor", "fair", "good"]) == ["poor"]
    assert project.labels == ["bad", "poor", "fair", "good"]


def test_another_task_for_a_project_is_refused(cli, project, tmp_path):
    arguments = ["label", "-o", project.path, "--no-browser", "--port", "0"]
    code, _, _ = cli(*arguments, "--task", "multi-label")
    assert code == 2
    assert project.task == "single-label"


def test_coders_who_define_labels_at_the_same_time_lose_nothing(project):
    names = [f"label {number}" for number in range(16)]
    with ThreadPoolExecutor(len(names)) as coders:
        list(coders.map(lambda name: project.define(name, f"about {name}", ""), names))
        list(coders.map(lambda name: project.add_labels([f"more {name}"]), names))
    assert set(project.labels) == {*LABELS, *names, *(f"more {name}" for name in names)}
    assert {name: entry["definition"] for name, entry in project.setting("codebook").items()} == {
        name: f"about {name}" for name in names
    }


@pytest.mark.parametrize(
    "decision",
    [
        Decision(1, "ann", "labelled", ("unknown",)),
        Decision(1, "ann", "labelled", ("good", "bad")),
        Decision(1, "ann", "labelled"),
        Decision(1, "ann", "unsure", ("good",)),
        Decision(1, " ", "labelled", ("good",)),
        Decision(1, "ann", "perhaps"),
        Decision(99, "ann", "labelled", ("good",)),
        Decision(1, SETTLER, "skipped"),
    ],
)
def test_decisions_that_do_not_fit_are_refused(project, decision):
    with pytest.raises(DataError):
        project.decide(decision)
    assert project.decisions == []


@pytest.mark.parametrize("status", ["unsure", "skipped"])
def test_texts_without_a_decision_have_no_label_sets(tmp_path, status):
    project = Project(tmp_path / "p", {"labels": LABELS, "task": "multi-label"})
    project.add_texts(queue())
    with pytest.raises(DataError):
        project.decide(Decision(1, "ann", status, ("good",)))
    project.decide(Decision(1, "ann", "labelled"))


def test_labels_that_join_labels_are_refused(project):
    with pytest.raises(ConfigError):
        project.add_labels(["a;b"])


def all_rows(project, table):
    with contextlib.closing(sqlite3.connect(project.file)) as database:
        return database.execute(f"SELECT * FROM {table}").fetchall()


def test_a_renamed_label_keeps_its_place_and_its_decisions(tmp_path):
    project = Project(tmp_path / "p", {"labels": LABELS, "task": "ordinal"})
    project.add_texts([Queued(row, f"text {row}", "diverse", False, suggestion="good") for row in (1, 2)])
    for coder, label in (("ann", "good"), ("ben", "bad"), ("eva", "good"), ("eva", "good")):
        decide(project, coder, label)
    project.undo("eva")
    project.define("good", "fine", "")
    before, times = project.decisions, [row[:4] + row[5:] for row in all_rows(project, "decisions")]
    project.rename_label("good ", "very  good")
    assert project.labels == ["bad", "very good", "so so"]
    assert [d.labels for d in project.decisions] == [("very good",), ("bad",), ("very good",)]
    assert [replace(d, labels=()) for d in project.decisions] == [replace(d, labels=()) for d in before]
    assert [row[:4] + row[5:] for row in all_rows(project, "decisions")] == times
    assert project.setting("codebook") == {"very good": {"definition": "fine", "examples": ""}}
    project.add_texts([Queued(3, "text 3", "diverse", False, suggestion="good")])
    assert {text.suggestion for text in project.texts} == {"very good"}
    journal = [
        (old, new, decision, json.loads(labels)) for _, old, new, decision, labels in all_rows(project, "renames")
    ]
    rows = [(None, LABELS), (1, ["good"]), (3, ["good"]), (4, ["good"])]
    assert journal == [("good", "very good", *row) for row in rows]


def test_merged_labels_are_given_once(tmp_path):
    project = Project(tmp_path / "p", {"labels": LABELS, "task": "multi-label"})
    project.add_texts([Queued(1, "text", "diverse", False, suggestion="so so; bad; good")])
    for coder, labels in (("ann", ("so so", "bad", "good")), ("ben", ("bad", "good")), ("eva", ())):
        decide(project, coder, *labels)
    project.define("bad", "not good", "awful")
    project.define("so so", "neither", "")
    project.rename_label("so so", "bad")
    assert project.labels == ["bad", "good"]
    assert [d.labels for d in project.decisions] == [("bad", "good"), ("bad", "good"), ()]
    assert project.setting("codebook") == {"bad": {"definition": "not good\nneither", "examples": "awful"}}
    assert project.texts[0].suggestion == "bad;good"


def test_a_former_name_does_not_come_back(project):
    project.rename_label("good", "fine")
    for write in (
        lambda: project.decide(Decision(1, "ann", "labelled", ("good",))),
        lambda: project.define("good", "from a page that was open before", ""),
        lambda: project.add_labels(["bad", "good"]),
        lambda: project.rename_label("bad", "good"),
    ):
        with pytest.raises(UserError):
            write()
    project.rename_label("fine", "great")
    project.rename_label("great", "good")
    assert project.labels == LABELS
    decide(project, "ann", "good")


@pytest.mark.parametrize(
    ("old", "new"),
    [("goud", "fine"), ("good", " "), ("good", "a\x1bb"), ("good", "a;b"), ("good", " good"), ("good", "Bad")],
)
def test_labels_are_not_renamed_to_what_cannot_be_a_label(project, old, new):
    before = project.read()
    with pytest.raises(ConfigError):
        project.rename_label(old, new)
    assert project.read() == before


def test_labels_are_merged_only_after_a_confirmation(project, cli):
    decide(project, "ann", "good")
    arguments = ("label", "-o", project.path, "--rename-label")
    assert cli(*arguments, "bad", "worse", "--labels", "new")[0] == 2
    assert "bad" in project.labels
    assert cli(*arguments, "bad", "worse")[0] == 0
    assert cli(*arguments, "good", "worse")[0] == 2
    assert project.labels == ["worse", "good", "so so"]
    assert cli(*arguments, "good", "worse", "--yes")[0] == 0
    assert project.labels == ["worse", "so so"]
    assert pd.read_csv(project.path / "labels.csv")["Label Text"].tolist() == ["worse"]


def test_only_projects_are_opened_and_other_files_stay(tmp_path, project):
    with pytest.raises(RunFolderError):
        Project(tmp_path / "nothing")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(RunFolderError):
        Project(tmp_path / "full", {"labels": LABELS})
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "labels.csv").write_text("Text\n")
    for use in (lambda path: Project(path, {"labels": LABELS}), lambda path: choose_texts(path, "p.csv", Config(), 5)):
        with pytest.raises(RunFolderError) as error:
            use(tmp_path / "lost")
        assert error.value.where.endswith(FILE)
    project.set_settings({"version": 99})
    with pytest.raises(RunFolderError):
        Project(project.path)
    project.file.write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    with pytest.raises(RunFolderError):
        Project(project.path)


_WRITER = """
import sys
from pathlib import Path
from bertsmith.labelling.project import Decision, Project
project = Project(Path(sys.argv[1]))
for i in range(10**6):
    project.decide(Decision(1 + i % 6, "ann", "labelled", ("good",), note=str(i)))
    print(i, flush=True)
"""


def test_no_reported_decision_is_lost_when_the_process_is_killed(project):
    """Kill a writer once; `benchmarks/labelling.py --kills 100` does so a hundred times."""
    with subprocess.Popen([sys.executable, "-c", _WRITER, project.path], stdout=subprocess.PIPE, text=True) as writer:
        while int(writer.stdout.readline()) < 20:
            pass
        time.sleep(0.01)
        writer.kill()
        reported = [20, *map(int, writer.stdout.read().split())][-1]
    with contextlib.closing(sqlite3.connect(project.file)) as database:
        notes = {int(note) for (note,) in database.execute("SELECT note FROM decisions")}
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert notes >= set(range(reported + 1))


# -- agreement ---------------------------------------------------------------------------------------------------------

NAN = None
EXAMPLE = (  # the example of the package krippendorff, whose results its documentation gives
    (NAN, NAN, NAN, NAN, NAN, 3, 4, 1, 2, 1, 1, 3, 3, NAN, 3),
    (1, NAN, 2, 1, 3, 3, 4, 3, NAN, NAN, NAN, NAN, NAN, NAN, NAN),
    (NAN, NAN, 2, 1, 3, 4, 4, NAN, 2, 1, 1, 3, 3, NAN, 4),
)


def coded(ratings):
    return {
        (text, f"coder {c}"): frozenset([str(value)])
        for c, row in enumerate(ratings)
        for text, value in enumerate(row)
        if value is not None
    }


@pytest.mark.parametrize(("task", "expected"), [("single-label", 0.691), ("ordinal", 0.807)])
def test_alpha_has_the_published_value(task, expected):
    found = measure_agreement(coded(EXAMPLE), ["1", "2", "3", "4"], task)
    assert found.alpha.value == pytest.approx(expected, abs=5e-4)
    assert found.alpha.texts == 12
    assert found.alpha.interval[0] < expected < found.alpha.interval[1]
    assert set(found.disputed) == {5, 7, 14}


def test_alpha_of_sets_counts_common_labels():
    def of(*pairs):
        return measure_agreement(
            {(i, c): frozenset(given) for i, pair in enumerate(pairs) for c, given in zip("ab", pair, strict=True)},
            ["x", "y", "z"],
            "multi-label",
        ).alpha.value

    close = of(("x", "xy"), ("y", "y"), ("z", "z"))
    far = of(("x", "yz"), ("y", "y"), ("z", "z"))
    assert of(("x", "x"), ("yz", "yz"), ((), ())) == 1
    assert far < close < 1


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=60))
def test_kappa_is_that_of_scikit_learn(pairs):
    pairs = [*pairs, (0, 0), (1, 1)]  # of a single value, kappa is undefined
    one, two = np.array(pairs).T
    for weights, distance in ((None, 1 - np.eye(4)), ("quadratic", (np.arange(4)[:, None] - np.arange(4)) ** 2.0)):
        expected = cohen_kappa_score(one, two, labels=range(4), weights=weights)
        assert kappa(one, two, distance).value == pytest.approx(expected)


def test_the_ceiling_is_the_share_of_texts_with_the_same_labels():
    pairs = ["aa", "ab", "bb", "cc", "ca"]
    found = measure_agreement(
        {(i, c): frozenset(v) for i, p in enumerate(pairs) for c, v in zip("xy", p, strict=True)}, "abc", "single-label"
    )
    assert found.ceiling.value == pytest.approx(3 / 5)
    assert found.ceiling.interval[0] < 0.6 < found.ceiling.interval[1]


@pytest.mark.parametrize("different", [0, 1])
def test_nearly_perfect_agreement_is_not_certain(different):
    given = ("x" * 30, "x" * 29 + "y") if different else ("xy" * 15, "xy" * 15)
    codes = {(i, coder): frozenset(some[i]) for coder, some in zip("ab", given, strict=True) for i in range(30)}
    found = measure_agreement(codes, "xy", "single-label")
    (pair,) = found.pairs.values()
    assert (pair.value, pair.interval) == (1 - different, None)
    low, high = found.ceiling.interval
    assert low < 0.89 < 0.98 < high
    if not different:
        assert (found.alpha.value, found.alpha.interval) == (1, None)


def test_the_interval_of_alpha_contains_the_true_value_as_often_as_it_says():
    rng = np.random.default_rng(0)
    counts = np.zeros((20_000, 2))
    truth = rng.integers(0, 2, 20_000)
    for _ in range(2):
        counts[np.arange(20_000), np.where(rng.random(20_000) < 0.85, truth, 1 - truth)] += 1
    expected = alpha(counts, 1 - np.eye(2)).value
    samples = (rng.choice(20_000, 80, replace=False) for _ in range(100))
    inside = [low <= expected <= high for low, high in (alpha(counts[s], 1 - np.eye(2)).interval for s in samples)]
    assert 0.88 <= np.mean(inside) <= 1


def test_one_coder_and_one_label_have_no_agreement():
    assert measure_agreement({(0, "a"): frozenset("x")}, ["x", "y"], "single-label").alpha.value is None
    same = {(i, c): frozenset("x") for i in range(5) for c in "ab"}
    assert measure_agreement(same, ["x", "y"], "single-label").alpha.value is None


@pytest.mark.parametrize(
    ("task", "given", "suggestions"),
    [
        ("multi-label", [("bad", "good"), ("good",), ()], ["good; bad", " good ;other", ""]),
        ("single-label", [("bad",), ("good",), ("so so",)], ["bad ", " good", "so so"]),
    ],
)
def test_suggestions_that_name_the_given_labels_agree(task, given, suggestions, tmp_path):
    project = Project(tmp_path / "p", {"labels": LABELS, "task": task, "pool_rows": 40})
    missing = [None] if task == "multi-label" else [None, " "]
    pairs = [*zip(given, suggestions, strict=True), *((given[0], nothing) for nothing in missing)]
    project.add_texts([Queued(i, f"text {i}", "random", True, suggestion=s) for i, (_, s) in enumerate(pairs, start=1)])
    for i, (labels, _) in enumerate(pairs, start=1):
        project.decide(Decision(i, "ann", "labelled", labels))
    found = Snapshot.of(project).overview()["suggestions"]
    assert (found["value"], found["texts"]) == (1, 3)


# -- the table ---------------------------------------------------------------------------------------------------------


def test_the_table_has_the_labels_that_count_and_how_they_were_decided(project):
    votes = {"ann": ["good", "good", "bad", "bad"], "ben": ["good", "bad", "good", "bad"], "eve": ["good", "bad"]}
    for coder, labels in votes.items():
        for label in labels:
            decide(project, coder, label)
    project.decide(Decision(4, SETTLER, "labelled", ("so so",)))
    assert export(project) == 3  # without the tie
    table = pd.read_csv(project.path / "labels.csv")
    assert table["Label Text"].fillna("").tolist() == ["good", "bad", "", "so so"]
    assert table["decided_by"].tolist() == ["agreed", "majority", "tie", "settled"]
    assert Snapshot.of(project).unused_labels == []
    assert Snapshot.of(project).random_part.unused_labels == ["so so"]
    assert table["share_of_coders"].tolist() == [1, 0.667, 0.5, 0]
    assert table["split"].tolist() == ["test", "test", "train", "train"]
    assert table["date"].tolist() == ["2024-01", "2024-02", "2024-03", "2024-04"]
    assert [text.id for text, _ in Snapshot.of(project).disputed] == [2, 3]
    design = read_design(table.to_dict("list"), range(1, 5), "table")
    assert design.usable.tolist() == [True, True, False, False]
    assert design.inclusion[:2].tolist() == [2 / 40] * 2


def test_columns_of_the_pool_keep_their_cells_under_another_name(project):
    columns = {"row": "id 7", "Random": "never", "text": "whole", "reason": "why", "date": "2024-09"}
    project.add_texts([Queued(50, "one", "diverse", False, columns=columns)])
    while project.next_text("ann"):
        decide(project, "ann", "good")
    [record] = [r for r in Snapshot.of(project).records() if r["row"] == 50]
    assert record["random"] == "false"
    assert {name: record.get(f"pool {name}", record.get(name)) for name in columns} == columns
    assert with_own_names({"note": 1, "pool note": 2}, ["Note"], "pool") == {"pool pool note": 1, "pool note": 2}
    for named, trained, read in (
        ("reason", "text", ("pool reason",)),
        (None, "reason", ("pool reason",)),
        ("date", "text", ("date",)),
        ("text", "text", ("text",)),  # the labelled texts, not those of "pool text"
        (None, "text", None),
    ):
        assert _named_as_in_sample(Config(text_column=named), None, Template((trained,)), record)[0].text_column == read
    config = Config(pair_column="row", group_column="Reason")
    found, by = _named_as_in_sample(config, "random", Template(pair_column="other"), record)
    assert (found.pair_column, found.group_column, by) == ("pool row", "pool reason", "pool Random")
    assert _named_as_in_sample(Config(), "date", Template(), [*record, "pool date"])[1] == "date"  # not renamed
    pool = with_own_names({"note": 1, "pool note": 2}, ["note"], "pool")
    assert _named_as_in_sample(Config(), "note", Template(), ["note", *pool])[1] == "pool pool note"
    own = {canonical(name) for name in record if name != "Text" and name.removeprefix("pool ") not in columns}
    assert own <= set(map(canonical, OWN_COLUMNS))
    cells = ChosenTexts(project.texts[-1:], {}, 40).cells()
    assert (cells["row"], cells["pool row"], cells["pool Random"]) == ([50], ["id 7"], ["never"])


def test_random_texts_alone_are_training_texts(project):
    for _ in range(2):
        decide(project, "ann", "good")
    decide(project, "ann", status="skipped")
    assert [record["split"] for record in Snapshot.of(project).records()] == ["train", "train"]
    decide(project, "ann", "bad")
    assert [record["split"] for record in Snapshot.of(project).records()] == ["test", "test", "train"]


def test_random_texts_without_a_label_stay_in_the_table(project):
    for status in ("skipped", "unsure", "skipped"):  # the first two are random
        project.decide(Decision(project.next_text("ann").id, "ann", status, note=f"ann: {status}"))
    decide(project, "ann", "good")
    for status in ("unsure", "skipped"):
        decide(project, "ben", status=status)
    assert export(project) == 1
    table = pd.read_csv(project.path / "labels.csv")
    assert table["decided_by"].tolist() == ["unsure", "unsure", "one coder"]
    assert table["Label Text"].fillna("").tolist() == ["", "", "good"]
    assert table["note"].fillna("").tolist() == ["ann: skipped", "ann: unsure", ""]
    assert read_design(table.to_dict("list"), [1, 2, 3], "table").usable.tolist() == [True, True, False]
    assert Snapshot.of(project).overview()["without_label"] == 2
    project.decide(Decision(1, "ben", "skipped"))
    assert [text.id for text, _ in Snapshot.of(project).disputed] == [1, 2]  # the third text is skipped, but not random
    for coder, label in (("ann", "good"), ("ben", "bad")):
        project.decide(Decision(2, coder, "labelled", (label,)))
    overview = Snapshot.of(project).overview()
    assert [overview[name] for name in ("labelled", "random", "without_label")] == [1, 0, 2]  # a tie is no label
    project.decide(Decision(2, "ann", "unsure", note="ann: unsure"))
    project.decide(Decision(2, "ben", "skipped"))
    project.decide(Decision(1, SETTLER, "labelled", ("bad",)))
    export(project)
    table = pd.read_csv(project.path / "labels.csv", keep_default_na=False)
    assert table["Label Text"].tolist() == ["bad", "", "good"]
    assert table["note"].tolist() == ["ann: skipped", "ann: unsure", ""]


def test_tables_of_several_and_of_ordered_labels_are_read(tmp_path):
    votes = {"multi-label": ["a", "ab", "bc", "c"] * 3, "ordinal": ["b", "a", "c", "b"] * 3}
    for task, given_labels in votes.items():
        project = Project(tmp_path / task, {"labels": ["a", "b", "c"], "task": task, "pool_rows": 9})
        project.add_texts(queue(12))
        for labels in given_labels:
            decide(project, "ann", *labels)
        export(project)
        table = read_table(project.path / "labels.csv", DataConfig(task=task))
        assert table.labels.texts == ("a", "b", "c")
        if task == "ordinal":
            assert table.labels.numbers == (1, 2, 3)
        else:
            assert table.task == task
    assert (tmp_path / "ordinal" / FILE).is_file()


def test_sets_of_labels_differ_from_missing_ones_in_the_table(tmp_path):
    project = Project(tmp_path / "p", {"labels": ["a", "b"], "task": "multi-label", "pool_rows": 9})
    project.add_texts([Queued(i, f"text {i}", "random", True) for i in range(1, 6)])
    for coder, sets in {"ann": ["ab", "a", "", "ba"], "ben": ["b", "a", "", "ab"]}.items():
        for labels in sets:
            decide(project, coder, *labels)
    decide(project, "ann", status="skipped")
    assert export(project) == 3
    table = pd.read_csv(project.path / "labels.csv", keep_default_na=False)
    assert table["Label Text"].tolist() == ["", '["a"]', "[]", '["a", "b"]', ""]
    assert table["decided_by"].tolist() == ["tie", "agreed", "agreed", "agreed", "skipped"]
    read = read_table(project.path / "labels.csv", DataConfig(task="multi-label"))
    assert read.targets[1:4].tolist() == [[True, False], [False, False], [True, True]]
    assert read.codes[[0, 4]].tolist() == [-1, -1]


@pytest.mark.parametrize(("task", "expected"), [("multi-label", {"a"}), ("ordinal", {"b"}), ("single-label", None)])
def test_the_majority_depends_on_the_task(tmp_path, task, expected):
    project = Project(tmp_path / "p", {"labels": ["a", "b", "c"], "task": task, "pool_rows": 9})
    project.add_texts(queue(1))
    for coder, labels in zip(("ann", "ben", "eve"), ("ab", "a", "ac") if task == "multi-label" else "acb", strict=True):
        decide(project, coder, *labels)
    (found,) = Snapshot.of(project).labelled
    assert (found.labels, found.how) == (expected, "majority" if expected else "tie")
    assert found.share == pytest.approx(1 / 3)


def test_a_carriage_return_in_a_text_does_not_break_the_table(project):
    project.add_texts([Queued(50, "one\rtwo", "diverse", False), Queued(51, "one\r\ntwo", "diverse", False)])
    while project.next_text("ann"):
        decide(project, "ann", ["good", "bad"][project.next_text("ann").row % 2])
    export(project)
    assert read_table(project.path / "labels.csv").frame["text"].tolist()[-2:] == ["one\rtwo", "one\r\ntwo"]


def test_training_on_several_labels_keeps_separators_in_labels(tmp_path):
    labels = ["food & drinks", "refund (partial)", "service"]
    project = Project(tmp_path / "p", {"labels": labels, "task": "multi-label", "pool_rows": 9})
    project.add_texts(queue(12))
    for some in [labels[:1], labels[1:2], labels[:2], labels[2:]] * 3:
        decide(project, "ann", *some)
    export(project)
    table = read_table(project.path / "labels.csv", DataConfig(task="multi-label"))
    assert table.labels.texts == tuple(labels)


# -- the page ----------------------------------------------------------------------------------------------------------


class FakeWork(BackgroundWork):
    """Work that queues one more text whenever the page asks."""

    def __init__(self, project):
        self.asked = 0
        super().__init__(project, self._one_more)

    def _one_more(self, observe):
        self.asked += 1
        self.project.add_texts([Queued(100 + self.asked, f"more {self.asked}", "diverse", False)])
        return 1


@pytest.fixture
def page(project):
    background = FakeWork(project)
    return TestClient(create_app(project, background, coder="ann"), base_url="http://127.0.0.1:8000"), background


def test_two_coders_label_over_the_page_and_disagreements_are_settled(page, project):
    client, _ = page
    assert client.get("/project").json()["coder"] == "ann"
    for coder, labels in (("ann", ["good", "bad"]), ("ben", ["good", "good"])):
        text = client.post("/next", json={"coder": coder}).json()["text"]
        for label in labels:
            body = {"coder": coder, "text": text["id"], "status": "labelled", "labels": [label], "seconds": 1.5}
            text = client.post("/decide", json=body).json()["text"]
            assert set(text) == {"id", "text", "pair", "suggestion"}
    assert text["id"] == 3
    (case,) = client.get("/disputed").json()
    assert {(d["coder"], *d["labels"]) for d in case["decisions"]} == {("ann", "bad"), ("ben", "good")}
    settled = {"coder": None, "text": case["text"]["id"], "status": "labelled", "labels": ["so so"]}
    assert client.post("/decide", json=settled).status_code == 200
    assert client.get("/disputed").json() == []
    for text in (None, 1):  # not the settlement of another page
        assert client.post("/undo", json={"coder": None, "text": text}).json() == {}
        assert client.get("/disputed").json() == []
    assert client.post("/undo", json={"coder": None, "text": 2}).json() == {}
    assert client.get("/disputed").json() == [case]
    assert client.post("/decide", json=settled).status_code == 200
    overview = client.get("/overview").json()
    assert overview["counts"] == {"bad": 0, "good": 1, "so so": 1}
    assert overview["agreement"]["alpha"]["texts"] == 2
    table = pd.read_csv(io.StringIO(client.get("/labels.csv").text))
    assert table["Label Text"].tolist() == ["good", "so so"]
    assert client.post("/undo", json={"coder": "ben"}).json()["text"]["id"] == 2


def test_a_table_that_cannot_be_written_is_reported(page, project, cli):
    (project.path / "labels.csv").mkdir()  # on Windows, a file that Excel has open cannot be replaced either
    answer = page[0].get("/labels.csv")
    assert answer.status_code == 422
    assert str(project.path / "labels.csv") in answer.json()["detail"]
    code, _, err = cli("label", "-o", project.path, "--rename-label", "good", "splendid")
    assert (code, "splendid" in project.labels) == (2, True)
    assert "splendid" in err


def test_a_closed_terminal_ends_the_page(page, monkeypatch):
    monkeypatch.setattr(signals, "ACCEPT_SECONDS", 0)
    received = signals.SignalFlags(reload=True)  # SIGHUP
    with contextlib.closing(listen("127.0.0.1", 0)) as listening:
        serving = threading.Thread(target=run_app, args=(page[0].app, listening, received), daemon=True)
        serving.start()
        serving.join(30)
    assert not serving.is_alive()
    assert received.end


def test_the_page_is_served_while_a_browser_runs_in_the_terminal(page, project, monkeypatch):
    served, results = threading.Event(), SimpleQueue()
    monkeypatch.setattr("webbrowser.open", lambda url: results.put(served.wait(5)))
    monkeypatch.setattr("bertsmith.serving.server.run_app", lambda *_: served.set())
    monkeypatch.setattr(command, "handle_signals", lambda: contextlib.nullcontext(signals.SignalFlags()))
    command._serve(project, page[1], None, None, "127.0.0.1", 0, True)
    assert results.get(timeout=5)


def test_a_coder_has_one_name(page, project):
    for name, text in (("Anna ", 1), ("Anna", 2), ("ANNA", 3)):
        answer = page[0].post("/decide", json={"coder": name, "text": text, "status": "skipped"}).json()
        assert answer["coder"] == "Anna"
    assert {decision.coder for decision in project.decisions} == {"Anna"}
    assert page[0].post("/next", json={"coder": "anna"}).json()["text"]["id"] == 4
    assert page[0].post("/undo", json={"coder": "anna"}).json()["text"]["id"] == 3
    project.decide(Decision(4, "ANNA", "skipped"))  # an older version saved two spellings
    assert page[0].post("/next", json={"coder": "ANNA"}).json()["coder"] == "ANNA"
    project.decide(Decision(1, "Jos\u00e9", "skipped"))
    assert project.coder("jose\u0301") == "Jos\u00e9"


def test_suggestions_are_not_shown_for_random_texts(tmp_path):
    project = Project(tmp_path / "p", {"labels": LABELS, "pool_rows": 9})
    project.add_texts([Queued(i, f"text {i}", "x", i < 3, suggestion="good") for i in range(1, 5)])
    client = TestClient(create_app(project, FakeWork(project)), base_url="http://localhost")
    shown, text = [], client.post("/next", json={"coder": "ann"}).json()["text"]
    while text["id"] <= 4:
        shown.append(text["suggestion"])
        body = {"coder": "ann", "text": text["id"], "status": "labelled", "labels": [["good", "bad"][len(shown) % 2]]}
        text = client.post("/decide", json=body).json()["text"] or {"id": 9}
    assert shown == [None, None, "good", "good"]
    assert client.get("/overview").json()["suggestions"]["texts"] == 2


def test_the_page_asks_for_the_next_round_before_the_queue_ends(page, project):
    client, background = page
    client.post("/next", json={"coder": "ann"})
    background.thread.join()
    assert background.asked == 1
    assert project.rows[-1] == 101
    assert client.get("/rounds").json() == background.state()


def test_the_codebook_adds_labels_for_everybody(page, project):
    client, _ = page
    body = {"label": "new", "definition": " Neither. ", "examples": ""}
    answer = client.post("/codebook", json=body).json()
    assert answer["labels"][-1] == {"label": "new", "definition": "Neither.", "examples": ""}
    assert project.labels[-1] == "new"
    version = client.get("/project").json()["version"]
    assert client.post("/next", json={"coder": "ann"}).json()["version"] == version
    for part in ({}, {"examples": "so-so"}):  # the page sends what changed
        answer = client.post("/codebook", json={"label": "new", **part}).json()
        assert answer["labels"][-1] == {**body, "definition": "Neither.", **part}
    assert client.post("/next", json={"coder": "ann"}).json()["version"] == answer["version"] != version
    assert client.post("/codebook", json={"label": "a;b"}).status_code == 422


def test_text_and_numbers_that_json_cannot_write_are_refused(page, project):
    body = '{"coder": %s, "text": %s, "status": "labelled", "labels": ["good"], "note": %s, "seconds": %s}'
    surrogate = '"\\ud800"'
    requests = [
        ("/decide", body % ('"ann"', 1, '""', "NaN")),
        ("/decide", body % ('"ann"', 1, '""', "1e999")),
        ("/decide", body % ('"ann"', 2**63, '""', 0)),
        ("/decide", body % ('"ann"', 1, surrogate, 0)),
        ("/decide", body % (surrogate, 1, '""', 0)),
        ("/next", f'{{"coder": {surrogate}}}'),
        ("/next", f'{{"coder": "ann", {surrogate}: 1}}'),
        ("/codebook", f'{{"label": "x", "definition": {surrogate}}}'),
    ]
    for path, content in requests:
        answer = page[0].post(path, content=content, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422, content
        assert answer.json()["detail"]
    assert project.decisions == []
    assert page[0].get("/project").status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {"coder": "ann", "text": 1, "status": "labelled", "labels": ["unknown"]},
        {"coder": "(settled)", "text": 1, "status": "labelled", "labels": ["good"]},
        {"coder": " ", "text": 1, "status": "labelled", "labels": ["good"]},
        {"coder": "a(b", "text": 1, "status": "labelled", "labels": ["good"]},
        {"coder": None, "text": 1, "status": "skipped"},
        {"coder": "ann", "text": 99, "status": "labelled", "labels": ["good"]},
        {"coder": "ann", "text": 1, "status": "perhaps"},
        {"coder": "ann"},
        [],
    ],
)
def test_wrong_requests_change_nothing(page, project, body):
    assert page[0].post("/decide", json=body).status_code == 422
    assert project.decisions == []


def test_only_pages_of_this_machine_and_with_json_are_answered(page, project):
    client, _ = page
    assert client.get("/project", headers={"Host": "evil.example"}).status_code == 400
    body = '{"coder": "ann", "text": 1, "status": "skipped"}'
    for sent in ({"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}, {}):
        for path in ("/decide", "/train", "/choose"):  # a page of another site can send only such requests
            assert client.post(path, content=body, headers=sent).status_code == 415
    assert project.decisions == []
    assert page[1].state()["exit_code"] is None
    assert page[1].asked == 0
    index = client.get("/")
    assert "default-src 'none'" in index.headers["Content-Security-Policy"]
    assert not re.findall(r"(?:src|href)=\"http", index.text)


def test_a_token_replaces_the_check_of_the_host(project):
    client = TestClient(create_app(project, FakeWork(project), token="secret"), base_url="http://192.168.1.5")
    assert client.get("/").status_code == 200
    assert client.get("/project").status_code == 401
    assert client.get("/project", headers={"X-API-Key": "secret"}).status_code == 200


def test_a_body_is_read_only_with_the_token_and_up_to_a_limit(project):
    async def send(*headers):
        """Return the status of a request whose body must not be read."""
        statuses = []

        async def respond(message):
            statuses.append(message.get("status"))

        given = [(b"host", b"a"), (b"content-type", b"application/json"), *headers]
        scope = {"type": "http", "method": "POST", "path": "/decide", "query_string": b"", "headers": given}
        await create_app(project, FakeWork(project), token="secret")(scope, None, respond)
        return statuses[0]

    token = (b"x-api-key", b"secret")
    assert asyncio.run(send((b"content-length", b"99"))) == 401
    assert asyncio.run(send(token, (b"content-length", b"%d" % (MAX_BODY + 1)))) == 413
    assert asyncio.run(send(token)) == 411


def test_a_round_that_fails_is_reported_on_the_page(project):
    def fail(observe):
        raise DataError("the pool is gone")

    background = BackgroundWork(project, fail)
    background.choose()
    background.thread.join()
    assert "the pool is gone" in background.state()["message"]
    background.choose(automatic=True)  # the page asks after each decision
    assert not background.is_choosing


def test_only_an_empty_pool_ends_the_rounds(project):
    errors = [RunFolderError("another process chooses"), RuntimeError("for this test"), EmptyPoolError("all is queued")]
    failed = []

    def fail(observe):
        failed.append(errors[len(failed)])
        raise failed[-1]

    background = BackgroundWork(project, fail)
    for exhausted in (False, False, True):
        background.choose()
        background.thread.join()
        assert background.exhausted == exhausted
    background._retry = 0
    background.choose(automatic=True)
    background.thread.join()
    assert failed == errors


def test_training_runs_in_a_child_process_and_reports_its_end(project):
    background = BackgroundWork(project, lambda observe: 0, ("--no-such-flag",))
    background.train()
    if hasattr(os, "getpgid"):  # Ctrl-C of the terminal would be its first signal, and `close` sends the second one
        assert os.getpgid(background.child.pid) != os.getpgrp()
    background.child.wait()
    deadline = time.monotonic() + 30
    while not background.lines and time.monotonic() < deadline:
        time.sleep(0.05)
    state = background.state()
    assert state["exit_code"] == 2
    assert not state["training"]
    assert "--no-such-flag" in " ".join(state["lines"])
    assert (project.path / "runs" / "001.csv").is_file()
    assert background.close() == []


def test_a_stopped_training_resumes_on_its_own_table(project, monkeypatch):
    start, commands = subprocess.Popen, []
    monkeypatch.setattr("bertsmith.workflows.background_work.TERMINATE_KILLS", False)

    def sleep(command, **options):
        commands.append(command[3:])
        return start([command[0], "-c", "import time; time.sleep(60)"], **options)

    monkeypatch.setattr(subprocess, "Popen", sleep)
    (project.path / "runs" / "007").mkdir(parents=True)
    decide(project, "ann", "good")
    background = BackgroundWork(project, lambda observe: 0)
    background.train()
    table = project.path / "runs" / "008.csv"
    before = table.read_bytes()
    decide(project, "ann", "bad")
    resume = background.close()
    assert export(project) == 2
    assert resume == [*commands[0], "--resume"]
    assert resume[1:4] == [str(table), "-o", str(project.path / "runs" / "008")]
    assert table.read_bytes() == before
    (project.path / "runs" / "008").mkdir()  # the stand-in made none
    assert background.next_run() == project.path / "runs" / "009"


def test_a_training_that_ctrl_c_has_reached_may_save_a_checkpoint(project, monkeypatch):
    start, code = subprocess.Popen, "import time; time.sleep(0.1)"
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: start([command[0], "-c", code], **options))
    monkeypatch.setattr("bertsmith.workflows.background_work.TERMINATE_KILLS", True)  # as on Windows
    background = BackgroundWork(project, lambda observe: 0)
    background.train()
    background.close()
    assert background.child.returncode == 0


def test_output_of_a_training_in_another_encoding_is_shown(project, monkeypatch):
    code = r"import sys; sys.stdout.buffer.write(b'caf\xe9\n'); sys.stdout.flush(); print('more')"
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: start([command[0], "-c", code], **options))
    background = BackgroundWork(project, lambda observe: 0)
    background.train()
    deadline = time.monotonic() + 30
    while len(background.lines) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(background.lines) == ["caf\ufffd", "more"]
    assert background.child.wait() == 0


def test_a_page_for_other_machines_needs_a_token(cli, tmp_path):
    (tmp_path / "pool.txt").write_text("one\ntwo\n")
    arguments = ("label", tmp_path / "pool.txt", "-o", tmp_path / "p")
    assert cli(*arguments, "--host", "0.0.0.0")[0] == 2
    assert cli(*arguments, "--host", "some.machine")[0] == 2
    assert cli(*arguments, "--host", "127.0.0.2")[0] == 2
    assert cli("label", tmp_path / "missing.csv", "-o", tmp_path / "p")[0] == 2
    assert cli("label", "-o", tmp_path / "p")[0] == 2
    assert cli(*arguments, "--task", "ordinal")[0] == 2
    assert cli(*arguments, "--labels", "a;b,c")[0] == 2
    assert cli(*arguments, "--labels", "a,b,a")[0] == 2
    assert cli(*arguments, "--labels", "a,b,A")[0] == 2
    assert cli(*arguments, "--suggestions", "nothing")[0] == 2
    assert not (tmp_path / "p").exists()


def test_the_token_must_be_one_that_clients_can_send(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("BERTSMITH_TOKEN", "schlüssel")
    code, _, err = cli("label", "-o", tmp_path / "project")
    assert code == 2
    assert "BERTSMITH_TOKEN" in err


def test_an_internal_error_of_a_choice_is_reported_with_its_traceback(project):
    def fail(observe):
        raise RuntimeError("for this test")

    background = BackgroundWork(project, fail)
    background.choose()
    background.thread.join()
    [log] = map(Path, re.findall(r"\S+\.log", background.state()["message"]))
    assert "in fail" in log.read_text()
    log.unlink()


def test_training_uses_the_checkpoint_of_the_project(project):
    PoolFile(project.path, "another", 2)
    for config in (Config(), resolve({"model": "another"}, api=True)):
        flags = _train_flags(project, config)
        assert flags[flags.index("--model") + 1] == "another"
    chosen = resolve({"model": "third"}, api=True)
    with pytest.raises(RunFolderError):
        _train_flags(project, chosen)
    (project.path / "embeddings.json").unlink()
    assert "third" in _train_flags(project, chosen)


def test_training_uses_the_settings_of_the_project(project):
    flags = ["--model", "any", "--device", "cpu", "--threads", "1", "--max-length", "64", "--seed", "7"]
    config = {flag[2:].replace("-", "_"): value for flag, value in zip(flags[::2], flags[1::2], strict=True)}
    assert [*_train_flags(project, resolve(config, api=True))] == flags
    assert "--seed" not in _train_flags(project, Config())


@pytest.mark.parametrize("with_pool", [True, False])
def test_the_estimate_follows_the_last_labels(cli, project, with_pool, tmp_path, monkeypatch):
    """The page starts no server: its first request, and a click on the button, come here."""
    pool = tmp_path / "pool.csv"
    pool.write_text("text\none\n")
    labels = []

    def nothing_left(*arguments, **options):
        raise EmptyPoolError("all is queued")

    def serve(project, background, *arguments):
        for automatic in (True, False, True):
            decide(project, "ann", "good")
            background.choose(automatic=automatic)
            background.thread.join()
            assert background.exhausted
            assert background.message

    monkeypatch.setattr("bertsmith.workflows.choose_texts.choose_for_project", nothing_left)
    monkeypatch.setattr(
        "bertsmith.workflows.labelling_gain.estimate_project",
        lambda project, settings: labels.append(len(project.decisions)),
    )
    monkeypatch.setattr("bertsmith.cli.label._serve", serve)
    code, _, err = cli("label", *([pool] if with_pool else []), "-o", project.path)
    assert code == 0, err
    assert labels == [1, 2]
