"""Word attributions: their sum, the words they belong to, and their page."""

import html
import json
import re
import time

import numpy as np
import pandas as pd
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import bertsmith as bs
from bertsmith.data.table import Labels
from bertsmith.errors import ConfigError, DataError, ModelError
from bertsmith.inference.classifier import Classifier
from bertsmith.inference.explain import (
    EXPLAINED_TOKENS,
    TOLERANCE,
    OutOfTimeError,
    _words,
    can_explain,
    explain,
    explain_mistakes,
)
from bertsmith.model import forward
from bertsmith.tasks.registry import get_task
from bertsmith.testing import ARCHITECTURES, WORDS, tiny_model, tiny_table
from tests.conftest import FAST


@pytest.mark.parametrize("label", [None, "animals", "colours", "fruits"])
def test_attributions_sum_to_the_change_in_the_logit(label, classifier):
    for text in ["my cat and your dog near 7", "here is a red apple, very quite", "that"]:
        found = explain(classifier, text, label)
        assert sum(w.attribution for w in found.words) == pytest.approx(found.change + found.gap, abs=1e-4)
        assert abs(found.gap) <= TOLERANCE * max(abs(found.change), 1.0)
        assert found.label_text == (label or found.predicted_text)


def test_the_attributed_change_matches_the_logits(classifier):
    import torch

    text = "my cat and your dog"
    found = explain(classifier, text)
    tokenizer, model = classifier.loaded.tokenizer, classifier.loaded.model
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    padded = ids.clone()
    padded[0, 1:-1] = tokenizer.pad_token_id
    target = classifier.labels.texts.index(found.label_text)
    with torch.no_grad():
        logits = [
            model(input_ids=i, attention_mask=torch.ones_like(ids)).logits[0, target].item() for i in (ids, padded)
        ]
    assert found.change == pytest.approx(logits[0] - logits[1], abs=1e-4)


def test_the_decisive_word_has_the_highest_score(classifier):
    named = []
    for name in list(WORDS)[:3]:
        for telling in WORDS[name]:
            found = explain(classifier, f"this is quite near my {telling} but there", name)
            named.append(max(found.words, key=lambda w: w.attribution).text == telling)
    assert sum(named) >= 10  # of 30: so tiny a model has not learned every word, and chance would name 4


def test_explanations_respect_their_time_limit(classifier, monkeypatch):
    with pytest.raises(OutOfTimeError):
        explain(classifier, "my cat and your dog", deadline=time.perf_counter())
    table = tiny_table(30)
    predictions = pd.DataFrame({"row": range(30), "text": table["Text"], "label": 0, "predicted": 1, "confidence": 0.9})
    lengths = classifier.count_tokens(table["Text"].tolist())
    assert explain_mistakes(classifier, predictions, lengths, seconds=0.0)
    assert len(explain_mistakes(classifier, predictions, lengths + EXPLAINED_TOKENS, seconds=0.0)) >= 1
    monkeypatch.setattr("bertsmith.inference.explain.EXPLAINED_SECONDS", 0.0)
    assert explain_mistakes(classifier, predictions, lengths, seconds=0.0) == []


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_explained(architecture, tmp_path):
    model = tiny_model(tmp_path / "model", architecture)
    run = bs.train(tiny_table(60), output=tmp_path / "run", model=str(model), **{**FAST, "epochs": 1})
    text = "  Red cats, near\tthe plum "
    found = explain(Classifier.load(run.path, device="cpu"), text)
    assert all(found.text[w.start : w.end] == w.text for w in found.words)
    assert "".join(w.text for w in found.words) == "Redcats,neartheplum"
    assert "".join(w.text + w.after for w in found.words) == text.strip()
    assert abs(found.gap) <= TOLERANCE * max(abs(found.change), 1.0)


@pytest.mark.parametrize("trim", [True, False])
def test_tokens_of_white_space_belong_to_the_next_word(trim):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(["[CLS]", "[SEP]", *alphabet])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("[SEP]", 1), ("[CLS]", 0), trim, add_prefix_space=False)
    text = "one  two.\n\nthree é12 "
    encoding = tokenizer.encode(text)
    values = [0.0, *range(1, len(encoding) - 1), 0.0]
    words = _words(text, encoding.word_ids, encoding.offsets, values, [])
    assert [word.text for word in words] == ["one", "two", ".", "three", "é", "12"]
    assert "".join(word.text + word.after for word in words) == text.rstrip()
    assert sum(word.attribution for word in words) == sum(values)
    assert words[1].attribution == sum(range(4, 9))  # two spaces, three letters


def test_the_command_prints_json_and_a_page(cli, finished, tmp_path):
    evil = "<script>canary()</script> my cat"
    arguments = ("--text", "a red plum", "--text", evil, "--html", tmp_path / "why.html", "--json", "--device", "cpu")
    code, out, err = cli("explain", finished, *arguments)
    assert code == 0
    found = json.loads(out)
    assert [f["text"] for f in found] == ["a red plum", evil]
    page = (tmp_path / "why.html").read_text()
    assert "<script>canary" not in page
    assert "canary" in page
    assert "why.html" in err
    code, out, _ = cli("explain", finished, "--text", "a red plum", "--label", "fruits", "--device", "cpu")
    assert code == 0
    assert "fruits, probability 0." in out
    assert "sum to" in out


def test_explanations_show_the_original_words(cli, finished, classifier, tmp_path):
    text = "Don't faint.  It’s a red,blue cat."
    arguments = ("explain", finished, "--text", text, "--device", "cpu")
    code, out, _ = cli(*arguments, "--html", tmp_path / "why.html", "--json")
    assert code == 0
    words = json.loads(out)[0]["words"]
    assert [w["text"] for w in words] == ["Don't", "faint", ".", "It’s", "a", "red", ",", "blue", "cat", "."]
    assert "".join(w["text"] + w["after"] for w in words) == text
    shown = re.search(r'<p class="text highlighted">(.*?)</p>', (tmp_path / "why.html").read_text())[1]
    assert ".text { white-space: pre-wrap;" in (tmp_path / "why.html").read_text()
    assert html.unescape(re.sub("<[^>]+>", "", shown)) == text
    assert [w.text for w in explain(classifier, "3.5 of 1,000").words] == ["3.5", "of", "1,000"]
    lines = cli(*arguments)[1].splitlines()
    assert lines[0] == text
    assert any(line.endswith("  Don't") for line in lines)


def test_unread_characters_are_reported(cli, finished, classifier):
    text = " ".join(["cat"] * 100)
    found = explain(classifier, text)
    assert found.unread == len(text) - found.words[-1].end > 0
    out = cli("explain", finished, "--text", text, "--device", "cpu")[1]
    assert f"by the model: {found.unread:,} characters" in " ".join(out.split())
    assert explain(classifier, "a cat").unread == 0


def test_inputs_that_cannot_be_explained_are_errors(cli, finished, classifier, monkeypatch):
    code, _, err = cli("explain", finished, "--text", "a", "--label", "fruit", "--device", "cpu")
    assert code == 2
    assert "Did you mean 'fruits'" in err
    with pytest.raises(DataError, match="empty"):
        explain(classifier, " \n")
    monkeypatch.setitem(__import__("sys").modules, "captum.attr", None)
    with pytest.raises(ConfigError, match="captum"):
        explain(classifier, "a cat")


def test_the_tolerance_for_numbers_does_not_depend_on_their_unit(classifier, monkeypatch):
    monkeypatch.setattr(classifier, "task", get_task("regression"))
    monkeypatch.setattr("bertsmith.inference.explain.STEPS", (2, 4))
    monkeypatch.setattr("bertsmith.inference.explain.TOLERANCE", 1e-9)
    compute = forward.logits_from_embeddings
    for unit in (1.0, 1e-12):
        monkeypatch.setattr(forward, "logits_from_embeddings", lambda *args, unit=unit: unit * compute(*args))
        assert explain(classifier, "a red cat").steps == 4


def test_a_single_label_has_a_name(classifier, monkeypatch):
    monkeypatch.setattr(classifier, "labels", Labels((0,), ("toxic",)))
    with pytest.raises(ConfigError) as caught:
        explain(classifier, "a cat", "other")
    assert "toxic" in caught.value.remedy


def test_a_tokenizer_in_python_is_not_explained(classifier, monkeypatch):
    """It cannot say where a token comes from; training such a model must still finish."""
    predictions = pd.DataFrame({"row": [0], "text": ["a cat"], "label": 0, "predicted": 1, "confidence": 0.9})
    monkeypatch.setattr(type(classifier.loaded.tokenizer), "is_fast", False)
    assert explain_mistakes(classifier, predictions, np.array([4]), seconds=0.0) == []
    assert not can_explain(classifier)
    with pytest.raises(ModelError):
        explain(classifier, "a cat")


@pytest.mark.parametrize(("words", "expected"), [(11, "and 1 more word "), (13, "and 3 more words ")])
def test_words_that_are_not_shown_are_counted(words, expected, cli, finished):
    text = " ".join(["plum"] * words)
    assert expected in cli("explain", finished, "--text", text, "--device", "cpu")[1]
