"""Our forward pass gives the logits and gradients of Hugging Face's own, for every architecture it has a table for."""

import inspect
import itertools
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from bertsmith.compute import threads
from bertsmith.compute.batching import PACKED_PADDING_FACTOR, TOKEN_BUDGETS, micro_batches
from bertsmith.data.table import Labels
from bertsmith.model import attention, bert, checkpoint, forward
from bertsmith.model import batch as batches
from bertsmith.model.batch import PaddedBatch
from bertsmith.model.dropout import Dropout
from bertsmith.model.gradients import collect_gradients, replicate
from bertsmith.model.load import LoadedModel, load_model, load_tokenizer
from bertsmith.model.outputs import compute_embeddings, compute_logits, with_layer_dtype
from bertsmith.model.tokens import Tokens
from bertsmith.testing import ARCHITECTURES, tiny_model
from bertsmith.training.data import TokenDataset
from bertsmith.training.losses import CrossEntropy
from tests.conftest import padded, split_batch

LABELS = Labels((0, 1, 2), ("a", "b", "c"))
CPU = torch.device("cpu")
FROZEN = {
    "bert": [[-0.18385, -0.11712, 0.418], [-0.11529, -0.08606, 0.52514], [-0.20519, -0.12031, 0.34786]],
    "roberta": [[0.00329, 0.0892, 0.19796], [0.01232, 0.08237, 0.17022], [0.00277, 0.07666, 0.20469]],
    "xlm-roberta": [[-1.88137, 0.24306, -0.01534], [-1.84228, 0.24622, 0.08682], [-1.87106, 0.24081, -0.01905]],
    "electra": [[-0.31473, -0.18935, 0.49318], [-0.2977, -0.15492, 0.53804], [-0.31539, -0.18334, 0.47035]],
    "mpnet": [[-0.18141, -0.01972, 0.44254], [-0.23741, 0.01696, 0.47091], [-0.20153, -0.04914, 0.44337]],
    "distilbert": [[-1.1055, 0.78539, 0.24883], [-1.08979, 0.83022, 0.23505], [-1.07584, 0.77943, 0.25194]],
    "modernbert": [[0.17718, 0.26395, 0.65777], [0.41721, 0.08051, 0.06062], [0.5263, -0.14191, -0.2641]],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny models with large weights, so that every token matters, saved and loaded again."""
    made = {}
    for architecture in ARCHITECTURES:
        folder = tiny_model(tmp_path_factory.mktemp("models") / architecture, architecture)
        found = checkpoint.resolve(str(folder))
        model, tokenizer = load_model(found, LABELS), load_tokenizer(found)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(0.25 * torch.randn(weight.shape, generator=generator))
        model.save_pretrained(folder)
        model = load_model(checkpoint.resolve(str(folder))).eval()
        made[architecture] = LoadedModel(model, tokenizer, CPU, 64)
    return made


def _texts(model, lengths, seed=0, types=True):
    rng = np.random.default_rng(seed)
    columns = {"input_ids": [rng.integers(5, 40, n).tolist() for n in lengths]}
    if types and "token_type_ids" in inspect.signature(model.forward).parameters and model.config.type_vocab_size > 1:
        columns["token_type_ids"] = [[0] * (n // 2) + [1] * (n - n // 2) for n in lengths]
    return Tokens.from_lists(columns)


def _padded(model, batch):
    pad = forward.position_padding_idx(model)
    return padded(batch, {"input_ids": (model.config.pad_token_id or 0) if pad is None else pad})


def _gradient(model):
    return torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in model.parameters()])


def _with_gradient(model, logits):
    model.zero_grad()
    found = logits()
    (found**2).sum().backward()
    return found.detach(), _gradient(model)


def _close(a, b):
    return float((a - b).norm() / b.norm()) < 1e-5


@pytest.mark.parametrize("architecture", bert.MODULE_NAMES)
@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.booleans(), st.integers(0, 10**6))
def test_logits_and_gradients_match_hugging_face(architecture, models, lengths, types, seed):
    model = models[architecture].model
    assert forward.supports(model)
    batch = _texts(model, lengths, seed, types)
    expected, expected_gradient = _with_gradient(model, lambda: model(**_padded(model, batch)).logits)
    found, gradient = _with_gradient(model, lambda: forward.logits(model, forward.pack_for(model, batch)))
    assert found.shape == (len(lengths), 3)
    assert _close(found, expected)
    assert _close(gradient, expected_gradient)
    with torch.no_grad():
        assert _close(forward.logits(model, forward.pack_for(model, batch)), expected)
        inputs = _padded(model, batch)
        given = PaddedBatch.from_inputs(**inputs, padding_idx=forward.position_padding_idx(model))
        assert _close(forward.logits(model, given), expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("budget", [4096, 16])
def test_embeddings_are_the_mean_of_the_last_hidden_states(architecture, budget, models, monkeypatch):
    monkeypatch.setitem(TOKEN_BUDGETS, "cpu", budget)
    loaded = models[architecture]
    batch = _texts(loaded.model, [7, 3, 12, 7], types=False)
    inputs = padded(batch, loaded.padding)
    with torch.no_grad():
        taken = {name: values for name, values in inputs.items() if name in loaded.input_names}
        states = loaded.model.base_model(**taken).last_hidden_state
    mask = inputs["attention_mask"][:, :, None]
    expected = F.normalize((states * mask).sum(1) / mask.sum(1)).numpy()
    assert compute_embeddings(loaded, batch) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("architecture", bert.MODULE_NAMES)
def test_logits_match_stored_values(architecture, models):
    """Detects a changed step even if transformers changes alike. Weights and texts come from fixed seeds."""
    model = models[architecture].model
    with torch.no_grad():
        found = forward.logits(model, forward.pack_for(model, _texts(model, [7, 3, 12])))
    assert found.numpy() == pytest.approx(np.array(FROZEN[architecture]), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("architecture", bert.MODULE_NAMES)
@pytest.mark.parametrize("scores", [1, 400, 1100])
@pytest.mark.parametrize("lengths", [[5, 5, 5, 9, 9, 12, 30, 30], [3, 30, 1, 12, 7, 7, 2]])
def test_attention_groups_do_not_change_the_result(architecture, models, lengths, scores, monkeypatch):
    model = models[architecture].model
    batch = _texts(model, lengths)
    expected, expected_gradient = _with_gradient(model, lambda: model(**_padded(model, batch)).logits)
    monkeypatch.setattr(batches, "MAX_CPU_SCORES", scores)
    packed = forward.pack_for(model, batch)
    sizes = [(group.texts.stop - group.texts.start, group.width) for group in packed.groups]
    assert all(texts == 1 or texts * width**2 <= scores for texts, width in sizes)
    assert sum(texts for texts, _ in sizes) == len(lengths)
    found, gradient = _with_gradient(model, lambda: forward.logits(model, packed))
    assert _close(found, expected)
    assert _close(gradient, expected_gradient)


def _by_text(inputs, p, around):
    """Variable-length attention as torch documents it, one text at a time."""
    query, key, value, query_starts, key_starts, most_queries, most_keys = inputs
    found = []
    pairs = zip(itertools.pairwise(query_starts.tolist()), itertools.pairwise(key_starts.tolist()), strict=True)
    for (q, q_end), (k, k_end) in pairs:
        assert q_end - q <= most_queries
        assert k_end - k <= most_keys
        far = torch.zeros(q_end - q, k_end - k, dtype=torch.bool)
        if around[0] >= 0:
            place = torch.arange(k_end - k)  # the last query belongs to the last key
            far = (place[k_end - k - (q_end - q) :, None] - place).abs() > around[0]
        parts = (x.transpose(0, 1) for x in (query[q:q_end], key[k:k_end], value[k:k_end]))
        found.append(F.scaled_dot_product_attention(*parts, ~far, p).transpose(0, 1))
    return torch.cat(found)


@pytest.mark.parametrize("architecture", [a for a in bert.MODULE_NAMES if a != "mpnet"])  # which needs a bias
def test_the_gpu_path_matches_a_reference_kernel(architecture, models, monkeypatch):
    model = models[architecture].model
    batch = _texts(model, [5, 30, 1, 12, 7])
    expected, expected_gradient = _with_gradient(model, lambda: model(**_padded(model, batch)).logits)
    called = []
    monkeypatch.setattr(attention, "has_kernel", lambda *_: True)
    monkeypatch.setattr(attention, "_flash_attention", lambda *given: called.append(1) or _by_text(*given))
    found, gradient = _with_gradient(model, lambda: forward.logits(model, forward.pack_for(model, batch)))
    assert len(called) == model.config.num_hidden_layers
    assert _close(found, expected)
    assert _close(gradient, expected_gradient)


def test_kernels_are_tested_before_use(monkeypatch):
    monkeypatch.setattr(attention, "_flash_attention", _by_text)
    attention._kernel_matches.cache_clear()
    assert attention._kernel_matches(CPU, torch.float32, 16)
    for wrong in (lambda *given: _by_text(*given) + 0.1, lambda inputs, p, around: _by_text(inputs, 0.0, around)):
        monkeypatch.setattr(attention, "_flash_attention", wrong)
        attention._kernel_matches.cache_clear()
        assert not attention._kernel_matches(CPU, torch.float32, 16)
    attention._kernel_matches.cache_clear()
    assert not attention.has_kernel(CPU, torch.bfloat16, 16)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.integers(1, 200),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.1]),
)
def test_gradients_do_not_depend_on_micro_batches(models, lengths, budget, workers, smoothing):
    model, rng = models["bert"].model, np.random.default_rng(0)
    batch = _texts(model, lengths)
    texts = TokenDataset(batch, rng.integers(0, 3, len(lengths)))
    loss = CrossEntropy(smoothing)
    model.zero_grad()
    whole = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)
    whole(model(**_padded(model, batch)).logits, texts.targets).backward()
    expected = _gradient(model)
    model.zero_grad()
    copies = [model, *(replicate(model) for _ in range(workers - 1))]
    for i, part in enumerate(split_batch(texts, budget, packed=True, workers=workers)):
        copy = copies[i % workers]
        loss.of_step(forward.logits(copy, forward.pack_for(copy, part.tokens)), part.targets, len(lengths)).backward()
    for copy in copies[1:]:
        collect_gradients(model, copy)
        assert all(p.grad is None for p in copy.parameters())
    assert _close(_gradient(model), expected)


@given(st.lists(st.integers(1, 600), max_size=60), st.integers(1, 4096), st.integers(1, 4))
def test_packed_micro_batches_hold_every_text_once_and_keep_to_the_budget(lengths, budget, workers):
    lengths = np.array(lengths, dtype=int)
    groups = micro_batches(lengths, budget, packed=True, workers=workers)
    assert sorted(int(i) for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or lengths[group].sum() <= budget
        assert len(group) == 1 or lengths[group].max() * len(group) <= PACKED_PADDING_FACTOR * budget


def test_workers_get_balanced_work():
    lengths = np.random.default_rng(0).integers(20, 60, 96)
    groups = micro_batches(lengths, 1000, packed=True, workers=4)
    sizes = [int(lengths[group].sum()) for group in groups]
    assert len(groups) % 4 == 0
    assert max(sizes) - min(sizes) <= 2 * 60


@pytest.mark.parametrize("threads", [2, 8])
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("architecture", ["bert", "albert"])
def test_threads_that_share_a_model_get_the_same_logits(architecture, workers, threads, models, monkeypatch):
    monkeypatch.setattr("bertsmith.compute.threads.num_workers", lambda: workers)
    loaded, before = models[architecture], torch.get_num_threads()
    batch = _texts(loaded.model, np.random.default_rng(1).integers(1, 40, 64).tolist())
    expected, _ = compute_logits(loaded, batch, 100)

    def some(i):
        return compute_logits(loaded, batch.take(np.arange(i, 64, threads)), 100)[0]

    with ThreadPoolExecutor(threads) as pool:
        for i, found in enumerate(pool.map(some, range(threads))):
            assert found == pytest.approx(expected[i::threads], abs=1e-5)
    assert torch.get_num_threads() == before


def test_threads_that_compute_at_once_keep_their_number_of_cores(monkeypatch):
    monkeypatch.setattr("bertsmith.compute.threads.cores", lambda: 3)
    before, started, ended, found = torch.get_num_threads(), threading.Event(), threading.Event(), []

    def compute_later():
        threads.run([started.set, lambda: ended.wait(9)])
        found.append(torch.get_num_threads())

    later = threading.Thread(target=compute_later)
    torch.set_num_threads(4)
    try:
        threads.run([lambda: (later.start(), started.wait(9)), int])
        found.append(torch.get_num_threads())
        ended.set()
        later.join()
    finally:
        torch.set_num_threads(before)
    assert found == [4, 4]


def test_unknown_architectures_use_the_hugging_face_forward_pass(models):
    assert {name for name, loaded in models.items() if forward.supports(loaded.model)} == set(bert.MODULE_NAMES)
    loaded = models["deberta-v2"]
    batch = _texts(loaded.model, [3, 9, 5])
    with torch.no_grad():
        expected = loaded.model(**_padded(loaded.model, batch)).logits
    assert compute_logits(loaded, batch, 64)[0] == pytest.approx(expected.numpy(), abs=1e-5)
    decoder = load_model(checkpoint.resolve(models["bert"].model.config._name_or_path))
    decoder.config.is_decoder = True
    assert not forward.supports(decoder)


def test_the_forward_pass_does_not_modify_the_model(models):
    model = models["bert"].model
    config, hooks = model.config.to_dict(), sum(len(m._forward_hooks) for m in model.modules())
    forward.logits(model, forward.pack_for(model, _texts(model, [3, 5])), dropout=Dropout(0)).sum().backward()
    assert model.config.to_dict() == config
    assert sum(len(m._forward_hooks) for m in model.modules()) == hooks
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("architecture", bert.MODULE_NAMES)
def test_dropout_depends_only_on_its_seed_and_is_unbiased(architecture, models):
    loaded = models[architecture]
    model, batch = loaded.model, forward.pack_for(loaded.model, _texts(loaded.model, [6, 6]))

    def logits(seed, other=0):
        torch.manual_seed(other)
        with torch.no_grad():
            return forward.logits(model, batch, dropout=Dropout() if seed is None else Dropout(seed))

    rates = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    assert torch.equal(logits(1, 1), logits(1, 2))
    assert torch.equal(logits(1), logits(2)) == (max(rates) == 0)  # ModernBERT drops nothing


def test_bf16_logits_and_training_are_close_to_fp32(models):
    model = models["bert"].model
    batch = _texts(model, [5, 30, 1, 12, 7])
    expected, expected_gradient = _with_gradient(model, lambda: model(**_padded(model, batch)).logits)

    def shorter():
        with torch.autocast("cpu", torch.bfloat16):
            return forward.logits(model, forward.pack_for(model, batch))

    found, gradient = _with_gradient(model, shorter)
    assert found.dtype == torch.float32  # the head is computed in full precision
    assert float((found - expected).norm() / expected.norm()) < 0.05
    assert float((gradient - expected_gradient).norm() / expected_gradient.norm()) < 0.1


@pytest.mark.parametrize("architecture", bert.MODULE_NAMES)
def test_layers_in_bf16_predict_nearly_the_same_and_share_the_rest(architecture, models):
    loaded = models[architecture]
    batch = _texts(loaded.model, [5, 30, 1, 12, 7])
    expected, _ = compute_logits(loaded, batch, 64)
    shorter = with_layer_dtype(loaded, torch.bfloat16)
    found, _ = compute_logits(shorter, batch, 64, dtype=torch.bfloat16)
    assert 0 < np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.05
    table = loaded.model.get_input_embeddings().weight
    assert shorter.model.get_input_embeddings().weight.data_ptr() == table.data_ptr()
    kinds = {name: p.dtype for name, p in shorter.model.named_parameters()}
    assert all(dtype == torch.float32 for name, dtype in kinds.items() if re.search(r"[nN]orm\.|classifier", name))
    assert torch.bfloat16 in kinds.values()
    assert with_layer_dtype(loaded, torch.float32) is loaded
    assert compute_logits(loaded, batch, 64)[0] == pytest.approx(expected)


def test_compiled_layers_give_the_same_logits(models, monkeypatch):
    model = models["bert"].model
    batch = forward.pack_for(model, _texts(model, [3, 9, 5]))
    called = []
    monkeypatch.setattr(torch, "compile", lambda f, dynamic: lambda *a, **k: called.append(1) or f(*a, **k))
    bert.compile_layer.cache_clear()
    with torch.no_grad():
        assert torch.equal(forward.logits(model, batch, compiled=True), forward.logits(model, batch))
    assert len(called) == 2
    bert.compile_layer.cache_clear()
