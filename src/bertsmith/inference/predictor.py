"""The interface of classifiers, whatever runtime they use."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from bertsmith.config import DataConfig
from bertsmith.data.columns import check_columns, find_text_columns
from bertsmith.data.formats.registry import to_data_frame
from bertsmith.data.table import Labels
from bertsmith.data.template import Template, Text, Texts, is_empty, normalise_text, texts_of
from bertsmith.errors import ConfigError, DataError, RunFolderError, listing, naming_parameters
from bertsmith.evaluation.rule import Rule
from bertsmith.folders.run import open_run
from bertsmith.inference.abstain import HeldOutPredictions, held_out_predictions
from bertsmith.load_config import resolve
from bertsmith.model.tokenizer import Encoder
from bertsmith.model.tokens import Tokens
from bertsmith.tasks.base import Task

if TYPE_CHECKING:
    import pandas as pd


PredictProba = Callable[[Callable[[int], None] | None], np.ndarray]
"""Takes a progress callback and predicts texts that `Predictor.prepare` tokenized; see `Predictor.predict_proba`."""


Items = Sequence[Text | Mapping[str, Any]] | Mapping[str, Any]
"""A text, a pair as a tuple of two strings, a dict of columns, or a list of these; see `Template.read`."""


class Predictor(ABC):
    """Predicts probabilities of labels, or numbers.

    Attributes:
        labels: the classes.
        task: the kind of label.
        template: the columns that the model reads.
        long: how the predictor reads texts above the maximum length: ``"truncate"``, ``"head-tail"`` or ``"window"``.
        run: the folder of the run; ``None`` for an export outside of a run, or a model without a run.
    """

    labels: Labels
    task: Task
    template: Template = Template()
    long: str = "truncate"
    run: Path | None = None

    @abstractmethod
    def held_out(self, *, test: bool = False, again: bool = True) -> HeldOutPredictions:
        """Return the predictions, with the decision rule, for the validation texts of the run, which set thresholds.

        Args:
            test: return those for the test texts.
            again: predict texts again if the saved predictions read them in another way than `long`.

        Raises:
            RunFolderError: if the model has no run, or the run is damaged.
            ConfigError: if the saved predictions read texts in another way, and nothing predicts them again.
        """

    @property
    def classes_(self) -> np.ndarray:
        """The label texts, in the order of the columns of `predict_proba`, under the name of scikit-learn."""
        return np.array(self.labels.texts)

    @property
    @abstractmethod
    def rules(self) -> list[Rule]:
        """The decision rules of the models."""

    def predict_proba(self, texts: Items, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Return the probability of every class for every text, shape (texts, classes).

        Rows sum to 1 if a text has one class. A regression returns the number of every text, shape (texts, 1).

        Args:
            texts: n texts; a single string is one text. A pair is a tuple of two strings. A dict of columns is one text
                or pair, and every column of the template must be in it.
            progress: called with the number of texts done since the last call.

        Raises:
            DataError: if an item is not a text, or does not fit the template.
            DeviceError: if even a single text does not fit into memory.
        """
        return self.prepare(texts)[0](progress)

    @abstractmethod
    def prepare(self, texts: Items) -> tuple[PredictProba, int]:
        """Tokenize texts; return a function that predicts them, and the number of truncated texts.

        This needs no model, so one thread can prepare texts while another predicts.
        """

    def predict(self, texts: Items) -> list[Any]:
        """Return the label text of every text, a list of label texts for sets of labels, or a number."""
        return self.task.prediction_columns(self.predict_proba(texts), self.labels)[self.task.predicted_column]

    def predict_frame(
        self,
        texts: Items | pd.DataFrame,
        progress: Callable[[int], None] | None = None,
        *,
        text_column: str | Sequence[str] | None = None,
        pair_column: str | None = None,
        with_columns: str | Sequence[str] = (),
    ) -> pd.DataFrame:
        """Return one row per text: ``predicted``, ``predicted_text``, ``confidence``, ``probabilities`` (an array).

        For sets of labels, ``predicted`` and ``predicted_texts`` are lists; a regression has only ``predicted``.

        Args:
            texts: n texts, or a data frame or Arrow table of n rows, whose columns are part of the result. A data frame
                or series keeps its index. Rows of a table without a text get missing values.
            progress: called with the number of texts done since the last call.
            text_column: of the data frame; by default found by its name, as in tables.
            pair_column, with_columns: other columns of the data frame, for a model that reads them; by default those of
                the training.

        Raises:
            DataError: if an item is not a text, a column is missing or ambiguous, or an output column exists already.
        """
        if hasattr(texts, "columns") or hasattr(texts, "schema"):  # not an Arrow array, which has a stream too
            texts = to_data_frame(texts)
        if hasattr(texts, "columns"):
            columns = {"text_column": text_column, "pair_column": pair_column, "with_columns": with_columns}
            config = resolve({name: value for name, value in columns.items() if value}, environ={}, api=True)
            with naming_parameters():
                return self._predict_data_frame(cast("pd.DataFrame", texts), progress, config)
        if text_column or pair_column or with_columns:
            raise ConfigError(
                "column names require a data frame", remedy="Leave out the column names, or pass a data frame."
            )
        frame = to_frame(self.task, self.predict_proba(texts, progress), self.labels)
        return frame.set_axis(cast("pd.Series", texts).index) if hasattr(texts, "iloc") else frame

    def _predict_data_frame(
        self, frame: pd.DataFrame, progress: Callable[[int], None] | None, config: DataConfig
    ) -> pd.DataFrame:
        where = "the data frame"
        names = [str(name) for name in frame.columns]
        check_columns(names, max(len(frame), 1), where, config)
        found = find_text_columns(names, where, config, self.template)
        cells = {name: frame.iloc[:, names.index(name)].tolist() for name in found}
        texts = [normalise_text(text) for text in self.template.texts(self.template.read_cells(cells, found, where))]
        filled = [i for i, text in enumerate(texts) if not is_empty(text)]
        added = to_frame(self.task, self.predict_proba(Texts(texts[i] for i in filled), progress), self.labels)
        if clash := [name for name in added.columns if name in names]:
            raise DataError(
                f"the data frame already has columns with names of the output: {listing(clash)}",
                remedy="Rename or remove these columns.",
            )
        if len(filled) < len(texts):  # only Int64 columns of integers have missing values
            if added["predicted"].dtype == np.int64:
                added = added.astype({"predicted": "Int64"})
            added = added.set_axis(filled).reindex(range(len(texts)))
        return frame.assign(**{name: added[name].array for name in added.columns})


class ModelPredictor(Predictor):
    """Predicts with one model.

    Attributes:
        rule: temperature and offsets, fitted on validation.
        decide: whether to use the offsets, which were tuned for the primary metric.
        encoder: turns texts into token ids.
        columns: inputs of the model, among `bertsmith.model.tokenizer.COLUMNS`.
        max_length: tokens of a text that the model reads.
    """

    rule: Rule
    decide: bool
    encoder: Encoder
    columns: Sequence[str] = ("input_ids",)

    @property
    def compute_type(self) -> str:
        """Device and runtime, for the server, such as ``"cpu+onnx"`` or ``"cuda+torch"``."""
        return "cpu"

    @property
    @abstractmethod
    def max_length(self) -> int:
        """Tokens of a text that the model reads."""

    @property
    def rules(self) -> list[Rule]:
        """The rule of the model."""
        return [self.rule]

    def saved(self, *, test: bool = False) -> HeldOutPredictions:
        """Return the saved predictions for held-out texts, however the model read them; see `Predictor.held_out`."""
        if self.run is None:
            raise RunFolderError(
                "the model has no run, so it has no predictions for validation texts",
                remedy="Pass the folder of a run or of an export.",
            )
        return held_out_predictions(self.run, test=test)

    def held_out(self, *, test: bool = False, again: bool = True) -> HeldOutPredictions:
        """Return the saved predictions; if `long` is not theirs, predict the long texts again."""
        found = self.saved(test=test)
        if self.long == found.long:
            return found
        assert self.run is not None
        run = open_run(self.run)
        texts = texts_of(run.predictions if test else run.validation_predictions)
        longer = np.flatnonzero(self.count_tokens(texts) > self.max_length)
        by_folds = "by" in run.metrics["splits"]["test" if test else "validation"]
        if len(longer) and (by_folds or not again):
            why = "the run lacks the models of the folds" if by_folds else "again is false"
            raise other_long_error(self.long, found.long, why, self.run)
        with_rule, scores = copy.copy(self), found.scores[0].copy()
        with_rule.decide = True
        scores[longer] = with_rule.predict_proba(Texts(texts[i] for i in longer))
        return replace(found, scores=[scores], long=self.long)

    def encode(self, texts: Items, *, truncate: bool = True) -> Tokens:
        """Tokenize texts; by default keep only what the model reads of them, see `read`.

        Raises:
            DataError: if an item is not a text, or does not fit the template.
        """
        normal = [normalise_text(text) for text in self.template.read(texts)]
        max_length = self.max_length if truncate and self.long == "truncate" else None
        tokens = self.encoder.encode(normal, self.columns, max_length)
        return self.read(tokens) if truncate else tokens

    def read(self, tokens: Tokens) -> Tokens:
        """Return what the model reads of tokenized texts; with ``"window"`` all of them."""
        return tokens.read(self.max_length, self.long)

    def reuse_tokens(self, tokens: Tokens, texts: Items) -> Tokens:
        """Return `encode` of the texts, from existing tokens if the tokenizer is the same.

        Args:
            tokens: of the texts, by the tokenizer of any model, with all that the model reads.
            texts: n texts.
        """
        key = tokens.encoder and tokens.encoder.key
        if tokens.encoder is self.encoder or (key is not None and key == self.encoder.key):
            return self.read(tokens)
        return self.encode(texts)

    @abstractmethod
    def logits_of(self, tokens: Tokens, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Return the model's logits for n texts of at most `max_length` tokens, shape (n, classes)."""

    def text_logits(self, tokens: Tokens, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Return the logits of n tokenized texts of any length, shape (n, classes); see `predict_proba`.

        With ``long="window"``, the logits of a text are the mean over its windows. So the calibration, which shifts and
        scales logits, is the same before and after the mean.
        """
        if self.long != "window":
            return self.logits_of(self.read(tokens), progress)
        windows, counts = tokens.windows(self.max_length)
        done = 0

        def count_texts(n: int) -> None:
            nonlocal done
            done += n
            if progress and (texts := done * len(counts) // len(windows) - (done - n) * len(counts) // len(windows)):
                progress(texts)

        logits = self.logits_of(windows, count_texts)
        if not len(counts):
            return logits
        return np.add.reduceat(logits, np.cumsum(counts) - counts) / counts[:, None]

    def count_tokens(self, texts: Items) -> np.ndarray:
        """Return the number of tokens of each text, with special tokens and before truncation, shape (texts,)."""
        return self.encode(texts).full_lengths

    def probabilities_of(self, tokens: Tokens, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Return the probabilities for n tokenized texts, shape (n, classes); see `predict_proba`."""
        return self.scores_of(self.text_logits(tokens, progress))

    def scores_of(self, logits: np.ndarray) -> np.ndarray:
        """Return the probabilities for the model's logits, both of shape (n, classes)."""
        return self.task.scores(self.rule.adjust(logits, decide=self.decide))

    def prepare(self, texts: Items) -> tuple[PredictProba, int]:
        """Tokenize texts; see `Predictor.prepare`."""
        tokens = self.encode(texts)
        return partial(self.probabilities_of, tokens), int(tokens.is_truncated.sum())


def other_long_error(long: str, saved: str, why: str, path: Path) -> ConfigError:
    """Return the error for held-out texts whose predictions with ``saved`` exist, but not those with ``long``."""
    return ConfigError(
        f"--long {long}: the saved predictions for held-out texts use --long {saved}, and {why}",
        where=str(path),
        remedy=f"Pass --long {saved}, or train with --long {long}.",
    )


def to_frame(task: Task, scores: np.ndarray, labels: Labels) -> pd.DataFrame:
    """Turn scores, shape (n, classes), into the columns of `Classifier.predict_frame`."""
    import pandas as pd

    columns = task.prediction_columns(scores, labels)
    frame = pd.DataFrame(
        {name: pd.Series(values, dtype=None if values else object) for name, values in columns.items()}
    )
    if "predicted_text" in columns:
        frame = frame.astype({"predicted": np.int64, "predicted_text": "str", "confidence": np.float64})
    return frame.assign(probabilities=list(scores)) if "confidence" in columns else frame
