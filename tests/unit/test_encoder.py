"""Texts to token ids: the same as the checkpoint's own tokenizer gives, from several threads at once."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from bertsmith.model.encode import count_tokens, encoder_of
from bertsmith.testing import tiny_model, tiny_table

NAMES = ("input_ids", "token_type_ids", "attention_mask")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(tiny_model(tmp_path_factory.mktemp("model")))


class Slow:
    """A tokenizer that the tokenizers library does not have."""

    is_fast = False

    def __init__(self, tokenizer):
        self.tokenizer, self.model_input_names = tokenizer, tokenizer.model_input_names

    def __call__(self, *args, **kwargs):
        return self.tokenizer(*args, **kwargs)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.sampled_from("abcat dog😂 é0\n"), max_size=80), max_size=8), st.integers(3, 20))
def test_the_ids_are_those_of_the_tokenizer(tokenizer, texts, max_length):
    for one in (tokenizer, Slow(tokenizer)):
        encoder = encoder_of(one, max_length)
        if texts:
            expected = tokenizer(texts, truncation=True, max_length=max_length)
            assert encoder.columns(texts, NAMES) == {name: expected[name] for name in NAMES}
            whole = tokenizer(texts, verbose=False)["input_ids"]
            assert encoder.count(texts).tolist() == count_tokens(texts, one).tolist() == list(map(len, whole))
            assert encoder.offsets(texts[0]) == tokenizer(texts[0], return_offsets_mapping=True)["offset_mapping"]


def test_the_side_that_is_cut_off_is_that_of_the_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    left = AutoTokenizer.from_pretrained(tmp_path, truncation_side="left")
    text = " ".join("0123456789")
    found = encoder_of(left, 6).columns([text])["input_ids"]
    assert found == [left(text, truncation=True, max_length=6)["input_ids"]]
    assert found != encoder_of(tokenizer, 6).columns([text])["input_ids"]


@pytest.mark.parametrize("slow", [False, True])
def test_several_threads_may_ask_for_cut_and_for_whole_texts(tokenizer, slow):
    encoder = encoder_of(Slow(tokenizer) if slow else tokenizer, 5)
    texts = [f"{text} and the cat and the dog" for text in tiny_table(200)["Text"]]
    cut, whole = encoder.columns(texts), encoder.count(texts)
    assert max(map(len, cut["input_ids"])) == 5 < whole.min()
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(encoder.columns if i % 2 else encoder.count, texts) for i in range(40)]
    for i, answer in enumerate(asked):
        assert answer.result() == cut if i % 2 else np.array_equal(answer.result(), whole)
