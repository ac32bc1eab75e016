"""``bertsmith predict``."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bertsmith.api.keyword_types import PredictSettings
from bertsmith.cli.options import DecisionRule, RunOrExport, Runtime, with_settings
from bertsmith.cli.terminal import check_stdout, sigterm_like_ctrl_c, stderr_console
from bertsmith.config import Config, CsvDialect, DataConfig, ModelConfig, OnError
from bertsmith.errors import counted

if TYPE_CHECKING:
    from bertsmith.data.stream import Chunk, Stream
    from bertsmith.data.table import Note
    from bertsmith.data.template import Template
    from bertsmith.workflows.predict import Predictions

STDIN = 1024
"""Number of lines per chunk of stdin."""
MAX_LABELS = 20
"""Maximum number of labels in the summary."""


@with_settings(DataConfig, ModelConfig, only=PredictSettings.__optional_keys__)
def predict(
    *,
    run: RunOrExport,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="INPUT",
            show_default=False,
            help="Any table with a text column, a .txt file with one text per line, or - for lines on stdin.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="OUT", help="File to write: .csv, .jsonl, .parquet or .xlsx; stdout by default."
        ),
    ] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Add one column per class.")] = False,
    min_confidence: Annotated[
        float | None,
        typer.Option(min=0, max=1, metavar="X", help="Leave texts unlabelled if their confidence is below this value."),
    ] = None,
    target_accuracy: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="X",
            help="Leave texts unlabelled if their confidence is below the threshold that reaches this accuracy on "
            "validation.",
        ),
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=0.999,
            metavar="X",
            help="Add a column label_set: a set of labels that contains the true label for this share of the texts. "
            "For numbers, add the columns lower and upper.",
        ),
    ] = None,
    decision_rule: DecisionRule = True,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Average the predictions of all models of a run trained with --seeds.")
    ] = False,
    runtime: Runtime = "auto",
    on_error: Annotated[
        OnError, typer.Option(help="Refuse a table with unreadable rows, or skip these rows.")
    ] = "fail",
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Label a folder of Parquet files on a Ray cluster (auto, HOST:PORT, or local to start one); "
            "OUT is then a folder.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue interrupted predictions, or begin if OUT does not exist.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Write JSON Lines instead of CSV to stdout.")] = False,
    csv_dialect: Annotated[
        CsvDialect,
        typer.Option(
            help="CSV dialect. excel adds a byte order mark; excel-semicolon also separates cells with semicolons and "
            "writes decimal commas."
        ),
    ] = "plain",
    formula_guard: Annotated[
        bool,
        typer.Option(
            help="In CSV, put ' before cells that a spreadsheet would run as formulas. Such cells begin with = + - @, "
            "a tab or a carriage return, and are not numbers."
        ),
    ] = True,
    settings: Config,
    config: Path | None,
) -> None:
    """Label new texts. The output has the columns of the input, plus predictions such as predicted_text and confidence.

    Example: bertsmith predict runs/reviews new.csv -o predictions.csv
    """
    from bertsmith.errors import ConfigError, DataError
    from bertsmith.inference.load import template_of
    from bertsmith.inference.table_writers import open_writer
    from bertsmith.progress.prediction import PredictionProgress
    from bertsmith.workflows.predict import run_prediction, run_prediction_on_ray
    from bertsmith.workflows.predict_options import PredictOptions

    if source is None and settings.sql is None:
        raise DataError("INPUT is missing", remedy="Pass a file, - for stdin, or --sql with --db.")
    if source == "-" and (settings.text_column or settings.pair_column or settings.with_columns):
        remedy = "Leave out --text-column, --pair-column and --with-columns."
        raise ConfigError("stdin has lines of text, not columns", remedy=remedy)
    if output is not None and json:
        raise ConfigError(
            "--json cannot be combined with -o", remedy="Leave out --json, and write a .jsonl file for JSON Lines."
        )
    if json and csv_dialect != "plain":
        raise ConfigError("--csv-dialect applies only to CSV", remedy="Leave out --csv-dialect, or write a .csv file.")
    options = PredictOptions(
        probabilities=probabilities,
        min_confidence=min_confidence,
        target_accuracy=target_accuracy,
        coverage=coverage,
        decide=decision_rule,
        ensemble=ensemble,
        runtime=runtime,
        on_error=on_error,
        csv_dialect=csv_dialect,
        formula_guard=formula_guard,
    )
    if ray is not None:
        if json:
            raise ConfigError("--ray cannot be combined with --json", remedy="Leave out one of them.")
        with sigterm_like_ctrl_c():
            predictions = run_prediction_on_ray(
                run, source, settings, options, output=output, resume=resume, overwrite=overwrite, address=ray
            )
        stderr_console().print(f"{counted(predictions.rows, 'row')} written to {output}")
        return
    texts = partial(_stdin, settings) if source == "-" else source
    if output is None:
        check_stdout()
        with open_writer("jsonl" if json else "csv", sys.stdout, style=options.csv_style) as writer:
            show = PredictionProgress(stderr_console(), counts=False)
            predictions = run_prediction(run, texts, settings, options, write=writer.write, resume=resume, observe=show)
    else:
        with PredictionProgress(stderr_console()) as progress, sigterm_like_ctrl_c(), _advice(output, resume=resume):
            predictions = run_prediction(
                run,
                texts,
                settings,
                options,
                output=output,
                resume=resume,
                overwrite=overwrite,
                inputs=(config,),
                observe=progress,
            )
        stderr_console().print(f"{counted(predictions.rows, 'row')} written to {output}")
    _print_summary(predictions, template_of(run))


@contextmanager
def _advice(output: Path, *, resume: bool) -> Iterator[None]:
    """Say how to continue after Ctrl-C before the first chunk."""
    from bertsmith.errors import Interrupted
    from bertsmith.inference.chunks import chunks_folder

    try:
        yield
    except KeyboardInterrupt:
        folder = chunks_folder(output)
        if resume and folder.exists():
            advice = f"the saved predictions stay in {folder}\n  to continue: run the same command again"
        else:
            advice = "no predictions are saved\n  to begin again: run the same command"
        raise Interrupted(advice) from None


def _print_summary(predictions: Predictions, template: Template) -> None:
    """Print the number of rows per label, and notes about the other rows."""
    total = predictions.rows - predictions.empty - predictions.abstained
    for text, n in list(predictions.label_counts.items())[:MAX_LABELS]:
        stderr_console().print(f"  {n:>{len(f'{total:,}')},}  {n / total:6.1%}  {text}")
    if (more := len(predictions.label_counts) - MAX_LABELS) > 0:
        stderr_console().print(f"  … and {counted(more, 'label')} with fewer rows")
    if predictions.without_labels:
        stderr_console().print(f"  {counted(predictions.without_labels, 'row')} with none of the labels")
    if predictions.threshold is not None:
        stderr_console().print(
            f"{predictions.abstained:,} of {counted(predictions.rows, 'row')} left unlabelled: "
            f"confidence below {predictions.threshold:.3f}"
        )
    if expected := predictions.expected_accuracy:
        from bertsmith.bootstrap import FEW_GROUPS

        stderr_console().print(
            f"expected accuracy {expected.value:.3f} (95 % interval {expected.low:.3f} to {expected.high:.3f}), from "
            f"{expected.held_out:,} held-out texts; to check this estimate, label some of the new texts"
        )
        if expected.groups is not None and expected.groups < FEW_GROUPS:
            effect = "says nothing about other groups" if expected.groups == 1 else "has an unreliable interval"
            stderr_console().print(
                f"note: the held-out texts form only {counted(expected.groups, 'group')}, so the expected "
                f"accuracy {effect}"
            )
        if expected.unlike:
            stderr_console().print(
                "note: these texts differ from the held-out texts, so the interval begins at 0; bertsmith "
                "drift shows the differences"
            )
    if predictions.cut:
        stderr_console().print(
            f"note: {counted(predictions.cut, 'text')} truncated at the maximum length"
            f"{'; --long window reads whole texts' if template.is_plain else ''}"
        )
    if predictions.empty:
        rows = counted(predictions.empty, "row")
        stderr_console().print(f"warning: {rows} without a text, and therefore without a prediction")


def _stdin(settings: Config) -> Stream:
    """Return a stream of the lines of stdin, which are read when they arrive."""
    from bertsmith.data.formats.encodings import decode_blocks
    from bertsmith.data.stream import Stream, lines_chunk
    from bertsmith.data.template import is_empty
    from bertsmith.errors import DataError

    if sys.stdin.isatty():
        stderr_console().print("reading texts, one per line, until the end of the input (Ctrl-D)", style="dim")

    def show(note: Note) -> None:
        stderr_console().print(f"{note.severity}: {note.message}")

    def read_chunks() -> Iterator[Chunk]:
        blocks = iter(lambda: b"".join(itertools.islice(sys.stdin.buffer, STDIN)), b"")
        rest = ""
        for text in decode_blocks(blocks, "stdin", settings.encoding, show):
            *lines, rest = (rest + text).split("\n")
            if lines:
                yield lines_chunk([line.removesuffix("\r") for line in lines])
        if rest:
            yield lines_chunk([rest])

    chunks = read_chunks()
    first: list[Chunk] = []
    for chunk in chunks:  # empty input is reported before the model is loaded
        first.append(chunk)
        if not all(map(is_empty, chunk[1])):
            return Stream("stdin", lambda: itertools.chain(first, chunks), None)
    raise DataError("stdin has no text", remedy="Write one text per line.")
