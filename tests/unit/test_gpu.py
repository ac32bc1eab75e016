"""Tests that need a GPU, and are skipped without one; other tests run the same code on the CPU."""

from functools import partial

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, TrainingArguments

from bertsmith.compute.device import can_compile
from bertsmith.data.table import Labels
from bertsmith.model import attention, bert, checkpoint, forward
from bertsmith.model.dropout import Dropout
from bertsmith.model.load import LoadedModel, load_model
from bertsmith.model.tokens import Tokens
from bertsmith.tasks.registry import get_task
from bertsmith.testing import tiny_model
from bertsmith.training import steps as stepping
from bertsmith.training.callback import EventCallback
from bertsmith.training.data import TokenDataset
from bertsmith.training.engine import Engine
from bertsmith.training.losses import CrossEntropy
from bertsmith.training.nan_guard import NotFiniteError
from bertsmith.training.recipe import Recipe
from bertsmith.training.trainer import Training
from tests.conftest import padded

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
LABELS = Labels((0, 1, 2), ("a", "b", "c"))


def _batch(n=5, seed=0):
    rng = np.random.default_rng(seed)
    ids = [rng.integers(5, 40, length).tolist() for length in rng.integers(1, 30, n)]
    return Tokens.from_lists({"input_ids": ids}), rng.integers(0, 3, n)


@pytest.mark.parametrize("architecture", bert.MODULE_NAMES)
def test_packed_texts_in_bf16_give_the_padded_batch_in_fp32(architecture, tmp_path):
    folder = tiny_model(tmp_path / "model", architecture)
    model = load_model(checkpoint.resolve(str(folder)), LABELS).eval().cuda()
    batch, labels = _batch()
    targets = torch.from_numpy(labels).cuda()
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype != torch.float32):
            if dtype == torch.float32:
                padding = forward.position_padding_idx(model) or model.config.pad_token_id or 0
                logits = model(**{k: v.cuda() for k, v in padded(batch, {"input_ids": padding}).items()}).logits
            else:
                logits = forward.logits(model, forward.pack_for(model, batch).to(model.device))
        CrossEntropy().of_step(logits, targets, len(labels)).backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found[dtype] = logits.detach().float(), gradient
    (expected, expected_gradient), (logits, gradient) = found.values()
    assert (logits - expected).abs().max() < 0.02
    assert (gradient - expected_gradient).norm() / expected_gradient.norm() < 0.05


@pytest.mark.parametrize("size", [32, 64])
def test_flash_attention_dropout_is_correct(size):
    assert attention._kernel_matches(torch.device("cuda"), torch.bfloat16, size)
    n, p = size, 0.25
    query, key = torch.randn(2, n, 2, size, device="cuda", dtype=torch.bfloat16)
    value = torch.eye(n, device="cuda", dtype=torch.bfloat16)[:, None].repeat(1, 2, 1).requires_grad_()
    starts = torch.tensor([0, n], device="cuda", dtype=torch.int32)
    inputs = (query, key, value, starts, starts, n, n)
    whole = attention._flash_attention(inputs, 1e-9, (-1, -1)).float()
    weights = attention._flash_attention(inputs, p, (-1, -1))
    dropped = weights == 0
    assert float(dropped.float().mean()) == pytest.approx(p, abs=0.05)
    assert torch.allclose((weights.float() * (1 - p))[~dropped], whole[~dropped], atol=0.01)
    other = torch.randn_like(weights)
    weights.backward(other)
    expected = torch.einsum("qhk,qhd->khd", weights.detach().float(), other.float())
    assert torch.allclose(value.grad.float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("architecture", [a for a in bert.MODULE_NAMES if a != "modernbert"])  # which drops nothing
def test_dropout_on_a_gpu_follows_its_generator(architecture, tmp_path):
    folder = tiny_model(tmp_path / "model", architecture)
    model = load_model(checkpoint.resolve(str(folder)), LABELS).cuda()
    packed = forward.pack_for(model, _batch()[0]).to(model.device)

    def logits(seed):
        torch.manual_seed(seed)
        with torch.no_grad():
            return forward.logits(model, packed, dropout=Dropout(0))

    assert torch.equal(logits(1), logits(1))
    assert not torch.equal(logits(1), logits(2))


@pytest.fixture
def trained(tmp_path):
    """Return a function that trains a model on random texts, and returns its engine and weights."""
    return partial(_trained, tmp_path / "model")


def _trained(folder, graphs, compiled=False, steps=40, accumulate=1, spoil=None, lengths=(5, 60), **sizes):
    torch.manual_seed(0)
    folder = tiny_model(folder, **sizes)
    model = load_model(checkpoint.resolve(str(folder)), LABELS).cuda()
    rng = np.random.default_rng(0)
    n = 16 * steps * accumulate
    ids = [rng.integers(5, 60, rng.integers(*lengths)).tolist() for _ in range(n)]
    arguments = TrainingArguments(
        output_dir="unused",
        num_train_epochs=1,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=accumulate,
        learning_rate=1e-3,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        bf16=True,
        logging_nan_inf_filter=False,
        seed=0,
    )
    recipe = Recipe(1, 16, 1e-3, 1, 0, 0, "bf16", 1, "none")
    loaded = LoadedModel(model, AutoTokenizer.from_pretrained(folder), torch.device("cuda"), 64)
    texts = TokenDataset(Tokens.from_lists({"input_ids": ids}), np.array([int(i[0] > 30) for i in ids]))
    callback = EventCallback(lambda e: None, lambda: False)
    engine = Engine(Training(loaded, texts, texts, arguments, recipe, get_task()), callback, arguments)
    assert engine.graphs is not None
    if not graphs:
        engine.graphs = None
    engine.compiled = compiled
    if spoil is not None:
        spoil(engine)
    engine.train()
    return engine, torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_cuda_graphs_train_to_the_same_weights(accumulate, trained):
    plain, expected = trained(graphs=False, accumulate=accumulate)
    engine, found = trained(graphs=True, accumulate=accumulate)
    assert not engine.graphs.failures
    assert engine.graphs.graphs
    assert (found - expected).norm() / expected.norm() < 1e-3
    assert float(engine.loss_sum) == pytest.approx(float(plain.loss_sum), rel=1e-3)


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_compiled_layers_train_to_the_same_weights(trained):
    plain, _ = trained(graphs=True)
    engine, _ = trained(graphs=True, compiled=True)
    assert not engine.graphs.failures
    assert engine.graphs.graphs
    assert float(engine.loss_sum) == pytest.approx(float(plain.loss_sum), rel=0.05)


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_layers_are_compiled_during_training(trained, monkeypatch):
    assert can_compile(torch.device("cuda"))
    plain, _ = trained(graphs=True)
    monkeypatch.setattr(stepping, "COMPILE_AFTER_STEPS", 10)
    monkeypatch.setattr(stepping, "MIN_MEASURED_STEPS", 5)
    monkeypatch.setattr(stepping, "COMPILE_SECONDS", 0.0)
    engine, _ = trained(graphs=True)
    assert engine.compiled
    assert engine.graphs.graphs
    assert float(engine.loss_sum) == pytest.approx(float(plain.loss_sum), rel=0.05)


def test_a_nonfinite_step_is_reported_one_step_later_and_changes_no_weights(trained):
    kept = {}

    def spoil(engine):
        usual = engine._outputs

        def wrong(*given):
            outputs = usual(*given)
            if engine.state.global_step == 3:
                kept["weights"] = [p.detach().clone() for p in engine.model.parameters()]
                return outputs * float("nan")
            return outputs

        engine._outputs, engine.graphs = wrong, None
        kept["engine"] = engine

    with pytest.raises(NotFiniteError, match="loss of step 4"):
        trained(graphs=True, spoil=spoil)
    for before, now in zip(kept["weights"], kept["engine"].model.parameters(), strict=True):
        assert torch.equal(before, now)


def test_out_of_memory_only_halves_the_token_budget(trained):
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
    sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    seen = {}

    def look(engine):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        seen["before"] = torch.cuda.memory_reserved()

    plain, _ = trained(graphs=True, steps=5, spoil=look, **sizes)
    most = torch.cuda.max_memory_reserved()

    def tighten(engine):
        torch.cuda.empty_cache()
        room = torch.cuda.memory_reserved() + 0.7 * (most - seen["before"])
        torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(0).total_memory)

    try:
        engine, _ = trained(graphs=True, steps=5, spoil=tighten, **sizes)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert engine.token_budget < plain.token_budget
    assert float(engine.loss_sum) == pytest.approx(float(plain.loss_sum), rel=0.02)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_no_step_waits_for_the_gpu(trained):
    watched_late = []

    def spoil(engine):
        step = engine.training_step

        def watched(*given):
            # After the warm-up, every synchronization within a step raises an error.
            late = engine.state.global_step >= 30
            watched_late.append(late)
            torch.cuda.set_sync_debug_mode("error" if late else "default")
            try:
                return step(*given)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        engine.training_step = watched

    trained(graphs=True, spoil=spoil, lengths=(30, 31))
    recorded = sum(watched_late)
    trained(graphs=False, spoil=spoil)
    assert recorded > 0
    assert sum(watched_late) > recorded
