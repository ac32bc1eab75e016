"""Training checkpoints: model, optimizer and scheduler as plain data, without pickle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file, save_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bertsmith.compute.system import LOCKS_OPEN_FILES
from bertsmith.errors import TrainingError, write_error
from bertsmith.folders.atomic import RESUME_REMEDY, replaced_folder, seal
from bertsmith.folders.layout import checkpoints

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
    """Write a checkpoint atomically, and seal it with checksums. It replaces an existing folder.

    Args:
        path: the checkpoint folder.
        model, tokenizer: saved as a plain Hugging Face checkpoint.
        state: training state: tensors, numbers and strings in nested mappings, tuples and lists.
        write: writes more files into the folder.

    Raises:
        OutputError: if the disk is full or not writable. Earlier checkpoints are unchanged.
        TrainingError: if the state contains other types.
    """
    try:
        with replaced_folder(path) as folder:
            save_model(model, str(folder / WEIGHTS), metadata={"format": "pt"})
            model.config.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            tensors: dict[str, torch.Tensor] = {}
            (folder / STATE).write_text(json.dumps(_to_json(state, tensors)), encoding="utf-8")
            save_file(tensors, folder / TENSORS)
            write(folder)
            seal(folder)
    except (OSError, SafetensorError) as error:
        raise write_error(path, error, RESUME_REMEDY) from error


def load_state(path: Path) -> Any:
    """Return the training state of a checkpoint, with tensors on the CPU."""
    tensors = load_file(path / TENSORS)
    if LOCKS_OPEN_FILES:  # the tensors are views of the file
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    return _from_json(json.loads((path / STATE).read_text(encoding="utf-8")), tensors)


def is_slower(path: Path) -> bool:
    """Return whether the run of a checkpoint has half the original learning rate; reads no tensors."""
    return bool(dict(json.loads((path / STATE).read_text(encoding="utf-8"))["entries"])["slower"])


def rotate(folder: Path, limit: int | None, best: int | None) -> None:
    """Remove old checkpoints, but never the newest and the one of the best step. ``None`` is no limit."""
    if limit is None:
        return
    newest_first = checkpoints(folder)
    others = [p for p in newest_first if p.name != f"checkpoint-{best}"]
    has_best = len(others) < len(newest_first)
    for path in others[max(limit, 2) - has_best :]:
        shutil.rmtree(path, ignore_errors=True)


def _to_json(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Convert a value to JSON types. Tensors are moved to ``tensors`` and replaced by their names."""
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"entries": [[_to_json(k, tensors), _to_json(v, tensors)] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_to_json(v, tensors) for v in value]}
    if isinstance(value, list):
        return [_to_json(v, tensors) for v in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TrainingError(
        f"a checkpoint cannot contain the {type(value).__name__} in the state of the optimizer or scheduler",
        remedy="Use another optimizer or scheduler: --set optim=… or lr_scheduler_type=…",
    )


def _from_json(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_from_json(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "array" in value:  # random numbers of an older version
        return None
    if "tuple" in value:
        return tuple(_from_json(v, tensors) for v in value["tuple"])
    return {_from_json(k, tensors): _from_json(v, tensors) for k, v in value["entries"]}
