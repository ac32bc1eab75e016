"""`transformers.Trainer` with what is ours: micro-batches, an order that needs no replay, whole checkpoints."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import Trainer
from transformers.trainer_callback import ExportableState, TrainerState

from bertsmith.model.packing import packed
from bertsmith.training import checkpoints
from bertsmith.training.batching import cut
from bertsmith.training.dropout import CheapDropout
from bertsmith.training.events import Listener, MemoryShort
from bertsmith.training.memory import SMALLEST, ran_out
from bertsmith.training.rates import set_rates
from bertsmith.training.speed import Stopwatch
from bertsmith.training.together import ALONE, Group

if TYPE_CHECKING:
    from datasets import Dataset

TRAINER_STATE = "trainer_state.json"


class NotFiniteError(Exception):
    """A number of training is NaN or infinite.

    Attributes:
        what: which one, and where.
        rows: positions in the training split of the texts whose own loss is not finite; empty if it is all of them.
        batch: positions of all texts of the step.
    """

    def __init__(self, what: str, rows: list[int], batch: list[int]) -> None:
        super().__init__(what)
        self.what, self.rows, self.batch = what, rows, batch


class Engine(Trainer):  # type: ignore[misc]  # transformers is untyped
    """The engine of training.

    Batches are cut into micro-batches by token budget, which is halved where memory does not suffice. The order of the
    texts and the dropout are pure functions of seed, epoch and step, so that a run can go on from any step as if it had
    never stopped. Losses and speed since the last evaluation are kept, without a host synchronisation a step.
    """

    token_budget: int
    head_rate: float = 1.0
    """How many times the learning rate of the body the new head has."""
    layer_decay: float = 1.0
    """Learning rate of a layer, as a multiple of that of the one above it."""
    twice: bool = False
    """Whether every text of a step is read twice, with other dropout: see `bertsmith.training.losses.StepLoss`."""
    packs: bool = False
    """Whether texts are laid end to end: see `bertsmith.model.packing`."""
    group: Group = ALONE
    """The processes that train together."""
    emit: Listener
    slower: bool = False
    """Whether the learning rate was halved after a number went wrong."""
    loss_sum: torch.Tensor | float = 0.0
    evaluated_at: int = 0
    watch: Stopwatch
    part: tuple[int, int] = (-1, 0)
    chances: np.ndarray | None = None
    """Of every training text to be drawn, shape (texts,), with replacement; else every epoch has each text once."""
    _random: dict[str, Any]

    def train(self, resume_from_checkpoint: str | None = None, **arguments: Any) -> Any:
        """Train to the end; where the checkpoint is the end already, only load the best weights."""
        if resume_from_checkpoint is not None:
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE))
            patience = state.stateful_callbacks.get("EarlyStoppingCallback", {"args": {}, "attributes": {}})
            waited = patience["attributes"].get("early_stopping_patience_counter", 0)
            if state.global_step >= state.max_steps or waited >= patience["args"].get("early_stopping_patience", 1):
                self.state = state
                self._load_best_model()
                return None
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **arguments)

    # -- the order of the texts --------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Any:
        if self.args.train_sampling_strategy != "random":
            return super()._get_train_sampler(train_dataset)
        return _Order(len(train_dataset or self.train_dataset), lambda: self._order(self._place()[0]))

    def _order(self, epoch: int) -> np.ndarray:
        """Return the positions of an epoch's texts, in order, shape (texts,): known from seed and epoch alone."""
        n, rng = len(self.train_dataset), np.random.default_rng([self.args.seed, epoch])
        return rng.permutation(n) if self.chances is None else rng.choice(n, n, p=self.chances)

    @property
    def at_the_end_of_an_epoch(self) -> bool:
        """Whether the steps done are whole epochs."""
        return self._place()[1] == 0

    def _place(self) -> tuple[int, int]:
        """Return the epoch, and the batches of it that are done at the current step."""
        batches = len(self.train_dataset) / (self.args.per_device_train_batch_size * self.args.world_size)
        whole = math.floor(batches) if self.args.dataloader_drop_last else math.ceil(batches)
        steps = max(math.ceil(whole / self.args.gradient_accumulation_steps), 1)
        epoch, step = divmod(int(self.state.global_step), steps)
        return epoch, step * self.args.gradient_accumulation_steps

    def _batch(self) -> list[int]:
        """Return the positions of the texts of the current batch in the training split, where they are known."""
        if self.args.train_sampling_strategy != "random" or self.args.world_size > 1:
            return []
        epoch, done = self._place()
        size = self.args.per_device_train_batch_size
        start = (done + self.part[1]) * size
        return [int(i) for i in self._order(epoch)[start : start + size]]

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make the optimizer of the training arguments, with the learning rates of head and layers."""
        new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if new:
            set_rates(optimizer, self.model, head_rate=self.head_rate, layer_decay=self.layer_decay)
        return optimizer

    # -- a step ------------------------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Add the gradient of a batch to what is there, and return its loss."""
        self.watch.lap("data")
        step, part = self.part
        self.part = (self.state.global_step, part + 1 if step == self.state.global_step else 0)
        kept = self._gradients(model) if self.part[1] else None
        ours = inputs if self.group.size == 1 else self._share(inputs)[0]

        loss = self._with_less_memory(
            ours,
            lambda: self._in_micro_batches(model, ours, num_items_in_batch),
            undo=lambda: self._restore(model, kept),
        )
        loss = self.group.add_up(loss)
        if self.accelerator.sync_gradients:
            self.group.add_up_gradients(model.parameters())
        if not bool(torch.isfinite(loss)):
            raise self._not_finite("loss", model, inputs)
        self.watch.texts += len(inputs["labels"])
        self.watch.tokens += inputs["attention_mask"].sum() * (1 + self.twice)
        self.loss_sum = self.loss_sum + loss
        self.watch.lap("backward")
        return loss

    def _with_less_memory(
        self, inputs: Any, attempt: Callable[[], Any], undo: Callable[[], None] = lambda: None
    ) -> Any:
        """Do something with a batch, with half the token budget as long as memory does not suffice."""
        while True:
            try:
                return attempt()
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error) or self.token_budget <= max(int(inputs["attention_mask"].shape[1]), SMALLEST):
                    raise
                self.token_budget //= 2
            # Outside the handler, whose traceback would keep the tensors of the failed attempt alive.
            undo()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.emit(MemoryShort(self.state.global_step, self.token_budget))

    def _in_micro_batches(self, model: Any, inputs: Any, num_items_in_batch: Any) -> torch.Tensor:
        """Add the gradient of a batch to what is there, a micro-batch at a time; return its loss."""
        total = torch.zeros((), device=self.args.device)
        budget = self.token_budget // 2 if self.twice else self.token_budget
        for i, micro_batch in enumerate(cut(inputs, budget, packed=self.packs)):
            if self.twice:
                micro_batch = {name: torch.cat([values, values]) for name, values in micro_batch.items()}
            place = (self.args.seed, *self.part, i, self.group.rank)
            torch.manual_seed(_mixed(*place))
            dropout = CheapDropout(*place) if self._dropout_is_ours else contextlib.nullcontext()
            with self._laid_out(micro_batch) as laid_out, dropout:
                self.watch.places += laid_out["input_ids"].numel() * self.group.size  # the others have as much to do
                total += super().training_step(model, laid_out, num_items_in_batch)
            self.watch.lap("backward")
        return total

    def compute_loss(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        """Return the loss; the time until then is that of the forward pass."""
        loss = super().compute_loss(model, inputs, *rest, **more)
        if model.training:
            self.watch.lap("forward")
        return loss

    def _laid_out(self, batch: dict[str, torch.Tensor]) -> contextlib.AbstractContextManager[dict[str, torch.Tensor]]:
        return packed(self.model, batch) if self.packs else contextlib.nullcontext(batch)

    @property
    def _dropout_is_ours(self) -> bool:
        """On a CPU; but checkpointed gradients do a part of the step again, and must then draw the same masks."""
        return self.args.device.type == "cpu" and not self.args.gradient_checkpointing

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, Any, Any]:
        """Score the texts of a batch, a micro-batch at a time for the same reasons; each process scores its share."""
        step = super().prediction_step
        ours, rows = self._share(inputs)
        n = len(inputs["attention_mask"])
        table = torch.zeros(n, model.config.num_labels, device=self.args.device)

        def attempt() -> torch.Tensor:
            total, start = torch.zeros((), device=self.args.device), 0
            for micro_batch in cut(ours, self.token_budget, packed=self.packs):
                with self._laid_out(micro_batch) as laid_out:
                    loss, logits, _ = step(model, laid_out, False, ignore_keys)
                # They come in order of length, as its share does.
                table[rows[start : start + len(logits)]] = logits.float()
                total, start = total + loss * len(logits), start + len(logits)
            return total

        total = self.group.add_up(self._with_less_memory(ours, attempt))
        return total / n, self.group.add_up(table), inputs["labels"]

    def _share(self, batch: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return the texts of a batch that this process takes, longest first, and their positions in it."""
        rows = self.group.share(batch["attention_mask"].sum(dim=1))
        return {name: values[rows] for name, values in batch.items()}, rows

    @staticmethod
    def _gradients(model: Any) -> list[torch.Tensor | None]:
        """Return what earlier parts of an accumulated step have left, to begin a part again from."""
        return [None if p.grad is None else p.grad.clone() for p in model.parameters()]

    @staticmethod
    def _restore(model: Any, gradients: list[torch.Tensor | None] | None) -> None:
        for i, parameter in enumerate(model.parameters()):
            kept = gradients[i] if gradients else None
            parameter.grad = None if kept is None else kept.clone()

    # -- numbers that go wrong ---------------------------------------------------------------------------------------

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        if norm is not None and not self.args.fp16 and not math.isfinite(norm):  # fp16 skips such a step by itself
            batch = self._batch()
            raise NotFiniteError(f"the gradient of step {self.state.global_step + 1:,}", [], batch)
        return norm

    def _not_finite(self, what: str, model: Any, inputs: Any) -> NotFiniteError:
        """Find out which texts of a batch it is; those whose loss is not finite without dropout either."""
        batch = self._batch()
        model.eval()
        with torch.no_grad():
            wrong = [
                row
                for row in range(len(inputs["labels"]))
                if not bool(
                    torch.isfinite(self.compute_loss(model, {k: v[row : row + 1] for k, v in inputs.items()})).all()
                )
            ]
        model.train()
        alone = [] if len(wrong) == len(inputs["labels"]) or not batch else [batch[row] for row in wrong]
        return NotFiniteError(f"the {what} of step {self.state.global_step + 1:,}", alone, batch)

    # -- checkpoints -------------------------------------------------------------------------------------------------

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
            "token_budget": self.token_budget,
            "slower": self.slower,
            "loss_sum": float(self.loss_sum),
            "evaluated_at": self.evaluated_at,
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
        checkpoints.load_weights(self.checkpoint(self.state.best_global_step), self.model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            state = checkpoints.load_state(Path(checkpoint))
            self.optimizer.load_state_dict(state["optimizer"])
            self.lr_scheduler.load_state_dict(state["schedule"])
            if self.accelerator.scaler and state["scaler"]:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.token_budget = min(self.token_budget, state["token_budget"])
            self.loss_sum, self.evaluated_at = state["loss_sum"], state["evaluated_at"]
            self._random = state["random"]
            if self.slower and not state["slower"]:
                self._halve_learning_rate()
            self.slower = self.slower or state["slower"]

    def _load_scaler(self, checkpoint: str | None) -> None:
        """It is loaded with the optimizer."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.restore_random_state(self._random)

    def _halve_learning_rate(self) -> None:
        for group in self.optimizer.param_groups:
            for name in ("lr", "initial_lr"):
                if name in group:
                    group[name] *= 0.5
        if hasattr(self.lr_scheduler, "base_lrs"):
            self.lr_scheduler.base_lrs = [0.5 * rate for rate in self.lr_scheduler.base_lrs]


class _Order(torch.utils.data.Sampler[int]):  # type: ignore[misc]
    """The order of the epoch that is on."""

    def __init__(self, n: int, order: Callable[[], np.ndarray]) -> None:
        self.n, self.order = n, order

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[int]:
        yield from self.order().tolist()


def _mixed(*numbers: int) -> int:
    """Return a seed that is another one for any other numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
