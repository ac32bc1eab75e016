"""The study folder: what lies where, whether it may be written to, and what is read from it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from filelock import FileLock, Timeout

from bertsmith.config import Config
from bertsmith.errors import RunFolderError, needing
from bertsmith.folders.atomic import write_json
from bertsmith.folders.claim import check_contents, check_empty, differences
from bertsmith.folders.run import Run, damage_errors, now

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Study:
    """A study folder.

    ``study.json`` says what was searched and found, ``journal.log`` is Optuna's, ``best_trial`` the checkpoint of the
    best trial so far, ``best`` the winner as a run, ``defaults`` the run it is compared with, ``best.toml`` the
    winner's settings for `train`, ``report.html`` the page.

    Attributes:
        path: the folder.
    """

    path: Path
    activity: ClassVar[str | None] = None  # workers share the folder
    disk_remedy: ClassVar[str | None] = (
        "Make room or mend the place, then run the same command: finished trials are kept."
    )

    def __repr__(self) -> str:
        return f"Study({str(self.path)!r}, {'finished' if self.result else 'unfinished'})"

    def check(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Refuse a folder with other files, and to overwrite a study that another process works on.

        Raises:
            RunFolderError: with the reason.
        """
        if not self.file.is_file():
            check_empty(self.path)
        elif overwrite:
            ours = {"study.json", "journal.log", "best_trial", "best", "defaults", "best.toml", "report.html"}
            foreign = [p.name for p in self.path.iterdir() if p.name not in ours and not p.name.startswith(".")]
            foreign += [f"best/{name}" for name in (self.best.foreign() if self.best.path.is_dir() else [])]
            for worker in (self.path / ".workers").glob("*.lock"):
                try:
                    FileLock(worker, timeout=0).acquire().lock.release()
                except Timeout:
                    raise RunFolderError(
                        "another process is working on this study",
                        where=str(self.path),
                        remedy="Wait until it is done, stop it, or give -o another folder.",
                    ) from None
            check_contents(self.path, foreign, "study")

    @property
    def file(self) -> Path:
        """``study.json``."""
        return self.path / "study.json"

    @property
    def best_trial(self) -> Path:
        """The checkpoint of the best trial so far, as it was on its best evaluation."""
        return self.path / "best_trial"

    @property
    def best(self) -> Run:
        """The winner, trained and scored as a run of its own."""
        return Run(self.path / "best")

    @property
    def defaults(self) -> Run:
        """What `train` does with no settings, for comparison; the winner itself where that is the best."""
        return Run(self.path / "defaults")

    @property
    def settings(self) -> Path:
        """The winner's settings, for ``train --config``."""
        return self.path / "best.toml"

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    @property
    def info(self) -> dict[str, Any]:
        """The content of ``study.json``."""
        with damage_errors(self.file):
            return dict(json.loads(self.file.read_text(encoding="utf-8")))

    @property
    def result(self) -> dict[str, Any] | None:
        """What was found; ``None`` before the search is over."""
        return self.info.get("result") if self.file.is_file() else None

    @property
    @needing()
    def trials(self) -> pd.DataFrame:
        """A row a trial, so far: ``number``, ``state``, ``values``, ``seconds``, ``why`` and its settings."""
        import pandas as pd

        entries = [
            {k: v for k, v in t.items() if k not in ("settings", "curve")} | t["settings"]
            for t in self.info.get("trials", [])
        ]
        return pd.DataFrame(entries)

    def update(self, **values: Any) -> None:
        """Set keys of ``study.json``."""
        write_json(self.file, {**self.info, **values})


def agree(study: Study, searched: dict[str, Any], *, overwrite: bool) -> None:
    """Write what is searched, or see that it is what was searched before.

    Args:
        study: its folder, that `Study.check` allowed to use.
        searched: settings, space, objectives and data, JSON-ready.
        overwrite: throw away what is there, now that table and model are found good.

    Raises:
        RunFolderError: naming what differs.
    """
    searched = json.loads(json.dumps(searched, default=str))
    if overwrite and study.file.is_file():
        for entry in study.path.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    if not study.file.is_file():
        study.path.mkdir(parents=True, exist_ok=True)
        write_json(study.file, {"created": now(), "searched": searched})
        return
    before = study.info.get("searched", {})
    # A setting that an older version did not have counts as not given.
    changed = differences({**Config().dump(), **(before.get("settings") or {})}, searched["settings"])
    for part, what in (("objectives", "the objectives"), ("cv", "--cv"), ("data", "the texts, labels or splits")):
        if before.get(part) != searched[part]:
            plain = part != "data"
            changed.append(f"{what}: {before.get(part)!r} then, {searched[part]!r} now" if plain else what)
    if not changed and before.get("space") != searched["space"]:  # where settings differ, it does in consequence
        changed.append("the search space")
    if changed:
        raise RunFolderError(
            f"the study cannot be resumed, since these settings differ: {'; '.join(changed)}",
            where=str(study.path),
            remedy="Run the command it was begun with, give -o another folder, or pass --overwrite to begin anew.",
        )
