"""Train: the five steps from a table to a finished run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bertsmith.compute.device import describe_device
from bertsmith.compute.memory import is_out_of_memory
from bertsmith.config import PRIMARY, Config
from bertsmith.data.clean import clean
from bertsmith.data.inspect import inspect
from bertsmith.data.split import split_cleaned
from bertsmith.data.table import Table
from bertsmith.errors import DeviceError, Interrupted, listing
from bertsmith.evaluation.metrics import validation_metrics
from bertsmith.events import Finished, Prepared, RunListener, Scored, Scoring
from bertsmith.folders.atomic import write_json
from bertsmith.folders.claim import claim
from bertsmith.folders.new_run import RunFolder
from bertsmith.folders.run import Layout, Run, damage_errors
from bertsmith.inference.classifier import Classifier
from bertsmith.inference.explain import explain_mistakes
from bertsmith.report.card import write_card
from bertsmith.report.report import write_report
from bertsmith.training.arguments import training_arguments
from bertsmith.training.distributed import ALONE, Group, join
from bertsmith.training.recipe import Recipe
from bertsmith.training.timing import Phases
from bertsmith.training.trainer import check_memory, fit
from bertsmith.workflows.baselines import FrozenEmbeddings, baselines
from bertsmith.workflows.cross_validation import score_folds, split_or_fold
from bertsmith.workflows.inspect import as_table
from bertsmith.workflows.prepare import Splits, begin_head, choose_recipe, prepare_inputs
from bertsmith.workflows.record import begin_run, failure_recorded, history_of, resume_run
from bertsmith.workflows.score import (
    CrossValidated,
    Scores,
    look_closer,
    predictions_frame,
    score_splits,
    write_predictions,
)


def run_training(
    source: Any,
    config: Config,
    output: Path,
    *,
    resume: bool,
    overwrite: bool,
    observe: RunListener,
    stop: Callable[[], bool],
) -> Run:
    """Train into a run folder; see `bertsmith.train` for the arguments.

    The processes that torchrun starts train one model. The first of them does everything else.
    """
    group = join()
    if not group.leads:
        _assist(group, source, config, output, stop)
        group.wait()
        return Run(output)
    with claim(RunFolder(output), resume=resume, overwrite=overwrite):
        run = train_into(output, source, config, resume=resume, observe=observe, stop=stop, group=group)
        group.wait()
        return run


def train_into(
    output: Path,
    source: Any,
    config: Config,
    *,
    resume: bool,
    observe: RunListener,
    stop: Callable[[], bool],
    split_seed: int | None = None,
    before_writing: Callable[[], None] = lambda: None,
    group: Group = ALONE,
) -> Run:
    """Read, clean and split a table, fine-tune on it, score the model and write the report.

    Args:
        output: the run folder, which is claimed.
        source: the table, or what `bertsmith.read_table` takes.
        config: the settings.
        resume: continue an unfinished run.
        observe: receives the events.
        stop: asked after every step; training is interrupted if it returns true.
        split_seed: of the split; that of the run if ``None``.
        before_writing: called after the table and the model are checked, before the first write.
        group: the processes that train the model.

    Raises:
        UserError: for everything that the user can fix.
        Interrupted: if ``stop`` returned true.
    """
    phases = Phases()
    with _memory_errors():
        with phases.timed("data"):
            _check(stop, "stopped before training began")
            table = as_table(source, config)
            splits = _split(table, config, config.seed if split_seed is None else split_seed, output, resume, group)
        with phases.timed("model"):
            _check(stop, "stopped before training began")
            inputs = prepare_inputs(splits.data, config)
        loaded, parts = inputs.loaded, splits.parts
        encoded = {name: inputs.tokens.take(rows) for name, rows in splits.scored.items()}
        recipe = _recipe_of(output) if resume else choose_recipe(config, loaded, inputs.train)
        validates = splits.fold is None
        arguments = training_arguments(recipe, config, Layout(output).checkpoints, loaded.device, validates=validates)
        prepared = Prepared(
            inspect(
                table, tokens=inputs.tokens, names=loaded.names, max_length=loaded.max_length, cleaned=splits.cleaned
            ),
            splits.cleaned,
            {name: len(rows) for name, rows in splits.rows.items()},
            inputs.checkpoint.name,
            loaded.parameters,
            describe_device(loaded.device),
            loaded.max_length,
            recipe,
            splits.n_folds,
        )
        checkpoint = None
        if resume:
            run, checkpoint = resume_run(output, config, splits, inputs, prepared, phases, observe)
        else:
            kept = arguments.save_total_limit or 3
            run = begin_run(
                output, config, splits, inputs, prepared, phases, checkpoints=kept, before_writing=before_writing
            )
        observe(prepared)
        group.broadcast((recipe, checkpoint))
        with failure_recorded(run, phases):
            check_memory(loaded, inputs.train, inputs.validation)
            with phases.timed("baseline"):
                frozen = FrozenEmbeddings.embed(loaded, parts, encoded, config.seed)
                begin_head(loaded, group.broadcast(frozen.regress()))
            listen = history_of(run, phases, observe)
            with phases.timed("training"):
                crossed = None
                if splits.fold is not None:
                    probabilities = score_folds(
                        inputs.checkpoint,
                        config,
                        recipe,
                        parts["train"],
                        encoded["train"],
                        splits.fold,
                        frozen.regress,
                        run.layout.folds,
                        emit=observe,
                        stop=stop,
                    )
                    crossed = CrossValidated(splits.fold, probabilities, tested=len(splits.rows["test"]) > 0)
                finished = fit(
                    loaded,
                    inputs.train,
                    inputs.validation,
                    arguments,
                    score=validation_metrics,
                    emit=listen,
                    recipe=recipe,
                    user_arguments=config.set,
                    stop=stop,
                    resume=checkpoint,
                    trace=run.layout.trace if config.profile else None,
                    group=group,
                    name_texts=partial(_source_rows, parts["train"]),
                )
                run.save_model(loaded.save)
            with phases.timed("evaluation"):
                # The model is loaded from disk, so that the scored model is the one that the user gets.
                fitted = Classifier.load(run.layout.model, labels=table.labels, device=config.device)
                scores = score_splits(fitted, parts, encoded, run, config, _watch(observe, stop), crossed)
                details = look_closer(fitted, parts, scores, crossed)
            with phases.timed("baseline"):
                _check(stop, _WHILE_SCORING)
                rivals = baselines(parts, scores.probabilities["test"], frozen, config.seed, crossed)
                _write_scores(run, splits, scores, details, rivals)
            with phases.timed("explanations"):
                _check(stop, _WHILE_SCORING)
                seen = crossed is not None and not crossed.tested  # the model was trained on the texts
                _explain(run, fitted, splits, scores, config, phases, skip=seen)
    return _finish(run, finished, phases, config)


_WHILE_SCORING = "stopped while scoring; training is done and kept"


def _assist(group: Group, source: Any, config: Config, output: Path, stop: Callable[[], bool]) -> None:
    """Compute a share of every step of a training that another process leads, and write nothing."""
    data = split_cleaned(clean(as_table(source, config)), config, config.seed)
    inputs = prepare_inputs(data.take((data.frame["split"] != "test").to_numpy()), config)
    recipe, checkpoint = group.broadcast(None)
    begin_head(inputs.loaded, group.broadcast(None))
    fit(
        inputs.loaded,
        inputs.train,
        inputs.validation,
        training_arguments(recipe, config, Layout(output).checkpoints, inputs.loaded.device),
        score=validation_metrics,
        emit=lambda event: None,
        recipe=recipe,
        user_arguments=config.set,
        stop=stop,
        resume=checkpoint,
        group=group,
    )


def _split(table: Table, config: Config, seed: int, output: Path, resume: bool, group: Group) -> Splits:
    cleaned = clean(table)
    resumed = Run(output) if resume else None
    return Splits(cleaned, *split_or_fold(cleaned, config, seed, resumed, alone=group.size == 1))


def _recipe_of(output: Path) -> Recipe:
    """Return the recipe of a run to resume; another machine might choose another."""
    with damage_errors(Layout(output).run):
        return Recipe(**Run(output).info["recipe"])


def _write_scores(run: Run, splits: Splits, scores: Scores, details: dict[str, Any], rivals: dict[str, Any]) -> None:
    scores.splits["test"]["calibration"] |= details.pop("calibration")
    metrics = {
        "primary": PRIMARY,
        "splits": scores.splits,
        "baseline": rivals,
        "inference": scores.inference,
        **details,
    }
    write_json(run.layout.metrics, metrics)
    for name in ("validation", "test"):
        frame = predictions_frame(splits.parts[name], scores.probabilities[name])
        write_predictions(run.layout.predictions, name, frame)


def _explain(
    run: Run, fitted: Classifier, splits: Splits, scores: Scores, config: Config, phases: Phases, *, skip: bool
) -> None:
    mistakes = []
    if config.explanations == "auto" and not skip:
        frame = predictions_frame(splits.parts["test"], scores.probabilities["test"])
        mistakes = explain_mistakes(fitted, frame, scores.lengths, phases.seconds()["training"])
    write_json(run.layout.explanations, {"mistakes": mistakes})


def _finish(run: Run, finished: Finished, phases: Phases, config: Config) -> Run:
    seconds = phases.seconds()
    run.update(training={**dataclasses.asdict(finished), "seconds": seconds["training"]}, seconds=seconds)
    write_card(run)
    write_report(run)
    run.finish(keep_checkpoints=config.keep_checkpoints)
    return run


def _check(stop: Callable[[], bool], message: str) -> None:
    if stop():
        raise Interrupted(message)


def _watch(observe: RunListener, stop: Callable[[], bool]) -> Callable[[Scoring | Scored], None]:
    """Return a listener of scoring that raises `Interrupted` if ``stop`` returns true."""

    def watch(event: Scoring | Scored) -> None:
        observe(event)
        _check(stop, _WHILE_SCORING)

    return watch


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Turn an error for lack of memory into a user error."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"the memory is too small: {str(error).splitlines()[0] if str(error) else 'an allocation failed'}",
            remedy="Free memory, raise its limit, or take a smaller --model; --resume continues from a checkpoint.",
        ) from error


def _source_rows(table: Table, positions: Sequence[int]) -> str:
    """Describe the source rows of the texts at some positions of a split."""
    rows = table.frame.iloc[list(positions)].groupby("source")["row"]
    return "; ".join(f"rows {listing(sorted(map(int, numbers)), 16)} of {source}" for source, numbers in rows)
