"""Texts laid end to end without padding: what works token by token has no padding to work on.

Only attention needs the texts apart. There they are spread into a padded batch and gathered again; all else, the matrix
products above all, sees the tokens that are there and no others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere

from bertsmith.model.checkpoint import POSITION_OFFSET

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "bertsmith_packed"
"""Of our attention among those of transformers."""
STACKS = {
    "bert": "encoder",
    "roberta": "encoder",
    "xlm-roberta": "encoder",
    "electra": "encoder",
    "distilbert": "transformer",
}
"""The layers of the body, by model type: of what comes out of them, the head reads the first token of every text."""


@dataclass(frozen=True)
class _Layout:
    """How packed texts lie in a padded batch: its shape, the places of their tokens, and which places are filled."""

    texts: int
    width: int
    places: torch.Tensor
    mask: torch.Tensor


_layout: ContextVar[_Layout | None] = ContextVar("layout", default=None)


def can_pack(model: PreTrainedModel) -> bool:
    """Return whether a model can be run on packed texts: on a CPU, with learned positions and the usual attention."""
    config = model.config
    return (
        model.device.type == "cpu"
        and config.model_type in STACKS
        and getattr(config, "position_embedding_type", None) in (None, "absolute")
        and config._attn_implementation in ("sdpa", NAME)
        and not getattr(config, "is_decoder", False)
    )


@contextmanager
def packed(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """Give the inputs by which a model, while in this context, computes the logits of a padded batch from packed texts.

    Args:
        model: one that `can_pack`.
        batch: ``input_ids``, ``attention_mask`` and what else the model takes, shape (texts, tokens), padded on either
            side; what has another shape, such as ``labels``, is passed on.

    Yields:
        The inputs, of shape (1, tokens of all texts); the model's logits have shape (texts, classes) as ever.
    """
    mask = batch["attention_mask"].bool()
    texts, width = mask.shape
    offset = model.config.pad_token_id + 1 if model.config.model_type in POSITION_OFFSET else 0
    positions = mask.cumsum(dim=1) - 1 + offset
    inputs = {
        name: values[mask][None] if values.shape == mask.shape else values
        for name, values in batch.items()
        if name != "attention_mask"
    }
    first = torch.cat([mask.new_zeros(1, dtype=torch.long), mask.sum(dim=1).cumsum(0)[:-1]])
    layout = _Layout(texts, width, mask.flatten().nonzero()[:, 0], mask[:, None, None, :])

    def keep_first(module: Any, args: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[0].index_select(0, first)[:, None]
        return output

    config = model.config
    before = config._attn_implementation
    hook = getattr(model.base_model, STACKS[config.model_type]).register_forward_hook(keep_first)
    token = _layout.set(layout)
    config._attn_implementation = NAME
    try:
        yield {**inputs, "position_ids": positions[mask][None]}
    finally:
        config._attn_implementation = before
        _layout.reset(token)
        hook.remove()


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each text; query, key and value have shape (1, heads, tokens of all texts, size of a head)."""
    layout = _layout.get()
    assert layout is not None
    heads, size = query.shape[1], query.shape[3]

    def spread(x: torch.Tensor) -> torch.Tensor:
        rows = x.transpose(1, 2).reshape(-1, heads * size)
        wide: torch.Tensor = _Spread.apply(rows, layout.places, layout.texts * layout.width)
        return wide.view(layout.texts, layout.width, heads, size).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(
        spread(query), spread(key), spread(value), layout.mask, dropout_p=dropout, scale=scaling
    )
    rows: torch.Tensor = _Gather.apply(mixed.transpose(1, 2).reshape(-1, heads * size), layout.places)
    return rows.view(1, -1, heads, size), None


class _Spread(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """Rows put into their places among n; the others are zero."""

    @staticmethod
    def forward(context: Any, rows: torch.Tensor, places: torch.Tensor, n: int) -> torch.Tensor:
        """Return shape (n, width) of rows (tokens, width)."""
        context.save_for_backward(places)
        return rows.new_zeros(n, rows.shape[1]).index_copy_(0, places, rows)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient of the rows."""
        (places,) = context.saved_tensors
        return gradient.index_select(0, places), None, None


class _Gather(torch.autograd.Function):  # type: ignore[misc]
    """The rows in some places; what stands in the others is dropped."""

    @staticmethod
    def forward(context: Any, wide: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Return shape (tokens, width) of rows (n, width)."""
        context.save_for_backward(places)
        context.n = len(wide)
        return wide.index_select(0, places)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the gradient of all places."""
        (places,) = context.saved_tensors
        return gradient.new_zeros(context.n, gradient.shape[1]).index_copy_(0, places, gradient), None


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


_register()
