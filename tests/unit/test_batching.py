"""How a batch is cut changes nothing but memory and speed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, BertForSequenceClassification

from bertsmith.training.batching import cut, micro_batches
from bertsmith.training.losses import CrossEntropy, StepLoss


@given(st.lists(st.integers(0, 600), max_size=60), st.integers(1, 4096))
def test_micro_batches_hold_every_text_once_and_keep_to_the_budget(lengths, budget):
    lengths = np.array(lengths, dtype=int)
    groups = micro_batches(lengths, budget)
    assert sorted(int(i) for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or lengths[group].max() * len(group) <= budget


@given(st.lists(st.integers(1, 600), min_size=1, max_size=60), st.integers(1, 4096), st.integers(0, 300))
def test_a_micro_batch_ends_where_its_padding_would_be_too_much_and_no_earlier(lengths, budget, padding):
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


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForSequenceClassification(
        BertConfig(vocab_size=50, max_position_embeddings=64, num_labels=3, initializer_range=0.3, **sizes)
    ).eval()  # dropout off


def _batch(lengths, left, seed=0):
    rng = np.random.default_rng(seed)
    width = max(lengths)
    ids, mask = np.zeros((len(lengths), width), dtype=int), np.zeros((len(lengths), width), dtype=int)
    for row, n in enumerate(lengths):
        where = slice(width - n, width) if left else slice(0, n)
        ids[row, where], mask[row, where] = rng.integers(1, 50, n), 1
    labels = rng.integers(0, 3, len(lengths))
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return {name: torch.from_numpy(values) for name, values in batch.items()}


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 400), st.booleans())
def test_cutting_keeps_every_token(lengths, budget, left):
    batch = _batch(lengths, left)
    pieces = list(cut(batch, budget))
    assert sum(len(piece["labels"]) for piece in pieces) == len(lengths)

    def texts(batch):
        return sorted(
            (row[mask.bool()].tolist(), int(label))
            for row, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
        )

    assert sorted(text for piece in pieces for text in texts(piece)) == texts(batch)


def _gradient(model, pieces, n, loss):
    model.zero_grad()
    for piece in pieces:
        piece = dict(piece)
        labels = piece.pop("labels")
        loss(model(**piece), labels, n).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 600), st.sampled_from([0.0, 0.1]))
def test_the_gradient_is_that_of_the_whole_batch(model, lengths, budget, smoothing):
    batch = _batch(lengths, left=False)
    whole_batch = {name: values for name, values in batch.items() if name != "labels"}
    model.zero_grad()
    plain = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)(model(**whole_batch).logits, batch["labels"])
    plain.backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    found = _gradient(model, cut(batch, budget), len(lengths), StepLoss(CrossEntropy(smoothing)))
    assert (found - expected).norm() / expected.norm() < 1e-5
