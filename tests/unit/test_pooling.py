"""The added layer is the mean of the hidden states, in a checkpoint that transformers loads; the head a regression."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from sklearn.linear_model import LogisticRegression

from bertsmith.data.table import Labels
from bertsmith.evaluation.baseline import REGRESSION_C, fit_regression
from bertsmith.evaluation.calibration import softmax
from bertsmith.model import checkpoint, forward, pooling
from bertsmith.model.load import LoadedModel, load_model, load_tokenizer
from bertsmith.model.outputs import compute_features, compute_logits
from bertsmith.model.tokens import Tokens
from bertsmith.testing import tiny_model
from tests.conftest import padded

LABELS = Labels((0, 1, 2), ("a", "b", "c"))


@pytest.fixture(params=pooling.MODEL_TYPES)
def loaded(request, tmp_path):
    found = checkpoint.resolve(str(tiny_model(tmp_path / "model", request.param)))
    return LoadedModel(load_model(found, LABELS), load_tokenizer(found), torch.device("cpu"), 64)


def _texts(n=40):
    rng = np.random.default_rng(0)
    rows = [rng.integers(5, 40, rng.integers(3, 20)).tolist() for _ in range(n)]
    return Tokens.from_lists({"input_ids": rows})


def _features(loaded):
    return compute_features(loaded, _texts())


def test_the_head_reads_the_mean_of_the_hidden_states(loaded):
    if loaded.model.config.model_type == "mpnet":  # whose attention depends on distance as well
        torch.nn.init.zeros_(loaded.model.mpnet.encoder.relative_attention_bias.weight)
    layers, batch = loaded.model.config.num_hidden_layers, _texts()
    inputs = padded(batch, loaded.padding)
    loaded.model.eval()
    with torch.no_grad():
        taken = {name: values for name, values in inputs.items() if name in loaded.input_names}
        states = loaded.model.base_model(**taken).last_hidden_state
    mask = inputs["attention_mask"][:, :, None]
    summed = pooling.SCALE * (states * mask).sum(1) / mask.sum(1) + states[:, 0]  # the first token stays beside it
    expected = torch.tanh(pooling.SLOPE * F.layer_norm(summed, summed.shape[1:])).numpy()
    pooling.add_pooling_layer(loaded.model)
    assert loaded.model.config.num_hidden_layers == layers + 1
    assert _features(loaded) == pytest.approx(expected, abs=0.02)


def test_transformers_loads_the_model_with_its_new_layer(loaded, tmp_path):
    pooling.add_pooling_layer(loaded.model)
    texts = _texts()
    logits = compute_logits(loaded, texts, 512)[0]
    loaded.model.save_pretrained(tmp_path / "saved")
    again = load_model(checkpoint_at(loaded, tmp_path / "saved")).eval()
    with torch.no_grad():
        inputs = padded(texts, loaded.padding)
        taken = {name: values for name, values in inputs.items() if name in loaded.input_names}
        assert again(**taken).logits.numpy() == pytest.approx(logits, rel=1e-4, abs=1e-5)


def checkpoint_at(loaded, folder):
    loaded.tokenizer.save_pretrained(folder)
    return checkpoint.resolve(str(folder))


def test_features_are_the_same_without_packing(loaded, monkeypatch):
    pooling.add_pooling_layer(loaded.model)
    batch = _texts(7)
    with torch.inference_mode():
        packed = forward.inference_outputs(loaded, batch, only_features=True)
        monkeypatch.setattr(forward, "supports", lambda model: False)
        unpacked = forward.inference_outputs(loaded, batch, only_features=True)
    assert packed.numpy() == pytest.approx(unpacked.numpy(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("classes", [[0, 1, 2], [0, 2]])
def test_the_head_begins_as_a_regression(loaded, classes):
    """A class without a text has a head too, and does not win."""
    pooling.add_pooling_layer(loaded.model)
    features, targets = _features(loaded), np.resize(classes, 40)
    found = fit_regression(features, targets, n_classes=3)
    pooling.set_head(loaded.model, found.weight, found.bias)
    logits = compute_logits(loaded, _texts(), 512)[0]
    assert torch.softmax(torch.from_numpy(logits), dim=1).numpy() == pytest.approx(
        softmax(found.logits(features)), abs=1e-3
    )
    center = features.mean(axis=0)
    model = LogisticRegression(C=REGRESSION_C, class_weight="balanced", max_iter=1000)
    expected = model.fit(features - center, targets).predict_proba(features - center)
    within = softmax(found.logits(features))[:, classes]
    assert within / within.sum(axis=1, keepdims=True) == pytest.approx(expected, abs=1e-3)
    assert set(logits.argmax(axis=1)) <= set(classes)
