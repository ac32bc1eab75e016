"""``bertsmith inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bertsmith.cli.options import Json, TableArgument, with_settings
from bertsmith.cli.terminal import print_json, stderr_console, stdout_console
from bertsmith.config import Config, DataConfig, ModelConfig
from bertsmith.errors import DataError, counted

if TYPE_CHECKING:
    from bertsmith.data.table import Table
    from bertsmith.evaluation.agreement import Agreement


@with_settings(DataConfig, ModelConfig, only=(*DataConfig.model_fields, "model", "max_length"))
def inspect(
    *,
    table: TableArgument = None,
    json: Json = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="HTML page to write, with the findings.")] = None,
    label_errors: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv",
            help="CSV file to write, with labels that may be wrong; train --corrections reads it.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    settings: Config,
    config: Path | None,
) -> None:
    """Check a table for problems, and show how bertsmith train would handle each of them.

    The exit code is 2 if bertsmith train would refuse the table.

    Example: bertsmith inspect reviews.csv --html findings.html
    """
    from bertsmith.folders.atomic import replaced_file, write_text
    from bertsmith.folders.claim import claim
    from bertsmith.folders.files import OutputFile

    inputs = (table, settings.test, settings.validation, settings.corrections, settings.db, config)
    page = OutputFile(html, inputs, (".html", ".htm")) if html else None
    suspects = OutputFile(label_errors, inputs, (".csv",)) if label_errors else None
    for file in (page, suspects):
        if file:
            file.check(overwrite=overwrite)  # before the slow part
    from bertsmith.workflows.inspect import as_table, inspect_table, suspected_label_errors

    read = as_table(table, settings)
    findings = inspect_table(read, settings)
    if suspects:
        from bertsmith.inference.table_writers import write_csv

        found = suspected_label_errors(read, settings, _print_features)
        with claim(suspects, overwrite=overwrite), replaced_file(suspects.path) as part:
            write_csv(found, part)
        stderr_console().print(
            f"{len(found):,} of {counted(findings.usable, 'text')} may have a wrong label; "
            f"{label_errors} lists the most likely errors first\n  Where a label is wrong, write the correct label "
            "into the column 'corrected'. Then pass the file to bertsmith train with --corrections."
        )
    if page:
        from bertsmith.report.report import findings_page

        with claim(page, overwrite=overwrite):
            write_text(page.path, findings_page(findings))
        stderr_console().print(f"page: {html}")
    if json:
        print_json(findings.to_dict() | ({"agreement": _agreement(read).to_dict()} if read.coded else {}))
    else:
        stdout_console().print(findings)
        if read.coded:
            _print_agreement(read)
    for finding in findings.findings:
        if finding.severity == "error":
            raise DataError(finding.message, where=findings.name, remedy=finding.action)


def _print_features(model: str | None) -> None:
    features = "a bag of words" if model is None else f"embeddings of {model}"
    stderr_console().print(f"checking labels with a regression on {features}")


def _agreement(table: Table) -> Agreement:
    from bertsmith.evaluation.agreement import measure_agreement

    return measure_agreement(table.coded, table.labels.texts, table.task)


def _print_agreement(table: Table) -> None:
    """Print how well the coders agree, for all labels, each label and each pair of coders."""
    from bertsmith.evaluation.agreement import Coefficient

    def show(name: str, found: Coefficient) -> None:
        if found.value is not None:
            interval = "not available" if found.interval is None else "{:.2f} to {:.2f}".format(*found.interval)
            stdout_console().print(
                f"  {found.value:.2f}  (95 % interval {interval}, {counted(found.texts, 'text')})  {name}"
            )

    found = _agreement(table)
    if not found.alpha.texts:
        stdout_console().print("\nThe agreement of coders is unknown: no text has the labels of two coders.")
        return
    stdout_console().print(f"\nagreement of coders, who differ on {counted(len(found.disputed), 'text')}")
    show("Krippendorff's alpha", found.alpha)
    for label, coefficient in found.classes.items():
        show(f"alpha of {label}", coefficient)
    for pair, coefficient in found.pairs.items():
        show(f"Cohen's kappa of {' and '.join(pair)}", coefficient)
