"""How a batch is cut changes nothing but memory and speed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bertsmith.compute.batching import micro_batches
from bertsmith.data.table import Labels
from bertsmith.model import checkpoint, forward
from bertsmith.model.load import LoadedModel, load_model, load_tokenizer
from bertsmith.model.tokens import Tokens
from bertsmith.testing import tiny_model
from bertsmith.training.data import TokenDataset
from bertsmith.training.losses import CrossEntropy
from tests.conftest import rows_of, split_batch


@given(st.lists(st.integers(0, 600), max_size=60), st.integers(1, 4096))
def test_micro_batches_hold_every_text_once_and_keep_to_the_budget(lengths, budget):
    lengths = np.array(lengths, dtype=int)
    groups = micro_batches(lengths, budget)
    assert sorted(int(i) for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or lengths[group].max() * len(group) <= budget


@given(st.lists(st.integers(1, 600), min_size=1, max_size=60), st.integers(1, 4096), st.integers(0, 300))
def test_micro_batches_are_split_only_to_limit_padding(lengths, budget, padding):
    lengths = np.array(lengths)
    groups = micro_batches(lengths, budget, padding=padding)
    assert sorted(int(i) for group in groups for i in group) == list(range(len(lengths)))
    for i, group in enumerate(groups):
        longest, n = lengths[group].max(), len(group)
        assert n == 1 or longest * n <= budget
        assert longest * n - lengths[group].sum() <= padding
        if i + 1 < len(groups):
            added = longest - lengths[groups[i + 1]].max()
            assert longest * (n + 1) > budget or longest * n - lengths[group].sum() + added > padding


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.integers(1, 400),
    st.booleans(),
    st.booleans(),
)
def test_splitting_keeps_every_token(lengths, budget, packed, typed):
    rng = np.random.default_rng(0)
    columns = {"input_ids": [rng.integers(1, 50, n).tolist() for n in lengths]}
    if typed:
        columns["token_type_ids"] = [rng.integers(0, 2, n).tolist() for n in lengths]
    batch = TokenDataset(Tokens.from_lists(columns), rng.integers(0, 3, len(lengths)))

    def texts(batch):
        split = [rows_of(batch.tokens, name) for name in columns]
        return sorted(zip(*split, batch.targets.tolist(), strict=True))

    assert sorted(text for part in split_batch(batch, budget, packed=packed) for text in texts(part)) == texts(batch)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A model that Hugging Face's own forward pass computes."""
    folder = tiny_model(tmp_path_factory.mktemp("albert"), "albert", initializer_range=0.3)
    found = checkpoint.resolve(str(folder))
    model = load_model(found, Labels((0, 1, 2), ("a", "b", "c"))).eval()  # dropout off
    return LoadedModel(model, load_tokenizer(found), torch.device("cpu"), 64)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 600), st.sampled_from([0.0, 0.1]))
def test_gradients_of_padded_texts_equal_those_of_the_batch(loaded, lengths, budget, smoothing):
    model, rng = loaded.model, np.random.default_rng(0)
    tokens = Tokens.from_lists({"input_ids": [rng.integers(5, 40, n).tolist() for n in lengths]})
    batch = TokenDataset(tokens, rng.integers(0, 3, len(lengths)))

    def gradient(parts, loss):
        model.zero_grad()
        for part in parts:
            loss(forward.outputs(loaded, part.tokens), part.targets).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    expected = gradient([batch], torch.nn.CrossEntropyLoss(label_smoothing=smoothing))
    loss = CrossEntropy(smoothing)
    parts = split_batch(batch, budget, packed=False)
    found = gradient(parts, lambda logits, labels: loss.of_step(logits, labels, len(lengths)))
    assert (found - expected).norm() / expected.norm() < 1e-5
