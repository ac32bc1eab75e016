"""The study folder: layout, checks, reading and writing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from filelock import FileLock, Timeout

from bertsmith.config import Config
from bertsmith.errors import RunFolderError, needing, rendered_by, to_path
from bertsmith.folders.atomic import foreign_names, write_json
from bertsmith.folders.claim import Output, check_contents, check_empty, differences, known_settings, refuse_changes
from bertsmith.folders.run import Run, now, read_json

if TYPE_CHECKING:
    import pandas as pd

CLAIM_LOCK = ".claim.lock"
"""Locked while a process opens the study, or starts a trial."""
DEFAULTS = "defaults"
"""Folder of the run with default settings, unless the defaults win."""
IGNORED = ("cv", "effort", "keep_checkpoints")
"""Settings that ``bertsmith tune`` of older versions ignored in a settings file."""


class Study(Output):
    """A study folder.

    ``study.json`` contains the search and its result, ``journal.log`` is the storage of Optuna. Workers share the
    folder, so it is not locked.
    """

    disk_remedy: ClassVar[str | None] = (
        "Free disk space or repair the disk, then run the same command. bertsmith keeps finished trials."
    )

    def __init__(self, path: Path | str) -> None:
        super().__init__(to_path(path, "study"))

    def __repr__(self) -> str:
        return f"Study({str(self.path)!r}, {'finished' if self.result else 'unfinished'})"

    _repr_html_ = rendered_by("bertsmith.report.notebook:study_html", optional=True)

    def check(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Refuse to use a folder with other files, and to overwrite a study that another process uses."""
        if not self.file.is_file():
            check_empty(self.path)
        elif overwrite:
            ours = {
                "study.json",
                "journal.log",
                "journal.log.lock",  # of a process that was killed while it wrote
                "best_trial",  # of older versions
                "best",
                DEFAULTS,
                "best.toml",
                "report.html",
                "tensorboard",
            }
            foreign = foreign_names(self.path, ours)
            for run in (self.best, Run(self.path / DEFAULTS)):
                if run.path.is_dir():
                    foreign += [f"{run.path.name}/{name}" for name in run.foreign_files()]
            for worker in (self.path / ".workers").glob("*.lock"):
                try:
                    FileLock(worker, timeout=0).acquire().lock.release()
                except Timeout:
                    raise RunFolderError(
                        "another process is working on this study",
                        where=str(self.path),
                        remedy="Wait until it finishes, stop it, or choose another folder with -o.",
                    ) from None
            check_contents(self.path, foreign, "study")

    @property
    def file(self) -> Path:
        """``study.json``."""
        return self.path / "study.json"

    @property
    def best(self) -> Run:
        """The run with the best settings."""
        return Run(self.path / "best")

    @property
    def defaults(self) -> Run:
        """The run with default settings, for comparison; the same as `best` if the defaults win."""
        wins = (self.result or {}).get("is_default")
        return self.best if wins else Run(self.path / DEFAULTS)

    @property
    def settings(self) -> Path:
        """The best settings, for ``train --config``."""
        return self.path / "best.toml"

    @property
    def report(self) -> Path:
        """The report page."""
        return self.path / "report.html"

    @property
    def info(self) -> dict[str, Any]:
        """The content of ``study.json``, without the database URL of older versions, which can contain a password."""
        content = read_json(self.file)
        if isinstance(searched := content.get("searched"), dict) and isinstance(searched.get("settings"), dict):
            searched["settings"].pop("db", None)
        return content

    @property
    def is_begun(self) -> bool:
        """Whether trials may have run."""
        has_storage = (self.path / "journal.log").is_file() or (self.path / ".workers").is_dir()
        return has_storage or "trials" in self.info

    @property
    def result(self) -> dict[str, Any] | None:
        """The result of the search; ``None`` before it ends."""
        return self.info.get("result") if self.file.is_file() else None

    @property
    @needing()
    def trials(self) -> pd.DataFrame:
        """One row per trial: ``number``, ``state``, ``values``, ``seconds``, ``why`` and its settings."""
        import pandas as pd

        entries = [
            {k: v for k, v in t.items() if k not in ("settings", "curve")} | t["settings"]
            for t in self.info.get("trials", [])
        ]
        return pd.DataFrame(entries)

    def update(self, **values: Any) -> None:
        """Set keys of ``study.json``."""
        write_json(self.file, {**self.info, **values})


def begin_or_resume(study: Study, searched: dict[str, Any], *, fingerprints: tuple[str, ...], overwrite: bool) -> None:
    """Begin a study, or check that a study is resumed with the same search.

    Args:
        study: the folder, which is claimed.
        searched: settings, space, objectives and data, JSON-ready.
        fingerprints: accepted fingerprints of the table.
        overwrite: remove the old study.

    Raises:
        RunFolderError: naming what differs.
    """
    searched = json.loads(json.dumps(searched, default=str))
    if overwrite and study.file.is_file():
        with FileLock(study.path / CLAIM_LOCK):  # no process opens the study meanwhile
            study.check(overwrite=True)  # again: another process may have opened it
            entries = [entry for entry in study.path.iterdir() if entry.name != CLAIM_LOCK]
            for entry in sorted(entries, key=lambda entry: entry == study.file):  # study.json last: it marks a study
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    if not study.file.is_file():
        study.path.mkdir(parents=True, exist_ok=True)
        write_json(study.file, {"created": now(), "searched": searched})
        return
    before = study.info.get("searched") or {}
    defaults, old, new = Config().dump(), known_settings(before.get("settings") or {}), searched["settings"]
    ignored = [name for name in IGNORED if old[name] == defaults[name] != new[name]]
    changed = differences(old, new)
    changed += differences(
        {"objectives": before.get("objectives"), "--cv": before.get("cv")},
        {"objectives": searched["objectives"], "--cv": searched["cv"]},
    )
    if before.get("data") not in fingerprints:
        changed.append("the texts, labels, groups or splits")
    if not changed and before.get("space") != searched["space"]:  # different settings also change the space
        changed.append("the search space")
    advice = f" Or remove {', '.join(ignored)} from the settings file: older versions ignored such lines."
    refuse_changes("study", study.path, changed, otherwise=advice if ignored else "")
