"""A disturbed run reaches the same result, or reports what is wrong. The last intact checkpoint survives."""

import functools
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from safetensors.torch import load_model as load_safetensors
from transformers import TrainerState

import bertsmith as bs
from bertsmith.compute import batching, memory, system
from bertsmith.data.table import Labels
from bertsmith.errors import DeviceError, Interrupted, ModelError, OutputError, RunFolderError, TrainingError
from bertsmith.events import (
    CheckpointsDamaged,
    Collapsed,
    Finished,
    MemoryExceeded,
    MemoryLimited,
    RolledBack,
    Saved,
    Scoring,
    Started,
    StepDone,
)
from bertsmith.folders import atomic
from bertsmith.folders.run import Run
from bertsmith.model import checkpoint as models
from bertsmith.model import forward
from bertsmith.model.load import load_model, load_tokenizer
from bertsmith.progress.training import TrainingProgress
from bertsmith.testing import tiny_model, tiny_table
from bertsmith.training import callback, checkpoints, engine, nan_guard
from bertsmith.training import steps as planning
from bertsmith.training.optimizer import can_skip_step
from bertsmith.workflows.score import analyze_test
from tests.conftest import same_weights as _same
from tests.conftest import train as _train
from tests.conftest import weights_of as _weights


@pytest.fixture(autouse=True)
def same_budget_everywhere(monkeypatch):
    """Make a CPU with matrix units split batches as other CPUs do."""
    monkeypatch.setattr(batching, "AMX_BUDGET_FACTOR", 1)


COMPARED = ("step", "train_loss", "validation_loss", "metrics", "learning_rate")


def test_a_repeated_training_replaces_its_display():
    console = Console(file=io.StringIO(), force_terminal=True)
    displays = []
    with TrainingProgress(console) as progress:
        for event in (Started(0, 9, 1.0), RolledBack(3, 0, "NaN", 1e-5), Started(0, 9, 1.0)):
            progress(event)
            displays.append(progress.live)
        assert [display.is_started for display in displays] == [False, False, True]
        progress(Finished(9, 1.0, 9, None, False, False, 1.0))
    assert not displays[-1].is_started


def _history(run):
    return [[entry[key] for key in COMPARED] for entry in run.history]


def _stop_after(steps):
    """Return arguments that stop training after some steps."""
    seen = []
    return {
        "on_event": lambda e: seen.append(e) if isinstance(e, StepDone) else None,
        "stop": lambda: len(seen) >= steps,
    }


class _PowerCutError(Exception):
    """Ends the training without saving anything."""


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """An undisturbed run, for comparison; tests do not change it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "AMX_BUDGET_FACTOR", 1)
        return _train(tiny, tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def _stopped(tiny, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "AMX_BUDGET_FACTOR", 1)
        return _interrupted(tiny, tmp_path_factory.mktemp("stopped") / "run").path


@pytest.fixture
def stopped(_stopped, tmp_path):
    """A copy of a run that was interrupted after step 9 of 18."""
    return Run(shutil.copytree(_stopped, tmp_path / "run"))


# -- going on ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("at", "twice"), [(4, 0), (6, 0), (9, 0), (9, 1)])
def test_an_interrupted_run_is_resumed_to_the_same_end(at, twice, whole, tiny, tmp_path):
    def train(*given, **settings):
        return _train(*given, **{"consistency": twice, **settings})

    if twice:
        whole = train(tiny, tmp_path / "whole")
    seen = []
    with pytest.raises(Interrupted, match=f"stopped after step {at}"):
        train(
            tiny, tmp_path / "run", on_event=seen.append, stop=lambda: sum(isinstance(e, StepDone) for e in seen) >= at
        )
    run = Run(tmp_path / "run")
    assert run.info["status"] == "interrupted"
    assert run.last_checkpoint().name == f"checkpoint-{at}"
    with pytest.raises(RunFolderError, match="resume"):
        train(tiny, tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"epochs .*3\.0.*4\.0"):
        train(tiny, tmp_path / "run", resume=True, epochs=4)
    with pytest.raises(RunFolderError, match="splits"):
        train(tiny, tmp_path / "run", resume=True, table=tiny_table(seed=1))
    run = train(tiny, tmp_path / "run", resume=True)
    assert _same(_weights(whole), _weights(run))
    assert _history(run) == _history(whole)
    assert run.metrics == whole.metrics
    assert not run.layout.checkpoints.exists()


@pytest.mark.parametrize("damage", ["a byte changed", "cut short", "no manifest", "a file is gone"])
def test_a_damaged_checkpoint_is_reported_and_skipped(damage, whole, stopped, tiny):
    run = stopped
    newest = run.last_checkpoint()
    weights = newest / "model.safetensors"
    if damage == "a byte changed":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "cut short":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        (newest / ("manifest.json" if damage == "no manifest" else "training.safetensors")).unlink()
    assert run.last_checkpoint().name == "checkpoint-6"
    reported = []
    run = _train(tiny, run.path, resume=True, on_event=reported.append)
    assert [e for e in reported if isinstance(e, CheckpointsDamaged)] == [CheckpointsDamaged(6, [9])]
    assert _same(_weights(whole), _weights(run))


def test_a_run_resumes_from_timed_checkpoints_to_the_same_result(whole, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(callback, "SAVE_SECONDS", 0.0)

    def die(event):
        if isinstance(event, StepDone) and event.step == 9:
            raise _PowerCutError

    with pytest.raises(_PowerCutError):
        _train(tiny, tmp_path / "run", on_event=die)
    assert Run(tmp_path / "run").last_checkpoint().name == "checkpoint-8"
    run = _train(tiny, tmp_path / "run", resume=True)
    assert _same(_weights(whole), _weights(run))
    assert run.metrics == whole.metrics
    assert _history(run) == _history(whole)


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "bf16"},
        {"set": {"optim": "adafactor", "lr_scheduler_type": "cosine"}},
        {"set": {"optim": "sgd", "lr_scheduler_type": "reduce_lr_on_plateau"}},
        {"set": {"gradient_accumulation_steps": 2}},
        {"set": {"train_sampling_strategy": "group_by_length"}},
    ],
    ids=str,
)
def test_runs_with_any_precision_optimizer_and_schedule_resume_to_the_same_result(settings, tiny, tmp_path):
    whole = _train(tiny, tmp_path / "whole", **settings)
    with pytest.raises(Interrupted):
        _train(tiny, tmp_path / "run", **settings, **_stop_after(7))  # within a later epoch
    run = _train(tiny, tmp_path / "run", resume=True, **settings)
    assert _same(_weights(whole), _weights(run))
    assert _history(run) == _history(whole)


def test_patience_is_restored_when_resuming(tiny, tmp_path):
    settings = {"epochs": 40, "patience": 2, "learning_rate": 3e-3, "validation_size": 0.2}
    whole = _train(tiny, tmp_path / "whole", **settings)
    with pytest.raises(Interrupted):
        _train(tiny, tmp_path / "run", **settings, **_stop_after(whole.history[-1]["step"] - 2))
    run = _train(tiny, tmp_path / "run", resume=True, **settings)
    assert len(whole.history) < 40
    assert _history(run) == _history(whole)


def test_the_time_of_a_resumed_run_counts_from_its_beginning(tiny, tmp_path):
    seen = []

    def kill(event):
        if isinstance(event, StepDone) and event.step == 8:
            seen.append(Run(tmp_path / "run").info["seconds"])  # what a kill would leave
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(tiny, tmp_path / "run", on_event=kill)
    assert seen[0]["training"] > 0
    run = Run(tmp_path / "run")
    spent = run.info["seconds"]
    assert spent["training"] > seen[0]["training"]
    run.update(seconds={**spent, "training": 1000.0, "data": 100.0})
    reported = []
    run = _train(tiny, tmp_path / "run", resume=True, on_event=reported.append)
    assert 1000 < run.info["seconds"]["training"] < 1100
    assert 100 < run.info["seconds"]["data"] < 200
    assert run.info["training"]["seconds"] == run.info["seconds"]["training"]
    (finished,) = [event for event in reported if type(event).__name__ == "Finished"]
    assert 1000 < finished.seconds < 1100
    assert [e["seconds"] > 1000 for e in run.history] == [False, True, True]


def test_a_run_stopped_at_once_resumes_from_its_last_checkpoint(whole, tiny, tmp_path):
    def interrupt(event):
        if isinstance(event, StepDone) and event.step == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _train(tiny, tmp_path / "run", on_event=interrupt)
    run = Run(tmp_path / "run")
    assert run.info["status"] == "interrupted"
    assert run.last_checkpoint().name == "checkpoint-6"
    assert _same(_weights(whole), _weights(_train(tiny, tmp_path / "run", resume=True)))


@pytest.mark.parametrize(
    "settings", [{}, {"epochs": 40, "patience": 2, "validation_size": 0.2}], ids=["the last epoch", "out of patience"]
)
def test_a_trained_run_is_only_scored_when_resumed(settings, whole, tiny, tmp_path):
    def die(event):
        if type(event).__name__ == "Finished":
            raise _PowerCutError

    if settings:
        whole = _train(tiny, tmp_path / "whole", **settings)
    with pytest.raises(_PowerCutError):
        _train(tiny, tmp_path / "run", on_event=die, **settings)
    steps = []
    run = _train(tiny, tmp_path / "run", resume=True, on_event=steps.append, **settings)
    assert not [e for e in steps if isinstance(e, StepDone)]
    assert _same(_weights(whole), _weights(run))
    assert _history(run) == _history(whole)
    assert run.metrics == whole.metrics


@pytest.mark.parametrize("calls", [1, 3, 10**9], ids=["at once", "in between", "before the baseline"])
def test_a_run_stopped_while_scoring_resumes_scoring(calls, whole, tiny, tmp_path, monkeypatch):
    left, events, scored = calls, [], []

    def stop():
        nonlocal left
        left -= any(isinstance(event, Scoring) for event in events)
        return left <= 0 or len(scored) == 1

    def analyze(*given):
        scored.append(given)
        return analyze_test(*given)

    monkeypatch.setattr("bertsmith.workflows.train.analyze_test", analyze)
    with pytest.raises(Interrupted, match="while scoring"):
        _train(tiny, tmp_path / "run", on_event=events.append, stop=stop)
    assert len(scored) == (calls == 10**9)
    assert Run(tmp_path / "run").info["status"] == "interrupted"
    run = _train(tiny, tmp_path / "run", resume=True)
    assert run.metrics == whole.metrics
    assert _same(_weights(whole), _weights(run))


def test_a_moved_run_folder_is_resumed(whole, stopped, tiny, tmp_path):
    stopped.path.rename(tmp_path / "moved")
    assert _same(_weights(whole), _weights(_train(tiny, tmp_path / "moved", resume=True)))


def test_another_model_under_the_same_name_is_refused(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny, tmp_path / "checkpoint"))
    with pytest.raises(Interrupted):
        _train(folder, tmp_path / "run", **_stop_after(4))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {"cat": tokenizer["model"]["vocab"]["dog"]}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(RunFolderError, match="these differ: the model's configuration or tokenizer"):
        _train(folder, tmp_path / "run", resume=True)


def test_a_resumed_run_keeps_its_settings_on_another_machine(tiny, tmp_path, monkeypatch):
    settings = {"precision": "auto", "learning_rate": None}
    whole = _train(tiny, tmp_path / "whole", **settings)
    with pytest.raises(Interrupted):
        _train(tiny, tmp_path / "run", **settings, **_stop_after(4))
    monkeypatch.setattr("bertsmith.training.recipe.choose_precision", lambda device: ("fp16", "another machine"))
    run = _train(tiny, tmp_path / "run", resume=True, **settings)
    assert run.info["recipe"]["precision"] == whole.info["recipe"]["precision"]
    assert _same(_weights(whole), _weights(run))


# -- checkpoints -------------------------------------------------------------------------------------------------------


def _interrupted(tiny, folder, steps=9):
    with pytest.raises(Interrupted):
        _train(tiny, folder, **_stop_after(steps))
    return Run(folder)


def test_a_checkpoint_is_a_loadable_model_without_pickles(stopped):
    newest = stopped.last_checkpoint()
    names = {p.relative_to(newest).as_posix() for p in newest.rglob("*") if p.is_file()}
    assert {Path(name).suffix for name in names} <= {".json", ".safetensors", ".txt"}
    assert names - {"manifest.json"} == set(json.loads((newest / "manifest.json").read_text()))
    assert load_model(models.resolve(str(newest))).num_labels == 3


def test_training_state_is_kept_as_plain_data(tmp_path):
    state, tensors = {"moments": torch.rand(3), 3: (1, 2.5, None, [True, "a"])}, {}
    packed = json.loads(json.dumps(checkpoints._to_json(state, tensors)))
    save_file(tensors, tmp_path / "t")
    back = checkpoints._from_json(packed, load_file(tmp_path / "t"))
    assert back["moments"].equal(state["moments"])
    assert back[3] == state[3]


def test_state_that_cannot_be_saved_as_plain_data_is_refused():
    with pytest.raises(TrainingError) as caught:
        checkpoints._to_json({"optimizer": [object()]}, {})
    assert "--set optim" in caught.value.remedy


def test_the_best_and_the_newest_checkpoints_are_kept(tmp_path):
    for step in (6, 12, 18, 24, 30):
        (tmp_path / f"checkpoint-{step}").mkdir()
    checkpoints.rotate(tmp_path, None, 6)
    assert len(list(tmp_path.iterdir())) == 5
    checkpoints.rotate(tmp_path, 3, 6)
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint-6", "checkpoint-24", "checkpoint-30"}
    checkpoints.rotate(tmp_path, 1, 6)
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint-6", "checkpoint-30"}


def _states_during(action, folder, monkeypatch):
    """Run an action and return a copy of each state of a folder that a kill could leave.

    A state is recorded after every line of the code that writes. Returns pairs of a copy and its files that were not
    synced to disk yet; a power cut may damage these files.
    """
    states, seen = [], set()
    synced = {p.stat().st_ino: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    fsync = os.fsync

    def recorded(descriptor):
        fsync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_file():
            synced[path.stat().st_ino] = path.stat().st_mtime_ns

    monkeypatch.setattr(os, "fsync", recorded)
    writers = {checkpoints.__file__, atomic.__file__}
    # Code that only computes, and runs thousands of lines.
    apart = checkpoints._to_json.__code__
    computing = {apart, *(part for part in apart.co_consts if isinstance(part, types.CodeType))}

    def look():
        files = {p.relative_to(folder): p.stat() for p in sorted(folder.rglob("*")) if p.is_file()}
        safe = {name for name, stat in files.items() if synced.get(stat.st_ino) == stat.st_mtime_ns}
        state = tuple((str(n), s.st_ino, s.st_size, s.st_mtime_ns, n in safe) for n, s in files.items())
        if state not in seen:
            seen.add(state)
            copy = folder.with_name(f"state-{len(states)}")
            shutil.copytree(folder, copy)
            states.append((copy, sorted(set(files) - safe)))

    def trace(frame, kind, argument):
        if frame.f_code.co_filename in writers and frame.f_code not in computing:
            look()
            return trace
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    look()
    return states


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc for what was forced to disk")
@pytest.mark.parametrize("again", [False, True], ids=["a new one", "one of the same step"])
def test_an_interrupted_save_keeps_a_valid_checkpoint(again, stopped, tmp_path, monkeypatch):
    newest = stopped.last_checkpoint()
    assert newest.name == "checkpoint-9"
    model = load_model(models.resolve(str(newest)))
    tokenizer = load_tokenizer(models.resolve(str(newest)))
    state, progress = checkpoints.load_state(newest), TrainerState.load_from_json(newest / checkpoints.TRAINER_STATE)

    def save():
        path = newest.with_name("checkpoint-9" if again else "checkpoint-10")
        checkpoints.save(path, model, tokenizer, state, progress)
        checkpoints.rotate(path.parent, 2, 6)

    states = _states_during(save, tmp_path / "run", monkeypatch)
    assert len(states) > 15
    for copy, not_forced in states:
        for cut in ("as it was", "emptied", "halved") if not_forced else ("as it was",):
            for name in not_forced if cut != "as it was" else ():
                content = (copy / name).read_bytes()
                (copy / name).write_bytes(content[: len(content) // 2] if cut == "halved" else b"")
            last = Run(copy).last_checkpoint()
            assert last is not None, (copy, cut)
            assert int(last.name.rpartition("-")[2]) >= (6 if again else 9)
            load_safetensors(model, last / "model.safetensors")
            assert checkpoints.load_state(last)["optimizer"]["state"].keys() == state["optimizer"]["state"].keys()
    assert Run(states[-1][0]).last_checkpoint().name == ("checkpoint-9" if again else "checkpoint-10")
    assert not list((tmp_path / "run").rglob("*.part*"))


def test_partial_files_are_removed_when_a_run_resumes(stopped, tiny):
    run = stopped
    for leftover in (run.layout.checkpoints / ".checkpoint-12.abc.part", run.path / ".model.abc.part"):
        leftover.mkdir()
        (leftover / "model.safetensors").write_text("half")
    (run.path / ".notes").mkdir()
    run = _train(tiny, run.path, resume=True)
    assert not list(run.path.rglob("*.part*"))
    assert (run.path / ".notes").is_dir()


# -- memory


def _fail_at(monkeypatch, fails, error=None, *, training=True):
    """Let the forward pass of the model run out of memory as ``fails(tokens, attempt)`` says."""
    logits = forward.logits
    attempts = []

    @functools.wraps(logits)
    def limited(model, batch, **more):
        if (more.get("dropout") is not None) == training and (training or not torch.is_grad_enabled()):
            attempts.append(sum(batch.lengths))
            if fails(attempts[-1], len(attempts)):
                raise error or torch.OutOfMemoryError("out of memory")
        return logits(model, batch, **more)

    monkeypatch.setattr(forward, "logits", limited)
    return attempts


def test_out_of_memory_only_halves_the_token_budget(tiny, tmp_path, monkeypatch):
    settings = {"epochs": 2, "table": _long_table()}
    monkeypatch.setitem(batching.TOKEN_BUDGETS, "cpu", 64)
    expected = _train(tiny, tmp_path / "expected", **settings)
    monkeypatch.setitem(batching.TOKEN_BUDGETS, "cpu", 256)
    events = []
    # More than 64 tokens never fit. The second micro-batch of a step fails, after the first has left its gradient.
    attempts = _fail_at(monkeypatch, lambda tokens, attempt: tokens > 64)
    run = _train(tiny, tmp_path / "run", on_event=events.append, **settings)
    assert [e.token_budget for e in events if isinstance(e, MemoryExceeded)] == [128, 64]
    assert max(attempts[3:]) <= 64
    weights, others = _weights(expected), _weights(run)
    # The temperature in the head depends on how many validation texts are scored at once.
    assert all(w.equal(others[name]) or name.startswith("classifier.") for name, w in weights.items())
    assert all(w.allclose(others[name], rtol=1e-5) for name, w in weights.items())
    assert [e["train_loss"] for e in run.history] == [e["train_loss"] for e in expected.history]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_failed_step_changes_no_state(accumulation, tiny, tmp_path, monkeypatch):
    settings = {"epochs": 1, "set": {"gradient_accumulation_steps": accumulation}, "table": _long_table()}
    monkeypatch.setitem(batching.TOKEN_BUDGETS, "cpu", 128)
    plain = _train(tiny, tmp_path / "plain", **settings)
    attempts = _fail_at(monkeypatch, lambda tokens, attempt: attempt == 6)
    run = _train(tiny, tmp_path / "run", **settings)
    assert len(attempts) > 6
    a, b = _weights(plain), _weights(run)
    # From the sixth micro-batch on, budget and dropout masks differ, so the losses are close, but not equal.
    assert [e["train_loss"] for e in run.history] == pytest.approx([e["train_loss"] for e in plain.history], abs=0.05)
    assert not _same(a, b)


def test_memory_too_small_for_one_text_is_an_error(tiny, tmp_path, monkeypatch):
    _fail_at(monkeypatch, lambda tokens, attempt: True)
    with pytest.raises(DeviceError) as caught:
        _train(tiny, tmp_path / "run")
    assert "max_length" in caught.value.remedy
    assert Run(tmp_path / "run").info["status"] == "failed"
    assert not (tmp_path / "run" / "model").exists()


def _long_table():
    table = tiny_table()
    table["Text"] = [f"{text} " * (1 + i % 5) for i, text in enumerate(table["Text"])]
    return table


@pytest.mark.parametrize("failure", ["RuntimeError", "MemoryError"])
def test_all_out_of_memory_messages_are_recognised(failure, tiny, tmp_path, monkeypatch):
    words = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
    error = {"RuntimeError": RuntimeError(words), "MemoryError": MemoryError()}[failure]
    monkeypatch.setitem(batching.TOKEN_BUDGETS, "cpu", 128)
    _fail_at(monkeypatch, lambda tokens, attempt: attempt == 3, error)
    events = []
    _train(tiny, tmp_path / "run", epochs=1, on_event=events.append)
    assert [e.token_budget for e in events if isinstance(e, MemoryExceeded)] == [64]


def test_out_of_memory_gives_the_result_of_a_run_with_the_same_budgets(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(batching.TOKEN_BUDGETS, "cpu", 256)
    fails = {9: 128, 17: 64}  # the budget from these steps on
    steps = []

    def listen(event):
        if isinstance(event, StepDone):
            steps.append(event)

    settings = {"table": _long_table(), "on_event": listen}
    attempts = _fail_at(
        monkeypatch, lambda tokens, _: tokens > min([b for at, b in fails.items() if len(steps) + 1 >= at], default=999)
    )
    disturbed = _train(tiny, tmp_path / "disturbed", **settings)
    assert max(attempts) > 128
    steps.clear()
    step = engine.Engine.training_step

    def scheduled(self, *args, **kwargs):
        self.token_budget = fails.get(self.state.global_step + 1, self.token_budget)
        return step(self, *args, **kwargs)

    monkeypatch.undo()
    monkeypatch.setitem(batching.TOKEN_BUDGETS, "cpu", 256)
    monkeypatch.setattr(engine.Engine, "training_step", scheduled)
    planned = _train(tiny, tmp_path / "planned", **settings)
    assert _same(_weights(disturbed), _weights(planned))
    assert _history(disturbed) == _history(planned)


def test_without_dropout_out_of_memory_does_not_change_the_loss_curve(tmp_path, monkeypatch):
    calm = tiny_model(tmp_path / "calm", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    monkeypatch.setitem(batching.TOKEN_BUDGETS, "cpu", 256)
    settings = {"table": _long_table(), "learning_rate": 1e-3, "set": {"optim": "sgd"}}
    undisturbed = _train(calm, tmp_path / "undisturbed", **settings)
    _fail_at(monkeypatch, lambda tokens, attempt: attempt in (3, 8))
    disturbed = _train(calm, tmp_path / "disturbed", **settings)
    for a, b in zip(undisturbed.history, disturbed.history, strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-5)
        assert b["validation_loss"] == pytest.approx(a["validation_loss"], rel=1e-5)


def test_out_of_memory_in_scoring_halves_the_token_budget(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(batching.TOKEN_BUDGETS, "cpu", 256)
    expected = _train(tiny, tmp_path / "expected", epochs=1, table=_long_table())
    events = []
    _fail_at(monkeypatch, lambda tokens, attempt: tokens > 64, training=False)
    run = _train(tiny, tmp_path / "run", epochs=1, table=_long_table(), on_event=events.append)
    assert [e.token_budget for e in events if isinstance(e, MemoryExceeded)] == [128, 64]
    assert run.history[0]["validation_loss"] == pytest.approx(expected.history[0]["validation_loss"], rel=1e-5)
    a, b = (r.metrics["splits"]["test"]["metrics"]["log_loss"]["value"] for r in (run, expected))
    assert a == pytest.approx(b, rel=1e-6)


def test_out_of_memory_in_prediction_halves_the_token_budget(finished, monkeypatch, caplog):
    classifier = bs.load(finished)
    texts = _long_table()["Text"].tolist()
    expected = classifier.predict_proba(texts)
    attempts = _fail_at(monkeypatch, lambda tokens, attempt: tokens > 64, training=False)
    assert classifier.predict_proba(texts) == pytest.approx(expected, abs=1e-6)
    assert sum(tokens > 64 for tokens in attempts) < 10
    assert "bertsmith.inference.classifier" in {record.name for record in caplog.records}
    _fail_at(monkeypatch, lambda tokens, attempt: True, training=False)
    with pytest.raises(DeviceError, match=r"text of \d+ tokens"):
        classifier.predict_proba(texts)


def _group(root, folder, **files):
    (root / "sys/fs/cgroup" / folder).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (root / "sys/fs/cgroup" / folder / name.replace("memory_", "memory.")).write_text(content)


def test_free_memory_is_the_least_that_machine_groups_and_ulimit_leave(tmp_path, monkeypatch):
    psutil = pytest.importorskip("psutil")
    monkeypatch.setattr(system, "_ulimits", lambda: [])
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=5000))
    assert system.free_memory(tmp_path) == 5000
    groups = tmp_path / "proc" / "self" / "cgroup"
    groups.parent.mkdir(parents=True)
    groups.write_text("0::/a/b\n")
    _group(tmp_path, "a", memory_max="9000", memory_current="8000", memory_stat="anon 1\ninactive_file 500\n")
    _group(tmp_path, "a/b", memory_max="max", memory_current="8000")
    assert system.free_memory(tmp_path) == 1500  # the limit of the group above, cached files not counted as used
    groups.write_text("5:cpu:/x\n4:memory:/a\n")
    _group(tmp_path, "memory/a", **{"memory_limit_in_bytes": "700", "memory_usage_in_bytes": "600"})
    assert system.free_memory(tmp_path) == 100
    monkeypatch.setattr(system, "_ulimits", lambda: [2000, 50])
    assert system.free_memory(tmp_path) == 50
    monkeypatch.setattr(system, "_ulimits", lambda: [-5])
    assert system.free_memory(tmp_path) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts them")
def test_ulimits_count_the_memory_of_this_process(monkeypatch):
    import psutil

    used = psutil.Process().memory_info()
    monkeypatch.setattr(psutil.Process, "rlimit", lambda self, kind: (2**40, 2**40))
    assert system._ulimits() == pytest.approx([2**40 - used.vms, 2**40 - used.data], abs=2**26)
    monkeypatch.setattr(psutil.Process, "rlimit", lambda self, kind: (psutil.RLIM_INFINITY,) * 2)
    assert system._ulimits() == []


def test_the_first_token_budget_fits_memory_and_does_not_change_the_result(tiny, tmp_path, monkeypatch):
    model = load_model(models.resolve(str(tiny)), Labels((0, 1), ("a", "b")))
    weights = 12 * sum(p.numel() for p in model.parameters())
    each = memory._bytes_per_token(model, 32) + memory.FRAGMENTATION_BYTES
    assert memory.plan_token_budget(model, 32, training=True, free=None) == 1024
    assert memory.plan_token_budget(model, 32, training=True, free=weights + 1024 * each) == 1024
    assert memory.plan_token_budget(model, 32, training=True, free=weights + 1024 * each - 1) == 512
    assert memory.plan_token_budget(model, 32, training=True, free=weights + 32 * each) == 32
    with pytest.raises(DeviceError) as caught:
        memory.plan_token_budget(model, 32, training=True, free=weights + 32 * each - 1)
    assert " 32 tokens" in caught.value.what
    assert "--max-length" in caught.value.remedy
    monkeypatch.setitem(batching.TOKEN_BUDGETS, "cpu", 64)
    expected = _train(tiny, tmp_path / "expected", epochs=1)
    monkeypatch.setitem(batching.TOKEN_BUDGETS, "cpu", 256)
    monkeypatch.setattr(planning, "plan_token_budget", lambda *_, **__: 64)
    events = []
    run = _train(tiny, tmp_path / "run", epochs=1, on_event=events.append)
    assert [e.token_budget for e in events if isinstance(e, MemoryLimited)] == [64]
    assert _same(_weights(expected), _weights(run))


# -- numbers that go wrong ---------------------------------------------------------------------------------------------


def _break(monkeypatch, when, change):
    """Apply ``change`` to the logits of the model if ``when(model, steps done, inputs)`` is true."""
    logits, steps = forward.logits, []

    @functools.wraps(logits)
    def broken(model, batch, **more):
        found = logits(model, batch, **more)
        return change(found) if when(model, len(steps), batch.input_ids[None]) else found

    monkeypatch.setattr(forward, "logits", broken)
    return lambda event: steps.append(event) if isinstance(event, StepDone) else None


class _BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        return x.clone()

    @staticmethod
    def backward(_, gradient):
        return gradient * float("nan")


BROKEN = {
    "NaN loss": lambda logits: logits * float("nan"),
    "Inf loss": lambda logits: logits * float("inf"),
    "NaN gradient": _BadGradient.apply,
}


@pytest.fixture(params=["at once", "later"])
def check_time(request, monkeypatch):
    """When the guard reads a check; ``later``, as on a GPU, the optimizer skips the step until then."""
    if request.param == "later":
        deferred = property(lambda self: can_skip_step(self.engine.optimizer.optimizer))
        monkeypatch.setattr(nan_guard.NanGuard, "deferred", deferred)
    return request.param


@pytest.mark.parametrize(("kind", "at", "back_to"), [*((kind, 8, 6) for kind in BROKEN), ("NaN loss", 2, 0)])
def test_training_returns_to_a_checkpoint_after_one_nonfinite_loss(
    kind, at, back_to, check_time, whole, tiny, tmp_path, monkeypatch
):
    events, done = [], []
    count = _break(monkeypatch, lambda model, n, _: model.training and n == at and not done, BROKEN[kind])

    def listen(event):
        events.append(event)
        count(event)
        if isinstance(event, RolledBack):
            done.append(event)

    run = _train(tiny, tmp_path / "run", on_event=listen, precision="bf16")
    (back,) = done
    assert (back.step, back.to_step, back.learning_rate) == (at + (check_time == "later"), back_to, 5e-3)
    assert f"{kind.split()[1]} of step {at + 1} " in back.what
    assert re.search(r"rows (\d+, )+.*of the data frame", back.what)
    assert "bf16" in back.what
    assert run.info["status"] == "finished"
    assert run.info["went_back"]["to_step"] == back_to
    assert [e["step"] for e in run.history] == [6, 12, 18]
    rates = [e["learning_rate"] for e in run.history]
    plain = [e["learning_rate"] for e in whole.history]
    halved = [False, True, True] if back_to else [True, True, True]
    assert rates == pytest.approx([r / 2 if half else r for r, half in zip(plain, halved, strict=True)])


def test_no_checkpoint_follows_a_nonfinite_step(check_time, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(callback, "SAVE_SECONDS", -1.0)
    done = []
    count = _break(monkeypatch, lambda model, n, _: model.training and n == 2 and not done, BROKEN["NaN loss"])

    def listen(event):
        count(event)
        if isinstance(event, RolledBack):
            done.append(event)

    _train(tiny, tmp_path / "run", on_event=listen, epochs=1)
    assert [back.to_step for back in done] == [2]


@pytest.mark.parametrize("kind", ["NaN loss", "NaN gradient"])
def test_training_ends_after_two_nonfinite_losses_and_keeps_checkpoints(
    kind, check_time, whole, tiny, tmp_path, monkeypatch
):
    events = []
    count = _break(monkeypatch, lambda model, n, _: model.training and n >= 8, BROKEN[kind])
    with pytest.raises(TrainingError) as caught:
        _train(tiny, tmp_path / "run", on_event=lambda e: (count(e), events.append(e)))
    assert f"{kind.split()[1]} of step 7 " in caught.value.what
    assert "learning_rate" in caught.value.remedy
    assert sum(isinstance(e, RolledBack) for e in events) == 1
    run = Run(tmp_path / "run")
    assert run.info["status"] == "failed"
    assert run.last_checkpoint().name == "checkpoint-6"
    monkeypatch.undo()
    assert _same(_weights(whole), _weights(_train(tiny, tmp_path / "run", resume=True)))


def test_a_run_resumed_after_a_rollback_keeps_fp32_and_the_lower_rate(tiny, tmp_path, monkeypatch):
    def broken():
        done = []
        count = _break(monkeypatch, lambda model, n, _: model.training and n == 8 and not done, BROKEN["NaN loss"])
        return lambda e: (count(e), done.append(e) if isinstance(e, RolledBack) else None)

    whole = _train(tiny, tmp_path / "whole", on_event=broken(), precision="bf16")
    monkeypatch.undo()
    listen, steps = broken(), []
    with pytest.raises(Interrupted):
        _train(
            tiny,
            tmp_path / "run",
            on_event=lambda e: (listen(e), steps.append(e) if isinstance(e, StepDone) else None),
            stop=lambda: len(steps) > 8 and steps[-1].step == 10,
            precision="bf16",
        )
    monkeypatch.undo()
    run = _train(tiny, tmp_path / "run", resume=True, precision="bf16")
    assert _same(_weights(whole), _weights(run))
    assert _history(run) == _history(whole)


def test_the_text_with_a_nonfinite_loss_is_named(check_time, tiny, tmp_path, monkeypatch):
    table = tiny_table()
    table.loc[5, "Text"] = "9 9 9 9"
    _break(
        monkeypatch,
        lambda model, n, ids: bool((ids == model.config.vocab_size - 1).sum(dim=1).eq(4).any()),
        lambda logits: logits * float("nan"),
    )
    # In training, it breaks its whole micro-batch; scored one by one, only this text fails.
    with pytest.raises(TrainingError) as caught:
        _train(tiny, tmp_path / "run", table=table, set={"per_device_eval_batch_size": 1}, validation_size=0.1, seed=2)
    assert re.search(r"row 6 of the data frame$", caught.value.where)


def test_nonfinite_logits_are_not_scored(tiny, tmp_path, monkeypatch):
    count = _break(monkeypatch, lambda model, n, _: not model.training and n >= 12, BROKEN["NaN loss"])
    with pytest.raises(TrainingError) as caught:
        _train(tiny, tmp_path / "run", on_event=count)
    assert "logit" in caught.value.what
    assert "step 12 " in caught.value.what
    assert [e["step"] for e in Run(tmp_path / "run").history] == [6]


def test_a_checkpoint_with_nan_weights_is_refused(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.0.output.dense.weight"][3, 3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError) as caught:
        _train(folder, tmp_path / "run")
    assert "layer.0.output.dense.weight" in caught.value.what
    assert caught.value.where == str(folder)


def test_constant_predictions_are_reported(tiny, tmp_path):
    events = []
    shares = {"validation_size": 0.2, "test_size": 0.2}
    _train(tiny, tmp_path / "run", epochs=2, learning_rate=1e-9, on_event=events.append, **shares)
    reported = [e for e in events if isinstance(e, Collapsed)]
    assert [e.epoch for e in reported] == [1]  # once a run
    assert reported[0].label_text in set(tiny_table()["Label Text"])
    events.clear()
    _train(tiny, tmp_path / "few", epochs=2, learning_rate=1e-9, on_event=events.append)
    assert not [e for e in events if isinstance(e, Collapsed)]  # 15 texts tell nothing


# -- disks -------------------------------------------------------------------------------------------------------------


def test_a_deleted_run_folder_ends_training_with_an_error(tiny, tmp_path):
    def vanish(event):
        if isinstance(event, Saved):
            shutil.rmtree(tmp_path / "run")

    with pytest.raises(OutputError):
        _train(tiny, tmp_path / "run", on_event=vanish)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("step", [6, 12, 18, "the end"])
def test_a_full_disk_ends_training_and_the_run_resumes_after_space_is_freed(step, whole, tiny, small_disk):
    filler = small_disk / "filler"

    def fill(event):
        due = isinstance(event, StepDone) and event.step == step
        if due or (step == "the end" and type(event).__name__ == "Finished"):
            with pytest.raises(OSError, match="No space left"), filler.open("wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()

    with pytest.raises(OutputError, match=r"(?s)cannot be written: No space left.*resume"):
        _train(tiny, small_disk / "run", on_event=fill)
    last = Run(small_disk / "run").last_checkpoint()
    expected = {6: None, 12: "checkpoint-6", 18: "checkpoint-12", "the end": "checkpoint-18"}[step]
    assert (last and last.name) == expected
    filler.unlink()
    again = {"resume": True} if expected else {"overwrite": True}
    run = _train(tiny, small_disk / "run", **again)
    assert _same(_weights(whole), _weights(run))
    assert run.metrics == whole.metrics


def test_an_unwritable_output_folder_is_reported_before_any_work(tiny, tmp_path, read_only_disk):
    with pytest.raises(OutputError, match="cannot be written: Read-only file system"):
        _train(tiny, read_only_disk / "run")


def test_insufficient_disk_space_is_reported_before_training(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**5))
    with pytest.raises(RunFolderError) as error:
        _train(tiny, tmp_path / "run")
    assert "0.1 MB" in error.value.what


def test_unwritable_outputs_are_errors(finished, cli, tmp_path, small_disk, read_only_disk):
    table = tmp_path / "t.csv"
    tiny_table(30).to_csv(table, index=False)
    with pytest.raises(OSError, match="No space left"), (small_disk / "filler").open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    for disk, reason in ((small_disk, "No space left"), (read_only_disk, "Read-only file system")):
        for output in ("o.csv", "o.jsonl", "o.parquet", "in/a/folder.csv"):
            code, _, err = cli("predict", finished, table, "-o", disk / output)
            assert (code, "Traceback" in err) == (2, False)
            assert f"cannot be written: {reason}" in err
            assert str(disk / output) in err
        code, _, err = cli("inspect", table, "--html", disk / "f.html")
        assert code == 2
        assert f"cannot be written: {reason}" in err
        assert [p.name for p in disk.rglob("*") if p.is_file()] == ["filler"] * (disk == small_disk)
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "evaluations", ignore_errors=True)
    (run / "evaluations").symlink_to(read_only_disk)
    code, _, err = cli("evaluate", run, table)
    assert code == 2
    assert "cannot be written: Read-only file system" in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("command", ["predict", "inspect", "inspect --json"])
def test_a_full_standard_output_is_an_error(command, old_export, tmp_path):
    table = tmp_path / "t.csv"
    tiny_table(30).to_csv(table, index=False)
    given = [old_export, table] if command == "predict" else [table]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "bertsmith", *command.split(), *map(str, given)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2, done.stderr
    assert "cannot be written: No space left" in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can keep freed memory")
def test_cached_free_memory_is_released_above_a_limit():
    with system.keep_freed_memory():
        before = system.resident_memory()
        kept, pieces = [], []
        for _ in range(64):  # kept blocks lie between freed ones, so that no free memory is at the end of the heap
            pieces.append(torch.zeros(2**20))  # 4 MiB
            kept.append(torch.zeros(2**12))
        del pieces
        assert system.resident_memory() > before + 200 * 2**20
        enough = system.resident_memory() + 2**20
        assert system.trim_memory(enough) == enough
        assert system.resident_memory() > before + 200 * 2**20
        limit = system.trim_memory(before)
        assert system.resident_memory() < before + 100 * 2**20
        assert limit == pytest.approx(1.25 * system.resident_memory(), rel=0.05)
    assert len(kept) == 64


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can keep freed memory")
def test_freed_memory_is_reused_and_then_released():
    resource = pytest.importorskip("resource")

    def new_pages():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.zeros(2**21)  # 8 MiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with system.keep_freed_memory():
        new_pages()
        kept = new_pages()
        assert kept < 100
    assert new_pages() > kept + 20  # kernels with huge pages hand out many at once
