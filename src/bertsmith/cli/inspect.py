"""``bertsmith inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bertsmith.cli.options import Json, TableArgument, with_settings
from bertsmith.cli.terminal import print_json, result, talk
from bertsmith.config import Config, DataConfig, ModelConfig
from bertsmith.errors import DataError


@with_settings(DataConfig, ModelConfig, only=(*DataConfig.model_fields, "model", "max_length"))
def inspect(
    *,
    table: TableArgument = None,
    json: Json = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the findings as a page.")] = None,
    label_errors: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv", help="Write labels that are probably wrong, to correct for --corrections."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    settings: Config,
    config: Path | None,
) -> None:
    """Look a table over: classes, lengths, duplicates, conflicts, leaks, damage; and what train would do about each.

    The exit code is 2 if train refuses the table.

    Example: bertsmith inspect reviews.csv --html findings.html
    """
    inputs = (table, settings.test, settings.validation, settings.corrections, settings.db, config)
    for file, suffixes in ((html, (".html", ".htm")), (label_errors, (".csv",))):
        if file is not None:
            from bertsmith.folders.claim import check_file

            check_file(file, inputs, overwrite=overwrite, suffixes=suffixes)
    from bertsmith.api import as_table, inspect_table, suspected

    read = as_table(table, settings)
    findings = inspect_table(read, settings)
    if label_errors is not None:
        from bertsmith.folders.atomic import disk_errors, replaced_file
        from bertsmith.inference.spreadsheet import write_csv

        found = suspected(read, settings)
        with disk_errors(label_errors), replaced_file(label_errors) as part:
            write_csv(found, part)
        talk().print(
            f"{len(found):,} of {findings.usable:,} labels are hard to believe, the likeliest mistakes first: "
            f"{label_errors}\n  a place to look, not a verdict: fill in the column corrected where you agree, and give "
            "the file to train with --corrections",
            markup=False,
        )
    if html is not None:
        from bertsmith.folders.atomic import disk_errors, write_text
        from bertsmith.report.report import findings_page

        with disk_errors(html):
            write_text(html, findings_page(findings))
        talk().print(f"page: {html}")
    if json:
        print_json(findings.to_dict())
    else:
        result().print(findings)
    for finding in findings.findings:
        if finding.severity == "error":
            raise DataError(finding.message, where=findings.name, remedy=finding.action)
