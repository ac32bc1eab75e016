"""Every architecture is trained for a few steps, saved, loaded again, and used through `transformers.pipeline`."""

import numpy as np
import pytest
from transformers import pipeline

import bertsmith as bs
from bertsmith.testing import ARCHITECTURES, tiny_model, tiny_table


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_train_save_load_predict(architecture, tmp_path):
    model = tiny_model(tmp_path / "model", architecture)
    run = bs.train(
        tiny_table(60),
        output=tmp_path / "run",
        model=str(model),
        epochs=1,
        learning_rate=1e-3,
        precision="fp32",
        device="cpu",
    )
    calibration = run.metrics["splits"]["test"]["calibration"]
    assert calibration["temperature"] > 0
    before = run.predictions
    texts = before["text"].tolist()
    after = bs.load(run).predict_proba(texts)
    assert after == pytest.approx(np.stack(before["probabilities"].to_list()), abs=1e-6)
    answers = pipeline("text-classification", str(run.layout.model), truncation=True, device="cpu")(texts)
    assert [a["label"] for a in answers] == before["predicted_text"].tolist()
    assert [a["score"] for a in answers] == pytest.approx(before["confidence"].tolist(), abs=1e-5)
