"""A replication archive of a run, with its texts or with hashes in their place."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from bertsmith.data.template import stored_groups, texts_of
from bertsmith.folders.atomic import replaced_file, to_json, visible_files
from bertsmith.folders.run import Run, open_run
from bertsmith.measuring.result import read_measurement
from bertsmith.report.methods import write_methods
from bertsmith.workflows.score import hash_texts

MANIFEST = "SHA256SUMS"
README = """A run of bertsmith, packed for replication.

methods.md, methods.tex, references.bib  the methods paragraph, and where each number comes from
run/                                     the run folder: settings, classes, scores, predictions, model
measurement.json                         output of bertsmith measure, if there is a measurement
SHA256SUMS                               checksums: sha256sum -c SHA256SUMS

Check it:          bertsmith verify run
Train it again:    bertsmith verify run TABLE --retrain
Label new texts:   bertsmith predict run new.csv
"""
WITHOUT_TEXTS = """
This archive has no texts. In predictions/, the column text has the XXH3 hash of each text, as in splits.parquet. The
column group has a number for each group. The archive leaves out the report, the explanations, the evaluations and the
slices of metrics.json, because they quote cells of the table. bertsmith verify cannot predict labels from hashes, but
checks everything else.
"""


def pack_run(path: Path, output: Path, *, texts: bool = True, measurement: Path | None = None) -> int:
    """Write a zip archive of a finished run, and return its number of files.

    Args:
        path: the run folder.
        output: the archive.
        texts: keep the texts; otherwise, hashes replace texts, numbers replace groups, and what quotes cells of the
            table is left out.
        measurement: output of ``bertsmith measure --json``, for the archive and the methods paragraph.

    Raises:
        UserError: if the run is not finished or damaged, the measurement comes from another run, or the archive cannot
            be written.
    """
    run = open_run(path)
    measured = None if measurement is None else read_measurement(measurement, run.info)
    methods = write_methods(run, measured)
    contents = {
        "README.txt": README + ("" if texts else WITHOUT_TEXTS),
        "methods.md": methods.markdown(),
        "methods.tex": methods.latex(),
        "references.bib": methods.bibtex(),
        **({} if measured is None else {"measurement.json": to_json(measured)}),
    }
    sums: list[str] = []
    with replaced_file(output) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in contents.items():
            _add(archive, name, content.encode(), sums)
        for source in _files(run, texts=texts):
            if not texts and source.parent.name == "predictions":
                content_bytes = _hashed(source)
            elif not texts and source == run.layout.metrics:
                content_bytes = to_json({**run.metrics, "slices": []}).encode()
            elif source == run.layout.run:
                content_bytes = _to_share(run, texts=texts)
            else:
                content_bytes = source.read_bytes()
            _add(archive, f"run/{source.relative_to(run.path).as_posix()}", content_bytes, sums)
        archive.writestr(MANIFEST, "".join(f"{line}\n" for line in sums))
    return len(sums) + 1


def _add(archive: zipfile.ZipFile, name: str, content: bytes, sums: list[str]) -> None:
    archive.writestr(name, content)
    sums.append(f"{sha256(content).hexdigest()}  {name}")


def _files(run: Run, *, texts: bool) -> Iterator[Path]:
    """Yield the files of a run that belong in the archive."""
    layout = run.layout
    folders = [layout.model, layout.predictions]
    single = [layout.run, layout.labels, layout.splits, layout.history, layout.metrics]
    if texts:
        single.append(layout.report)
        folders.append(layout.evaluations)
    for file in [*single, *(f for folder in folders for f in visible_files(folder))]:
        # Without texts: the CSV repeats the Parquet file, and explanations quote texts.
        quotes = not texts and file.parent == layout.predictions and file.suffix != ".parquet"
        if file.is_file() and not quotes:
            yield file


def _hashed(file: Path) -> bytes:
    """Return a Parquet file of predictions with hashes instead of texts, and numbers instead of groups."""
    import pandas as pd

    frame = pd.read_parquet(file)
    buffer = io.BytesIO()
    hashed = frame.drop(columns="pair", errors="ignore").assign(text=hash_texts(texts_of(frame)))
    if "group" in frame.columns:
        hashed["group"] = stored_groups(frame)
    hashed.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _to_share(run: Run, *, texts: bool) -> bytes:
    """Return ``run.json`` without a database URL; without texts, also without the sentences that quote them."""
    info = run.info
    if not texts:
        findings = info["data"]["findings"]
        kept = [{**finding, "message": "", "action": ""} for finding in findings.get("findings", ())]
        info["data"]["findings"] = {**findings, "findings": kept}
    return to_json(info).encode()
