"""Read, inspect, train, tune, evaluate and compare, with settings as keyword arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from bertsmith.compute.machine import use_cores
from bertsmith.data.table import Table
from bertsmith.errors import ConfigError, listing, needing, to_path
from bertsmith.folders.run import Run, open_run
from bertsmith.resolve import resolve

if TYPE_CHECKING:
    import pandas as pd

    from bertsmith.data.findings import Findings
    from bertsmith.events import RunListener, StudyListener
    from bertsmith.folders.study import Study
    from bertsmith.keywords import (
        EvaluateSettings,
        InspectSettings,
        LabelErrorSettings,
        ReadSettings,
        TrainSettings,
        TuneSettings,
    )


@needing("train")
def read_table(source: Any = None, **settings: Unpack[ReadSettings]) -> Table:
    """Read a labelled table.

    Args:
        source: a path, ``hf://owner/name``, a pandas data frame, a ``datasets.Dataset``; none with ``sql`` and ``db``.
        **settings: fields of `DataConfig`, such as ``text_column``. ``validation`` and ``test`` take what ``source``
            takes.

    Raises:
        UserError: if it cannot be read, or its labels do not make sense.
    """
    from bertsmith.data import read

    return read.read_table(source, resolve(settings, api=True))


@needing("train")
def inspect(table: Any, **settings: Unpack[InspectSettings]) -> Findings:
    """Look a table over: classes, lengths, duplicates, conflicts, leaks, damage. Nothing is changed.

    Args:
        table: what `read_table` returns or takes.
        **settings: fields of `DataConfig` and `ModelConfig`; ``model`` says whose tokens to count.

    Raises:
        UserError: if the table cannot be read.
    """
    config = resolve(settings, api=True)
    from bertsmith.workflows.inspect import as_table, check_read_settings, inspect_table

    check_read_settings(table, config)
    return inspect_table(as_table(table, config), config)


@needing("train")
def train(
    table: Any,
    *,
    output: Path | str,
    resume: bool = False,
    overwrite: bool = False,
    config: Path | str | None = None,
    on_event: RunListener | None = None,
    stop: Callable[[], bool] | None = None,
    **settings: Unpack[TrainSettings],
) -> Run:
    """Fine-tune and evaluate a classifier, end to end, into a run folder.

    Args:
        table: what `read_table` returns or takes.
        output: the run folder.
        resume: go on with an unfinished run.
        overwrite: replace a finished run.
        config: a TOML file of settings; keyword arguments win over it.
        on_event: is told what happens (see `bertsmith.events`); ``print`` will do.
        stop: asked after every step; where it says yes, a checkpoint is saved and training is interrupted.
        **settings: fields of `DataConfig`, `ModelConfig` and `TrainConfig`, such as ``model`` or ``epochs``.

    Raises:
        UserError: for everything that the user can mend.
        Interrupted: after ``stop`` said yes.
    """
    from bertsmith.training.arguments import problems_of
    from bertsmith.workflows.inspect import check_read_settings
    from bertsmith.workflows.seeds import run_seeds

    resolved = resolve(settings, None if config is None else to_path(config, "config"), api=True, check_set=problems_of)
    check_read_settings(table, resolved)
    use_cores(resolved.threads)
    return run_seeds(
        table,
        resolved,
        to_path(output, "output"),
        resume=resume,
        overwrite=overwrite,
        observe=on_event or (lambda event: None),
        stop=stop or (lambda: False),
    )


@needing("tune")
def tune(
    table: Any,
    *,
    output: Path | str,
    trials: int | None = 20,
    minutes: float | None = None,
    jobs: int = 1,
    objectives: Sequence[str] = ("macro_f1",),
    storage: str | None = None,
    cv: int | None = None,
    final_seeds: int = 1,
    models: Sequence[str] = (),
    space: Path | str | Mapping[str, Any] | None = None,
    overwrite: bool = False,
    config: Path | str | None = None,
    on_event: StudyListener | None = None,
    stop: Callable[[], bool] | None = None,
    **settings: Unpack[TuneSettings],
) -> Study:
    """Search for better settings than the defaults with Optuna; train and test the winner, and the defaults beside it.

    The choice is made on validation alone. The same call goes on with a study that is there.

    Args:
        table: what `read_table` returns or takes.
        output: the study folder.
        trials: how many; with ``None``, until ``minutes`` are over.
        minutes: for the search.
        jobs: trials at once, a process each: a script that asks for several needs ``if __name__ == "__main__":``.
        objectives: ``"macro_f1"``, or with ``"latency"`` besides.
        storage: URL of a database, where several machines join in one study.
        cv: folds of a cross-validation, where the validation texts are few.
        final_seeds: seeds that the winner is trained with in the end.
        models: checkpoints to choose among.
        space: what changes the search space: a TOML file or a dict, such as
            ``{"learning_rate": {"low": 1e-5, "high": 1e-4, "log": True}, "batch_size": [16, 32], "dropout": 0.1}``.
        overwrite: begin anew.
        config: a TOML file of settings; keyword arguments win over it.
        on_event: is told what happens (see `bertsmith.events`); ``print`` will do.
        stop: asked after every step; where it says yes, the search ends, and finished trials are kept.
        **settings: fields of `DataConfig`, `ModelConfig`, `TrainConfig` and `EvalConfig`; what is given is not varied.

    Raises:
        UserError: for everything that the user can mend.
        Interrupted: after ``stop`` said yes.
    """
    from bertsmith.training.arguments import problems_of
    from bertsmith.tuning.plan import Plan
    from bertsmith.workflows.inspect import check_read_settings
    from bertsmith.workflows.tune import run_tuning

    resolved = resolve(settings, None if config is None else to_path(config, "config"), api=True, check_set=problems_of)
    check_read_settings(table, resolved)
    use_cores(resolved.threads)
    plan = Plan(
        trials,
        minutes,
        jobs,
        tuple(objectives),
        storage,
        cv,
        final_seeds,
        tuple(models),
        space if space is None or isinstance(space, Mapping) else to_path(space, "space"),
    )
    return run_tuning(
        table,
        resolved,
        to_path(output, "output"),
        plan,
        overwrite=overwrite,
        observe=on_event or (lambda event: None),
        stop=stop or (lambda: False),
    )


@needing("train")
def evaluate(
    run: Run | Path | str,
    table: Any,
    *,
    name: str | None = None,
    overwrite: bool = False,
    **settings: Unpack[EvaluateSettings],
) -> dict[str, Any]:
    """Score a finished run on another labelled table; the figures are also kept in ``RUN/evaluations/NAME``.

    Args:
        run: the run, or its folder.
        table: what `read_table` takes.
        name: of the evaluation; the table's name unless given.
        overwrite: replace an evaluation of that name, of another table or of this one before it was changed.
        **settings: fields of `DataConfig` but ``validation`` and ``test``, and ``device``.

    Returns:
        As in ``metrics.json`` for one split.

    Raises:
        UserError: if the run or the table is not usable.
    """
    from bertsmith.workflows.evaluate import run_evaluation

    if others := [name for name in ("validation", "test") if settings.get(name) is not None]:
        raise ConfigError(
            f"evaluate scores one table, so {listing(others)} would have no effect",
            remedy="Give the table to score as the second argument.",
        )
    folder = run.path if isinstance(run, Run) else to_path(run, "run")
    return run_evaluation(folder, table, resolve(settings, api=True), name=name, overwrite=overwrite).metrics


@needing("train")
def compare(*runs: Run | Path | str) -> list[dict[str, Any]]:
    """Put finished runs side by side on their test rows, each paired with the first.

    Args:
        *runs: two or more runs, or their folders; their test rows and classes must be the same.

    Returns:
        One entry a run, as of `bertsmith.evaluation.evaluate.side_by_side`, with ``texts``, the number of test rows.

    Raises:
        UserError: if a run is not finished, or the test rows differ, so that nothing could be paired.
    """
    from bertsmith.workflows.compare import compare_runs

    return compare_runs([run if isinstance(run, Run) else open_run(run) for run in runs])


@needing("label-errors")
def label_errors(table: Any, **settings: Unpack[LabelErrorSettings]) -> pd.DataFrame:
    """Find labels that are probably wrong, by cross-validation with a bag of words.

    Args:
        table: what `read_table` returns or takes.
        **settings: fields of `DataConfig`, and ``seed``.

    Returns:
        The suspected rows, the least plausible first: ``source``, ``row``, ``text``, ``given`` and ``suggested`` label
        text, their probabilities, and ``corrected``, which is empty: filled in, saved as a CSV and given as
        ``corrections``, it puts the labels right.

    Raises:
        UserError: if the table cannot be read, or the package cleanlab is missing.
    """
    config = resolve(settings, api=True)
    from bertsmith.workflows.inspect import as_table, check_read_settings, suspected_label_errors

    check_read_settings(table, config)
    return suspected_label_errors(as_table(table, config), config)
