"""Texts to token ids: the same as the checkpoint's own tokenizer gives, from several threads at once."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bertsmith.model.tokenizer import Encoder, encoder_for
from bertsmith.model.tokens import Tokens
from bertsmith.testing import tiny_model, tiny_table
from tests.conftest import rows_of

NAMES = ("input_ids", "token_type_ids")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
LETTERS = ["a", "b", "c", "ab", "0", ":"]


def _word_pieces():
    found = Tokenizer(
        models.WordPiece({w: i for i, w in enumerate([*SPECIAL, *LETTERS, "##a", "##b"])}, unk_token="[UNK]")
    )
    found.normalizer, found.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    found.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return found


def _bytes():
    words = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    found = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, []))
    found.pre_tokenizer, found.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    found.post_processor = processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2), add_prefix_space=False)
    return found


def _unigram(template):
    pieces = [*((w, 0.0) for w in SPECIAL), *(("▁" + w, -2.0) for w in LETTERS), *((w, -3.0) for w in LETTERS)]
    found = Tokenizer(models.Unigram(pieces, unk_id=1))
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    found.post_processor = processors.TemplateProcessing(
        single=template, pair="$A $B", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return found


FAMILIES = {
    "BERT": _word_pieces,
    "RoBERTa": _bytes,
    "DeBERTa": lambda: _unigram("[CLS] $A [SEP]"),
    "XLNet": lambda: _unigram("$A:0 [SEP]:0 [CLS]:2"),
    "T5": lambda: _unigram("$A [SEP]"),
    "no special tokens": lambda: _unigram("$A"),
}


def _tokenizer(family, side):
    made = FAMILIES[family]()
    made.add_special_tokens(SPECIAL)
    names = ["input_ids", "token_type_ids", "attention_mask"]
    special = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=made, truncation_side=side, model_input_names=names, **special)


class Slow:
    """A tokenizer that the tokenizers library does not have."""

    is_fast = False

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, *args, **kwargs):
        return self.tokenizer(*args, **kwargs)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


@pytest.fixture(scope="module")
def made():
    return {(family, side): _tokenizer(family, side) for family in FAMILIES for side in ("left", "right")}


def _lists(tokens):
    ends = tokens.starts[1:]
    return {name: [row.tolist() for row in np.split(values, ends)] for name, values in tokens.columns.items()}


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.lists(st.sampled_from([*"abc0é😂 :", "ab", "[SEP]", "[CLS]"]), max_size=60).map("".join)),
    lengths=st.lists(st.integers(2, 20), min_size=2, max_size=2),
)
def test_truncated_ids_match_the_tokenizer(made, family, side, slow, texts, lengths):
    tokenizer = made[family, side]
    encoder = encoder_for(Slow(tokenizer) if slow else tokenizer)
    texts = [text for text in texts if tokenizer(text)["input_ids"]]
    whole = encoder.encode(texts, NAMES)
    if not texts:
        assert len(whole) == 0
        return
    expected = tokenizer(texts, verbose=False)
    assert _lists(whole) == {name: expected[name] for name in NAMES}
    assert whole.full_lengths.tolist() == list(map(len, expected["input_ids"]))
    assert whole.has_unknown.tolist() == [encoder.unknown_id in ids for ids in expected["input_ids"]]
    assert [bool(encoder.unknown_words(text)) for text in texts] == whole.has_unknown.tolist()
    longer, shorter = sorted(lengths, reverse=True)
    expected = tokenizer(texts, truncation=True, max_length=shorter)
    for cut in (encoder.encode(texts, NAMES, shorter), encoder.encode(texts, NAMES, longer).truncate(shorter)):
        assert _lists(cut) == {name: expected[name] for name in NAMES}
        assert cut.full_lengths.tolist() == whole.full_lengths.tolist()
        assert cut.is_truncated.tolist() == (whole.full_lengths > shorter).tolist()
    end = made[family, "left"](texts, truncation=True, max_length=shorter)
    assert _lists(whole.truncate(shorter, left=True)) == {name: end[name] for name in NAMES}
    order = np.arange(len(texts))[::-1]
    assert _lists(whole.take(order)) == {name: values[::-1] for name, values in _lists(whole).items()}


@pytest.mark.parametrize("slow", [False, True])
def test_tokens_can_be_sent_to_another_process(made, slow, monkeypatch):
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", not slow)
    tokens = encoder_for(made["BERT", "right"]).encode(["a b", "c"], NAMES)
    again = pickle.loads(pickle.dumps(tokens))
    assert _lists(again.encoder.encode(["a b", "c"], NAMES)) == _lists(tokens)


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("texts", [["", "a"], [("", ""), ("a", "")]])
def test_a_text_without_tokens_is_unknown(made, texts, slow):
    tokenizer = made["no special tokens", "right"]
    encoder = encoder_for(Slow(tokenizer) if slow else tokenizer)
    tokens = encoder.encode(texts, NAMES, 8)
    assert _lists(tokens) == {"input_ids": [[1], [4]], "token_type_ids": [[0], [0]]}
    assert tokens.has_unknown.tolist() == [True, False]
    assert tokens.truncate(4).full_lengths.tolist() == [1, 1]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(FAMILIES)), st.lists(st.integers(0, 60), max_size=6), st.integers(3, 12))
def test_windows_are_as_long_as_allowed_overlap_and_cover_every_token(made, family, sizes, max_length):
    encoder = encoder_for(made[family, "right"])
    before, after = encoder.special_counts
    content = max_length - before - after
    texts = [" ".join(["a", "b", "c", "0"] * 15)[: 2 * size] for size in sizes]
    whole = encoder.encode(texts)
    windows, counts = whole.windows(max_length)
    assert len(counts) == len(texts)
    found = iter(rows_of(windows))
    for ids, count in zip(rows_of(whole), counts, strict=True):
        of_text = [next(found) for _ in range(count)]
        if len(ids) <= max_length:
            assert of_text == [ids]
            continue
        step = max(content - content // 4, 1)
        starts = [*range(0, len(ids) - max_length, step), len(ids) - max_length]
        inner = ids[before : len(ids) - after]
        head, tail = ids[:before], ids[len(ids) - after :]
        assert of_text == [head + inner[start : start + content] + tail for start in starts]
        assert starts[-1] + content == len(inner)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(FAMILIES)), st.lists(st.integers(0, 60), max_size=6), st.integers(3, 12))
def test_head_and_tail_are_a_quarter_and_the_rest_of_the_content(made, family, sizes, max_length):
    encoder = encoder_for(made[family, "right"])
    before, after = encoder.special_counts
    content = max_length - before - after
    head = round(content / 4)
    whole = encoder.encode([" ".join(["a", "b", "c", "0"] * 15)[: 2 * size] for size in sizes])
    cut = whole.head_tail(max_length)
    for ids, found, is_cut in zip(rows_of(whole), rows_of(cut), cut.is_truncated, strict=True):
        inner, end = ids[before : len(ids) - after], ids[len(ids) - after :]
        assert is_cut == (len(ids) > max_length)
        kept = inner[:head] + inner[len(inner) - (content - head) :] if is_cut else inner
        assert found == ids[:before] + kept + end
    assert np.array_equal(cut.head_tail(max_length).truncated_lengths, cut.truncated_lengths)
    assert whole.read(max_length, "window") is whole


def test_head_and_tail_of_512_tokens_are_those_of_sun_et_al():
    tokens = Tokens.from_lists({"input_ids": [list(range(1000))]})
    kept = tokens.head_tail(510).columns["input_ids"]  # and two special tokens
    assert kept.tolist() == [*range(128), *range(1000 - 382, 1000)]


def test_encoders_of_the_same_tokenizer_have_the_same_key(made, tmp_path):
    tokenizer = made["BERT", "right"]
    key = encoder_for(tokenizer).key
    tokenizer(["a b", "c"], truncation=True, max_length=3, padding="max_length")  # which it then remembers
    assert encoder_for(tokenizer).key == key
    tokenizer.save_pretrained(tmp_path)
    assert encoder_for(AutoTokenizer.from_pretrained(tmp_path)).key == key
    assert Encoder((tmp_path / "tokenizer.json").read_text()).key == key
    assert encoder_for(made["BERT", "left"]).key != key != encoder_for(made["RoBERTa", "right"]).key
    assert encoder_for(Slow(tokenizer)).key is None


@pytest.mark.parametrize("slow", [False, True])
def test_concurrent_predictions_are_safe(slow, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model(tmp_path))
    encoder = encoder_for(Slow(tokenizer) if slow else tokenizer)
    texts = [f"{text} and the cat and the dog" for text in tiny_table(200)["Text"]]
    cut, whole = (_lists(encoder.encode(texts, NAMES, n)) for n in (5, None))
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(encoder.encode, texts, NAMES, 5 if i % 2 else None) for i in range(40)]
    for i, answer in enumerate(futures):
        assert _lists(answer.result()) == (cut if i % 2 else whole)
