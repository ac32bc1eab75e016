"""``bertsmith push``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bertsmith.cli.options import Json, RunArgument
from bertsmith.cli.terminal import confirm as ask
from bertsmith.cli.terminal import print_json, stderr_console, stdout_console

if TYPE_CHECKING:
    from bertsmith.workflows.push import Push


def push(
    run: RunArgument,
    repository: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", show_default=False, help="Repository on the Hugging Face hub.")
    ],
    language: Annotated[
        list[str] | None, typer.Option(metavar="CODE", help="Language of the texts, such as en; may be repeated.")
    ] = None,
    license: Annotated[
        str | None, typer.Option(metavar="NAME", help="Licence of the model, such as apache-2.0 or cc-by-4.0.")
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(metavar="OWNER/NAME", help="Dataset on the hub that the model was trained on; may be repeated."),
    ] = None,
    export: Annotated[bool, typer.Option("--export", help="Also send the exports of the run.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Create a public repository; private by default.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Push a new commit to an existing repository.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Send without asking.")] = False,
    json: Json = False,
) -> None:
    """Push the model of a run to the Hugging Face hub, with a model card but without texts of the table.

    The command lists the files to send, and asks for confirmation.

    Example: bertsmith push runs/reviews my-name/reviews --language en --license apache-2.0
    """
    from bertsmith.report.card import Details
    from bertsmith.workflows.push import push_run

    err = stderr_console()

    def confirm(push: Push) -> bool:
        new = f"a new {'private' if push.private else 'public'} repository" if not push.exists else "a new commit"
        err.print(f"to {push.repository}, {new}:")
        for name, size in push.sizes.items():
            err.print(f"  {size / 1e6:>9,.2f} MB  {name}")
        err.print("the model card contains label texts and metrics; no file contains a text of the table")
        if license is None:
            err.print("note: without --license, others are not permitted to use the model")
        return yes or ask("Send it?")

    details = Details(repository, tuple(language or ()), license, tuple(dataset or ()))
    address = push_run(run, details, private=not public, exports=export, overwrite=overwrite, confirm=confirm)
    if address is None:
        err.print("bertsmith sent nothing")
        return
    if json:
        print_json({"repository": repository, "address": address})
        return
    stdout_console().print(address)
