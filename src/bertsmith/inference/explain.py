"""Which words moved a prediction: integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365), by captum."""

from __future__ import annotations

import importlib.util
import math
import re
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from bertsmith.compute.memory import is_out_of_memory, retry_on_out_of_memory
from bertsmith.data.texts import normalise
from bertsmith.errors import ConfigError, DataError, DeviceError, MissingPackageError, did_you_mean, listing
from bertsmith.model import forward
from bertsmith.model.batch import TokenBatch
from bertsmith.model.tokenizer import Tokens

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch

    from bertsmith.inference.classifier import Classifier

STEPS = (32, 64, 128, 256, 512)
"""Points of the path from nothing to the text that are tried, until the sum is right."""
TOLERANCE = 0.05
"""How far the attributions' sum may be from the change in the logit, as a share of that, or of 1 if it is less."""
FORWARD_PASSES = 2
"""Forward passes that a point costs in time, its backward pass counted and batching too."""
EXPLAINED_TOKENS = 256
"""Of test texts that training explains at its end: some seconds' work for MiniLM on two cores."""
EXPLAINED_SHARE, EXPLAINED_SECONDS = 0.05, 2.0
"""Explanations take at most this share of the training time, or this many seconds if that is more."""
AT_ONCE = 16
"""Points computed in one pass."""
_JOINT = re.compile(r"(?<=\w)['’.](?=\w)|(?<=\d),(?=\d)")
"""What is inside a word, though tokenizers cut there: ``Don't``, ``3.5``, ``1,000``."""


@dataclass(frozen=True)
class Word:
    """A word of a text.

    Attributes:
        text: as it stands there.
        start, end: its place, in characters of the explained text.
        attribution: what it adds to the logit of the label; what is negative speaks against it.
        after: the characters between it and the next word; ``text + after`` of all words is what the model reads.
    """

    text: str
    start: int
    end: int
    attribution: float
    after: str = ""


@dataclass(frozen=True)
class Explanation:
    """Why a text has a label.

    Attributes:
        text: the text, normalised.
        label_text: the label that is explained.
        predicted_text: the label the model gives.
        probability: of the label that is explained.
        words: those the model reads, in order; what was cut off is not among them.
        change: of the logit, from a text of nothing but padding to this one.
        gap: between the sum of the attributions and that change.
        steps: points of the path.
        unread: characters at the end that are beyond the maximum length.
    """

    text: str
    label_text: str
    predicted_text: str
    probability: float
    words: tuple[Word, ...]
    change: float
    gap: float
    steps: int
    unread: int

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        return asdict(self)


class OutOfTimeError(Exception):
    """An explanation would not be ready before its deadline."""


def explain(classifier: Classifier, text: str, label: str | None = None, *, deadline: float = math.inf) -> Explanation:
    """Say which words moved the logit of a label, by how much.

    The path leads from padding tokens to those of the text, its special tokens aside; what the pieces of a word add is
    summed. The number of points is doubled until the attributions sum to the change in the logit.

    Args:
        classifier: a fitted model.
        text: one text.
        label: a label text; the predicted one unless given.
        deadline: by when to be ready, on the clock of `time.perf_counter`.

    Raises:
        OutOfTimeError: as soon as it is foreseeable that the deadline cannot be met.
        MissingPackageError: if the package captum is missing.
        ConfigError: if there is no such label.
        DataError: if the text is empty.
        DeviceError: if memory does not suffice.
    """
    import torch

    text = normalise(text)
    if not text:
        raise DataError("the text is empty", remedy="Give a text to explain.")
    names = classifier.labels.texts
    if label is not None and label not in names:
        raise ConfigError(
            f"there is no label {label!r}.{did_you_mean(label, names)}", remedy=f"Give one of {listing(names)}."
        )
    probabilities = classifier.predict_proba([text])[0]
    predicted = int(probabilities.argmax())
    target = predicted if label is None else names.index(label)
    tokenizer = classifier.loaded.tokenizer
    encoded = tokenizer(
        text,
        truncation=True,
        max_length=classifier.loaded.max_length,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    batch = TokenBatch.from_tokens(Tokens.from_lists({name: [encoded[name]] for name in classifier.columns}))
    special = torch.tensor(encoded["special_tokens_mask"]).bool()
    nothing = batch.input_ids.masked_fill(~special, tokenizer.pad_token_id)
    of_tokens, change, gap, steps = _attributions(classifier, batch, nothing, target, deadline)
    words = _words(text, encoded.word_ids(), encoded["offset_mapping"], of_tokens)
    is_truncated = len(tokenizer(text, verbose=False)["input_ids"]) > len(of_tokens)
    return Explanation(
        text=text,
        label_text=names[target],
        predicted_text=names[predicted],
        probability=float(probabilities[target]),
        words=words,
        change=change,
        gap=gap,
        steps=steps,
        unread=len(text) - words[-1].end if is_truncated and words else 0,
    )


def explain_mistakes(
    classifier: Classifier, predictions: pd.DataFrame, lengths: np.ndarray, seconds: float
) -> list[dict[str, Any]]:
    """Explain the most confident mistakes, as far as `EXPLAINED_TOKENS` and the time allow; none without captum.

    Args:
        classifier: as it stands on disk.
        predictions: of `predictions_frame`, for the test split.
        lengths: tokens of each of its texts, shape (texts,).
        seconds: that training took.

    Returns:
        JSON-ready: `Explanation` with ``row``, the place of the text in the source.
    """
    if importlib.util.find_spec("captum") is None:
        return []
    wrong = predictions[predictions["label"] != predictions["predicted"]]
    wrong = wrong.sort_values("confidence", ascending=False, kind="stable")
    explained, left = [], EXPLAINED_TOKENS
    deadline = time.perf_counter() + max(EXPLAINED_SHARE * seconds, EXPLAINED_SECONDS)
    for row, text, tokens in zip(wrong["row"], wrong["text"], lengths[wrong.index], strict=True):
        if tokens > left:
            break
        left -= tokens
        try:
            explained.append({"row": int(row), **explain(classifier, text, deadline=deadline).to_dict()})
        except OutOfTimeError:
            break
    return explained


def _attributions(
    classifier: Classifier, batch: TokenBatch, nothing: torch.Tensor, target: int, deadline: float
) -> tuple[list[float], float, float, int]:
    """Return the attribution of every token, the change of the logit, the gap to it, and the points it took.

    Args:
        classifier: a fitted model.
        batch: one text.
        nothing: token ids that the path starts from, shape (tokens,).
        target: class index.
        deadline: value of ``time.perf_counter()`` after which nothing more is begun.

    Raises:
        OutOfTimeError: if it would not be done by then.
        DeviceError: if memory does not suffice.
    """
    import torch

    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise MissingPackageError("captum", "explaining") from error
    loaded, tokens = classifier.loaded, len(nothing)
    embed = loaded.model.get_input_embeddings()

    def logit(embeddings: torch.Tensor) -> torch.Tensor:
        return forward.logits_from_embeddings(loaded, batch, embeddings)[:, target]

    began = time.perf_counter()
    with torch.no_grad():
        start, end = (embed(ids.to(loaded.device))[None] for ids in (nothing, batch.input_ids))
        change = float(logit(end) - logit(start))
    method = IntegratedGradients(logit)

    def attribute(steps: int, budget: int) -> torch.Tensor:
        found: torch.Tensor = method.attribute(
            end, baselines=start, n_steps=steps, internal_batch_size=max(budget // tokens, 1)
        )
        return found

    budget = AT_ONCE * tokens
    expected = FORWARD_PASSES * STEPS[0] * (time.perf_counter() - began) / 2
    for steps in STEPS:
        if time.perf_counter() + expected > deadline:
            raise OutOfTimeError
        began = time.perf_counter()
        try:
            found, budget = retry_on_out_of_memory(partial(attribute, steps), budget, min_budget=tokens)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise DeviceError(
                f"memory does not suffice to explain a text of {tokens:,} tokens",
                remedy="Free memory, raise its limit, or explain a shorter text.",
            ) from error
        of_tokens = found.sum(dim=-1)[0].detach().cpu().double()
        gap = float(of_tokens.sum()) - change
        if abs(gap) <= TOLERANCE * max(abs(change), 1.0):
            break
        expected = 2 * (time.perf_counter() - began)
    return of_tokens.tolist(), change, gap, steps


def _words(
    text: str, word_of: list[int | None], places: list[tuple[int, int]], of_tokens: list[float]
) -> tuple[Word, ...]:
    words: list[Word] = []
    last = None
    for word, (start, end), value in zip(word_of, places, of_tokens, strict=True):
        if word is None or start == end:
            continue
        start += len(text[start:end]) - len(text[start:end].lstrip())  # some tokenizers count the space before
        before = words[-1].end if words else -1
        joined = start == before and (_JOINT.match(text, start) or _JOINT.match(text, start - 1))
        if word == last or start < before or joined:  # the words of an emoji's name are one
            first = words.pop()
            start, value = first.start, first.attribution + value
        words.append(Word(text[start:end], start, end, value))
        last = word
    ends = [*(word.start for word in words[1:]), *(word.end for word in words[-1:])]
    return tuple(replace(word, after=text[word.end : end]) for word, end in zip(words, ends, strict=True))
