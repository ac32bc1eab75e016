import ast
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import bertsmith as bs
from bertsmith.config import Config
from bertsmith.errors import ConfigError, UserError, naming_parameters
from bertsmith.load_config import parse_assignments, resolve
from bertsmith.testing import tiny_table
from tests import keyword_types


def test_flags_win_over_environment_over_file_over_defaults(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text(
        'epochs = 1\nbatch-size = 2\nseed = 3\nmodel = "m"\n[set]\nweight_decay = 0.5\noptim = "adafactor"\n'
    )
    environ = {"BERTSMITH_BATCH_SIZE": "20", "BERTSMITH_SEED": "30", "OTHER": "x", "BERTSMITH_TOKEN": "of a server"}
    config = resolve({"seed": 300, "epochs": None, "set": {"weight_decay": 0.1}}, file, environ=environ)
    assert (config.epochs, config.batch_size, config.seed, config.model) == (1, 20, 300, "m")
    assert config.set == {"weight_decay": 0.1, "optim": "adafactor"}
    assert config.patience == Config().patience


def test_variables_of_a_kubernetes_service_are_no_settings():
    environ = {
        "BERTSMITH_SERVICE_HOST": "10.0.0.1",
        "BERTSMITH_SERVICE_PORT_HTTP": "80",
        "BERTSMITH_PORT": "tcp://10.0.0.1:80",
        "BERTSMITH_PORT_80_TCP": "tcp://10.0.0.1:80",
        "BERTSMITH_REVIEWS_SERVICE_HOST": "10.0.0.2",
        "BERTSMITH_REVIEWS_PORT_80_TCP_ADDR": "10.0.0.2",
    }
    assert resolve({}, environ=environ) == Config()
    for name in ("BERTSMITH_SEEED", "BERTSMITH_REPORTS"):
        with pytest.raises(ConfigError):
            resolve({}, environ={name: "1"})


def test_all_invalid_settings_are_reported_with_their_source(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("epoch = 3\npatience = 0\n")
    with pytest.raises(ConfigError) as caught:
        resolve({"learning_rate": "fast", "device": "gpu"}, file, environ={"BERTSMITH_SEED": "-1"})
    message = str(caught.value)
    assert f"{file}: epoch: unknown setting. Did you mean 'epochs'?" in message
    assert f"{file}: patience: input should be greater than or equal to 1" in message
    assert "--learning-rate: input should be a valid number" in message
    assert "--device: input should be 'auto', 'cuda', 'xpu', 'mps' or 'cpu', not 'gpu'" in message
    assert "environment variable BERTSMITH_SEED: input should be greater than or equal to 0" in message
    assert message.count("\n  - ") == 5


def test_contradictions_are_reported():
    for flags, names in (
        ({"sql": "select 1"}, "--sql.*--db"),
        ({"sql": "select 1", "epochs": -1}, "(?s)--epochs.*--sql.*--db"),
        ({"split_column": "s", "test": "t.csv"}, "--split-column and --test"),
        ({"learning_rate": 1e-4, "set": {"learning_rate": 1e-3}}, "--learning-rate and --set learning_rate"),
        ({"test": "t.csv", "test_size": 0.2}, "--test and --test-size"),
        ({"validation": "t.csv", "validation_size": 0.2}, "--validation and --validation-size"),
        ({"test_size": 0.6, "validation_size": 0.5}, "--validation-size and --test-size"),
    ):
        with pytest.raises(ConfigError, match=names):
            resolve(flags, environ={})


@pytest.mark.parametrize("content", [b"epochs = ", b"\xff\xfe"])
def test_unreadable_files_are_reported(content, tmp_path):
    (tmp_path / "c.toml").write_bytes(content)
    for name in ("c.toml", "none.toml"):
        with pytest.raises(ConfigError) as error:
            resolve({}, tmp_path / name, environ={})
        assert error.value.where == str(tmp_path / name)


def test_assignments_take_their_types():
    assert parse_assignments(["a=1", "b=0.5", "c=true", "d=True", "e=x=y", 'f={"k": 1}', "g=None"]) == {
        "a": 1,
        "b": 0.5,
        "c": True,
        "d": True,
        "e": "x=y",
        "f": {"k": 1},
        "g": None,
    }
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        parse_assignments(["weight_decay"])
    with pytest.raises(ConfigError, match="weight_decay"):
        parse_assignments(["weight_decay=0.1", "optim=adafactor", "weight_decay=0.2"])


def test_keyword_types_are_those_of_the_settings():
    assert ast.dump(ast.parse(keyword_types.FILE.read_text(encoding="utf-8"))) == ast.dump(
        ast.parse(keyword_types.source())
    ), "run: python -m tests.keyword_types"


@pytest.mark.parametrize(
    ("api", "names"),
    [
        (True, ("sql needs db", "batch_size and set per_device")),
        (False, ("--sql needs --db", "--batch-size and --set")),
    ],
)
def test_contradictions_name_parameters_in_python_and_flags_on_the_command_line(api, names):
    with pytest.raises(ConfigError) as caught:
        resolve({"sql": "select 1", "batch_size": 8, "set": {"per_device_train_batch_size": 8}}, environ={}, api=api)
    assert all(re.search(rf"(?<!-)\b{name}|- {name}", caught.value.what) for name in names)


def test_every_function_with_the_setting_threads_limits_the_cores(tmp_path, monkeypatch):
    limits = []
    monkeypatch.setattr("bertsmith.api.public.use_cores", limits.append)
    for function in (bs.evaluate, bs.measure, bs.drift, bs.predict, bs.next_texts):
        with pytest.raises(UserError):
            function(tmp_path / "none", "table.csv", threads=1)
    with pytest.raises(UserError):
        bs.inspect(tmp_path / "none.csv", threads=1)
    assert limits == [1] * 6


def test_tune_names_its_own_parameter_for_seeds(tmp_path):
    with pytest.raises(ConfigError) as caught:
        bs.tune(tiny_table(), output=tmp_path / "study", seeds=3)
    assert "final_seeds" in caught.value.remedy


def test_tune_reads_a_file_in_the_shell_as_in_python(tmp_path, monkeypatch, cli):
    def run_tuning(table, config, *_, **__):
        seen.append(config)
        raise ConfigError("the search would start here")

    seen = []
    monkeypatch.delenv("BERTSMITH_CV")
    file = tmp_path / "settings.toml"
    file.write_text('effort = "quick"\ncv = 3\nkeep_checkpoints = true\n')
    with monkeypatch.context() as patched, pytest.raises(ConfigError):
        patched.setattr("bertsmith.workflows.tune.run_tuning", run_tuning)
        cli("tune", "t.csv", "-o", tmp_path / "study", "--config", file)
        bs.tune("t.csv", output=tmp_path / "study", config=file)
    assert seen[0] == seen[1]
    assert (seen[0].effort, seen[0].cv, seen[0].keep_checkpoints) == ("quick", 3, True)
    file.write_text("seeds = 3\n")
    code, _, err = cli("tune", "t.csv", "-o", tmp_path / "study", "--config", file)
    assert code == 2
    assert "--final-seeds" in err
    monkeypatch.setenv("BERTSMITH_SEEDS", "2")
    code, _, err = cli("tune", "t.csv", "-o", tmp_path / "study")
    assert code == 2
    assert "BERTSMITH_SEEDS" in err


def test_no_message_prints_a_whole_table():
    frame = pd.DataFrame({"Text": ["a secret text"] * 50, "Label": [0, 1] * 25})
    for settings in ({"text_column": frame}, {"test": [frame]}, {"epochs": {"a": frame}}, {"test": 5}, {"set": frame}):
        with pytest.raises(ConfigError) as caught:
            bs.read_table(frame, **settings)
        assert "secret" not in str(caught.value)
    with pytest.raises(UserError) as caught:
        bs.read_table(frame, sql="select 1", db="sqlite:///x.db")
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="test_size"):
        bs.read_table(frame, test=frame, test_size=0.2)


def test_a_table_in_memory_is_a_setting_that_can_be_copied_and_saved():
    config = resolve({"test": tiny_table(6), "validation": "hf://owner/name"}, api=True)
    assert Config(**config.model_dump()).test.table is config.test.table
    assert json.loads(json.dumps(config.dump()))["validation"] == "hf://owner/name"
    assert "DataFrame" in config.dump()["test"]
    assert len(pickle.loads(pickle.dumps(config)).test.table) == 6
    assert resolve({"test": "a.csv"}).test == Path("a.csv")


@pytest.mark.parametrize(
    ("function", "settings"),
    [
        (bs.predict, {"max_length": 8, "task": "regression", "epochs": 3}),
        (bs.drift, {"label_column": "Label", "seed": 3}),
        (bs.next_texts, {"task": "ordinal"}),
        (bs.evaluate, {"task": "regression", "test": "t.csv", "split_column": "part"}),
        (bs.measure, {"epochs": 3, "validation_size": 0.2}),
        (bs.label_errors, {"epochs": 3}),
        (bs.inspect, {"learning_rate": 1e-4}),
        (bs.read_table, {"test_size": 0.2, "model": "packaged:minilm"}),
    ],
)
def test_a_setting_that_a_function_does_not_use_is_an_error(monkeypatch, function, settings):
    monkeypatch.setenv("BERTSMITH_EPOCHS", "3")  # the environment is shared by all functions
    frame = tiny_table(6)
    with pytest.raises(ConfigError) as caught:
        function(*([frame] if function in (bs.label_errors, bs.inspect, bs.read_table) else ["run", frame]), **settings)
    assert caught.value.what.count("\n  - ") == len(settings)
    assert all(f"- {name}: " in caught.value.what for name in settings)


@pytest.mark.parametrize("value", ["no", "off", 1, None])
@pytest.mark.parametrize(
    ("function", "name"),
    [(bs.predict, "probabilities"), (bs.predict, "resume"), (bs.load, "decide"), (bs.push, "private")],
)
def test_switches_are_true_or_false(function, name, value):
    with pytest.raises(ConfigError) as caught:
        function("run", "owner/name", **{name: value}) if function is not bs.load else function("run", **{name: value})
    assert name in caught.value.what


def test_progress_may_be_none_and_a_switch_a_bool_of_numpy(finished):
    frame = pd.DataFrame({"Text": ["a cat"]})
    found = bs.predict(finished, frame, device="cpu", probabilities=np.bool_(True), progress=None)
    assert len(found.frame.columns) > 3
    with pytest.raises(ConfigError):
        bs.predict(finished, frame, progress=3)


def test_workers_without_ray_are_refused(tmp_path):
    with pytest.raises(ConfigError):
        bs.train(tiny_table(), output=tmp_path / "run", workers=2)


def test_errors_in_python_name_parameters_but_keep_the_flags_of_commands(tmp_path):
    with pytest.raises(UserError) as caught:
        bs.read_table(pd.DataFrame({"Text": ["a"]}))
    assert "label_column" in caught.value.remedy
    assert "--" not in caught.value.remedy
    with pytest.raises(UserError) as caught, naming_parameters():
        raise UserError("--name 'a--b'", remedy="Pass -o, or repeat bertsmith train with --resume. Or --test-size.")
    assert caught.value.what == "name 'a--b'"
    assert caught.value.remedy == "Pass output, or repeat bertsmith train with --resume. Or test_size."
