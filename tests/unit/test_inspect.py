import json
import re

import numpy as np
import pandas as pd
import pytest

import bertsmith as bs
from bertsmith.data.inspect import choose_max_length, estimate_tokens
from bertsmith.data.language import guess_language
from bertsmith.report.report import findings_page
from bertsmith.testing import tiny_model, tiny_table


def _kinds(frame, **settings):
    found = bs.inspect(bs.read_table(frame, **settings))
    return {f.kind: f for f in found.findings}


def _with(rows):
    return pd.concat([tiny_table(60), pd.DataFrame(rows, columns=["Label", "Label Text", "Text"])], ignore_index=True)


def test_a_clean_table_has_no_findings(table):
    found = bs.inspect(bs.read_table(table))
    assert found.findings == ()
    assert (found.rows, found.usable, len(found.classes), found.imbalance) == (120, 120, 3, 1.0)


@pytest.mark.parametrize(
    ("row", "kind", "severity"),
    [
        ((0, "animals", "   "), "empty-text", "warning"),
        ((None, None, "something"), "missing-label", "warning"),
        ((0, "animals", tiny_table(1)["Text"][0]), "duplicate", "info"),
        ((1, "colours", tiny_table(1)["Text"][0]), "conflict", "warning"),
        ((0, "animals", "the cafÃ© was fine"), "encoding-damage", "warning"),
        ((0, "animals", "<p>my cat<br/></p>"), "html", "warning"),
        ((0, "animals", "cat\x00dog"), "normalised", "info"),
    ],
)
def test_each_problem_is_found_with_its_row(row, kind, severity):
    finding = _kinds(_with([row]))[kind]
    assert finding.severity == severity
    assert finding.count == (2 if kind == "conflict" else 1)
    assert finding.action
    if kind == "conflict":
        assert finding.rows == (1, 61)
    elif kind != "normalised":
        assert finding.rows == (61,)


def test_small_classes_and_labels_that_differ_in_case_are_found():
    rows = [(7, "rare", "a b"), (7, "rare", "c d"), (8, "Rare", "e f"), *((9, "few", f"g {i}") for i in range(5))]
    kinds = _kinds(_with(rows))
    assert "rare (2)" in kinds["class-too-small"].message
    assert "Rare (1)" in kinds["class-too-small"].message
    assert "few (5)" in kinds["small-class"].message
    assert kinds["labels-alike"].count == 2
    assert kinds["imbalance"].severity == "info"


def test_few_joined_labels_and_many_single_texts_are_found():
    assert _kinds(_with([(7, "animals;colours", "a b")]))["joined-labels"].count == 1
    single = _with([(i, f"class {i}", f"a b {i}") for i in range(10, 40)])
    finding = _kinds(single)["near-unique-labels"]
    assert (finding.severity, finding.count) == ("warning", 30)
    assert "near-unique-labels" not in _kinds(single.head(75))


def test_classes_and_imbalance_are_shown_by_split(tmp_path, cli):
    train, test = tiny_table(120), tiny_table(30, seed=5)
    train = train.drop(train.index[train["Label"] == 0][10:])  # 10, 40, 40
    test = test.drop(test.index[test["Label"] == 1][2:])  # 10, 2, 10
    train.to_csv(tmp_path / "t.csv", index=False)
    test.to_csv(tmp_path / "test.csv", index=False)
    arguments = ("inspect", tmp_path / "t.csv", "--test", tmp_path / "test.csv")
    found = json.loads(cli(*arguments, "--json", "--html", tmp_path / "page.html")[1])
    assert [(c["rows"], c["splits"]) for c in found["classes"]] == [
        (20, {"train": 10, "test": 10}),
        (42, {"train": 40, "test": 2}),
        (50, {"train": 40, "test": 10}),
    ]
    assert found["splits"] == {"train": 90, "test": 22}
    assert (found["imbalance"], found["imbalances"]) == (4, {"train": 4, "test": 5})
    page = (tmp_path / "page.html").read_text()
    assert re.search(r"<th[^>]*>train</th><th[^>]*>test</th><th[^>]*>share of train</th>", page)
    assert re.search(r">colours</td><td[^>]*>40</td><td[^>]*>2</td><td[^>]*>44.4", page)
    assert "4.0 (train), 5.0 (test)" in page
    shown = cli(*arguments)[1]
    assert re.search(r"train +test +of train", shown)
    assert re.search(r"colours +40 +2 +44.4%", shown)
    assert re.search(r"4\.0 : 1 in train, 5\.0 : 1 in test", shown)


def test_leaks_between_given_splits_are_found():
    frame = tiny_table(60).assign(part=["train"] * 40 + ["validation"] * 10 + ["test"] * 10)
    frame.loc[45, "Text"] = frame.loc[0, "Text"] = frame.loc[50, "Text"]
    frame.loc[45, "Label"], frame.loc[45, "Label Text"] = frame.loc[50, "Label"], frame.loc[50, "Label Text"]
    finding = _kinds(frame, split_column="part")["leak-test"]
    assert (finding.count, finding.rows) == (2, (1, 46))


def test_rows_of_another_file_are_named_with_the_file(tmp_path):
    tiny_table(60).to_csv(tmp_path / "train.csv", index=False)
    test = tiny_table(20, seed=5)
    test.loc[3, "Text"] = test.loc[0, "Text"]
    test.to_csv(tmp_path / "test.csv", index=False)
    kinds = {f.kind: f for f in bs.inspect(bs.read_table(tmp_path / "train.csv", test=tmp_path / "test.csv")).findings}
    assert kinds["duplicate-held-out"].rows == ("test.csv 4",)


def test_a_mix_of_languages_is_found():
    german = [(0, "animals", f"ich habe die Katze und den Hund nicht gesehen, das ist so {i}") for i in range(12)]
    english = [(1, "colours", f"the house is red and this is what you have to see, my friend {i}") for i in range(30)]
    finding = _kinds(pd.DataFrame(german + english, columns=["Label", "Label Text", "Text"]))["languages"]
    assert finding.count == 12
    assert "German" in finding.message


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("the cat is on the mat and it is not my cat", "English"),
        ("le chat est sur le tapis et les chiens ne sont pas dans la maison", "French"),
        ("кошка сидит на ковре и смотрит в окно", "Cyrillic"),
        ("猫はマットの上に座っています", "Japanese"),
        ("ok", None),
    ],
)
def test_the_language_is_guessed(text, language):
    assert guess_language(text) == language


def test_truncation_is_counted_exactly_with_a_tokenizer(tmp_path, table):
    model = tiny_model(tmp_path / "m")
    table.loc[:9, "Text"] = [f"cat dog {'bird ' * 30}{i}" for i in range(10)]
    found = bs.inspect(table, model=str(model), max_length=16)
    assert found.tokens.unit == "tokens"
    assert found.tokens.longest == 2 + 30 + 1 + 2  # words, number, [CLS] and [SEP]
    assert found.truncated == pytest.approx(10 / 120)
    unread = next(f for f in found.findings if f.kind == "unread")
    assert {f.kind for f in found.findings} == {"truncated", "unread"}
    assert unread.count == 110  # texts with a number of several digits; the vocabulary has only single digits
    assert "'10', '11', '100'" in unread.message
    assert sum(found.tokens.counts) == 120


def test_max_length_covers_the_texts_up_to_the_limit_of_the_model():
    lengths = np.arange(1, 101)
    assert choose_max_length(lengths, 512) == 104
    assert choose_max_length(lengths, 64) == 64
    assert choose_max_length(np.array([3]), 512) == 8
    assert estimate_tokens(["one two, three"]).tolist() == [6]


def test_findings_are_json_html_and_notebook_ready(table):
    table.loc[0, "Text"] = "<script>alert(1)</script> <b>cat</b>"
    found = bs.inspect(table)
    assert json.loads(json.dumps(found.to_dict()))["rows"] == 120
    assert found._repr_html_().startswith("<pre")
    assert "<script>alert" not in findings_page(found)


def test_reading_settings_for_a_read_table_are_refused(table):
    with pytest.raises(bs.UserError, match="'text_column'"):
        bs.inspect(bs.read_table(table), text_column="Text")


def test_a_table_without_a_usable_training_text_is_refused(cli, tmp_path):
    for name in ("t.csv", "test.csv"):
        tiny_table(60).to_csv(tmp_path / name, index=False)
    code, out, err = cli("inspect", tmp_path / "t.csv", "--test", tmp_path / "test.csv")
    assert code == 2
    assert "train split" in " ".join(out.split())
    assert "train split" in " ".join(err.split())


@pytest.mark.parametrize("labels", ["aaaaaaaa", "ab", "aabb"])
def test_a_table_that_train_refuses_is_reported_with_the_reason_and_exit_code_2(labels, cli, tiny, tmp_path):
    frame = pd.DataFrame({"Text": [f"text {i} {label}" for i, label in enumerate(labels)], "Label": list(labels)})
    frame.to_csv(tmp_path / "t.csv", index=False)
    train = cli("train", tmp_path / "t.csv", "-o", tmp_path / "run", "--model", tiny, "--near-duplicates", "ignore")
    assert train[0] == 2
    reason = re.search(r"error: (.+)", train[2])[1]
    code, out, err = cli("inspect", tmp_path / "t.csv", "--near-duplicates", "ignore", "--json")
    found = json.loads(out)
    assert code == 2
    assert found["rows"] == len(labels)
    (refused,) = [f for f in found["findings"] if f["severity"] == "error"]
    assert refused["kind"] == "refused"
    assert reason in refused["message"]
    assert reason in err
    classes = len(set(labels))
    assert f"{classes} {'class' if classes == 1 else 'classes'}," in cli("inspect", tmp_path / "t.csv")[1]


def test_the_json_of_a_table_without_usable_rows_is_valid(cli, tmp_path):
    pd.DataFrame({"Text": ["", "", "", ""], "Label": list("abab")}).to_csv(tmp_path / "t.csv", index=False)
    code, out, _ = cli("inspect", tmp_path / "t.csv", "--json")
    assert code == 2
    assert json.loads(out, parse_constant=pytest.fail)["usable"] == 0


def test_a_table_that_train_accepts_has_no_error(cli, tmp_path):
    tiny_table(60).to_csv(tmp_path / "t.csv", index=False)
    code, out, _ = cli("inspect", tmp_path / "t.csv", "--json")
    assert code == 0
    assert "error" not in [f["severity"] for f in json.loads(out)["findings"]]
