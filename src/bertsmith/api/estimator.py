"""A scikit-learn classifier."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from numbers import Integral, Number
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from bertsmith.compute.machine import use_cores
from bertsmith.config import DataConfig
from bertsmith.data.table import ORDINAL, SINGLE_LABEL
from bertsmith.data.texts import group_name, is_missing
from bertsmith.errors import ConfigError, DataError, counted, listing, naming_parameters, number_form, with_article
from bertsmith.load_config import ENV_PREFIX, resolve

if TYPE_CHECKING:
    from bertsmith.config import Config
    from bertsmith.data.table import Table
    from bertsmith.data.template import Template, Texts

_WITHOUT_EFFECT = {
    "cv",
    "seeds",
    "keep_checkpoints",
    "no_ablation",
    "explanations",
    "label_noise",
    *DataConfig.model_fields,
} - {"task", "validation_size", "near_duplicates"}
"""Settings of `bertsmith.train` that read a table, look for label errors, test a model or write files."""


class BertClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn is untyped
    """Fine-tune a checkpoint as a classifier with the interface of scikit-learn.

    `fit` holds out a share of the texts to select the epoch and to calibrate the probabilities, unless the texts are
    few. `fit` writes no files. For a report, a test with intervals and a run folder, use `bertsmith.train`.

    Args:
        model: Hugging Face Hub id, local folder, ``"packaged:minilm"``, or ``"auto"``: by language.
        max_length, epochs, batch_size, learning_rate: as for `bertsmith.train`; ``None``: chosen from the data.
        validation_size, imbalance, decision_rule, precision, device, threads: as for `bertsmith.train`.
        random_state: seed of split, head initialization, shuffling and dropout; ``None``: another seed in each `fit`.
        settings: other settings of `bertsmith.train`, such as ``{"task": "ordinal"}`` if ``y`` holds ordered numbers.
            `fit` refuses settings that read a table, look for label errors, test a model or write files.

    Attributes:
        classes_: the labels, sorted, shape (classes,).
        classifier_: the fitted `Classifier`.
        template_: how the columns of a DataFrame become texts.

    Examples:
        >>> from sklearn.model_selection import cross_val_score
        >>> classifier = BertClassifier("packaged:minilm")
        >>> cross_val_score(classifier, texts, labels, cv=5, scoring="f1_macro")  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str = "google-bert/bert-base-uncased",
        *,
        max_length: int | None = None,
        epochs: float | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        validation_size: float = 0.1,
        imbalance: str = "auto",
        decision_rule: str = "auto",
        precision: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        random_state: int | None = 42,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.max_length = max_length
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.validation_size = validation_size
        self.imbalance = imbalance
        self.decision_rule = decision_rule
        self.precision = precision
        self.device = device
        self.threads = threads
        self.random_state = random_state
        self.settings = settings

    @naming_parameters()
    def fit(self, X: Any, y: Any, groups: Any = None) -> BertClassifier:  # noqa: N803  # name of scikit-learn
        """Fine-tune on texts and labels.

        Args:
            X: n texts: a list, an array, a Series or an iterator; or a data frame or Arrow table, whose columns are
                joined.
            y: n labels of any type that can be sorted, one per text.
            groups: group of each text, such as its author; a group is either in training or in validation. A text
                whose group is missing has no group.

        Raises:
            UserError: for everything that the user can fix, such as texts that are not strings.
        """
        from bertsmith.workflows.fit_in_memory import fit_in_memory

        X = _frame(X)  # noqa: N806
        template = _template(X)
        texts = _texts(X, template)
        if not len(texts):
            raise DataError("X is empty", remedy="Pass at least one text of each class.")
        if y is None:
            raise DataError("y is missing", remedy="Pass one label per text.")
        labels = _one_per_text(y, "y", "label", len(texts))
        config = self._config()
        use_cores(config.threads)
        if config.task not in ("auto", SINGLE_LABEL, ORDINAL):
            raise ConfigError(
                f"BertClassifier predicts one class per text, so it does not support the task {config.task}",
                remedy="Use bertsmith.train.",
            )
        if missing := [i for i, label in enumerate(labels.tolist()) if is_missing(label)]:
            raise DataError(f"y has no label for item {missing[0]}", remedy="Remove the texts without a label.")
        if (i := next((i for i, label in enumerate(labels.tolist()) if _is_fraction(label)), None)) is not None:
            raise DataError(
                f"y holds continuous numbers, not classes: item {i} is {labels[i]}",
                remedy="Pass classes. To predict numbers, use bertsmith.train with the task regression.",
            )
        try:
            classes, codes = np.unique(labels, return_inverse=True)
        except TypeError as error:
            raise DataError("the labels in y cannot be sorted", remedy="Pass labels of a single type.") from error
        if config.task == ORDINAL and not all(isinstance(label, Number) for label in classes.tolist()):
            raise DataError(
                "the task ordinal needs numbers in y, which give the order of the classes",
                remedy="Pass the rank of each label. For an ordered categorical of pandas, pass "
                "y.cat.codes.where(y.notna()).",
            )
        table = _table(texts, template, classes, codes, groups)
        table = replace(table, task=ORDINAL) if config.task == ORDINAL else table
        classifier = fit_in_memory(table, config)
        # Together, so that an interrupted or failed fit keeps the earlier model with its labels.
        self.template_, self.classes_, self.classifier_ = template, classes, classifier
        return self

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return the label of every text, shape (n,)."""
        probabilities = self.predict_proba(X)
        return self.classes_[self.classifier_.task.predicted(probabilities)]

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return the probability of every class for every text, shape (n, classes), in the order of `classes_`."""
        check_is_fitted(self, "classifier_")
        return self.classifier_.predict_proba(_texts(_frame(X), self.template_))

    def decision_function(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return log-probabilities, shape (n, classes); for two classes the log odds of the second, shape (n,)."""
        logs: np.ndarray = np.log(np.clip(self.predict_proba(X), 1e-30, None))
        return logs[:, 1] - logs[:, 0] if logs.shape[1] == 2 else logs

    def _config(self) -> Config:
        settings = self.settings or {}
        if not isinstance(settings, Mapping):
            raise ConfigError(
                f"settings should be a dict, not {with_article(settings)}", remedy='For example: {"effort": "quick"}.'
            )
        given = self.get_params(deep=False)
        if twice := [name for name in settings if name in (*given, "seed")]:
            raise ConfigError(
                f"settings must not contain parameters of BertClassifier: {listing(twice)}",
                remedy="Pass them as arguments of BertClassifier."
                + (" The seed is random_state." if "seed" in twice else ""),
            )
        if idle := [name for name in settings if name in _WITHOUT_EFFECT]:
            raise ConfigError(
                f"BertClassifier does not support the {number_form(len(idle), 'setting')} {listing(idle)}",
                remedy=f"Leave {number_form(len(idle), 'it', 'them')} out, or use bertsmith.train.",
            )
        del given["settings"], given["random_state"]
        given = {name: value for name, value in given.items() if value is not None}
        # Shells that also train have variables of settings without effect here.
        unused = [f"{ENV_PREFIX}{name.upper()}" for name in _WITHOUT_EFFECT]
        environ = {name: value for name, value in os.environ.items() if name.upper() not in unused}
        # `fit` tests nothing. But with test_size=0, `resolve` expects cross-validation.
        given |= {"seed": self._seed(), "test_size": 1e-9}
        return resolve({**given, **settings}, environ=environ, api=True)

    def _seed(self) -> int:
        """Return the seed of a `fit`. As elsewhere in scikit-learn, ``None`` takes it from NumPy's global generator."""
        state: Any = np.random.randint(2**32, dtype=np.int64) if self.random_state is None else self.random_state
        if not isinstance(state, Integral) or not 0 <= int(state) < 2**32:
            what = f"random_state should be None or an integer from 0 to 2**32 - 1, not {state!r}"
            raise ConfigError(what, remedy="For example: random_state=42.")
        return int(state)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.no_validation = True
        tags.non_deterministic = False
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Return the parameters, and the files of a fitted model; its weights are safetensors."""
        state = dict(super().__getstate__())
        fitted = state.pop("classifier_", None)
        if fitted is not None:
            with tempfile.TemporaryDirectory() as folder:
                fitted.loaded.save(Path(folder))
                state["files"] = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        files = state.pop("files", None)
        super().__setstate__(state)
        if files is not None:
            from bertsmith.compute.device import available_devices
            from bertsmith.inference.classifier import Classifier

            device = self.device if available_devices().get(self.device, True) else "auto"  # of another machine
            with tempfile.TemporaryDirectory() as folder:
                for name, content in files.items():
                    (Path(folder) / name).write_bytes(content)
                loaded = Classifier.load(folder, device=device)
            opened = replace(loaded.loaded, template=self.template_)
            self.classifier_ = Classifier(opened, loaded.labels, loaded.task, loaded.rule)
            self.classifier_.long = loaded.long


def _frame(X: Any) -> Any:  # noqa: N803
    """Return X, as a data frame of pandas if it is a table of another library, or as a list if it is an iterator."""
    from bertsmith.data.columns import check_columns
    from bertsmith.data.formats.registry import to_data_frame

    if isinstance(X, Iterator):
        return list(X)
    if not hasattr(X, "columns"):
        return X
    X = to_data_frame(X)  # noqa: N806
    check_columns(list(map(str, X.columns)), max(len(X), 1), "X", DataConfig())  # other messages name an empty X
    return X


def _one_per_text(values: Any, name: str, noun: str, n_texts: int) -> np.ndarray:
    """Return labels or groups as an array, shape (n,)."""
    values = list(values) if isinstance(values, Iterator) else values
    remedy = f"Pass one {noun} per text."
    if name == "y":
        remedy += " For several labels per text, use bertsmith.train."
    expected = f"{name} must hold one {noun} per text"
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise DataError(f"{expected}, but it holds lists of different lengths", remedy=remedy) from error
    is_text = array.dtype.kind in "US" and isinstance(values, list | tuple)
    if is_text and not all(isinstance(value, str | bytes) for value in values):
        array = np.array(values, dtype=object)  # else 1 and NaN are texts
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or len(array) != n_texts:
        n = counted(n_texts, "text")
        raise DataError(f"{expected}: X has {n}, but the shape of {name} is {array.shape}", remedy=remedy)
    return array


def _groups(groups: Any, n_texts: int) -> list[str | None]:
    """Return the group of every text; a text whose group is missing gets a separate one."""
    if groups is None:
        return [None] * n_texts
    values = _one_per_text(groups, "groups", "group", n_texts).tolist()
    return [group_name(value) or f"text {i} without a group" for i, value in enumerate(values)]


def _is_fraction(label: Any) -> bool:
    """Return whether a label is a number with decimals, or infinite."""
    return isinstance(label, float) and label % 1 != 0


def _template(X: Any) -> Template:  # noqa: N803
    """Return how the columns of X become texts; a single text column for X without columns."""
    from bertsmith.data.template import Template

    return Template(tuple(map(str, X.columns))) if hasattr(X, "columns") else Template()


def _texts(X: Any, template: Template) -> Texts:  # noqa: N803
    """Return texts."""
    from bertsmith.data.template import Template, Texts

    if X is None:
        raise DataError("X is missing", remedy="Pass a list of texts.")
    if isinstance(X, str):
        raise DataError("X must be a list of texts, not one text", remedy="Pass [text].")
    if hasattr(X, "columns"):
        by_name = {str(name): name for name in X.columns}
        wanted = list(by_name) if template.is_plain and len(by_name) == 1 else template.columns
        if absent := [name for name in wanted if name not in by_name]:
            raise DataError(
                f"X lacks the {number_form(len(absent), 'column')} {listing(absent)}",
                remedy="Pass the same columns as to fit.",
            )
        return Texts(template.texts(template.read_cells(X, [by_name[name] for name in wanted], "X")))
    array = np.asarray(X, dtype=object)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or not template.is_plain:
        form = "one-dimensional" if template.is_plain else f"a DataFrame with the columns {listing(template.columns)}"
        raise DataError(
            f"X must be {form}, but its shape is {array.shape}",
            remedy="Pass a list of texts, or X in the same form as to fit.",
        )
    return Template().read([str(item) if isinstance(item, np.str_) else item for item in array.tolist()])


def _table(texts: Texts, template: Template, classes: np.ndarray, codes: np.ndarray, groups: Any) -> Table:
    import pandas as pd

    from bertsmith.data.columns import Columns
    from bertsmith.data.table import Labels, Table

    if len(classes) < 2:
        raise DataError("y has only one class", remedy="Pass labels of at least two classes.")
    names = [str(value) for value in classes.tolist()]
    if len(set(names)) < len(names):
        names = [repr(value) for value in classes.tolist()]
    frame = pd.DataFrame(
        {
            "source": "X",
            "row": np.arange(1, len(texts) + 1),
            "text": pd.Series(texts, dtype="str"),
            "target": codes.astype(np.int64),
            "split": pd.Series([None] * len(texts), dtype="str"),
            "group": pd.Series(_groups(groups, len(texts)), dtype="str"),
        }
    )
    labels = Labels(tuple(range(len(names))), tuple(names))
    return Table(frame, labels, Columns(template, "y", None), pd.DataFrame(index=frame.index), "X")
