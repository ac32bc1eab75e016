"""Train: from a table to a finished run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bertsmith.compute.memory import memory_errors
from bertsmith.compute.processes import SINGLE_PROCESS, ProcessGroup, init_process_group
from bertsmith.config import Config
from bertsmith.data.clean import clean
from bertsmith.data.split import split_cleaned
from bertsmith.data.table import Table
from bertsmith.errors import ConfigError, Interrupted, listing, number_form
from bertsmith.events import Finished, RunFinished, RunListener, TrainingEstimated
from bertsmith.folders.atomic import write_json
from bertsmith.folders.claim import claim
from bertsmith.folders.layout import Layout
from bertsmith.folders.new_run import RunFolder
from bertsmith.folders.run import Run, damage_errors
from bertsmith.inference.classifier import Classifier
from bertsmith.inference.explain import explain_mistakes
from bertsmith.report.card import write_card
from bertsmith.report.report import write_report
from bertsmith.tasks.registry import get_task
from bertsmith.training.arguments import training_arguments
from bertsmith.training.recipe import Recipe
from bertsmith.training.trainer import Training, fit
from bertsmith.workflows.ablation import compare_columns
from bertsmith.workflows.baselines import FrozenEmbeddings, baselines
from bertsmith.workflows.cross_validation import cross_validate, split_or_fold
from bertsmith.workflows.fine_tune import estimate_seconds, fine_tune
from bertsmith.workflows.inspect import as_table, with_checkpoint
from bertsmith.workflows.long_texts import candidates, choose_reading, measure_reading
from bertsmith.workflows.prepare import Splits, choose_recipe, initialize_head, prepare_inputs, prepared_event
from bertsmith.workflows.run_record import PhaseTimer, begin_run, record_failure, recording_listener, resume_run
from bertsmith.workflows.score import (
    Scores,
    analyze_test,
    predictions_frame,
    score_splits,
    write_predictions,
)
from bertsmith.workflows.training_labels import choose_training_labels


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

    The processes that torchrun or Ray starts train one model. The first of them does everything else.
    """
    group = init_process_group(config.device)
    if not group.is_main:
        _assist(group, source, config, output, stop)
        group.barrier()
        return Run(output)
    with claim(RunFolder(output), resume=resume, overwrite=overwrite):
        resume = resume and Layout(output).run.is_file()
        run = train_into(output, source, config, resume=resume, observe=observe, stop=stop, group=group)
        group.barrier()
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
    group: ProcessGroup = SINGLE_PROCESS,
) -> Run:
    """Read, clean and split a table, fine-tune on it, score the model and write the report.

    Args:
        output: the run folder, which is claimed.
        source: the table, or what `bertsmith.read_table` takes.
        config: the settings.
        resume: continue an unfinished run.
        observe: called with each event.
        stop: called after every step; training is interrupted if it returns true.
        split_seed: seed of the split; ``config.seed`` if ``None``.
        before_writing: called after the checks of table and model, before the first write.
        group: the processes that train the model.

    Raises:
        UserError: for everything that the user can fix.
        Interrupted: if ``stop`` returned true.
    """
    phases = PhaseTimer()

    def check_stop(scored: int = 0) -> None:
        _check(stop, "stopped while scoring; the trained model is saved")

    remedy = "Free memory, raise the memory limit, or use a smaller --model. --resume continues from a checkpoint."
    with memory_errors("out of memory: {error}", remedy):
        with phases.timed("data"):
            _check(stop, "stopped before training began")
            table = as_table(source, config)
            config = with_checkpoint(config, table, observe)
            cleaned = clean(table)
            seed = config.seed if split_seed is None else split_seed
            resumed = Run(output) if resume else None
            splits = Splits(cleaned, *split_or_fold(cleaned, config, seed, resumed, single_process=group.size == 1))
        with phases.timed("model"):
            _check(stop, "stopped before training began")
            inputs = prepare_inputs(splits.data, config)
        loaded, task, tables = inputs.loaded, inputs.task, splits.scored_tables
        tokens = {name: inputs.tokens.take(rows) for name, rows in splits.scored_rows.items()}
        validates = splits.fold is None and config.effort != "quick"
        alone = group.size == 1
        if resumed is None:
            recipe = choose_recipe(config, task, loaded, inputs.train, may_be_contrastive=alone, validates=validates)
        else:
            recipe = _saved_recipe(resumed)
            if recipe.contrastive != "none" and not alone:
                raise ConfigError(
                    "the contrastive stage of this run needs a single process",
                    where=str(output),
                    remedy="Resume the run without torchrun or --ray.",
                )
        checkpoints = Layout(output).checkpoints
        arguments = training_arguments(recipe, config, checkpoints, loaded.device, task=task, validates=validates)
        prepared = prepared_event(table, splits, inputs, recipe)
        checkpoint = None
        if resumed is None:
            limit = (arguments.save_total_limit or 3) if recipe.epochs else 0
            run = begin_run(
                output, config, splits, inputs, prepared, phases, checkpoints=limit, before_writing=before_writing
            )
        else:
            run = resumed
            checkpoint = resume_run(run, config, splits, inputs, prepared, phases, observe)
        observe(prepared)
        group.broadcast((recipe, checkpoint))
        with record_failure(run, phases):
            with phases.timed("baseline"):
                is_model = not recipe.epochs
                frozen = FrozenEmbeddings.embed(task, loaded, tables, tokens, config.seed, is_model=is_model)
                labels = choose_training_labels(run, splits, lambda: frozen, config)
                head, labels = group.broadcast((frozen.initial_head(labels.kept), labels))
                initialize_head(loaded, head)
                inputs = inputs.training_on(*labels)
                trained = tables if labels.kept is None else {**tables, "train": tables["train"].take(labels.kept)}
            if checkpoint is None and recipe.epochs:
                seconds = estimate_seconds(
                    recipe,
                    inputs.train,
                    inputs.validation,
                    arguments,
                    tokens_per_second=frozen.tokens_per_second,
                    folds=splits.n_folds,
                )
                observe(TrainingEstimated(seconds, may_stop=validates))
            listener = recording_listener(run, phases, observe)
            with phases.timed("training"):
                names = candidates(
                    config, tokens, loaded.max_length, recipe, splits.n_folds, template=table.columns.template
                )
                cross_validation = cross_validate(
                    run, config, splits, inputs, recipe, names, frozen.initial_head, observe, stop
                )
                training = Training(
                    loaded,
                    inputs.train,
                    inputs.validation,
                    arguments,
                    recipe,
                    task,
                    emit=listener,
                    stop=stop,
                    group=group,
                    describe_texts=partial(_source_rows, trained["train"]),
                )
                finished = fine_tune(training, config, emit_contrastive=observe, resume=checkpoint)
                run.save_model(loaded.save)
            with phases.timed("evaluation"):
                # Users get the saved model, so the saved model is scored.
                classifier = Classifier.load(run.layout.model, labels=table.labels, device=config.device)
                reading = choose_reading(
                    classifier,
                    names,
                    tables["validation"],
                    tokens,
                    config,
                    cross_validation,
                    check_stop,
                )
                run.update(long=reading.long)
                if cross_validation is not None:
                    cross_validation = dataclasses.replace(cross_validation, long=reading.long)
                scores = score_splits(
                    classifier, tables, tokens, run, config, observe, check_stop, cross_validation, reading.validation
                )
                analysis = analyze_test(classifier, tables, scores, cross_validation)
                analysis["long_texts"] = measure_reading(
                    classifier,
                    reading,
                    tables["test"],
                    tokens["test"],
                    scores.scores["test"],
                    config,
                    cross_validation,
                )
            with phases.timed("baseline"):
                check_stop()
                comparison = baselines(tables, scores.scores["test"], frozen, config.seed, cross_validation)
            with phases.timed("ablation"):
                columns = None
                if group.size == 1:
                    predicted = task.undo(classifier.rule, scores.scores["test"])
                    compared = (run, trained, predicted, inputs, recipe, config, cross_validation)
                    columns = compare_columns(*compared, observe=observe, stop=stop)
                _write_scores(run, tables, scores, analysis, comparison, columns)
            with phases.timed("explanations"):
                check_stop()
                # Without test texts, the final model was trained on all texts.
                explain = config.explanations == "auto" and (cross_validation is None or cross_validation.has_test)
                seconds = phases.seconds()["training"]
                _write_explanations(run, tables["test"], scores, classifier if explain else None, seconds)
    _finish(run, finished, phases, config)
    observe(RunFinished(run.path))
    return run


def _assist(group: ProcessGroup, source: Any, config: Config, output: Path, stop: Callable[[], bool]) -> None:
    """Compute a share of every training step without writing a run. Another process leads the training."""
    table = as_table(source, config)
    config = with_checkpoint(config, table)
    data = split_cleaned(clean(table), config, config.seed)
    inputs = prepare_inputs(data.take((data.frame["split"] != "test").to_numpy()), config)
    recipe, checkpoint = group.broadcast(None)
    checkpoints = Layout(output).checkpoints  # with another path on another machine
    head, labels = group.broadcast(None)
    initialize_head(inputs.loaded, head)
    inputs = inputs.training_on(*labels)
    loaded, task = inputs.loaded, inputs.task
    training = Training(
        loaded,
        inputs.train,
        inputs.validation,
        training_arguments(recipe, config, checkpoints, loaded.device, task=task),
        recipe,
        task,
        stop=stop,
        user_arguments=config.set,
        group=group,
    )
    fit(training, resume=checkpoint and checkpoints / checkpoint.name)


def _saved_recipe(run: Run) -> Recipe:
    """Return the recipe of a run to resume; another machine might choose another."""
    with damage_errors(run.layout.run):
        return Recipe(**run.info["recipe"])


def _write_scores(
    run: Run,
    tables: dict[str, Table],
    scores: Scores,
    analysis: dict[str, Any],
    comparison: dict[str, Any],
    columns: dict[str, Any] | None,
) -> None:
    scores.splits["test"]["calibration"] |= analysis.pop("calibration")
    metrics = {
        "primary": get_task(tables["test"].task).primary,
        "splits": scores.splits,
        "baseline": comparison,
        "inference": scores.inference,
        **analysis,
        **({} if columns is None else {"columns": columns}),
    }
    write_json(run.layout.metrics, metrics)
    for name in ("validation", "test"):
        write_predictions(run.layout.predictions, name, predictions_frame(tables[name], scores.scores[name]))


def _write_explanations(run: Run, test: Table, scores: Scores, classifier: Classifier | None, seconds: float) -> None:
    """Explain mistakes within a share of the training time in seconds; write no explanations without a classifier."""
    mistakes = []
    if classifier is not None:
        frame = predictions_frame(test, scores.scores["test"])
        mistakes = explain_mistakes(classifier, frame, scores.lengths, seconds)
    write_json(run.layout.explanations, {"mistakes": mistakes})


def _finish(run: Run, finished: Finished, phases: PhaseTimer, config: Config) -> None:
    seconds = phases.seconds()
    run.update(training={**dataclasses.asdict(finished), "seconds": seconds["training"]}, seconds=seconds)
    write_card(run)
    write_report(run)
    run.finish(keep_checkpoints=config.keep_checkpoints)


def _check(stop: Callable[[], bool], message: str) -> None:
    if stop():
        raise Interrupted(message)


def _source_rows(table: Table, positions: Sequence[int]) -> str:
    """Describe the source rows of some texts of a split."""
    rows = table.frame.iloc[list(positions)].groupby("source")["row"]
    return "; ".join(f"{number_form(len(n), 'row')} {listing(sorted(map(int, n)), 16)} of {name}" for name, n in rows)
