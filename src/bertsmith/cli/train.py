"""``bertsmith train``."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from bertsmith.cli.options import Json, TableArgument, with_settings
from bertsmith.cli.terminal import print_json, stderr_console, stdout_console
from bertsmith.config import Config, DataConfig, EvalConfig, ModelConfig, TrainConfig
from bertsmith.data.texts import decimals, show_interval, signed_interval
from bertsmith.errors import ConfigError, counted, listing, lower_first
from bertsmith.folders.remote import RemoteRun, run_output
from bertsmith.folders.run import Run
from bertsmith.tracking.trackers import TrackerName

Output = Annotated[Path, typer.Option("-o", "--output", metavar="RUN", help="Run folder to write.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Resume the unfinished run in the folder, or begin if the folder is empty.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the run in the folder, after checking the table and the model.")
]
Track = Annotated[
    TrackerName | None,
    typer.Option(
        show_default=False,
        help="Experiment tracker that receives settings and metrics, but no texts.",
    ),
]
_STOPPING = b"stopping at the next safe point (in training: after this step); press Ctrl-C again to stop at once\n"
FEW_TEST_TEXTS = 100
"""With fewer test texts, the 95 % interval of an accuracy can extend ten percentage points to either side."""


@with_settings(DataConfig, ModelConfig, TrainConfig, EvalConfig)
def train(
    *,
    table: TableArgument = None,
    output: Annotated[
        str,
        typer.Option(
            "-o", "--output", metavar="RUN", help="Run folder to write; with --ray, also a URL such as s3://bucket/run."
        ),
    ],
    resume: Resume = False,
    overwrite: Overwrite = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Train on a Ray cluster: auto, HOST:PORT, or local to start one on this machine."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Number of workers on the Ray cluster.")] = 1,
    track: Track = None,
    json: Json = False,
    settings: Config,
) -> None:
    """Fine-tune a classifier on a table: check, clean and split the data, train, evaluate, write a report.

    Example: bertsmith train reviews.csv -o runs/reviews --model google-bert/bert-base-uncased
    """
    if ray is None and workers > 1:
        raise ConfigError("--workers needs --ray", remedy="Add --ray local, or start the workers with torchrun.")
    cluster = None if ray is None else (ray, workers)
    place = run_output(output, ray=ray is not None)
    run_and_show(table, settings, place, resume=resume, overwrite=overwrite, track=track, json=json, cluster=cluster)


def run_and_show(
    source: Any,
    settings: Config,
    output: Path | str,
    *,
    resume: bool,
    overwrite: bool,
    track: TrackerName | None = None,
    json: bool = False,
    cluster: tuple[str, int] | None = None,
) -> None:
    """Train with progress on stderr, then print the result on stdout.

    Args:
        source, settings, output, resume, overwrite: see `bertsmith.train`. An output of type str is a URL.
        track: the experiment tracker.
        json: print the scores as JSON.
        cluster: address of a Ray cluster and number of its workers; ``None`` trains here.
    """
    from bertsmith.compute.processes import rank_and_world_size
    from bertsmith.folders.claim import claim
    from bertsmith.folders.new_run import RunFolder
    from bertsmith.progress.training import TrainingProgress

    if isinstance(output, str):
        RemoteRun(output).check(resume=resume, overwrite=overwrite)
    elif rank_and_world_size()[0] == 0:  # of several processes, the one that writes
        with claim(RunFolder(output), resume=resume, overwrite=overwrite):
            pass  # check before the slow imports

    def exists() -> bool:
        return bool(RemoteRun(output).info) if isinstance(output, str) else Run(output).layout.run.is_file()

    if resume and not exists():
        stderr_console().print("bertsmith finds no run to resume, and begins a new one", style="dim")
    stderr_console().print("reading the table, loading the model …", style="dim")
    from bertsmith.errors import Interrupted

    with TrainingProgress(stderr_console()) as progress, stoppable() as stop:
        try:
            from bertsmith.tracking.listener import Tracking
            from bertsmith.workflows.seeds import run_seeds

            train: Callable[..., Run] = run_seeds
            if cluster is not None:
                from bertsmith.workflows.train_on_ray import train_on_ray

                train = partial(train_on_ray, address=cluster[0], workers=cluster[1])
            gc.freeze()  # otherwise, `Trainer.train` searches imported objects for garbage, which takes 0.3 s
            with Tracking(track, output, settings, progress) as observe:
                run = train(source, settings, output, resume=resume, overwrite=overwrite, observe=observe, stop=stop)
        except (Interrupted, KeyboardInterrupt) as stopped:
            what = str(stopped) if isinstance(stopped, Interrupted) else "stopped immediately"
            flag = " with --resume" if exists() else ""
            raise Interrupted(f"{what}\n  to resume: run the same command{flag}") from None
    from bertsmith.tasks.registry import get_task

    metrics, task, noise = run.metrics, get_task(run.task), run.info.get("label_noise")
    if isinstance(output, str):
        shutil.rmtree(run.path.parent, ignore_errors=True)  # a copy
    if json:
        print_json({"run": output if isinstance(output, str) else str(run.path), **metrics["splits"]["test"]})
        return
    test, baseline = metrics["splits"]["test"], metrics["baseline"]["majority_class"]
    out = stdout_console()
    source = "cross-validated" if "by" in test else "test"
    for name in task.headline:
        entry, naive = test["metrics"][name], decimals(baseline["test"][name])
        out.print(
            f"{source} {lower_first(task.metric_names[name][0])}  [bold]{decimals(entry['value'])}[/]  "
            f"(95 % interval {show_interval(entry['interval'])}; {task.naive_name}: {naive})",
            markup=True,
        )
    few = "; with so few texts, the metrics are imprecise" if test["texts"] < FEW_TEST_TEXTS else ""
    how = "not used for training"
    if "by" in test:
        how = f"each predicted by a model that was not trained on it ({test['folds']} folds)"
    out.print(f"on {counted(test['texts'], 'text')}, {how}{few}")
    if never := [e["label_text"] for e in test.get("per_class", ()) if e["texts"] and not e["predicted"]]:
        out.print(f"labels that the model never predicts: {listing(never)}", style="yellow")
    for compared in metrics["baseline"].values():
        if "verdict" in compared:
            out.print(f"the model is {compared['verdict']}")
    if columns := metrics.get("columns"):
        out.print(f"{columns['verdict']} (compared with {columns['alone']} alone)")
    if noise and noise["used"]:
        out.print(
            f"training left out {counted(noise['suspects'], 'text')} with a label that is probably wrong; "
            "bertsmith inspect TABLE --label-errors FILE.csv lists such labels"
        )
    rule, name = metrics["decision_rule"], task.primary_name
    where = "in cross-validation" if "by" in metrics["splits"]["validation"] else "on the validation texts"
    if worth := metrics["long_texts"]["test"]:
        out.print(
            f"--long {metrics['long_texts']['long']}: compared with reading only the beginnings, {source} {name} "
            f"changes by {worth['value']:+.3f} {signed_interval(worth['interval'])}, 95 % interval"
        )
    if rule["used"]:
        out.print(
            f"the model uses a decision rule, which raises {name} by {rule['gain']:.3f} {where} "
            f"(standard error {rule['standard_error']:.3f}); without the rule, the {source} {name} is "
            f"{rule['test']['without'][task.primary]:.3f}"
        )
    if seeds := metrics.get("seeds"):
        spread, ensemble = seeds["test"][task.primary], seeds["ensemble"]["metrics"][task.primary]["value"]
        out.print(
            f"over {len(seeds['each'])} seeds, {name} is {decimals(spread['mean'])} with a standard deviation of "
            f"{decimals(spread['standard_deviation'])}. The model comes from seed {seeds['best']}, the best "
            f"{where}. The ensemble reaches {decimals(ensemble)} (predict --ensemble)."
        )
    if isinstance(output, str):
        get = f"fs, path = fsspec.url_to_fs('{output}'); fs.get(path + '/', '{run.path.name}/', recursive=True)"
        out.print(f"run     {output}\nto use it, copy it to a folder:")
        out.print(f'python -c "import fsspec; {get}"', soft_wrap=True)
        return
    out.print(f"report  {run.layout.report}\nmodel   {run.layout.model}")


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Give a function that returns whether Ctrl-C or SIGTERM arrived; the second signal raises KeyboardInterrupt."""
    requested = threading.Event()

    def handle(number: int, frame: object) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()
        with suppress(OSError):  # not print: the signal may arrive while the main thread prints
            os.write(sys.stderr.fileno(), _STOPPING)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requested.is_set
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
