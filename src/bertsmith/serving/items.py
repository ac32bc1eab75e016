"""The texts of a request, whatever its format."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from bertsmith.data.template import Template, Texts, is_empty, normalise_text, segments
from bertsmith.errors import DataError
from bertsmith.serving.middleware import Limits
from bertsmith.serving.request_errors import RequestError, example_request


def read_items(
    items: Sequence[Any], template: Template, limits: Limits, field: str = "inputs", *, allow_empty: bool = False
) -> Texts:
    """Return the texts of a request, with lone surrogates replaced, which no tokenizer accepts.

    Args:
        items: strings, lists of one or two strings, and objects of columns.
        template: the columns that the model reads.
        limits: limits of a request.
        field: where the items are, for messages.
        allow_empty: accept empty texts.

    Raises:
        RequestError: if there are too many texts, one is empty or too long, or one does not fit the template.
    """
    if len(items) > limits.texts:
        what = f"{field}: {len(items):,} texts, at most {limits.texts:,} in one request"
        raise RequestError(422, what, "Send several requests; --max-texts of the server sets the limit.")
    try:
        texts = template.read([_as_item(item) for item in items])
    except DataError as error:
        what = re.sub(r"^item (\d+) (is )?", rf"{field}[\1]: ", error.what)
        raise RequestError(422, what, example_request(template, field), logged=False) from error
    for i, text in enumerate(texts):
        n = sum(map(len, segments(text)))
        if n > limits.characters:
            what = f"{field}[{i}]: {n:,} characters, at most {limits.characters:,}"
            raise RequestError(422, what, "Shorten the text; --max-characters of the server sets the limit.")
        if not allow_empty and is_empty(normalise_text(text)):
            what = "the text is empty" if isinstance(text, str) else "a text of the pair is empty"
            raise RequestError(422, f"{field}[{i}]: {what}", "Send a text with at least one visible character.")
    return texts


def _as_item(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, list):
        parts = tuple(map(_as_item, value))
        return parts[0] if len(parts) == 1 else parts
    if isinstance(value, dict):
        return {_as_item(name): _as_item(cell) for name, cell in value.items()}
    return value
