"""Load a classifier from a run, with torch or one of its exports, or from an export."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any, get_args

from bertsmith.config import Long
from bertsmith.data.template import Template
from bertsmith.errors import ConfigError, MissingPackageError, RunFolderError, to_path
from bertsmith.folders.run import Run, open_run
from bertsmith.inference.exported import Exported, ExportInfo, is_export
from bertsmith.inference.predictor import Predictor
from bertsmith.inference.runtime import RUNTIMES
from bertsmith.tasks.registry import get_task

RUNTIME_CHOICES = ("auto", "torch", *RUNTIMES)


def open_classifier(
    path: Run | Path | str,
    *,
    device: str = "auto",
    decide: bool = True,
    ensemble: bool = False,
    runtime: str = "auto",
    long: str = "auto",
) -> Predictor:
    """Load a classifier.

    Args:
        path: a run, its folder, its ``model`` folder, or an export folder.
        device: device of the model; exports run on the CPU.
        decide: use the decision rule, if the model has one.
        ensemble: average the predictions of the models of all seeds of the run.
        runtime: one of `RUNTIME_CHOICES`. ``"auto"`` takes the fastest fp32 export of the run that passed its checks
            on this model and whose runtime is installed. Without one, it takes torch, which takes seconds to import.
        long: how to read texts above the maximum length: ``"truncate"``, ``"head-tail"`` or ``"window"``; ``"auto"``
            follows the run or the export.

    Raises:
        UserError: if the classifier is missing or damaged, or the options do not fit it.
    """
    path = to_path(path, "run")
    if long not in get_args(Long):
        raise ConfigError(f"long={long!r} is not a valid value", remedy=f"Pass one of {', '.join(get_args(Long))}.")
    if runtime not in RUNTIME_CHOICES:
        raise ConfigError(
            f"--runtime {runtime} is not a valid value", remedy=f"Pass one of {', '.join(RUNTIME_CHOICES)}."
        )
    if is_export(path):
        about = ExportInfo.read(path)
        refused = {
            f"--device {device}": device not in ("auto", "cpu"),
            f"--runtime {runtime}": runtime not in ("auto", about.format),
            "--ensemble": ensemble,
        }
        if any(refused.values()):
            flags = " and ".join(flag for flag, given in refused.items() if given)
            raise ConfigError(
                f"an export has a single model for {about.format} on the CPU, so it does not support {flags}",
                where=str(path),
                remedy=f"Leave out {flags}, or pass the run itself.",
            )
        return Exported.load(path, decide=decide, long=long)
    export = None
    if Run(path).layout.run.is_file() and not ensemble:
        export = _export_of(open_run(path), device, runtime)
    elif runtime not in ("auto", "torch"):
        raise ConfigError(
            f"--runtime {runtime} needs the model of a run: ensembles and model folders have no exports",
            remedy="Leave out --runtime.",
        )
    if export is not None:
        long = Run(path).info.get("long", "truncate") if long == "auto" else long
        return Exported.load(export, decide=decide, long=long, run=path)
    try:
        from bertsmith.inference.classifier import Classifier
        from bertsmith.inference.ensemble import Ensemble
    except ModuleNotFoundError as error:
        otherwise = "Or pass an export, which bertsmith export writes."
        raise MissingPackageError(
            error.name or "torch", "a run without an export", needs="train", where=str(path), otherwise=otherwise
        ) from error

    if ensemble:
        return Ensemble.load(open_run(path), device=device, decide=decide, long=long)
    return Classifier.load(path, device=device, decide=decide, long=long)


def template_of(path: Path) -> Template:
    """Return the columns that the model of a run or an export reads.

    Raises:
        RunFolderError: if the run or export is missing or damaged.
    """
    return ExportInfo.read(path).template if is_export(path) else open_run(path).template


def run_facts(run: Run) -> dict[str, Any]:
    """Return the name of a run, its checkpoint, the time of its end, and its main test metrics."""
    info, test, headline = run.info, run.metrics["splits"]["test"], get_task(run.task).headline
    return {
        "name": run.path.resolve().name,
        "model": info["model"]["name"],
        "trained": info["finished"],
        "test": {"texts": test["texts"], **{name: test["metrics"][name] for name in headline}},
    }


def models_digest(path: Path, *, ensemble: bool = False) -> str:
    """Return a digest of the model files of a run or an export, which identifies its models."""
    if is_export(path):
        files: list[Any] = [ExportInfo.read(path).files]
    else:
        run = open_run(path)
        files = [member.info.get("model_files") for member in (run.members if ensemble else [run])]
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:12]


def _export_of(run: Run, device: str, runtime: str) -> Path | None:
    """Return the export of a run to use, or ``None`` for torch."""
    if runtime == "torch" or (runtime == "auto" and device not in ("auto", "cpu")):
        return None
    files = run.info.get("model_files")
    usable: list[tuple[float, Path]] = []
    for folder in sorted(run.layout.exports.glob("*")):
        if not is_export(folder):
            continue
        about = ExportInfo.read(folder)
        matches = about.run.get("model_files") == files and about.precision == "fp32" and about.parity.get("held")
        if matches and runtime in ("auto", about.format) and RUNTIMES[about.format].installed:
            usable.append((about.parity["texts_per_second"]["export"], folder))
    if usable and not (runtime == "auto" and device == "auto" and _has_gpu()):
        return max(usable)[1]
    if runtime != "auto":
        if not RUNTIMES[runtime].installed:
            raise MissingPackageError(RUNTIMES[runtime].package, f"--runtime {runtime}")
        raise RunFolderError(
            f"--runtime {runtime}: the run has no fp32 export of its current model for {runtime}",
            where=str(run.layout.exports),
            remedy=f"Create one: bertsmith export {run.path} --format {runtime}.",
        )
    return None


def _has_gpu() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    from bertsmith.compute.device import choose_device

    return bool(choose_device().type != "cpu")
