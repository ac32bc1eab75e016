"""The run folder: the only place that writes there. At every instant it is absent, resumable or finished."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertsmith.data.table import Labels
from bertsmith.errors import RunFolderError, needing, to_path
from bertsmith.folders.atomic import (
    checksum,
    checksums,
    drop_leftovers,
    is_whole,
    replaced_folder,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Layout:
    """What lies where in a run folder."""

    root: Path

    @property
    def run(self) -> Path:
        """Resolved configuration, seed, versions, hardware, data, status, timings."""
        return self.root / "run.json"

    @property
    def labels(self) -> Path:
        """Label number and text of every class, and its texts by split."""
        return self.root / "labels.json"

    @property
    def splits(self) -> Path:
        """Source row to split, and why rows were left out."""
        return self.root / "splits.parquet"

    @property
    def model(self) -> Path:
        """A plain Hugging Face checkpoint."""
        return self.root / "model"

    @property
    def history(self) -> Path:
        """One line an evaluation."""
        return self.root / "history.jsonl"

    @property
    def trace(self) -> Path:
        """What the machine did in a few steps of training, where that was asked for."""
        return self.root / "trace.json"

    @property
    def metrics(self) -> Path:
        """Every figure, by split."""
        return self.root / "metrics.json"

    @property
    def predictions(self) -> Path:
        """Predictions for the validation and test splits."""
        return self.root / "predictions"

    @property
    def explanations(self) -> Path:
        """Which words moved the most confident mistakes."""
        return self.predictions / "explanations.json"

    @property
    def report(self) -> Path:
        """The page."""
        return self.root / "report.html"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints to resume from, while there is something to resume."""
        return self.root / "checkpoints"

    @property
    def folds(self) -> Path:
        """Probabilities of the texts of each fold that is done, while there is something to resume."""
        return self.root / "folds"

    @property
    def seeds(self) -> Path:
        """Runs of their own with other seeds, by seed, where there are several."""
        return self.root / "seeds"

    @property
    def exports(self) -> Path:
        """Models for other runtimes, by format."""
        return self.root / "export"

    @property
    def evaluations(self) -> Path:
        """Scores on other tables."""
        return self.root / "evaluations"


@dataclass(frozen=True)
class Run:
    """A run folder, to read from and to write to.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def layout(self) -> Layout:
        """What lies where."""
        return Layout(self.path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.info.get('status')})"

    def foreign(self) -> list[str]:
        """Return the names of what is in the folder besides what training writes, evaluations among it."""
        names = {getattr(self.layout, name).name for name, kind in vars(Layout).items() if isinstance(kind, property)}
        ours = names - {self.layout.evaluations.name}
        return sorted(p.name for p in self.path.iterdir() if p.name not in ours and not p.name.startswith("."))

    # -- reading -----------------------------------------------------------------------------------------------------

    @property
    def info(self) -> dict[str, Any]:
        """The content of ``run.json``."""
        return _read_json(self.layout.run)

    @property
    def metrics(self) -> dict[str, Any]:
        """The content of ``metrics.json``."""
        content = _read_json(self.layout.metrics)
        with damage_errors(self.layout.metrics):
            if before := content.get("baseline", {}).get("tfidf_logistic_regression"):  # of older versions
                content["baseline"]["bag_of_words"] = {"classifier": "logistic regression", **before}
        return content

    @cached_property
    def labels(self) -> Labels:
        """The classes."""
        with damage_errors(self.layout.labels):
            entries = _read_json(self.layout.labels)["classes"]
            return Labels(tuple(e["label"] for e in entries), tuple(e["label_text"] for e in entries))

    @property
    def class_counts(self) -> list[dict[str, int]]:
        """Texts of every class by split: ``label`` (the user's number), ``train``, ``validation``, ``test``."""
        with damage_errors(self.layout.labels):
            return [{"label": e["label"], **e["counts"]} for e in _read_json(self.layout.labels)["classes"]]

    @property
    def history(self) -> list[dict[str, Any]]:
        """The lines of ``history.jsonl``; empty before the first evaluation."""
        if not self.layout.history.is_file():
            return []
        with damage_errors(self.layout.history):
            lines = self.layout.history.read_text(encoding="utf-8").splitlines()
            entries = [json.loads(line) for line in lines if line]
            [(e["step"], e["epoch"], e["metrics"]["macro_f1"]) for e in entries]  # which each must have
            return entries

    @property
    @needing()
    def predictions(self) -> pd.DataFrame:
        """The predictions for the test split, one row a text."""
        return self._predictions("test")

    @property
    def explanations(self) -> list[dict[str, Any]]:
        """Which words moved the most confident mistakes; empty where that was not asked."""
        file = self.layout.explanations
        with damage_errors(file):
            return list(_read_json(file)["mistakes"]) if file.is_file() else []

    @property
    @needing()
    def validation_predictions(self) -> pd.DataFrame:
        """The predictions for the validation split, one row a text."""
        return self._predictions("validation")

    def _predictions(self, split: str) -> pd.DataFrame:
        import pandas as pd

        file = self.layout.predictions / f"{split}.parquet"
        with damage_errors(file):
            return pd.read_parquet(file)

    @property
    def trained_on(self) -> set[str]:
        """The hashes of the texts in train and validation; none where the run is of a version that kept none."""
        import pandas as pd

        with damage_errors(self.layout.splits):
            frame = pd.read_parquet(self.layout.splits)
            if "hash" not in frame.columns:
                return set()
            return set(frame["hash"][frame["split"].isin(["train", "validation"])])

    @property
    def members(self) -> list[Run]:
        """The runs with each seed, in order, where the run was trained with several."""
        folders = (path for path in self.layout.seeds.glob("*") if path.name.isdigit())  # others are leftovers
        return [Run(path) for path in sorted(folders, key=lambda p: int(p.name))]

    @property
    def is_resumable(self) -> bool:
        """Whether there is something to go on from: a whole checkpoint, a fold, or runs with other seeds."""
        folds = any(self.layout.folds.glob("[0-9]*.npy"))
        return folds or self.last_checkpoint() is not None or any(m.layout.run.is_file() for m in self.members)

    def last_checkpoint(self) -> Path | None:
        """Return the newest whole checkpoint, ``None`` if there is none; the best one so far must be whole as well."""
        for path in sorted(self.layout.checkpoints.glob("checkpoint-*"), key=_step, reverse=True):
            if is_whole(path):
                best = _read_json(path / "trainer_state.json").get("best_model_checkpoint")
                if best is None or Path(best).name == path.name or is_whole(path.parent / Path(best).name):
                    return path
        return None

    def drop_checkpoints_after(self, last: Path | None) -> list[int]:
        """Remove what a resumed run cannot use, lest it pass for the newest; return the steps."""
        unusable = [p for p in self.layout.checkpoints.glob("checkpoint-*") if last is None or _step(p) > _step(last)]
        for path in unusable:
            shutil.rmtree(path)
        for folder in (self.path, self.layout.checkpoints):
            drop_leftovers(folder)
        return sorted(map(_step, unusable))

    # -- writing -----------------------------------------------------------------------------------------------------

    def update(self, **values: Any) -> None:
        """Set keys of ``run.json``."""
        info = self.info if self.layout.run.is_file() else {}
        write_json(self.layout.run, {**info, **values})

    def log(self, entry: Mapping[str, Any]) -> None:
        """Add a line to ``history.jsonl``."""
        if not self.path.is_dir():  # gone since: it is not made again
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
        before = self.layout.history.read_text(encoding="utf-8") if self.layout.history.is_file() else ""
        write_text(self.layout.history, before + json.dumps(entry) + "\n")

    def truncate_history(self, step: int) -> None:
        """Drop the evaluations after a step, which training will do again."""
        lines = [json.dumps(entry) + "\n" for entry in self.history if entry["step"] <= step]
        write_text(self.layout.history, "".join(lines))

    def save_model(self, save: Callable[[Path], None]) -> None:
        """Write the model folder whole, or not at all."""
        with replaced_folder(self.layout.model) as folder:
            save(folder)

    def check_model(self) -> None:
        """See that the model is what it was when the run was finished.

        Raises:
            RunFolderError: naming the file that is not, or is gone; files that were added do not matter.
        """
        sealed = self.info.get("model_files", {})
        for name, digest in sealed.items():
            file = self.layout.model / name
            with damage_errors(file):
                if checksum(file) != digest:
                    raise RunFolderError(
                        "the run's model is damaged: this file is not what it was when the run was finished",
                        where=str(file),
                        remedy="Put back a copy of it, or train again with --overwrite. If the change is meant, "
                        "bertsmith serve and bertsmith.load take the model folder alone, as it is.",
                    )

    def finish(self, *, keep_checkpoints: bool) -> None:
        """Mark the run as finished, seal its model and drop what was only there to resume from."""
        files = {name: digest for name, digest in checksums(self.layout.model).items() if name != "README.md"}
        self.update(status="finished", finished=now(), model_files=files)
        if not keep_checkpoints:
            shutil.rmtree(self.layout.checkpoints, ignore_errors=True)
            shutil.rmtree(self.layout.folds, ignore_errors=True)


def open_run(path: Path | str) -> Run:
    """Return the finished run in a folder.

    Raises:
        RunFolderError: if there is none, or it is not finished.
    """
    run = Run(to_path(path, "run"))
    if not run.layout.run.is_file():
        remedy = "Give the folder that bertsmith train wrote (the -o of that command)."
        if run.path.is_file():
            what, remedy = "this is a file and no run folder", f"{remedy} The run comes first, then the table."
        elif not run.path.is_dir():
            what = "there is no such run folder"
        else:
            what = "there is no run in this folder"
            if (run.path / "study.json").is_file():
                remedy = f"This is a study: give its winner, {run.path / 'best'}."
            elif (run.path / "export.json").is_file():
                remedy = "This is an export: give the run that it was made from."
        raise RunFolderError(what, where=str(path), remedy=remedy)
    status = run.info.get("status")
    if status != "finished":
        raise RunFolderError(
            f"the run is not finished: its status is {status!r}",
            where=str(path),
            remedy=f"Finish it: run the same bertsmith train command again with --resume (-o {path}).",
        )
    return run


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def now() -> str:
    """Return the time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read_json(path: Path) -> dict[str, Any]:
    with damage_errors(path):
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds {type(content).__name__} and no object")
        return content


@contextmanager
def damage_errors(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file of a run gives rise to into an error that names it.

    Raises:
        RunFolderError: if the file is not there or does not hold what it should.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
        if isinstance(error, json.JSONDecodeError):
            reason = f"it is not JSON (line {error.lineno}, column {error.colno})"
        raise RunFolderError(
            f"a file of the run is missing or damaged: {reason}",
            where=str(path),
            remedy="Put back a copy of it, or train again with --overwrite.",
        ) from error
