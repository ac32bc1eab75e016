"""Texts laid end to end give the logits and the gradient of the padded batch, for every architecture that can."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere
from hypothesis import given, settings
from hypothesis import strategies as st

from bertsmith.data.table import Labels
from bertsmith.model import checkpoint, packed_attention, packing
from bertsmith.model.last_layer import LAYERS, shortened_if_it_can
from bertsmith.model.load import load_model
from bertsmith.model.packing import STACKS, can_pack, packed
from bertsmith.testing import ARCHITECTURES, tiny_model
from bertsmith.training.batching import SLACK, cut, micro_batches
from bertsmith.training.losses import CrossEntropy, StepLoss

LABELS = Labels((0, 1, 2), ("a", "b", "c"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny models with large weights, so that every token matters; dropout off."""
    made = {}
    for architecture in ARCHITECTURES:
        folder = tiny_model(tmp_path_factory.mktemp("models") / architecture, architecture)
        model = load_model(checkpoint.resolve(str(folder)), LABELS).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.2 * torch.randn(weight.shape, generator=generator)
        made[architecture] = model
    return made


def _reference(query, key, value, starts, _, longest, __, dropout=0.0, *, scale=None, window_size=(-1, -1)):
    """Attention of variable length as torch documents it, a text at a time."""
    found = []
    for start, end in itertools.pairwise(starts.tolist()):
        assert end - start <= longest
        place = torch.arange(end - start)
        far = (place[:, None] - place).abs() > (window_size[0] if window_size[0] >= 0 else 10**6)
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        found.append(F.scaled_dot_product_attention(q, k, v, ~far, dropout, scale=scale).transpose(0, 1))
    return torch.cat(found)


def _batch(model, lengths, seed=0, left=False):
    rng = np.random.default_rng(seed)
    width = max(lengths)
    pad = model.config.pad_token_id or 0
    ids, mask = np.full((len(lengths), width), pad), np.zeros((len(lengths), width), dtype=int)
    for row, n in enumerate(lengths):
        where = slice(width - n, width) if left else slice(0, n)
        ids[row, where], mask[row, where] = rng.integers(5, 40, n), 1
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        "labels": torch.from_numpy(rng.integers(0, 3, len(lengths))),
    }


def _logits_and_gradient(model, batch, pack):
    batch = dict(batch)
    labels = batch.pop("labels")
    model.zero_grad()
    if pack:
        with packed(model, batch) as inputs:
            outputs = model(**inputs)
    else:
        outputs = model(**batch)
    StepLoss(CrossEntropy())(outputs, labels, len(labels)).backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return outputs.logits.detach(), gradient


@pytest.mark.parametrize("architecture", STACKS)
@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 10**6))
def test_logits_and_gradient_are_those_of_the_padded_batch(architecture, models, lengths, seed):
    model = models[architecture]
    batch = _batch(model, lengths, seed)
    expected, expected_gradient = _logits_and_gradient(model, batch, pack=False)
    found, gradient = _logits_and_gradient(model, batch, pack=True)
    assert found.shape == (len(lengths), 3)
    assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-4)
    assert (gradient - expected_gradient).norm() / expected_gradient.norm() < 1e-4
    again = _logits_and_gradient(model, batch, pack=False)[0]
    assert again.equal(expected)  # nothing is left behind


@pytest.mark.parametrize("architecture", STACKS)
@pytest.mark.parametrize("at_once", [1, 400, 1100])
@pytest.mark.parametrize("lengths", [[5, 5, 5, 9, 9, 12, 30, 30], [3, 30, 1, 12, 7, 7, 2]])
def test_texts_that_attend_a_few_at_a_time_give_the_same(architecture, models, lengths, at_once, monkeypatch):
    model = models[architecture]
    batch = _batch(model, lengths)
    expected, expected_gradient = _logits_and_gradient(model, batch, pack=False)
    sizes = []
    whole = packed_attention._at_once

    def seen(layout, *rest):
        sizes.append(tuple(layout.filled.shape))
        return whole(layout, *rest)

    monkeypatch.setattr(packed_attention, "AT_ONCE", at_once)
    monkeypatch.setattr(packed_attention, "_at_once", seen)
    found, gradient = _logits_and_gradient(model, batch, pack=True)
    assert len(sizes) > 2  # more than one in a layer
    assert all(n == 1 or n * width**2 <= at_once for n, width in sizes)
    assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-4)
    assert (gradient - expected_gradient).norm() / expected_gradient.norm() < 1e-4


@pytest.mark.parametrize("architecture", STACKS)
def test_attention_of_variable_length_gives_the_same(architecture, models, monkeypatch):
    model = models[architecture]
    batch = _batch(model, [3, 30, 1, 12, 7])
    expected, expected_gradient = _logits_and_gradient(model, batch, pack=False)
    called = []

    def counted(*given, **named):
        called.append(True)
        return _reference(*given, **named)

    monkeypatch.setattr(packing, "can_shorten", lambda _: False)  # as on a GPU
    monkeypatch.setattr(packed_attention, "_has_kernel", lambda *_: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", counted)
    found, gradient = _logits_and_gradient(model, batch, pack=True)
    assert len(called) == 2  # a layer
    assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-4)
    assert (gradient - expected_gradient).norm() / expected_gradient.norm() < 1e-4


@pytest.mark.parametrize("architecture", LAYERS)
def test_the_last_layer_is_computed_for_the_first_token_of_a_text_alone(architecture, models):
    model = models[architecture]
    batch = _batch(model, [3, 30, 1, 12, 7])
    expected, expected_gradient = _logits_and_gradient(model, batch, pack=False)
    place, key, _ = LAYERS[architecture]
    seen, layers = [], model.base_model.get_submodule(place)
    hooks = [layer.register_forward_hook(lambda *given: seen.append(given[-1].shape[1])) for layer in layers]
    hooks.append(layers[-1].get_submodule(key).register_forward_hook(lambda *given: seen.append(given[1][0].shape[1])))
    try:
        found, gradient = _logits_and_gradient(model, batch, pack=True)
        assert seen == [54, 54, 5]  # 53 tokens and an empty one, those that keys are made of, and a token of each text
        seen.clear()
        with shortened_if_it_can(model):
            padded = model(**batch).logits
        assert seen == [30, 30, 1]
        assert model.config._attn_implementation == "sdpa"
    finally:
        for hook in hooks:
            hook.remove()
    for logits in (found, padded.detach()):
        assert logits.numpy() == pytest.approx(expected.numpy(), abs=1e-4)
    assert (gradient - expected_gradient).norm() / expected_gradient.norm() < 1e-5


@pytest.mark.parametrize("fault", [None, RuntimeError, "wrong", "drops nothing"])
def test_the_kernel_is_used_where_it_is_right_and_not_elsewhere(fault, monkeypatch):
    def kernel(*given, **named):
        if fault is RuntimeError:
            raise RuntimeError
        return _reference(*given, **named) * (1.1 if fault == "wrong" else 1.0)

    def dropping(*given, **named):
        return _reference(*given[:-1], 0.0 if fault == "drops nothing" else given[-1], **named)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    monkeypatch.setattr(packed_attention, "_varlen_attn_dropping", dropping)
    before = torch.random.get_rng_state()
    packed_attention._agrees.cache_clear()
    assert packed_attention._agrees(torch.device("cpu"), torch.bfloat16, 64) == (fault is None)
    assert torch.random.get_rng_state().equal(before)
    assert not packed_attention._has_kernel(torch.device("cpu"), torch.bfloat16, 64)


def test_a_mean_over_the_tokens_is_that_of_the_text_alone(models):
    model = models["modernbert"]
    batch = _batch(model, [3, 30, 1, 12, 7])
    try:
        model.config.classifier_pooling = "mean"
        expected, expected_gradient = _logits_and_gradient(model, batch, pack=False)
        found, gradient = _logits_and_gradient(model, batch, pack=True)
    finally:
        model.config.classifier_pooling = "cls"
    assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-4)
    of_first_tokens = _logits_and_gradient(model, batch, pack=True)[0]
    assert (found - of_first_tokens).abs().max() > 1e-2
    assert (gradient - expected_gradient).norm() / expected_gradient.norm() < 1e-4


@pytest.mark.parametrize("architecture", STACKS)
def test_a_text_is_not_moved_by_its_neighbours(architecture, models):
    model = models[architecture]
    lengths = [3, 30, 1, 12, 7]
    batch = _batch(model, lengths)
    together = _logits_and_gradient(model, batch, pack=True)[0]
    assert together.std(dim=0).min() > 1e-3  # the texts do differ
    for row, n in enumerate(lengths):
        alone = {name: v[row : row + 1, :n] if v.dim() > 1 else v[row : row + 1] for name, v in batch.items()}
        assert together[row].numpy() == pytest.approx(_logits_and_gradient(model, alone, True)[0][0].numpy(), abs=1e-4)


def test_texts_padded_on_the_left_are_the_same_texts(models):
    model = models["bert"]
    right, left = (_batch(model, [3, 9, 5], left=left) for left in (False, True))
    expected = _logits_and_gradient(model, right, pack=True)[0]
    assert _logits_and_gradient(model, left, pack=True)[0].numpy() == pytest.approx(expected.numpy(), abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=10), st.integers(1, 200))
def test_however_it_is_cut_the_gradient_of_a_packed_batch_is_that_of_the_whole(models, lengths, budget):
    model = models["bert"]
    batch = _batch(model, lengths)
    expected = _logits_and_gradient(model, batch, pack=False)[1]
    model.zero_grad()
    for piece in cut(batch, budget, packed=True):
        labels = piece.pop("labels")
        with packed(model, piece) as inputs:
            StepLoss(CrossEntropy())(model(**inputs), labels, len(lengths)).backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert (found - expected).norm() / expected.norm() < 1e-4


@given(st.lists(st.integers(1, 600), max_size=60), st.integers(1, 4096))
def test_packed_micro_batches_hold_every_text_once_and_keep_to_the_budget(lengths, budget):
    lengths = np.array(lengths, dtype=int)
    groups = micro_batches(lengths, budget, packed=True)
    assert sorted(int(i) for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or lengths[group].sum() <= budget
        assert len(group) == 1 or lengths[group].max() * len(group) <= SLACK * budget
    assert len(groups) <= len(micro_batches(lengths, budget))


def test_what_cannot_be_packed_is_run_as_ever(models):
    assert {name for name, model in models.items() if can_pack(model)} == set(STACKS)
    decoder = load_model(checkpoint.resolve(models["bert"].config._name_or_path), LABELS)
    decoder.config.is_decoder = True
    assert not can_pack(decoder)


def test_an_error_within_leaves_the_model_as_it_was(models):
    model = models["bert"]
    batch = _batch(model, [3, 5])
    before = _logits_and_gradient(model, batch, pack=False)[0]
    with pytest.raises(RuntimeError), packed(model, {k: v for k, v in batch.items() if k != "labels"}):
        raise RuntimeError
    assert _logits_and_gradient(model, batch, pack=False)[0].equal(before)
