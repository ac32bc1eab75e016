"""Attention of texts that are laid end to end: they are spread into a padded batch and gathered again.

On a GPU that has it they go through attention of variable length as they lie.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - as everywhere

from bertsmith.model.last_layer import of_all_tokens
from bertsmith.versions import cpu_capabilities

NAME = "bertsmith_packed"
"""Of our attention among those of transformers."""
AT_ONCE = 2**17 if cpu_capabilities().get("amx_bf16") else 2**15
"""Scores of a head for the texts that attend at once on a CPU, to stay in its caches; a longer text goes alone.

With matrix units (AMX) more of them are faster.
"""


@dataclass(frozen=True)
class Layout:
    """How packed texts lie in a padded batch.

    Attributes:
        filled: which places are filled, on the CPU, shape (texts, width).
        starts: where each text starts among the tokens, where the empty ones do, and where those end, int32, shape
            (texts + 2,), on the device: to attention of variable length the empty tokens are one more text.
        longest: at least the tokens of the longest text, and the empty ones.
    """

    filled: torch.Tensor
    starts: torch.Tensor
    longest: int

    @cached_property
    def parts(self) -> list[Layout]:
        """Return layouts of a few texts each, one after the other, that attend at once; on a GPU all do."""
        if self.starts.device.type != "cpu":
            return [self]
        lengths = self.filled.sum(dim=1)
        groups: list[list[int]] = []
        for n in lengths.tolist():
            if groups and (len(groups[-1]) + 1) * max(n, *groups[-1]) ** 2 <= AT_ONCE:
                groups[-1].append(n)
            else:
                groups.append([n])
        return [
            Layout(torch.arange(max(group)) < of_group[:, None], self.starts, self.longest)
            for group, of_group in zip(groups, lengths.split([len(group) for group in groups]), strict=True)
        ]

    @cached_property
    def full(self) -> bool:
        """Whether the texts of a part are all of the same length."""
        return self.starts.device.type == "cpu" and bool(self.filled.all())

    @cached_property
    def n_tokens(self) -> int:
        """Tokens of its texts, without empty ones."""
        return int(self.filled.sum())

    @cached_property
    def mask(self) -> torch.Tensor:
        """Return which places are filled, on the device, shape (texts, width)."""
        return moved(self.filled, self.starts.device)

    @cached_property
    def places(self) -> torch.Tensor:
        """Return the places of the tokens, in the batch laid out flat, shape (tokens,)."""
        return moved(self.filled.flatten().nonzero()[:, 0], self.starts.device)

    def spread(self, rows: torch.Tensor) -> torch.Tensor:
        """Return shape (texts, width, n) of rows (tokens, n), zero where there is no token."""
        wide: torch.Tensor = rows if self.full else _Spread.apply(rows, self.places, self.filled.numel())
        return wide.unflatten(0, self.filled.shape)

    def gathered(self, wide: torch.Tensor) -> torch.Tensor:
        """Return the rows (tokens, n) of shape (texts, width, n)."""
        flat = wide.flatten(0, 1)
        rows: torch.Tensor = flat if self.full else _Gather.apply(flat, self.places)
        return rows

    def seen(self, window: int | None) -> torch.Tensor | None:
        """Return which places a place sees, shape (texts, 1, width or 1, width), at most so far to either side."""
        if window is None:
            return None if self.full else self.mask[:, None, None, :]
        place = torch.arange(self.filled.shape[1], device=self.starts.device)
        # An empty place sees itself, so that no row of attention is without any weight.
        return ((place[:, None] - place).abs() <= window) & (self.mask[:, None, None, :] | (place[:, None] == place))


at_hand: ContextVar[Layout | None] = ContextVar("layout", default=None)


def moved(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a device; what it does at present is not waited for."""
    if device.type != "cuda" or values.device.type != "cpu":
        return values.to(device)
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError("a recording would give the same values for ever")
    return values.pin_memory().to(device, non_blocking=True)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each text; query, key and value have shape (1, heads, tokens of all texts, size of a head).

    Of a sliding window, transformers gives the tokens to one side and the token itself.
    """
    layout = at_hand.get()
    assert layout is not None
    window = None if sliding_window is None else sliding_window - 1
    found = of_all_tokens()
    query, key, value = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    if found:
        key, value = (x.squeeze(0).unflatten(1, query.shape[1:]) for x in found)
        mixed = _of_firsts(query, key, value, layout, dropout, scaling)
    elif _has_kernel(query.device, query.dtype, query.shape[2]):
        mixed = _by_kernel(query, key, value, layout, dropout, scaling, window)
    else:
        mixed = _padded(query, key, value, layout, dropout, scaling, window)
    return mixed[None], None


def _padded(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    dropout: float,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """Attend in padded batches; query, key, value and what comes out have shape (tokens, heads, size of a head)."""
    parts = layout.parts
    sizes = [part.n_tokens for part in parts]
    empty = len(query) - sum(sizes)
    split = zip(parts, *(x.split([*sizes, empty])[:-1] for x in (query, key, value)), strict=True)
    mixed = [_at_once(part, q, k, v, dropout, scale, window) for part, q, k, v in split]
    return torch.cat([*mixed, query.new_zeros(empty, *query.shape[1:])])


def _of_firsts(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, dropout: float, scale: float | None
) -> torch.Tensor:
    """Attend from the first token of every text; shapes as for `_padded`, with a query and what comes out for each."""
    parts = layout.parts
    sizes = [part.n_tokens for part in parts]
    empty = len(key) - sum(sizes)
    of_texts = query.split([len(part.filled) for part in parts])
    split = zip(parts, of_texts, *(x.split([*sizes, empty])[:-1] for x in (key, value)), strict=True)
    return torch.cat(
        [
            F.scaled_dot_product_attention(
                q[:, :, None], _wide(part, k), _wide(part, v), part.seen(None), dropout_p=dropout, scale=scale
            ).squeeze(2)
            for part, q, k, v in split
        ]
    )


def _at_once(
    layout: Layout,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """Attend in one padded batch; shapes as for `_padded`, without empty tokens."""
    query, key, value = (_wide(layout, x) for x in (query, key, value))
    mixed = F.scaled_dot_product_attention(query, key, value, layout.seen(window), dropout_p=dropout, scale=scale)
    return layout.gathered(mixed.transpose(1, 2).flatten(2)).unflatten(1, (query.shape[1], -1))


def _wide(layout: Layout, rows: torch.Tensor) -> torch.Tensor:
    """Return rows (tokens, heads, n) as a padded batch, shape (texts, heads, width, n)."""
    return layout.spread(rows.flatten(1)).unflatten(2, rows.shape[1:]).transpose(1, 2)


def _by_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    dropout: float,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """Attend with torch's attention of variable length; shapes as for `_padded`."""
    from torch.nn.attention.varlen import varlen_attn

    around = (-1, -1) if window is None else (window, window)
    of_texts = (layout.starts, layout.starts, layout.longest, layout.longest)
    if dropout:
        return _varlen_attn_dropping(query, key, value, *of_texts, dropout, scale=scale, window_size=around)
    mixed: torch.Tensor = varlen_attn(query, key, value, *of_texts, scale=scale, window_size=around)
    return mixed


def _varlen_attn_dropping(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    dropout: float,
    *,
    scale: float | None,
    window_size: tuple[int, int],
) -> torch.Tensor:
    """Do what ``varlen_attn`` does, which has no place for dropout, by what it calls."""
    mixed: torch.Tensor = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        cu_seq_q,
        cu_seq_k,
        max_q,
        max_k,
        dropout,
        is_causal=False,
        return_debug_mask=False,
        scale=scale,
        window_size_left=window_size[0],
        window_size_right=window_size[1],
    )[0]
    return mixed


def _has_kernel(device: torch.device, dtype: torch.dtype, size: int) -> bool:
    """Return whether attention of variable length is there for heads of a size."""
    return device.type == "cuda" and dtype in (torch.float16, torch.bfloat16) and _agrees(device, dtype, size)


@lru_cache
def _agrees(device: torch.device, dtype: torch.dtype, size: int) -> bool:
    """Try it on three texts: on an older GPU, with a size it has not or another version of torch, it raises."""
    mask = torch.arange(48) < torch.tensor([[48], [5], [17]])
    starts = F.pad(mask.sum(dim=1).cumsum(0, dtype=torch.int32), (1, 1))
    starts[-1] = n = int(starts[-2]) + 2  # with two empty tokens
    layout = Layout(mask, starts.to(device), 48)
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, n, 2, size, generator=generator).to(device, dtype)
    try:
        same = all(
            torch.allclose(
                _by_kernel(query, key, value, layout, 0.0, None, window)[:-2],
                _padded(query, key, value, layout, 0.0, None, window)[:-2],
                atol=0.03,
            )
            for window in (None, 4)
        )
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            thinned = _by_kernel(query, key, torch.ones_like(value), layout, 0.5, None, None)[:-2].float()
        return same and bool((thinned.mean() - 1).abs() < 0.2) and bool((thinned != 1).any())
    except (RuntimeError, TypeError, ImportError):
        return False


class _Spread(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """Rows put into their places among n; the others are zero."""

    @staticmethod
    def forward(context: Any, rows: torch.Tensor, places: torch.Tensor, n: int) -> torch.Tensor:
        """Return shape (n, width) of rows (places, width)."""
        context.save_for_backward(places)
        return _put(rows, places, n)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient of the rows."""
        return gradient.index_select(0, *context.saved_tensors), None, None


class _Gather(torch.autograd.Function):  # type: ignore[misc]
    """The rows in some places; what stands in the others is dropped."""

    @staticmethod
    def forward(context: Any, wide: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Return shape (places, width) of rows (n, width)."""
        context.save_for_backward(places)
        context.n = len(wide)
        return wide.index_select(0, places)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the gradient of all rows."""
        (places,) = context.saved_tensors
        return _put(gradient, places, context.n), None


def _put(rows: torch.Tensor, places: torch.Tensor, n: int) -> torch.Tensor:
    """Return n rows, zero but in those places."""
    return rows.new_zeros(n, rows.shape[1]).index_copy_(0, places, rows)


def leave_attention_alone() -> None:
    """Have what `torch.compile` compiles call our attention as it is."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, torch.compiler.disable(_attention))


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


_register()
