"""Cached token ids are complete or ignored, and the cache stays within its size."""

import os

import pytest
from transformers import AutoTokenizer

from bertsmith.model import token_cache
from bertsmith.model.load import Loaded
from bertsmith.model.tokenizer import FastEncoder, encode
from bertsmith.testing import tiny_model, tiny_table
from tests.conftest import train

TEXTS = tiny_table(50)["Text"].tolist()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "cache_folder", lambda: tmp_path / "cache" / "tokens")
    monkeypatch.setattr(token_cache, "MIN_TEXTS", 10)
    return tmp_path / "cache" / "tokens"


@pytest.fixture
def tokenized(monkeypatch):
    """How many texts were tokenized."""
    counts = []
    tokenize = FastEncoder.tokenize

    def count(self, texts, names):
        counts.append(len(texts))
        return tokenize(self, texts, names)

    monkeypatch.setattr(FastEncoder, "tokenize", count)
    return counts


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


def _loaded(model, max_length=16):
    class Model:
        config = None

        def forward(self, input_ids, attention_mask, token_type_ids): ...

    return Loaded(Model(), AutoTokenizer.from_pretrained(model), None, max_length)


def _lists(tokens):
    return [row.tolist() for row in tokens.ids()]


def test_the_cache_can_be_turned_off(folder, tokenized, model):
    first, again = (encode(TEXTS, _loaded(model), cache=False) for _ in range(2))
    assert tokenized == [50, 50]
    assert not folder.exists()
    assert _lists(first) == _lists(again)


def test_the_no_token_cache_setting_keeps_no_token_ids(folder, tmp_path, tiny):
    train(tiny, tmp_path / "run", epochs=1, no_token_cache=True)
    assert not folder.exists()
    train(tiny, tmp_path / "other", epochs=1)
    assert folder.exists()


def test_the_same_texts_are_tokenized_once(folder, tokenized, model):
    first, again = (encode(TEXTS, _loaded(model)) for _ in range(2))
    assert tokenized == [50]
    tokenizer = _loaded(model).tokenizer
    assert _lists(again) == _lists(first) == tokenizer(TEXTS, truncation=True, max_length=16)["input_ids"]
    assert again.columns.keys() == first.columns.keys() == {"input_ids", "token_type_ids"}
    assert again.full_lengths.tolist() == first.full_lengths.tolist() == list(map(len, tokenizer(TEXTS)["input_ids"]))
    assert again.has_unknown.tolist() == first.has_unknown.tolist()
    assert again.truncate(4).ids()[0].tolist() == first.truncate(4).ids()[0].tolist()
    encode(TEXTS[:9], _loaded(model))  # too few to look for
    encode(TEXTS, _loaded(model, 8))  # another length
    encode(TEXTS[::-1], _loaded(model))
    encode([*TEXTS[:-2], TEXTS[-2] + TEXTS[-1], ""], _loaded(model))  # the same characters, divided otherwise
    assert tokenized == [50, 9, 50, 50, 50]
    assert len(list(folder.iterdir())) == 4
    assert oct(folder.stat().st_mode)[-2:] == "00"  # they say what the texts do


@pytest.mark.parametrize("damage", [lambda b: b[:-5], lambda b: b[:40] + b"!" + b[41:], lambda b: b""])
def test_a_damaged_cache_file_is_rebuilt(folder, tokenized, model, damage):
    first = _lists(encode(TEXTS, _loaded(model)))
    (file,) = folder.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert _lists(encode(TEXTS, _loaded(model))) == first
    assert _lists(encode(TEXTS, _loaded(model))) == first
    assert tokenized == [50, 50]


def test_the_cache_evicts_the_least_recently_used(folder, tokenized, model, monkeypatch):
    tables = [TEXTS[i:] + TEXTS[:i] for i in range(4)]
    for i, texts in enumerate(tables[:3]):
        encode(texts, _loaded(model))
        newest = max(folder.iterdir(), key=lambda file: file.stat().st_ctime_ns)
        os.utime(newest, (1000 + i, 1000 + i))
    encode(tables[0], _loaded(model))  # used again
    size = newest.stat().st_size
    monkeypatch.setattr(token_cache, "MAX_BYTES", 3 * size + size // 2)
    encode(tables[3], _loaded(model))
    assert len(list(folder.iterdir())) == 3
    tokenized.clear()
    for texts in (tables[0], tables[2], tables[3], tables[1]):
        encode(texts, _loaded(model))
    assert tokenized == [50]  # only the second one
    monkeypatch.setattr(token_cache, "MAX_BYTES", 10)
    encode(TEXTS[5:], _loaded(model))
    assert not [file for file in folder.iterdir() if file.name.startswith(".")]


def test_an_unwritable_cache_folder_is_not_an_error(tmp_path, monkeypatch, model):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(token_cache, "cache_folder", lambda: tmp_path / "file" / "tokens")
    monkeypatch.setattr(token_cache, "MIN_TEXTS", 10)
    assert len(encode(TEXTS, _loaded(model))) == 50
