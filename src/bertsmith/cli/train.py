"""``bertsmith train``."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from bertsmith.cli.options import Json, TableArgument, with_settings
from bertsmith.cli.terminal import print_json, result, talk
from bertsmith.config import Config, DataConfig, EvalConfig, ModelConfig, TrainConfig
from bertsmith.folders.run import Run

Output = Annotated[Path, typer.Option("-o", "--output", metavar="RUN", help="Run folder to write.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the unfinished run in the folder.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the run in the folder, once table and model are found good.")
]


@with_settings(DataConfig, ModelConfig, TrainConfig, EvalConfig)
def train(
    *,
    table: TableArgument = None,
    output: Output,
    resume: Resume = False,
    overwrite: Overwrite = False,
    json: Json = False,
    settings: Config,
) -> None:
    """Fine-tune and evaluate a classifier, end to end: check, clean, split, train, score, report.

    Example: bertsmith train reviews.csv -o runs/reviews --model google-bert/bert-base-uncased
    """
    run_and_show(table, settings, output, resume=resume, overwrite=overwrite, json=json)


def run_and_show(
    source: Any, settings: Config, output: Path, *, resume: bool, overwrite: bool, json: bool = False
) -> None:
    """Train with progress on stderr, then print the result on stdout."""
    from bertsmith.cli.progress import TrainingProgress
    from bertsmith.folders.claim import check_output, lock
    from bertsmith.training.distributed import rank_and_world_size

    if rank_and_world_size()[0] == 0:  # of several processes, the one that writes
        with lock(output):  # told at once, before anything slow is imported
            check_output(output, resume=resume, overwrite=overwrite)
    talk().print("[dim]reading the table, loading the model …[/]")
    from bertsmith.errors import Interrupted

    with TrainingProgress(talk()) as progress, stoppable() as stop:
        try:
            from bertsmith.api import as_table
            from bertsmith.workflows.seeds import run_seeds

            run = run_seeds(
                lambda: as_table(source, settings),
                settings,
                output,
                resume=resume,
                overwrite=overwrite,
                observe=progress,
                stop=stop,
            )
        except (Interrupted, KeyboardInterrupt) as stopped:
            what = str(stopped) if isinstance(stopped, Interrupted) else "stopped at once"
            how = "the same command with --resume" if Run(output).layout.run.is_file() else "the same command"
            raise Interrupted(f"{what}\n  to go on: {how}") from None
    from rich.markup import escape

    from bertsmith.errors import listing
    from bertsmith.evaluation.metrics import FEW_TEXTS, never_predicted

    metrics = run.metrics
    if json:
        print_json({"run": str(run.path), **metrics["splits"]["test"]})
        return
    test, baseline = metrics["splits"]["test"], metrics["baseline"]["majority_class"]
    out = result()
    source = "cross-validated" if "by" in test else "test"
    for name, title in (("macro_f1", "macro-F1"), ("accuracy", "accuracy")):
        entry = test["metrics"][name]
        low, high = entry["interval"]
        out.print(
            f"{source} {title}  [bold]{entry['value']:.3f}[/]  (95 % interval {low:.3f} to {high:.3f}; "
            f"always the commonest label: {baseline['test'][name]:.3f})"
        )
    few = "; they are few, and every figure is rough" if test["texts"] < FEW_TEXTS else ""
    how = " that were not seen in training"
    if "by" in test:
        how = f", each labelled by one of {test['folds']} models, which was not trained on it"
    out.print(f"on {test['texts']:,} texts{how}{few}")
    if never := never_predicted(test["confusion"]):
        named = listing([run.labels.texts[i] for i in never])
        out.print(f"[yellow]never predicted, although texts have it:[/] {escape(named)}")
    for name in ("bag_of_words", "frozen_embeddings"):
        out.print(f"it is {metrics['baseline'][name]['verdict']}", markup=False)
    rule = metrics["decision_rule"]
    if rule["used"]:
        out.print(
            f"a decision rule tuned on validation is used: there it gained {rule['gain']:.3f} macro-F1 "
            f"(standard error {rule['standard_error']:.3f}); without it the {source} macro-F1 is "
            f"{rule['test']['without']['macro_f1']:.3f}"
        )
    if seeds := metrics.get("seeds"):
        spread, together = seeds["test"]["macro_f1"], seeds["ensemble"]["metrics"]["macro_f1"]["value"]
        out.print(
            f"over {len(seeds['each'])} seeds macro-F1 is {spread['mean']:.3f} with a standard deviation of "
            f"{spread['standard_deviation']:.3f}; this is seed {seeds['best']}, best on validation; all together reach "
            f"{together:.3f} (predict --ensemble)"
        )
    out.print(f"report  {run.layout.report}\nmodel   {run.layout.model}", markup=False)


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C (or SIGTERM) into a wish to stop; the second one stops at once."""
    wish = threading.Event()

    def handle(number: int, frame: object) -> None:
        if wish.is_set():
            raise KeyboardInterrupt
        wish.set()
        talk().print("[yellow]stopping after the current step; press Ctrl-C again to stop at once[/]")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wish.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
