"""What labels texts, whatever it runs on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np

from bertsmith.config import DataConfig
from bertsmith.data.columns import check_columns, check_flat
from bertsmith.data.columns import text_column as find_text_column
from bertsmith.data.table import Labels
from bertsmith.data.texts import normalise, texts_of
from bertsmith.errors import ConfigError, DataError, listing
from bertsmith.evaluation.rule import Rule
from bertsmith.model.tokenizer import Encoder, Tokens

if TYPE_CHECKING:
    import pandas as pd


Label = Callable[[Callable[[int], None] | None], np.ndarray]
"""Takes a progress callback and returns the probabilities of prepared texts; see `Predictor.predict_proba`."""


class Predictor(ABC):
    """What labels texts, by probabilities.

    Attributes:
        labels: the classes.
    """

    labels: Labels

    @property
    def classes_(self) -> np.ndarray:
        """The label texts in the order of the columns of `predict_proba`, as scikit-learn names them."""
        return np.array(self.labels.texts)

    @property
    @abstractmethod
    def rules(self) -> list[Rule]:
        """The decision rules of the models that are asked."""

    @abstractmethod
    def predict_proba(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Return the probability of every class for every text, shape (texts, classes); rows sum to 1.

        Args:
            texts: n texts; a single string is taken as one text.
            progress: called with the number of texts done since the last call.

        Raises:
            DataError: if an item is not a string.
            DeviceError: if not even a single text fits into memory.
        """

    def prepare(self, texts: Sequence[str]) -> tuple[Label, int]:
        """Do what needs no model; return what labels the texts, and how many are cut, so that their ends are not read.

        A thread may do this while another one labels texts that were prepared before.
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
        """Return one row a text: ``predicted``, ``predicted_text``, ``confidence``, ``probabilities`` (an array).

        Args:
            texts: n texts, or a data frame of n rows. Its columns and its index are kept, and a row without a text gets
                missing values.
            progress: called with the number of texts done since the last call.
            text_column: of the data frame; found by its name unless given, as in a table that is read.

        Raises:
            DataError: if an item is not a string, the text column is ambiguous, or an output column exists already.
        """
        if hasattr(texts, "columns"):
            return self._predict_rows_of(cast("pd.DataFrame", texts), progress, text_column)
        if text_column is not None:
            raise ConfigError("text_column is for a data frame", remedy="Leave it out, or give the data frame.")
        return to_frame(self.predict_proba(texts, progress), self.labels)

    def _predict_rows_of(
        self, frame: pd.DataFrame, progress: Callable[[int], None] | None, column: str | None
    ) -> pd.DataFrame:
        where = "the data frame"
        check_flat(frame, where)
        names = [str(name) for name in frame.columns]
        config = DataConfig(text_column=column)
        check_columns(names, max(len(frame), 1), where, config)
        found = find_text_column(names, where, config)
        texts = texts_of(frame.iloc[:, names.index(found)].tolist(), f"{where}, column {found!r}")
        filled = [i for i, text in enumerate(texts) if text and text.strip()]
        ours = to_frame(self.predict_proba([texts[i] or "" for i in filled], progress), self.labels)
        if clash := [name for name in ours.columns if name in names]:
            raise DataError(
                f"the data frame has columns that this would add: {listing(clash)}", remedy="Rename or remove them."
            )
        if len(filled) < len(texts):  # a column of whole numbers has missing values only as Int64
            ours = ours.astype({"predicted": "Int64"}).set_axis(filled).reindex(range(len(texts)))
        return frame.assign(**{name: ours[name].array for name in ours.columns})


class ModelPredictor(Predictor):
    """What labels texts with one model.

    Attributes:
        rule: temperature and offsets, fitted on validation.
        decide: whether the offsets are used, which were tuned for the primary metric.
        encoder: what turns texts into token ids.
        columns: what of `bertsmith.model.tokenizer.COLUMNS` the model takes.
        max_length: tokens kept of each text.
    """

    rule: Rule
    decide: bool
    encoder: Encoder
    columns: Sequence[str] = ("input_ids",)

    @property
    @abstractmethod
    def max_length(self) -> int:
        """Tokens kept of each text."""

    @property
    def rules(self) -> list[Rule]:
        """Its own."""
        return [self.rule]

    def encode(self, texts: Sequence[str], *, whole: bool = False) -> Tokens:
        """Tokenize texts, each cut at `max_length` unless it is wanted whole.

        Raises:
            DataError: if an item is not a string.
        """
        normal = [normalise(text) for text in check_texts(texts)]
        return self.encoder.encode(normal, self.columns, None if whole else self.max_length)

    def own(self, tokens: Tokens, texts: Sequence[str]) -> Tokens:
        """Return what `encode` returns: taken from ``tokens`` where these are what this model's tokenizer makes.

        Args:
            tokens: of the texts, from the tokenizer of any model, cut nowhere before `max_length`.
            texts: n texts.
        """
        theirs = tokens.encoder and tokens.encoder.key
        if tokens.encoder is self.encoder or (theirs is not None and theirs == self.encoder.key):
            return tokens.cut(self.max_length)
        return self.encode(texts)

    @abstractmethod
    def logits_of(self, tokens: Tokens, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Return the model's logits, as it stands, for n tokenized texts, shape (n, classes); see `predict_proba`."""

    def logits(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Return the model's logits, as it stands, for every text, shape (texts, classes); see `predict_proba`."""
        return self.logits_of(self.encode(texts), progress)

    def count_tokens(self, texts: Sequence[str]) -> np.ndarray:
        """Return the number of tokens of each text, special tokens counted, nothing cut, shape (texts,)."""
        return self.encode(texts).lengths

    def probabilities_of(self, tokens: Tokens, progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Return the probabilities for n tokenized texts, shape (n, classes); see `predict_proba`."""
        return self.rule.apply(softmax(self.logits_of(tokens, progress)), decide=self.decide)

    def prepare(self, texts: Sequence[str]) -> tuple[Label, int]:
        """Tokenize texts; see `Predictor.prepare`."""
        tokens = self.encode(texts)
        return partial(self.probabilities_of, tokens), int(tokens.is_cut.sum())

    def predict_proba(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> np.ndarray:
        """Return the probability of every class for every text, as `Predictor.predict_proba` says."""
        return self.probabilities_of(self.encode(texts), progress)


def check_texts(texts: Sequence[str]) -> list[str]:
    """Return texts as a list, a single string as one text.

    Raises:
        DataError: if an item is not a string.
    """
    if not isinstance(texts, Iterable) or isinstance(texts, Mapping) or hasattr(texts, "columns"):
        raise DataError(
            f"texts are given as a list, not as {type(texts).__name__}",
            remedy="Give a list of texts, or the column of a data frame that holds them.",
        )
    result = [texts] if isinstance(texts, str) else list(texts)
    odd = next((i for i, text in enumerate(result) if not isinstance(text, str)), None)
    if odd is not None:
        raise DataError(
            f"item {odd} is not a string: {result[odd]!r}",
            remedy="Give texts alone: leave out what is missing, decode bytes, and take texts out of lists.",
        )
    for i, text in enumerate(result):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"item {i} is not valid Unicode: it has a lone surrogate, {text[error.start]!r}",
                remedy="Read it with its right encoding, or with errors='replace'.",
            ) from error
    return result


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities of logits, both of shape (texts, classes)."""
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
