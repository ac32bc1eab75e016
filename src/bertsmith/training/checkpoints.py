"""Checkpoints to resume from: all that training needs to go on as if it had never stopped. Plain data, no pickle."""

from __future__ import annotations

import errno
import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model

from bertsmith.errors import TrainingError, write_error
from bertsmith.folders.atomic import RESUME_REMEDY, is_intact, replaced_folder, seal

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = "model.safetensors"
TENSORS = "training.safetensors"
STATE = "training.json"


def save(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    state: Mapping[str, Any],
    write: Callable[[Path], None],
) -> None:
    """Write a checkpoint: under another name, forced to disk, sealed with checksums, then renamed and read back.

    Args:
        path: the checkpoint folder; one of that name is replaced.
        model, tokenizer: a plain Hugging Face checkpoint is made of them.
        state: of the optimizer and all else: tensors, arrays, numbers and texts in mappings, tuples and lists.
        write: adds files of its own to the folder.

    Raises:
        OutputError: if the disk is full, gone or not to be written to; earlier checkpoints are as they were.
        TrainingError: if the state holds anything else.
    """
    with _told(path), replaced_folder(path) as folder:
        save_model(model, str(folder / WEIGHTS), metadata={"format": "pt"})
        model.config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        tensors: dict[str, torch.Tensor] = {}
        (folder / STATE).write_text(json.dumps(_apart(state, tensors)), encoding="utf-8")
        save_file(tensors, folder / TENSORS)
        write(folder)
        seal(folder)
    with _told(path):
        if not is_intact(path):
            raise OSError(errno.EIO, "what was read back is not what was written", str(path))


def load_state(path: Path) -> Any:
    """Return the ``state`` of a checkpoint, tensors on the CPU."""
    return _together(json.loads((path / STATE).read_text(encoding="utf-8")), load_file(path / TENSORS))


def load_weights(path: Path, model: PreTrainedModel) -> None:
    """Put the weights of a checkpoint into a model, all of them."""
    load_model(model, path / WEIGHTS)


def rotate(folder: Path, keep: int | None, best: int | None) -> None:
    """Remove all checkpoints of a folder but the best one and the newest, ``keep`` in all (``None``: every one)."""
    newest_first = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]), reverse=True)
    kept = [p for p in newest_first if p.name == f"checkpoint-{best}"]
    for path in newest_first:
        if path not in kept:
            if keep is None or len(kept) < max(keep, 2):  # the newest always stays
                kept.append(path)
            else:
                shutil.rmtree(path, ignore_errors=True)


def random_state() -> dict[str, Any]:
    """Return the state of every random number generator there is: Python's, NumPy's, torch's on every device."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": [torch.mps.get_rng_state()] if torch.backends.mps.is_available() else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `random_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    if torch.backends.mps.is_available() and state["mps"]:
        torch.mps.set_rng_state(state["mps"][0])


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise write_error(path, error, RESUME_REMEDY) from error


def _apart(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Turn a value into what JSON can hold, its tensors put aside under numbers."""
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous()
        return {"tensor": name}
    if isinstance(value, np.ndarray):
        return {"array": value.tolist(), "dtype": value.dtype.str}
    if isinstance(value, Mapping):
        return {"entries": [[_apart(k, tensors), _apart(v, tensors)] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_apart(v, tensors) for v in value]}
    if isinstance(value, list):
        return [_apart(v, tensors) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, str | int | float):
        return value
    raise TrainingError(
        f"a checkpoint cannot hold the {type(value).__name__} that the optimizer or the schedule keeps",
        remedy="Take another optimizer or schedule: --set optim=… or lr_scheduler_type=…",
    )


def _together(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_together(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "array" in value:
        return np.array(value["array"], dtype=value["dtype"])
    if "tuple" in value:
        return tuple(_together(v, tensors) for v in value["tuple"])
    return {_together(k, tensors): _together(v, tensors) for k, v in value["entries"]}
