"""Texts laid end to end without padding: what works token by token has no padding to work on.

Only attention needs the texts apart (`bertsmith.model.packed_attention`); all else, the matrix products above all, sees
the tokens that are there and no others. On a CPU the last layer sees the first of each alone, where the head reads no
other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere

from bertsmith.model.checkpoint import POSITION_OFFSET
from bertsmith.model.last_layer import can_shorten, shortened
from bertsmith.model.packed_attention import NAME, Layout, at_hand, moved

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STARTS = "starts"
SIZES = 16
"""Empty tokens are added to a micro-batch so that between a number of tokens and its double there are only so many
sizes: 3 % more tokens at most on average, and memory that was freed fits what comes next.

With any number of tokens training took about twice the memory on a CPU (`benchmarks/memory.py`); a GPU has few sizes to
record (`bertsmith.training.graphs`), all of them multiples its matrix units like.
"""
STACKS = {
    "bert": "encoder",
    "roberta": "encoder",
    "xlm-roberta": "encoder",
    "electra": "encoder",
    "distilbert": "transformer",
    "modernbert": "",
}
"""What ends the body, by model type (empty: all of it): of what comes out, the head reads a row for every text."""


def can_pack(model: PreTrainedModel) -> bool:
    """Return whether a model can be run on packed texts: with positions that are given, and the usual attention."""
    config = model.config
    return (
        model.device.type in ("cpu", "cuda")
        and config.model_type in STACKS
        and getattr(config, "position_embedding_type", None) in (None, "absolute")
        and config._attn_implementation in ("sdpa", NAME)
        and not getattr(config, "is_decoder", False)
    )


def can_record(model: PreTrainedModel) -> bool:
    """Return whether nothing of a model that `can_pack` depends on the lengths of texts but by its inputs, on a GPU."""
    return model.device.type == "cuda" and getattr(model.config, "classifier_pooling", "cls") == "cls"


@contextmanager
def packed(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """Give the inputs by which a model, while in this context, computes the logits of a padded batch from packed texts.

    Args:
        model: one that `can_pack`.
        batch: ``input_ids``, ``attention_mask`` and what else the model takes, on the CPU, shape (texts, tokens),
            padded on either side; what has another shape, such as ``labels``, is passed on.

    Yields:
        The inputs on the model's device, of shape (1, tokens of all texts, and empty ones after them); the model's
        logits have shape (texts, classes) as ever.
    """
    inputs = {name: moved(values, model.device) for name, values in laid_out(model, batch).items()}
    with reading(model, batch["attention_mask"].bool(), inputs.pop(STARTS)):
        yield inputs


def laid_out(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the inputs of `packed`, still on the CPU, and under `STARTS` where each text starts, see `reading`."""
    config = model.config
    mask = batch["attention_mask"].bool()
    offset = config.pad_token_id + 1 if config.model_type in POSITION_OFFSET else 0
    positions = mask.cumsum(dim=1) - 1 + offset
    places = mask.flatten().nonzero()[:, 0]
    size = len(places) + _empty(len(places))
    starts = F.pad(mask.sum(dim=1).cumsum(0, dtype=torch.int32), (1, 1))
    starts[-1] = size
    wide = {**batch, "position_ids": positions}
    return {STARTS: starts} | {
        name: F.pad(values.flatten()[places], (0, size - len(places)))[None] if values.shape == mask.shape else values
        for name, values in wide.items()
        if name != "attention_mask"
    }


@contextmanager
def reading(
    model: PreTrainedModel, filled: torch.Tensor, starts: torch.Tensor, longest: int | None = None
) -> Iterator[None]:
    """Have a model, while in this context, read the inputs of `laid_out`.

    Args:
        model: one that `can_pack`.
        filled: attention mask of the padded batch, bool, on the CPU, shape (texts, width).
        starts: of `laid_out`, on the model's device, shape (texts + 2,).
        longest: at least the tokens of the longest text, and the empty ones; found out unless given.
    """
    config = model.config
    layout = Layout(filled, starts, longest or max(filled.shape[1], _empty(int(filled.sum()))))
    short = can_shorten(model) and starts.device.type == "cpu"

    def pooled(module: Any, args: Any, output: Any) -> Any:
        rows = output.last_hidden_state[0]
        if getattr(config, "classifier_pooling", "cls") == "mean":
            of_texts = layout.spread(rows[: layout.n_tokens]).sum(dim=1) / starts[:-1].diff()[:, None]
        else:
            of_texts = rows if short else rows.index_select(0, starts[:-2])
        output.last_hidden_state = of_texts[:, None]
        return output

    before = config._attn_implementation
    hook = model.base_model.get_submodule(STACKS[config.model_type]).register_forward_hook(pooled)
    token = at_hand.set(layout)
    config._attn_implementation = NAME
    try:
        with shortened(model, lambda rows: rows.index_select(1, starts[:-2])) if short else nullcontext():
            yield
    finally:
        config._attn_implementation = before
        at_hand.reset(token)
        hook.remove()


def _empty(n: int) -> int:
    """Return how many empty tokens make the number of tokens one of `SIZES`."""
    step = 2 ** max(n.bit_length() - 1, 0) // SIZES
    return -n % step if step else 0
