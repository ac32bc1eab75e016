"""The gradient of what is looked up in a table is torch's own, without a table made for every micro-batch."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere

from bertsmith.training.lookups import RowGradients, _Lookup

IDS = torch.tensor([[3, 1, 3, 0], [9, 0, 3, 8]])


def _gradient(table, ours, ids=IDS, times=2):
    table.weight.grad = None
    out = torch.randn(*ids.shape, table.embedding_dim, generator=torch.Generator().manual_seed(0))
    for _ in range(times):
        if ours:
            with RowGradients():
                found = table(ids)
                (found * out.to(found.dtype)).sum().backward()
        else:
            found = table(ids)
            (found * out.to(found.dtype)).sum().backward()
    return found.detach(), table.weight.grad


@pytest.mark.parametrize("padding", [None, 0, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_and_their_gradient_are_those_of_torch(padding, dtype):
    table = torch.nn.Embedding(10, 6, padding_idx=padding, dtype=dtype)
    rows, gradient = _gradient(table, ours=False)
    ours, ours_gradient = _gradient(table, ours=True)
    assert ours.equal(rows)
    assert ours_gradient.dtype == dtype
    assert torch.allclose(ours_gradient, gradient, rtol=1e-6, atol=1e-6)
    assert padding is None or not ours_gradient[padding].any()


def test_the_gradient_that_is_there_is_added_to_in_place():
    table = torch.nn.Embedding(10, 6)
    with RowGradients():
        table(IDS).sum().backward()
        first = table.weight.grad
        table(IDS).sum().backward()
    assert table.weight.grad is first
    assert first[3].tolist() == [6.0] * 6  # three times in IDS, twice
    assert not first[2].any()


def test_a_gradient_of_the_same_table_from_elsewhere_is_added_too():
    table, x = torch.nn.Embedding(10, 6), torch.randn(3, 6)

    def loss():
        return table(IDS).sum() + F.linear(x, table.weight).square().sum()

    loss().backward()
    expected, table.weight.grad = table.weight.grad, None
    with RowGradients():
        loss().backward()
    assert torch.allclose(table.weight.grad, expected, rtol=1e-5)


@pytest.mark.parametrize("why", ["frozen", "evaluation", "computed", "max_norm", "sparse", "scaled"])
def test_what_is_not_a_plain_table_of_parameters_is_left_to_torch(why, monkeypatch):
    monkeypatch.setattr(_Lookup, "apply", lambda *_: pytest.fail("ours"))
    more = {"max_norm": {"max_norm": 1.0}, "sparse": {"sparse": True}, "scaled": {"scale_grad_by_freq": True}}
    weight = torch.randn(10, 6, requires_grad=why != "frozen")
    weight = weight * 2 if why == "computed" else weight
    with RowGradients(), torch.set_grad_enabled(why != "evaluation"):
        if why == "max_norm":
            weight = weight.detach()
        assert F.embedding(IDS, weight, **more.get(why, {})).shape == (2, 4, 6)


def test_a_model_in_bf16_autocast_has_the_same_gradient():
    table, layer = torch.nn.Embedding(10, 6), torch.nn.Linear(6, 2)

    def loss():
        with torch.autocast("cpu", torch.bfloat16):
            return layer(table(IDS)).float().square().sum()

    loss().backward()
    expected, table.weight.grad = table.weight.grad, None
    with RowGradients():
        loss().backward()
    assert torch.allclose(table.weight.grad, expected, rtol=1e-6)
