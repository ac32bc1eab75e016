"""The run folder: reading and writing. At every instant a run is absent, resumable or finished."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from bertsmith.data.template import Template
from bertsmith.errors import RunFolderError, needing, rendered_by, to_path, with_article
from bertsmith.folders.atomic import (
    checksum,
    checksums,
    foreign_names,
    is_hidden,
    is_intact,
    remove_temporary_folders,
    replaced_folder,
    to_json,
    write_json,
    write_text,
)
from bertsmith.folders.layout import FINISHED, MEASURED, Layout, checkpoints, step_of

if TYPE_CHECKING:
    import pandas as pd

    from bertsmith.data.table import Labels
    from bertsmith.report.notebook import Figures


@dataclass(frozen=True)
class Run:
    """A run folder to read and write.

    Attributes:
        path: the folder.
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", to_path(self.path, "run"))

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def layout(self) -> Layout:
        """Paths in the folder."""
        return Layout(self.path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.info.get('status')})"

    _repr_html_ = rendered_by("bertsmith.report.notebook:run_html", optional=True)

    @property
    def figures(self) -> Figures:
        """The figures of the report by name, such as ``"confusion"``; see `bertsmith.report.notebook.Figures`."""
        return rendered_by("bertsmith.report.notebook:run_figures")(self)

    def foreign_files(self) -> list[str]:
        """Return the names of files and folders that training did not write, such as evaluations."""
        return foreign_names(self.path, {p.name for p in vars(self.layout).values()} - {self.layout.evaluations.name})

    @property
    def info(self) -> dict[str, Any]:
        """The content of ``run.json``, without the database URL and the hidden model files of older versions."""
        content = read_json(self.layout.run)
        if isinstance(config := content.get("config"), dict):
            config.pop("db", None)  # it can contain a password
        if isinstance(files := content.get("model_files"), dict):
            content["model_files"] = {name: digest for name, digest in files.items() if not is_hidden(name)}
        return content

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of ``metrics.json``."""
        if not self.layout.metrics.is_file():
            self.check_finished()
        content = read_json(self.layout.metrics)
        check_keys(content, MEASURED, self.layout.metrics)
        with damage_errors(self.layout.metrics):
            if old := content.get("baseline", {}).get("tfidf_logistic_regression"):  # the name in older versions
                content["baseline"]["bag_of_words"] = {"classifier": "logistic regression", **old}
        return content

    @cached_property
    def labels(self) -> Labels:
        """The classes."""
        from bertsmith.data.table import Labels

        with damage_errors(self.layout.labels):
            entries = read_json(self.layout.labels)["classes"]
            numbers, texts = (tuple(e[key] for e in entries) for key in ("label", "label_text"))
        columns = {*self.info.get("data", {}).get("findings", {}).get("columns", {})}
        are_positions = (*numbers, *texts) == (*range(len(texts)), *sorted(texts))  # of the sorted label texts
        return Labels(numbers, texts, numbered=columns >= {"label", "label_text"} or not are_positions)

    @property
    def task(self) -> str:
        """The kind of label, see `bertsmith.tasks`."""
        return str(self.info.get("task", "single-label"))  # older versions know only this kind

    @property
    def template(self) -> Template:
        """The columns that the model reads; a single text column for a run of a version without templates."""
        with damage_errors(self.layout.run):
            return Template.from_dict(self.info.get("template"))

    @property
    def class_counts(self) -> list[dict[str, int]]:
        """Number of texts per class: ``label`` (the user's number), ``train``, ``validation``, ``test``."""
        with damage_errors(self.layout.labels):
            return [{"label": e["label"], **e["counts"]} for e in read_json(self.layout.labels)["classes"]]

    @property
    def history(self) -> list[dict[str, Any]]:
        """The lines of ``history.jsonl``; empty before the first evaluation."""
        if not self.layout.history.is_file():
            return []
        with damage_errors(self.layout.history):
            lines = self.layout.history.read_text(encoding="utf-8").splitlines()
            entries = [json.loads(line) for line in lines if line]
            for entry in entries:  # a missing key is reported as damage
                _ = entry["step"], entry["epoch"], entry["metrics"].keys()
            return entries

    @property
    @needing()
    def predictions(self) -> pd.DataFrame:
        """Predictions for the test split, one row per text."""
        return self._predictions("test")

    @property
    def explanations(self) -> list[dict[str, Any]]:
        """Word attributions of the most confident mistakes; empty if they were not computed."""
        file = self.layout.explanations
        with damage_errors(file):
            return list(read_json(file)["mistakes"]) if file.is_file() else []

    @property
    @needing()
    def validation_predictions(self) -> pd.DataFrame:
        """Predictions for the validation split, one row per text."""
        return self._predictions("validation")

    def _predictions(self, split: str) -> pd.DataFrame:
        import pandas as pd

        file = self.layout.predictions / f"{split}.parquet"
        if not file.is_file():
            self.check_finished()
        with damage_errors(file):
            return pd.read_parquet(file)

    @property
    def training_hashes(self) -> set[str]:
        """Hashes of the texts in train and validation; empty for a run of a version without hashes."""
        import pandas as pd

        with damage_errors(self.layout.splits):
            frame = pd.read_parquet(self.layout.splits)
            return set(frame["hash"][frame["split"].isin(["train", "validation"])]) if "hash" in frame else set()

    @property
    def has_chosen_validation(self) -> bool:
        """Whether validation texts were chosen to be labelled, and test texts drawn; see `check_design`."""
        from bertsmith.data.findings import CHOSEN_VALIDATION

        with damage_errors(self.layout.run):
            findings = self.info.get("data", {}).get("findings", {}).get("findings", ())
            return any(finding["kind"] == CHOSEN_VALIDATION for finding in findings)

    @property
    def members(self) -> list[Run]:
        """One run per seed in ascending order; empty for a run with a single seed."""
        folders = (path for path in self.layout.seeds.glob("*") if path.name.isdigit())  # not temporary folders
        return [Run(path) for path in sorted(folders, key=lambda p: int(p.name))]

    @property
    def is_resumable(self) -> bool:
        """Whether an intact checkpoint, a scored fold or a run of a seed exists."""
        folds = any(self.layout.folds.glob("[0-9]*.npy"))
        return folds or self.last_checkpoint() is not None or any(m.layout.run.is_file() for m in self.members)

    def last_checkpoint(self) -> Path | None:
        """Return the newest intact checkpoint whose best checkpoint is intact too; ``None`` without one."""
        for path in checkpoints(self.layout.checkpoints):
            if is_intact(path):
                best = read_json(path / "trainer_state.json").get("best_model_checkpoint")
                name = PureWindowsPath(best or path).name  # the run may have begun on another system
                if name == path.name or is_intact(path.parent / name):
                    return path
        return None

    def remove_checkpoints_after(self, last: Path | None) -> list[int]:
        """Remove the damaged checkpoints after the last intact one, and return their steps."""
        damaged = [p for p in checkpoints(self.layout.checkpoints) if last is None or step_of(p) > step_of(last)]
        for path in damaged:
            shutil.rmtree(path)
        for folder in (self.path, self.layout.checkpoints):
            remove_temporary_folders(folder)
        return sorted(map(step_of, damaged))

    def update(self, **values: Any) -> None:
        """Set keys of ``run.json``."""
        write_json(self.layout.run, {**(self.info if self.layout.run.is_file() else {}), **values})

    def log(self, entry: Mapping[str, Any]) -> None:
        """Append a line to ``history.jsonl``."""
        self.path.stat()  # an OSError if the run was removed: it is not created again
        lines = self.layout.history.read_text(encoding="utf-8") if self.layout.history.is_file() else ""
        write_text(self.layout.history, lines + to_json(entry, indent=None))

    def truncate_history(self, step: int) -> None:
        """Remove the evaluations after a step."""
        lines = [to_json(entry, indent=None) for entry in self.history if entry["step"] <= step]
        write_text(self.layout.history, "".join(lines))

    def save_model(self, save: Callable[[Path], None]) -> None:
        """Write the model folder atomically with a function that gets a temporary folder."""
        with replaced_folder(self.layout.model) as folder:
            save(folder)

    def check_finished(self) -> None:
        """Raise a `RunFolderError` if training has not finished, or if ``run.json`` lacks a key of a finished run."""
        info = self.info
        if (status := info.get("status")) != "finished":
            remedy = "Wait until its training ends, or repeat the bertsmith train command with --resume."
            raise RunFolderError(
                f"the run is not finished: its status is {status}", where=str(self.path), remedy=remedy
            )
        check_keys(info, FINISHED, self.layout.run)

    def check_model(self) -> None:
        """Check that the model files have not changed since the run was finished. Added files are allowed.

        Raises:
            RunFolderError: naming the file that changed or is missing.
        """
        for name, digest in self.info.get("model_files", {}).items():
            file = self.layout.model / name
            with damage_errors(file):
                if checksum(file) != digest:
                    raise RunFolderError(
                        "this file of the model has changed since the run finished",
                        where=str(file),
                        remedy="Restore the file, or train again with --overwrite. If the change is intended, pass the "
                        "model folder instead of the run to bertsmith serve or bertsmith.load.",
                    )

    def finish(self, *, keep_checkpoints: bool) -> None:
        """Mark the run as finished, record the checksums of its model, and remove the files for resuming."""
        files = {name: digest for name, digest in checksums(self.layout.model).items() if name != "README.md"}
        self.update(status="finished", finished=now(), model_files=files)
        for folder in () if keep_checkpoints else (self.layout.checkpoints, self.layout.folds):
            shutil.rmtree(folder, ignore_errors=True)


def open_run(path: Run | Path | str) -> Run:
    """Return the run in a folder. A `RunFolderError` says if the folder has none, or if the run is not finished."""
    run = Run(to_path(path, "run"))
    if not run.layout.run.is_file():
        remedy = "Pass the folder that bertsmith train wrote."
        what = "the folder contains no run" if run.path.is_dir() else "the run folder does not exist"
        if run.path.is_file():
            what, remedy = "the path is a file, not a run folder", f"{remedy} The run comes first, then the table."
        elif (run.path / "study.json").is_file():
            remedy = f"The folder is a study: pass its best run, {run.path / 'best'}."
        elif (run.path / "export.json").is_file():
            remedy = "The folder is an export: pass its run."
        elif exports := ", ".join(sorted(str(file.parent) for file in run.path.glob("*/export.json"))):
            remedy = f"The folder contains exports. To predict or serve, pass one of them: {exports}."
        raise RunFolderError(what, where=str(path), remedy=remedy)
    run.check_finished()
    return run


def now() -> str:
    """Return the UTC time in ISO format, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RunFolderError: if the file is missing or damaged.
    """
    with damage_errors(path):
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it contains {with_article(content)}, not an object")
        return content


def check_keys(content: Mapping[str, Any], keys: Mapping[str, type], path: Path) -> None:
    """Check that a file has keys with values of the given types. ``"a.b"`` is the key ``b`` within ``a``.

    Raises:
        RunFolderError: naming the file and the first key that is missing, or whose value has another type.
    """
    with damage_errors(path):
        for key, kind in keys.items():
            value: Any = content
            for name in key.split("."):
                value = value.get(name) if isinstance(value, Mapping) else None
            if not isinstance(value, kind):
                raise ValueError(f"the key {key!r} is missing, or its value is not of the type {kind.__name__}")


@contextmanager
def damage_errors(path: Path) -> Iterator[None]:
    """Turn errors from a missing or damaged file of a run into a user error that names the file.

    Raises:
        RunFolderError: if the file is missing or damaged.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        if isinstance(error, json.JSONDecodeError):
            reason = f"it is not JSON (line {error.lineno}, column {error.colno})"
        raise RunFolderError(
            f"a file of the run is missing or damaged: {reason}",
            where=str(path),
            remedy="Restore the file, or train again with --overwrite.",
        ) from error
