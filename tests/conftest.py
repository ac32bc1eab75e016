"""What tests share: seeds, tiny checkpoints, small tables, and where the real tables are."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bertsmith.testing import tiny_model, tiny_table

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("BERTSMITH_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A finished run on a tiny table, with numbers 10, 20, 30."""
    import bertsmith as bs

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    table = tiny_table(150)
    table["Label"] = (table["Label"] + 1) * 10
    bs.train(table, output=folder, model=str(tiny), epochs=6, learning_rate=1e-2, precision="fp32", device="cpu")
    return folder


@pytest.fixture
def table() -> pd.DataFrame:
    return tiny_table()


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the real tables (../shared/data) are not on this machine")
    return SHARED
