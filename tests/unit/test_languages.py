"""The model ``auto``: a checkpoint for the language of the texts."""

import json

import pandas as pd
import pytest

import bertsmith as bs
from bertsmith.config import DEFAULT_MODEL
from bertsmith.events import CheckpointChosen
from bertsmith.load_config import resolve
from bertsmith.testing import tiny_table
from bertsmith.workflows import inspect
from bertsmith.workflows.inspect import MULTILINGUAL_MODEL, with_checkpoint
from tests.conftest import train

ENGLISH = "this is the text that you have not been able to read for it was at my house"
GERMAN = "das ist der Text und ich habe ihn nicht gelesen, aber wir haben es auch mit dem Hund"
JAPANESE = "これは日本語の文章です"


@pytest.mark.parametrize(
    ("texts", "model", "reason"),
    [
        ([ENGLISH] * 20, DEFAULT_MODEL, "100% of the texts whose language bertsmith can guess are English"),
        ([ENGLISH] * 19 + [GERMAN], DEFAULT_MODEL, "95%"),
        ([ENGLISH] * 17 + [GERMAN] * 3, MULTILINGUAL_MODEL, "85%"),
        ([GERMAN] * 20, MULTILINGUAL_MODEL, "German"),
        ([JAPANESE] * 20, MULTILINGUAL_MODEL, "Japanese"),
        (["xyz", "abc"] * 10, DEFAULT_MODEL, "cannot guess"),
    ],
)
def test_the_checkpoint_fits_the_language(texts, model, reason):
    table = bs.read_table(pd.DataFrame({"Text": texts, "Label": [0, 1] * 10}))
    events = []
    assert with_checkpoint(resolve({"model": "auto"}), table, events.append).model == model
    assert [type(event) for event in events] == [CheckpointChosen]
    assert (events[0].name, reason in events[0].reason) == (model, True)
    assert with_checkpoint(resolve({"model": "auto"}), table).model == model  # the same again


def test_models_other_than_auto_are_unchanged():
    config = resolve({"model": "packaged:minilm"})
    events = []
    assert with_checkpoint(config, bs.read_table(tiny_table(30)), events.append) is config
    assert events == []


def test_a_run_records_the_checkpoint_that_was_chosen(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(inspect, "DEFAULT_MODEL", str(tiny))
    run = train("auto", tmp_path / "run", epochs=1)
    assert run.info["model"]["name"] == json.loads((tmp_path / "run" / "run.json").read_text())["model"]["name"]
    assert run.info["config"]["model"] == str(tiny)
