"""``bertsmith doctor``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from bertsmith.cli.options import Json, with_settings
from bertsmith.cli.terminal import print_json, stdout_console
from bertsmith.config import Config, ModelConfig

if TYPE_CHECKING:
    from bertsmith.workflows.doctor import Extra


@with_settings(ModelConfig, only=("device", "threads"))
def doctor(*, json: Json = False, settings: Config) -> None:
    """Show the device and settings that bertsmith would use, with reasons, versions and missing extras.

    Example: bertsmith doctor
    """
    from bertsmith.workflows.doctor import diagnose

    found = diagnose(settings.device)
    if json:
        print_json(asdict(found))
        return
    from rich.table import Table

    from bertsmith.compute.memory import format_bytes

    machine = {
        name.replace("_", " "): format_bytes(value) if "memory" in name else str(value)
        for name, value in found.machine.items()
    }
    out = stdout_console()
    for heading, rows in (
        ("machine", [(name, value, "") for name, value in machine.items()]),
        ("versions", [(name, value, "") for name, value in found.versions.items()]),
        ("devices", [(name, value or "not available", "") for name, value in found.devices.items()]),
        ("bertsmith would use", [(choice.name, choice.value, choice.reason) for choice in found.choices]),
        ("extras", [(e.name, _state(e), e.enables) for e in found.extras]),
    ):
        table = Table(box=None, padding=(0, 2, 0, 2), show_header=False)
        for column in range(3):
            table.add_column(style="dim" if column == 2 else "")
        for row in rows:
            table.add_row(*row)
        out.print(heading, style="bold")
        out.print(table)
    if any(extra.missing for extra in found.extras):
        out.print("to install an extra: pip install 'bertsmith[NAME]'")
    for problem in found.problems:
        out.print(f"problem: {problem}")


def _state(extra: Extra) -> str:
    if extra.missing == extra.packages:
        return "not installed"
    return f"lacks {', '.join(extra.missing)}" if extra.missing else "installed"
