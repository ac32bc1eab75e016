"""Training checkpoints: everything an exact resume needs, as plain data without pickle.

Only this module overrides private methods of transformers. A test compares their parameters with the installed release.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file, save_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerControl
from transformers.trainer_callback import ExportableState, TrainerState

from bertsmith.compute.processes import ProcessGroup
from bertsmith.compute.system import LOCKS_OPEN_FILES
from bertsmith.errors import TrainingError, write_error
from bertsmith.folders.atomic import PART, RESUME_REMEDY, replaced_folder, seal
from bertsmith.folders.layout import checkpoints
from bertsmith.training.nan_guard import NanGuard

WEIGHTS, TENSORS = "model.safetensors", "training.safetensors"
STATE = "training.json"
TRAINER_STATE = "trainer_state.json"
SHARED_BYTES = 2**26
"""Maximum number of bytes of a file per message to the other processes."""


class ResumableTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped
    """The Trainer with atomic, sealed checkpoints.

    A subclass has a group of processes, a guard of gradients, and the methods `checkpoint_state` and `restore` for all
    state besides weights, optimizer and scheduler.
    """

    group: ProcessGroup
    guard: NanGuard
    control: TrainerControl

    def __init__(self, **arguments: Any) -> None:
        with warnings.catch_warnings():
            # `BinaryCrossEntropy` smooths the labels of label sets; the loss of transformers does not.
            warnings.filterwarnings("ignore", "Label smoothing is not compatible", UserWarning)
            super().__init__(**arguments)

    def train(self, resume_from_checkpoint: str | None = None, **arguments: Any) -> Any:
        """Train to the end. If the checkpoint is the end, only load the best weights."""
        if resume_from_checkpoint is not None:
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE))
            patience = state.stateful_callbacks.get("EarlyStoppingCallback", {"args": {}, "attributes": {}})
            waited = patience["attributes"].get("early_stopping_patience_counter", 0)
            if state.global_step >= state.max_steps or waited >= patience["args"].get("early_stopping_patience", 1):
                self.state = state
                if self.group.is_main:  # only it saves the model; other machines may lack the checkpoint
                    # Without evaluations, the last weights are the best.
                    best = self.checkpoint(state.best_global_step or state.global_step)
                    self._load_from_checkpoint(str(best))
                return None
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **arguments)

    def checkpoint(self, step: int) -> Path:
        """Return the folder of the checkpoint of a step."""
        return Path(self.args.output_dir) / f"checkpoint-{step}"

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if not self.group.is_main:
            self.group.barrier()  # the main process saves
            return
        step, best = self.state.global_step, self.state.best_global_step
        if best and (best == step or self.checkpoint(best).exists()):
            self.state.best_model_checkpoint = str(self.checkpoint(best))
        self.store_flos()
        for part in (*self.callback_handler.callbacks, self.control):
            if isinstance(part, ExportableState):
                self.state.stateful_callbacks[type(part).__name__] = part.state()
        state = {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.lr_scheduler.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            **self.checkpoint_state(),
        }
        model = self.accelerator.unwrap_model(model)
        save(self.checkpoint(step), model, self.processing_class, state, self.state)
        rotate(Path(self.args.output_dir), self.args.save_total_limit, best)
        self.group.barrier()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            state = load_state(Path(checkpoint))
            self.optimizer.load_state_dict(state["optimizer"])
            self.lr_scheduler.load_state_dict(state["schedule"])
            if self.accelerator.scaler and state["scaler"]:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.restore(state)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        self.guard.check_gradient(norm)  # before the optimizer step
        return norm


def share_folder(group: ProcessGroup, folder: Path) -> Path:
    """Return where this process reads a folder of files of the main process. All processes call this at once.

    A machine that lacks the folder gets a copy: a hidden folder beside the missing one.
    """
    (lacked,) = group.any(not folder.is_dir())
    if not lacked:
        return folder
    copy = None if group.is_main or folder.is_dir() else folder.with_name(f".{folder.name}.{group.rank}{PART}")
    if copy is not None:
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir(parents=True)
    for name in group.broadcast(sorted(p.name for p in folder.iterdir()) if group.is_main else None):
        with ExitStack() as opened:
            source = opened.enter_context((folder / name).open("rb")) if group.is_main else None
            target = None if copy is None else opened.enter_context((copy / name).open("wb"))
            while chunk := group.broadcast(source and source.read(SHARED_BYTES)):
                if target is not None:
                    target.write(chunk)
    return copy or folder


def save(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    state: Mapping[str, Any],
    trainer_state: TrainerState,
) -> None:
    """Write a checkpoint atomically, and seal it with checksums. It replaces an existing folder.

    Model and tokenizer are a plain Hugging Face checkpoint. The training state consists of tensors, numbers and strings
    in nested mappings, tuples and lists.

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
            trainer_state.save_to_json(str(folder / TRAINER_STATE))
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
