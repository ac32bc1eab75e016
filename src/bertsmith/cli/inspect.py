"""``bertsmith inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bertsmith.cli.options import Json, TableArgument, with_settings
from bertsmith.cli.terminal import print_json, stderr_console, stdout_console
from bertsmith.config import Config, DataConfig, ModelConfig
from bertsmith.errors import DataError


@with_settings(DataConfig, ModelConfig, only=(*DataConfig.model_fields, "model", "max_length"))
def inspect(
    *,
    table: TableArgument = None,
    json: Json = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the findings to an HTML page.")] = None,
    label_errors: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv", help="Write labels that are probably wrong, in the format of --corrections."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    settings: Config,
    config: Path | None,
) -> None:
    """Check a table for problems, and show how train would handle each of them.

    The exit code is 2 if train would refuse the table.

    Example: bertsmith inspect reviews.csv --html findings.html
    """
    inputs = (table, settings.test, settings.validation, settings.corrections, settings.db, config)
    for file, suffixes in ((html, (".html", ".htm")), (label_errors, (".csv",))):
        if file is not None:
            from bertsmith.folders.claim import check_file

            check_file(file, inputs, overwrite=overwrite, suffixes=suffixes)
    from bertsmith.api import as_table, inspect_table, suspected

    data = as_table(table, settings)
    findings = inspect_table(data, settings)
    if label_errors is not None:
        from bertsmith.folders.atomic import disk_errors, replaced_file
        from bertsmith.inference.spreadsheet import write_csv

        suspects = suspected(data, settings)
        with disk_errors(label_errors), replaced_file(label_errors) as part:
            write_csv(suspects, part)
        stderr_console().print(
            f"{len(suspects):,} of {findings.usable:,} labels are probably wrong, most likely first: {label_errors}\n"
            "  check them: where you agree, fill in the column corrected; then pass the file to train --corrections",
            markup=False,
        )
    if html is not None:
        from bertsmith.folders.atomic import disk_errors, write_text
        from bertsmith.report.report import findings_page

        with disk_errors(html):
            write_text(html, findings_page(findings))
        stderr_console().print(f"page: {html}")
    if json:
        print_json(findings.to_dict())
    else:
        stdout_console().print(findings)
    for finding in findings.findings:
        if finding.severity == "error":
            raise DataError(finding.message, where=findings.name, remedy=finding.action)
