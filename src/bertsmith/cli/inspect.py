"""``bertsmith inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bertsmith.cli.options import Json, TableArgument, with_settings
from bertsmith.cli.terminal import print_json, result, talk
from bertsmith.config import Config, DataConfig, ModelConfig


@with_settings(DataConfig, ModelConfig, only=(*DataConfig.model_fields, "model", "max_length"))
def inspect(
    *,
    table: TableArgument = None,
    json: Json = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the findings as a page.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page if it is there.")] = False,
    settings: Config,
    config: Path | None,
) -> None:
    """Look a table over: classes, lengths, duplicates, conflicts, leaks, damage; and what train would do about each.

    Example: bertsmith inspect reviews.csv --html findings.html
    """
    if html is not None:
        from bertsmith.errors import ConfigError
        from bertsmith.output import check_file

        check_file(html, (table, settings.test, settings.validation, settings.db, config), overwrite=overwrite)
        if html.suffix.lower() not in (".html", ".htm"):
            raise ConfigError(
                "--html wants the name of a page", where=str(html), remedy="Give a name that ends in .html."
            )
    from bertsmith.api import as_table, inspect_table

    findings = inspect_table(as_table(table, settings), settings)
    if html is not None:
        from bertsmith.report.report import findings_page
        from bertsmith.storage import told, write_text

        with told(html):
            write_text(html, findings_page(findings))
        talk().print(f"page: {html}")
    if json:
        print_json(findings.to_dict())
    else:
        result().print(findings)
