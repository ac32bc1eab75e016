"""A folder of Parquet files, labelled on a Ray cluster: exactly the rows that went in come out."""

import importlib.util
import sys

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bertsmith.inference import ray_data
from bertsmith.testing import tiny_table

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra ray is not installed"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # from Ray
]


@pytest.fixture
def folder(tmp_path):
    """Three files of 400 rows in total, with missing and empty texts."""
    rows = tiny_table(400, seed=7)["Text"].tolist()
    rows[3], rows[250] = None, "  "
    (tmp_path / "in").mkdir()
    for number, (start, end) in enumerate(((0, 150), (150, 151), (151, 400))):
        columns = {"id": list(range(start, end)), "tags": [["a", None]] * (end - start), "Text": rows[start:end]}
        pq.write_table(pa.table(columns), tmp_path / "in" / f"part-{number}.parquet")
    return tmp_path / "in"


@pytest.fixture
def cluster(monkeypatch):
    """A local Ray cluster whose workers have the same priority as other processes."""
    import ray

    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_a_killed_worker_leaves_exactly_the_rows_that_went_in(cli, cluster, old_export, folder, tmp_path, monkeypatch):
    """An export needs no torch, so that workers start within a moment."""
    died = tmp_path / "died"

    class Mortal(ray_data.Worker):
        """Is killed once, between two batches."""

        def __call__(self, batch):
            if 100 in batch["id"].to_pylist() and not died.exists():
                died.touch()
                psutil.Process().kill()
            return super().__call__(batch)

    monkeypatch.setattr(ray_data, "Worker", Mortal)
    monkeypatch.setattr(ray_data, "CHUNK_ROWS", 50)
    code, _, err = cli("predict", old_export, folder, "--ray", "local", "-o", tmp_path / "out", "--probabilities")
    assert code == 0, err
    assert died.exists()
    assert "400 rows written" in err
    found = pa.concat_tables(pq.read_table(file) for file in sorted((tmp_path / "out").glob("*.parquet")))
    whole = pa.concat_tables(pq.read_table(file) for file in sorted(folder.glob("*.parquet")))
    assert found.select(whole.column_names).equals(whole)
    whole_file, one_file = tmp_path / "whole.parquet", tmp_path / "one.parquet"
    pq.write_table(whole, whole_file)
    assert cli("predict", old_export, whole_file, "-o", one_file, "--probabilities")[0] == 0
    alone = pq.read_table(one_file)
    assert found.schema.equals(alone.schema)
    assert found["predicted_text"].to_pylist() == alone["predicted_text"].to_pylist()
    assert [row for row, label in enumerate(found["predicted"].to_pylist()) if label is None] == [3, 250]
    sure = [pytest.approx(c, abs=1e-5) for c in alone["confidence"].to_pylist() if c is not None]
    assert [c for c in found["confidence"].to_pylist() if c is not None] == sure

    code, _, err = cli("predict", old_export, folder, "--ray", "local", "-o", tmp_path / "out")
    assert code == 2
    assert "--overwrite" in err

    # A worker reports an error in a row as usual, and the previous output stays.
    def without_model(self, request, template, columns, source, types):
        self.template, self.columns, self.source = template, columns, source

    monkeypatch.setattr(Mortal, "__init__", without_model)
    pq.write_table(whole.set_column(2, "Text", pa.array([["a", "list"]] * 400)), tmp_path / "lists.parquet")
    code, _, err = cli(
        "predict", old_export, tmp_path / "lists.parquet", "--ray", "local", "-o", tmp_path / "out", "--overwrite"
    )
    assert code == 2
    assert "a list" in err
    assert "Traceback" not in err
    assert sum(pq.read_metadata(file).num_rows for file in (tmp_path / "out").glob("*.parquet")) == 400


def test_options_that_ray_does_not_support_are_errors(cli, finished, folder, tmp_path, monkeypatch):
    def refused(*given):
        code, _, err = cli("predict", finished, *given)
        assert code == 2, err
        assert not (tmp_path / "out").exists()
        return err

    ray = ("--ray", "local", "-o", tmp_path / "out")
    assert "--resume, --on-error skip" in refused(folder, *ray, "--resume", "--on-error", "skip")
    assert "-o" in refused(folder, "--ray", "local")
    assert str(tmp_path / "none") in refused(tmp_path / "none", *ray)
    assert f"where: {folder}" in refused(folder, "--ray", "local", "-o", folder)
    assert f"where: {finished / 'model'}" in refused(folder, "--ray", "local", "-o", finished / "model")
    assert "no column 'Txt'" in refused(folder, *ray, "--text-column", "Txt")
    pq.write_table(pa.table({"Text": ["a"]}), folder / "other.parquet")
    assert "other.parquet" in refused(folder, *ray)
    (folder / "other.parquet").write_bytes(b"PAR1 and no more")
    assert "other.parquet" in refused(folder, *ray)
    (folder / "other.parquet").write_text("Text\na\n")
    assert "not a Parquet file" in refused(folder, *ray)
    (folder / "other.parquet").unlink()
    tiny_table(3).to_csv(tmp_path / "new.csv", index=False)
    assert "not a Parquet file" in refused(tmp_path / "new.csv", *ray)
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "mine.txt").write_text("mine")
    assert "'mine.txt'" in refused(folder, "--ray", "local", "-o", notes, "--overwrite")
    assert (notes / "mine.txt").read_text() == "mine"
    nobody = ("--ray", "127.0.0.1:9", "-o", tmp_path / "out")
    error = refused(folder, *nobody)
    assert "--ray 127.0.0.1:9" in error
    assert "[Errno 111]" in error
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'bertsmith[ray]'" in refused(folder, *ray)
