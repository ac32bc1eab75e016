"""The interface of classifiers, whatever runtime they use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np

from bertsmith.config import DataConfig
from bertsmith.data.columns import check_columns, check_single_level, find_text_column
from bertsmith.data.table import Labels
from bertsmith.data.texts import normalise, to_texts
from bertsmith.errors import ConfigError, DataError, listing
from bertsmith.evaluation.rule import Rule
from bertsmith.model.tokenizer import Encoder, Tokens

if TYPE_CHECKING:
    import pandas as pd


Label = Callable[[Callable[[int], None] | None], np.ndarray]
"""Takes a progress callback and predicts texts that `Predictor.prepare` tokenized; see `Predictor.predict_proba`."""


class Predictor(ABC):
    """Predicts probabilities of labels.

    Attributes:
        labels: the classes.
        long: how texts above the maximum length are read: ``"truncate"``, ``"head-tail"`` or ``"window"``.
    """

    labels: Labels
    long: str = "truncate"

    @property
    def classes_(self) -> np.ndarray:
        """The label texts, in the order of the columns of `predict_proba`, under the name of scikit-learn."""
        return np.array(self.labels.texts)

    @property
    @abstractmethod
    def rules(self) -> list[Rule]:
        """The decision rules of the models."""

    @abstractmethod
    def predict_proba(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Return the probability of every class for every text, shape (texts, classes); rows sum to 1.

        Args:
            texts: n texts; a single string is one text.
            progress: called with the number of texts done since the last call.

        Raises:
            DataError: if an item is not a string.
            DeviceError: if even a single text does not fit into memory.
        """

    def prepare(self, texts: Sequence[str]) -> tuple[Label, int]:
        """Tokenize texts; return a function that predicts them, and the number of truncated texts.

        This needs no model, so one thread can prepare texts while another predicts.
        """
        return partial(self.predict_proba, texts), 0

    def predict(self, texts: Sequence[str]) -> list[str]:
        """Return the label text of every text."""
        return [self.labels.texts[i] for i in self.predict_proba(texts).argmax(axis=1)]

    def predict_frame(
        self,
        texts: Sequence[str] | pd.DataFrame,
        progress: Callable[[int], None] | None = None,
        *,
        text_column: str | None = None,
    ) -> pd.DataFrame:
        """Return one row per text: ``predicted``, ``predicted_text``, ``confidence``, ``probabilities`` (an array).

        Args:
            texts: n texts, or a data frame of n rows, whose columns and index are part of the result. Rows without a
                text get missing values.
            progress: called with the number of texts done since the last call.
            text_column: of the data frame; by default found by its name, as in tables.

        Raises:
            DataError: if an item is not a string, the text column is ambiguous, or an output column exists already.
        """
        if hasattr(texts, "columns"):
            return self._predict_data_frame(cast("pd.DataFrame", texts), progress, text_column)
        if text_column is not None:
            raise ConfigError("text_column requires a data frame", remedy="Leave it out, or give a data frame.")
        return to_frame(self.predict_proba(texts, progress), self.labels)

    def _predict_data_frame(
        self, frame: pd.DataFrame, progress: Callable[[int], None] | None, column: str | None
    ) -> pd.DataFrame:
        where = "the data frame"
        check_single_level(frame, where)
        names = [str(name) for name in frame.columns]
        config = DataConfig(text_column=column)
        check_columns(names, max(len(frame), 1), where, config)
        found = find_text_column(names, where, config)
        texts = to_texts(frame.iloc[:, names.index(found)].tolist(), f"{where}, column {found!r}")
        filled = [i for i, text in enumerate(texts) if text and text.strip()]
        added = to_frame(self.predict_proba([texts[i] or "" for i in filled], progress), self.labels)
        if clash := [name for name in added.columns if name in names]:
            raise DataError(
                f"the data frame already has columns with names of the output: {listing(clash)}",
                remedy="Rename or remove them.",
            )
        if len(filled) < len(texts):  # only Int64 columns of integers have missing values
            added = added.astype({"predicted": "Int64"}).set_axis(filled).reindex(range(len(texts)))
        return frame.assign(**{name: added[name].array for name in added.columns})


class ModelPredictor(Predictor):
    """Predicts with one model.

    Attributes:
        rule: temperature and offsets, fitted on validation.
        decide: whether to use the offsets, which were tuned for the primary metric.
        encoder: turns texts into token ids.
        columns: inputs of the model, of `bertsmith.model.tokenizer.COLUMNS`.
        max_length: tokens of a text that the model reads.
    """

    rule: Rule
    decide: bool
    encoder: Encoder
    columns: Sequence[str] = ("input_ids",)

    @property
    @abstractmethod
    def max_length(self) -> int:
        """Tokens of a text that the model reads."""

    @property
    def rules(self) -> list[Rule]:
        """The rule of the model."""
        return [self.rule]

    def encode(self, texts: Sequence[str], *, truncate: bool = True) -> Tokens:
        """Tokenize texts; by default keep only what the model reads of them, see `read`.

        Raises:
            DataError: if an item is not a string.
        """
        normal = [normalise(text) for text in check_texts(texts)]
        max_length = self.max_length if truncate and self.long == "truncate" else None
        tokens = self.encoder.encode(normal, self.columns, max_length)
        return self.read(tokens) if truncate else tokens

    def read(self, tokens: Tokens) -> Tokens:
        """Return what the model reads of tokenized texts; with ``"window"`` all of them."""
        return tokens.read(self.max_length, self.long)

    def reuse_tokens(self, tokens: Tokens, texts: Sequence[str]) -> Tokens:
        """Return `encode` of the texts, from existing tokens if the tokenizer is the same.

        Args:
            tokens: of the texts, by the tokenizer of any model, with all that the model reads.
            texts: n texts.
        """
        key = tokens.encoder and tokens.encoder.cache_key
        if tokens.encoder is self.encoder or (key is not None and key == self.encoder.cache_key):
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
        result: np.ndarray = np.add.reduceat(logits, np.cumsum(counts) - counts) / counts[:, None]
        return result

    def count_tokens(self, texts: Sequence[str]) -> np.ndarray:
        """Return the number of tokens of each text, with special tokens and before truncation, shape (texts,)."""
        return self.encode(texts).full_lengths

    def probabilities_of(self, tokens: Tokens, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Return the probabilities for n tokenized texts, shape (n, classes); see `predict_proba`."""
        return self.rule.apply(softmax(self.text_logits(tokens, progress)), decide=self.decide)

    def prepare(self, texts: Sequence[str]) -> tuple[Label, int]:
        """Tokenize texts; see `Predictor.prepare`."""
        tokens = self.encode(texts)
        return partial(self.probabilities_of, tokens), int(tokens.is_truncated.sum())

    def predict_proba(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Return the probability of every class for every text; see `Predictor.predict_proba`."""
        return self.probabilities_of(self.encode(texts), progress)


def check_texts(texts: Sequence[str]) -> list[str]:
    """Check that all items are strings; return them as a list, a single string as one text.

    Raises:
        DataError: if an item is not a string.
    """
    if not isinstance(texts, Iterable) or isinstance(texts, Mapping) or hasattr(texts, "columns"):
        raise DataError(
            f"texts must be a list, not {type(texts).__name__}",
            remedy="Give a list of texts, or the text column of a data frame.",
        )
    result = [texts] if isinstance(texts, str) else list(texts)
    wrong = next((i for i, text in enumerate(result) if not isinstance(text, str)), None)
    if wrong is not None:
        raise DataError(
            f"item {wrong} is not a string: {result[wrong]!r}",
            remedy="Give strings only: remove missing values, decode bytes, and flatten lists.",
        )
    for i, text in enumerate(result):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"item {i} is not valid Unicode: it has a lone surrogate, {text[error.start]!r}",
                remedy="Read the text with its correct encoding, or with errors='replace'.",
            ) from error
    return result


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits, both of shape (texts, classes)."""
    if not len(logits):
        return logits
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: np.ndarray = exponents / exponents.sum(axis=1, keepdims=True)
    return result


def to_frame(probabilities: np.ndarray, labels: Labels) -> pd.DataFrame:
    """Turn probabilities, shape (n, classes), into the columns of `Classifier.predict_frame`."""
    import pandas as pd

    best = probabilities.argmax(axis=1)
    return pd.DataFrame(
        {
            "predicted": np.array(labels.numbers, dtype=np.int64)[best],
            "predicted_text": pd.Series(np.array(labels.texts, dtype=object)[best], dtype="str"),
            "confidence": probabilities.max(axis=1) if len(probabilities) else np.empty(0),
            "probabilities": list(probabilities),
        }
    )
