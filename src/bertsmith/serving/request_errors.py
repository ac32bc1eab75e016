"""Errors of requests, and their responses."""

from __future__ import annotations

import json
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from bertsmith.data.template import Template
from bertsmith.serving.schemas import INPUTS, TASKS

ERROR_TYPES = {413: "Validation", 422: "Validation", 429: "Overloaded", 503: "Unhealthy"}
"""``error_type`` by status, as in text-embeddings-inference."""
MESSAGES = {
    "string_pattern_mismatch": "the text is empty",
    "string_too_short": "the text is empty",
    "string_type": "it is not a text",
    "list_type": "it is not a list",
    "missing": "it is missing",
    "too_short": "it is empty",
    "extra_forbidden": "unknown parameter",
    "union_tag_invalid": "it is not a single text",
    "model_attributes_type": "it is not an object",
}
"""Messages that replace pydantic's, by its error type."""


class RequestError(Exception):
    """A request that gets an error response.

    Args:
        status: HTTP status.
        error: what is wrong, starting with the field.
        remedy: what to do.
        logged: whether ``error`` may be logged, because it quotes no text of the request.
    """

    def __init__(self, status: int, error: str, remedy: str, *, logged: bool = True) -> None:
        super().__init__(error)
        self.status, self.error, self.remedy, self.logged = status, error, remedy, logged


def example_request(template: Template, field: str = "inputs") -> str:
    """Return an example request as the remedy for a body without the columns of the model; ``field`` has the items."""
    example: Any = template.example
    if field == "tasks":
        example = {"data": {"text": example} if isinstance(example, str) else example}
    items = example if field in ("inputs", "input") else [example]
    return f"For example, send {json.dumps({field: items}, ensure_ascii=False)}."


def validation_message(error: RequestValidationError, template: Template, *, nested: bool) -> tuple[str, str]:
    """Return one message per invalid field, each with its position, and what to do.

    Of several alternatives per field, the first one counts.

    Args:
        error: the validation error.
        template: the columns that the model reads.
        nested: whether this format writes a batch as a list of lists, not as a flat list.
    """
    messages: dict[str, str] = {}
    for entry in error.errors():
        parts = [part for part in entry["loc"][1:] if part not in (INPUTS, TASKS)]
        is_flat = entry["type"] == "list_type" and isinstance(entry["input"], str)
        if nested and "row" in parts and (is_flat or entry["type"] == "too_long"):
            return (
                "inputs: in this format, a list of texts is a pair, not a batch",
                'Write a batch as [["a"], ["b"]], or send it to POST /, which accepts flat lists as batches.',
            )
        column = parts.index("columns") + 1 if "columns" in parts else None
        path = [
            part
            for i, part in enumerate(parts)
            if isinstance(part, int) or i in (0, column) or parts[0] == "parameters"
        ]
        field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        message = MESSAGES.get(entry["type"], entry["msg"])
        messages.setdefault(field or "the body", f"{message[0].lower()}{message[1:]}")
    about_texts = any(field.startswith(("inputs", "the body")) for field in messages)
    remedy = example_request(template) if about_texts else "/docs lists the parameters and their values."
    return "; ".join(f"{field}: {message}" for field, message in list(messages.items())[:5]), remedy


def error_response(status: int, error: str, remedy: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return the response for an error, with what is wrong and what to do."""
    error_type = ERROR_TYPES.get(status, "Backend" if status >= 500 else "Validation")
    return JSONResponse({"error": f"{error}. {remedy}", "error_type": error_type}, status_code=status, headers=headers)


def queue_full_response(seconds: int) -> JSONResponse:
    """Return the response to a request that a full queue refuses."""
    return error_response(429, "the queue is full", f"Retry in {seconds} s.", {"Retry-After": str(seconds)})
