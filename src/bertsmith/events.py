"""Events of training, prediction and tuning. Listeners dispatch by type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bertsmith.data.clean import Cleaned
    from bertsmith.data.findings import Findings
    from bertsmith.data.table import Note, Position
    from bertsmith.training.recipe import Recipe
    from bertsmith.tuning.space import Space


@dataclass(frozen=True)
class SeedStarted:
    """Training with one of several seeds begins or resumes; ``number`` counts from 1."""

    seed: int
    number: int
    of: int


@dataclass(frozen=True)
class CheckpointChosen:
    """The model ``auto`` was replaced by the checkpoint ``name`` because of ``reason``."""

    name: str
    reason: str


@dataclass(frozen=True)
class Prepared:
    """Data and model are ready for training."""

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
class TrainingEstimated:
    """The estimated time of training in seconds without early stopping, including cross-validation.

    ``may_stop``: whether training can stop early.
    """

    seconds: float
    may_stop: bool = True


@dataclass(frozen=True)
class Started:
    """Training begins, or resumes after ``step`` steps; ``steps`` and ``epochs`` are the maximum."""

    step: int
    steps: int
    epochs: float
    contrastive: bool = False


@dataclass(frozen=True)
class StepDone:
    """An optimizer step is done; ``texts_per_second`` is the training speed since the last evaluation."""

    step: int
    epoch: float
    texts_per_second: float


@dataclass(frozen=True)
class Evaluated:
    """The validation split was scored.

    Attributes:
        train_loss, validation_loss: means over the steps since the last evaluation, and over the validation texts.
        metrics: validation metrics by name.
        texts_per_second: training speed since the last evaluation.
        seconds: time since training began.
        best: whether the metric that selects the epoch is the best so far.
    """

    step: int
    epoch: float
    train_loss: float
    validation_loss: float
    metrics: dict[str, float]
    learning_rate: float
    texts_per_second: float
    seconds: float
    best: bool


@dataclass(frozen=True)
class Saved:
    """A checkpoint was written."""

    step: int
    path: Path


@dataclass(frozen=True)
class Finished:
    """Training is finished, and the model has the weights of the best epoch, or the last ones unless ``selected``.

    ``best_score`` is the best value of the metric that selects the epoch, if there are validation texts: the primary
    metric, or ``metric_for_best_model``. ``seconds`` include evaluation.
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
    """Training without a fold begins; its ``number`` counts from 1."""

    number: int
    of: int


@dataclass(frozen=True)
class FoldDone:
    """The texts of a fold were scored; ``score`` is their macro-F1."""

    number: int
    of: int
    score: float


@dataclass(frozen=True)
class MemoryExceeded:
    """A micro-batch did not fit into memory; the step is repeated with half the token budget, with the same result."""

    step: int
    token_budget: int


@dataclass(frozen=True)
class MemoryLimited:
    """Little memory is free (bytes); the token budget is reduced, with the same result."""

    token_budget: int
    free: int


@dataclass(frozen=True)
class Compiling:
    """The layers are compiled, because the rest of training takes ``seconds`` without."""

    step: int
    seconds: float


@dataclass(frozen=True)
class RolledBack:
    """``what`` was NaN or infinite at ``step``; training continues from ``to_step`` in fp32, at half the rate."""

    step: int
    to_step: int
    what: str
    learning_rate: float


@dataclass(frozen=True)
class Collapsed:
    """For the first time, an evaluation predicted the same ``label_text`` for every validation text."""

    step: int
    epoch: float
    label_text: str


@dataclass(frozen=True)
class CheckpointsDamaged:
    """Damaged checkpoints are skipped; the run resumes at ``step``, where 0 is the beginning."""

    step: int
    damaged: list[int]


@dataclass(frozen=True)
class Scoring:
    """Scoring of ``texts`` texts begins."""

    texts: int


@dataclass(frozen=True)
class AblationStarted:
    """Training on the column ``alone``, without the columns ``added``, begins; see `bertsmith.workflows.ablation`."""

    alone: str
    added: tuple[str, ...]


@dataclass(frozen=True)
class InputOpened:
    """The texts to predict are open: the number of rows, if known, and remarks such as a guessed encoding.

    ``skipped`` has the position and reason of each row that cannot be read.
    """

    n_rows: int | None
    notes: tuple[Note, ...]
    skipped: tuple[tuple[Position, str], ...]


@dataclass(frozen=True)
class ModelOpened:
    """The model is loaded; ``export`` is the format of the run's export in use, or ``None``."""

    export: str | None


@dataclass(frozen=True)
class RowsResumed:
    """``rows`` rows were already predicted before the command was resumed."""

    rows: int


@dataclass(frozen=True)
class RowsPredicted:
    """``rows`` more rows were predicted."""

    rows: int


@dataclass(frozen=True)
class StudyStarted:
    """The study is open.

    Attributes:
        trials: number of trials; ``None`` if only a time limit ends the study.
        done, best: number of trials that earlier commands finished, and their best score, if any.
        texts: number of texts by split, and of dropped rows.
        unseen: label texts of classes without validation texts.
        shared: name of the study in its database, and number of other studies in it; ``None`` without a database.
        folds: number of folds that score a trial; 0 if validation texts do.
    """

    trials: int | None
    done: int
    best: float | None
    space: Space
    texts: tuple[int, int, int, int]
    unseen: tuple[str, ...] = ()
    shared: tuple[str, int] | None = None
    folds: int = 0


@dataclass(frozen=True)
class TrialStarted:
    """A trial begins."""

    number: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class TrialScored:
    """A trial was scored on validation; ``at`` is the epoch, or the fold counted from 1."""

    number: int
    at: float
    value: float


@dataclass(frozen=True)
class TrialEnded:
    """A trial is ``"complete"`` with ``values`` of the objectives, or ``"pruned"``, ``"failed"`` or ``"cut short"``."""

    number: int
    state: str
    values: tuple[float, ...]
    seconds: float
    why: str = ""


@dataclass(frozen=True)
class StorageUnavailable:
    """The storage did not answer, for the reason ``why``; the request is repeated."""

    why: str


@dataclass(frozen=True)
class FinalStarted:
    """A final run with the settings ``name`` begins."""

    name: str


@dataclass(frozen=True)
class RunFinished:
    """The run in the folder ``path`` is finished: it has its model, metrics, report and model card."""

    path: Path


@dataclass(frozen=True)
class TrackingFailed:
    """The experiment tracker ``tracker`` failed, for the reason ``why``; training continues without it."""

    tracker: str
    why: str


_Incident = CheckpointsDamaged | Collapsed | MemoryLimited | MemoryExceeded | RolledBack | Compiling
Event = Started | StepDone | Evaluated | Saved | FoldStarted | FoldDone | Finished | _Incident
_Later = Scoring | AblationStarted | RunFinished | TrackingFailed
RunEvent = SeedStarted | CheckpointChosen | Prepared | TrainingEstimated | Event | _Later
StudyEvent = StudyStarted | TrialStarted | TrialScored | TrialEnded | StorageUnavailable | FinalStarted | RunEvent
PredictionEvent = InputOpened | ModelOpened | RowsResumed | RowsPredicted
Listener = Callable[[Event], None]
RunListener = Callable[[RunEvent], None]
StudyListener = Callable[[StudyEvent], None]
PredictionListener = Callable[[PredictionEvent], None]
