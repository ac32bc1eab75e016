"""The functions of ``import bertsmith as bs``: the pipeline, with settings as keyword arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertsmith.compute.machine import use_cores
from bertsmith.config import Config, DataConfig, resolve
from bertsmith.data.table import Table
from bertsmith.errors import ConfigError, RunFolderError, listing, path_of
from bertsmith.folders.run import Run, open_run

if TYPE_CHECKING:
    import pandas as pd

    from bertsmith.data.findings import Findings
    from bertsmith.events import RunListener, StudyListener
    from bertsmith.folders.study import Study
    from bertsmith.inference.export import Export
    from bertsmith.inference.predictor import Predictor


def read_table(source: Any = None, **settings: Any) -> Table:
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


def inspect(table: Any, **settings: Any) -> Findings:
    """Look a table over: classes, lengths, duplicates, conflicts, leaks, damage. Nothing is changed.

    Args:
        table: what `read_table` returns or takes.
        **settings: fields of `DataConfig` and `ModelConfig`; ``model`` says whose tokens to count.

    Raises:
        UserError: if the table cannot be read.
    """
    config = resolve(settings, api=True)
    return inspect_table(as_table(table, config), config)


def train(
    table: Any,
    *,
    output: Path | str,
    resume: bool = False,
    overwrite: bool = False,
    config: Path | str | None = None,
    on_event: RunListener | None = None,
    stop: Callable[[], bool] | None = None,
    **settings: Any,
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
    from bertsmith.workflows.seeds import run_seeds

    resolved = resolve(settings, None if config is None else path_of(config, "config"), api=True, check_set=problems_of)
    use_cores(resolved.threads)
    return run_seeds(
        lambda: as_table(table, resolved),
        resolved,
        path_of(output, "output"),
        resume=resume,
        overwrite=overwrite,
        observe=on_event or (lambda event: None),
        stop=stop or (lambda: False),
    )


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
    **settings: Any,
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

    try:
        from bertsmith.tuning.plan import Plan
        from bertsmith.workflows.tune import run_tuning
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"tuning needs the package {error.name}", remedy="Install it: pip install 'bertsmith[tune]'."
        ) from error
    resolved = resolve(settings, None if config is None else path_of(config, "config"), api=True, check_set=problems_of)
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
        space if space is None or isinstance(space, Mapping) else path_of(space, "space"),
    )
    return run_tuning(
        lambda: as_table(table, resolved),
        resolved,
        path_of(output, "output"),
        plan,
        overwrite=overwrite,
        observe=on_event or (lambda event: None),
        stop=stop or (lambda: False),
    )


def evaluate(
    run: Run | Path | str, table: Any, *, name: str | None = None, overwrite: bool = False, **settings: Any
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
    folder = run.path if isinstance(run, Run) else path_of(run, "run")
    return run_evaluation(folder, table, resolve(settings, api=True), name=name, overwrite=overwrite).metrics


def compare(*runs: Run | Path | str) -> list[dict[str, Any]]:
    """Put finished runs side by side on their test rows, each paired with the first.

    Args:
        *runs: two or more runs, or their folders; their test rows and classes must be the same.

    Returns:
        One entry per run, as from `compare_classifiers`, and ``texts``, the number of test rows.

    Raises:
        UserError: if a run is not finished, or the test rows differ, so that nothing could be paired.
    """
    import numpy as np

    from bertsmith.evaluation.evaluate import compare_classifiers
    from bertsmith.workflows.score import groups_in, targets_of

    opened = [run if isinstance(run, Run) else open_run(run) for run in runs]
    if len(opened) < 2:
        raise ConfigError("there is nothing to compare", remedy="Give two or more runs.")
    names = [str(run.path) for run in opened]
    if len(set(names)) < len(names):
        raise ConfigError("the same run is given twice", where=", ".join(names), remedy="Give each run once.")
    frames = [run.predictions.sort_values(["row", "text"], ignore_index=True) for run in opened]
    first = frames[0]
    for run, frame in zip(opened[1:], frames[1:], strict=True):
        if run.labels != opened[0].labels:
            raise RunFolderError(
                "the runs have other classes, so they cannot be compared", where=f"{names[0]} and {run.path}"
            )
        if len(frame) != len(first) or not (frame[["text", "label"]] == first[["text", "label"]]).all(axis=None):
            common = len(set(frame["text"]) & set(first["text"]))
            raise RunFolderError(
                "the runs were tested on other rows, so they cannot be paired: "
                f"{len(first):,} and {len(frame):,} texts, {common:,} in common",
                where=f"{names[0]} and {run.path}",
                remedy="Train both with the same table, --seed and split settings, or with the same --test table.",
            )
    targets = targets_of(first, opened[0].labels)
    # So that every run's intervals are those of its report.
    seeds = [run.info.get("best_seed", run.info["config"]["seed"]) for run in opened]
    tables = {name: np.stack(f["probabilities"].to_list()) for name, f in zip(names, frames, strict=True)}
    return [
        {"texts": len(targets), **entry}
        for entry in compare_classifiers(targets, tables, seeds=seeds, groups=groups_in(first))
    ]


def load(
    run: Run | Path | str,
    *,
    device: str = "auto",
    decide: bool = True,
    ensemble: bool = False,
    runtime: str = "auto",
    long: str = "truncate",
) -> Predictor:
    """Load the classifier of a finished run, or an export.

    Args:
        run: the run, its folder, or an export folder.
        device: where to compute.
        decide: use the decision rule tuned on validation, where the run has one.
        ensemble: ask the models of all seeds together, where the run was trained with several.
        runtime: ``"torch"``; ``"onnx"`` or ``"openvino"`` for an export of the run; ``"auto"``: the fastest fp32 export
            that was checked, else torch.
        long: of texts longer than the model reads at once, ``"truncate"``: read the beginning; ``"window"``: all of it.

    Raises:
        UserError: if there is none.
    """
    from bertsmith.inference.load import open_classifier

    path = run.path if isinstance(run, Run) else run
    return open_classifier(path, device=device, decide=decide, ensemble=ensemble, runtime=runtime, long=long)[0]


def export(
    run: Run | Path | str,
    *,
    format: str = "onnx",
    precision: str = "fp32",
    output: Path | str | None = None,
    accept: bool = False,
    overwrite: bool = False,
) -> Export:
    """Export a run for a runtime that needs no torch, and check it against the original on validation and test texts.

    Args:
        run: the run, or its folder.
        format: ``"onnx"`` or ``"openvino"``.
        precision: ``"fp32"`` or ``"int8"``; with OpenVINO ``"bf16"`` too.
        output: the folder to write; ``RUN/export/FORMAT`` unless given, with ``-PRECISION`` but for fp32.
        accept: write it even if it does not say what the original says.
        overwrite: replace an export that is there.

    Returns:
        Where it is, and how it compares (``about.parity``).

    Raises:
        UserError: if it cannot be made, or labels texts otherwise than the original.
    """
    from bertsmith.inference.export import export as write

    return write(
        run,
        format=format,
        precision=precision,
        output=path_of(output, "output") if output is not None else None,
        accept=accept,
        overwrite=overwrite,
    )


def label_errors(table: Any, **settings: Any) -> pd.DataFrame:
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
    return suspected(as_table(table, config), config)


def suspected(table: Table, config: Config) -> pd.DataFrame:
    """Do what `label_errors` does, with a table that is read and settings that are resolved."""
    import numpy as np

    from bertsmith.data.clean import clean
    from bertsmith.data.corrections import COLUMNS
    from bertsmith.evaluation.label_errors import find_label_errors

    usable = clean(table).table
    found = find_label_errors(usable.frame["text"].tolist(), usable.targets, len(table.labels), seed=config.seed)
    rows = usable.frame.iloc[found["position"].to_numpy()].reset_index(drop=True)
    texts = np.array(table.labels.texts, dtype=object)
    return rows.assign(
        given=texts[rows["target"]], suggested=texts[found["suggested"]], corrected="", **found.iloc[:, 2:]
    )[list(COLUMNS)]


def as_table(table: Any, config: Config) -> Table:
    """Return a table that is read already as it is, and read everything else.

    Raises:
        ConfigError: if settings that say how to read are given for a table that is read.
    """
    if not isinstance(table, Table):
        from bertsmith.data import read

        return read.read_table(table, config)
    late = [
        name
        for name, field in DataConfig.model_fields.items()
        if name not in ("validation_size", "test_size", "near_duplicates") and getattr(config, name) != field.default
    ]
    if late:
        raise ConfigError(
            f"the table is read already, so {listing(late)} would have no effect", remedy="Give them to read_table."
        )
    return table


def inspect_table(table: Table, config: Config) -> Findings:
    """Inspect with the tokenizer of the configured checkpoint if it is on this machine, else with an estimate."""
    from bertsmith.data import inspect as inspecting
    from bertsmith.data.clean import clean
    from bertsmith.model import checkpoint

    tokenizer = checkpoint.local_tokenizer(config.model)
    if tokenizer is None:
        return inspecting.inspect(table, max_length=config.max_length, config=config)
    encoder, names = checkpoint.encoder_from(tokenizer, table.frame["text"].dropna().tolist())
    cleaned = clean(table)
    return inspecting.inspect(
        table,
        tokens=encoder.encode(cleaned.table.frame["text"].tolist()),
        names=names,
        max_length=config.max_length,
        cleaned=cleaned,
        config=config,
    )
