"""What a checkpoint's files may not ask for: nothing in them makes a loader run code or reach outside the folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bertsmith.errors import ModelError

HARMLESS = frozenset({"_name_or_path", "_num_labels", "_commit_hash", "_attn_implementation_autoset"})
"""Private configuration keys that loaders only note. Any other may choose what code a loader runs."""
ATTENTION = frozenset({"eager", "sdpa", "flash_attention_2", "flex_attention"})
"""Ways of attention that are part of transformers; others are the addresses of code to fetch."""
_CHOOSE_ATTENTION = ("attn_implementation", "_attn_implementation")
_CHOOSE_CODE = ("kernel_config", "use_kernels", "experts_implementation")
"""Keys that name code outside transformers. ``auto_map`` does too; nothing follows it, and many have it."""
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def check(folder: Path, config: dict[str, Any]) -> None:
    """See that a checkpoint asks for nothing but weights and a tokenizer, before anything is loaded.

    Args:
        folder: the checkpoint.
        config: the content of its ``config.json``.

    Raises:
        ModelError: naming the file and the key.
    """
    file = str(folder / "config.json")
    for key, value in _entries(config):
        if key in _CHOOSE_ATTENTION and (value is None or (isinstance(value, str) and value in ATTENTION)):
            continue
        if key in (*_CHOOSE_ATTENTION, *_CHOOSE_CODE) or (key.startswith("_") and key not in HARMLESS):
            raise ModelError(
                f"the checkpoint's configuration holds {key!r}, which can make a loader fetch and run code",
                where=file,
                remedy="Remove that key if you trust the rest, or take another checkpoint.",
            )
    if config.get("quantization_config"):
        raise ModelError(
            "the checkpoint is quantized, and such weights cannot be fine-tuned",
            where=file,
            remedy="Take the checkpoint it was made from.",
        )
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            "this is an adapter (PEFT) and not a whole checkpoint",
            where=str(folder / "adapter_config.json"),
            remedy="Merge it into its base model first: model.merge_and_unload().save_pretrained(folder)",
        )
    for name in INDEXES:
        _check_index(folder / name)
    _check_tokenizer(folder / "tokenizer_config.json")


def _entries(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        yield key, value
        if isinstance(value, dict):
            yield from _entries(value)


def _check_index(index: Path) -> None:
    if not index.is_file():
        return
    suffix = ".safetensors" if "safetensors" in index.name else ".bin"
    shards = _read(index).get("weight_map")
    if not isinstance(shards, dict):
        raise ModelError("the index of the weights names no files", where=str(index), remedy="Fetch it again.")
    for shard in {str(name) for name in shards.values()}:
        if Path(shard).name != shard or not shard.endswith(suffix):
            raise ModelError(
                f"the index of the weights points to {shard!r}, which is not a {suffix} file in the same folder",
                where=str(index),
                remedy="Take another copy of the checkpoint.",
            )
        if not (index.parent / shard).is_file():
            raise ModelError(
                f"a file of the checkpoint's weights is missing: {shard}",
                where=str(index),
                remedy="Fetch it again: the copy is not complete.",
            )


def _check_tokenizer(file: Path) -> None:
    if not file.is_file():
        return
    for key, value in _entries(_read(file)):
        if key.endswith("_file") and isinstance(value, str) and Path(value).name != value:
            raise ModelError(
                f"the tokenizer's configuration points to {value!r}, outside its folder ({key})",
                where=str(file),
                remedy="Take another copy of the checkpoint.",
            )


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"a file of the checkpoint cannot be read: {error}", where=str(file), remedy="Fetch it again."
        ) from error
    if not isinstance(content, dict):
        raise ModelError("a file of the checkpoint holds no object", where=str(file), remedy="Fetch it again.")
    return content
