"""A `transformers.Trainer` whose checkpoints contain everything an exact resume needs.

Only this file overrides private methods of transformers. They are listed in `OVERRIDDEN`, and a test compares their
signatures with the installed release.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerControl
from transformers.trainer_callback import ExportableState, TrainerState

from bertsmith.training import checkpoints
from bertsmith.training.distributed import ProcessGroup
from bertsmith.training.nan_guard import NanGuard

TRAINER_STATE = "trainer_state.json"
OVERRIDDEN = {
    "_save_checkpoint": ("model", "trial"),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    "_get_grad_norm": ("model", "grad_norm"),
}
"""Parameters of the private methods. The last method is overridden to check the norm before the optimizer step."""


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
        checkpoints.save(
            self.checkpoint(step),
            self.accelerator.unwrap_model(model),
            self.processing_class,
            state,
            lambda folder: self.state.save_to_json(str(folder / TRAINER_STATE)),
        )
        checkpoints.rotate(Path(self.args.output_dir), self.args.save_total_limit, best)
        self.group.barrier()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            state = checkpoints.load_state(Path(checkpoint))
            self.optimizer.load_state_dict(state["optimizer"])
            self.lr_scheduler.load_state_dict(state["schedule"])
            if self.accelerator.scaler and state["scaler"]:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.restore(state)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        self.guard.check_gradient(norm)
        return norm
