"""Write predictions to a file in chunks, so that interrupted predictions can be resumed."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bertsmith.data.stream import CHUNK_ROWS, Chunk, Stream
from bertsmith.data.table import Cells
from bertsmith.data.template import Text
from bertsmith.errors import Interrupted, RunFolderError, counted, needing
from bertsmith.folders.atomic import (
    RESUME_REMEDY,
    checksum,
    disk_errors,
    foreign_names,
    replaced_file,
    to_json,
    write_json,
)
from bertsmith.folders.claim import differences, refuse_changes
from bertsmith.folders.files import OutputFile
from bertsmith.inference.spreadsheet import check_fits
from bertsmith.inference.table_writers import DIALECTS, TYPED, CsvStyle, join, open_writer, output_format, part_of

ABOUT = "about.json"
SUFFIX = ".unfinished"
"""Suffix of the folder of unfinished chunks, after the name of the output file."""
_CHUNK_FILE = re.compile(r"(\.[0-9a-f]+\.)?(about\.json|\d{8}\.\w+)")
"""Names of the files in this folder, temporary files included."""


class PredictionFile(OutputFile):
    """A file of predictions to write, and the folder of its unfinished chunks."""

    def check(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Refuse to replace a file or unfinished predictions without permission."""
        folder = chunks_folder(self.path)
        if resume and overwrite:
            raise RunFolderError("--resume and --overwrite contradict each other", remedy="Pass only one of them.")
        replaces = _read_about(self.path)["replaces"] if resume else overwrite
        if folder.exists() and not resume:
            if not folder.is_dir() or any(not _CHUNK_FILE.fullmatch(name) for name in foreign_names(folder, ())):
                raise RunFolderError(
                    "this folder is for unfinished predictions, but contains other files",
                    where=str(folder),
                    remedy="Move these files elsewhere, or choose another file with -o.",
                )
            if not overwrite:
                raise RunFolderError(
                    "this output has unfinished predictions",
                    where=str(folder),
                    remedy="Pass --resume to continue them, or --overwrite to begin again.",
                )
        super().check(overwrite=bool(replaces))


class Chunks:
    """The finished chunks of an output file, in a folder next to it.

    Attributes:
        done: number of chunks.
        counts: sum of the counts of the chunks.
    """

    def __init__(self, output: Path, kind: str, *, style: CsvStyle, types: tuple[Mapping[str, Any], bool]) -> None:
        self.output, self.kind, self.style, self.types = output, kind, style, types
        self.folder = chunks_folder(output)
        self.done = 0
        self.counts: Counter[str] = Counter()

    def add(self, cells: Cells, counts: Mapping[str, int]) -> None:
        """Write the next chunk and its checksum to disk."""
        chunk, note = self._files(self.done)
        header = not self.done
        with (
            replaced_file(chunk) as file,
            open_writer(part_of(self.kind), file, style=self.style, types=self.types, header=header) as writer,
        ):
            writer.write(cells)
        write_json(note, {"counts": counts, "sha256": checksum(chunk)})
        self._count(counts)

    def resume(self, about: Mapping[str, Any]) -> None:
        """Continue after the last intact chunk.

        Raises:
            RunFolderError: if no chunks exist, or ``about`` has changed.
        """
        changed = differences(_read_about(self.output)["about"], json.loads(to_json(about)))
        refuse_changes("predictions", self.folder, changed)
        while True:
            chunk, note = self._files(self.done)
            try:
                content = json.loads(note.read_text(encoding="utf-8"))
                if content["sha256"] != checksum(chunk):
                    return
                self._count(content["counts"])
            except (OSError, ValueError, KeyError, TypeError):
                return

    def begin(self, about: Mapping[str, Any]) -> None:
        """Remove old chunks and begin a new folder."""
        self.remove()
        self.folder.mkdir(parents=True)
        write_json(self.folder / ABOUT, {"about": about, "replaces": self.output.exists()})

    def finish(self) -> None:
        """Join the chunks into the output file and remove them."""
        with replaced_file(self.output) as file:
            join(self.kind, [self._files(i)[0] for i in range(self.done)], file)
        self.remove()

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _count(self, counts: Mapping[str, int]) -> None:
        self.done += 1
        self.counts.update(counts)

    def _files(self, i: int) -> tuple[Path, Path]:
        """Return the file of a chunk, and the JSON file with its counts and checksum."""
        return self.folder / f"{i:08}.{part_of(self.kind)}", self.folder / f"{i:08}.json"


def write_stream(
    label: Callable[[Iterable[Chunk]], Iterable[tuple[Cells, Counter[str], Sequence[Text]]]],
    stream: Stream,
    output: Path,
    about: Mapping[str, Any],
    *,
    style: CsvStyle = DIALECTS["plain"],
    resume: bool = False,
    on_resume: Callable[[int], None] = lambda n: None,
) -> Counter[str]:
    """Write the predictions of a stream to a file atomically.

    If a file has more than one chunk of rows, every chunk is saved, so that interrupted predictions can be resumed.

    Args:
        label: predicts chunks, see `predict_chunks`.
        stream: the texts.
        output: the file.
        about: everything that the predictions depend on, JSON-ready.
        style: the CSV style.
        resume: continue unfinished predictions.
        on_resume: called with the number of rows that are already predicted.

    Returns:
        The sum of the counts of `predict_chunks`.

    Raises:
        RunFolderError: if no predictions can be resumed, or ``about`` has changed.
        Interrupted: on Ctrl-C, if the predictions can be resumed.
        OutputError: if the file cannot be written.
        DataError: if the rows do not fit into an Excel file.
    """
    kind = output_format(output)
    typed = needing("excel" if kind == "xlsx" else "tables", f"writing .{kind}")(stream.types)
    types = typed() if kind in TYPED else ({}, False)
    if kind == "xlsx" and stream.n_rows is not None:
        check_fits(cells for cells, _ in stream.chunks())
    chunks = Chunks(output, kind, style=style, types=types)
    if not resume and (stream.path is None or stream.n_rows is None or stream.n_rows <= CHUNK_ROWS):
        chunks.remove()
        with replaced_file(output) as file, open_writer(kind, file, style=style, types=types) as writer:
            for cells, counts, _ in label(stream.chunks()):
                writer.write(cells)
                chunks.counts += counts
        return chunks.counts
    if resume:
        chunks.resume(about)
        on_resume(chunks.counts["rows"])
    else:
        chunks.begin(about)
    try:
        for cells, counts, _ in label(itertools.islice(stream.chunks(), chunks.done, None)):
            chunks.add(cells, counts)
        chunks.finish()
    except KeyboardInterrupt:
        if not chunks.done:
            raise
        raise Interrupted(
            f"the predictions of {counted(chunks.counts['rows'], 'row')} are saved in {chunks.folder}\n"
            "  to resume: run the same command with --resume"
        ) from None
    except OSError:
        if not chunks.done:
            raise
        with disk_errors(
            output, f"{counted(chunks.counts['rows'], 'predicted row is', 'predicted rows are')} saved. {RESUME_REMEDY}"
        ):
            raise
    finally:
        if not chunks.done:
            chunks.remove()
    return chunks.counts


def chunks_folder(output: Path) -> Path:
    """Return the folder of the unfinished chunks of a file."""
    return output.with_name(output.name + SUFFIX)


def nothing_written(output: Path) -> bool:
    """Return whether neither a file nor its unfinished chunks exist."""
    return not output.exists() and not chunks_folder(output).exists()


def _read_about(output: Path) -> dict[str, Any]:
    """Return the description of unfinished predictions."""
    folder = chunks_folder(output)
    if not folder.exists():
        raise RunFolderError(
            "the output has no unfinished predictions to resume",
            where=str(output),
            remedy="Leave out --resume, and pass --overwrite to replace the file."
            if output.exists()
            else "Leave out --resume. bertsmith cannot resume predictions from stdin, a query or a table in memory.",
        )
    try:
        content: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        return {"about": content["about"], "replaces": content["replaces"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(
            "the description of these unfinished predictions is damaged, so they cannot be resumed",
            where=str(folder / ABOUT),
            remedy="Pass --overwrite to begin again.",
        ) from error
