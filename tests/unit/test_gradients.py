"""The gradient of an embedding lookup is that of torch, without a table for each micro-batch."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from bertsmith.model.gradients import TableGradients, _EmbeddingLookup, collect_gradients, embedding_lookup, replicate

IDS = torch.tensor([3, 1, 3, 0, 9, 0, 3, 8])


def _gradient(table, look, times=2):
    table.weight.grad = None
    out = torch.randn(len(IDS), table.embedding_dim, generator=torch.Generator().manual_seed(0))
    for _ in range(times):
        found = look(table)
        (found * out.to(found.dtype)).sum().backward()
    return found.detach(), table.weight.grad


@pytest.mark.parametrize("padding", [None, 0, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_and_their_gradients_match_torch(padding, dtype):
    table = torch.nn.Embedding(10, 6, padding_idx=padding, dtype=dtype)
    rows, gradient = _gradient(table, lambda t: t(IDS))
    found, found_gradient = _gradient(table, lambda t: embedding_lookup(t, IDS))
    assert found.equal(rows)
    assert found_gradient.dtype == dtype
    assert torch.allclose(found_gradient, gradient, rtol=1e-6, atol=1e-6)
    assert padding is None or not found_gradient[padding].any()


def test_gradients_accumulate_in_place():
    table = torch.nn.Embedding(10, 6)
    embedding_lookup(table, IDS).sum().backward()
    first = table.weight.grad
    embedding_lookup(table, IDS).sum().backward()
    assert table.weight.grad is first
    assert first[3].tolist() == [6.0] * 6  # three times in IDS, twice
    assert not first[2].any()


def test_gradients_from_other_uses_of_an_embedding_are_added():
    table, x = torch.nn.Embedding(10, 6), torch.randn(3, 6)

    def loss(rows):
        return rows.sum() + F.linear(x, table.weight).square().sum()

    loss(table(IDS)).backward()
    expected, table.weight.grad = table.weight.grad, None
    loss(embedding_lookup(table, IDS)).backward()
    assert torch.allclose(table.weight.grad, expected, rtol=1e-5)


@pytest.mark.parametrize("why", ["frozen", "evaluation"])
def test_other_embeddings_use_the_gradient_of_torch(why, monkeypatch):
    monkeypatch.setattr(_EmbeddingLookup, "apply", lambda *_: pytest.fail("custom lookup"))
    table = torch.nn.Embedding(10, 6)
    table.weight.requires_grad_(why != "frozen")
    with torch.set_grad_enabled(why != "evaluation"):
        assert embedding_lookup(table, IDS).shape == (8, 6)


def test_replicas_share_weights_and_add_row_gradients_once():
    model = torch.nn.Sequential(torch.nn.Embedding(10, 6, padding_idx=0), torch.nn.Linear(6, 2))
    loss = lambda m: m[1](embedding_lookup(m[0], IDS)).square().sum()  # noqa: E731
    loss(model).backward()
    expected = [2 * p.grad for p in model.parameters()]
    copy = replicate(model)
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(model.parameters(), copy.parameters(), strict=True))
    loss(copy).backward()
    assert copy[0].weight.grad is None  # kept as rows
    for _ in range(2):  # the second time there is nothing left to add
        collect_gradients(model, copy)
    assert all(torch.allclose(p.grad, e) for p, e in zip(model.parameters(), expected, strict=True))


def test_a_table_in_bf16_autocast_has_the_same_gradient():
    table, layer = torch.nn.Embedding(10, 6), torch.nn.Linear(6, 2)

    def loss(rows):
        with torch.autocast("cpu", torch.bfloat16):
            return layer(rows).float().square().sum()

    loss(table(IDS)).backward()
    expected, table.weight.grad = table.weight.grad, None
    loss(embedding_lookup(table, IDS)).backward()
    assert torch.allclose(table.weight.grad, expected, rtol=1e-6)


def test_gradients_of_tables_are_cleared_and_used_again():
    model = torch.nn.ModuleDict({"read": torch.nn.Embedding(10, 6), "unread": torch.nn.Embedding(10, 6)})
    read, unread = model["read"].weight, model["unread"].weight
    kept = TableGradients(model)
    embedding_lookup(model["read"], IDS).sum().backward()
    kept.keep()
    first = read.grad
    kept.restore()
    assert read.grad is first
    assert first[3].tolist() == [3.0] * 6  # not cleared before the optimizer has read it
    model.zero_grad()
    kept.restore()
    embedding_lookup(model["read"], IDS[:1]).sum().backward()
    assert read.grad is first
    assert first.sum() == 6
    assert unread.grad is None
