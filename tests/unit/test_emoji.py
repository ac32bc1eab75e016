"""Emoji that a tokenizer does not know are read as their names, by whoever loads the model."""

import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import AutoTokenizer, pipeline

import bertsmith as bs
from bertsmith.errors import Interrupted
from bertsmith.inference.explain import explain
from bertsmith.model.emoji import _charsmap, _names, add_names_to_json
from bertsmith.model.tokenizer import Encoder
from bertsmith.testing import tiny_model, tiny_table
from tests.conftest import FAST, rows_of

KEYS = st.sampled_from(["a", "b", "é", "€", "😂", "🐕", "✨", "中", "Ω"])


def test_every_symbol_is_replaced_by_its_name():
    normalizer = normalizers.Precompiled(_charsmap(_names()))
    for symbol, name in _names().items():
        assert normalizer.normalize_str(f"x{symbol}y") == f"x{name}y", unicodedata.name(symbol)
    assert normalizer.normalize_str("plain, with é and 中") == "plain, with é and 中"


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(KEYS, st.text("xyz ", max_size=6), min_size=1), st.lists(KEYS, max_size=12))
def test_any_replacements_can_be_made(replacements, characters):
    text = "|".join(characters)
    expected = "".join(replacements.get(character, character) for character in text)
    assert normalizers.Precompiled(_charsmap(replacements)).normalize_str(text) == expected


def test_the_tokenizer_is_unchanged_without_unknown_symbols(tmp_path):
    content = (tiny_model(tmp_path / "m") / "tokenizer.json").read_text()
    for texts in ([], ["a cat and a dog"], ["un été, 中"], ["😂 has a name of words it does not know"]):
        assert add_names_to_json(content, texts) == (content, {})


def test_symbols_skin_tones_and_flags_are_read(tmp_path):
    content = (tiny_model(tmp_path / "m") / "tokenizer.json").read_text()
    named, found = add_names_to_json(content, ["a dog 🐕"])
    assert found == {"🐕": "dog"}
    encoder = Encoder(named)
    same = rows_of(encoder.encode(["my dog dog cat", "my🐕🐕 🐈"]))
    assert same[0] == same[1]
    texts = ["a dog 🐕", "an ox 🐂 or 🐕"]
    assert encoder.encode(texts).has_unknown.tolist() == [False, True]
    assert [encoder.unknown_words(text) for text in texts] == [[], ["an", "ox", "🐂", "or"]]
    assert add_names_to_json(named, ["a dog 🐕"]) == (named, {})  # it knows them now


def test_variation_selectors_are_skipped(tmp_path):
    content = json.loads((tiny_model(tmp_path / "m") / "tokenizer.json").read_text())
    content["normalizer"] = None  # as for cased text
    named, _ = add_names_to_json(json.dumps(content), ["a dog 🐕"])
    plain, *others = rows_of(Encoder(named).encode(["cat 🐕 1", "cat 🐕\ufe0f 1", "cat 🐕\ufe0e 1\ufe0f\u20e3"]))
    assert all(other == plain for other in others)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny):
    """Trained on words, and one emoji."""
    folder = tmp_path_factory.mktemp("symbols")
    table = tiny_table(150)
    table.loc[0, "Text"] = "my cat is here 🐈"
    return bs.train(table, output=folder / "run", model=str(tiny), **{**FAST, "epochs": 12})


TEXTS = ["🐕 and 🐄", "the🐑", "🍐 🍑 🍋", "red", "a cat 🐈"]


def test_emoji_absent_from_training_are_replaced(run):
    assert bs.load(run.path, device="cpu").predict(TEXTS) == ["animals", "animals", "fruits", "colours", "animals"]


def test_all_loaders_predict_the_same_with_emoji(run, tmp_path):
    ours = bs.load(run.path, device="cpu").predict_proba(TEXTS)
    assert AutoTokenizer.from_pretrained(run.layout.model).tokenize("🐕") == ["dog"]
    piped = pipeline("text-classification", str(run.layout.model), top_k=None, device="cpu")(TEXTS)
    names = run.labels.texts
    theirs = np.array([[{e["label"]: e["score"] for e in row}[name] for name in names] for row in piped])
    assert ours == pytest.approx(theirs, abs=1e-5)
    exported = bs.export(run.path, output=tmp_path / "onnx", format="onnx")
    assert bs.load(exported.path).predict_proba(TEXTS) == pytest.approx(ours, abs=1e-4)


def test_the_run_records_how_emoji_are_read(run):
    found = {f["kind"]: f for f in run.info["data"]["findings"]["findings"]}
    assert found["symbols"]["count"] == 1
    assert "🐈 as 'cat'" in found["symbols"]["action"]


def test_a_run_with_names_is_resumed_and_trained_on(run, tiny, tmp_path):
    steps = iter(range(100))
    table = tiny_table(150)
    table.loc[0, "Text"] = "my cat is here 🐈"
    with pytest.raises(Interrupted):
        bs.train(table, output=tmp_path / "cut", model=str(tiny), stop=lambda: next(steps) > 14, **FAST)
    whole = bs.train(table, output=tmp_path / "whole", model=str(tiny), **FAST)
    resumed = bs.train(table, output=tmp_path / "cut", model=str(tiny), resume=True, **FAST)
    assert resumed.predictions["confidence"].tolist() == whole.predictions["confidence"].tolist()
    again = bs.train(table, output=tmp_path / "again", model=str(run.layout.model), **FAST)
    assert bs.load(again.path, device="cpu").predict(["🐕"]) == ["animals"]


def test_an_emoji_is_explained_as_one_word(run):
    pytest.importorskip("captum")
    explained = explain(bs.load(run.path, device="cpu"), "a 🐕🐈 is 🍈 here")
    assert [word.text for word in explained.words] == ["a", "🐕", "🐈", "is", "🍈", "here"]
