"""The cheap dropout of a CPU: the right rate, independence, gradients, and what it does not touch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere
from scipy import stats

from bertsmith.testing import ARCHITECTURES, tiny_model
from bertsmith.training.dropout import CheapDropout


def _masks(p, *seed, n=40, shape=(50, 100)):
    with CheapDropout(*seed):
        return np.stack([(F.dropout(torch.ones(shape), p) == 0).numpy() for _ in range(n)])


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_the_rate_is_right(p):
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
def test_what_stays_is_scaled_and_so_is_its_gradient(dtype):
    x = torch.randn(64, 33, dtype=dtype, requires_grad=True)
    with CheapDropout(3):
        y = F.dropout(x, 0.25)
        y.backward(torch.ones_like(y))
    stays = y != 0
    assert y.dtype == x.grad.dtype == dtype
    assert torch.allclose(y.float(), torch.where(stays, x / 0.75, 0).float(), rtol=1e-2)
    assert torch.allclose(x.grad.float(), torch.where(stays, 1 / 0.75, 0.0), rtol=1e-2)


def test_in_evaluation_and_at_the_extremes_it_is_that_of_torch():
    x = torch.randn(10, 10)
    with CheapDropout(3):
        assert torch.equal(F.dropout(x, 0.5, training=False), x)
        assert torch.equal(F.dropout(x, 0.0), x)
        assert torch.equal(F.dropout(x, 1.0), torch.zeros(10, 10))


@pytest.mark.parametrize("kind", ["none", "bool", "float"])
def test_attention_drops_its_weights_and_is_right_on_average(kind):
    q, k, v = (torch.randn(2, 3, 6, 8, dtype=torch.float64) for _ in range(3))
    seen = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    seen[0, :, :, 4:] = False
    mask = {"none": None, "bool": seen, "float": torch.zeros(seen.shape, dtype=q.dtype).masked_fill(~seen, -1e30)}[kind]
    exact = F.scaled_dot_product_attention(q, k, v, mask)
    with CheapDropout(3):
        draws = torch.stack([F.scaled_dot_product_attention(q, k, v, mask, dropout_p=0.1) for _ in range(4000)])
        assert torch.equal(F.scaled_dot_product_attention(q, k, v, mask), exact)
    assert not torch.equal(draws[0], draws[1])
    error = (draws.mean(0) - exact).abs() / (draws.std(0) / np.sqrt(4000))
    assert float(error.max()) < 5


@pytest.mark.parametrize("kind", ["none", "bool", "float"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_attention_and_its_gradients_are_those_of_the_same_mask_written_out(kind, dtype):
    exact, ours = (
        [torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)] for _ in "ab"
    )
    exact = [x.to(dtype).double().requires_grad_() for x in exact]
    ours = [x.to(dtype).requires_grad_() for x in ours]
    seen = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    seen[0, :, :, 4:] = False
    least = torch.finfo(torch.float32).min  # what transformers fills a mask with; more than bf16 can hold
    mask = {"none": None, "bool": seen, "float": torch.zeros(seen.shape).masked_fill(~seen, least)}[kind]
    with CheapDropout(3):
        found = F.scaled_dot_product_attention(*ours, mask, dropout_p=0.25, scale=0.3)
    stays = CheapDropout(3).mask(torch.Size((2, 3, 6, 6)), 0.25).bool()
    q, k, v = exact
    scores = 0.3 * q @ k.transpose(-1, -2)
    scores = scores if mask is None else scores.masked_fill(~seen, -torch.inf)
    wanted = torch.where(stays, torch.softmax(scores, -1) / 0.75, 0) @ v
    upstream = torch.randn(found.shape, dtype=torch.float64)
    found.backward(upstream.to(dtype))
    wanted.backward(upstream)
    tolerance = 1e-9 if dtype == torch.float64 else 0.03
    assert found.dtype == dtype
    assert torch.allclose(found.double(), wanted, atol=tolerance)
    for one, other in zip(ours, exact, strict=True):
        assert torch.allclose(one.grad.double(), other.grad, atol=tolerance)


def test_a_mask_that_learns_and_a_causal_one_are_left_to_torch():
    q = torch.randn(1, 1, 4, 8)
    learned = torch.zeros(1, 1, 4, 4, requires_grad=True)
    with CheapDropout(3):
        F.scaled_dot_product_attention(q, q, q, learned, dropout_p=0.5).sum().backward()
        causal = F.scaled_dot_product_attention(q, q, torch.eye(4)[None, None], dropout_p=0.5, is_causal=True)
    assert learned.grad is not None
    assert torch.equal(causal, causal.tril())


@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if a != "modernbert"])  # which drops nothing
def test_every_architecture_gets_it(architecture, tmp_path):
    """With the same masks the logits are the same, whatever torch's own generator does; with others they are not."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(tiny_model(tmp_path / "m", architecture)).train()
    ids = torch.arange(5, 17).reshape(2, 6)

    def logits(seed, other):
        torch.manual_seed(other)
        with CheapDropout(seed), torch.no_grad():
            return model(input_ids=ids).logits

    assert torch.equal(logits(1, 1), logits(1, 2))
    assert not torch.equal(logits(1, 1), logits(2, 1))
