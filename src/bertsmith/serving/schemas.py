"""Request and response models, which are also the OpenAPI description, and the bodies of errors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from bertsmith.inference.predictor import softmax

Text = Annotated[str, StringConstraints(min_length=1, pattern=r"[^\s\x00-\x1f\x7f\x81\x8d\x8f\x90\x9d\ufeff]")]
"""A text that is not empty after normalisation."""


_SingleText = Annotated[list[Text], Field(min_length=1, max_length=1)]


class _RequestModel(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class PredictRequest(_RequestModel):
    """Request of text-embeddings-inference: a text, or a batch with one list per text."""

    inputs: Text | Annotated[list[_SingleText], Field(min_length=1)] = Field(
        description='A text, or a batch such as [["first text"], ["second text"]]. In this format a flat list of two '
        "strings is a pair of texts, so flat lists are refused. POST / accepts flat lists as batches.",
        examples=["great phone", [["great phone"], ["never again"]]],
    )
    truncate: bool = Field(
        False, description="Accept long texts that the model does not read as a whole; otherwise status 413."
    )
    truncation_direction: Literal["Left", "Right", "left", "right"] = Field(
        "Right", description="Side that is truncated; Right keeps the beginning."
    )
    raw_scores: bool = Field(False, description="Return logits instead of probabilities.")


class Parameters(_RequestModel):
    """Parameters of Hugging Face's inference API."""

    top_k: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        None, description="Number of labels to return; without it one label, with null all labels."
    )
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = Field(
        None, description="Function that turns logits into scores; softmax by default."
    )


class PipelineRequest(_RequestModel):
    """Request of Hugging Face's inference API: a text, or a flat list of texts."""

    inputs: Text | Annotated[list[Text], Field(min_length=1)] = Field(
        description="A text, or a batch of texts.", examples=["great phone", ["great phone", "never again"]]
    )
    parameters: Parameters = Parameters()


class ExplainRequest(_RequestModel):
    """A text to explain."""

    inputs: Text = Field(examples=["great phone"])


class Score(BaseModel):
    """A label and its score."""

    label: str
    score: float


class Problem(BaseModel):
    """An error, in the format of text-embeddings-inference."""

    error: str
    error_type: str


class Health(BaseModel):
    """State of the server."""

    status: str


def apply_function(logits: np.ndarray, function: str) -> np.ndarray:
    """Return scores from logits, both of shape (texts, classes); ``function``: softmax, sigmoid or none."""
    if function == "none":
        return logits
    if function == "sigmoid":
        result: np.ndarray = 1 / (1 + np.exp(-logits))
        return result
    return softmax(logits)


def rank_labels(scores: np.ndarray, labels: tuple[str, ...], top_k: int | None = None) -> list[list[dict[str, Any]]]:
    """Return the ``top_k`` labels of each text with their scores, best first; ``scores`` has shape (texts, classes)."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return [
        [{"label": labels[c], "score": float(row[c])} for c in best] for row, best in zip(scores, order, strict=True)
    ]


ERROR_TYPES = {413: "Validation", 422: "Validation", 429: "Overloaded", 503: "Unhealthy"}
"""``error_type`` by status, as in text-embeddings-inference."""
MESSAGES = {
    "string_pattern_mismatch": "the text is empty",
    "extra_forbidden": "unknown parameter; /docs lists the parameters",
    "model_attributes_type": 'expected an object such as {"inputs": "a text"}',
}
"""Messages that replace pydantic's, by its error type."""


class RequestError(Exception):
    """A request that gets an error response.

    Args:
        status: HTTP status.
        error: message, starting with the field that is wrong.
    """

    def __init__(self, status: int, error: str) -> None:
        super().__init__(error)
        self.status, self.error = status, error


def validation_message(error: RequestValidationError, *, nested: bool) -> str:
    """Return one message per invalid field, each with its position; keep one of several alternatives per field.

    Args:
        error: the validation error.
        nested: whether this format writes a batch as a list of lists, not as a flat list.
    """
    messages: dict[str, str] = {}
    entries = error.errors()
    for entry in entries:
        _, *parts = entry["loc"]
        in_list = len(parts) > 2 and parts[0] == "inputs"
        is_flat = in_list and len(parts) == 3 and isinstance(parts[2], int) and isinstance(entry["input"], str)
        if nested and (is_flat or (in_list and entry["type"] == "too_long")):
            return (
                'inputs: write a batch as [["a"], ["b"]]; a flat list, or two texts in one list, is a pair of texts, '
                "which this classifier does not support. POST / accepts flat lists as batches"
            )
        of_list = entry["type"] == "string_type" and isinstance(entry["input"], list) and len(entries) > 1
        if of_list and (nested or not any(isinstance(part, int) for part in parts)):
            continue  # the alternative that inputs is a single text
        path = [part for i, part in enumerate(parts) if isinstance(part, int) or i == 0 or parts[0] == "parameters"]
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        message = MESSAGES.get(entry["type"], entry["msg"])
        messages.setdefault(field or "the body", f"{message[0].lower()}{message[1:]}")
    return "; ".join(f"{field}: {message}" for field, message in list(messages.items())[:5])


def error_response(status: int, error: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return the response for an error."""
    error_type = ERROR_TYPES.get(status, "Backend" if status >= 500 else "Validation")
    return JSONResponse({"error": error, "error_type": error_type}, status_code=status, headers=headers)


def queue_full_response(seconds: int) -> JSONResponse:
    """Return the response to a request that a full queue refuses."""
    return error_response(429, f"the queue is full: retry in {seconds} s", {"Retry-After": str(seconds)})
