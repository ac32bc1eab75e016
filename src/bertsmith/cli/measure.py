"""``bertsmith measure``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bertsmith.api.keyword_types import EvaluateSettings
from bertsmith.cli.options import Json, RunArgument, with_settings
from bertsmith.cli.terminal import print_json, sigterm_like_ctrl_c, stderr_console, stdout_console
from bertsmith.config import Config, DataConfig, ModelConfig

if TYPE_CHECKING:
    from bertsmith.measuring.result import MeanLevel, Measurement, Share

MAX_SHOWN = 40
"""Maximum number of shares in the summary."""


@with_settings(DataConfig, ModelConfig, only=EvaluateSettings.__optional_keys__ - {"long"})
def measure(
    *,
    run: RunArgument,
    corpus: Annotated[
        str | None,
        typer.Argument(metavar="CORPUS", show_default=False, help="Any table with a text column, or a .txt file."),
    ] = None,
    labelled: Annotated[
        str | None, typer.Option(metavar="SAMPLE", help="Table of labelled texts from the corpus.")
    ] = None,
    random_sample: Annotated[
        bool,
        typer.Option("--random-sample", help="Declare that the sample is a simple random sample of the corpus."),
    ] = False,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Also measure the shares for each value of this column, such as each month."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.csv", help="CSV file to write.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE.html", help="HTML page to write, with figures.")] = None,
    for_regression: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="CSV file to write, as input for bertsmith.regress.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    json: Json = False,
    settings: Config,
) -> None:
    """Measure the share of each class in a corpus, or the mean of numeric labels, with 95 % intervals.

    bertsmith corrects the estimates for the mistakes of the model.

    Example: bertsmith measure runs/reviews corpus.csv --labelled sample.csv --random-sample --by month
    """
    from bertsmith.errors import ConfigError
    from bertsmith.folders.atomic import write_text
    from bertsmith.folders.claim import claim
    from bertsmith.folders.files import OutputFile
    from bertsmith.progress.prediction import PredictionProgress

    if corpus is None and settings.sql is None:
        raise ConfigError("the corpus is missing", remedy="Pass it as CORPUS, or with --sql and --db.")
    inputs = (corpus, labelled, settings.db, settings.corrections)
    files = {
        name: OutputFile(path, inputs, suffixes)
        for name, path, suffixes in (
            ("table", output, (".csv",)),
            ("page", html, (".html", ".htm")),
            ("table for regressions", for_regression, (".csv",)),
        )
        if path is not None
    }
    if len({file.path.absolute() for file in files.values()}) < len(files):
        raise ConfigError("two outputs have the same path", remedy="Pass a different file for each.")
    for file in files.values():
        file.check(overwrite=overwrite)  # before the slow part
    from bertsmith.workflows.measure import run_measurement

    with PredictionProgress(stderr_console()) as progress, sigterm_like_ctrl_c():
        measurement = run_measurement(
            run,
            corpus,
            settings,
            labelled=labelled,
            by=by,
            random_sample=random_sample,
            for_regression=for_regression,
            overwrite=overwrite,
            observe=progress,
        )
    from bertsmith.report.shares import shares_csv, shares_page

    contents = {"table": lambda: shares_csv(measurement), "page": lambda: shares_page(measurement, run.resolve().name)}
    for name, file in files.items():
        if name in contents:
            with claim(file, overwrite=overwrite):
                write_text(file.path, contents[name]())
        stderr_console().print(f"{name}: {file.path}")
    if json:
        print_json(measurement.to_dict())
    else:
        _print(measurement)
    for note in measurement.notes:
        stderr_console().print(f"note: {note}")


def _print(measurement: Measurement) -> None:
    """Print the shares and means of the whole corpus, and of its groups if they are few."""
    shares = measurement.shares if len(measurement.shares) <= MAX_SHOWN else measurement.whole[:MAX_SHOWN]
    means = measurement.means[:MAX_SHOWN]
    if shares:
        _print_table(measurement, "share", shares)
    if shares and means:
        stdout_console().print()
    if means:
        _print_table(measurement, measurement.mean_name, means)
    if more := len(measurement.shares) - len(shares) + len(measurement.means) - len(means):
        stdout_console().print(f"… and {more:,} more; -o, --html and --json show all")


def _print_table(measurement: Measurement, value: str, estimates: Sequence[Share | MeanLevel]) -> None:
    """Print one line for each share or mean, by group if there are groups."""
    from rich.table import Table

    from bertsmith.measuring.result import Share, show_mean

    names = [measurement.by] if measurement.by else []
    names += ["label text"] if isinstance(estimates[0], Share) else []
    alone = ["labelled texts alone"] if measurement.sample else []
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name)
    for name in (value, "95 % interval", "naive", "difference", *alone, "labelled", "texts"):
        table.add_column(name, justify="right")
    show: Callable[[float], str]
    for e in estimates:
        group = [e.group or "(all)"] if measurement.by else []
        if isinstance(e, Share):
            first, show = [e.label_text], "{:.1%}".format
            found, by_people, difference = e.share, e.labelled_share, "{:+.1f} points".format
            off = None if e.difference is None else 100 * e.difference
        else:
            first, show = [], show_mean
            found, by_people, difference, off = e.mean, e.labelled_mean, "{:+.2g}".format, e.difference
        interval, other = (
            "–" if each is None else f"{show(each[0])} to {show(each[1])}" for each in (e.interval, e.labelled_interval)
        )
        cells = [*group, *first, "–" if found is None else show(found), interval, show(e.naive)]
        cells += ["–" if off is None else difference(off)]
        cells += ["–" if by_people is None else f"{show(by_people)} ({other})"] if alone else []
        table.add_row(*cells, f"{e.labelled:,}", f"{e.texts:,}")
    stdout_console().print(table)
