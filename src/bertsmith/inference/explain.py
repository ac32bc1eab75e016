"""Word attributions by integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365), with captum."""

from __future__ import annotations

import importlib.util
import math
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bertsmith.compute.memory import memory_errors, retry_on_out_of_memory
from bertsmith.data.table import REGRESSION
from bertsmith.data.template import Texts, flat, is_empty, normalise_text, segments, texts_of
from bertsmith.errors import ConfigError, DataError, MissingPackageError, ModelError, did_you_mean, listing
from bertsmith.model import forward

if TYPE_CHECKING:
    import pandas as pd

    from bertsmith.inference.classifier import Classifier
    from bertsmith.inference.predictor import Items
    from bertsmith.model.tokens import Tokens

STEPS = (32, 64, 128, 256, 512)
"""Numbers of integration points, tried in turn until the attributions sum to the change of the logit."""
TOLERANCE = 0.05
"""Accepted gap between the sum of the attributions and the change of the logit, relative to max(change, 1).

For predicted numbers, which have any unit, the sum of the absolute attributions replaces the 1.
"""
FORWARD_PASSES = 2
"""Time per integration point, with backward pass and batching, in forward passes of a single text."""
EXPLAINED_TOKENS = 256
"""Tokens of test texts that training explains, a few seconds for MiniLM on two cores."""
EXPLAINED_SHARE, EXPLAINED_SECONDS = 0.05, 2.0
"""Time limit of explanations: this share of the training time, or this many seconds if that is more."""
POINTS_PER_PASS = 16
_JOINT = re.compile(r"(?<=\w)['’.](?=\w)|(?<=\d),(?=\d)")
"""Characters within a word at which tokenizers split: ``Don't``, ``3.5``, ``1,000``."""


@dataclass(frozen=True)
class Word:
    """A word of a text.

    Attributes:
        text: the word.
        start, end: position in the explained text, in characters.
        attribution: contribution to the logit of the label, or to a predicted number; negative if it opposes the
            label, or lowers the number.
        after: characters up to the next word; ``text + after`` of all words is the text that the model reads.
    """

    text: str
    start: int
    end: int
    attribution: float
    after: str = ""


@dataclass(frozen=True)
class Explanation:
    """Attributions of the words of a text.

    Attributes:
        text: the text, normalised; the segments of a pair are lines.
        words: in order, without those that the model does not read.
        change: of the logit or the predicted number, from a text of padding tokens to this text.
        gap: the sum of the attributions minus that change.
        steps: integration points.
        unread: number of characters that the model does not read, because of the maximum length.
        label_text: the explained label; ``None`` for a regression.
        predicted_text: the predicted label, if a text has one.
        predicted_texts: the predicted labels, if a text has any number of them.
        probability: of the explained label; ``None`` for a regression.
        predicted: the predicted number of a regression; else ``None``.
    """

    text: str
    words: tuple[Word, ...]
    change: float
    gap: float
    steps: int
    unread: int
    label_text: str | None = None
    predicted_text: str | None = None
    predicted_texts: Sequence[str] | None = None
    probability: float | None = None
    predicted: float | None = None

    @property
    def title(self) -> str:
        """The explained label with its probability, and other predicted labels; or the predicted number."""
        if self.predicted is not None:
            return f"predicted value {self.predicted:.4g}"
        labels = [self.predicted_text] if self.predicted_texts is None else self.predicted_texts
        predicted = "" if self.label_text in labels else f" (predicted: {', '.join(map(str, labels)) or 'no label'})"
        return f"{self.label_text}, probability {self.probability:.3f}{predicted}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are not ``None``, JSON-ready."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class OutOfTimeError(TimeoutError):
    """An explanation would miss its deadline."""


def can_explain(classifier: Classifier) -> bool:
    """Return whether captum is installed, and the tokenizer knows the position of each token in the text."""
    return importlib.util.find_spec("captum") is not None and bool(classifier.loaded.tokenizer.is_fast)


def explain(
    classifier: Classifier, text: Items, label: str | None = None, *, deadline: float = math.inf
) -> Explanation:
    """Attribute the logit of a label, or the predicted number, to the words of a text.

    The baseline replaces all tokens but special ones by padding. The attribution of a word is the sum over its tokens,
    and over tokens of white space before it.
    The number of integration points doubles until the attributions sum to the change of the logit. If the model reads
    windows, its logits are their mean, and so are the attributions.

    Args:
        classifier: a fitted model.
        text: one text, pair or dict of columns.
        label: a label text; by default the predicted one.
        deadline: latest time to finish, on the clock of `time.perf_counter`.

    Raises:
        OutOfTimeError: as soon as the deadline cannot be met.
        MissingPackageError: if the package captum is missing.
        ConfigError: if the label does not exist, or the model predicts a number.
        ModelError: if the tokenizer does not know the position of each token in the text.
        DataError: if the text is empty.
        DeviceError: if memory is too small.
    """
    tokenizer = classifier.loaded.tokenizer
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer {type(tokenizer).__name__} does not know the position of each token in the text",
            remedy="Explain a model whose checkpoint has a tokenizer.json.",
        )
    (item,) = (normalise_text(text) for text in classifier.template.read(text))
    if is_empty(item):
        raise DataError("the text is empty", remedy="Pass a text to explain.")
    names = classifier.labels.texts
    if label is not None and classifier.task.name == REGRESSION:
        raise ConfigError("the model predicts a number, not labels", remedy="Leave out the label.")
    if label is not None and label not in names:
        raise ConfigError(
            f"the label {label!r} does not exist.{did_you_mean(label, names)}", remedy=f"Pass one of {listing(names)}."
        )
    tokens = classifier.encode(Texts([item]), truncate=False)
    scores = classifier.probabilities_of(classifier.read(tokens))
    target = classifier.task.explained(scores) if label is None else names.index(label)
    encoded = tokenizer(*segments(item), truncation=False, return_offsets_mapping=True, verbose=False)
    segment = encoded.sequence_ids()
    special = np.array([part is None for part in segment])
    tokens = replace(tokens, columns={**tokens.columns, "position": np.arange(len(special))})
    windows = tokens.windows(classifier.max_length)[0] if classifier.long == "window" else classifier.read(tokens)
    n, attributions, is_read = len(windows), np.zeros(len(special)), np.zeros(len(special), dtype=bool)
    change, gap, steps = 0.0, 0.0, 0
    for i in range(n):
        window = windows.take(np.array([i]))
        position = window.columns.pop("position")
        baseline = np.where(special[position], window.columns["input_ids"], tokenizer.pad_token_id)
        values, change_of_one, gap_of_one, steps_of_one = _attributions(classifier, window, baseline, target, deadline)
        attributions[position] += np.array(values) / n
        is_read[position] = True
        change, gap, steps = change + change_of_one / n, gap + gap_of_one / n, max(steps, steps_of_one)
    shift = (0, len(segments(item)[0]) + 1)  # the second segment follows the first in the flat text
    offsets = [
        (start + shift[part or 0], end + shift[part or 0])
        for part, (start, end) in zip(segment, encoded["offset_mapping"], strict=True)
    ]
    word_ids = [None if part is None else (part, word) for part, word in zip(segment, encoded.word_ids(), strict=True)]
    unread, read = _unread(len(flat(item)), offsets, is_read, special), np.flatnonzero(is_read)
    words = _words(
        flat(item), [word_ids[i] for i in read], [offsets[i] for i in read], attributions[read].tolist(), unread
    )
    return Explanation(
        text=flat(item),
        words=words,
        change=change,
        gap=gap,
        steps=steps,
        unread=sum(end - start for start, end in unread),
        **_answer(classifier, scores, target),
    )


def _answer(classifier: Classifier, scores: np.ndarray, target: int) -> dict[str, Any]:
    """Return the explained label and the prediction as fields of an `Explanation`; scores: shape (1, outputs)."""
    task, labels = classifier.task, classifier.labels
    columns = task.prediction_columns(scores, labels)
    predicted = {task.predicted_column: columns[task.predicted_column][0]}
    if "confidence" not in columns:
        return predicted
    return {"label_text": labels.texts[target], "probability": float(scores[0, target]), **predicted}


def explain_mistakes(
    classifier: Classifier, predictions: pd.DataFrame, lengths: np.ndarray, seconds: float
) -> list[dict[str, Any]]:
    """Explain the most confident mistakes within the time limit; none if not `can_explain`.

    After the first mistake, `EXPLAINED_TOKENS` limits the explanations as well.

    Args:
        classifier: the fitted model.
        predictions: of the test split, from `predictions_frame`.
        lengths: tokens of each text before truncation, shape (texts,).
        seconds: duration of the training.

    Returns:
        JSON-ready `Explanation` entries with ``row``, the row of the text in the source.
    """
    if not can_explain(classifier):
        return []
    wrong = classifier.task.mistakes(predictions, classifier.labels)
    explained: list[dict[str, Any]] = []
    left = EXPLAINED_TOKENS
    read = lengths if classifier.long == "window" else np.minimum(lengths, classifier.max_length)
    deadline = time.perf_counter() + max(EXPLAINED_SHARE * seconds, EXPLAINED_SECONDS)
    for row, text, tokens in zip(wrong["row"], texts_of(wrong), read[wrong.index], strict=True):
        if explained and tokens > left:
            break
        left -= tokens
        try:
            explained.append({"row": int(row), **explain(classifier, Texts([text]), deadline=deadline).to_dict()})
        except OutOfTimeError:
            break
    return explained


def _attributions(
    classifier: Classifier, text: Tokens, baseline: np.ndarray, target: int, deadline: float
) -> tuple[list[float], float, float, int]:
    """Return the attribution of every token, the change of the logit, the gap to it, and the integration points.

    Args:
        classifier: a fitted model.
        text: tokens of one text.
        baseline: token ids where the path starts, shape (tokens,).
        target: class index.
        deadline: as for `explain`.
    """
    import torch

    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise MissingPackageError("captum", "explaining") from error
    loaded, tokens = classifier.loaded, len(baseline)
    embed = loaded.model.get_input_embeddings()

    def logit(embeddings: torch.Tensor) -> torch.Tensor:
        return forward.logits_from_embeddings(loaded, text, embeddings)[:, target]

    began = time.perf_counter()
    with torch.no_grad():
        ids = torch.from_numpy(np.stack([baseline, text.columns["input_ids"]]).astype(np.int64))
        start, end = embed(ids.to(loaded.device)).split(1)
        change = float(logit(end) - logit(start))
    method = IntegratedGradients(logit)

    def attribute(steps: int, budget: int) -> torch.Tensor:
        return method.attribute(end, baselines=start, n_steps=steps, internal_batch_size=max(budget // tokens, 1))

    budget = POINTS_PER_PASS * tokens
    expected = FORWARD_PASSES * STEPS[0] * (time.perf_counter() - began) / 2
    for steps in STEPS:
        if time.perf_counter() + expected > deadline:
            raise OutOfTimeError
        began = time.perf_counter()
        message = f"memory is too small to explain a text of {tokens:,} tokens"
        with memory_errors(message, "Free memory, raise the memory limit, or explain a shorter text."):
            found, budget = retry_on_out_of_memory(partial(attribute, steps), budget, min_budget=tokens)
        attributions = found.sum(dim=-1)[0].detach().cpu().double()
        gap = float(attributions.sum()) - change
        least = float(attributions.abs().sum()) if classifier.task.name == REGRESSION else 1.0
        if abs(gap) <= TOLERANCE * max(abs(change), least):
            break
        expected = 2 * (time.perf_counter() - began)
    return attributions.tolist(), change, gap, steps


def _unread(
    length: int, offsets: list[tuple[int, int]], is_read: np.ndarray, special: np.ndarray
) -> list[tuple[int, int]]:
    """Return start and end of each part of a text that the model does not read, in characters.

    Args:
        length: of the text, in characters.
        offsets: start and end of each token.
        is_read, special: whether the model reads each token, and whether the token is special, shape (tokens,).
    """
    parts: list[tuple[int, int]] = []
    end, skipped = 0, False
    for (start, stop), read in ((offsets[i], is_read[i]) for i in (~special).nonzero()[0]):
        if read:
            parts += [(end, start)] if skipped else []
            end = stop
        skipped = not read
    return [*parts, (end, length)] if skipped else parts


def _words(
    text: str,
    word_ids: Sequence[Any],
    offsets: Sequence[tuple[int, int]],
    attributions: list[float],
    unread: list[tuple[int, int]],
) -> tuple[Word, ...]:
    words: list[Word] = []
    last, of_spaces = None, 0.0
    for word, (start, end), value in zip(word_ids, offsets, attributions, strict=True):
        if word is None:
            continue
        if not text[start:end].strip():  # white space that is a token belongs to the next word
            of_spaces += value
            continue
        value, of_spaces = value + of_spaces, 0.0
        start += len(text[start:end]) - len(text[start:end].lstrip())  # some tokenizers include the space before
        end_before = words[-1].end if words else -1
        is_joined = start == end_before and (_JOINT.match(text, start) or _JOINT.match(text, start - 1))
        if word == last or start < end_before or is_joined:  # the name of an emoji has overlapping words
            first = words.pop()
            start, value = first.start, first.attribution + value
        words.append(Word(text[start:end], start, end, value))
        last = word
    if words:
        words[-1] = replace(words[-1], attribution=words[-1].attribution + of_spaces)
    ends = [*(word.start for word in words[1:]), *(word.end for word in words[-1:])]
    return tuple(
        replace(word, after=" … " if any(word.end <= a < end for a, _ in unread) else text[word.end : end])
        for word, end in zip(words, ends, strict=True)
    )
