"""Checks that a checkpoint cannot make a loader run code or read files outside its folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bertsmith.errors import ModelError

HARMLESS = frozenset({"_name_or_path", "_num_labels", "_commit_hash", "_attn_implementation_autoset"})
"""Private configuration keys without an effect. Other private keys may choose the code that a loader runs."""
ATTENTION = frozenset({"eager", "sdpa", "flash_attention_2", "flex_attention"})
"""Attention implementations of transformers; other values are addresses of code to download."""
_ATTENTION_KEYS = ("attn_implementation", "_attn_implementation")
_CODE_KEYS = ("kernel_config", "use_kernels", "experts_implementation")
"""Keys that name code outside of transformers. ``auto_map`` is common, and safe because bertsmith ignores it."""


def check_files(folder: Path, config: dict[str, Any]) -> None:
    """Check that a checkpoint with this configuration has only weights and a tokenizer, before anything is loaded.

    Raises:
        ModelError: with the file and the key.
    """
    file = str(folder / "config.json")
    for key, value in _items(config):
        if key in _ATTENTION_KEYS and (value is None or (isinstance(value, str) and value in ATTENTION)):
            continue
        if key in (*_ATTENTION_KEYS, *_CODE_KEYS) or (key.startswith("_") and key not in HARMLESS):
            raise ModelError(
                f"the checkpoint's configuration has the key {key!r}, which can make a loader fetch and run code",
                where=file,
                remedy="Remove that key if you trust the rest, or use another checkpoint.",
            )
    if config.get("quantization_config"):
        raise ModelError(
            "the checkpoint is quantized, and quantized weights cannot be fine-tuned",
            where=file,
            remedy="Use the checkpoint from before the quantization.",
        )
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            "the folder contains an adapter (PEFT), not a complete checkpoint",
            where=str(folder / "adapter_config.json"),
            remedy="Merge it into its base model first: model.merge_and_unload().save_pretrained(folder)",
        )
    _check_index(folder / "model.safetensors.index.json", ".safetensors")
    _check_index(folder / "pytorch_model.bin.index.json", ".bin")
    _check_tokenizer(folder / "tokenizer_config.json")


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint; raise `ModelError` if the file is missing or contains something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("the content is not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{file.name} of the checkpoint cannot be read: {error}",
            where=str(file),
            remedy="Download or save the checkpoint again, and pass the folder that contains all its files.",
        ) from error
    return content


def _items(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        yield key, value
        if isinstance(value, dict):
            yield from _items(value)


def _check_index(index: Path, suffix: str) -> None:
    if not index.is_file():
        return
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise ModelError(
            "the index of the weights names no files", where=str(index), remedy="Download the checkpoint again."
        )
    for shard in {str(name) for name in shards.values()}:
        if Path(shard).name != shard or not shard.endswith(suffix):
            raise ModelError(
                f"the index of the weights points to {shard!r}, which is not a {suffix} file in the same folder",
                where=str(index),
                remedy="Use another copy of the checkpoint.",
            )
        if not (index.parent / shard).is_file():
            raise ModelError(
                f"a weights file of the checkpoint is missing: {shard}",
                where=str(index),
                remedy="Download the checkpoint again: the copy is incomplete.",
            )


def _check_tokenizer(file: Path) -> None:
    if not file.is_file():
        return
    for key, value in _items(read_json(file)):
        if key.endswith("_file") and isinstance(value, str) and Path(value).name != value:
            raise ModelError(
                f"the tokenizer's configuration points to {value!r}, outside its folder ({key})",
                where=str(file),
                remedy="Use another copy of the checkpoint.",
            )
