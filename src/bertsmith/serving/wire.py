"""The formats that are spoken: of text-embeddings-inference, of Hugging Face's inference, and our own answers.

Pydantic models; they are the OpenAPI description, too.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from bertsmith.inference.labelling import softmax

Text = Annotated[str, StringConstraints(min_length=1, pattern=r"[^\s\x00-\x1f\x7f\x81\x8d\x8f\x90\x9d\ufeff]")]
"""A text of which something is left when it was normalised."""


_Alone = Annotated[list[Text], Field(min_length=1, max_length=1)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class PredictRequest(_Message):
    """What text-embeddings-inference takes: a text, or a batch in which every text stands in a list of its own."""

    inputs: Text | Annotated[list[_Alone], Field(min_length=1)] = Field(
        description='A text, or a batch as [["first text"], ["second text"]]. A flat list of two strings would be a '
        "pair in this format: it is refused. POST / takes flat lists as batches.",
        examples=["great phone", [["great phone"], ["never again"]]],
    )
    truncate: bool = Field(False, description="Cut texts that are too long; otherwise they are refused with 413.")
    truncation_direction: Literal["Left", "Right", "left", "right"] = Field(
        "Right", description="Which end is cut off: Right keeps the beginning."
    )
    raw_scores: bool = Field(False, description="Return logits and not probabilities.")


class Parameters(_Message):
    """Of Hugging Face's format."""

    top_k: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        None, description="Labels to return; one unless given."
    )
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = Field(
        None, description="What scores are of logits; softmax unless given."
    )


class PipelineRequest(_Message):
    """What Hugging Face's inference takes: a text, or a flat list of texts."""

    inputs: Text | Annotated[list[Text], Field(min_length=1)] = Field(
        description="A text, or a batch of texts.", examples=["great phone", ["great phone", "never again"]]
    )
    parameters: Parameters = Parameters()


class ExplainRequest(_Message):
    """A text whose words are to be weighed."""

    inputs: Text = Field(examples=["great phone"])


class Score(BaseModel):
    """A label, and what it scores."""

    label: str
    score: float


class Problem(BaseModel):
    """What went wrong, as text-embeddings-inference says it."""

    error: str
    error_type: str


class Health(BaseModel):
    """Whether the server lives, or is ready."""

    status: str


def scores(logits: np.ndarray, function: str) -> np.ndarray:
    """Return what scores are of logits, both of shape (texts, classes)."""
    if function == "none":
        return logits
    if function == "sigmoid":
        result: np.ndarray = 1 / (1 + np.exp(-logits))
        return result
    return softmax(logits)


def ranked(values: np.ndarray, labels: tuple[str, ...], top_k: int | None = None) -> list[list[dict[str, Any]]]:
    """Return the labels of every text with their scores, best first, from scores of shape (texts, classes)."""
    order = np.argsort(-values, axis=1, kind="stable")[:, :top_k]
    return [
        [{"label": labels[c], "score": float(row[c])} for c in best] for row, best in zip(values, order, strict=True)
    ]
