"""A `transformers.Trainer` whose checkpoints hold all that an exact resume needs.

All private methods of transformers that bertsmith overrides are in this file, `OVERRIDDEN`. A test compares them with
the installed release.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Trainer, TrainerControl
from transformers.trainer_callback import ExportableState, TrainerState

from bertsmith.training import checkpoints

if TYPE_CHECKING:
    from bertsmith.training.distributed import Group

TRAINER_STATE = "trainer_state.json"
OVERRIDDEN = {
    "_save_checkpoint": ("model", "trial"),
    "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
    "_load_best_model": (),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    "_load_scaler": ("checkpoint",),
    "_load_rng_state": ("checkpoint",),
    "_get_grad_norm": ("model", "grad_norm"),
}
"""Private methods of the Trainer and their parameters; the last one, so that the norm is checked before a step."""


class ResumableTrainer(Trainer):  # type: ignore[misc]  # transformers is untyped
    """The Trainer with atomic, sealed checkpoints.

    Attributes:
        group: the processes that train together.
    """

    group: Group
    control: TrainerControl
    _random: dict[str, Any]

    @abstractmethod
    def progress(self) -> dict[str, Any]:
        """Return what a checkpoint keeps besides weights, optimizer, schedule and random numbers."""

    @abstractmethod
    def restore(self, progress: dict[str, Any]) -> None:
        """Take over what `progress` returned."""

    @abstractmethod
    def check_gradient(self, norm: Any) -> None:
        """Refuse a step whose gradient is not finite, given its norm."""

    def train(self, resume_from_checkpoint: str | None = None, **arguments: Any) -> Any:
        """Train to the end; where the checkpoint is the end already, only load the selected weights."""
        if resume_from_checkpoint is not None:
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE))
            patience = state.stateful_callbacks.get("EarlyStoppingCallback", {"args": {}, "attributes": {}})
            waited = patience["attributes"].get("early_stopping_patience_counter", 0)
            if state.global_step >= state.max_steps or waited >= patience["args"].get("early_stopping_patience", 1):
                self.state = state
                self._load_best_model()
                return None
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **arguments)

    def checkpoint(self, step: int) -> Path:
        """Return where the checkpoint of a step is."""
        return Path(self.args.output_dir) / f"checkpoint-{step}"

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if not self.args.should_save:
            return
        path, best = self.checkpoint(self.state.global_step), self.state.best_global_step
        if not self.group.leads:
            self.group.wait()
            if best and self.checkpoint(best).exists():
                self.state.best_model_checkpoint = str(self.checkpoint(best))
            return
        self.store_flos()
        if best and (best == self.state.global_step or self.checkpoint(best).exists()):
            self.state.best_model_checkpoint = str(self.checkpoint(best))
        for part in (*self.callback_handler.callbacks, self.control):
            if isinstance(part, ExportableState):
                self.state.stateful_callbacks[type(part).__name__] = part.state()
        state = {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.lr_scheduler.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "random": checkpoints.random_state(),
            **self.progress(),
        }
        checkpoints.save(
            path,
            self.accelerator.unwrap_model(model),
            self.processing_class,
            state,
            lambda folder: self.state.save_to_json(str(folder / TRAINER_STATE)),
        )
        checkpoints.rotate(path.parent, self.args.save_total_limit, best)
        self.group.wait()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoints.load_weights(Path(resume_from_checkpoint), model or self.model)

    def _load_best_model(self) -> None:
        step = self.state.best_global_step or self.state.global_step  # the last weights, where none were scored
        checkpoints.load_weights(self.checkpoint(step), self.model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            state = checkpoints.load_state(Path(checkpoint))
            self.optimizer.load_state_dict(state["optimizer"])
            self.lr_scheduler.load_state_dict(state["schedule"])
            if self.accelerator.scaler and state["scaler"]:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self._random = state["random"]
            self.restore(state)

    def _load_scaler(self, checkpoint: str | None) -> None:
        """It is loaded with the optimizer."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.restore_random_state(self._random)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        self.check_gradient(norm)
        return norm
