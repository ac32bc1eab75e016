import functools
import json

import pytest
import torch

import bertsmith as bs
from bertsmith.config import Config, TrainConfig
from bertsmith.errors import ConfigError, Interrupted, RunFolderError, TrainingError
from bertsmith.run import Run
from bertsmith.testing import tiny_table
from bertsmith.training.arguments import check_settings, training_arguments
from bertsmith.training.events import CheckpointsDamaged, Evaluated, Finished, MemoryShort, Saved, Started, StepDone
from bertsmith.training.recipe import choose, choose_precision

CPU = torch.device("cpu")
FAST = {"epochs": 3, "learning_rate": 1e-2, "precision": "fp32", "device": "cpu"}


def _train(tiny, output, **settings):
    return bs.train(settings.pop("table", tiny_table()), output=output, model=str(tiny), **{**FAST, **settings})


def _weights(run):
    from safetensors.torch import load_file

    return load_file(run.layout.model / "model.safetensors")


def _same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_the_recipe_keeps_what_is_given_and_gives_reasons_for_the_rest():
    recipe = choose(TrainConfig(epochs=2, learning_rate=1e-5), texts=100, parameters=10**6, device=CPU)
    assert (recipe.epochs, recipe.learning_rate, recipe.batch_size) == (2, 1e-5, 16)
    assert set(recipe.reasons) == {"batch_size", "precision", "warmup"}


@pytest.mark.parametrize(("texts", "epochs"), [(100, 20), (3200, 5), (10**6, 3)])
def test_small_data_gets_more_epochs(texts, epochs):
    assert choose(TrainConfig(), texts=texts, parameters=10**8, device=CPU).epochs == epochs


def test_precision_follows_the_device(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert choose_precision(CPU)[0] == "bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert choose_precision(CPU)[0] == "fp32"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert choose_precision(torch.device("cuda"))[0] == "fp16"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert choose_precision(torch.device("cuda"))[0] == "bf16"


def test_training_arguments_are_checked_all_at_once():
    with pytest.raises(ConfigError) as caught:
        check_settings({"weight_decy": 0.1, "max_steps": "many", "seed": 3, "optim": "adafactor"})
    message = str(caught.value)
    assert "weight_decy: there is no such training argument. Did you mean 'weight_decay'?" in message
    assert "max_steps=many: input should be a valid integer" in message
    assert "seed: use --seed instead" in message
    assert "adafactor" not in message


def test_any_training_argument_can_be_set(tmp_path):
    config = Config(set={"weight_decay": 0.5, "eval_strategy": "steps", "eval_steps": 7, "num_train_epochs": 9})
    arguments = training_arguments(choose(config, texts=10, parameters=1, device=CPU), config, tmp_path, CPU)
    assert (arguments.weight_decay, arguments.num_train_epochs) == (0.5, 9)
    assert (arguments.save_strategy, arguments.save_steps) == ("steps", 7)
    bad = Config(set={"eval_strategy": "sometimes"})
    recipe = choose(bad, texts=10, parameters=1, device=CPU)
    with pytest.raises(ConfigError, match="transformers refuses"):
        training_arguments(recipe, bad, tmp_path, CPU)


def test_the_golden_run(tiny, tmp_path):
    """The loss of a fixed run, to notice a changed step. Measured with torch 2.13 and transformers 5.23 on a CPU."""
    run = _train(tiny, tmp_path / "run")
    assert [e["train_loss"] for e in run.history] == pytest.approx([1.100, 1.090, 1.003], abs=0.03)
    assert [e["step"] for e in run.history] == [6, 12, 18]


def test_events_tell_the_story(tiny, tmp_path):
    events = []
    run = _train(tiny, tmp_path / "run", on_event=events.append)
    told = [e for e in events if isinstance(e, Started | StepDone | Evaluated | Saved | Finished)]
    assert [type(e) for e in told[:1]] == [Started]
    assert sum(isinstance(e, StepDone) for e in told) == 18
    evaluated = [e for e in told if isinstance(e, Evaluated)]
    assert [e.epoch for e in evaluated] == [1, 2, 3]
    assert evaluated[0].learning_rate > evaluated[-1].learning_rate
    assert all(e.texts_per_second > 0 for e in evaluated)
    assert isinstance(told[-1], Finished)
    assert told[-1].best_score == max(e.metrics["macro_f1"] for e in evaluated)
    assert [e["epoch"] for e in run.history] == [1, 2, 3]


def test_the_same_command_gives_the_same_numbers_and_another_seed_others(tiny, tmp_path):
    a, b = (_train(tiny, tmp_path / name, seed=5) for name in "ab")
    assert _same(_weights(a), _weights(b))
    assert a.metrics == b.metrics
    assert a.info["data"]["fingerprint"] == b.info["data"]["fingerprint"]
    c = _train(tiny, tmp_path / "c", seed=6)
    assert not _same(_weights(a), _weights(c))
    assert a.info["data"]["fingerprint"] != c.info["data"]["fingerprint"]  # the seed reaches the split too


def test_the_best_epoch_is_kept_and_patience_stops(tiny, tmp_path):
    events = []
    run = _train(tiny, tmp_path / "run", epochs=40, patience=2, on_event=events.append)
    finished = next(e for e in events if isinstance(e, Finished))
    scores = [e["metrics"]["macro_f1"] for e in run.history]
    assert finished.stopped_early
    assert len(scores) == scores.index(max(scores)) + 1 + 2
    assert finished.best_step == run.history[scores.index(max(scores))]["step"]
    assert run.metrics["splits"]["validation"]["metrics"]["macro_f1"]["value"] == pytest.approx(max(scores))


@pytest.mark.parametrize("at", [4, 9])
def test_an_interrupted_run_is_resumed_to_the_same_end(at, tiny, tmp_path):
    whole = _train(tiny, tmp_path / "whole")
    seen = []
    with pytest.raises(Interrupted, match=f"stopped after step {at}"):
        _train(
            tiny, tmp_path / "run", on_event=seen.append, stop=lambda: sum(isinstance(e, StepDone) for e in seen) >= at
        )
    run = Run(tmp_path / "run")
    assert run.info["status"] == "interrupted"
    assert run.last_checkpoint().name == f"checkpoint-{at}"
    with pytest.raises(RunFolderError, match="--resume"):
        _train(tiny, tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"epochs: 3\.0 then, 4\.0 now"):
        _train(tiny, tmp_path / "run", resume=True, epochs=4)
    with pytest.raises(RunFolderError, match="the texts, labels or splits"):
        _train(tiny, tmp_path / "run", resume=True, table=tiny_table(seed=1))
    run = _train(tiny, tmp_path / "run", resume=True)
    assert _same(_weights(whole), _weights(run))
    assert [e["step"] for e in run.history] == [6, 12, 18]
    assert not run.layout.checkpoints.exists()


@pytest.mark.parametrize("damage", ["a byte changed", "cut short", "no manifest", "a file is gone"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(damage, tiny, tmp_path):
    whole = _train(tiny, tmp_path / "whole")
    seen = []
    with pytest.raises(Interrupted):
        _train(
            tiny, tmp_path / "run", on_event=seen.append, stop=lambda: sum(isinstance(e, StepDone) for e in seen) >= 9
        )
    run = Run(tmp_path / "run")
    newest = run.last_checkpoint()
    weights = newest / "model.safetensors"
    if damage == "a byte changed":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "cut short":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        (newest / ("manifest.json" if damage == "no manifest" else "scheduler.pt")).unlink()
    assert run.last_checkpoint().name == "checkpoint-6"
    told = []
    run = _train(tiny, tmp_path / "run", resume=True, on_event=told.append)
    assert [e for e in told if isinstance(e, CheckpointsDamaged)] == [CheckpointsDamaged(6, [9])]
    assert _same(_weights(whole), _weights(run))


def test_checkpoints_are_written_by_time_and_a_run_goes_on_from_one_to_the_same_end(tiny, tmp_path, monkeypatch):
    from bertsmith.training import trainer

    whole = _train(tiny, tmp_path / "whole")
    monkeypatch.setattr(trainer, "SAVE_SECONDS", 0.0)

    def die(event):
        if isinstance(event, StepDone) and event.step == 9:
            raise MemoryError  # as if killed: nothing is saved on the way out

    with pytest.raises(MemoryError):
        _train(tiny, tmp_path / "run", on_event=die)
    assert Run(tmp_path / "run").last_checkpoint().name == "checkpoint-8"
    run = _train(tiny, tmp_path / "run", resume=True)
    assert _same(_weights(whole), _weights(run))
    assert run.metrics == whole.metrics
    same = ("step", "train_loss", "validation_loss", "metrics", "learning_rate")
    assert [[e[k] for k in same] for e in run.history] == [[e[k] for k in same] for e in whole.history]


def _fail_at(monkeypatch, fails):
    """Let the forward pass of the model run out of memory as ``fails(tokens, attempt)`` says."""
    from transformers.models.bert.modeling_bert import BertForSequenceClassification as Model

    forward = Model.forward
    attempts = []

    @functools.wraps(forward)
    def limited(self, *args, **kwargs):
        if self.training:
            attempts.append(kwargs["input_ids"].numel())
            if fails(attempts[-1], len(attempts)):
                raise torch.OutOfMemoryError("out of memory")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(Model, "forward", limited)
    return attempts


def test_memory_that_does_not_suffice_halves_the_budget_and_changes_nothing_else(tiny, tmp_path, monkeypatch):
    from bertsmith.training import batching

    settings = {"epochs": 2, "table": _long_table()}
    monkeypatch.setitem(batching.TOKEN_BUDGETS, "cpu", 64)
    expected = _train(tiny, tmp_path / "expected", **settings)
    monkeypatch.setitem(batching.TOKEN_BUDGETS, "cpu", 256)
    events = []
    # More than 64 tokens never fit, and what fails is the second micro-batch of a step: one has left its gradient.
    attempts = _fail_at(monkeypatch, lambda tokens, attempt: tokens > 64)
    run = _train(tiny, tmp_path / "run", on_event=events.append, **settings)
    assert [e.token_budget for e in events if isinstance(e, MemoryShort)] == [128, 64]
    assert max(attempts[3:]) <= 64
    assert _same(_weights(expected), _weights(run))
    assert [e["train_loss"] for e in run.history] == [e["train_loss"] for e in expected.history]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_failure_in_the_middle_of_a_step_leaves_no_trace(accumulation, tiny, tmp_path, monkeypatch):
    from bertsmith.training import batching

    settings = {"epochs": 1, "set": {"gradient_accumulation_steps": accumulation}, "table": _long_table()}
    monkeypatch.setitem(batching.TOKEN_BUDGETS, "cpu", 128)
    plain = _train(tiny, tmp_path / "plain", **settings)
    attempts = _fail_at(monkeypatch, lambda tokens, attempt: attempt == 6)
    run = _train(tiny, tmp_path / "run", **settings)
    assert len(attempts) > 6
    a, b = _weights(plain), _weights(run)
    # From the sixth micro-batch on the budget is another one, and with it the dropout: close, not equal.
    assert [e["train_loss"] for e in run.history] == pytest.approx([e["train_loss"] for e in plain.history], abs=0.05)
    assert not _same(a, b)


def test_memory_for_not_even_one_text_is_told(tiny, tmp_path, monkeypatch):
    _fail_at(monkeypatch, lambda tokens, attempt: True)
    with pytest.raises(bs.UserError, match=r"even with one text(.|\n)*--max-length"):
        _train(tiny, tmp_path / "run")
    assert Run(tmp_path / "run").info["status"] == "failed"
    assert not (tmp_path / "run" / "model").exists()


def _long_table():
    table = tiny_table()
    table["Text"] = [f"{text} " * (1 + i % 5) for i, text in enumerate(table["Text"])]
    return table


def test_arguments_that_only_fail_later_are_told_too(tiny, tmp_path):
    with pytest.raises(ConfigError, match="per_device_train_batch_size=0"):
        _train(tiny, tmp_path / "run", set={"per_device_train_batch_size": 0})


def test_run_json_is_json(tiny, tmp_path):
    run = _train(tiny, tmp_path / "run", epochs=1)
    content = json.loads(run.layout.run.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["status"] == "finished"
    assert content["config"]["model"] == str(tiny)
    assert {"torch", "transformers", "bertsmith"} <= set(content["versions"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_training_and_keeps_what_was_saved(value, tiny, tmp_path, monkeypatch):
    from transformers.models.bert.modeling_bert import BertForSequenceClassification as Model

    forward = Model.forward
    steps = []

    @functools.wraps(forward)
    def broken(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        if self.training and len(steps) == 8:
            output.logits = output.logits * value
        return output

    whole = _train(tiny, tmp_path / "whole")
    monkeypatch.setattr(Model, "forward", broken)
    with pytest.raises(TrainingError, match=r"(?s)step 9 is not a finite number.*--learning-rate"):
        _train(tiny, tmp_path / "run", on_event=lambda e: steps.append(e) if isinstance(e, StepDone) else None)
    run = Run(tmp_path / "run")
    assert run.info["status"] == "failed"
    assert run.last_checkpoint().name == "checkpoint-6"
    monkeypatch.setattr(Model, "forward", forward)
    assert _same(_weights(whole), _weights(_train(tiny, tmp_path / "run", resume=True)))
