"""Batches, CUDA graphs with a fake capture, deferred checks and compilation, on a CPU."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from bertsmith.compute import machine, threads
from bertsmith.data.table import Labels
from bertsmith.events import Compiling
from bertsmith.model import checkpoint, forward
from bertsmith.model.batch import pack
from bertsmith.model.load import load_model
from bertsmith.model.tokens import Tokens
from bertsmith.testing import tiny_model
from bertsmith.training import engine as engines
from bertsmith.training import steps
from bertsmith.training.callback import StepMeter
from bertsmith.training.data import EpochSampler, TokenDataset
from bertsmith.training.nan_guard import BatchLoss, FiniteCheck, NanGuard
from bertsmith.training.optimizer import can_skip_step
from bertsmith.training.steps import COMPILE_AFTER_STEPS, MAX_FAILURES, MIN_MEASURED_STEPS, CudaGraphs

CPU = torch.device("cpu")
LABELS = Labels((0, 1, 2), ("a", "b", "c"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.booleans(), st.integers(0, 99))
def test_a_batch_is_padded_as_the_tokenizer_pads_it(tokenizer, lengths, left, seed):
    rng = np.random.default_rng(seed)
    ids = [rng.integers(5, 40, n).tolist() for n in lengths]
    labels = rng.integers(0, 3, len(ids))
    order = rng.permutation(len(ids))
    texts = TokenDataset(Tokens.from_lists({"input_ids": ids}).take(order), labels[order])
    rows = rng.choice(len(ids), max(len(ids) // 2, 1), replace=False).tolist()
    found = texts.__getitems__(rows)["texts"]
    tokenizer.padding_side = "left" if left else "right"
    picked = {"input_ids": [ids[order[i]] for i in rows]}
    expected = tokenizer.pad(picked, return_tensors="pt", pad_to_multiple_of=8)
    padded = found.tokens.pad({"input_ids": tokenizer.pad_token_id}, tokenizer.padding_side)
    assert len(texts) == len(ids)
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(torch.from_numpy(padded[name]), expected[name])
    assert found.targets.tolist() == labels[order[rows]].tolist()
    assert texts.lengths.tolist() == [lengths[i] for i in order]


def test_token_types_reach_the_batch():
    columns = {"input_ids": [[5, 6, 7], [8, 9]], "token_type_ids": [[0, 1, 1], [0, 0]]}
    batch = TokenDataset(Tokens.from_lists(columns), np.array([1, 0])).__getitems__([1, 0])["texts"]
    assert batch.tokens.columns["token_type_ids"].tolist() == [0, 0, 0, 1, 1]
    assert batch.take(np.array([1])).tokens.columns["token_type_ids"].tolist() == [0, 1, 1]


class _Recorder:
    """Repeats the work with the captured tensors, as a GPU does. The first captures may fail."""

    def __init__(self, failures=0):
        self.failures, self.recorded, self.replayed = failures, 0, 0

    def __call__(self, work):
        if self.failures:
            self.failures -= 1
            raise RuntimeError("not while a stream is captured")
        self.recorded += 1
        loss = torch.zeros(())

        def replay():
            self.replayed += 1
            loss.copy_(work())

        return replay, loss


def _steps(folder, graphs_of, n=8, parts=1):
    """Losses and gradients of some steps on batches of two sizes."""
    torch.manual_seed(0)  # of the head
    model = load_model(checkpoint.resolve(str(folder)), LABELS).eval()
    graphs = graphs_of(model)
    rng = np.random.default_rng(0)
    found = []
    for step in range(n):
        model.zero_grad()
        for _ in range(parts):
            width = (12, 20)[step % 2]
            lengths = (width, 5, width, width)  # the same in every step: without its kernel attention depends on them
            tokens = Tokens.from_lists({"input_ids": [rng.integers(5, 40, n).tolist() for n in lengths]})
            packed = forward.pack_for(model, tokens)
            labels = torch.from_numpy(rng.integers(0, 3, 4))

            def work(batch, labels):
                loss = torch.nn.functional.cross_entropy(forward.logits(model, batch), labels)
                loss.backward()
                return loss.detach()

            loss = work(packed, labels) if graphs is None else graphs.run(packed, labels, work, CPU, 20, None)
            found.append(float(loss))
        found.append(torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.grad is not None]))
    return graphs, found


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("failures", [0, 1, 99])
def test_cuda_graphs_match_eager_losses_and_gradients(folder, parts, failures, monkeypatch):
    recorder = _Recorder(failures)
    _, expected = _steps(folder, lambda model: None, parts=parts)
    graphs, found = _steps(folder, lambda model: CudaGraphs(model, recorder), parts=parts)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(torch.as_tensor(ours), torch.as_tensor(theirs), atol=1e-6)
    assert recorder.recorded == len(graphs.graphs) <= len({*graphs.graphs, *graphs.failures})
    assert all(n <= MAX_FAILURES for n in graphs.failures.values())
    if failures == 0:
        assert recorder.replayed == 8 * parts - 1  # all but the very first
    if failures == 99:
        assert recorder.replayed == 0


def test_a_cuda_graph_cannot_contain_groups_of_texts(monkeypatch):
    packed = pack(Tokens.from_lists({"input_ids": [[1] * 5] * 2}))
    packed = replace(packed, cu_seqlens=SimpleNamespace(device=torch.device("cuda")))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError):  # they come from the lengths on the host, which another batch does not share
        _ = packed.groups


def _question(losses, norm):
    texts = Tokens.from_lists({"input_ids": []})
    parts = [BatchLoss((3, i), texts, torch.tensor(loss)) for i, loss in enumerate(losses)]
    return FiniteCheck(parts, torch.tensor(norm))


@pytest.mark.parametrize(
    ("losses", "norm", "expected"),
    [
        ([1.0, 2.0], 3.0, None),
        ([1.0, float("nan")], 3.0, 1),
        ([float("inf"), float("nan")], float("nan"), 0),
        ([1.0, 2.0], float("inf"), 2),  # the gradient
    ],
)
def test_check_names_the_nonfinite_tensor(losses, norm, expected):
    question = _question(losses, norm)
    assert question.result() == expected
    assert float(question.found_inf) == (expected is not None)


def test_fused_optimizers_skip_nonfinite_steps():
    weight = torch.nn.Parameter(torch.ones(3))
    assert not can_skip_step(torch.optim.AdamW([weight], fused=False))
    assert not can_skip_step(torch.optim.SGD([weight], fused=True))
    optimizer = torch.optim.AdamW([weight], fused=True)
    assert can_skip_step(optimizer)
    weight.grad = torch.full((3,), float("nan"))
    optimizer.found_inf = _question([float("nan")], 1.0).found_inf
    optimizer.step()
    assert torch.equal(weight, torch.ones(3))


@pytest.mark.parametrize(("seconds", "expected"), [(30.0, False), (1000.0, True)])
def test_layers_are_compiled_only_if_this_saves_time(seconds, expected, folder, monkeypatch):
    events = []
    engine = object.__new__(engines.Engine)
    engine.graphs, engine.compiled, engine.emit = CudaGraphs(torch.nn.Linear(2, 2), _Recorder()), False, events.append
    engine._steps_seen = 0
    engine.model = load_model(checkpoint.resolve(str(folder)), LABELS)
    engine.state = type("State", (), {"max_steps": 1100, "global_step": 100})
    engine.args = type(
        "Arguments", (), {"per_device_train_batch_size": 10, "gradient_accumulation_steps": 1, "device": CPU}
    )
    engine.meter = type("Watch", (), {"texts_per_second": 10_000 / seconds, "texts": 0})
    monkeypatch.setattr(engines, "can_compile", lambda device: True)
    monkeypatch.setattr(steps, "CudaGraphs", lambda model: CudaGraphs(model, _Recorder()))
    for _ in range(COMPILE_AFTER_STEPS + 5):  # scored a moment ago
        engine._compile_if_worthwhile()
    assert events == []
    engine.meter.texts = 10 * MIN_MEASURED_STEPS
    for _ in range(COMPILE_AFTER_STEPS + 5):
        engine._compile_if_worthwhile()
    assert engine.compiled is expected
    assert events == ([Compiling(100, pytest.approx(seconds))] if expected else [])


def test_batches_are_made_without_worker_processes():
    engine = object.__new__(engines.Engine)
    engine.train_dataset = TokenDataset(Tokens.from_lists({"input_ids": [[5], [6], [7]]}), np.array([0, 1, 0]))
    engine.sampler, engine.data_collator = range(3), lambda batch: batch
    engine.args = SimpleNamespace(
        train_batch_size=2, train_sampling_strategy="random", dataloader_drop_last=False, dataloader_num_workers=2
    )
    loader = engine.get_train_dataloader()
    assert loader.num_workers == 0
    assert [len(batch["texts"]) for batch in loader] == [2, 1]


@pytest.mark.parametrize("probabilities", [None, np.array([0.25, 0.25, 0.5])])
@pytest.mark.parametrize("strategy", ["random", "sequential"])
def test_texts_are_drawn_with_their_probabilities_in_any_strategy(strategy, probabilities, monkeypatch):
    """In the contrastive stage, too, where the user cannot know of them."""
    engine = object.__new__(engines.Engine)
    engine.train_dataset, engine.data_collator = range(3), lambda batch: batch
    engine.plan, others = SimpleNamespace(probabilities=probabilities), range(3)
    engine.args = SimpleNamespace(
        train_batch_size=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        train_sampling_strategy=strategy,
        dataloader_drop_last=False,
        seed=0,
    )
    engine.sampler = EpochSampler(3, engine.args, lambda: 0, probabilities)
    monkeypatch.setattr(engine, "_get_train_sampler", lambda data: others)
    own = strategy == "random" or probabilities is not None
    assert engine.get_train_dataloader().sampler is (engine.sampler if own else others)
    rows = NanGuard(engine)._rows(BatchLoss((0, 1), None, torch.zeros(())))
    assert rows == (engine.sampler.order(0)[1:2].tolist() if own else [])


def test_the_training_speed_leaves_out_evaluation_and_saving(monkeypatch):
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    meter = StepMeter()
    assert meter.texts_per_second == 0
    for saving in (0.0, 100.0):
        meter.texts, now = meter.texts + 8, now + 2.0
        meter.end_step()
        now += saving
        meter.skip()
    assert meter.texts_per_second == 4


def test_cores_are_limited_by_the_setting(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    machine.use_cores(None)
    everything = machine.cores()
    machine.use_cores(1)
    assert machine.cores() == threads.num_workers() == 1
    machine.use_cores(10**6)
    assert machine.cores() == everything
    machine.use_cores(None)
    assert machine.cores() == everything
