"""``bertsmith predict``."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bertsmith.cli.options import DecisionRule, RunOrExport, Runtime, with_settings
from bertsmith.cli.terminal import check_stdout, sigterm_like_ctrl_c, talk
from bertsmith.config import Config, CsvDialect, DataConfig, Long, ModelConfig, OnError

if TYPE_CHECKING:
    from bertsmith.data.stream import Chunk, Stream
    from bertsmith.workflows.predict import Predictions

STDIN = 1024
"""Lines of stdin in a chunk."""
LISTED = 20
"""Labels in the summary."""
READING = ("text_column", "sql", "db", "sheet", "encoding", "max_unpacked")


@with_settings(DataConfig, ModelConfig, only=(*READING, "device", "threads"))
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
            "-o", "--output", metavar="OUT", help="File to write: .csv, .jsonl, .parquet or .xlsx; else stdout."
        ),
    ] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Add a column for every class.")] = False,
    min_confidence: Annotated[
        float | None,
        typer.Option(min=0, max=1, metavar="X", help="Leave texts unlabelled that the model is less sure of."),
    ] = None,
    target_accuracy: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, metavar="X", help="The same, with the threshold that reached this accuracy on validation."
        ),
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=0.999, metavar="X", help="Add label_set: labels among which the true one is, this often."
        ),
    ] = None,
    long: Annotated[
        Long,
        typer.Option(
            help="Of texts longer than the model reads at once, read the beginning, or all of it, a window at a time."
        ),
    ] = "truncate",
    decision_rule: DecisionRule = True,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Ask the models of all seeds together, of a run trained with --seeds.")
    ] = False,
    runtime: Runtime = "auto",
    on_error: Annotated[
        OnError, typer.Option(help="What to do about rows that cannot be read: refuse the table, or leave them out.")
    ] = "fail",
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Label a folder of Parquet files on the Ray cluster there (auto, HOST:PORT), or with "
            "local on one that is started here; OUT is a folder.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with predictions that were interrupted.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="JSON Lines on stdout, not CSV.")] = False,
    csv_dialect: Annotated[
        CsvDialect,
        typer.Option(
            help="CSV for Excel: with a byte order mark, and for systems with a decimal comma with ; between fields."
        ),
    ] = "plain",
    formula_guard: Annotated[
        bool,
        typer.Option(
            help="In CSV, put ' before cells that begin with = + - @, a tab or a carriage return and are no numbers: "
            "a spreadsheet would run them as formulas."
        ),
    ] = True,
    settings: Config,
    config: Path | None,
) -> None:
    """Label new texts. The input's columns are kept; predicted, predicted_text and confidence are added.

    Example: bertsmith predict runs/reviews new.csv -o predictions.csv
    """
    from bertsmith.cli.progress import PredictionProgress
    from bertsmith.errors import ConfigError, DataError
    from bertsmith.inference.table_writers import open_writer
    from bertsmith.workflows.predict import PredictOptions, run_prediction, run_prediction_on_ray

    if source is None and settings.sql is None:
        raise DataError("INPUT is missing", remedy="Give a file, - for stdin, or --sql with --db.")
    if source == "-" and settings.text_column is not None:
        raise ConfigError("stdin is read as lines of text, without columns", remedy="Leave out --text-column.")
    if output is not None and json:
        raise ConfigError(
            "--json is for stdout", remedy="Name the file OUT.jsonl for JSON Lines, and leave out --json."
        )
    if json and csv_dialect != "plain":
        raise ConfigError("--csv-dialect is for CSV", remedy="Leave it out, or write a .csv file.")
    options = PredictOptions(
        probabilities,
        min_confidence,
        target_accuracy,
        coverage,
        long,
        decision_rule,
        ensemble,
        runtime,
        on_error,
        csv_dialect,
        formula_guard,
    )
    if ray is not None:
        if json:
            raise ConfigError("--ray cannot be combined with --json", remedy="Leave out one of them.")
        with sigterm_like_ctrl_c():
            found = run_prediction_on_ray(
                run, source, settings, options, output=output, resume=resume, overwrite=overwrite, address=ray
            )
        talk().print(f"{found.rows:,} rows written to {output}", markup=False)
        return
    texts = partial(_stdin, settings) if source == "-" else source
    if output is None:
        check_stdout()
        with open_writer("jsonl" if json else "csv", sys.stdout, style=options.csv_style) as writer:
            show = PredictionProgress(talk(), counts=False)
            found = run_prediction(run, texts, settings, options, write=writer.write, resume=resume, observe=show)
    else:
        with PredictionProgress(talk()) as progress, sigterm_like_ctrl_c():
            found = run_prediction(
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
        talk().print(f"{found.rows:,} rows written to {output}", markup=False)
    _print_summary(found)


def _print_summary(found: Predictions) -> None:
    """Print how many rows got each label, and what the user should know about the others."""
    total = sum(found.label_counts.values())
    for text, n in list(found.label_counts.items())[:LISTED]:
        talk().print(f"  {n:>{len(f'{total:,}')},}  {n / total:6.1%}  {text}", markup=False)
    if (more := len(found.label_counts) - LISTED) > 0:
        talk().print(f"  … and {more:,} labels with fewer rows", markup=False)
    if found.threshold is not None:
        talk().print(
            f"{found.abstained:,} of {found.rows:,} rows left unlabelled: confidence below {found.threshold:.3f}",
            markup=False,
        )
    if found.cut:
        talk().print(
            f"[yellow]note:[/] {found.cut:,} texts are longer than the maximum length, and only their beginning was "
            "read (--long window reads all of it)"
        )
    if found.empty:
        rows = "1 row has" if found.empty == 1 else f"{found.empty:,} rows have"
        talk().print(f"[yellow]warning:[/] {rows} no text and so no prediction")


def _stdin(settings: Config) -> Stream:
    """Return a stream of the lines of stdin, which are read as they arrive.

    Raises:
        DataError: if stdin has no text.
    """
    from bertsmith.data.formats.encodings import decode
    from bertsmith.data.stream import Stream, lines_chunk
    from bertsmith.errors import DataError

    if sys.stdin.isatty():
        talk().print("[dim]reading texts, one per line, until the end of the input (Ctrl-D)[/]")

    noted: set[str] = set()

    def pieces() -> Iterator[Chunk]:
        while lines := list(itertools.islice(sys.stdin.buffer, STDIN)):
            text, notes = decode(b"".join(lines), "stdin", settings.encoding)
            for note in notes:
                if note.severity not in noted:
                    talk().print(f"{note.severity}: {note.message}", markup=False)
                    noted.add(note.severity)
            yield lines_chunk([line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")])

    read = pieces()
    before: list[Chunk] = []
    for piece in read:  # so that an empty input is reported before the model is loaded
        before.append(piece)
        if any(text.strip() for text in piece[1]):
            return Stream("stdin", lambda: itertools.chain(before, read), None)
    raise DataError("stdin has no text", remedy="Give one text per line.")
