"""`transformers.Trainer` with what is ours: micro-batches, an order that needs no replay, whole checkpoints."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer_callback import ExportableState, TrainerState

from bertsmith.model.packed_attention import moved
from bertsmith.model.packing import SIZES, STARTS, laid_out, packed, reading
from bertsmith.training import checkpoints
from bertsmith.training.batching import cut
from bertsmith.training.compiled import AT_LEAST, LOOK, Compiled, can_compile, pays
from bertsmith.training.dropout import CheapDropout
from bertsmith.training.events import Compiling, Listener, MemoryShort
from bertsmith.training.finite import NotFiniteError, Part, Question, can_skip
from bertsmith.training.graphs import Graphs
from bertsmith.training.lookups import RowGradients
from bertsmith.training.memory import SMALLEST, give_back_beyond, ran_out
from bertsmith.training.order import Ordered
from bertsmith.training.rates import set_rates
from bertsmith.training.speed import Stopwatch
from bertsmith.training.together import ALONE, Group

TRAINER_STATE = "trainer_state.json"


class Engine(Ordered):
    """The engine of training.

    Batches are cut into micro-batches by token budget, which is halved where memory does not suffice. The order of the
    texts and the dropout are pure functions of seed, epoch and step, so that a run can go on from any step as if it had
    never stopped. Batches are made and cut on the CPU, and a GPU is never waited for within a step: losses since the
    last evaluation are kept there, and a step whose numbers are not finite is skipped there and told after the next.
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
    won: Callable[[], bool]
    """Whether the last evaluation is the best one so far."""
    part: tuple[int, int] = (-1, 0)
    graphs: Graphs | None = None
    """Recordings of a GPU's work, where they can be made."""
    compiled: Compiled | None = None
    """The layers compiled, where that pays."""
    steps: int = 0
    """Optimizer steps begun in this process, as long as it is open whether layers are to be compiled."""
    longest: int = 0
    """Tokens of the longest training text."""
    most_held: int | None = None
    """Bytes of memory beyond which what is freed is given back, where it is kept."""
    _random: dict[str, Any]
    _parts: tuple[Part, ...] = ()
    _question: Question | None = None

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
        if self.graphs is not None and not self.part[1]:
            self._compile_if_it_pays()
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
        self._parts += (Part(self.part, inputs, loss),)
        if self._asks_later:
            self._settle()
        elif not bool(torch.isfinite(loss)):
            raise self._not_finite(self._parts[-1])
        self.watch.texts += len(inputs["labels"])
        self.watch.tokens += int(inputs["attention_mask"].sum()) * (1 + self.twice)
        self.loss_sum = self.loss_sum + loss
        if self.most_held is not None:
            self.most_held = give_back_beyond(self.most_held)
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
            if self.graphs is not None:
                self.graphs = Graphs(self.model)  # without the memory of the recordings there were
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.emit(MemoryShort(self.state.global_step, self.token_budget))

    def _in_micro_batches(self, model: Any, inputs: Any, num_items_in_batch: Any) -> torch.Tensor:
        """Add the gradient of a batch to what is there, a micro-batch at a time; return its loss."""
        total = torch.zeros((), device=self.args.device)
        budget = self.token_budget // 2 if self.twice else self.token_budget
        micro_batches = list(cut(inputs, budget, packed=self.packs))
        for i, micro_batch in enumerate(micro_batches):
            if self.twice:
                micro_batch = {name: torch.cat([values, values]) for name, values in micro_batch.items()}
            place = (self.args.seed, *self.part, i, self.group.rank)
            torch.manual_seed(_mixed(*place))
            with self._cheaply(*place), self.compiled.used() if self.compiled else contextlib.nullcontext():
                if self.graphs is not None and len(micro_batches) == 1:
                    total += self._by_recording(model, micro_batch, num_items_in_batch)
                else:
                    with self._laid_out(micro_batch) as there:
                        self._count(there["input_ids"])
                        total += super().training_step(model, there, num_items_in_batch)
            self.watch.lap("backward")
        return total

    def _by_recording(self, model: Any, batch: dict[str, torch.Tensor], num_items_in_batch: Any) -> torch.Tensor:
        """Do what a step does with a micro-batch, by `Graphs`."""
        assert self.graphs is not None
        inputs, filled, step = laid_out(self.model, batch), batch["attention_mask"].bool(), super().training_step
        self._count(inputs["input_ids"])
        longest = max(self.longest, filled.shape[1], inputs["input_ids"].shape[1] // SIZES)

        def work(there: dict[str, torch.Tensor]) -> torch.Tensor:
            values = dict(there)
            with reading(self.model, filled, values.pop(STARTS), longest):
                loss: torch.Tensor = step(model, values, num_items_in_batch)
            return loss

        size = (len(filled), inputs["input_ids"].shape[1], longest, num_items_in_batch)
        return self.graphs.run(size, inputs, work, self.args.device)

    def _compile_if_it_pays(self) -> None:
        """Have the layers compiled where the rest of training takes long on a GPU, once that can be told."""
        batch = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        self.steps += 1
        if self.compiled is not None or self.steps < LOOK or self.watch.texts < AT_LEAST * batch:
            return
        self.steps = -self.state.max_steps  # not again
        seconds = (self.state.max_steps - self.state.global_step) * batch / self.watch.texts_per_second
        if pays(seconds) and can_compile(self.args.device):
            self.emit(Compiling(self.state.global_step, seconds))
            self.compiled, self.graphs = Compiled(self.model), Graphs(self.model)

    def _count(self, ids: torch.Tensor) -> None:
        self.watch.places += ids.numel() * self.group.size  # the others have as much to do

    def compute_loss(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        """Return the loss; the time until then is that of the forward pass."""
        loss = super().compute_loss(model, inputs, *rest, **more)
        if model.training:
            self.watch.lap("forward")
        return loss

    def _laid_out(self, batch: dict[str, torch.Tensor]) -> contextlib.AbstractContextManager[dict[str, torch.Tensor]]:
        if self.packs:
            return packed(self.model, batch)
        return contextlib.nullcontext({name: moved(values, self.args.device) for name, values in batch.items()})

    @contextlib.contextmanager
    def _cheaply(self, *place: int) -> Iterator[None]:
        """Have a CPU do what torch does slowly there our way.

        Not where gradients are checkpointed: that does a part of the step again, and must then draw the same masks.
        """
        if self.args.device.type != "cpu" or self.args.gradient_checkpointing:
            yield
            return
        with CheapDropout(*place), RowGradients():
            yield

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
                with self._laid_out(micro_batch) as there:
                    loss, logits, _ = step(model, there, False, ignore_keys)
                # They come in order of length, as its share does.
                table[moved(rows[start : start + len(logits)], table.device)] = logits.float()
                total, start = total + loss * len(logits), start + len(logits)
            return total

        total = self.group.add_up(self._with_less_memory(ours, attempt))
        return total / n, self.group.add_up(table), moved(inputs["labels"], table.device)

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

    @property
    def _asks_later(self) -> bool:
        """Whether the device itself leaves out a step whose numbers are not finite, so that nobody needs to wait."""
        return self.args.device.type == "cuda" and not self.args.fp16 and can_skip(self.optimizer.optimizer)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        parts, self._parts = self._parts, ()
        if self._asks_later:
            self._question = Question(parts, norm)
            self.optimizer.optimizer.found_inf = self._question.wrong
        elif norm is not None and not self.args.fp16 and not math.isfinite(norm):  # fp16 skips such a step by itself
            raise self._of_gradient(parts[-1])
        return norm

    def _settle(self) -> None:
        """See what became of the last step that was asked about."""
        question, self._question = self._question, None
        wrong = question.answer() if question else None
        if question and wrong is not None:
            raise self._of_gradient(question.parts[-1]) if isinstance(wrong, str) else self._not_finite(wrong)

    def _maybe_log_save_evaluate(self, *given: Any, **named: Any) -> None:
        if self.control.should_evaluate or self.control.should_save or self.control.should_training_stop:
            self._settle()
        super()._maybe_log_save_evaluate(*given, **named)

    def _of_gradient(self, part: Part) -> NotFiniteError:
        return NotFiniteError(f"the gradient of step {part.place[0] + 1:,}", [], self.rows_of(*part.place))

    def _not_finite(self, part: Part) -> NotFiniteError:
        """Find out which texts of a batch it is; those whose loss is not finite without dropout either."""
        batch, model = self.rows_of(*part.place), self.model
        inputs = {name: values.to(self.args.device) for name, values in part.inputs.items()}
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
        return NotFiniteError(f"the loss of step {part.place[0] + 1:,}", alone, batch)

    def _determine_best_metric(self, metrics: Any, trial: Any) -> bool:
        """Take the last evaluation for the best where it is; the Trainer itself keeps the first of equal scores."""
        if self.won():
            self.state.best_metric = None
        return bool(super()._determine_best_metric(metrics, trial))

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


def _mixed(*numbers: int) -> int:
    """Return a seed that is another one for any other numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))
