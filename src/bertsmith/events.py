"""All events: what happens while a table is prepared, a model trains or a study runs. Listeners dispatch by type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bertsmith.data.clean import Cleaned
    from bertsmith.data.findings import Findings
    from bertsmith.data.table import Note
    from bertsmith.training.recipe import Recipe
    from bertsmith.tuning.space import Space


@dataclass(frozen=True)
class SeedStarted:
    """Training with one of several seeds begins (or goes on); ``number`` counts from 1."""

    seed: int
    number: int
    of: int


@dataclass(frozen=True)
class Prepared:
    """Everything is ready for training."""

    findings: Findings
    cleaned: Cleaned
    split: dict[str, int]
    model: str
    parameters: int
    device: str
    max_length: int
    recipe: Recipe
    folds: int = 0


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


@dataclass(frozen=True)
class Scoring:
    """The fitted model is about to be scored on so many texts."""

    texts: int


@dataclass(frozen=True)
class Scored:
    """So many more texts were scored."""

    texts: int


@dataclass(frozen=True)
class InputOpened:
    """The texts to predict are open.

    Attributes:
        n_rows: number of rows; ``None`` if unknown.
        notes: what reading found or repaired.
        left_out: position and reason of each row that cannot be read.
    """

    n_rows: int | None
    notes: tuple[Note, ...]
    left_out: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ModelOpened:
    """The model is loaded; ``export`` is the format of the run's export that is used, ``None`` without one."""

    export: str | None


@dataclass(frozen=True)
class RowsResumed:
    """So many rows were predicted before the command was resumed."""

    rows: int


@dataclass(frozen=True)
class RowsPredicted:
    """So many more rows are predicted."""

    rows: int


@dataclass(frozen=True)
class StudyStarted:
    """The study is open.

    Attributes:
        trials: how many there are to be; ``None`` where time alone ends it.
        done: how many are done already, of an earlier command.
        best: the best score among these; ``None`` where there is none.
        space: what is varied.
        texts: to train and to validate on, for the test at the end, and left out.
        unseen: label texts of classes without a text to validate on.
        shared: the study's name in a database, and the number of other studies there; ``None`` without one.
    """

    trials: int | None
    done: int
    best: float | None
    space: Space
    texts: tuple[int, int, int, int]
    unseen: tuple[str, ...] = ()
    shared: tuple[str, int] | None = None


@dataclass(frozen=True)
class TrialStarted:
    """A trial begins with these settings."""

    number: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class TrialScored:
    """A trial was scored on validation; ``at`` is the epoch, or the fold (from 1)."""

    number: int
    at: float
    value: float


@dataclass(frozen=True)
class TrialEnded:
    """A trial is over.

    Attributes:
        number: of the trial.
        state: ``"complete"``, ``"pruned"``, ``"failed"`` or, by the end of the search, ``"cut short"``.
        values: the objectives' values; empty where it failed or was pruned.
        seconds: it took.
        why: it failed or was cut short; else empty.
    """

    number: int
    state: str
    values: tuple[float, ...]
    seconds: float
    why: str = ""


@dataclass(frozen=True)
class StorageAway:
    """The storage did not answer, for the reason given; it is asked again."""

    why: str


@dataclass(frozen=True)
class FinalStarted:
    """The settings named are trained as a run of their own and scored on test."""

    name: str


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
"""Of one training."""
RunEvent = SeedStarted | Prepared | Event | Scoring | Scored
"""Of one run, from the table to the report."""
StudyEvent = StudyStarted | TrialStarted | TrialScored | TrialEnded | StorageAway | FinalStarted | RunEvent
"""Of a study."""
PredictionEvent = InputOpened | ModelOpened | RowsResumed | RowsPredicted
"""Of predictions."""
Listener = Callable[[Event], None]
ScoringListener = Callable[[Scoring | Scored], None]
RunListener = Callable[[RunEvent], None]
StudyListener = Callable[[StudyEvent], None]
PredictionListener = Callable[[PredictionEvent], None]
