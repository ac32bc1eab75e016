"""`BertClassifier` in scikit-learn's tools."""

import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import bertsmith as bs
from bertsmith.data.template import Template
from bertsmith.errors import ConfigError, DataError, DeviceError
from bertsmith.tasks.registry import get_task
from bertsmith.testing import tiny_model, tiny_table
from bertsmith.workflows import fit_in_memory
from tests.conftest import ArrowTable

SETTINGS = {
    "epochs": 12,
    "learning_rate": 1e-2,
    "batch_size": 8,
    "device": "cpu",
    "settings": {"consistency": 0.0, "head_rate": 1.0},
}
TABLE = tiny_table(150, classes=3)
TEXTS, LABELS = TABLE["Text"].tolist(), np.array(["a", "b", "c"])[TABLE["Label"].to_numpy()]


def _arrow(texts):
    return ArrowTable({"Text": texts})


@pytest.fixture(scope="module")
def estimator(tmp_path_factory):
    folder = tiny_model(tmp_path_factory.mktemp("model") / "m")
    return bs.BertClassifier(str(folder), **SETTINGS)


@pytest.fixture(scope="module")
def fitted(estimator):
    return clone(estimator).fit(TEXTS, LABELS)


def test_predictions_have_the_labels_and_shapes_of_scikit_learn(fitted):
    assert fitted.classes_.tolist() == ["a", "b", "c"]
    probabilities = fitted.predict_proba(TEXTS[:7])
    assert probabilities.shape == (7, 3)
    assert probabilities.sum(axis=1) == pytest.approx(1)
    assert fitted.predict(TEXTS[:7]).tolist() == fitted.classes_[probabilities.argmax(axis=1)].tolist()
    assert fitted.decision_function(TEXTS[:7]).shape == (7, 3)
    assert fitted.score(TEXTS, LABELS) > 0.9


@pytest.mark.parametrize(
    "kind",
    [np.array, pd.Series, lambda texts: pd.DataFrame({"Text": texts}), tuple, _arrow, iter, lambda x: (t for t in x)],
)
def test_every_container_of_texts_gives_the_same_predictions(fitted, kind):
    assert fitted.predict_proba(kind(TEXTS[:5])) == pytest.approx(fitted.predict_proba(TEXTS[:5]), abs=1e-6)


def test_a_pickled_classifier_predicts_the_same(fitted):
    again = pickle.loads(pickle.dumps(fitted))
    assert again.predict_proba(TEXTS[:5]) == pytest.approx(fitted.predict_proba(TEXTS[:5]), abs=1e-6)
    assert again.get_params() == fitted.get_params()


def test_a_pickle_loads_without_the_device_of_its_training(fitted, monkeypatch):
    trained = copy.copy(fitted).set_params(device="cuda")
    monkeypatch.setattr("bertsmith.compute.device.available_devices", lambda: {"cuda": False, "cpu": True})
    again = pickle.loads(pickle.dumps(trained))
    assert again.predict(TEXTS[:5]).tolist() == fitted.predict(TEXTS[:5]).tolist()
    assert again.device == "cuda"


def test_a_fitted_classifier_predicts_in_its_own_precision(tmp_path):
    folder = tiny_model(tmp_path / "m", "albert")  # its forward pass is that of transformers
    fitted = bs.BertClassifier(str(folder), **{**SETTINGS, "epochs": 1}, precision="bf16").fit(TEXTS[:9], LABELS[:9])
    again = pickle.loads(pickle.dumps(fitted))
    assert again.predict_proba(TEXTS[:5]) == pytest.approx(fitted.predict_proba(TEXTS[:5]), abs=1e-6)


def test_a_clone_is_not_fitted_and_the_same_seed_gives_the_same_model(estimator):
    short = clone(estimator).set_params(epochs=1).fit(TEXTS[:30], LABELS[:30])
    again = clone(short)
    with pytest.raises(NotFittedError):
        again.predict(TEXTS[:1])
    again.fit(TEXTS[:30], LABELS[:30])
    assert again.predict_proba(TEXTS[:5]) == pytest.approx(short.predict_proba(TEXTS[:5]))


def test_scikit_learn_tools_take_it(estimator):
    short, texts, labels = clone(estimator).set_params(epochs=1), TEXTS[:36], LABELS[:36]
    assert cross_val_score(short, texts, labels, cv=2, scoring="f1_macro").shape == (2,)
    search = GridSearchCV(short, {"learning_rate": [1e-4, 2e-3]}, cv=2).fit(texts, labels)
    assert set(search.best_params_) == {"learning_rate"}
    lower = FunctionTransformer(lambda texts: [text.lower() for text in texts])
    assert make_pipeline(lower, short).fit(texts, labels).predict(TEXTS[:2]).shape == (2,)
    calibrated = CalibratedClassifierCV(short, cv=2).fit(texts, labels)
    assert calibrated.predict_proba(TEXTS[:2]).sum(axis=1) == pytest.approx(1)


def test_whole_numbers_as_floats_and_iterators_are_accepted(estimator):
    fitted = clone(estimator).set_params(epochs=1).fit(iter(TEXTS[:30]), iter(TABLE["Label"][:30].astype(float)))
    assert fitted.classes_.tolist() == [0, 1, 2]


def test_enough_texts_validate_and_groups_stay_together(estimator):
    table = tiny_table(320, classes=2)
    groups = np.arange(320) // 4
    fitted = clone(estimator).set_params(epochs=1).fit(table["Text"], table["Label"].to_numpy(), groups=groups)
    assert fitted.classes_.tolist() == [0, 1]
    assert fitted.decision_function(table["Text"][:3]).shape == (3,)


@pytest.mark.parametrize("groups", [[1], range(5), np.zeros((4, 2)), "aaaa", [["a"], ["b", "c"], [], []]])
def test_groups_that_are_not_one_per_text_are_an_error(estimator, groups):
    with pytest.raises(DataError) as error:
        clone(estimator).fit(TEXTS[:4], LABELS[:4], groups=groups)
    assert "groups" in error.value.what


@pytest.mark.parametrize("groups", [[None] * 6, np.full(6, np.nan), pd.Series([None, "a", " ", pd.NA, "a ", None])])
def test_a_text_whose_group_is_missing_has_no_group(monkeypatch, estimator, groups):
    tables = []
    monkeypatch.setattr("bertsmith.workflows.fit_in_memory.fit_in_memory", lambda table, config: tables.append(table))
    clone(estimator).fit(TEXTS[:6], LABELS[:6], groups=groups)
    (table,) = tables
    assert table.frame["group"].nunique() == (5 if "a" in list(groups) else 6)


@pytest.mark.parametrize("kind", [lambda y: y[:, None], lambda y: pd.DataFrame({"Label": y})])
def test_a_column_of_labels_is_a_list_of_labels(monkeypatch, estimator, kind):
    monkeypatch.setattr("bertsmith.workflows.fit_in_memory.fit_in_memory", lambda table, config: None)
    assert clone(estimator).fit(TEXTS, kind(LABELS)).classes_.tolist() == ["a", "b", "c"]


def test_a_failed_fit_keeps_the_earlier_model(monkeypatch, estimator):
    def fit(table, config):
        if "zebra" in table.labels.texts:
            raise KeyboardInterrupt
        return "model"

    monkeypatch.setattr(fit_in_memory, "fit_in_memory", fit)
    fitted = clone(estimator).fit(["a", "b"], ["x", "y"])
    earlier = dict(vars(fitted))
    frame = pd.DataFrame({"u": ["a", "b"], "v": ["c", "d"]})
    for labels in (["ant", "zebra"], ["only", "only"], [1, "x"]):
        with pytest.raises((KeyboardInterrupt, DataError)):
            fitted.fit(frame, labels)
        assert vars(fitted) == earlier


@pytest.mark.parametrize(
    ("texts", "labels", "expected"),
    [
        (["a", 3, "c"], [0, 1, 0], "item 1"),
        (pd.DataFrame([["a", "b"], ["c", "d"]], columns=["Text", "Text"]), [0, 1], "'Text'"),
        ("a text", [0], "list of texts"),
        (["a", "b"], [0, 1, 1], "2 texts"),
        (["a", "b"], [0, 0], "one class"),
        (np.zeros((3, 2)), [0, 1, 0], "(3, 2)"),
        (["a", "b"], [[0, 1], [1, 0]], "shape of y"),
        ([], [], "X is empty"),
        (pd.DataFrame({"Text": []}), [], "X is empty"),
        (None, None, "X is missing"),
        (["a", "b"], None, "y is missing"),
        (["a", "b"], np.array([0.0, 0.5]), "item 1"),
        (["a", "b"], pd.Series([1.5, 2.0], dtype="Float64"), "item 0"),
        (["a", "b"], [0.0, float("inf")], "item 1"),
        (["a", "b"], [["x", "y"], ["x"]], "different lengths"),
        (["a", "b"], [], "shape of y"),
        (["a", "b"], ["x", float("nan")], "item 1"),
        (["a", "b"], [1, "x"], "sorted"),
    ],
)
def test_input_that_cannot_be_used_is_an_error(estimator, texts, labels, expected):
    with pytest.raises(bs.UserError) as error:
        clone(estimator).fit(texts, labels)
    assert expected in error.value.what


def test_the_columns_of_a_data_frame_are_joined_and_needed_again(estimator):
    frame = pd.DataFrame({"title": ["red"] * 30, "body": TEXTS[:30]})
    fitted = clone(estimator).set_params(epochs=1).fit(frame, LABELS[:30])
    expected = fitted.predict_proba(frame[:3])
    assert fitted.predict_proba(frame[["body", "title"]][:3]) == pytest.approx(expected)
    assert pickle.loads(pickle.dumps(fitted)).predict_proba(frame[:3]) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(bs.UserError) as error:
        fitted.predict(frame[["body"]])
    assert "title" in error.value.what


def test_predictions_read_long_texts_as_the_training_did(estimator):
    settings = {**SETTINGS["settings"], "long": "window"}
    fitted = clone(estimator).set_params(epochs=1, max_length=8, settings=settings).fit(TEXTS[:30], LABELS[:30])
    same_beginning = [" ".join(TEXTS[:2]), " ".join([TEXTS[0], *TEXTS[2:5]])]
    for one in (fitted, pickle.loads(pickle.dumps(fitted))):
        assert one.classifier_.long == "window"
        first, second = one.predict_proba(same_beginning)
        assert abs(first - second).max() > 1e-6


def test_a_single_column_is_found_by_its_name(fitted):
    named = copy.copy(fitted)
    named.template_ = Template(("Text",))  # as after fit(frame[["Text"]], …)
    frame = pd.DataFrame({"id": range(5), "Text": TEXTS[:5]})
    expected = fitted.predict_proba(TEXTS[:5])
    assert named.predict_proba(frame) == pytest.approx(expected, abs=1e-6)
    assert named.predict_proba(frame[["Text"]].set_axis(["other"], axis=1)) == pytest.approx(expected, abs=1e-6)
    for wrong in (frame.rename(columns={"Text": "other"}), frame.set_axis(["Text", "Text"], axis=1)):
        with pytest.raises(DataError):
            named.predict(wrong)


def test_the_names_of_columns_may_be_numbers(estimator):
    frame = pd.DataFrame([[text, text] for text in TEXTS])
    with pytest.raises(DataError) as error:
        clone(estimator).fit(frame, None)
    assert error.value.what.startswith("y ")


def test_an_unknown_setting_is_an_error(estimator):
    with pytest.raises(bs.UserError) as error:
        clone(estimator).set_params(settings={"lerning_rate": 1}).fit(TEXTS, LABELS)
    assert "lerning_rate" in error.value.what


def test_ordered_labels_are_predicted_by_their_mean_rank(estimator, monkeypatch):
    tables = []
    fitted = SimpleNamespace(task=get_task("ordinal"), predict_proba=lambda texts: np.array([[0.4, 0.25, 0.35]]))
    monkeypatch.setattr(fit_in_memory, "fit_in_memory", lambda table, config: tables.append(table) or fitted)
    ordered = clone(estimator).set_params(settings={"task": "ordinal"}).fit(list("abcd"), [10, 2, 1, 2])
    assert (tables[0].task, tables[0].labels.texts) == ("ordinal", ("1", "2", "10"))
    assert ordered.predict(["e"]).tolist() == [2]


def test_too_little_memory_is_reported(estimator, monkeypatch):
    def fail(table):
        raise MemoryError

    monkeypatch.setattr(fit_in_memory, "clean", fail)
    with pytest.raises(DeviceError):
        clone(estimator).fit(TEXTS, LABELS)


@pytest.mark.parametrize("name", ["seeds", "cv", "test_size", "explanations", "label_noise", "text_column"])
def test_a_setting_without_effect_is_an_error(estimator, name):
    with pytest.raises(ConfigError) as error:
        clone(estimator).set_params(settings={name: 3}).fit(TEXTS, LABELS)
    assert repr(name) in error.value.what


@pytest.mark.parametrize(("name", "value"), [("CV", "5"), ("VALIDATION", "v.csv"), ("TEST_SIZE", "0")])
def test_the_environment_may_have_settings_without_effect(estimator, monkeypatch, name, value):
    monkeypatch.setenv(f"BERTSMITH_{name}", value)
    monkeypatch.setenv("BERTSMITH_LAYER_DECAY", "0.8")
    config = clone(estimator).set_params(validation_size=0.95)._config()
    assert (config.validation_size, config.layer_decay) == (0.95, 0.8)
    assert (config.cv, config.validation) == (None, None)


@pytest.mark.parametrize("random_state", [np.random.RandomState(0), -1, 2**32, 1.5, "1"])
def test_a_random_state_that_is_not_a_seed_is_an_error(estimator, random_state):
    with pytest.raises(ConfigError) as error:
        clone(estimator).set_params(random_state=random_state)._config()
    assert "random_state" in error.value.what


def test_without_a_random_state_each_fit_has_another_seed(estimator):
    other = clone(estimator).set_params(random_state=None)
    assert other._config().seed != other._config().seed
    assert other.set_params(random_state=np.int64(7))._config().seed == 7


@pytest.mark.parametrize("settings", [{"epochs": 3}, {"seed": 3}, {"settings": {}}, 5])
def test_settings_are_a_dict_without_the_parameters_of_the_classifier(estimator, settings):
    with pytest.raises(ConfigError):
        clone(estimator).set_params(settings=settings).fit(TEXTS, LABELS)


def test_the_checks_of_scikit_learn_that_apply_pass(estimator):
    from sklearn.utils.estimator_checks import check_estimator  # takes long

    with pytest.warns(SkipTestWarning):  # the other checks need numeric input
        results = check_estimator(estimator, on_fail=None)
    assert {result["check_name"]: result["status"] for result in results} == {"check_estimator_cloneable": "passed"}


@pytest.mark.parametrize(
    ("labels", "settings", "expected"),
    [
        ([None] * 6, None, "item 0"),
        ([0, "a"] * 3, None, "sorted"),
        (["a", "b"] * 3, {"task": "ordinal"}, "ordinal"),
        ([0, 1] * 3, {"task": "multi-label"}, "multi-label"),
    ],
)
def test_labels_and_tasks_that_do_not_fit_are_errors(estimator, labels, settings, expected):
    with pytest.raises(bs.UserError) as error:
        clone(estimator).set_params(settings=settings).fit(list("abcdef"), np.array(labels, dtype=object))
    assert expected in error.value.what
