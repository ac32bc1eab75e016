"""What tests share: seeds, tiny checkpoints, small tables, and where the real tables are."""

from __future__ import annotations

import functools
import gc
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, settings

from bertsmith.testing import tiny_model, tiny_table

if TYPE_CHECKING:
    import torch

    from bertsmith.folders.run import Run
    from bertsmith.inference.predictor import Predictor
    from bertsmith.model.tokens import Tokens
    from bertsmith.training.data import TokenDataset

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["BERTSMITH_CV"] = "0"  # test tables are small; tests of cross-validation set it

MEMORY_DISK = Path("/dev/shm")
if os.access(MEMORY_DISK, os.W_OK) and shutil.disk_usage(MEMORY_DISK).free > 2**32:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY_DISK))  # training syncs the disk 60 times

LONGEST = (
    "test_real_data",
    "test_distributed",
    "test_export",
    "test_nan_guard",
    "test_studies",
    "test_tuning",
    "test_processes",
    "test_signals",
    "test_server",
)
"""Files that take longest, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that no worker is left with one of them, and mark tests that train as slow."""
    order = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    for item in items:
        if item.path.stem in order or (isinstance(item, pytest.Function) and _trains(item)):
            item.add_marker("slow")


def _trains(item: pytest.Function) -> bool:
    """Return whether a test trains: it needs a checkpoint, not only the finished run that all share."""
    found = item._fixtureinfo

    def needs(name: str) -> bool:
        if name in ("tiny", "pooled", "finished"):
            return name != "finished"
        return any(needs(other) for made in found.name2fixturedefs.get(name, ()) for other in made.argnames)

    return any(map(needs, found.initialnames))


_modules = 0


def _exclude_imports_from_garbage_collection() -> None:
    """Exclude newly imported objects from garbage collection, which is slow otherwise."""
    global _modules
    if len(sys.modules) > _modules + 20:
        _modules = len(sys.modules)
        gc.collect()
        gc.freeze()


def pytest_collection_finish() -> None:
    _exclude_imports_from_garbage_collection()


def pytest_runtest_logfinish() -> None:
    _exclude_imports_from_garbage_collection()
    _keep_operators_of_onnx()


def _keep_operators_of_onnx() -> None:
    """Let exports of this process share the table of operators, which PyTorch builds for each export anew."""
    if module := sys.modules.get("torch.onnx._internal.exporter._registration"):
        build = module.ONNXRegistry.from_torchlib
        if not hasattr(build, "cache_info"):
            module.ONNXRegistry.from_torchlib = staticmethod(functools.cache(build))


SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


# The same examples in every run: a test that passed here passes elsewhere. To look for more, raise max_examples.
settings.register_profile(
    "repeatable", max_examples=50, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("repeatable")


class ArrowTable:
    """A table of another library, such as Polars: it has nothing but an Arrow stream and the names of its columns."""

    def __init__(self, columns: Any) -> None:
        import pyarrow as pa

        given = pa.table(columns)
        text = [pa.string_view() if pa.types.is_string(kind) else kind for kind in given.schema.types]
        self._table = given.cast(pa.schema(zip(given.column_names, text, strict=True)))
        self.columns = given.column_names

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


FAST = {"epochs": 3, "learning_rate": 1e-2, "head_rate": 1, "precision": "fp32", "device": "cpu", "consistency": 0}


def train(tiny: Path, output: Path, **settings: Any) -> Run:
    """Train a tiny checkpoint for three epochs of six steps; no mistake is explained unless asked for."""
    import bertsmith as bs

    settings = {**FAST, "explanations": "off", **settings}
    return bs.train(settings.pop("table", tiny_table()), output=output, model=str(tiny), **settings)


def rows_of(tokens: Tokens, name: str = "input_ids") -> list[list[int]]:
    """Return a column of each text."""
    return [row.tolist() for row in np.split(tokens.columns[name], tokens.starts[1:])] if len(tokens) else []


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run.layout.model / "model.safetensors")


def split_batch(batch: TokenDataset, budget: int, **settings: Any) -> list[TokenDataset]:
    """Return the micro-batches of a batch, in the order in which the engine computes them."""
    return [batch.take(rows) for rows in batch.tokens.micro_batches(budget, **settings)]


def padded(tokens: Tokens, values: dict[str, int]) -> dict[str, torch.Tensor]:
    """Return the inputs of a Hugging Face model, padded to the longest text."""
    import torch

    return {name: torch.from_numpy(column) for name, column in tokens.pad(values, width=tokens.longest).items()}


def same_weights(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("BERTSMITH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BERTSMITH_CV", "0")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint for sentence embeddings with mean pooling."""
    folder = tiny_model(tmp_path_factory.mktemp("pooled") / "model")
    (folder / "1_Pooling").mkdir()
    modes = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    return folder


@pytest.fixture(scope="module")
def one_contrastive_epoch() -> Iterator[None]:
    """Shorten the contrastive stage, which takes most of the time with few texts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bertsmith.training.recipe.CONTRASTIVE_STEPS", 1)
        yield


@pytest.fixture
def without_contrastive_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train on labels only."""
    monkeypatch.setattr("bertsmith.training.recipe.MAX_CONTRASTIVE_CLASSES", 0)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Path]:
    """A finished run on a tiny table, with numbers 10, 20, 30. Tests that write into it use `own_run`."""
    import bertsmith as bs

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    table = tiny_table(150)
    table["Label"] = (table["Label"] + 1) * 10
    bs.train(table, output=folder, model=str(tiny), **{**FAST, "epochs": 12})
    files = {*folder.rglob("*")}
    yield folder
    assert {*folder.rglob("*")} == files


@pytest.fixture
def own_run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, for tests that write into it: other tests must not see what they write."""
    return Path(shutil.copytree(finished, tmp_path / "own"))


@pytest.fixture(scope="session")
def classifier(finished: Path) -> Predictor:
    """The classifier of the finished run, with torch."""
    import bertsmith as bs

    return bs.load(finished, device="cpu", runtime="torch")


@pytest.fixture
def old_export(tmp_path: Path) -> Path:
    """An export, written by version 0.1. It needs no torch, so that a command with it starts within a moment."""
    pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    with tarfile.open(Path(__file__).parent / "data" / "written-by-0.1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "export"


@pytest.fixture
def tokenized(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that went through a tokenizer."""
    from bertsmith.model.tokenizer import Encoder

    texts: list[str] = []
    whole = Encoder.tokenize

    def counted(self: Encoder, given: list[str], names: tuple[str, ...]) -> dict[str, list[list[int]]]:
        texts.extend(given)
        return whole(self, given, names)

    monkeypatch.setattr(Encoder, "tokenize", counted)
    return texts


@pytest.fixture
def table() -> pd.DataFrame:
    return tiny_table()


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the real tables (../shared/data) are not on this machine")
    return SHARED


def _mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("a small disk can be made by root on Linux only")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A separate disk of 8 MiB."""
    yield from _mounted(tmp_path / "small", "size=8m")


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk that cannot be written to."""
    yield from _mounted(tmp_path / "read-only", "size=8m,ro")


@pytest.fixture
def cli(capsys):
    """The command in this process: ``cli("inspect", path)`` gives exit code, stdout, stderr."""
    from bertsmith.cli.app import main

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(a) for a in arguments])
        out = capsys.readouterr()
        assert "Traceback" not in out.err
        return caught.value.code, out.out, out.err

    return run
