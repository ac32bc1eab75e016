"""Train in a folder, and keep the run at the URL of a storage."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bertsmith.errors import UserError
from bertsmith.events import FoldDone, RunEvent, RunFinished, RunListener, Saved
from bertsmith.folders.remote import RemoteRun
from bertsmith.folders.run import Run


@contextmanager
def copied_to_url(
    url: str, folder: Path, *, resume: bool, overwrite: bool, observe: RunListener, is_main: bool
) -> Iterator[tuple[Path, RunListener]]:
    """In this context, a worker trains in a folder of its machine. The main worker copies each checkpoint to the URL.

    Args:
        url: the URL of the run.
        folder: the folder to create; removed at the end unless copying failed.
        resume, overwrite: see `bertsmith.train`.
        observe: receives the events of the run. The path in `RunFinished` is relative to the run.
        is_main: whether this is the main worker; only that one reads and writes at the URL.

    Yields:
        The run folder, and the listener for its events.

    Raises:
        UserError: if the run must not be written, or cannot be copied.
    """
    shutil.rmtree(folder, ignore_errors=True)  # of a worker that died
    folder.mkdir(mode=0o700)
    remote = RemoteRun(url)
    run = Run(folder / remote.name)
    keeps = False

    def listener(event: RunEvent) -> None:
        nonlocal keeps
        if isinstance(event, Saved | FoldDone | RunFinished):
            try:
                remote.put(run.path)
            except UserError as error:
                keeps = True
                error.remedy = (
                    f"{error.remedy} --resume continues from the last checkpoint at the URL. All files of the run are "
                    f"in {run.path} on {socket.gethostname()}."
                )
                raise
        observe(RunFinished(event.path.relative_to(run.path)) if isinstance(event, RunFinished) else event)

    try:
        if is_main:
            remote.check(resume=resume, overwrite=overwrite)
        if is_main and resume and remote.created:
            remote.fetch(run.path)
        yield run.path, listener
    except BaseException as error:
        if isinstance(error, UserError) and error.where and str(run.path) in error.where:
            error.where += f" (a copy of {url} on a worker)"
        if not keeps and remote.created and run.layout.run.is_file() and run.info.get("created") == remote.created:
            try:
                remote.put(run.path)  # the status
            except UserError:  # the first error counts
                keeps = True
        raise
    finally:
        if not keeps:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def copied_from_url(url: str, observe: RunListener) -> Iterator[tuple[Path, RunListener]]:
    """In this context, workers train a run at a URL. At the end, it is copied to a temporary folder of this machine.

    Yields:
        The folder of the copy, and the listener for the events of the workers.

    Raises:
        UserError: if the run cannot be copied.
    """
    remote = RemoteRun(url)
    temporary = Path(tempfile.mkdtemp(prefix="bertsmith-"))
    copy = temporary / remote.name

    def listener(event: RunEvent) -> None:
        if isinstance(event, RunFinished):
            remote.fetch(copy, under=event.path)
            event = RunFinished(copy / event.path)
        observe(event)

    try:
        yield copy, listener
        if not (copy / "run.json").is_file():  # with several seeds, or if the worker died after the last copy
            remote.fetch(copy)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
