"""What a request is told when it is not answered, as text-embeddings-inference says it."""

from __future__ import annotations

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

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
