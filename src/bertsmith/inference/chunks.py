"""Predictions on their way to a file: kept piece by piece in a folder beside it, so that what is done stays done."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from bertsmith.data.stream import CHUNK_ROWS, Chunk, Stream
from bertsmith.data.table import Cells
from bertsmith.errors import Interrupted, RunFolderError, needing
from bertsmith.folders.atomic import checksum, replaced_file, write_json
from bertsmith.folders.claim import differences
from bertsmith.folders.files import OutputFile
from bertsmith.inference.spreadsheet import check_fits
from bertsmith.inference.table_writers import DIALECTS, TYPED, CsvStyle, join, open_writer, output_format, part_of

ABOUT = "about.json"
SUFFIX = ".unfinished"
"""What the folder is called besides the name of the file."""
_OURS = re.compile(r"(\.\d+\.)?(about\.json|\d{8}\.\w+)")
"""The names of the files in it, half written ones too."""


@dataclass(frozen=True)
class PredictionFile:
    """A file of predictions to write, and the folder of its unfinished chunks.

    Attributes:
        path: the file.
        sources: everything the command reads, which is never replaced.
    """

    path: Path
    sources: Iterable[Any] = ()
    activity: ClassVar[str | None] = "writing this file"
    disk_remedy: ClassVar[str | None] = None

    def check(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Refuse to replace a file or unfinished predictions without permission.

        Raises:
            UserError: with the reason, or if no predictions can be resumed.
        """
        folder = folder_of(self.path)
        if resume and overwrite:
            raise RunFolderError("--resume and --overwrite contradict each other", remedy="Give one of them.")
        replaces = _begun(self.path)["replaces"] if resume else overwrite
        if folder.exists() and not resume:
            if not folder.is_dir() or any(not _OURS.fullmatch(file.name) for file in folder.iterdir()):
                raise RunFolderError(
                    "unfinished predictions are kept here, but the folder contains other files",
                    where=str(folder),
                    remedy="Move them elsewhere, or give -o another file.",
                )
            if not overwrite:
                raise RunFolderError(
                    "unfinished predictions exist",
                    where=str(folder),
                    remedy="Pass --resume to continue them, or --overwrite to begin again.",
                )
        OutputFile(self.path, self.sources).check(overwrite=bool(replaces))


class Chunks:
    """The predictions that are written already, of a file to be.

    Attributes:
        done: how many pieces there are.
        counts: what `add` was told of them, summed up.
    """

    def __init__(self, output: Path, kind: str, *, style: CsvStyle, types: tuple[Mapping[str, Any], bool]) -> None:
        self.output, self.kind, self.style, self.types = output, kind, style, types
        self.folder = folder_of(output)
        self.done = 0
        self.counts: Counter[str] = Counter()

    def add(self, cells: Cells, counts: Mapping[str, int]) -> None:
        """Write the next piece; once this returns, it stays written."""
        with (
            replaced_file(self._piece(self.done)) as file,
            open_writer(part_of(self.kind), file, style=self.style, types=self.types, header=not self.done) as writer,
        ):
            writer.write(cells)
        write_json(self._note(self.done), {"counts": counts, "sha256": checksum(self._piece(self.done))})
        self._count(counts)

    def resume(self, about: Mapping[str, Any]) -> None:
        """Go on with what is there and whole.

        Raises:
            RunFolderError: if there is nothing, or something else.
        """
        before = _begun(self.output)
        if changed := differences(before["about"], json.loads(json.dumps(about))):
            raise RunFolderError(
                f"these predictions cannot be resumed, since these differ: {'; '.join(changed)}",
                where=str(self.folder),
                remedy="Give the command they were begun with, or pass --overwrite to begin anew.",
            )
        while True:
            try:
                note = json.loads(self._note(self.done).read_text(encoding="utf-8"))
                if note["sha256"] != checksum(self._piece(self.done)):
                    return
                self._count(note["counts"])
            except (OSError, ValueError, KeyError, TypeError):
                return

    def begin(self, about: Mapping[str, Any]) -> None:
        """Begin anew; what is there is dropped."""
        self.drop()
        self.folder.mkdir(parents=True)
        write_json(self.folder / ABOUT, {"about": about, "replaces": self.output.exists()})

    def finish(self) -> None:
        """Make the file of the pieces."""
        with replaced_file(self.output) as file:
            join(self.kind, [self._piece(i) for i in range(self.done)], file)
        self.drop()

    def drop(self) -> None:
        """Remove the pieces."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _count(self, counts: Mapping[str, int]) -> None:
        self.done += 1
        self.counts.update(counts)

    def _piece(self, i: int) -> Path:
        return self.folder / f"{i:08}.{part_of(self.kind)}"

    def _note(self, i: int) -> Path:
        return self.folder / f"{i:08}.json"


def write_stream(
    label: Callable[[Iterable[Chunk]], Iterable[tuple[Cells, Counter[str]]]],
    stream: Stream,
    output: Path,
    about: Mapping[str, Any],
    *,
    style: CsvStyle = DIALECTS["plain"],
    resume: bool = False,
    on_resume: Callable[[int], None] = lambda n: None,
) -> Counter[str]:
    """Write the predictions of a stream to a file, which is there whole or not at all.

    What is more than one piece of a file is kept piece by piece: whenever the process ends, what was done is there to
    go on with.

    Args:
        label: `predict_chunks`, but for the pieces.
        stream: the texts.
        output: the file.
        about: what the predictions depend on, ready for JSON.
        style: how CSV is written.
        resume: go on with what is there.
        on_resume: receives the number of rows that are done.

    Returns:
        The counts of `predict_chunks`, summed up.

    Raises:
        RunFolderError: if the unfinished predictions are others.
        Interrupted: where Ctrl-C ended it and something is there to go on with.
        OutputError: if the file cannot be written.
        DataError: if an Excel file cannot hold the rows.
    """
    kind = output_format(output)
    typed = needing("excel" if kind == "xlsx" else "tables", f"writing .{kind}")(stream.types)
    types = typed() if kind in TYPED else ({}, False)
    if kind == "xlsx" and stream.n_rows is not None:
        check_fits(cells for cells, _ in stream.chunks())
    pieces = Chunks(output, kind, style=style, types=types)
    if not resume and (stream.path is None or stream.n_rows is None or stream.n_rows <= CHUNK_ROWS):
        pieces.drop()
        with (
            replaced_file(output) as file,
            open_writer(kind, file, style=style, types=types) as writer,
        ):
            for cells, counts in label(stream.chunks()):
                writer.write(cells)
                pieces.counts += counts
        return pieces.counts
    if resume:
        pieces.resume(about)
        on_resume(pieces.counts["rows"])
    else:
        pieces.begin(about)
    try:
        for cells, counts in label(itertools.islice(stream.chunks(), pieces.done, None)):
            pieces.add(cells, counts)
        pieces.finish()
    except KeyboardInterrupt:
        if not pieces.done:
            raise
        raise Interrupted(
            f"the predictions of {pieces.counts['rows']:,} rows are kept in {pieces.folder}\n"
            "  to go on: the same command with --resume"
        ) from None
    finally:
        if not pieces.done:
            pieces.drop()
    return pieces.counts


def folder_of(output: Path) -> Path:
    """Return where the pieces of a file are kept."""
    return output.with_name(output.name + SUFFIX)


def _begun(output: Path) -> dict[str, Any]:
    """Return what was written when unfinished predictions were begun.

    Raises:
        RunFolderError: if there are none, or it is damaged.
    """
    folder = folder_of(output)
    if not folder.exists():
        raise RunFolderError(
            "there are no unfinished predictions to go on with",
            where=str(folder),
            remedy="Leave out --resume (predictions of stdin, of a query and of few rows are not kept in pieces).",
        )
    try:
        content: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        return {"about": content["about"], "replaces": content["replaces"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            "the description of these unfinished predictions is damaged, so they cannot be resumed",
            where=str(folder / ABOUT),
            remedy="Pass --overwrite to begin anew.",
        ) from error
