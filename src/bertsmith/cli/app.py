"""The commands, and how errors end them: with one message on stderr and an exit code."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from bertsmith import __version__
from bertsmith.cli.options import Command, Group, with_checked_paths
from bertsmith.cli.terminal import stderr_console, use_utf8
from bertsmith.compute.processes import rank_and_world_size
from bertsmith.compute.system import is_closed_pipe
from bertsmith.errors import DISK_ERRNOS, Interrupted, MissingPackageError, UserError, save_traceback, write_error

RANK_0_SECONDS = 30.0
"""Time that other ranks wait before they exit with an error, so that rank 0 can report it first."""

_COMPLETE = "_BERTSMITH_COMPLETE"
"""Environment variable of a shell that requests completions, in a call without arguments."""
PANELS = {
    "First steps": ("demo", "doctor"),
    "Label and check": ("label", "next", "inspect"),
    "Train and evaluate": ("train", "tune", "evaluate", "compare", "explain"),
    "Predict and deploy": ("predict", "export", "serve", "push"),
    "Measure and publish": ("measure", "drift", "methods", "verify", "pack"),
}
"""Commands by their panel of `bertsmith --help`. Each is a function of this name in a module of this name."""
COMMANDS = tuple(name for names in PANELS.values() for name in names)
_NEEDS = dict.fromkeys(COMMANDS, "train") | {
    "tune": "tune",
    "explain": "explain",
    "export": "export",
    "predict": None,
    "serve": None,
    "methods": None,
    "doctor": None,
}
"""The extra that a command needs as a whole. For other commands, the missing package determines the extra."""


def _print_version(is_set: bool) -> None:
    if is_set:
        sys.stdout.write(f"bertsmith {__version__}\n")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", help="Show the traceback of an internal error. This option may also come after a command."
        ),
    ] = False,
) -> None:
    pass


def app(command: str = "") -> typer.Typer:
    """Return the command line. With the name of a command, import only that command."""
    cli = typer.Typer(
        name="bertsmith",
        cls=Group,
        help="Train text classifiers on labelled tables, by fine-tuning BERT-family models.",
        epilog="Start with:  bertsmith inspect reviews.csv   then:  bertsmith train reviews.csv -o runs/reviews",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    )
    cli.callback()(_options)
    for panel, names in PANELS.items():
        for name in names:
            if command not in COMMANDS or name == command:
                function = getattr(import_module(f"bertsmith.cli.{name}"), name)
                cli.command(cls=Command, rich_help_panel=panel)(with_checked_paths(function))
    return cli


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0 success, 1 internal error, 2 error of the user, 130 interrupted."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the parent process closed it
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - open until the process ends
    use_utf8(sys.stdout)
    use_utf8(sys.stderr)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    rank, n_processes = rank_and_world_size()
    stderr = sys.stderr
    if rank:  # with torchrun, only rank 0 prints
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    debug = "--debug" in arguments
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # searching all installed packages for them is slow
    if not (debug or sys.warnoptions):  # library warnings address developers
        warnings.showwarning = _ignore_warning
        os.environ["PYTHONWARNINGS"] = "ignore"  # for child processes
    atexit.register(gc.freeze)  # makes the exit faster
    if n_processes > 1 and arguments[:1] != ["train"]:
        code, message = 2, "error: torchrun works only with bertsmith train: leave out torchrun"
    else:
        code, message = _run([a for a in arguments if a != "--debug"], debug)
    if rank and code in (1, 2):  # torchrun stops all ranks when one exits
        time.sleep(RANK_0_SECONDS)
        sys.stderr = stderr
    if message:
        stderr_console().print(message)
    sys.exit(code)


def _ignore_warning(*args: object, **kwargs: object) -> None:
    """Show nothing. Filters still apply, so a filter can turn a warning into an error."""


def _run(arguments: list[str], debug: bool) -> tuple[int, str]:
    """Run a command; return its exit code and a message."""
    try:
        command = typer.main.get_command(app(*arguments[:1]))
        if _COMPLETE in os.environ:  # a shell requests completions
            command.main(arguments, prog_name="bertsmith")
        code = 0
        try:
            # command.main() would exit with 1 on a closed pipe.
            with command.make_context("bertsmith", arguments) as context:
                command.invoke(context)
        except typer.Exit as exit_request:
            code = exit_request.exit_code
        sys.stdout.flush()
    except UserError as error:
        return error.exit_code, f"error: {error}"
    except Interrupted as interruption:
        return interruption.exit_code, f"interrupted: {interruption}"
    except (KeyboardInterrupt, typer.Abort):
        return 130, "interrupted"
    except Exception as error:
        if isinstance(error, OSError) and is_closed_pipe(error, sys.stdout):  # the reader has ended, as head does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0, ""
        if hasattr(error, "format_message"):  # the parser rejected the command line
            help_for = " ".join(["bertsmith", *(name for name in arguments[:1] if name in COMMANDS)])
            message = error.format_message().replace(": Value error, ", ": ")  # pydantic's prefix, in typer
            if not message:  # the command is missing, and its help is printed
                return 2, ""
            return 2, f"error: {message}\n  what to do: see {help_for} --help"
        if isinstance(error, OSError) and error.errno in DISK_ERRNOS:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that flushing stdout cannot fail again
            failed = write_error(Path(error.filename or "standard output"), error)
            return failed.exit_code, f"error: {failed}"
        if isinstance(error, PermissionError) and error.filename:  # Python also raises it if a path is only looked for
            denied = UserError(
                f"the system refuses access to the path: {error.strerror}",
                where=os.fsdecode(error.filename),
                remedy="Choose another path, or check the permissions of its folders.",
            )
            return denied.exit_code, f"error: {denied}"
        if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("bertsmith"):
            purpose = " ".join(["bertsmith", *arguments[:1]])
            missing = MissingPackageError(error.name, purpose, needs=_NEEDS.get("".join(arguments[:1])))
            return missing.exit_code, f"error: {missing}"
        if debug:
            raise
        return 1, (
            f"internal error: {type(error).__name__}: {str(error)[:300]}\n"
            f"  where: the traceback is in {save_traceback(error)}\n"
            "  what to do: report this error, with that file, to the maintainers; --debug shows the traceback"
        )
    return code, ""
