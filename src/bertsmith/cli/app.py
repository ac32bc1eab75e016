"""The commands, and what becomes of errors: one clear message on stderr, and an exit code a script can rely on."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import tempfile
import time
import traceback
import warnings
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from bertsmith import __version__
from bertsmith.cli.options import Command
from bertsmith.cli.terminal import talk, use_utf8
from bertsmith.errors import DISK, Interrupted, UserError, cannot_write
from bertsmith.training.distributed import rank_and_world_size

PATIENCE = 30.0
"""Seconds for which a process that is not the one to speak waits for that one to say what went wrong."""

COMMANDS = ("demo", "inspect", "train", "tune", "evaluate", "predict", "explain", "export", "serve", "compare")
"""Each is a function of this name in a module of this name."""


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"bertsmith {__version__}\n")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of a fault; works after a command too.")
    ] = False,
) -> None:
    pass


def app(wanted: str = "") -> typer.Typer:
    """Return the command line: with the one command that is wanted, which need not wait for the others, or with all."""
    made = typer.Typer(
        name="bertsmith",
        help="Fine-tune BERT-family models for text classification: from a labelled table to a classifier you can "
        "trust.",
        epilog="Start with:  bertsmith inspect reviews.csv   then:  bertsmith train reviews.csv -o runs/reviews",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    )
    made.callback()(_options)
    for name in (wanted,) if wanted in COMMANDS else COMMANDS:
        made.command(cls=Command)(getattr(import_module(f"bertsmith.cli.{name}"), name))
    return made


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0 done, 2 the user can mend it, 1 a fault of ours, 130 interrupted."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - for as long as the process lives
    use_utf8(sys.stdout)
    use_utf8(sys.stderr)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    rank, processes = rank_and_world_size()
    ours = sys.stderr
    if rank:  # of several processes that torchrun started, one speaks
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    debug = "--debug" in arguments
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # they are looked for in all that is installed
    if not (debug or sys.warnoptions):  # they speak to developers; with -W or PYTHONWARNINGS they are wanted
        warnings.showwarning = _drop
        os.environ["PYTHONWARNINGS"] = "ignore"  # for processes that we start
    atexit.register(gc.freeze)  # what is left when the process ends need not be searched for garbage
    if processes > 1 and arguments[:1] != ["train"]:
        code, message = 2, "[bold red]error:[/] torchrun is for bertsmith train: start other commands without it"
    else:
        code, message = _run([a for a in arguments if a != "--debug"], debug)
    if rank and code in (1, 2):  # ending now would end the one that speaks before it has spoken
        time.sleep(PATIENCE)  # in which torchrun ends this one, if that one met the same
        sys.stderr = ours
    if message:
        talk().print(message)
    sys.exit(code)


def _drop(*warning: object, **more: object) -> None:
    """Show no warning of Python or a library; filters still apply, so that one turned into an error is raised."""


def _run(arguments: list[str], debug: bool) -> tuple[int, str]:
    """Run a command; return the exit code and what is to be said of how it ended."""
    try:
        command = typer.main.get_command(app(*arguments[:1]))
        # Not its main(), which ends the process with 1 where a pipe is closed.
        with command.make_context("bertsmith", arguments) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as wanted:
        return wanted.exit_code, ""
    except UserError as error:
        return error.exit_code, f"[bold red]error:[/] {_escaped(str(error))}"
    except Interrupted as stopped:
        return stopped.exit_code, f"[yellow]interrupted:[/] {_escaped(str(stopped))}"
    except (KeyboardInterrupt, typer.Abort):
        return 130, "[yellow]interrupted[/]"
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0, ""
    except Exception as error:
        if hasattr(error, "format_message"):  # a mistake in the command line, found by the parser
            help_for = " ".join(["bertsmith", *(name for name in arguments[:1] if name in COMMANDS)])
            return 2, f"[bold red]error:[/] {_escaped(error.format_message())}\n  what to do: see {help_for} --help"
        if isinstance(error, OSError) and error.errno in DISK:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where what is left cannot fail again
            return 2, f"[bold red]error:[/] {cannot_write(Path(error.filename or 'standard output'), error)}"
        if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("bertsmith"):
            return 2, (
                f"[bold red]error:[/] this needs the package {error.name}, which is not installed\n"
                "  what to do: install it, or bertsmith whole (bertsmith-runtime runs exports and no more)"
            )
        if debug:
            raise
        with tempfile.NamedTemporaryFile(
            "w", prefix="bertsmith-", suffix=".log", delete=False, encoding="utf-8"
        ) as log:
            log.write(traceback.format_exc())
        return 1, (
            f"[bold red]a fault in bertsmith:[/] {type(error).__name__}: {_escaped(str(error)[:300])}\n"
            f"  where: the traceback is in {log.name}\n"
            "  what to do: please report it with that file; --debug shows it here"
        )
    return 0, ""


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
