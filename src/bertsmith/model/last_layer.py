"""The last layer for the first token of every text alone: of what it makes of the others the head reads nothing.

They are still attended to, by keys and values made of what the layer before says of them. Queries, what follows
attention, and the feed-forward pair are computed for one token of a text. Logits and gradients are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "bertsmith_last_layer"
"""Of our attention for padded batches, among those of transformers."""
_LIKE_BERT = ("encoder.layer", "attention.self.key", "attention.self.value")
LAYERS = {
    "bert": _LIKE_BERT,
    "roberta": _LIKE_BERT,
    "xlm-roberta": _LIKE_BERT,
    "electra": _LIKE_BERT,
    "distilbert": ("transformer.layer", "attention.k_lin", "attention.v_lin"),
}
"""Where the layers are in the body, and what makes keys and values in each, by model type."""

_made: ContextVar[list[torch.Tensor] | None] = ContextVar("made", default=None)
"""Keys and values of all tokens, from when the last layer makes them until its attention takes them."""


def can_shorten(model: PreTrainedModel) -> bool:
    """Return whether the head of a model reads the first token alone, and its layers are built as is known here."""
    config = model.config
    return (
        config.model_type in LAYERS
        and not getattr(config, "chunk_size_feed_forward", 0)
        and not getattr(config, "is_decoder", False)
    )


@contextmanager
def shortened(model: PreTrainedModel, first: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Have a model, while in this context, compute the last layer for some tokens only.

    Args:
        model: one that `can_shorten`, and whose attention asks `of_all_tokens` for keys and values.
        first: returns of shape (texts, tokens, n) the tokens that the head reads, shape (texts, some tokens, n).
    """
    place, *names = LAYERS[model.config.model_type]
    layer = model.base_model.get_submodule(place)[-1]
    made: list[torch.Tensor] = []
    rows, n = torch.empty(0), 0

    def begin(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        nonlocal rows, n
        rows, kept = inputs[0], first(inputs[0])
        n = kept.shape[1]
        made.clear()
        return (kept, *inputs[1:])

    def keep(_: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        made.append(output)
        return output[:, :1].expand(-1, n, -1)  # what the layer gives a shape and passes on to attention

    with ExitStack() as undo:
        undo.callback(layer.register_forward_pre_hook(begin).remove)
        for linear in map(layer.get_submodule, names):
            undo.callback(linear.register_forward_pre_hook(lambda *_: (rows,)).remove)
            undo.callback(linear.register_forward_hook(keep).remove)
        undo.callback(_made.reset, _made.set(made))
        yield


@contextmanager
def shortened_if_it_can(model: PreTrainedModel) -> Iterator[None]:
    """Have a model that can, while in this context, compute the last layer of padded batches for first tokens alone."""
    config = model.config
    if not can_shorten(model) or config._attn_implementation != "sdpa":
        yield
        return
    config._attn_implementation = NAME
    try:
        with shortened(model, lambda rows: rows[:, :1]):
            yield
    finally:
        config._attn_implementation = "sdpa"


def of_all_tokens() -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return, in the attention of a last layer that is `shortened`, keys and values, shape (texts, tokens, n)."""
    made = _made.get()
    if not made:
        return None
    key, value = made
    made.clear()
    return key, value


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend in padded batches, as transformers does with torch's attention."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if found := of_all_tokens():
        key, value = (x.unflatten(-1, (query.shape[1], -1)).transpose(1, 2) for x in found)
        attention_mask = None if attention_mask is None else attention_mask[:, :, :1]
    attended: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return attended


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


_register()
