"""``bertsmith next``."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Literal

import typer

from bertsmith.api.keyword_types import NextSettings
from bertsmith.cli.options import with_settings
from bertsmith.cli.terminal import check_stdout, sigterm_like_ctrl_c, stderr_console
from bertsmith.config import Config, DataConfig, ModelConfig, TrainConfig

if TYPE_CHECKING:
    from bertsmith.workflows.choose_texts import ChosenTexts

PoolArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="POOL", show_default=False, help="Texts without labels: any table with a text column, or a .txt file."
    ),
]
Number = Annotated[
    int, typer.Option("-n", "--number", min=1, max=100_000, metavar="N", help="Number of texts to choose at once.")
]
RandomShare = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        metavar="X",
        help="Share of the texts to draw at random, as test texts or as a sample for measure.",
    ),
]


def note_few_random(chosen: ChosenTexts, wanted: int) -> None:
    """Print a note if the random sample has fewer texts left than wanted, so that others take their place."""
    drawn = sum(text.random for text in chosen.texts)
    if drawn < min(wanted, len(chosen.texts)):
        stderr_console().print(
            f"note: {drawn:,} of {wanted:,} random texts chosen: over all calls, the random sample contains "
            "at most a fifth of the pool, and at most 1,000 texts"
        )


@with_settings(DataConfig, ModelConfig, TrainConfig, only=NextSettings.__optional_keys__)
def next(
    *,
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_PROJECT",
            show_default=False,
            help="Run folder of bertsmith train, or project folder of bertsmith label.",
        ),
    ],
    pool: PoolArgument = None,
    number: Number = 100,
    random_share: RandomShare = 0.2,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT",
            help="File to write: .csv, .jsonl, .parquet or .xlsx, or .json for tasks; stdout by default.",
        ),
    ] = None,
    format: Annotated[
        Literal["table", "labelstudio", "doccano", "prodigy", "argilla"],
        typer.Option(
            help="Write a table, or tasks for an annotation tool in JSON Lines (Label Studio and Argilla: JSON)."
        ),
    ] = "table",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")] = False,
    settings: Config,
) -> None:
    """Choose the texts to label next: uncertain and diverse texts, texts of rare classes, and a random sample.

    Except for random texts, bertsmith does not choose near-duplicates of chosen texts or of texts in the project.

    The output has the columns of the pool, plus row, reason, random and inclusion_probability.

    For a project, the command also queues the texts for bertsmith label.

    Example: bertsmith next runs/reviews pool.csv -n 100 -o to_label.csv
    """
    from bertsmith.data.formats.arrow import common_types
    from bertsmith.errors import counted
    from bertsmith.folders.atomic import replaced_file
    from bertsmith.folders.claim import claim
    from bertsmith.folders.files import OutputFile
    from bertsmith.inference.table_writers import TYPED, CsvStyle, open_writer, output_format
    from bertsmith.labelling.project import Project
    from bertsmith.progress.prediction import PredictionProgress

    file = None if output is None else OutputFile(output, (pool, settings.db))
    kind = "csv" if output is None or format != "table" else output_format(output)
    if file is not None:
        file.check(overwrite=overwrite)  # before the slow part
    else:
        check_stdout()
    from bertsmith.workflows.choose_texts import choose_texts

    with PredictionProgress(stderr_console()) as progress, sigterm_like_ctrl_c():
        chosen = choose_texts(run, pool, settings, number, random_share=random_share, observe=progress)
    # Texts that begin with @ or - stay as they are: `train` and `measure` read the labelled table again.
    style, cells = CsvStyle(guarded=False), chosen.cells()

    def write(target: Path | IO[str]) -> None:
        if format == "table":
            types = common_types(lambda: [cells]) if kind in TYPED else {}
            with open_writer(kind, target, style=style, types=(types, False), predictions=False) as writer:
                writer.write(cells)
        elif isinstance(target, Path):
            target.write_text(chosen.tasks(format), encoding="utf-8", newline="\n")
        else:
            target.write(chosen.tasks(format))

    if file is None:
        write(sys.stdout)
    else:
        with claim(file, overwrite=overwrite), replaced_file(file.path) as temporary:
            write(temporary)
        stderr_console().print(f"{counted(len(chosen.texts), 'text')} written to {file.path}")
    reasons = Counter(text.reason for text in chosen.texts)
    stderr_console().print(", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common()))
    if Project.exists(run):
        from bertsmith.workflows.labelling_gain import estimate_project

        stderr_console().print(estimate_project(Project(run), settings).sentence)
    note_few_random(chosen, round(random_share * number))
    if len(chosen.texts) < number:
        stderr_console().print(
            f"note: {len(chosen.texts):,} of {number:,} texts chosen: all other texts of the pool are "
            "labelled, queued, reserved for the random sample, or near-duplicates of such texts"
        )
