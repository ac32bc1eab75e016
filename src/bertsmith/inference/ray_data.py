"""Predictions for a folder of Parquet files, on all machines of a Ray cluster."""

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
from bertsmith.data.columns import check_columns, find_text_column
from bertsmith.data.formats.arrow import parquet_schema
from bertsmith.data.stream import CHUNK_ROWS
from bertsmith.data.texts import to_texts
from bertsmith.errors import ConfigError, DataError, MissingPackageError, OutputError, UserError
from bertsmith.folders.atomic import replaced_folder
from bertsmith.inference.abstain import abstention
from bertsmith.inference.load import open_classifier
from bertsmith.inference.predict import predict_rows
from bertsmith.inference.table_writers import to_arrow

LOCAL = "local"
"""The address that starts Ray on this machine alone."""


@dataclass(frozen=True)
class RayRequest:
    """What is wanted of the texts: what `open_classifier`, `abstention` and `predict_rows` take, by name."""

    run: Path
    opening: dict[str, Any] = field(default_factory=dict)
    abstaining: dict[str, Any] = field(default_factory=dict)
    probabilities: bool = False


def predict_on_ray(asked: RayRequest, source: Path, output: Path, config: DataConfig, address: str = LOCAL) -> int:
    """Label the texts of Parquet files and write them, with all columns and in order, as Parquet files.

    Args:
        asked: what is wanted; the run lies where every machine finds it.
        source: a Parquet file, or a folder of them with the same columns, where every machine finds it.
        output: the folder to write, for every machine too; it is there whole or not at all.
        config: which column holds the texts.
        address: of the cluster, as ``ray.init`` takes it.

    Returns:
        The number of rows.

    Raises:
        UserError: if Ray, the model or a file is missing or damaged, a row has a list for a text, or a machine is lost
            for good.
    """
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise MissingPackageError(error.name or "ray", "--ray", needs="ray") from error
    files = parquet_files(source)
    heads = {file: _head(file) for file in files}
    schema, _ = heads[files[0]]
    for file, (other, _) in heads.items():
        if not other.equals(schema):
            raise DataError(
                f"its columns are not those of {files[0].name}",
                where=str(file),
                remedy="Label files with other columns apart.",
            )
    n_rows = sum(n for _, n in heads.values())
    check_columns(list(schema.names), n_rows, source.name, config)
    column = find_text_column(list(schema.names), source.name, config)
    _open(asked)  # so that what is wrong with the model is told before anything is started
    types = dict(zip(schema.names, schema.types, strict=True))
    with _connected(address), replaced_folder(output) as folder, _told(output):
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.raise_original_map_exception = True
        context.execution_options.preserve_order = True
        # Its newer reader resolves paths in threads that import fsspec's HTTP client at once; where it cannot be
        # imported (no aiohttp), now and then one of them finds a half of it and ends the job.
        context.use_datasource_v2 = False
        machine = ray.cluster_resources()
        gpus = int(machine.get("GPU", 0)) if asked.opening.get("device", "auto") != "cpu" else 0
        most = gpus or max(1, int(machine.get("CPU", 1)) - 1)  # a core reads and writes
        ray.data.read_parquet([str(file) for file in files], partitioning=None).map_batches(
            Worker,
            fn_constructor_args=(asked, column, f"{source.name}, column {column!r}", types),
            batch_format="pyarrow",
            batch_size=CHUNK_ROWS,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
            num_cpus=1,
            num_gpus=1 if gpus else 0,
        ).write_parquet(str(folder))
        written = sum(parquet_schema(file)[1] for file in sorted(folder.glob("*.parquet")))
        if written != n_rows:
            raise OutputError(
                f"{n_rows:,} rows went in and {written:,} came out",
                where=str(output),
                remedy="See that every machine writes to the same folder.",
            )
    return n_rows


class Worker:
    """Labels the batches that Ray gives it; a process has one."""

    def __init__(self, asked: RayRequest, column: str, where: str, types: dict[str, Any]) -> None:
        self.asked, self.column, self.where, self.types = asked, column, where, types
        self.classifier, self.abstain = _open(asked)

    def __call__(self, batch: Any) -> Any:
        """Return a table with the predictions beside its columns."""
        cells = {name: values.to_pylist() for name, values in zip(batch.column_names, batch.columns, strict=True)}
        texts = [text or "" for text in to_texts(cells[self.column], self.where)]
        label = partial(predict_rows, probabilities=self.asked.probabilities, abstain=self.abstain)
        return to_arrow(label(self.classifier, cells, texts), self.types, as_read=True)


def _open(asked: RayRequest) -> tuple[Any, Any]:
    classifier, held_out = open_classifier(asked.run, **asked.opening)
    decide = asked.opening.get("decide", True)
    return classifier, abstention(held_out, classifier.rules, decide=decide, **asked.abstaining)


def parquet_files(source: Path) -> list[Path]:
    """Return the Parquet files of a folder, in order of their names, or the one file it is.

    Raises:
        DataError: if there is none.
    """
    source = source.absolute()
    files = [source] if source.is_file() else sorted(f for f in source.glob("*.parquet") if f.is_file())
    if not files:
        raise DataError(
            "there are no Parquet files" if source.is_dir() else "there is no such folder",
            where=str(source),
            remedy="Give a folder with files named *.parquet.",
        )
    return files


def _head(file: Path) -> tuple[Any, int]:
    with contextlib.suppress(OSError), file.open("rb") as opened:
        if opened.read(4) != b"PAR1":
            raise DataError(
                "this is not a Parquet file, and --ray reads no other",
                where=str(file),
                remedy="Save the table as Parquet, or leave out --ray.",
            )
    return parquet_schema(file)


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    import logging

    import ray

    for name in ("ray", "ray.data"):  # what goes wrong is told below
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    here: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdecimal() and "/" not in host:  # Ray itself takes minutes to find that nobody answers
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL, **here)
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"--ray {address}: there is no such cluster: {str(error).splitlines()[0]}",
            remedy=f"Give {LOCAL}, or auto or HOST:PORT on a machine of the cluster; see that it runs, and where it "
            "asks for a token, set RAY_AUTH_MODE=token.",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _told(output: Path) -> Iterator[None]:
    """Turn what Ray raises into what the user can mend."""
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
            f"the cluster did not finish: {str(error).strip().splitlines()[-1]}",
            where=str(output),
            remedy="See the logs of the cluster (ray logs); nothing was written.",
        ) from error
