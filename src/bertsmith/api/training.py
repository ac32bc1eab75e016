"""Read, inspect, train, tune, evaluate and compare, with settings as keyword arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from bertsmith.api.keyword_types import (
    EvaluateSettings,
    InspectSettings,
    LabelErrorSettings,
    ReadSettings,
    TrainSettings,
    TuneSettings,
)
from bertsmith.api.public import public, settings_of
from bertsmith.compute.machine import use_cores
from bertsmith.config import Config
from bertsmith.data.table import Table
from bertsmith.errors import ConfigError, to_path
from bertsmith.folders.remote import run_output
from bertsmith.folders.run import Run, open_run
from bertsmith.load_config import resolve

if TYPE_CHECKING:
    import pandas as pd

    from bertsmith.data.findings import Findings
    from bertsmith.events import RunListener, StudyListener
    from bertsmith.folders.study import Study
    from bertsmith.tracking.trackers import TrackerName


@public("train")
def read_table(source: Any = None, **settings: Unpack[ReadSettings]) -> Table:
    """Read a labelled table.

    Args:
        source: a path, ``hf://owner/name``, a pandas data frame, a ``datasets.Dataset``, or a table of Polars, DuckDB
            or PyArrow (any object with ``__arrow_c_stream__``). ``None`` with ``sql`` and ``db``.
        **settings: fields of `DataConfig` for reading, such as ``text_column``. ``validation`` and ``test`` accept the
            same types as ``source``.

    Raises:
        UserError: if the table cannot be read, or its labels are not usable.
    """
    from bertsmith.data import read

    return read.read_table(source, settings_of(settings, ReadSettings))


@public("train")
def inspect(table: Any, **settings: Unpack[InspectSettings]) -> Findings:
    """Check a table for its classes, text lengths, duplicates, conflicting labels, leaks and damaged texts.

    Args:
        table: a `Table`, or what `read_table` takes.
        **settings: fields of `DataConfig` and `ModelConfig`, and ``seed``; the tokenizer of ``model`` counts tokens.

    Raises:
        UserError: if the table cannot be read.
    """
    config = settings_of(settings, InspectSettings)
    from bertsmith.workflows.inspect import as_table, check_read_settings, inspect_table

    check_read_settings(table, config)
    return inspect_table(as_table(table, config), config)


@public("train")
def train(
    table: Any,
    *,
    output: Path | str,
    resume: bool = False,
    overwrite: bool = False,
    ray: str | None = None,
    workers: int = 1,
    config: Path | str | None = None,
    progress: bool | None = None,
    track: TrackerName | None = None,
    on_event: RunListener | None = None,
    stop: Callable[[], bool] | None = None,
    **settings: Unpack[TrainSettings],
) -> Run:
    """Fine-tune and evaluate a classifier, end to end, into a run folder.

    Args:
        table: a `Table`, or what `read_table` takes.
        output: the run folder; with ``ray``, also a URL that fsspec can write to, such as ``"s3://bucket/run"``.
        resume: continue an unfinished run, or begin if ``output`` has none.
        overwrite: replace an existing run.
        ray: the address of a Ray cluster, or ``"local"``; all its machines need access to table and output.
            If ``output`` is a URL, the returned `Run` is a copy in a temporary folder.
        workers: number of workers of the cluster.
        config: a TOML file of settings; keyword arguments take precedence.
        progress: show the progress; by default in notebooks only.
        track: send settings and metrics, but no text, to an experiment tracker.
        on_event: called with each event (see `bertsmith.events`), for example ``print``.
        stop: called after every step; if it returns true, training saves a checkpoint and is interrupted.
        **settings: fields of `DataConfig`, `ModelConfig`, `TrainConfig` and `EvalConfig`, such as ``epochs``.

    Raises:
        UserError: for everything that the user can fix.
        Interrupted: if ``stop`` returned true.
    """
    if ray is None and workers != 1:
        raise ConfigError("workers needs ray", remedy='Pass ray="local", or leave out workers.')
    place = run_output(output, ray=ray is not None)
    from bertsmith.progress.display import shown
    from bertsmith.progress.training import TrainingProgress
    from bertsmith.tracking.listener import Tracking
    from bertsmith.workflows.seeds import run_seeds

    run: Callable[..., Run] = run_seeds
    if ray is not None:
        from bertsmith.workflows.train_on_ray import train_on_ray

        run = partial(train_on_ray, address=ray, workers=workers)
    resolved = _resolve_training(table, settings, config)
    with shown(progress, on_event, TrainingProgress) as show, Tracking(track, place, resolved, show) as observe:
        return run(
            table,
            resolved,
            place,
            resume=resume,
            overwrite=overwrite,
            observe=observe,
            stop=stop or (lambda: False),
        )


def _resolve_training(table: Any, settings: Mapping[str, Any], file: Path | str | None) -> Config:
    from bertsmith.training.arguments import argument_problems
    from bertsmith.workflows.inspect import check_read_settings

    config = resolve(settings, None if file is None else to_path(file, "config"), api=True, check_set=argument_problems)
    check_read_settings(table, config)
    use_cores(config.threads)
    return config


def _names(values: Sequence[str]) -> tuple[str, ...]:
    """Return names as a tuple; a string is one name."""
    return (values,) if isinstance(values, str) else tuple(values)


@public("tune")
def tune(
    table: Any,
    *,
    output: Path | str,
    trials: int | None = 20,
    minutes: float | None = None,
    jobs: int = 1,
    objectives: Sequence[str] = (),
    storage: str | None = None,
    cv: int | None = None,
    final_seeds: int = 1,
    models: Sequence[str] = (),
    space: Path | str | Mapping[str, Any] | None = None,
    overwrite: bool = False,
    config: Path | str | None = None,
    progress: bool | None = None,
    track: TrackerName | None = None,
    on_event: StudyListener | None = None,
    stop: Callable[[], bool] | None = None,
    **settings: Unpack[TuneSettings],
) -> Study:
    """Search for better settings than the defaults with Optuna; train and test the best and the default settings.

    Only the training and validation texts select settings. The same call resumes an existing study.

    Args:
        table: a `Table`, or what `read_table` takes.
        output: the study folder.
        trials: number of trials; ``None`` for a limit of ``minutes`` only.
        minutes: time limit of the search in minutes.
        jobs: number of parallel trials, each in a process; a script needs ``if __name__ == "__main__":``.
        objectives: the primary metric of the task, such as ``"macro_f1"``, optionally with ``"latency"``; by default
            the metric alone.
        storage: URL of a database, for a study on several machines.
        cv: number of cross-validation folds per trial, for few validation texts.
        final_seeds: number of seeds for the final training with the best and the default settings.
        models: checkpoints to choose from.
        space: changes to the search space: a TOML file or a dict, such as
            ``{"learning_rate": {"low": 1e-5, "high": 1e-4, "log": True}, "batch_size": [16, 32], "dropout": 0.1}``.
        overwrite: replace an existing study; not with ``storage``.
        config: a TOML file of settings; keyword arguments take precedence.
        progress: show the progress; by default in notebooks only.
        track: send settings and metrics, but no text, to an experiment tracker.
        on_event: called with each event (see `bertsmith.events`), for example ``print``.
        stop: called after every step; if it returns true, the search ends and finished trials are saved.
        **settings: fields of `DataConfig`, `ModelConfig`, `TrainConfig` and `EvalConfig`.
            The search does not vary them.

    Raises:
        UserError: for everything that the user can fix.
        Interrupted: if ``stop`` returned true.
    """
    from bertsmith.progress.display import shown
    from bertsmith.progress.tuning import TuningProgress
    from bertsmith.tracking.listener import Tracking
    from bertsmith.tuning.config import StudyConfig
    from bertsmith.workflows.tune import run_tuning

    resolved, folder = _resolve_training(table, settings, config), to_path(output, "output")
    plan = StudyConfig(
        trials,
        minutes,
        jobs,
        _names(objectives),
        storage,
        cv,
        final_seeds,
        _names(models),
        space if space is None or isinstance(space, Mapping) else to_path(space, "space"),
    )
    with shown(progress, on_event, TuningProgress) as show, Tracking(track, folder, resolved, show) as observe:
        return run_tuning(
            table,
            resolved,
            folder,
            plan,
            overwrite=overwrite,
            observe=observe,
            stop=stop or (lambda: False),
        )


@public("train")
def evaluate(
    run: Run | Path | str,
    table: Any,
    *,
    name: str | None = None,
    overwrite: bool = False,
    **settings: Unpack[EvaluateSettings],
) -> dict[str, Any]:
    """Score a finished run on another labelled table, and save the metrics in ``RUN/evaluations/NAME``.

    Args:
        run: the run, or its folder.
        table: what `read_table` takes.
        name: name of the evaluation; the name of the table by default.
        overwrite: replace an evaluation of the same name, on another table or an older version of the table.
        **settings: ``device``, ``long``, and the fields of `DataConfig` for reading one table.

    Returns:
        Metrics in the format of a split in ``metrics.json``. ``left_out`` counts the dropped rows by reason, and
        ``seen_in_training`` the texts that the run was trained or validated on.

    Raises:
        UserError: if the run or the table is not usable.
    """
    from bertsmith.workflows.evaluate import run_evaluation

    folder = to_path(run, "run")
    config = settings_of(settings, EvaluateSettings)
    return run_evaluation(folder, table, config, name=name, overwrite=overwrite).metrics


@public("train")
def compare(*runs: Run | Path | str) -> list[dict[str, Any]]:
    """Compare finished runs on the same test rows, each with the first.

    Args:
        *runs: two or more runs, or their folders; their test rows and classes must be the same.

    Returns:
        One entry per run, as from `bertsmith.evaluation.evaluate.compare_classifiers`. Each entry also has ``texts``,
        the number of test rows.

    Raises:
        UserError: if a run is not finished, or the test rows differ.
    """
    from bertsmith.workflows.compare import compare_runs

    return compare_runs([open_run(run) for run in runs])


@public("train")
def label_errors(table: Any, **settings: Unpack[LabelErrorSettings]) -> pd.DataFrame:
    """Find labels that may be wrong, by cross-validation with a regression on the texts.

    The regression reads embeddings if ``model`` is a local checkpoint made for sentence embeddings. By default, the
    model is MiniLM if it is installed and the texts are English. In all other cases, and for pairs or more than 10,000
    texts, the regression reads a bag of words.

    Args:
        table: a `Table`, or what `read_table` takes.
        **settings: fields of `DataConfig` for reading, and ``seed``, ``model``, ``device`` and ``max_length``.

    Returns:
        The suspected rows, the least plausible label first. The columns are ``source``, ``row``, ``text`` (all columns
        that the model reads), ``pair`` for pairs, ``given`` and ``suggested`` (label texts), their probabilities, and
        ``corrected``, which is empty. Fill in this column, save the table as CSV, and pass the file as ``corrections``.

    Raises:
        UserError: if the table cannot be read, or the package cleanlab is missing.
    """
    config = settings_of(settings, LabelErrorSettings)
    from bertsmith.workflows.inspect import as_table, check_read_settings, suspected_label_errors

    check_read_settings(table, config)
    return suspected_label_errors(as_table(table, config), config)
