"""Dropout on a CPU: the right rate, independence, gradients, and dropout of attention weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from scipy import stats

from bertsmith.model.attention import attend
from bertsmith.model.batch import pack
from bertsmith.model.dropout import Dropout
from bertsmith.model.tokens import Tokens


def _masks(p, *seed, n=40, shape=(50, 100)):
    dropout = Dropout(*seed)
    return np.stack([(dropout(torch.ones(shape), p) == 0).numpy() for _ in range(n)])


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_the_dropout_rate_is_correct(p):
    dropped = _masks(p, 7)
    assert stats.binomtest(int(dropped.sum()), dropped.size, p).pvalue > 1e-3


def test_masks_are_independent_of_each_other_and_within():
    dropped = np.concatenate([_masks(0.5, 7, step) for step in range(5)]).reshape(200, -1)[:, :5000].astype(float)
    within = np.corrcoef(dropped[:, :-1].ravel(), dropped[:, 1:].ravel())[0, 1]
    between = np.corrcoef(dropped)[np.triu_indices(200, 1)]
    assert abs(within) < 4 / np.sqrt(dropped.size)
    # Of independent masks the correlations have a standard deviation of 1 / sqrt(elements).
    assert between.std() == pytest.approx(1 / np.sqrt(5000), rel=0.05)
    assert abs(between).max() < 6 / np.sqrt(5000)


def test_the_same_seed_gives_the_same_masks_and_another_one_others():
    assert (_masks(0.1, 1, 2) == _masks(0.1, 1, 2)).all()
    assert (_masks(0.1, 1, 2) != _masks(0.1, 1, 3)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_values_and_their_gradients_are_scaled(dtype):
    x = torch.randn(64, 33, dtype=dtype, requires_grad=True)
    y = Dropout(3)(x, 0.25)
    y.backward(torch.ones_like(y))
    stays = y != 0
    assert y.dtype == x.grad.dtype == dtype
    assert torch.allclose(y.float(), torch.where(stays, x / 0.75, 0).float(), rtol=1e-2)
    assert torch.allclose(x.grad.float(), torch.where(stays, 1 / 0.75, 0.0), rtol=1e-2)


def test_fused_dropout_and_residual_equal_separate_steps():
    x, residual = (torch.randn(64, 33, dtype=torch.float64, requires_grad=True) for _ in "ab")
    found = Dropout(3).add(x, residual, 0.25)
    expected = residual + Dropout(3)(x, 0.25)
    assert torch.allclose(found, expected)
    upstream = torch.randn(64, 33, dtype=torch.float64)
    for mine, theirs in zip(
        torch.autograd.grad(found, (x, residual), upstream),
        torch.autograd.grad(expected, (x, residual), upstream),
        strict=True,
    ):
        assert torch.allclose(mine, theirs)


def test_extreme_dropout_rates_match_torch():
    x = torch.randn(10, 10)
    assert torch.equal(Dropout(3)(x, 0.0), x)
    assert torch.equal(Dropout()(x, 0.5), x)
    assert torch.equal(Dropout().add(x, x, 0.5), 2 * x)
    assert torch.equal(Dropout(3)(x, 1.0), torch.zeros(10, 10))


def _texts(lengths, dtype=torch.float64, cls_only=False, heads=3, n=8):
    batch = pack(Tokens.from_lists({"input_ids": [[0] * n for n in lengths]}))
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, len(batch.input_ids), heads, n, dtype=dtype, generator=generator)
    return batch, batch.first_tokens(query) if cls_only else query, key, value


@pytest.mark.parametrize("cls_only", [False, True])
def test_attention_dropout_is_unbiased(cls_only):
    copies, calls, tokens = 300, 10, 2 if cls_only else 6
    batch, *parts = _texts([4, 2] * copies)
    parts = [F.pad(x[:6].repeat(copies, 1, 1), (0, 0, 0, 0, 0, len(x) - 6 * copies)) for x in parts]
    if cls_only:
        parts[0] = batch.first_tokens(parts[0])
    exact = attend(*parts, batch)[:tokens]
    dropout = Dropout(3)
    drawn = [attend(*parts, batch, dropout=dropout, p=0.1)[: copies * tokens] for _ in range(calls)]
    draws = torch.cat(drawn).view(copies * calls, *exact.shape)
    assert not torch.equal(draws[0], draws[1])
    error = (draws.mean(0) - exact).abs() / (draws.std(0) / np.sqrt(len(draws)))
    assert float(error.max()) < 5


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("cls_only", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_attention_and_its_gradients_match_an_explicit_mask(dtype, cls_only, biased):
    lengths, p, width = [6, 6, 3], 0.25, 6
    batch, *given = _texts(lengths, dtype, cls_only)
    bias = torch.randn(3, width, width, generator=torch.Generator().manual_seed(1), dtype=dtype) if biased else None
    ours = [x.clone().requires_grad_() for x in given] + ([bias.clone().requires_grad_()] if biased else [])
    exact = [x.detach().double().requires_grad_() for x in ours]
    found = attend(*ours[:3], batch, bias=ours[3] if biased else None, dropout=Dropout(3), p=p)
    rows = 1 if cls_only else width
    stays = Dropout(3).mask(torch.Size((len(lengths) * 3, rows, width)), p).bool().view(len(lengths), 3, rows, width)
    expected, start = [], 0
    for text, n in enumerate(lengths):
        q, k, v = (x[start : start + n].transpose(0, 1) for x in exact[:3])
        if cls_only:
            q = exact[0][text][:, None]
        scores = q @ k.transpose(-1, -2) * 8**-0.5 + (exact[3][:, : q.shape[1], :n] if biased else 0)
        weights = torch.where(stays[text, :, : q.shape[1], :n], torch.softmax(scores, -1) / (1 - p), 0)
        expected.append((weights @ v).transpose(0, 1))
        start += n
    expected, found = torch.cat(expected), found[: len(lengths) if cls_only else sum(lengths)]
    upstream = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found.backward(upstream.to(dtype))
    expected.backward(upstream)
    tolerance = 1e-9 if dtype == torch.float64 else 0.05
    assert found.dtype == dtype
    assert torch.allclose(found.double(), expected, atol=tolerance)
    for one, other in zip(ours, exact, strict=True):
        assert torch.allclose(one.grad.double(), other.grad, atol=tolerance, rtol=tolerance)
