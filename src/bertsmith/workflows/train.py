"""The five steps, one after the other: what `train` and `evaluate` do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bertsmith.compute.device import describe_device
from bertsmith.compute.machine import hardware, versions
from bertsmith.compute.memory import is_out_of_memory
from bertsmith.config import PRIMARY, Config
from bertsmith.data.clean import Cleaned, clean
from bertsmith.data.inspect import inspect
from bertsmith.data.split import split_cleaned
from bertsmith.data.table import SPLITS, Table
from bertsmith.errors import DeviceError, Interrupted, listing
from bertsmith.evaluation.metrics import validation_metrics
from bertsmith.events import (
    CheckpointsDamaged,
    Evaluated,
    Event,
    Finished,
    Prepared,
    RunListener,
    Saved,
    Scored,
    Scoring,
    WentBack,
)
from bertsmith.folders import atomic
from bertsmith.folders import run as runs
from bertsmith.folders.claim import check_output, check_room, check_same, create, lock
from bertsmith.inference.classifier import Classifier
from bertsmith.inference.explain import explain_mistakes
from bertsmith.model import checkpoint
from bertsmith.model.load import Loaded
from bertsmith.model.tokenizer import Tokens
from bertsmith.report.card import write_card
from bertsmith.report.report import write_report
from bertsmith.training.arguments import training_arguments
from bertsmith.training.data import TokenDataset
from bertsmith.training.distributed import SINGLE_PROCESS, ProcessGroup, init_process_group
from bertsmith.training.recipe import Recipe
from bertsmith.training.steps import check_memory
from bertsmith.training.timing import PhaseTimer
from bertsmith.training.trainer import fit
from bertsmith.workflows.baselines import FrozenEmbeddings, baselines
from bertsmith.workflows.cross_validation import score_folds, split_or_fold
from bertsmith.workflows.prepare import begin_head, choose_recipe, prepare_model
from bertsmith.workflows.score import (
    CrossValidated,
    hashes,
    look_closer,
    predictions_frame,
    score_splits,
    write_predictions,
)


def run_training(
    read: Callable[[], Table],
    config: Config,
    output: Path,
    *,
    resume: bool,
    overwrite: bool,
    observe: RunListener,
    stop: Callable[[], bool],
) -> runs.Run:
    """Run all five steps into a run folder; see `bertsmith.train` for the arguments.

    Where torchrun started several processes, they train together; one of them does all the rest.
    """
    group = init_process_group()
    if not group.is_main:
        _assist(group, read, config, output, resume, stop)
        group.barrier()
        return runs.Run(output)
    with lock(output), atomic.disk_errors(output, atomic.RESUME_REMEDY):
        check_output(output, resume=resume, overwrite=overwrite)
        run = train_into(output, read, config, resume=resume, observe=observe, stop=stop, group=group)
        group.barrier()
        return run


def _assist(
    group: ProcessGroup,
    read: Callable[[], Table],
    config: Config,
    output: Path,
    resume: bool,
    stop: Callable[[], bool],
) -> None:
    """Take a share of every step of a training that another process leads, and write nothing."""
    data = split_cleaned(clean(read()), config, config.seed)
    loaded, _, _, train, validation = _ready(data.take((data.frame["split"] != "test").to_numpy()), config)
    recipe, from_checkpoint = group.broadcast(None)
    begin_head(loaded, group.broadcast(None))
    fit(
        loaded,
        train,
        validation,
        training_arguments(recipe, config, runs.Layout(output).checkpoints, loaded.device),
        score=validation_metrics,
        emit=lambda event: None,
        recipe=recipe,
        user_arguments=config.set,
        stop=stop,
        resume=from_checkpoint,
        group=group,
    )


def train_into(
    output: Path,
    read: Callable[[], Table],
    config: Config,
    *,
    resume: bool,
    observe: RunListener,
    stop: Callable[[], bool],
    split_seed: int | None = None,
    make_place: Callable[[], None] = lambda: None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> runs.Run:
    """Run all five steps into a folder that was looked at and is held.

    The arguments are those of `bertsmith.train`, with ``split_seed``, that of the run unless given, and ``make_place``,
    which is called as soon as table and model are found good, before anything is written.
    """
    seed = config.seed if split_seed is None else split_seed
    try:
        return _train(read, config, output, resume, observe, stop, seed, make_place, group)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"memory does not suffice: {str(error).splitlines()[0] if str(error) else 'an allocation was refused'}",
            remedy="Free memory, raise its limit, or take a smaller --model; --resume goes on from a checkpoint.",
        ) from error


def _train(
    read: Callable[[], Table],
    config: Config,
    output: Path,
    resume: bool,
    observe: RunListener,
    stop: Callable[[], bool],
    split_seed: int,
    make_place: Callable[[], None],
    group: ProcessGroup,
) -> runs.Run:
    phases = PhaseTimer()

    def check_stop(what: str) -> None:
        if stop():
            raise Interrupted(what)

    with phases.timed("data"):
        check_stop("stopped before training began")
        table = read()
        cleaned = clean(table)
        data, fold = split_or_fold(
            cleaned, config, split_seed, runs.Run(output) if resume else None, alone=group.size == 1
        )
        positions = _positions(data)
        if fold is not None:  # by models that were not trained on them
            positions["validation"] = positions["train"]
            tested = len(positions["test"]) > 0
            positions["test"] = positions["test"] if tested else positions["train"]
        parts = {name: data.take(rows) for name, rows in positions.items()}

    with phases.timed("model"):
        check_stop("stopped before training began")
        loaded, found, tokens, train, validation = _ready(data, config)
        device, max_length = loaded.device, loaded.max_length
        encoded = {name: tokens.take(rows) for name, rows in positions.items()}
        findings = inspect(table, tokens=tokens, names=loaded.emoji_names, max_length=max_length, cleaned=cleaned)

    if resume:  # as it was chosen then, which another machine might not do again
        with runs.damage_errors(runs.Layout(output).run):
            recipe = Recipe(**runs.Run(output).info["recipe"])
    else:
        recipe = choose_recipe(config, loaded, train)
    arguments = training_arguments(recipe, config, runs.Layout(output).checkpoints, device, validates=fold is None)
    sizes = {name: len(rows) for name, rows in _positions(data).items()}
    prepared = Prepared(
        findings,
        cleaned,
        sizes,
        found.name,
        loaded.parameters,
        describe_device(device),
        max_length,
        recipe,
        0 if fold is None else int(fold.max()) + 1,
    )
    described = _describe(prepared, data, found)
    from_checkpoint, earlier = None, dict[str, float]()
    if resume:
        run = runs.Run(output)
        earlier = run.info.get("seconds", {})
        phases.add(earlier)
        check_same(run, config=config.dump(), fingerprint=described["data"]["fingerprint"], model=described["model"])
        from_checkpoint = run.last_checkpoint()
        if damaged := run.drop_checkpoints_after(from_checkpoint):
            step = int(from_checkpoint.name.rpartition("-")[2]) if from_checkpoint else 0
            observe(CheckpointsDamaged(step, damaged))
    else:
        check_room(output, parameters=loaded.parameters, checkpoints=arguments.save_total_limit or 3)
        make_place()
        run = create(output)
        run.update(status="running", created=runs.now(), config=config.dump(), **described)
    atomic.write_json(run.layout.labels, _labels(data))
    with atomic.replaced_file(run.layout.splits) as file:
        _split_rows(data, cleaned).to_parquet(file, index=False)
    run.layout.checkpoints.mkdir(exist_ok=True)
    run.update(status="running", seconds=phases.seconds())
    run.truncate_history(int(from_checkpoint.name.rpartition("-")[2]) if from_checkpoint else 0)
    observe(prepared)
    group.broadcast((recipe, from_checkpoint))

    def listen(event: Event) -> None:
        if isinstance(event, Evaluated | Finished):  # what the run spent before it was resumed counts
            event = dataclasses.replace(event, seconds=event.seconds + earlier.get("training", 0.0))
        if isinstance(event, Evaluated):
            run.log(dataclasses.asdict(event))
        elif isinstance(event, Saved):  # what a killed run has spent by then counts
            run.update(seconds=phases.seconds())
        elif isinstance(event, WentBack):
            run.truncate_history(event.to_step)
            run.update(went_back=dataclasses.asdict(event))
        observe(event)

    scoring = "stopped while scoring; training is done and kept"

    def watch(event: Scoring | Scored) -> None:
        observe(event)
        check_stop(scoring)

    try:
        check_memory(loaded, train, validation)
        with phases.timed("baseline"):
            frozen = FrozenEmbeddings.embed(loaded, parts, encoded, config.seed)
            begin_head(loaded, group.broadcast(frozen.regress()))
        with phases.timed("training"):
            crossed = None
            if fold is not None:
                probabilities_of_folds = score_folds(
                    found,
                    config,
                    recipe,
                    parts["train"],
                    encoded["train"],
                    fold,
                    frozen.regress,
                    run.layout.folds,
                    emit=observe,
                    stop=stop,
                )
                crossed = CrossValidated(fold, probabilities_of_folds, tested)
            finished = fit(
                loaded,
                train,
                validation,
                arguments,
                score=validation_metrics,
                emit=listen,
                recipe=recipe,
                user_arguments=config.set,
                stop=stop,
                resume=from_checkpoint,
                trace=run.layout.trace if config.profile else None,
                group=group,
                describe_texts=lambda positions: _rows(parts["train"], positions),
            )
            run.save_model(loaded.save)
        with phases.timed("evaluation"):
            # What is scored is what the user gets: the model as it stands on disk.
            fitted = Classifier.load(run.layout.model, labels=table.labels, device=config.device)
            scores = score_splits(fitted, parts, encoded, run, config, watch, crossed)
            splits, probabilities = scores.splits, scores.probabilities
            closer = look_closer(fitted, parts, scores, crossed)
            splits["test"]["calibration"] |= closer.pop("calibration")
        with phases.timed("baseline"):
            check_stop(scoring)
            metrics = {
                "primary": PRIMARY,
                "splits": splits,
                "baseline": baselines(parts, probabilities["test"], frozen, config.seed, crossed),
                "inference": scores.inference,
                **closer,
            }
            atomic.write_json(run.layout.metrics, metrics)
            for name in ("validation", "test"):
                predictions = predictions_frame(parts[name], probabilities[name])
                write_predictions(run.layout.predictions, name, predictions)
        with phases.timed("explanations"):
            check_stop(scoring)
            spent = phases.seconds()["training"]
            mistakes = []
            if config.explanations == "auto" and (crossed is None or crossed.tested):  # else it saw the texts
                mistakes = explain_mistakes(fitted, predictions, scores.lengths, spent)
            atomic.write_json(run.layout.explanations, {"mistakes": mistakes})
    except BaseException as error:
        if run.layout.run.is_file():
            with suppress(OSError):  # the disk may be what failed
                status = "interrupted" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed"
                run.update(status=status, seconds=phases.seconds())
        raise
    seconds = phases.seconds()
    run.update(training={**dataclasses.asdict(finished), "seconds": seconds["training"]}, seconds=seconds)
    write_card(run)
    write_report(run)
    run.finish(keep_checkpoints=config.keep_checkpoints)
    return run


def _positions(data: Table) -> dict[str, np.ndarray]:
    return {name: np.flatnonzero(data.frame["split"] == name) for name in SPLITS}


def _ready(data: Table, config: Config) -> tuple[Loaded, checkpoint.Checkpoint, Tokens, TokenDataset, TokenDataset]:
    """Return the model with a new head, its checkpoint, all texts tokenized, and those to train and to validate on."""
    found = checkpoint.resolve(config.model, allow_pickle=config.allow_pickle)
    train = (data.frame["split"] == "train").to_numpy()
    loaded, tokens = prepare_model(found, config, data.labels, data.frame["text"].tolist(), train)
    parts = {
        name: TokenDataset(tokens.take(rows).truncate(loaded.max_length), data.targets[rows])
        for name, rows in _positions(data).items()
        if name != "test"
    }
    return loaded, found, tokens, parts["train"], parts["validation"]


def _describe(prepared: Prepared, data: Table, found: checkpoint.Checkpoint) -> dict[str, Any]:
    return {
        "versions": versions(),
        "hardware": hardware(prepared.device),
        "data": {
            "fingerprint": data.fingerprint,
            "sources": [str(source) for source in data.frame["source"].unique()],
            "splits": prepared.split,
            "folds": prepared.folds,
            "left_out": prepared.cleaned.counts,
            "normalised": prepared.cleaned.normalised,
            "findings": prepared.findings.to_dict(),
        },
        "model": {
            "name": found.name,
            "type": found.model_type,
            "revision": found.revision,
            "files": found.digest,
            "parameters": prepared.parameters,
            "max_length": prepared.max_length,
        },
        "recipe": dataclasses.asdict(prepared.recipe),
    }


def _labels(data: Table) -> dict[str, Any]:
    counts = {name: data.take(rows).counts for name, rows in _positions(data).items()}
    return {
        "classes": [
            {"id": i, "label": number, "label_text": text, "counts": {name: int(n[i]) for name, n in counts.items()}}
            for i, (number, text) in enumerate(zip(data.labels.numbers, data.labels.texts, strict=True))
        ]
    }


def _split_rows(data: Table, cleaned: Cleaned) -> pd.DataFrame:
    used = data.frame[["source", "row", "split"]].assign(reason=None, hash=hashes(data.frame["text"]))
    out = cleaned.dropped[["source", "row", "reason"]].assign(split=None, hash=None)
    frame = pd.concat([used.astype(object), out.astype(object)])[["source", "row", "split", "reason", "hash"]]
    frame = frame.astype({"source": "str", "row": "int64", "split": "str", "reason": "str", "hash": "str"})
    return frame.sort_values(["source", "row"], ignore_index=True)


def _rows(table: Table, positions: Sequence[int]) -> str:
    """Say which source rows the texts at some positions of a split are."""
    rows = table.frame.iloc[list(positions)].groupby("source")["row"]
    return "; ".join(f"rows {listing(sorted(map(int, numbers)), 16)} of {source}" for source, numbers in rows)
