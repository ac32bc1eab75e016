"""The formats that are spoken: of text-embeddings-inference, of Hugging Face's inference, and our own answers.

Pydantic models; they are the OpenAPI description, too.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from bertsmith.inference.predictor import softmax

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


KINDS = {413: "Validation", 422: "Validation", 429: "Overloaded", 503: "Unhealthy"}
"""What an error is called, by its status; ``Backend`` otherwise, as in text-embeddings-inference."""
PLAIN = {
    "string_pattern_mismatch": "there is nothing in the text",
    "extra_forbidden": "there is no such parameter; /docs says which there are",
    "model_attributes_type": 'an object is expected, as {"inputs": "a text"}',
}
"""What is said of an error instead of pydantic's message."""


class Refused(Exception):  # noqa: N818 - it is an answer
    """A request that is answered with an error."""

    def __init__(self, status: int, error: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(error)
        self.status, self.error, self.headers = status, error, headers


def what_is_wrong(error: RequestValidationError, *, nested: bool) -> str:
    """Say where in the body what is wrong, each place once; the ways it might have been right are left out.

    Args:
        error: what was found.
        nested: whether a batch is a list of lists in this format, not a flat list.
    """
    found: dict[str, str] = {}
    entries = error.errors()
    for entry in entries:
        _, *parts = entry["loc"]
        deep = len(parts) > 2 and parts[0] == "inputs"
        flat = (
            len(parts) == 3 and parts[0] == "inputs" and isinstance(parts[2], int) and isinstance(entry["input"], str)
        )
        if nested and (flat or (deep and entry["type"] == "too_long")):
            return (
                'inputs: a batch is [["a"], ["b"]] here; a flat list, or two texts in one, would be a pair, which this '
                "classifier does not take. POST / takes flat lists as batches"
            )
        of_list = entry["type"] == "string_type" and isinstance(entry["input"], list) and len(entries) > 1
        if of_list and (nested or not any(isinstance(part, int) for part in parts)):
            continue  # that it might have been a single text
        kept = [part for i, part in enumerate(parts) if isinstance(part, int) or i == 0 or parts[0] == "parameters"]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in kept).lstrip(".")
        plain = PLAIN.get(entry["type"], entry["msg"])
        found.setdefault(place or "the body", f"{plain[0].lower()}{plain[1:]}")
    return "; ".join(f"{place}: {message}" for place, message in list(found.items())[:5])


def problem(status: int, error: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return the answer that says what is wrong."""
    kind = KINDS.get(status, "Backend" if status >= 500 else "Validation")
    return JSONResponse({"error": error, "error_type": kind}, status_code=status, headers=headers)
