"""``bertsmith predict``."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bertsmith.cli.evaluate import RunArgument
from bertsmith.cli.options import DecisionRule, Runtime, with_settings
from bertsmith.cli.terminal import check_stdout, talk
from bertsmith.config import Config, DataConfig, ModelConfig

if TYPE_CHECKING:
    import pandas as pd

READING = ("text_column", "sql", "db", "sheet", "encoding", "max_unpacked")


@with_settings(DataConfig, ModelConfig, only=(*READING, "device"))
def predict(
    *,
    run: RunArgument,
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
        typer.Option("-o", "--output", metavar="OUT", help="File to write: .csv, .jsonl or .parquet; else stdout."),
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
    decision_rule: DecisionRule = True,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Ask the models of all seeds together, of a run trained with --seeds.")
    ] = False,
    runtime: Runtime = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it is there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="JSON Lines on stdout, not CSV.")] = False,
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
    from bertsmith.errors import DataError
    from bertsmith.inference.exported import Exported, is_export
    from bertsmith.inference.predict import ABSTAINED, open_writer, output_format, predict_rows
    from bertsmith.output import check_file
    from bertsmith.run import open_run
    from bertsmith.storage import replaced_file, told

    if not is_export(run):
        open_run(run)
    if source is None and settings.sql is None:
        raise DataError("there is no INPUT", remedy="Give a file, - for stdin, or --sql with --db.")
    if output is not None:
        kind = output_format(output)
        check_file(output, (source, settings.db, config), overwrite=overwrite)
    from bertsmith.inference.abstain import abstention
    from bertsmith.inference.opening import open_classifier

    parts = _parts(source, settings)
    first = next(parts)  # a bad table is told before the model is loaded
    classifier, held_out = open_classifier(
        run, device=settings.device, decide=decision_rule, ensemble=ensemble, runtime=runtime
    )
    if isinstance(classifier, Exported) and not is_export(run):
        talk().print(f"[dim]with the run's {classifier.about.format} export (--runtime torch: without)[/]")
    abstain = abstention(
        held_out,
        classifier.rules,
        decide=decision_rule,
        min_confidence=min_confidence,
        target_accuracy=target_accuracy,
        coverage=coverage,
    )
    done = empty = abstained = 0

    def predicted() -> Iterator[pd.DataFrame]:
        nonlocal done, empty, abstained
        for rows, texts in itertools.chain([first], parts):
            for frame in predict_rows(classifier, rows, texts, probabilities=probabilities, abstain=abstain):
                done += len(frame)
                empty += int(frame["confidence"].isna().sum())
                abstained += int(frame[ABSTAINED].sum()) if ABSTAINED in frame.columns else 0
                yield frame

    if output is None:
        check_stdout()
        kind = "jsonl" if json else "csv"
        with open_writer(kind, sys.stdout, guarded=formula_guard) as writer:
            for frame in predicted():
                writer.write(frame)
    else:
        with (
            told(output),
            replaced_file(output) as file,
            open_writer(kind, file, guarded=formula_guard, rows=first[0]) as writer,
        ):
            for frame in predicted():
                writer.write(frame)
        talk().print(f"{done:,} rows written to {output}", markup=False)
    if abstain.confidence is not None:
        talk().print(
            f"{abstained:,} of {done:,} rows left unlabelled: confidence below {abstain.confidence:.3f}", markup=False
        )
    if empty:
        talk().print(f"[yellow]warning:[/] {empty:,} rows have no text and so no prediction")


def _parts(source: str | None, settings: Config) -> Iterator[tuple[pd.DataFrame, list[str]]]:
    from bertsmith.data.delimited import decode
    from bertsmith.data.formats import read_bytes
    from bertsmith.data.read import is_text_lines, read_texts
    from bertsmith.errors import DataError
    from bertsmith.inference.predict import CHUNK

    if source == "-":
        if sys.stdin.isatty():
            talk().print("[dim]reading texts, one a line, until the end of the input (Ctrl-D)[/]")
        anything = False
        while lines := list(itertools.islice(sys.stdin.buffer, CHUNK)):
            text = decode(b"".join(lines), "stdin", settings.encoding)[0]
            if text.strip():
                anything = True
                yield read_texts(text, lines=True)[:2]
        if not anything:
            raise DataError("there are no texts on stdin", remedy="Give one text a line.")
    elif source is not None and not source.startswith("hf://") and is_text_lines(Path(source)):
        text = decode(read_bytes(Path(source), settings.max_unpacked), source, settings.encoding)[0]
        if not text.strip():
            raise DataError("the file is empty", where=source, remedy="Give one text a line.")
        yield read_texts(text, lines=True)[:2]
    else:
        yield read_texts(source, settings)[:2]
