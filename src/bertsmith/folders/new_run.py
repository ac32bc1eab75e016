"""Begin or resume a run: the checks before its folder is written."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from bertsmith.errors import RunFolderError, write_error
from bertsmith.folders.atomic import PART, RESUME_REMEDY, remove_temporary_folders, rename
from bertsmith.folders.claim import Output, check_contents, check_empty, differences, known_settings, refuse_changes
from bertsmith.folders.run import Run, damage_errors


class RunFolder(Output):
    """The folder of a run to train."""

    activity: ClassVar[str | None] = "training into this run folder"
    disk_remedy: ClassVar[str | None] = RESUME_REMEDY

    def check(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Refuse to replace a run or other files without permission. To resume an empty folder is to begin."""
        path, run = self.path, Run(self.path)
        if resume and overwrite:
            raise RunFolderError("--resume and --overwrite contradict each other", remedy="Pass only one of them.")
        if not run.layout.run.is_file():
            if run.layout.labels.exists() and run.layout.splits.exists():
                raise RunFolderError(
                    "run.json is missing in this run folder",
                    where=str(path),
                    remedy="Restore the file from a copy, choose another folder with -o, or remove this folder.",
                )
            check_empty(path)
            return
        if overwrite:
            check_contents(path, run.foreign_files(), "run")
            return
        status = run.info.get("status")
        if status == "finished":
            raise RunFolderError(
                "this run is finished: nothing is left to resume" if resume else "this folder contains a finished run",
                where=str(path),
                remedy=f"{'Leave out --resume, and c' if resume else 'C'}hoose another folder with -o, or pass "
                "--overwrite to train again.",
            )
        if not resume and run.is_resumable:
            raise unfinished_error(str(path), status)


def unfinished_error(where: str, status: object) -> RunFolderError:
    """Return the error for a place with a run that can be resumed."""
    return RunFolderError(
        f"this folder contains an unfinished run (status {status!r}) that can be resumed",
        where=where,
        remedy="Pass --resume to continue it, or --overwrite to begin again.",
    )


def create(path: Path) -> Run:
    """Create an empty run folder, and remove the run that `RunFolder.check` allowed to replace.

    Raises:
        OutputError: if the folder is not writable.
    """
    try:
        remove_temporary_folders(path.parent, path.name)
        if Run(path).layout.run.is_file():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=PART, dir=path.parent))
            rename(path, old / path.name)  # a partly removed run never keeps its name
            shutil.rmtree(old)
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    return Run(path)


def check_room(path: Path, *, parameters: int, checkpoints: int) -> None:
    """Check that the disk has room for a run.

    Args:
        path: the run folder, which need not exist.
        parameters: number of the model's parameters; a checkpoint has each in fp32, with two moments of the optimizer.
        checkpoints: number of checkpoints to keep; one more exists while it is written. 0 if the run writes none.

    Raises:
        RunFolderError: if the disk has too little room.
    """
    disk = next(folder for folder in (path.resolve(), *path.resolve().parents) if folder.exists())
    # The model exists twice while it is replaced by the calibrated one.
    copies = 3 * (checkpoints + 1) + 1 if checkpoints else 2
    needed, free = 4 * parameters * copies, shutil.disk_usage(disk).free
    if free < needed:
        fewer = ", or keep fewer checkpoints: --set save_total_limit=1" if checkpoints > 1 else ""
        contents = "the model and its checkpoints need" if checkpoints else "the model needs"
        raise RunFolderError(
            f"the disk is too full: {_size(free)} is free, but {contents} about {_size(needed)}",
            where=str(path),
            remedy=f"Free disk space, or choose another path with -o{fewer}.",
        )


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.3g} MB"


def check_same(run: Run, *, config: Mapping[str, Any], fingerprints: tuple[str, ...], model: Mapping[str, Any]) -> None:
    """Check that a run is resumed with the settings, data and model that it began with.

    Args:
        run: the run.
        config: the settings.
        fingerprints: accepted fingerprints of the table.
        model: entry of ``run.json``.

    Raises:
        RunFolderError: naming what differs.
    """
    info = run.info
    changed = _changed_settings(run, config)
    if not changed:  # different settings can change splits and model, so only the settings are reported
        if info.get("data", {}).get("fingerprint") not in fingerprints:
            changed.append("the texts, labels, groups or splits of the table")
        old_model = info.get("model", {})
        if old_model.get("files") != model["files"]:
            changed.append("the model's configuration or tokenizer")
        changed += differences({**old_model, "files": None}, {**model, "files": None})
    refuse_changes("run", run.path, changed)


def check_same_settings(run: Run, config: Mapping[str, Any]) -> None:
    """Check that a run is resumed with the settings that it began with.

    Raises:
        RunFolderError: naming what differs.
    """
    refuse_changes("run", run.path, _changed_settings(run, config))


def _changed_settings(run: Run, config: Mapping[str, Any]) -> list[str]:
    """Describe which settings of a run differ. Device and threads may, so that another machine can finish the run."""
    with damage_errors(run.layout.run):
        before, machine = known_settings(run.info["config"]), ("device", "threads")
    return differences(
        {name: value for name, value in before.items() if name not in machine},
        {name: value for name, value in config.items() if name not in machine},
    )
