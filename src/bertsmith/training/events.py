"""What happens while a model trains. Whoever saves, logs, draws progress or prunes only reads these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Started:
    """Training begins (or goes on, at ``step``).

    Attributes:
        step: optimizer steps already done.
        steps: optimizer steps if nothing stops training early.
        epochs: epochs likewise.
    """

    step: int
    steps: int
    epochs: float


@dataclass(frozen=True)
class StepDone:
    """One optimizer step is done.

    Attributes:
        step, epoch: how far training is.
        texts_per_second: of the steps since the last evaluation, evaluation not counted.
    """

    step: int
    epoch: float
    texts_per_second: float


@dataclass(frozen=True)
class Evaluated:
    """The validation split was scored.

    Attributes:
        step, epoch: how far training is.
        train_loss: mean over the steps since the last evaluation.
        validation_loss: mean over the validation texts.
        metrics: of the validation split, by name.
        learning_rate: at this step.
        texts_per_second, tokens_per_second: of training since the last evaluation, evaluation not counted.
        padding: share of what went through the model that was padding.
        shares: of that time, for ``data``, ``forward``, ``backward`` and ``optimizer``.
        seconds: since training began.
        best: whether the primary metric is the best so far.
    """

    step: int
    epoch: float
    train_loss: float
    validation_loss: float
    metrics: dict[str, float]
    learning_rate: float
    texts_per_second: float
    tokens_per_second: float
    padding: float
    shares: dict[str, float]
    seconds: float
    best: bool


@dataclass(frozen=True)
class Saved:
    """A checkpoint to resume from was written."""

    step: int
    path: Path


@dataclass(frozen=True)
class Finished:
    """Training is over and the best epoch's weights are in the model.

    Attributes:
        step, epoch: how far it went.
        best_step, best_score: where the primary metric was best, and how good; ``None`` without validation texts.
        selected: whether the best epoch was chosen; else the last one is the best.
        stopped_early: whether patience ran out before the last epoch.
        seconds: of training and evaluation together.
    """

    step: int
    epoch: float
    best_step: int
    best_score: float | None
    selected: bool
    stopped_early: bool
    seconds: float


@dataclass(frozen=True)
class FoldStarted:
    """Training on all folds but one begins; ``number``, from 1, is the fold that is left out."""

    number: int
    of: int


@dataclass(frozen=True)
class FoldDone:
    """The texts of a fold were scored; ``score`` is their macro-F1."""

    number: int
    of: int
    score: float


@dataclass(frozen=True)
class MemoryShort:
    """A micro-batch did not fit into memory; the step is done again with half the token budget, to the same result."""

    step: int
    token_budget: int


@dataclass(frozen=True)
class MemoryPlanned:
    """Less memory is free (bytes) than is usual to use: the token budget is smaller, the result the same."""

    token_budget: int
    free: int


@dataclass(frozen=True)
class Slowed:
    """Steps take much longer than the first ones did, as beside another busy program.

    Attributes:
        step: optimizer steps done.
        times: how many times as long, for as many tokens.
        load: processes that want a core, on average over the last minute; ``None`` where the system does not say.
        cores: cores this process may use.
    """

    step: int
    times: float
    load: float | None
    cores: int


@dataclass(frozen=True)
class Compiling:
    """The rest of training takes so many seconds that compiling the model's layers pays; that comes next."""

    step: int
    seconds: float


@dataclass(frozen=True)
class WentBack:
    """A number was NaN or infinite: training goes on from ``to_step``, in fp32 and with half the learning rate.

    Attributes:
        step: optimizer steps done when it was noticed.
        to_step: those done in the state it goes back to; 0: the beginning.
        what: which number, where, and the likely cause.
        learning_rate: the peak from now on.
    """

    step: int
    to_step: int
    what: str
    learning_rate: float


@dataclass(frozen=True)
class Collapsed:
    """At an evaluation, the first such one, every validation text was given the same label, ``label_text``."""

    step: int
    epoch: float
    label_text: str


@dataclass(frozen=True)
class CheckpointsDamaged:
    """A run goes on from an earlier checkpoint (``step``; 0: from the beginning): the later ones were not whole."""

    step: int
    damaged: list[int]


Event = (
    Started
    | Slowed
    | CheckpointsDamaged
    | StepDone
    | Evaluated
    | Collapsed
    | Saved
    | MemoryPlanned
    | Compiling
    | MemoryShort
    | WentBack
    | FoldStarted
    | FoldDone
    | Finished
)
Listener = Callable[[Event], None]
