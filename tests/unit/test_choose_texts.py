"""Which texts to label next: the choice, the file of embeddings, the command."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bertsmith as bs
from bertsmith.cli.next import note_few_random
from bertsmith.config import DataConfig
from bertsmith.data.near_duplicates import group_near_duplicates
from bertsmith.data.sources import read_raw
from bertsmith.errors import ConfigError, DataError, RunFolderError
from bertsmith.folders.claim import lock
from bertsmith.folders.run import Run
from bertsmith.labelling.choose import (
    RESERVED,
    Candidates,
    ChosenText,
    inclusion_probabilities,
    priorities,
    random_rows,
    without_near_duplicates,
)
from bertsmith.labelling.pool import PoolFile, with_known_columns
from bertsmith.labelling.project import Decision, Project, Queued
from bertsmith.labelling.table import Snapshot, export
from bertsmith.load_config import resolve
from bertsmith.measuring.design import read_design
from bertsmith.tasks.registry import get_task
from bertsmith.testing import tiny_table
from bertsmith.workflows import choose_texts
from bertsmith.workflows.background_work import BackgroundWork
from bertsmith.workflows.choose_texts import ChosenTexts
from bertsmith.workflows.embeddings import fit_project_head
from tests.conftest import ArrowTable

# -- the random sample -------------------------------------------------------------------------------------------------


def test_every_row_has_the_same_chance_to_be_in_the_random_sample():
    times = np.zeros(200)
    for seed in range(2000):
        rows, _ = random_rows(priorities(200, seed), np.ones(200, dtype=bool), 20)
        times[rows] += 1
    assert times.sum() == 2000 * 20
    assert (((times - 200) ** 2 / (200 * 0.9)).sum()) < 260  # chi-squared with 199 degrees of freedom: 0.2 %


@given(st.integers(5, 400), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_later_rounds_continue_the_random_sample(n_rows, n, seed):
    priority, usable = priorities(n_rows, seed), np.ones(n_rows, dtype=bool)
    whole, reserved = random_rows(priority, usable, 2 * n)
    first, _ = random_rows(priority, usable, n)
    usable[first] = False
    second, again = random_rows(priority, usable, n)
    assert [*first, *second] == whole.tolist()
    assert (reserved == again).all()
    assert reserved.sum() == min(RESERVED, n_rows // 5)
    assert reserved[whole].all()
    rows, _ = random_rows(priority, np.ones(n_rows, dtype=bool), n_rows, only_random=True)
    assert rows.tolist() == np.argsort(priority).tolist()
    assert rows[: len(whole)].tolist() == whole.tolist()


def test_rows_added_at_the_end_do_not_change_the_others():
    assert (priorities(50, 3) == priorities(80, 3)[:50]).all()
    assert (priorities(50, 3) != priorities(50, 4)).any()


def test_parts_of_a_pool_that_grew_have_their_own_chances():
    sizes = [(300, 300), (900, 899)]
    found = inclusion_probabilities([*range(1, 61), *range(301, 361)], sizes)
    assert {found[row] for row in range(1, 61)} == {60 / 300}
    assert {found[row] for row in range(301, 361)} == {60 / 599}
    assert inclusion_probabilities(range(1, 61), sizes) == {}  # it does not represent the new rows
    assert set(inclusion_probabilities(range(1, 61), [(300, 300), (310, 310)]).values()) == {60 / 310}


def test_a_pool_that_grows_in_small_steps_has_strata():
    sizes = [(1000 + 100 * i, 1000 + 100 * i) for i in range(31)]  # the pool ends with 4,000 rows
    old, new = [*range(1, 201)], [*range(1005, 4000, 10)]
    found = inclusion_probabilities([*old, *new], sizes)
    assert {found[row] for row in old} == {200 / 1000}
    assert {found[row] for row in new} == {20 / 200}
    assert inclusion_probabilities(old, sizes) == {}  # it does not represent the new rows


def test_the_sample_of_a_pool_that_grew_has_the_mean_of_the_pool():
    values, weighted, plain = np.repeat([0.0, 1.0], [300, 600]), [], []
    for seed in range(300):
        first, _ = random_rows(priorities(300, seed), np.ones(300, dtype=bool), 40)
        free = ~np.isin(np.arange(900), first)
        later, _ = random_rows(priorities(900, seed), free, 40)
        rows = np.concatenate([first, later])
        chances = inclusion_probabilities((rows + 1).tolist(), [(300, 300), (900, 900)])
        weighted.append(np.average(values[rows], weights=[1 / chances[row + 1] for row in rows]))
        plain.append(values[rows].mean())
    assert weighted == pytest.approx([2 / 3] * 300)
    assert np.mean(plain) < 0.6


# -- the other texts ---------------------------------------------------------------------------------------------------


def candidates(embeddings, scores, n, counts, chunk=64, task="single-label"):
    found = Candidates(n, task, counts, seed=0)
    priority = priorities(len(embeddings), 0)
    for start in range(0, len(embeddings), chunk):
        rows = np.arange(start, min(start + chunk, len(embeddings)))
        found.add(rows, priority[rows], None if scores is None else scores[rows])
    return found


def clusters(sizes, seed=0):
    """Return unit vectors around one centre per cluster, and the cluster of each."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(len(sizes), 16))
    which = np.repeat(np.arange(len(sizes)), sizes)
    x = centres[which] + 0.1 * rng.normal(size=(len(which), 16))
    return x / np.linalg.norm(x, axis=1, keepdims=True), which


def test_without_a_model_every_cluster_gets_texts_before_any_gets_many():
    x, which = clusters([300, 100, 20, 20, 10])
    found = candidates(x, None, 10, None)
    ranked = found.choose(x[found.rows], np.empty((0, 16)))
    assert {choice.reason for choice in ranked} == {"diverse"}
    assert set(which[[choice.row for choice in ranked]]) == {0, 1, 2, 3, 4}
    assert len({choice.row for choice in ranked}) == len(ranked) >= 10


def test_with_a_model_uncertain_rare_and_far_texts_are_chosen():
    x, which = clusters([200, 200, 30, 30])
    scores = np.full((460, 3), 0.01)
    scores[np.arange(460), np.minimum(which, 2)] = 0.98  # cluster 3 looks like class 2, and is unlike all known texts
    unsure = np.arange(400)
    scores[unsure] = (0.5, 0.45, 0.05)
    found = candidates(x, scores, 40, np.array([50, 50, 2]))
    ranked = found.choose(x[found.rows], x[which < 3])
    by_reason = {reason: {c.row for c in ranked if c.reason == reason} for reason in ("uncertain", "rare", "diverse")}
    assert by_reason["uncertain"] <= set(unsure.tolist())
    assert all(which[row] >= 2 for row in by_reason["rare"])
    assert 3 in which[list(by_reason["diverse"])]
    assert sum(map(len, by_reason.values())) == len(ranked) == 61


def test_the_choice_does_not_depend_on_the_chunks():
    x, _ = clusters([200, 200])
    scores = np.random.default_rng(1).dirichlet([1, 1], size=400)
    one, two = (candidates(x, scores, 20, np.array([10, 5]), chunk=c) for c in (400, 37))
    assert one.choose(x[one.rows], x[:5]) == two.choose(x[two.rows], x[:5])


def test_near_duplicates_are_chosen_once():
    texts = ["the cat sat on the mat", "The cat sat on the mat!", "a different text", "a known text about birds"]
    ranked = [ChosenText(i, "diverse") for i in range(4)]
    kept = without_near_duplicates(ranked, texts, ["A known text about birds."], 3)
    assert [choice.row for choice in kept] == [0, 2]


@pytest.mark.parametrize(
    ("cell", "suggestion"),
    [(" good", " good"), (["a", "b"], "a;b"), (np.array(["a", "b"]), "a;b"), ([], ""), (2.0, "2"), (np.nan, None)],
)
def test_a_suggestion_is_text_with_separated_labels(cell, suggestion):
    queued = choose_texts._queued(ChosenText(0, "diverse"), {"proposal": cell}, "text", "proposal", "pool")
    assert queued.suggestion == suggestion


# -- the file of embeddings --------------------------------------------------------------------------------------------


def embed_lengths(texts):
    return np.array([[len(text), 1.0] for text in texts])


def test_each_text_is_embedded_once_also_after_an_interruption(tmp_path):
    texts = ["one", "", "three", "four", "fives"]
    PoolFile(tmp_path, "model", 2).update(texts[:3], 0, embed_lengths, "pool")
    with (tmp_path / "embeddings.f16").open("ab") as file:
        file.write(b"xyz")  # a row that a kill cut
    again, seen = PoolFile(tmp_path, "model", 2), []

    def embed(some):
        seen.extend(some)
        return embed_lengths(some)

    again.update(texts, 0, embed, "pool")
    assert seen == ["three", "four", "fives"]  # the longest known text shows that the model has not changed
    assert PoolFile(tmp_path, "model", 2).read(np.arange(5)).tolist() == [[3, 1], [0, 0], [5, 1], [4, 1], [5, 1]]
    with pytest.raises(DataError, match="row 3"):
        again.update(["one", "", "changed"], 0, embed, "pool")
    again.update([*texts, "six"], 0, embed, "pool")
    for chunk in ([*texts, "six", "seven"], ["seven"]):  # also if the new rows begin a chunk
        other = PoolFile(tmp_path, "model", 2)
        other.update([*texts, "six"], 0, embed, "pool")
        with pytest.raises(RunFolderError):
            other.update(chunk, 7 - len(chunk), lambda some: embed_lengths(some)[:, ::-1], "pool")
    assert other.done == 6
    with pytest.raises(RunFolderError):
        PoolFile(tmp_path, "other", 2)
    for damage in ("{", "[]", "{}"):
        (tmp_path / "embeddings.json").write_text(damage)
        with pytest.raises(RunFolderError):
            PoolFile(tmp_path, "model", 2)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def pool(tmp_path):
    table = tiny_table(120, seed=7).rename(columns={"Label Text": "hidden"}).drop(columns="Label")
    table.loc[5, "Text"] = ""
    table.loc[9, "Text"] = table.loc[8, "Text"].upper()
    table.to_csv(tmp_path / "pool.csv", index=False)
    return tmp_path / "pool.csv"


def test_rounds_of_a_project(pool, tmp_path, tiny, cli):
    project = Project(tmp_path / "project", {"labels": ["animals", "colours", "fruits"]})
    out, rows = tmp_path / "next.csv", []
    settings = ("-n", "20", "-o", out, "--overwrite", "--model", tiny)
    for i in range(3):
        code, _, err = cli("next", project.path, pool, *settings, "--seed", i)
        assert code == 0, err
        chosen = pd.read_csv(out)
        assert list(chosen.columns) == ["hidden", "Text", "row", "reason", "random", "inclusion_probability"]
        assert chosen["random"].sum() == 4
        assert chosen["inclusion_probability"].dropna().unique().tolist() == pytest.approx([4 / 119])
        reasons = [
            {"diverse", "random"},
            {"diverse", "random", "uncertain", "rare"},
            {"diverse", "random", "uncertain"},
        ]
        assert set(chosen["reason"]) == reasons[i]
        rows += chosen["row"].tolist()
        for text in project.texts[20 * i :]:
            project.decide(Decision(text.id, "ann", "labelled", (text.columns["hidden"],)))
    assert rows == project.rows
    # The project keeps the seed of its first choice: with another one, the random texts would be biased.
    priority = priorities(120, 0)
    priority[5] = 2**64 - 1  # an empty text
    assert {text.row - 1 for text in project.texts if text.random} == set(np.argsort(priority)[:12].tolist())
    assert len(set(rows)) == 60
    assert 6 not in rows
    assert not {9, 10} <= set(rows)
    texts = [text.text for text in project.texts if not text.random]
    assert len(set(group_near_duplicates(texts))) == len(texts)
    table = pd.read_csv(pool)
    more = table.assign(Text=table["Text"] + " again")
    pd.concat([table, more]).to_csv(pool, index=False)
    code, _, err = cli("next", project.path, pool, *settings)
    assert code == 0, err
    chosen = pd.read_csv(out)
    assert (chosen["row"][chosen["random"]] > 120).all()
    assert chosen["inclusion_probability"].isna().all()  # the random texts of this round do not represent the old rows
    with pytest.raises(DataError) as caught:
        read_design(chosen.to_dict("list"), chosen["row"].tolist(), "next.csv")
    assert "labels.csv" in caught.value.remedy
    table.loc[3, "Text"] = "changed"
    table.to_csv(pool, index=False)
    code, _, err = cli("next", project.path, pool, "--model", tiny)
    assert code == 2
    assert "row 4" in err


def test_a_project_of_pairs_trains_on_pairs(pool, tmp_path, tiny):
    project = Project(tmp_path / "project", {"labels": ["yes", "no"]})
    config = resolve({"text_column": "Text", "pair_column": "hidden", "model": str(tiny)}, api=True)
    choose_texts.choose_texts(project.path, pool, config, 20)
    table = pd.read_csv(pool, keep_default_na=False)
    assert [(text.text, text.pair) for text in project.texts] == [
        tuple(table.loc[row - 1, ["Text", "hidden"]]) for row in project.rows
    ]
    project.decide(Decision(1, "ann", "labelled", ("yes",)))
    export(project)
    command = BackgroundWork(project, lambda observe: 0).train_command(project.path / "labels.csv", tmp_path / "run")
    pair = command[command.index("--pair-column") + 1]
    assert pd.read_csv(project.path / "labels.csv")[pair].tolist() == [project.texts[0].pair]
    bs.next_texts(project.path, pool, n=5, model=str(tiny))
    assert [text.pair for text in project.texts] == [table.loc[row - 1, "hidden"] for row in project.rows]


def test_a_project_keeps_its_columns(tmp_path):
    def known(**columns):
        found = with_known_columns(project, resolve(columns, api=True))
        return found.text_column, found.pair_column

    project = Project(tmp_path / "pairs", {"labels": ["yes", "no"]})
    assert known(text_column="a", pair_column="b") == ("a", "b")
    project.add_texts([Queued(1, "one", "random", True, pair="two")])
    with pytest.raises(ConfigError):  # the project of an older version, which saved no columns
        known()
    assert known(pair_column="b") == (None, "b")
    project.set_settings({"text_column": "a", "pair_column": "b"})
    assert known() == ("a", "b")
    assert known(pair_column="B") == ("a", "B")
    with pytest.raises(ConfigError):
        known(pair_column="c")
    project = Project(tmp_path / "single", {"labels": ["yes", "no"]})
    project.add_texts([Queued(1, "one", "random", True)])
    assert known(text_column="a") == ("a", None)
    with pytest.raises(ConfigError):
        known(pair_column="b")


def test_a_used_up_random_sample_is_noted(capsys):
    texts = [Queued(row, "a", "random", row < 3) for row in range(5)]
    for wanted, noted in ((3, False), (4, True)):
        note_few_random(ChosenTexts(texts, {}, 20), wanted)
        assert bool(capsys.readouterr().err) == noted


def test_labels_of_random_texts_do_not_influence_the_choice():
    texts = [Queued(i, "text", "random" if i % 2 else "diverse", bool(i % 2), id=i) for i in range(1, 9)]
    x, task = np.random.default_rng(0).normal(size=(8, 4)), get_task("single-label")

    def fitted(labels):
        decisions = [Decision(i, "ann", "labelled", (label,)) for i, label in enumerate(labels, start=1)]
        return fit_project_head(Snapshot(["a", "b"], "single-label", texts, decisions, []), lambda rows: x[rows], task)

    head, counts = fitted("aabbaabb")
    other, same = fitted("babbbaab")
    assert counts.tolist() == same.tolist() == [2, 2]
    assert (head.logits(x) == other.logits(x)).all()
    assert fitted("abababab"[::-1]) == fitted("bababaaa") == (None, None)


def test_no_chosen_text_is_a_near_duplicate_of_a_random_one(tmp_path, tiny):
    texts = tiny_table(150)["Text"].drop_duplicates()[:30]
    table = pd.DataFrame({"Text": [text + mark for mark in (".", "!", "?", " …", "") for text in texts]})
    project = Project(tmp_path / "project", {"labels": ["animals", "colours", "fruits"]})
    chosen = bs.next_texts(project.path, table, n=20, model=str(tiny))
    random = chosen["random"].to_numpy()
    assert random.sum() == 4
    groups = group_near_duplicates([*chosen["Text"][random], *chosen["Text"][~random]])
    assert (groups[4:] == np.arange(4, 20)).all()


def test_random_texts_alone_may_be_the_whole_pool(pool, finished, tmp_path, tiny):
    new, used = (Project(tmp_path / name, {"labels": ["animals", "colours"]}) for name in ("new", "used"))
    table = pd.read_csv(pool).head(40)
    chosen = [bs.next_texts(new.path, table, n=n, random_share=1, model=str(tiny)) for n in (20, 40)]
    assert [len(rows) for rows in chosen] == [20, 19]  # one text is empty
    assert all(rows["random"].all() for rows in chosen)
    used.add_texts([Queued(1, "a", "diverse", False)])
    assert 0 < bs.next_texts(used.path, table, n=30, random_share=1, model=str(tiny))["random"].sum() <= 8

    table = pd.DataFrame({"Text": table["Text"].dropna() + " again"})
    assert bs.next_texts(finished, table, n=30, random_share=1, device="cpu")["random"].sum() == 30
    table.loc[0, "Text"] = tiny_table(150)["Text"][0]  # the run has seen it
    assert bs.next_texts(finished, table, n=30, random_share=1, device="cpu")["random"].sum() <= 7


def test_one_process_at_a_time_chooses_texts_for_a_project(pool, tmp_path, tiny):
    project = Project(tmp_path / "project", {"labels": ["animals", "colours", "fruits"]})
    with lock(project.path, "choosing"), pytest.raises(RunFolderError):
        bs.next_texts(project.path, pool, n=5, model=str(tiny))
    assert project.rows == []


def test_a_run_chooses_new_texts_the_same_with_the_same_seed(finished, pool, tmp_path, cli):
    seen = tiny_table(150)["Text"].tolist()
    with_seen = pd.concat([pd.read_csv(pool), pd.DataFrame({"Text": seen[:40]})])
    with_seen.to_csv(pool, index=False)
    outputs = []
    chosen = bs.next_texts(finished, pd.read_csv(pool), n=30, seed=1, device="cpu")
    for seed in (1, 1, 2):
        code, out, err = cli("next", finished, pool, "-n", "30", "--seed", seed, "--device", "cpu")
        assert code == 0, err
        outputs.append(out)
    assert outputs[0] == outputs[1] != outputs[2]
    (tmp_path / "out.csv").write_text(outputs[0])
    in_python, chosen = chosen, pd.read_csv(tmp_path / "out.csv")
    pd.testing.assert_frame_equal(in_python, chosen, check_dtype=False)
    assert len(chosen) == 30
    assert not set(chosen["Text"]) & set(seen)
    assert set(chosen["reason"]) == {"uncertain", "diverse", "random"}  # no class of the run is rare
    design = read_design({n: chosen[n].tolist() for n in ("random", "inclusion_probability")}, range(30), "table")
    assert design.usable.tolist() == chosen["random"].tolist()
    assert design.inclusion[design.usable] == pytest.approx(6 / 119)


def test_with_a_run_that_predicts_numbers_diverse_and_random_texts_are_chosen(finished, pool, monkeypatch):
    monkeypatch.setattr(Run, "task", "regression")
    chosen = bs.next_texts(finished, pool, n=20, device="cpu")
    assert set(chosen["reason"]) == {"diverse", "random"}


def test_chosen_rows_keep_large_integers(finished, pool):
    texts = pd.read_csv(pool)["Text"]
    ids = pd.array([None, *range(2**60 + 1, 2**60 + len(texts))], dtype="Int64")
    chosen = bs.next_texts(finished, ArrowTable(pd.DataFrame({"Text": texts, "id": ids})), n=len(texts), device="cpu")
    assert set(chosen["id"].dropna()) <= set(ids[1:])
    assert chosen["id"].isna().any()


@pytest.mark.parametrize("arguments", [(), ("missing.csv",), ("pool.csv", "-o", "pool.csv")])
def test_wrong_arguments_are_reported_and_nothing_changes(arguments, pool, tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    project = Project(tmp_path / "project", {"labels": ["a", "b"]})
    before = pool.read_bytes()
    code, _, _ = cli("next", project.path, *arguments)
    assert code == 2
    assert pool.read_bytes() == before
    assert project.texts == []
    assert cli("next", tmp_path / "nothing", pool)[0] == 2
    for wrong in ({"n": 0}, {"n": "5"}, {"n": 2.5}, {"random_share": 1.5}, {"random_share": "a"}):
        with pytest.raises(ConfigError):
            bs.next_texts(project.path, pool, **wrong)


@pytest.mark.parametrize("tool", ["labelstudio", "doccano", "prodigy", "argilla"])
def test_tasks_for_a_tool_have_the_chosen_texts(tool, pool, tmp_path, tiny, cli):
    project = Project(tmp_path / "project", {"labels": ["animals", "colours"]})
    code, out, err = cli("next", project.path, pool, "-n", "5", "--format", tool, "--model", tiny)
    assert code == 0, err
    is_array = tool in ("labelstudio", "argilla")
    tasks = json.loads(out) if is_array else [json.loads(line) for line in out.splitlines()]
    texts = [(task.get("data") or task.get("fields") or task)["text"] for task in tasks]
    assert texts == [text.text for text in project.texts]
    assert len(texts) == 5
    facts = [task.get("data") or task.get("meta") or task.get("metadata") or task for task in tasks]
    assert [task["hidden"] for task in facts] == [text.columns["hidden"] for text in project.texts]
    assert not any("Text" in task for task in facts)  # a task has the text only once


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".xlsx"])
def test_a_pool_of_earlier_predictions_is_written_as_it_is(suffix, tmp_path, cli, monkeypatch):
    """Its columns have the names of an output of predict, but other types."""
    cells = {"predicted": ["1", "none"], "predicted_texts": ["x", "y"], "confidence": ["0.9", ""], "mixed": [1, "n/a"]}
    rows = [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
    texts = [Queued(i, f"text {i}", "random", True, columns=row) for i, row in enumerate(rows, start=1)]
    chosen = ChosenTexts(texts, {1: 6.7e-9, 2: 6.7e-6}, 10**9)
    monkeypatch.setattr(choose_texts, "choose_texts", lambda *arguments, **options: chosen)
    out = tmp_path / f"out{suffix}"
    code, _, err = cli("next", tmp_path, "pool.csv", "-n", "2", "-o", out)
    assert code == 0, err
    found = read_raw(out, DataConfig()).frame
    assert found["inclusion_probability"].astype(float).tolist() == [6.7e-9, 6.7e-6]
    for name, values in cells.items():
        assert [str(cell) for cell in found[name].fillna("")] == [str(cell) for cell in values]
