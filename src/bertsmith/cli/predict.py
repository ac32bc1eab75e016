"""``bertsmith predict``."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bertsmith.cli.options import DecisionRule, RunOrExport, Runtime, with_settings
from bertsmith.cli.terminal import check_stdout, sigterm_like_ctrl_c, talk
from bertsmith.config import Config, DataConfig, ModelConfig

if TYPE_CHECKING:
    from bertsmith.data.stream import Chunk, Stream

OnError = Literal["fail", "skip"]
Long = Literal["truncate", "window"]
CsvDialect = Literal["plain", "excel", "excel-semicolon"]
STDIN = 1024
"""Lines of stdin that are labelled at once."""
TOLD = 5
"""Rows left out that are told one by one."""
LISTED = 20
"""Labels listed with the number of their rows."""
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
            help="Any table with a text column, a .txt file with a text a line, or - for lines on stdin.",
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
    from bertsmith import __version__
    from bertsmith.data.stream import open_stream
    from bertsmith.errors import ConfigError, DataError
    from bertsmith.folders.atomic import checksum, disk_errors
    from bertsmith.folders.claim import check_file, check_folder, lock
    from bertsmith.folders.run import open_run
    from bertsmith.inference.chunks import check_unfinished, may_be_replaced, write_stream
    from bertsmith.inference.exported import Exported, is_export
    from bertsmith.inference.predict import predict_chunks
    from bertsmith.inference.table_writers import DIALECTS, open_writer, output_format

    if not is_export(run):
        open_run(run)
    if source is None and settings.sql is None:
        raise DataError("there is no INPUT", remedy="Give a file, - for stdin, or --sql with --db.")
    asked: dict[str, Any] = {
        "min_confidence": min_confidence,
        "target_accuracy": target_accuracy,
        "coverage": coverage,
    }
    opening: dict[str, Any] = {
        "device": settings.device,
        "decide": decision_rule,
        "ensemble": ensemble,
        "runtime": runtime,
        "long": long,
    }
    if ray is not None:
        from bertsmith.inference.ray_data import RayRequest, predict_on_ray

        alone = {"--resume": resume, "--on-error skip": on_error == "skip", "--json": json, "--sql": settings.sql}
        if given := [name for name, value in alone.items() if value]:
            raise ConfigError(f"--ray does not go with {', '.join(given)}", remedy="Leave out one of them.")
        if output is None or source is None or source == "-":
            raise ConfigError(
                "--ray labels a folder of Parquet files", remedy="Give it as INPUT, and a folder with -o."
            )
        check_folder(output, Path(source), overwrite=overwrite, suffix=".parquet")
        output.parent.mkdir(parents=True, exist_ok=True)
        wanted = RayRequest(run.absolute(), opening, asked, probabilities)
        with lock(output, "writing this folder"), disk_errors(output), sigterm_like_ctrl_c():
            n_rows = predict_on_ray(wanted, Path(source), output.absolute(), settings, ray)
        talk().print(f"{n_rows:,} rows written to {output}", markup=False)
        return
    if source == "-" and settings.text_column is not None:
        raise ConfigError("stdin is read as lines of text, without columns", remedy="Leave out --text-column.")
    if output is not None and json:
        raise ConfigError(
            "--json is for stdout", remedy="Name the file OUT.jsonl for JSON Lines, and leave out --json."
        )
    if output is None and resume:
        raise ConfigError("--resume goes on with a file", remedy="Give -o that file.")
    kind = ("jsonl" if json else "csv") if output is None else output_format(output)
    if csv_dialect != "plain" and kind != "csv":
        raise ConfigError("--csv-dialect is for CSV", remedy="Leave it out, or write a .csv file.")
    style = replace(DIALECTS[csv_dialect], guarded=formula_guard)
    if output is not None:
        check_unfinished(output, resume=resume, overwrite=overwrite)
        again = overwrite or (resume and may_be_replaced(output))
        check_file(output, (source, settings.db, config), overwrite=again)
    skip = on_error == "skip"
    opened = nullcontext(_stdin(settings)) if source == "-" else open_stream(source, settings, skip=skip)
    with _skipping_told(skip), opened as stream:
        _tell(stream)
        from bertsmith.inference.abstain import fit_abstention
        from bertsmith.inference.load import identity, open_classifier
        from bertsmith.inference.windows import Windowed

        classifier, held_out = open_classifier(run, **opening)
        model = classifier.model if isinstance(classifier, Windowed) else classifier
        if isinstance(model, Exported) and not is_export(run):
            talk().print(f"[dim]with the run's {model.about.format} export (--runtime torch: without)[/]")
        abstain = fit_abstention(held_out, classifier.rules, decide=decision_rule, **asked)
        label = partial(
            predict_chunks, classifier, probabilities=probabilities, abstain=abstain, waits=stream.n_rows is None
        )
        if output is None:
            check_stdout()
            counts: Counter[str] = Counter()
            with open_writer(kind, sys.stdout, style=style) as writer:
                for cells, of_piece in label(stream.pieces()):
                    writer.write(cells)
                    counts += of_piece
        else:
            from bertsmith.cli.progress import PredictionProgress

            about = {
                "version": __version__,
                "input": None if stream.path is None else checksum(stream.path),
                "text_column": settings.text_column,
                "encoding": settings.encoding,
                "on_error": on_error,
                "model": identity(run, ensemble=ensemble),
                "labelled by": repr(classifier),
                "decision_rule": decision_rule,
                **asked,
                "probabilities": probabilities,
                "csv_dialect": csv_dialect,
                "formula_guard": formula_guard,
            }
            with PredictionProgress(talk(), stream.n_rows) as progress, sigterm_like_ctrl_c():
                counts = write_stream(
                    partial(label, progress=progress),
                    stream,
                    output,
                    about,
                    style=style,
                    resume=resume,
                    done_before=progress.skip,
                )
            talk().print(f"{counts['rows']:,} rows written to {output}", markup=False)
        _tell_labels(counts)
        if abstain.confidence is not None:
            talk().print(
                f"{counts['abstained']:,} of {counts['rows']:,} rows left unlabelled: "
                f"confidence below {abstain.confidence:.3f}",
                markup=False,
            )
        if counts["cut"]:
            talk().print(
                f"[yellow]note:[/] {counts['cut']:,} texts are longer than the model reads at once, and only their "
                "beginning was read (--long window reads all of it)"
            )
        if counts["empty"]:
            rows = "1 row has" if counts["empty"] == 1 else f"{counts['empty']:,} rows have"
            talk().print(f"[yellow]warning:[/] {rows} no text and so no prediction")


@contextmanager
def _skipping_told(skip: bool) -> Iterator[None]:
    """Where rows cannot be read, say as well how to leave them out."""
    from bertsmith.errors import RowError

    try:
        yield
    except RowError as error:
        if skip:
            raise
        remedy = f"{error.remedy} Or leave such rows out: --on-error skip."
        raise RowError(error.what, where=error.where, remedy=remedy) from error


def _tell(stream: Stream) -> None:
    """Say what reading found."""
    for note in stream.notes:
        talk().print(f"{note.severity}: {note.message}", markup=False)
    if stream.left_out:
        some = "; ".join(f"{place}: {why}" for place, why in stream.left_out[:TOLD])
        more = f"; and {len(stream.left_out) - TOLD:,} more" if len(stream.left_out) > TOLD else ""
        talk().print(f"[yellow]warning:[/] rows left out, which cannot be read: {len(stream.left_out):,}")
        talk().print(f"  {some}{more}", markup=False)


def _tell_labels(counts: Counter[str]) -> None:
    """Say how many rows got each label."""
    from bertsmith.inference.predict import LABELLED

    labels = Counter({key.removeprefix(LABELLED): n for key, n in counts.items() if key.startswith(LABELLED)})
    total = labels.total()
    for text, n in labels.most_common(LISTED):
        talk().print(f"  {n:>{len(f'{total:,}')},}  {n / total:6.1%}  {text}", markup=False)
    if (more := len(labels) - LISTED) > 0:
        talk().print(f"  … and {more:,} labels with fewer rows", markup=False)


def _stdin(settings: Config) -> Stream:
    """Lines from stdin, which are read as they come."""
    from bertsmith.data.encodings import decode
    from bertsmith.data.stream import Stream, lines_chunk
    from bertsmith.errors import DataError

    if sys.stdin.isatty():
        talk().print("[dim]reading texts, one a line, until the end of the input (Ctrl-D)[/]")

    told: set[str] = set()

    def pieces() -> Iterator[Chunk]:
        while lines := list(itertools.islice(sys.stdin.buffer, STDIN)):
            text, notes = decode(b"".join(lines), "stdin", settings.encoding)
            for note in notes:
                if note.severity not in told:
                    talk().print(f"{note.severity}: {note.message}", markup=False)
                    told.add(note.severity)
            yield lines_chunk([line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")])

    read = pieces()
    before: list[Chunk] = []
    for piece in read:  # something must be there before the model is loaded
        before.append(piece)
        if any(text.strip() for text in piece[1]):
            return Stream("stdin", lambda: itertools.chain(before, read), None)
    raise DataError("there are no texts on stdin", remedy="Give one text a line.")
