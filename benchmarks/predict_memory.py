"""Measure the peak memory of `bertsmith predict` or `bertsmith measure` with more and more rows: it should not grow.

A tiny random model labels generated texts: growth with the rows would not depend on the model. Each run is a separate
process, and the kernel reports its peak.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WORDS = ["cat", "dog", "red", "blue", "apple", "plum", "my", "your", "here", "is", "that", "very", "quite", "near"]
MAKE = """
import sys
import bertsmith as bs
from bertsmith.testing import tiny_model, tiny_table
folder = sys.argv[1]
bs.train(tiny_table(150), output=f"{folder}/run", model=str(tiny_model(f"{folder}/tiny")), epochs=1)
"""


def write_rows(path: Path, n: int, kind: str) -> None:
    """Write ``n`` rows with an id and a text of 3 to 40 words. A smaller file is the beginning of a larger one."""
    rng = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        if kind == "csv":
            writer = csv.writer(file)
            writer.writerow(["id", "Text"])
        for i in range(n):
            text = " ".join(rng.choice(WORDS, rng.integers(3, 41)))
            if kind == "csv":
                writer.writerow([i, text])
            else:
                file.write(json.dumps({"id": i, "Text": text}) + "\n")
    if kind == "parquet":
        import pyarrow.json
        import pyarrow.parquet

        table = pyarrow.json.read_json(path)
        pyarrow.parquet.write_table(table, path)


def write_sample(path: Path, table: Path) -> None:
    """Write the first 200 texts of a CSV table with random labels."""
    rng = np.random.default_rng(0)
    with table.open(newline="") as rows, path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Text", "Label Text"])
        for row, _ in zip(csv.DictReader(rows), range(200), strict=False):
            writer.writerow([row["Text"], rng.choice(["animals", "colours", "fruits"])])


def peak(command: list[str]) -> tuple[float, float]:
    """Run a command; return its peak resident memory in MiB, and its duration in seconds."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return usage.ru_maxrss / 1024, time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--kinds", nargs="+", default=["csv"], choices=["csv", "jsonl", "parquet"])
    parser.add_argument("--runtime", default="onnx", choices=["onnx", "torch"])
    parser.add_argument("--command", default="predict", choices=["predict", "measure"])
    given = parser.parse_args()
    if given.command == "measure" and given.kinds != ["csv"]:
        parser.error("--command measure needs --kinds csv")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = folder / "run"
        # In a separate process: the reported peak of a child process is at least the peak of this process.
        subprocess.run([sys.executable, "-c", MAKE, name], check=True)
        if given.runtime == "onnx":
            subprocess.run([sys.executable, "-m", "bertsmith", "export", str(run), "--accept"], check=True)
        print("| rows | format | peak memory, MiB | seconds |\n| --- | --- | --- | --- |")
        for kind in given.kinds:
            for n in given.rows:
                table, out = folder / f"rows.{kind}", folder / f"out.{kind}"
                write_rows(table, n, kind)
                command = [sys.executable, "-m", "bertsmith", given.command, str(run), str(table), "-o", str(out)]
                if given.command == "measure":
                    write_sample(folder / "sample.csv", table)
                    command += ["--labelled", str(folder / "sample.csv"), "--random-sample", "--overwrite"]
                else:
                    command += ["--overwrite", "--runtime", given.runtime]
                memory, seconds = peak(command)
                print(f"| {n:,} | {kind} | {memory:,.0f} | {seconds:,.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
