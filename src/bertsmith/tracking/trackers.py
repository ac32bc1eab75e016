"""Adapters of the trackers. Each object is one run in a tracker: settings, values by step, final values and files."""

from __future__ import annotations

import importlib.util
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from bertsmith.errors import ConfigError, MissingPackageError, first_line

PROJECT = "bertsmith"
"""Project or experiment, unless an environment variable of the tracker names another."""
TrackerName = Literal["tensorboard", "mlflow", "wandb", "trackio"]
Scalar = str | float | int | bool


class Tracker(ABC):
    """One run in a tracker.

    Args:
        name: name of the run.
        folder: for trackers that write into the run folder.
        settings: the settings of the run.
    """

    package: ClassVar[str]

    @abstractmethod
    def __init__(self, name: str, folder: Path, settings: Mapping[str, Scalar]) -> None: ...

    @classmethod
    def check(cls) -> None:
        """Check that the tracker is usable, before slow work begins.

        Raises:
            ConfigError: if it is not usable.
        """
        if importlib.util.find_spec(cls.package) is None:
            raise MissingPackageError(cls.package, f"--track {cls.package}")

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add values at a step."""

    @abstractmethod
    def finish(self, values: Mapping[str, float], files: Sequence[Path], *, failed: bool) -> None:
        """End the run.

        Args:
            values: the final values.
            files: files to keep with the run.
            failed: whether the run failed or was interrupted.
        """


class TensorBoard(Tracker):
    """Event files in a folder, for ``tensorboard --logdir``. Files stay in the run folder."""

    package = "tensorboard"

    def __init__(self, name: str, folder: Path, settings: Mapping[str, Scalar]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.settings = dict(settings)
        self.writer = SummaryWriter(str(folder))
        rows = "".join(f"| {key} | {value} |\n" for key, value in settings.items())
        self.writer.add_text("settings", f"| setting | value |\n| --- | --- |\n{rows}")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add values at a step."""
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)
        self.writer.flush()

    def finish(self, values: Mapping[str, float], files: Sequence[Path], *, failed: bool) -> None:
        """End the run."""
        for file in files:
            if file.suffix == ".md":
                self.writer.add_text(file.stem, file.read_text(encoding="utf-8"))
        if values:  # the hyperparameter table of TensorBoard
            self.writer.add_hparams(self.settings, dict(values), run_name=".")
        self.writer.close()


class MLflow(Tracker):
    """A run in an MLflow experiment: in ``MLFLOW_TRACKING_URI``, or in ``mlflow.db`` in the current folder."""

    package = "mlflow"

    def __init__(self, name: str, folder: Path, settings: Mapping[str, Scalar]) -> None:
        self.client = self._client()
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(experiment)
        identifier = self.client.create_experiment(experiment) if found is None else found.experiment_id
        self.run = self.client.create_run(identifier, run_name=name).info.run_id
        from mlflow.entities import Param

        self.client.log_batch(self.run, params=[Param(key, str(value)) for key, value in settings.items()])

    @staticmethod
    def _client() -> Any:
        # By default, MLflow retries an unreachable server or database for several minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient, get_tracking_uri

        if get_tracking_uri().startswith(("postgresql", "mysql", "mssql")):
            from mlflow.store.db import utils

            utils.MAX_RETRY_COUNT = 3
        return MlflowClient()

    @classmethod
    def check(cls) -> None:
        """Check that the package is installed, and that the server or database answers."""
        super().check()
        try:
            cls._client().search_experiments(max_results=1)
        except ModuleNotFoundError as error:  # such as the driver of a database
            raise MissingPackageError(error.name or cls.package, "--track mlflow") from error
        except Exception as error:  # each store raises its own
            raise ConfigError(
                f"MLflow cannot be used: {first_line(error)}",
                where="MLFLOW_TRACKING_URI" if "MLFLOW_TRACKING_URI" in os.environ else None,
                remedy="Start the server or correct its address, or leave out --track.",
            ) from error

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add values at a step."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(key, value, now, step) for key, value in values.items()]
        self.client.log_batch(self.run, metrics=metrics)

    def finish(self, values: Mapping[str, float], files: Sequence[Path], *, failed: bool) -> None:
        """End the run."""
        self.log(values, 0)
        for file in files:
            self.client.log_artifact(self.run, str(file))
        self.client.set_terminated(self.run, "FAILED" if failed else "FINISHED")


class _LikeWandb(Tracker):
    """A tracker with the interface of wandb."""

    name: str
    run: Any

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add values at a step."""
        self.run.log(dict(values), step=step)

    def _save(self, files: Sequence[Path]) -> None:
        if files:
            artifact = importlib.import_module(self.package).Artifact(_safe(self.name), type="run")
            for file in files:
                artifact.add_file(str(file))
            self.run.log_artifact(artifact)


class WeightsAndBiases(_LikeWandb):
    """A run in a Weights & Biases project, or in ``./wandb`` with ``WANDB_MODE=offline``."""

    package = "wandb"

    def __init__(self, name: str, folder: Path, settings: Mapping[str, Scalar]) -> None:
        import wandb

        self.name = name
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            config=dict(settings),
            reinit="create_new",
            # Do not send output, which may quote texts, nor command line, code or data about the machine.
            settings=wandb.Settings(
                console="off",
                silent=True,
                save_code=False,
                disable_code=True,
                disable_git=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_disable_machine_info=True,
            ),
        )

    @classmethod
    def check(cls) -> None:
        """Check that the package is installed, and that the user is logged in."""
        super().check()
        if os.environ.get("WANDB_MODE", "online") in ("offline", "disabled", "dryrun"):
            return
        import wandb

        try:
            ready = wandb.login()
        except (wandb.Error, OSError) as error:
            raise ConfigError(
                f"Weights & Biases cannot be used: {first_line(error)}",
                remedy="Run wandb login, set WANDB_API_KEY, or set WANDB_MODE=offline.",
            ) from error
        if not ready:
            raise ConfigError(
                "you are not logged in to Weights & Biases",
                remedy="Run wandb login, set WANDB_API_KEY, or set WANDB_MODE=offline.",
            )

    def finish(self, values: Mapping[str, float], files: Sequence[Path], *, failed: bool) -> None:
        """End the run."""
        self.run.summary.update(dict(values))
        self._save(files)
        self.run.finish(exit_code=1 if failed else 0)


class Trackio(_LikeWandb):
    """A run in Trackio: on this machine, or in ``TRACKIO_SPACE_ID`` or ``TRACKIO_SERVER_URL``.

    New Spaces are private, although Trackio's default is public.
    """

    package = "trackio"

    def __init__(self, name: str, folder: Path, settings: Mapping[str, Scalar]) -> None:
        import trackio

        self.name = name
        self.run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=name,
            config=dict(settings),
            private=True,
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def finish(self, values: Mapping[str, float], files: Sequence[Path], *, failed: bool) -> None:
        """End the run."""
        if values:
            self.run.log(dict(values))
        self._save(files)
        self.run.finish()


TRACKERS: dict[str, type[Tracker]] = {t.package: t for t in (TensorBoard, MLflow, WeightsAndBiases, Trackio)}
"""The trackers by the value of ``--track``."""


def find_tracker(name: str) -> type[Tracker]:
    """Return a usable tracker.

    Raises:
        ConfigError: if the tracker is unknown or not usable.
    """
    if name not in TRACKERS:
        raise ConfigError(f"track: unknown tracker {name!r}", remedy=f"Use one of {', '.join(TRACKERS)}.")
    for telemetry, off in (("MLFLOW_DISABLE_TELEMETRY", "true"), ("WANDB_ERROR_REPORTING", "false")):
        os.environ.setdefault(telemetry, off)  # read when the library is imported
    TRACKERS[name].check()
    return TRACKERS[name]


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name) or "run"
