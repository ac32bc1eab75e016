"""Prediction of a folder of Parquet files on a Ray cluster."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bertsmith.config import DataConfig
from bertsmith.data.columns import check_columns, find_text_columns
from bertsmith.data.formats.arrow import parquet_schema, to_cells
from bertsmith.data.stream import CHUNK_ROWS
from bertsmith.data.template import Template
from bertsmith.errors import ConfigError, DataError, MissingPackageError, OutputError, UserError, counted
from bertsmith.folders.atomic import replaced_folder
from bertsmith.inference.abstain import fit_abstention
from bertsmith.inference.load import open_classifier, template_of
from bertsmith.inference.predict import predict_rows
from bertsmith.inference.table_writers import to_arrow

LOCAL = "local"
"""Address that starts Ray on this machine only."""
RETRIES = 3
"""Number of times that texts are labelled again after their worker died. By default, Ray repeats this without end."""


@dataclass(frozen=True)
class RayRequest:
    """What each worker needs: the run, and arguments of `open_classifier`, `fit_abstention` and `predict_rows`."""

    run: Path
    load_options: dict[str, Any] = field(default_factory=dict)
    abstention_options: dict[str, Any] = field(default_factory=dict)
    probabilities: bool = False


def predict_on_ray(request: RayRequest, source: Path, output: Path, config: DataConfig, address: str = LOCAL) -> int:
    """Predict the texts of Parquet files and write Parquet files with all columns, in order.

    Args:
        request: the run and the options.
        source: a Parquet file, or a folder of Parquet files with the same columns.
        output: the folder to write; it exists completely or not at all. All machines need access to the run,
            ``source`` and ``output`` under the same path.
        config: names the text column.
        address: of the cluster, as in ``ray.init``.

    Returns:
        The number of rows.

    Raises:
        UserError: if Ray, the model or a file is missing or damaged, a text is a list, or the cluster fails.
    """
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise MissingPackageError(error.name or "ray", "--ray", needs="ray") from error
    files = _parquet_files(source)
    heads = {file: _head(file) for file in files}
    schema, _ = heads[files[0]]
    for file, (other, _) in heads.items():
        if not other.equals(schema):
            raise DataError(
                f"the columns differ from those of {files[0].name}",
                where=str(file),
                remedy="Predict files with different columns separately.",
            )
    n_rows = sum(n for _, n in heads.values())
    check_columns(list(schema.names), n_rows, source.name, config)
    template = template_of(request.run)
    columns = find_text_columns(list(schema.names), source.name, config, template)
    _load(request)  # report a damaged model before Ray starts
    types = dict(zip(schema.names, schema.types, strict=True))
    with cluster(address), replaced_folder(output) as folder, _ray_errors(output):
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.raise_original_map_exception = True
        context.execution_options.preserve_order = True
        # The newer reader imports fsspec's HTTP client in several threads at once. Without aiohttp, a thread can see
        # a partial import, which ends the job.
        context.use_datasource_v2 = False
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0)) if request.load_options.get("device", "auto") != "cpu" else 0
        max_workers = gpus or max(1, int(resources.get("CPU", 1)) - 1)  # one core reads and writes
        ray.data.read_parquet([str(file) for file in files], partitioning=None).map_batches(
            Worker,
            fn_constructor_args=(request, template, columns, source.name, types),
            batch_format="pyarrow",
            batch_size=CHUNK_ROWS,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max_workers),
            num_cpus=1,
            num_gpus=1 if gpus else 0,
            max_task_retries=RETRIES,
        ).write_parquet(str(folder))
        written = sum(parquet_schema(file)[1] for file in sorted(folder.glob("*.parquet")))
        if written != n_rows:
            raise OutputError(
                f"the output has {counted(written, 'row')} instead of {n_rows:,}",
                where=str(output),
                remedy="Check that all machines write to the same folder.",
            )
    return n_rows


class Worker:
    """Predicts batches in a Ray process."""

    def __init__(
        self, request: RayRequest, template: Template, columns: tuple[str, ...], source: str, types: dict[str, Any]
    ) -> None:
        self.request, self.template, self.types = request, template, types
        self.columns, self.source = columns, source
        self.classifier, self.abstain = _load(request)

    def __call__(self, batch: Any) -> Any:
        """Return the table with the columns of the predictions."""
        cells = {name: to_cells(values) for name, values in zip(batch.column_names, batch.columns, strict=True)}
        texts = self.template.texts(self.template.read_cells(cells, self.columns, self.source))
        label = partial(predict_rows, probabilities=self.request.probabilities, abstain=self.abstain)
        return to_arrow(label(self.classifier, cells, texts), self.types, as_read=True)


def _load(request: RayRequest) -> tuple[Any, Any]:
    classifier = open_classifier(request.run, **request.load_options)
    decide = request.load_options.get("decide", True)
    return classifier, fit_abstention(classifier, decide=decide, **request.abstention_options)


def _parquet_files(source: Path) -> list[Path]:
    """Return the Parquet files of a folder, ordered by name, or the file itself."""
    source = source.absolute()
    files = [source] if source.is_file() else sorted(f for f in source.glob("*.parquet") if f.is_file())
    if not files:
        raise DataError(
            "the folder has no Parquet files" if source.is_dir() else "the folder does not exist",
            where=str(source),
            remedy="Pass a folder with files named *.parquet.",
        )
    return files


def _head(file: Path) -> tuple[Any, int]:
    with contextlib.suppress(OSError), file.open("rb") as opened:
        if opened.read(4) != b"PAR1":
            raise DataError(
                "the file is not a Parquet file, the only format of --ray",
                where=str(file),
                remedy="Save the table as Parquet, or leave out --ray.",
            )
    return parquet_schema(file)


@contextlib.contextmanager
def cluster(address: str) -> Iterator[None]:
    """Connect to a Ray cluster, or start one on this machine.

    Raises:
        ConfigError: if it cannot be reached.
    """
    import logging

    import ray

    for name in ("ray", "ray.data"):  # errors are reported below
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    options: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdecimal() and "/" not in host:  # Ray takes minutes to fail without an answer
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **options)
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"--ray {address}: cannot connect to the cluster: {str(error).splitlines()[0]}",
            remedy=f"Pass {LOCAL} to start a cluster on this machine. For an existing cluster, run the command on one "
            "of its machines and pass auto or HOST:PORT. Check that the cluster runs. If it requires a token, set "
            "RAY_AUTH_MODE=token.",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _ray_errors(output: Path) -> Iterator[None]:
    """Turn errors of Ray into `UserError`."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is not None:
            raise cause from error
        raise OutputError(
            f"the cluster failed: {str(error).strip().splitlines()[-1]}",
            where=str(output),
            remedy="See the logs of the cluster (ray logs). bertsmith did not write the output.",
        ) from error
